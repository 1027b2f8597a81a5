//! How a group answers linearizable reads: the durable wish ([`ReadSpec`]), and the [`Roster`] that a leader makes of it.
//!
//! A roster says who may answer reads of which keys from its own state ("responders"; the leader always may, if the mode knows
//! leases at all). It has a ballot `(term, epoch)`, which only the leader of that term hands out. A lease protects the roster,
//! not a value: it is a voter's promise to take no part in a newer roster until the promise is dead. So writes never touch
//! leases; they only wait for every responder of their keys (Hu and Arpaci-Dusseau, "Bodega", OSDI 2026, carried over to Raft).

use crate::ids::{Epoch, Index, MemberId, Term};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Ranges of one specification. Finer ones than this belong into shards of their own.
pub const RANGES_MAX: usize = 256;
/// A lease must outlive so many heartbeats, or one lost message would end local reads.
pub const LEASE_HEARTBEATS_MIN: u32 = 4;
/// A dead leader or responder can stop writes for one lease: not for longer than so many election timeouts.
pub const LEASE_ELECTIONS_MAX: u32 = 20;
/// Least bound on clock error, in parts per million: leap second smearing and a badly disciplined clock stay well below.
pub const DRIFT_PPM_MIN: u32 = 10_000;
/// Largest: beyond it a lease would be mostly margin.
pub const DRIFT_PPM_MAX: u32 = 200_000;

/// Names a roster: uniquely, because only one member leads a term and it counts its rosters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ballot {
    /// Term of the leader that made it.
    pub term: Term,
    /// Its number in that term.
    pub epoch: Epoch,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.epoch)
    }
}

/// Some keys that lie together, in bytewise order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Span {
    /// One key.
    Key(Bytes),
    /// `[start, end)`; without an end, every key from `start` on.
    Range {
        /// First key.
        start: Bytes,
        /// First key behind it.
        end: Option<Bytes>,
    },
}

impl Span {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::Range {
            start: Bytes::new(),
            end: None,
        }
    }

    /// Whether `key` lies in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => only == key,
            Self::Range { start, end } => start <= key && end.as_ref().is_none_or(|end| key < &end[..]),
        }
    }

    /// Whether some key lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(key), span) | (span, Self::Key(key)) => span.contains(key),
            (Self::Range { start: a, end: a_end }, Self::Range { start: b, end: b_end }) => {
                let (start, before) = (a.max(b), |end: &Option<Bytes>| end.clone());
                let inside = |end: Option<Bytes>| end.is_none_or(|end| start < &end);
                inside(before(a_end)) && inside(before(b_end))
            }
        }
    }

    /// Whether every key of `other` lies in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (span, Self::Key(key)) => span.contains(key),
            // A range that holds one key only is not worth a case.
            (Self::Key(_), Self::Range { .. }) => false,
            (Self::Range { start: a, end: a_end }, Self::Range { start: b, end: b_end }) => {
                a <= b
                    && match (a_end, b_end) {
                        (None, _) => true,
                        (Some(_), None) => false,
                        (Some(a_end), Some(b_end)) => b_end <= a_end,
                    }
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Key(_) => false,
            Self::Range { start, end } => end.as_ref().is_some_and(|end| end <= start),
        }
    }
}

/// The keys that a command writes or a read looks at. What cannot be told is [`Footprint::All`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Footprint {
    /// These, perhaps none.
    Spans(Vec<Span>),
    /// Any key.
    All,
}

impl Footprint {
    /// Of one key.
    #[must_use]
    pub fn key(key: Bytes) -> Self {
        Self::Spans(vec![Span::Key(key)])
    }

    /// For shells without keys: every command may touch everything.
    #[must_use]
    pub fn unknown(_: &Bytes) -> Self {
        Self::All
    }

    /// Of all of them together.
    #[must_use]
    pub fn union(all: impl IntoIterator<Item = Self>) -> Self {
        let mut spans = Vec::new();
        for footprint in all {
            match footprint {
                Self::All => return Self::All,
                Self::Spans(more) => spans.extend(more),
            }
        }
        Self::Spans(spans)
    }

    fn overlaps(&self, span: &Span) -> bool {
        match self {
            Self::All => true,
            Self::Spans(spans) => spans.iter().any(|own| own.overlaps(span)),
        }
    }
}

/// How linearizable reads are answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum ReadMode {
    /// The leader confirms by a round of heartbeats that it still leads (Raft thesis, section 6.4).
    #[default]
    ReadIndex,
    /// The leader answers from its own state while it holds leases.
    LeaderLease,
    /// So does every responder.
    RosterLease,
}

