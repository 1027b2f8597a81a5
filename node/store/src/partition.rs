//! Which keys a shard owns, and where its revisions come from.
//!
//! A keyspace's keys are put in order by their *partition keys*, and each shard owns a span of those. The state machine itself knows its
//! own: whoever asks it for other keys, because the route was stale, is refused and never answered wrongly.

use crate::ops::{KeyRange, Revision};
use althing_raft::ids::MemberId;
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// Bytes of a slot number at the front of a hashed partition key. Hashed shards are cut at keys of exactly this length.
pub const SLOT_BYTES: usize = 4;

/// How a keyspace's keys are put in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Partitioning {
    /// By themselves: the partition key is the key.
    #[default]
    Range,
    /// By a hash: the partition key is a slot number of four bytes, big-endian, and the key behind it.
    Hash {
        /// How many slots there are, at least one.
        slots: u32,
        /// How many leading segments of a key, parted by `/`, are hashed, so that keys which have them in common stay together. All
        /// of the key if `None`.
        prefix_segments: Option<u8>,
    },
}

/// Partition keys `[start, end)`; no `end` means all from `start` on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span {
    /// The first one.
    pub start: Bytes,
    /// The first one after the span.
    pub end: Option<Bytes>,
}

/// What a shard owns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Territory {
    /// How keys are put in order.
    pub partitioning: Partitioning,
    /// Which of them are its own.
    pub span: Span,
    /// Rises with every change of any of this. 0 is the territory that a group is born with: everything.
    pub epoch: u64,
}

/// Where a shard's revisions come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RevisionSource {
    /// Each change is one more than the one before, as in etcd. For a keyspace of one shard.
    #[default]
    Dense,
    /// Each writing command brings its own, which the keyspace's sequencer gave out.
    Sequenced,
}

/// Names one transaction over several shards, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TxnId {
    /// The member that coordinates it.
    pub member: MemberId,
    /// That member's boot.
    pub nonce: u64,
    /// The transaction of that boot.
    pub number: u64,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}-{}", self.member, self.nonce, self.number)
    }
}

/// What becomes of a transaction over several shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It takes effect.
    Commit {
        /// At this revision, on every shard.
        revision: Revision,
        /// The branch taken (`true`: success) by each transaction of it in depth-first order: itself, then those nested in its success
        /// branch, then those of its failure branch.
        path: Vec<bool>,
    },
    /// It never happened.
    Abort,
}

fn slot(key: &[u8], slots: u32, segments: Option<u8>) -> u32 {
    althing_slots::slot(althing_slots::prefix(key, segments), slots)
}

impl Partitioning {
    /// Where a key stands.
    #[must_use]
    pub fn partition_key(&self, key: &[u8]) -> Bytes {
        match *self {
            Self::Range => Bytes::copy_from_slice(key),
            Self::Hash { slots, prefix_segments } => {
                let mut out = BytesMut::with_capacity(SLOT_BYTES + key.len());
                out.put_u32(slot(key, slots, prefix_segments));
                out.put_slice(key);
                out.freeze()
            }
        }
    }

    /// The slot of a key; `None` if keys are not hashed.
    #[must_use]
    pub fn slot(&self, key: &[u8]) -> Option<u32> {
        match *self {
            Self::Range => None,
            Self::Hash { slots, prefix_segments } => Some(slot(key, slots, prefix_segments)),
        }
    }

    /// The slot of all keys that there could be in a range; `None` if keys are not hashed, or these may have several.
    #[must_use]
    pub fn slot_of_all(&self, keys: &KeyRange) -> Option<u32> {
        let Self::Hash { prefix_segments, .. } = self else {
            return None;
        };
        let (start, end) = match keys {
            KeyRange::Single(key) => return self.slot(key),
            KeyRange::Between(start, end) => (start, Some(end)),
            KeyRange::From(start) => (start, None),
            KeyRange::Part { start, end, .. } => (start, end.as_ref()),
        };
        let one_key =
            end.is_some_and(|end| end.len() == start.len() + 1 && end.starts_with(start) && end.ends_with(&[0]));
        let common = end.map_or(&[][..], |end| common_prefix(start, end));
        (one_key || hashed_alike(common, *prefix_segments)).then(|| self.slot(start))?
    }

    /// All of the keyspace.
    #[must_use]
    pub fn whole(&self) -> Span {
        Span::default()
    }

    /// Whether a shard may be cut there.
    #[must_use]
    pub fn may_cut_at(&self, at: &[u8]) -> bool {
        match *self {
            Self::Range => !at.is_empty(),
            Self::Hash { slots, .. } => {
                let number = <[u8; SLOT_BYTES]>::try_from(at).map(u32::from_be_bytes);
                number.is_ok_and(|number| number > 0 && number < slots)
            }
        }
    }

