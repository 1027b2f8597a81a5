//! One write over several shards.

use crate::route::{Parts, Prepared};
use crate::txn::{Answer, Asked, Failure, Propose};
use althing_raft::ids::GroupId;
use althing_store::ops::{Decision, OpResult, Revision, ShardCommand, ShardResult, TxnId};
use std::collections::{BTreeMap, BTreeSet};

/// Ticks after the deadline in which a decided transaction is still brought to its shards. After that its locks are left to whoever
/// meets them.
const LATE_TICKS_MAX: u32 = 100;

/// In which order shards are asked to prepare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// All at once.
    Together,
    /// One after another, by number. Of two transactions that want the same keys, the one that has the first shard's goes on: for
    /// whoever was in conflict before.
    InTurn,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A proposal was answered.
    Answered {
        /// By which shard.
        group: GroupId,
        /// Which one.
        asked: Asked,
        /// What became of it.
        answer: Answer,
    },
    /// The sequencer gave out a revision, or could not.
    Stamped(Option<Revision>),
    /// Time to try again what failed.
    Tick,
    /// The client does not wait any longer.
    Deadline,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Put a command into a shard's log.
    Propose(Propose),
    /// Ask the sequencer for one revision, now.
    Stamp,
    /// Tell the client; said once. The revision is that of the answer's header.
    Answer(Result<(Revision, OpResult), Failure>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// Shards look at their parts and lock.
    Preparing {
        /// Not asked yet.
        next: BTreeSet<GroupId>,
        /// Asked and not answered.
        asked: BTreeSet<GroupId>,
    },
    /// All have locked; the revision is asked for, or will be at the next tick.
    Stamping { asked: bool },
    /// The decision is being written down.
    Deciding {
        decision: Decision,
        /// Proposed and not answered.
        asked: bool,
        /// Whether some proposal of it may still take effect.
        unsure: bool,
    },
    /// It is brought to all shards.
    Finishing { decision: Decision },
    /// It may be forgotten.
    Forgetting,
    /// Over.
    Done,
}

/// Runs one transaction. See the module for its rules.
#[derive(Clone, Debug)]
pub struct Transaction {
    id: TxnId,
    /// Where the decision is kept: one of the participants, so that it cannot go away before it is finished.
    coordinator: GroupId,
    parts: Parts,
    order: Order,
    phase: Phase,
    prepared: BTreeMap<GroupId, Prepared>,
    /// Shards that may hold locks and have not said that they are finished.
    holding: BTreeSet<GroupId>,
    /// Of those, the ones that have been told and may still answer.
    told: BTreeSet<GroupId>,
    results: BTreeMap<GroupId, Option<Box<OpResult>>>,
    failure: Option<Failure>,
    answered: bool,
    /// Whether a decision was ever proposed, so that there may be one to forget.
    decided: bool,
    late_ticks: Option<u32>,
}

