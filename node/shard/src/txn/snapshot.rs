//! One read over several shards, or of one shard of a keyspace that has several.

use crate::route::{Mismatch, Parts};
use crate::txn::Failure;
use althing_raft::ids::GroupId;
use althing_store::compare_holds;
use althing_store::ops::{
    Compare, CompareTarget, KeyRange, KeyValue, Op, OpError, OpResult, Range, RangeResult, Revision, Txn, TxnId,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

/// Times that a read begins again because the revision that it had chosen was compacted under its hands.
const RESTARTS_MAX: u32 = 3;

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadInput {
    /// The sequencer said which revision is the newest that it has given out, or could not.
    Newest(Option<Revision>),
    /// A shard answered what it was asked, in order; `None` if it could not be asked.
    Answered {
        /// The shard.
        group: GroupId,
        /// What it found, or why it refused.
        answer: Option<Result<Vec<RangeResult>, OpError>>,
    },
    /// Time to ask again who could not answer.
    Tick,
    /// The client does not wait any longer.
    Deadline,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadOutput {
    /// Ask the sequencer for its newest revision, now.
    Newest,
    /// Ask a shard: first it makes sure that all that was given to it is settled (`Event::Resolve`, begun after this), then it reads,
    /// minding locks.
    Read {
        /// The shard.
        group: GroupId,
        /// What, each at a revision.
        ranges: Vec<Range>,
    },
    /// A transaction is in the way. At the next tick the shard is asked again; if this takes long, somebody should recover it.
    Blocked {
        /// Where.
        group: GroupId,
        /// Which one.
        txn: TxnId,
        /// Who knows what becomes of it.
        coordinator: GroupId,
    },
    /// Tell the client; said once. The revision is that of the answer's header.
    Answer(Result<(Revision, OpResult), Failure>),
}

/// Which ranges are being read.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Round {
    /// Nothing yet: the sequencer is asked, or will be at the next tick.
    Newest { asked: bool },
    /// What comparisons look at.
    Compares,
    /// What the branches taken read.
    Ops { path: Vec<bool> },
    /// Over.
    Done,
}

/// Where one shard stands in this round.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Asked,
    /// To be asked again.
    Failed,
    Answered(VecDeque<RangeResult>),
}

/// Runs one read. See the module for its rules.
#[derive(Clone, Debug)]
pub struct SnapshotRead {
    parts: Parts,
    revision: Revision,
    round: Round,
    shards: BTreeMap<GroupId, Part>,
    restarts: u32,
}