    /// Whether a key's partition key lies in a span; as `span.contains(&self.partition_key(key))`, without making it.
    #[must_use]
    pub fn is_in(&self, key: &[u8], span: &Span) -> bool {
        match *self {
            Self::Range => span.contains(key),
            Self::Hash { .. } if span.is_whole() => true,
            Self::Hash { slots, prefix_segments } => {
                let number = slot(key, slots, prefix_segments).to_be_bytes();
                let whole_key = || number.iter().chain(key);
                span.start.iter().le(whole_key()) && span.end.as_ref().is_none_or(|end| whole_key().lt(end.iter()))
            }
        }
    }
}

impl Span {
    /// Whether a partition key lies in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// Whether it is the whole keyspace.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.start.is_empty() && self.end.is_none()
    }

    /// Whether nothing lies in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// What lies in both; `None` if nothing does.
    #[must_use]
    pub fn and(&self, other: &Self) -> Option<Self> {
        let start = (&self.start).max(&other.start).clone();
        let end = match (&self.end, &other.end) {
            (Some(one), Some(two)) => Some(one.min(two).clone()),
            (one, two) => one.as_ref().or(two.as_ref()).cloned(),
        };
        Some(Self { start, end }).filter(|span| !span.is_empty())
    }
}

/// What all keys of a range begin with.
fn common_prefix<'a>(start: &'a [u8], end: &[u8]) -> &'a [u8] {
    let same = start.iter().zip(end).take_while(|(one, two)| one == two).count();
    let mut len = same;
    // [ab, ac) is all that begins with `ab`, and so is what of it comes after any longer start.
    if end.len() == same + 1
        && start
            .get(same)
            .is_some_and(|byte| byte.checked_add(1) == Some(end[same]))
    {
        len += 1;
        // Nothing that begins like this comes after the largest byte.
        len += start[len..].iter().take_while(|byte| **byte == u8::MAX).count();
    }
    &start[..len]
}

/// Whether all keys that begin with this have the part that is hashed in common.
fn hashed_alike(prefix: &[u8], segments: Option<u8>) -> bool {
    // If one more byte, which ends no segment, is not hashed, none is.
    let mut longer = prefix.to_vec();
    longer.push(b'x');
    althing_slots::prefix(&longer, segments).len() <= prefix.len()
}

impl Territory {
    /// Whether a key is its own.
    #[must_use]
    pub fn owns(&self, key: &[u8]) -> bool {
        self.partitioning.is_in(key, &self.span)
    }

    /// Whether all of what is asked for is its own, so that it can answer alone: of a range every key that there could be in it. Of
    /// [`KeyRange::Part`] that it has just the span whose keys are wanted.
    #[must_use]
    pub fn owns_all(&self, keys: &KeyRange) -> bool {
        match keys {
            KeyRange::Single(key) => self.owns(key),
            KeyRange::Part { span, .. } => *span == self.span,
            KeyRange::Between(start, end) if start >= end => true,
            KeyRange::Between(..) | KeyRange::From(_) if self.span.is_whole() => true,
            KeyRange::Between(start, end) => match self.partitioning {
                Partitioning::Range => {
                    self.span.start <= *start && self.span.end.as_ref().is_none_or(|last| end <= last)
                }
                Partitioning::Hash { .. } => self.partitioning.slot_of_all(keys).is_some() && self.owns(start),
            },
            KeyRange::From(start) => match self.partitioning {
                Partitioning::Range => self.span.start <= *start && self.span.end.is_none(),
                Partitioning::Hash { .. } => self.partitioning.slot_of_all(keys).is_some() && self.owns(start),
            },
        }
    }