/// What the revision beside a read's answer tells, where a responder answers by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Revisions {
    /// Nobody has seen a newer one, as with any other linearizable read: a local read waits for every write under way, whatever
    /// its keys. Whoever compares revisions of different answers needs this (a list and a watch behind it, caches of
    /// Kubernetes).
    #[default]
    Current,
    /// It may be older than one that somebody saw elsewhere: a local read waits for writes of its own keys only, and what it says
    /// of these is linearizable all the same.
    OfKeys,
}

/// Keys and who should answer reads of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResponderRange {
    /// The keys.
    pub span: Span,
    /// Wanted responders; those that are no members or not well are left out for the time.
    pub members: BTreeSet<MemberId>,
}

/// Who should answer reads, beside the leader.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Responders {
    /// Nobody.
    #[default]
    None,
    /// Every voter, for every key.
    All,
    /// These. Where ranges overlap, the responders of a key are those of all its ranges.
    Ranges(Vec<ResponderRange>),
}

/// The durable wish: an entry of the log, part of every snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadSpec {
    /// How reads are answered.
    pub mode: ReadMode,
    /// Who answers them in [`ReadMode::RosterLease`].
    pub responders: Responders,
    /// What the revisions of their answers tell.
    pub revisions: Revisions,
    /// Length of a lease; ignored in [`ReadMode::ReadIndex`].
    pub lease: Duration,
}

/// Why a specification is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// One lost heartbeat would end it.
    #[error("a read lease of {lease:?} is too short: it must outlive {LEASE_HEARTBEATS_MIN} heartbeats, {least:?}")]
    LeaseTooShort {
        /// The one given.
        lease: Duration,
        /// The shortest allowed.
        least: Duration,
    },
    /// A dead member would stop writes for too long.
    #[error(
        "a read lease of {lease:?} is too long: writes wait for it when a member dies, so at most {LEASE_ELECTIONS_MAX} election timeouts, {most:?}"
    )]
    LeaseTooLong {
        /// The one given.
        lease: Duration,
        /// The longest allowed.
        most: Duration,
    },
    /// Too fine.
    #[error("{0} responder ranges are too many, at most {RANGES_MAX} are allowed; split the shard instead")]
    TooManyRanges(usize),
    /// Nobody could ever answer by itself.
    #[error(
        "responder range {0} does not hold all keys, so its members cannot tell the current revision: ask for revisions of keys, or for one range of all keys"
    )]
    RangeNotWhole(usize),
    /// A range without keys.
    #[error("responder range {0} holds no key: its end must lie behind its start")]
    EmptyRange(usize),
}

impl ReadSpec {
    /// Checks it against the timeouts of the group.
    ///
    /// # Errors
    /// What is wrong, with the value that would do.
    pub fn validate(&self, heartbeat: Duration, election_timeout: Duration) -> Result<(), SpecError> {
        match self.mode {
            ReadMode::ReadIndex => {}
            ReadMode::LeaderLease | ReadMode::RosterLease => {
                let (lease, least) = (self.lease, heartbeat * LEASE_HEARTBEATS_MIN);
                let most = election_timeout * LEASE_ELECTIONS_MAX;
                if lease < least {
                    return Err(SpecError::LeaseTooShort { lease, least });
                }
                if lease > most {
                    return Err(SpecError::LeaseTooLong { lease, most });
                }
            }
        }
        match &self.responders {
            Responders::None | Responders::All => Ok(()),
            Responders::Ranges(ranges) if ranges.len() > RANGES_MAX => Err(SpecError::TooManyRanges(ranges.len())),
            Responders::Ranges(ranges) => match ranges.iter().position(|range| range.span.is_empty()) {
                Some(at) => Err(SpecError::EmptyRange(at)),
                None => {
                    let part = |range: &ResponderRange| !range.span.covers(&Span::all());
                    match ranges.iter().position(part) {
                        Some(at) if self.revisions == Revisions::Current => Err(SpecError::RangeNotWhole(at)),
                        Some(_) | None => Ok(()),
                    }
                }
            },
        }
    }

    /// Length of the leases that it wants; zero for none.
    #[must_use]
    pub fn lease_length(&self) -> Duration {
        match self.mode {
            ReadMode::ReadIndex => Duration::ZERO,
            ReadMode::LeaderLease | ReadMode::RosterLease => self.lease,
        }
    }

    /// Bytes that it counts for in size limits.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let span = |span: &Span| match span {
            Span::Key(key) => key.len(),
            Span::Range { start, end } => start.len() + end.as_ref().map_or(0, Bytes::len),
        };
        32 + match &self.responders {
            Responders::None | Responders::All => 0,
            Responders::Ranges(ranges) => ranges
                .iter()
                .map(|range| 16 + span(&range.span) + 8 * range.members.len())
                .sum(),
        }
    }
}

/// The specification in force, and since when.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadsState {
    /// What is wanted.
    pub spec: ReadSpec,
    /// The entry that said so. Zero: nobody ever asked for leases, so no promise can be alive anywhere.
    pub index: Index,
}