impl SnapshotRead {
    /// Begins one.
    ///
    /// # Panics
    /// If the request could write.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Vec<ReadOutput>) {
        assert!(parts.whole().read_only(), "invariant: what writes is a transaction");
        let this = Self {
            parts,
            revision: Revision(0),
            round: Round::Newest { asked: true },
            shards: BTreeMap::new(),
            restarts: 0,
        };
        (this, vec![ReadOutput::Newest])
    }

    /// Whether it was answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.round == Round::Done
    }

    /// Takes in what happened.
    pub fn step(&mut self, input: ReadInput, out: &mut Vec<ReadOutput>) {
        match input {
            ReadInput::Newest(newest) => {
                if self.round != (Round::Newest { asked: true }) {
                    return;
                }
                match newest {
                    None => self.round = Round::Newest { asked: false },
                    Some(revision) => {
                        self.revision = revision;
                        self.begin(Round::Compares, out);
                    }
                }
            }
            ReadInput::Answered { group, answer } => self.answered(group, answer, out),
            ReadInput::Tick => self.tick(out),
            ReadInput::Deadline => {
                if !self.is_done() {
                    self.end(Err(Failure::TimedOut), out);
                }
            }
        }
    }

    fn end(&mut self, answer: Result<(Revision, OpResult), Failure>, out: &mut Vec<ReadOutput>) {
        self.round = Round::Done;
        self.shards.clear();
        out.push(ReadOutput::Answer(answer));
    }

    /// What a shard is asked in this round, in the order of its part.
    fn ranges(&self, group: GroupId) -> Vec<Range> {
        let part = &self.parts.each()[&group];
        let mut ranges = Vec::new();
        match &self.round {
            Round::Newest { .. } | Round::Done => {}
            Round::Compares => each_txn(part, &mut |txn| {
                let asked = txn.compares.iter().filter(|compare| !is_empty(&compare.keys));
                ranges.extend(asked.map(|compare| self.compared(compare)));
            }),
            Round::Ops { path } => {
                let mut collect = |range: &Range| {
                    if !answers_itself(range) {
                        let revision = range.revision.filter(|asked| asked.0 > 0).or(Some(self.revision));
                        ranges.push(Range {
                            revision,
                            ..range.clone()
                        });
                    }
                    RangeResult::default()
                };
                run(part, &mut path.iter().copied(), true, self.revision, &mut collect);
            }
        }
        ranges
    }

    fn compared(&self, compare: &Compare) -> Range {
        let by_value = matches!(compare.target, CompareTarget::Value(_));
        Range {
            revision: Some(self.revision),
            keys_only: !by_value,
            ..Range::of(compare.keys.clone())
        }
    }

    fn begin(&mut self, round: Round, out: &mut Vec<ReadOutput>) {
        self.round = round;
        self.shards.clear();
        for group in self.parts.each().keys().copied().collect::<Vec<_>>() {
            let ranges = self.ranges(group);
            let part = if ranges.is_empty() {
                Part::Answered(VecDeque::new())
            } else {
                out.push(ReadOutput::Read { group, ranges });
                Part::Asked
            };
            self.shards.insert(group, part);
        }
        self.go_on(out);
    }

    fn answered(
        &mut self,
        group: GroupId,
        answer: Option<Result<Vec<RangeResult>, OpError>>,
        out: &mut Vec<ReadOutput>,
    ) {
        let wanted = self.ranges(group).len();
        let Entry::Occupied(mut part) = self.shards.entry(group) else {
            return;
        };
        if *part.get() != Part::Asked {
            return;
        }
        part.insert(Part::Failed);
        match answer {
            None => {}
            Some(Ok(results)) if results.len() == wanted => {
                part.insert(Part::Answered(results.into()));
                self.go_on(out);
            }
            Some(Ok(_)) => {
                let (wanted, found) = ("an answer to every range", "another number");
                self.end(Err(Mismatch { wanted, found }.into()), out);
            }
            Some(Err(OpError::Compacted)) if self.chose_all() && self.restarts < RESTARTS_MAX => {
                self.restarts += 1;
                self.shards.clear();
                self.round = Round::Newest { asked: true };
                out.push(ReadOutput::Newest);
            }
            Some(Err(OpError::Locked { txn, coordinator })) => out.push(ReadOutput::Blocked {
                group,
                txn,
                coordinator,
            }),
            Some(Err(error)) => self.end(Err(Failure::of(error, group)), out),
        }
    }

    /// Whether the client named no revision itself.
    fn chose_all(&self) -> bool {
        let mut chose = true;
        each_txn(self.parts.whole(), &mut |txn| {
            chose &= txn.success.iter().chain(&txn.failure).all(|op| match op {
                Op::Range(range) => range.revision.is_none_or(|asked| asked.0 <= 0),
                Op::Put(_) | Op::Delete(_) | Op::Txn(_) => true,
            });
        });
        chose
    }

    fn tick(&mut self, out: &mut Vec<ReadOutput>) {
        if let Round::Newest { asked } = &mut self.round
            && !std::mem::replace(asked, true)
        {
            out.push(ReadOutput::Newest);
        }
        let failed = self.shards.iter().filter(|(_, part)| **part == Part::Failed);
        for group in failed.map(|(group, _)| *group).collect::<Vec<_>>() {
            let ranges = self.ranges(group);
            out.push(ReadOutput::Read { group, ranges });
            self.shards.insert(group, Part::Asked);
        }
    }

    /// Ends the round if every shard has answered.
    fn go_on(&mut self, out: &mut Vec<ReadOutput>) {
        let mut answers = BTreeMap::new();
        for (group, part) in &self.shards {
            match part {
                Part::Asked | Part::Failed => return,
                Part::Answered(results) => answers.insert(*group, results.clone()),
            };
        }
        match self.round.clone() {
            Round::Newest { .. } | Round::Done => {}
            Round::Compares => {
                let path = self.path(&mut answers);
                let mut future = false;
                let mut look = |range: &Range| {
                    future |= range.revision.is_some_and(|asked| asked > self.revision);
                    RangeResult::default()
                };
                run(
                    self.parts.whole(),
                    &mut path.iter().copied(),
                    true,
                    self.revision,
                    &mut look,
                );
                if future {
                    self.end(Err(Failure::Refused(OpError::FutureRevision)), out);
                } else {
                    self.begin(Round::Ops { path }, out);
                }
            }
            Round::Ops { path } => {
                let results = answers.into_iter().map(|(group, mut answers)| {
                    let mut next = |range: &Range| {
                        if answers_itself(range) {
                            RangeResult::default()
                        } else {
                            answers.pop_front().unwrap_or_default()
                        }
                    };
                    let part = &self.parts.each()[&group];
                    let result = run(part, &mut path.iter().copied(), true, self.revision, &mut next);
                    (group, result)
                });
                let merged = self.parts.merge(&results.collect(), self.revision);
                let answer = merged.map(|(_, result)| (self.revision, result));
                self.end(answer.map_err(Failure::from), out);
            }
        }
    }

    /// The branches taken, from what comparisons have found.
    fn path(&self, answers: &mut BTreeMap<GroupId, VecDeque<RangeResult>>) -> Vec<bool> {
        // What each shard has found for each comparison, in the order of depth.
        let mut found: Vec<Vec<KeyValue>> = Vec::new();
        for (group, part) in self.parts.each() {
            let mut at = 0;
            each_txn(part, &mut |txn| {
                for compare in &txn.compares {
                    if found.len() <= at {
                        found.push(Vec::new());
                    }
                    if !is_empty(&compare.keys) {
                        let results = answers.get_mut(group).and_then(VecDeque::pop_front);
                        found[at].extend(results.unwrap_or_default().kvs);
                    }
                    at += 1;
                }
            });
        }
        let mut found = found.into_iter();
        let mut path = Vec::new();
        each_txn(self.parts.whole(), &mut |txn| {
            let mut holds = true;
            for compare in &txn.compares {
                let kvs = found.next().unwrap_or_default();
                holds &= if kvs.is_empty() {
                    compare_holds(compare, None)
                } else {
                    kvs.iter().all(|kv| compare_holds(compare, Some(kv)))
                };
            }
            path.push(holds);
        });
        path
    }
}