    /// The two halves that a cut makes of it, with the next epoch; `None` if it cannot be cut there.
    #[must_use]
    pub fn cut(&self, at: &Bytes) -> Option<(Self, Self)> {
        let inside = self.span.start < *at && self.span.end.as_ref().is_none_or(|end| at < end);
        let half = |start: &Bytes, end: Option<&Bytes>| Self {
            partitioning: self.partitioning,
            span: Span {
                start: start.clone(),
                end: end.cloned(),
            },
            epoch: self.epoch + 1,
        };
        (inside && self.partitioning.may_cut_at(at))
            .then(|| (half(&self.span.start, Some(at)), half(at, self.span.end.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: Partitioning = Partitioning::Hash {
        slots: 64,
        prefix_segments: Some(2),
    };

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn span(start: &str, end: Option<&str>) -> Span {
        Span {
            start: bytes(start),
            end: end.map(bytes),
        }
    }

    fn between(start: &str, end: &str) -> KeyRange {
        KeyRange::Between(bytes(start), bytes(end))
    }

    fn slot_of(key: &str) -> Span {
        let number = u32::from_be_bytes(HASH.partition_key(key.as_bytes())[..4].try_into().unwrap());
        Span {
            start: Bytes::copy_from_slice(&number.to_be_bytes()),
            end: Some(Bytes::copy_from_slice(&(number + 1).to_be_bytes())),
        }
    }

    #[test]
    fn a_range_is_owned_if_every_key_that_could_be_in_it_is() {
        let middle = Territory {
            span: span("b", Some("m")),
            ..Territory::default()
        };
        let owned = |keys: KeyRange| middle.owns_all(&keys);
        assert!(owned(between("b", "m")) && owned(between("c", "d")) && owned(between("z", "a")));
        assert!(!owned(between("a", "c")) && !owned(between("c", "n")) && !owned(KeyRange::From(bytes("c"))));
        assert!(owned(KeyRange::Single(bytes("b"))) && !owned(KeyRange::Single(bytes("m"))));
        let part = |span: Span| KeyRange::Part {
            start: Bytes::new(),
            end: None,
            span,
        };
        assert!(owned(part(span("b", Some("m")))) && !owned(part(span("b", Some("n")))));
        assert!(Territory::default().owns_all(&KeyRange::From(Bytes::new())));
    }

    #[test]
    fn a_hashed_range_is_owned_if_all_its_keys_have_one_slot() {
        let territory = Territory {
            partitioning: HASH,
            span: slot_of("/registry/pods"),
            epoch: 1,
        };
        let owned = |start: &str, end: &str| territory.owns_all(&between(start, end));
        assert!(owned("/registry/pods/", "/registry/pods0"));
        assert!(owned("/registry/pods/ns/a", "/registry/pods/ns/b"));
        assert!(owned("/registry/pods/ns/web\0", "/registry/pods0"));
        assert!(owned("/registry/pods", "/registry/pods\0"), "one key");
        // `/registry/pods-old` is in it.
        assert!(!owned("/registry/pods", "/registry/pods0"));
        assert!(!owned("/registry/", "/registry0"));
        assert!(!territory.owns_all(&KeyRange::From(bytes("/registry/pods/"))));
        let largest = KeyRange::Between(
            Bytes::from_static(b"/registry/pods/\xff\xff"),
            Bytes::from_static(b"/registry/pods0"),
        );
        assert!(territory.owns_all(&largest));
    }

    #[test]
    fn a_cut_lies_inside_and_between_slots() {
        let all = Territory::default();
        assert!(all.cut(&Bytes::new()).is_none());
        let (left, right) = all.cut(&bytes("m")).unwrap();
        assert_eq!((left.span, left.epoch), (span("", Some("m")), 1));
        assert_eq!((&right.span, right.epoch), (&span("m", None), 1));
        assert!(right.cut(&bytes("m")).is_none() && right.cut(&bytes("a")).is_none());
        let hashed = Territory {
            partitioning: HASH,
            ..all
        };
        assert!(hashed.cut(&bytes("abc")).is_none() && hashed.cut(&Bytes::from_static(&[0, 0, 0, 64])).is_none());
        assert!(hashed.cut(&Bytes::from_static(&[0, 0, 0, 32])).is_some());
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(proptest::sample::select(&b"/0ab\xff\x00."[..]), 0..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn what_is_said_to_be_owned_whole_has_no_key_elsewhere(
            start in key(), end in key(), keys in proptest::collection::vec(key(), 20), segments in 0..3u8, cut in 1..64u32, upper: bool,
        ) {
            let cut = Bytes::copy_from_slice(&cut.to_be_bytes());
            for (partitioning, cut) in [
                (Partitioning::Hash { slots: 64, prefix_segments: segments.checked_sub(1) }, cut),
                (Partitioning::Range, Bytes::from_static(b"a")),
            ] {
                let (lower, higher) = Territory { partitioning, ..Territory::default() }.cut(&cut).unwrap();
                let territory = if upper { higher } else { lower };
                for range in [KeyRange::Between(start.clone().into(), end.clone().into()), KeyRange::From(start.clone().into())] {
                    let all = territory.owns_all(&range);
                    for key in keys.iter().filter(|key| range.contains(key)) {
                        prop_assert_eq!(territory.owns(key), territory.span.contains(&partitioning.partition_key(key)));
                        prop_assert!(!all || territory.owns(key), "{:?} in {:?}", key, range);
                    }
                }
            }
        }
    }
}
