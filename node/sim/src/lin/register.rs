//! One etcd key as a sequential object: value, mod revision, version, and the lowest revision that the
//! keyspace can be at. Semantics: etcd's `mvcc` (one revision per mutating request,
//! `version` counts from creation, a delete that finds nothing makes no revision).

use super::search::{Interval, Model};
use crate::history::{Event, Expect, Op, Outcome, Reply, Seen};
use std::collections::{BTreeMap, BTreeSet};

/// A value by number. All values that no answer shows share [`HIDDEN`]: nothing can tell them apart.
type ValueId = u32;
const HIDDEN: ValueId = 0;

/// The mod revision of a key, as far as the answers tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Modified {
    Exactly(i64),
    /// Left by a write whose client never learned its revision.
    AtLeast(i64),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Live {
    value: ValueId,
    modified: Modified,
    version: i64,
}

/// The object's state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct State {
    live: Option<Live>,
    /// The keyspace has reached this revision.
    floor: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sight {
    value: ValueId,
    mod_revision: i64,
    version: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compare {
    Absent,
    ModRevision(i64),
    Value(ValueId),
}

/// An operation with its answer; `None` where the client got none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Put {
        value: ValueId,
        revision: Option<i64>,
    },
    Delete {
        answer: Option<(i64, bool)>,
    },
    Get {
        revision: i64,
        seen: Option<Sight>,
    },
    Swap {
        expect: Compare,
        value: ValueId,
        answer: Option<Swapped>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Swapped {
    Yes { revision: i64 },
    No { revision: i64, seen: Option<Sight> },
}

/// The model of [`super::search`].
pub(crate) struct Register;

impl Model for Register {
    type State = State;
    type Call = Call;

    fn step(&self, state: &State, call: &Call) -> Option<State> {
        match *call {
            Call::Put { value, revision } => state.write(value, revision),
            Call::Delete {
                answer: Some((revision, false)),
            } => state.read(revision, None),
            Call::Delete {
                answer: Some((revision, true)),
            } => state.delete(Some(revision)),
            Call::Delete { answer: None } => state.delete(None),
            Call::Get { revision, seen } => state.read(revision, seen),
            Call::Swap {
                expect,
                value,
                answer: Some(Swapped::Yes { revision }),
            } => state.may_match(expect).then(|| state.write(value, Some(revision)))?,
            Call::Swap {
                expect,
                answer: Some(Swapped::No { revision, seen }),
                ..
            } => {
                let state = state.read(revision, seen)?;
                (!state.may_match(expect)).then_some(state)
            }
            Call::Swap {
                expect,
                value,
                answer: None,
            } => state.may_match(expect).then(|| state.write(value, None))?,
        }
    }

    fn lowest_rank(&self, state: &State) -> u64 {
        rank(state.floor, false)
    }
}

impl State {
    /// The state after a write at `revision`, or at an unknown one.
    fn write(&self, value: ValueId, revision: Option<i64>) -> Option<Self> {
        let (modified, floor) = self.advance(revision)?;
        let version = self.live.map_or(0, |live| live.version) + 1;
        Some(Self {
            live: Some(Live {
                value,
                modified,
                version,
            }),
            floor,
        })
    }

    /// The state after a delete that found the key.
    fn delete(&self, revision: Option<i64>) -> Option<Self> {
        self.live?;
        let (_, floor) = self.advance(revision)?;
        Some(Self { live: None, floor })
    }

    fn advance(&self, revision: Option<i64>) -> Option<(Modified, i64)> {
        match revision {
            Some(revision) if revision <= self.floor => None,
            Some(revision) => Some((Modified::Exactly(revision), revision)),
            None => Some((Modified::AtLeast(self.floor + 1), self.floor + 1)),
        }
    }

    /// The state after a read at header `revision` that showed `seen`: what was unknown becomes known.
    fn read(&self, revision: i64, seen: Option<Sight>) -> Option<Self> {
        if revision < self.floor {
            return None;
        }
        let live = match (self.live, seen) {
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return None,
            (Some(live), Some(seen)) => {
                let modified = match live.modified {
                    Modified::Exactly(known) => known == seen.mod_revision,
                    Modified::AtLeast(least) => least <= seen.mod_revision,
                };
                let fits = modified
                    && seen.mod_revision <= revision
                    && live.value == seen.value
                    && live.version == seen.version;
                if !fits {
                    return None;
                }
                Some(Live {
                    modified: Modified::Exactly(seen.mod_revision),
                    ..live
                })
            }
        };
        Some(Self { live, floor: revision })
    }

    fn may_match(&self, expect: Compare) -> bool {
        match (self.live, expect) {
            (None, Compare::Absent) => true,
            (None, Compare::ModRevision(_) | Compare::Value(_)) | (Some(_), Compare::Absent) => false,
            (Some(live), Compare::Value(value)) => live.value == value,
            (Some(live), Compare::ModRevision(revision)) => match live.modified {
                Modified::Exactly(known) => known == revision,
                Modified::AtLeast(least) => least <= revision,
            },
        }
    }
}

/// The calls of one key, ready to be searched. Failed operations and reads without an answer say nothing.
pub(crate) fn calls(events: &[&Event]) -> Vec<Interval<Call>> {
    let names = Names::of(events);
    events.iter().filter_map(|event| names.interval(event)).collect()
}

/// What the answers say about values.
#[derive(Default)]
struct Names<'a> {
    ids: BTreeMap<&'a str, ValueId>,
    /// Mod revision with which a value was seen.
    seen_at: BTreeMap<&'a str, i64>,
    /// Values that exactly one operation may have written.
    single_writer: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn of(events: &[&'a Event]) -> Self {
        let mut names = Self::default();
        let mut writers: BTreeMap<&str, usize> = BTreeMap::new();
        for event in events {
            if matches!(event.outcome, Outcome::Failed { .. }) {
                continue;
            }
            match &event.op {
                Op::Put { value, .. } => *writers.entry(value).or_default() += 1,
                Op::CompareAndSwap { expect, value, .. } => {
                    *writers.entry(value).or_default() += 1;
                    match expect {
                        Expect::Value(value) => names.name(value),
                        Expect::Absent | Expect::ModRevision(_) => {}
                    }
                }
                Op::Get { .. } | Op::Delete { .. } => {}
            }
            if let Some(seen) = event.reply().and_then(sight) {
                names.name(&seen.value);
                names.seen_at.entry(&seen.value).or_insert(seen.mod_revision);
            }
        }
        names.single_writer = writers
            .into_iter()
            .filter(|&(_, count)| count == 1)
            .map(|(value, _)| value)
            .collect();
        names
    }

    fn name(&mut self, value: &'a str) {
        let next = u32::try_from(self.ids.len() + 1).expect("invariant: fewer than 2^32 values in a history");
        self.ids.entry(value).or_insert(next);
    }

    fn id(&self, value: &str) -> ValueId {
        self.ids.get(value).copied().unwrap_or(HIDDEN)
    }

    fn sight(&self, seen: &Seen) -> Sight {
        Sight {
            value: self.id(&seen.value),
            mod_revision: seen.mod_revision,
            version: seen.version,
        }
    }

    /// The revision of a write whose client got no answer, if another's answer shows that it happened.
    fn revealed(&self, value: &str) -> Option<i64> {
        self.single_writer
            .contains(value)
            .then(|| self.seen_at.get(value).copied())?
    }

    fn interval(&self, event: &Event) -> Option<Interval<Call>> {
        let reply = match &event.outcome {
            Outcome::Ok { reply } => Some(reply),
            Outcome::Unknown { .. } => None,
            Outcome::Failed { .. } => return None,
        };
        let seen_in = |reply: &Reply| sight(reply).map(|seen| self.sight(seen));
        let (call, revision) = match &event.op {
            Op::Put { value, .. } => {
                let revision = reply.map(Reply::revision).or_else(|| self.revealed(value));
                (
                    Call::Put {
                        value: self.id(value),
                        revision,
                    },
                    revision,
                )
            }
            Op::Get { .. } => {
                let reply = reply?;
                (
                    Call::Get {
                        revision: reply.revision(),
                        seen: seen_in(reply),
                    },
                    Some(reply.revision()),
                )
            }
            Op::Delete { .. } => {
                let answer = reply.map(|reply| (reply.revision(), reply.wrote()));
                (Call::Delete { answer }, reply.map(Reply::revision))
            }
            Op::CompareAndSwap { expect, value, .. } => {
                let answer = match reply {
                    Some(reply) if reply.wrote() => Some(Swapped::Yes {
                        revision: reply.revision(),
                    }),
                    Some(reply) => Some(Swapped::No {
                        revision: reply.revision(),
                        seen: seen_in(reply),
                    }),
                    None => self.revealed(value).map(|revision| Swapped::Yes { revision }),
                };
                let revision = reply.map(Reply::revision).or_else(|| self.revealed(value));
                let expect = match expect {
                    Expect::Absent => Compare::Absent,
                    Expect::ModRevision(revision) => Compare::ModRevision(*revision),
                    Expect::Value(value) => Compare::Value(self.id(value)),
                };
                (
                    Call::Swap {
                        expect,
                        value: self.id(value),
                        answer,
                    },
                    revision,
                )
            }
        };
        let wrote = reply.is_none_or(Reply::wrote);
        let rank = revision.map(|revision| rank(revision, wrote));
        Some(Interval {
            call,
            invoked: event.invoked_ns,
            returned: reply.map(|_| event.returned_ns),
            required: revision.is_some(),
            rank,
        })
    }
}

/// A write at revision r comes before every read at header revision r and after every read at r - 1.
fn rank(revision: i64, wrote: bool) -> u64 {
    u64::try_from(revision)
        .unwrap_or(0)
        .saturating_mul(2)
        .saturating_add(u64::from(!wrote))
}

/// The key as a reply shows it.
pub(crate) fn sight(reply: &Reply) -> Option<&Seen> {
    match reply {
        Reply::Get { seen, .. } | Reply::NotSwapped { seen, .. } => seen.as_ref(),
        Reply::Put { .. } | Reply::Delete { .. } | Reply::Swapped { .. } => None,
    }
}