/// Whether no key can be in it.
fn is_empty(keys: &KeyRange) -> bool {
    match keys {
        KeyRange::Between(start, end) => start >= end,
        KeyRange::Single(_) | KeyRange::From(_) | KeyRange::Part { .. } => false,
    }
}

/// Whether a range finds nothing wherever and whenever it is read.
fn answers_itself(range: &Range) -> bool {
    is_empty(&range.keys) && range.revision.is_none_or(|asked| asked.0 <= 0)
}

/// Visits all transactions in depth-first order (`Decision::Commit`).
fn each_txn<'t>(txn: &'t Txn, visit: &mut impl FnMut(&'t Txn)) {
    visit(txn);
    for op in txn.success.iter().chain(&txn.failure) {
        if let Op::Txn(inner) = op {
            each_txn(inner, visit);
        }
    }
}

/// Runs a transaction that cannot write, with these branches and what `read` says.
fn run(
    txn: &Txn,
    branches: &mut impl Iterator<Item = bool>,
    taken: bool,
    revision: Revision,
    read: &mut impl FnMut(&Range) -> RangeResult,
) -> OpResult {
    let succeeded = branches.next().unwrap_or_default();
    let mut results = Vec::new();
    for (chosen, branch) in [(succeeded, &txn.success), (!succeeded, &txn.failure)] {
        let taken = taken && chosen;
        for op in branch {
            match op {
                Op::Range(range) if taken => results.push((revision, OpResult::Range(read(range)))),
                Op::Txn(inner) => {
                    let result = run(inner, branches, taken, revision, read);
                    if taken {
                        // etcd leaves the header of a nested transaction empty.
                        results.push((Revision(0), result));
                    }
                }
                Op::Range(_) | Op::Put(_) | Op::Delete(_) => {}
            }
        }
    }
    OpResult::Txn { succeeded, results }
}