impl Transaction {
    /// Begins one. The id must never have been used.
    ///
    /// # Panics
    /// If there are no parts.
    #[must_use]
    pub fn new(id: TxnId, parts: Parts, order: Order) -> (Self, Vec<Output>) {
        let groups: BTreeSet<GroupId> = parts.each().keys().copied().collect();
        let coordinator = *groups.first().expect("invariant: a request has parts");
        let mut this = Self {
            id,
            coordinator,
            parts,
            order,
            phase: Phase::Preparing {
                next: groups,
                asked: BTreeSet::new(),
            },
            prepared: BTreeMap::new(),
            holding: BTreeSet::new(),
            told: BTreeSet::new(),
            results: BTreeMap::new(),
            failure: None,
            answered: false,
            decided: false,
            late_ticks: None,
        };
        let mut out = Vec::new();
        this.prepare(&mut out);
        (this, out)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// The shard that decides.
    #[must_use]
    pub fn coordinator(&self) -> GroupId {
        self.coordinator
    }

    /// Whether there is nothing left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Takes in what happened.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Answered { group, asked, answer } => match asked {
                Asked::Prepare => self.prepare_answered(group, answer, out),
                Asked::Decide => self.decide_answered(answer, out),
                Asked::Finish => self.finish_answered(group, answer, out),
                Asked::Forget => {
                    self.told.remove(&group);
                    if matches!(answer, Answer::Did(_)) && self.phase == Phase::Forgetting {
                        self.phase = Phase::Done;
                    }
                }
            },
            Input::Stamped(revision) => self.stamped(revision, out),
            Input::Tick => self.tick(out),
            Input::Deadline => self.deadline(out),
        }
    }

    fn propose(&self, group: GroupId, asked: Asked, command: ShardCommand, out: &mut Vec<Output>) {
        out.push(Output::Propose(Propose { group, asked, command }));
    }

    fn answer(&mut self, answer: Result<(Revision, OpResult), Failure>, out: &mut Vec<Output>) {
        if !self.answered {
            self.answered = true;
            out.push(Output::Answer(answer));
        }
    }

    /// Asks whoever is next, and goes on when all have answered.
    fn prepare(&mut self, out: &mut Vec<Output>) {
        let Phase::Preparing { next, asked } = &mut self.phase else {
            return;
        };
        let mut ask = Vec::new();
        if self.failure.is_none() {
            while let Some(group) = next.first().copied() {
                if self.order == Order::InTurn && !(asked.is_empty() && ask.is_empty()) {
                    break;
                }
                next.remove(&group);
                ask.push(group);
            }
        }
        asked.extend(&ask);
        let all_answered = asked.is_empty();
        for group in ask {
            let command = ShardCommand::Prepare {
                txn: self.id,
                coordinator: self.coordinator,
                part: self.parts.each()[&group].clone(),
            };
            self.holding.insert(group);
            self.propose(group, Asked::Prepare, command, out);
        }
        if all_answered {
            match self.failure {
                Some(failure) => self.abort(failure, out),
                None => {
                    self.phase = Phase::Stamping { asked: true };
                    out.push(Output::Stamp);
                }
            }
        }
    }

    fn prepare_answered(&mut self, group: GroupId, answer: Answer, out: &mut Vec<Output>) {
        let Phase::Preparing { asked, .. } = &mut self.phase else {
            // It was given up before this shard answered, and the shard may have locked after it was told.
            if matches!(answer, Answer::Did(_)) && matches!(self.phase, Phase::Finishing { .. }) {
                self.told.remove(&group);
                self.holding.insert(group);
                self.finish(out);
            }
            return;
        };
        if !asked.remove(&group) {
            return;
        }
        let failure = match answer {
            Answer::Did(ShardResult::Prepared { verdicts, errors }) => {
                self.prepared.insert(group, Prepared { verdicts, errors });
                None
            }
            Answer::Refused(error) => {
                self.holding.remove(&group);
                Some(Failure::of(error, group))
            }
            Answer::NotDone => {
                self.holding.remove(&group);
                Some(Failure::NotDone)
            }
            Answer::Did(_) | Answer::Unknown => Some(Failure::NotDone),
        };
        self.failure = self.failure.or(failure);
        if let Some(failure) = self.failure {
            // The client need not wait for the others.
            self.answer(Err(failure), out);
        }
        self.prepare(out);
    }

    fn stamped(&mut self, revision: Option<Revision>, out: &mut Vec<Output>) {
        if self.phase != (Phase::Stamping { asked: true }) {
            return;
        }
        let Some(revision) = revision else {
            self.phase = Phase::Stamping { asked: false };
            return;
        };
        match self.parts.choose(&self.prepared, revision) {
            Err(mismatch) => self.abort(mismatch.into(), out),
            Ok(Err(error)) => self.abort(Failure::Refused(error), out),
            Ok(Ok(path)) => {
                self.phase = Phase::Deciding {
                    decision: Decision::Commit { revision, path },
                    asked: false,
                    unsure: false,
                };
                self.decide(out);
            }
        }
    }

    fn decide(&mut self, out: &mut Vec<Output>) {
        let Phase::Deciding { decision, asked, .. } = &mut self.phase else {
            return;
        };
        if !std::mem::replace(asked, true) {
            self.decided = true;
            let command = ShardCommand::Decide {
                txn: self.id,
                decision: decision.clone(),
            };
            self.propose(self.coordinator, Asked::Decide, command, out);
        }
    }

    fn decide_answered(&mut self, answer: Answer, out: &mut Vec<Output>) {
        let Phase::Deciding { asked, unsure, .. } = &mut self.phase else {
            return;
        };
        *asked = false;
        match answer {
            Answer::Did(ShardResult::Decided(decision)) => {
                if decision == Decision::Abort {
                    // Somebody waited for this one's locks too long.
                    self.answer(Err(Failure::NotDone), out);
                }
                self.begin_finish(decision, out);
            }
            Answer::Refused(error) if !*unsure => {
                let failure = Failure::of(error, self.coordinator);
                self.abort(failure, out);
            }
            Answer::NotDone | Answer::Refused(_) => {}
            Answer::Did(_) | Answer::Unknown => *unsure = true,
        }
    }

    /// Ends it without effect. Only while no commit that was proposed may take effect.
    fn abort(&mut self, failure: Failure, out: &mut Vec<Output>) {
        self.answer(Err(failure), out);
        self.begin_finish(Decision::Abort, out);
    }

    fn begin_finish(&mut self, decision: Decision, out: &mut Vec<Output>) {
        self.phase = Phase::Finishing { decision };
        self.finish(out);
    }

    /// Tells those who have not been told, and goes on when nobody is left.
    fn finish(&mut self, out: &mut Vec<Output>) {
        let Phase::Finishing { decision } = &self.phase else {
            return;
        };
        let decision = decision.clone();
        for group in self.holding.clone() {
            if self.told.insert(group) {
                let command = ShardCommand::Finish {
                    txn: self.id,
                    decision: decision.clone(),
                };
                self.propose(group, Asked::Finish, command, out);
            }
        }
        if !self.holding.is_empty() {
            return;
        }
        if let Decision::Commit { revision, .. } = decision {
            let answer = self.merged(revision);
            self.answer(answer, out);
        }
        if self.decided {
            self.phase = Phase::Forgetting;
            self.forget(out);
        } else {
            self.phase = Phase::Done;
        }
    }

    fn merged(&self, revision: Revision) -> Result<(Revision, OpResult), Failure> {
        let mut results = BTreeMap::new();
        for (group, result) in &self.results {
            // Somebody else finished there, who did not know that this one is alive.
            let result = result.as_deref().ok_or(Failure::Lost { revision })?;
            results.insert(*group, result.clone());
        }
        Ok(self.parts.merge(&results, revision)?)
    }

    fn finish_answered(&mut self, group: GroupId, answer: Answer, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Finishing { .. }) || !self.told.remove(&group) {
            return;
        }
        match answer {
            Answer::Did(ShardResult::Finished(result)) => {
                self.holding.remove(&group);
                self.results.insert(group, result);
                self.finish(out);
            }
            // At the next tick again.
            Answer::Did(_) | Answer::Refused(_) | Answer::NotDone | Answer::Unknown => {}
        }
    }

    fn forget(&mut self, out: &mut Vec<Output>) {
        if self.told.insert(self.coordinator) {
            let command = ShardCommand::Forget { txn: self.id };
            self.propose(self.coordinator, Asked::Forget, command, out);
        }
    }

    fn tick(&mut self, out: &mut Vec<Output>) {
        if let Some(ticks) = &mut self.late_ticks {
            *ticks += 1;
            if *ticks > LATE_TICKS_MAX {
                self.phase = Phase::Done;
                return;
            }
        }
        match &mut self.phase {
            Phase::Stamping { asked } => {
                if !std::mem::replace(asked, true) {
                    out.push(Output::Stamp);
                }
            }
            // The client has gone, and nothing has happened yet.
            Phase::Deciding {
                asked: false,
                unsure: false,
                ..
            } if self.late_ticks.is_some() => self.abort(Failure::TimedOut, out),
            Phase::Deciding { .. } => self.decide(out),
            Phase::Finishing { .. } => self.finish(out),
            Phase::Forgetting => self.forget(out),
            Phase::Preparing { .. } | Phase::Done => {}
        }
    }

    fn deadline(&mut self, out: &mut Vec<Output>) {
        self.late_ticks.get_or_insert(0);
        match &self.phase {
            Phase::Preparing { .. } | Phase::Stamping { .. } => self.abort(Failure::TimedOut, out),
            // Neither a proposal under way nor one whose end is not known: nothing can happen any more.
            Phase::Deciding {
                asked: false,
                unsure: false,
                ..
            } => self.abort(Failure::TimedOut, out),
            Phase::Deciding { .. } => self.answer(Err(Failure::Unknown), out),
            Phase::Finishing { decision } => {
                let failure = match decision {
                    Decision::Commit { revision, .. } => Failure::Lost { revision: *revision },
                    Decision::Abort => Failure::TimedOut,
                };
                self.answer(Err(failure), out);
            }
            Phase::Forgetting | Phase::Done => {}
        }
    }
}