/// Who may answer reads now, as its leader says. Volatile: a commit is never needed to leave a dead responder behind
/// (pitfall P25).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roster {
    /// Its name.
    pub ballot: Ballot,
    /// Who made it.
    pub leader: MemberId,
    /// The configuration that it was made for.
    pub config: Index,
    /// Length of its leases; zero if nobody reads locally.
    pub lease: Duration,
    /// The responders.
    pub ranges: Vec<ResponderRange>,
    /// What the revisions of their answers tell.
    pub revisions: Revisions,
    /// Nothing behind this index was committed under an older roster.
    pub safe: Index,
}

impl Roster {
    /// Whether this member may answer reads of some key.
    #[must_use]
    pub fn reads(&self, member: MemberId) -> bool {
        member == self.leader || self.ranges.iter().any(|range| range.members.contains(&member))
    }

    /// Whether it may answer a read of all of these keys.
    #[must_use]
    pub fn answers(&self, member: MemberId, footprint: &Footprint) -> bool {
        let covered = |span: &Span| {
            self.ranges
                .iter()
                .any(|range| range.members.contains(&member) && range.span.covers(span))
        };
        match footprint {
            Footprint::All => covered(&Span::all()),
            Footprint::Spans(spans) => spans.iter().all(covered),
        }
    }

    /// Whether every responder of a touched key passes.
    pub(crate) fn responders_all(&self, footprint: &Footprint, passes: impl Fn(MemberId) -> bool) -> bool {
        self.ranges
            .iter()
            .filter(|range| footprint.overlaps(&range.span))
            .all(|range| range.members.iter().all(|member| passes(*member)))
    }

    /// Every responder.
    #[must_use]
    pub fn responders(&self) -> BTreeSet<MemberId> {
        self.ranges
            .iter()
            .flat_map(|range| range.members.iter().copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span() -> impl Strategy<Value = Span> {
        let key = || proptest::collection::vec(0..4u8, 0..3).prop_map(Bytes::from);
        prop_oneof![
            key().prop_map(Span::Key),
            (key(), proptest::option::of(key())).prop_map(|(start, end)| Span::Range { start, end }),
        ]
    }

    fn keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for a in 0..5u8 {
            keys.push(vec![a]);
            for b in 0..5u8 {
                keys.push(vec![a, b]);
                keys.extend((0..2u8).map(|c| vec![a, b, c]));
            }
        }
        keys
    }

    proptest! {
        #[test]
        fn spans_that_share_a_key_overlap_and_a_cover_holds_every_key(a in span(), b in span()) {
            let shared = keys().iter().any(|key| a.contains(key) && b.contains(key));
            if shared { prop_assert!(a.overlaps(&b) && b.overlaps(&a)); }
            if a.covers(&b) {
                prop_assert!(keys().iter().all(|key| !b.contains(key) || a.contains(key)));
            }
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        }
    }

    #[test]
    fn a_lease_is_checked_against_the_timeouts_with_the_value_that_would_do() {
        let (beat, election) = (Duration::from_millis(50), Duration::from_millis(500));
        let spec = |mode, lease| ReadSpec {
            mode,
            responders: Responders::All,
            revisions: Revisions::Current,
            lease: Duration::from_millis(lease),
        };
        assert_eq!(spec(ReadMode::RosterLease, 1000).validate(beat, election), Ok(()));
        assert_eq!(spec(ReadMode::ReadIndex, 0).validate(beat, election), Ok(()));
        let short = spec(ReadMode::LeaderLease, 150).validate(beat, election).unwrap_err();
        assert_eq!(
            short.to_string(),
            "a read lease of 150ms is too short: it must outlive 4 heartbeats, 200ms"
        );
        let long = spec(ReadMode::RosterLease, 11_000)
            .validate(beat, election)
            .unwrap_err();
        assert!(long.to_string().contains("at most 20 election timeouts, 10s"), "{long}");
        let empty = ReadSpec {
            responders: Responders::Ranges(vec![ResponderRange {
                span: Span::Range {
                    start: Bytes::from_static(b"b"),
                    end: Some(Bytes::from_static(b"a")),
                },
                members: BTreeSet::new(),
            }]),
            ..spec(ReadMode::RosterLease, 1000)
        };
        assert_eq!(empty.validate(beat, election), Err(SpecError::EmptyRange(0)));
        let mut part = spec(ReadMode::RosterLease, 1000);
        part.responders = Responders::Ranges(vec![ResponderRange {
            span: Span::Key(Bytes::from_static(b"a")),
            members: BTreeSet::new(),
        }]);
        assert_eq!(part.validate(beat, election), Err(SpecError::RangeNotWhole(0)));
        part.revisions = Revisions::OfKeys;
        assert_eq!(part.validate(beat, election), Ok(()));
    }
}
