//! Ending what nobody runs any more.

use crate::txn::{Answer, Asked, Propose};
use althing_raft::ids::GroupId;
use althing_raft::mutant::Mutant;
use althing_store::ops::{Decision, ShardCommand, ShardResult, TxnId};
use std::collections::BTreeSet;

/// Frees the locks that a transaction holds on some shards: for whoever has met them for [`crate::txn::RECOVER_AFTER`]. Any number of
/// these may run for one transaction, also while it is alive.
#[derive(Clone, Debug)]
pub struct Recovery {
    txn: TxnId,
    coordinator: GroupId,
    /// Where its locks were met, and not yet freed.
    holding: BTreeSet<GroupId>,
    decision: Option<Decision>,
    /// Proposals under way.
    asked: BTreeSet<GroupId>,
}

impl Recovery {
    /// Begins one.
    #[must_use]
    pub fn new(txn: TxnId, coordinator: GroupId, met_at: GroupId) -> (Self, Vec<Propose>) {
        let mut this = Self {
            txn,
            coordinator,
            holding: BTreeSet::from([met_at]),
            decision: Mutant::RecoveryPresumesAbort.active().then_some(Decision::Abort),
            asked: BTreeSet::new(),
        };
        let mut out = Vec::new();
        this.tick(&mut out);
        (this, out)
    }

    /// Whether the locks are free.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.holding.is_empty()
    }

    /// Takes in what became of a proposal.
    pub fn answered(&mut self, group: GroupId, asked: Asked, answer: &Answer, out: &mut Vec<Propose>) {
        self.asked.remove(&group);
        match (asked, answer) {
            (Asked::Decide, Answer::Did(ShardResult::Decided(decision))) => {
                self.decision.get_or_insert_with(|| decision.clone());
                self.tick(out);
            }
            (Asked::Finish, Answer::Did(ShardResult::Finished(_))) => {
                self.holding.remove(&group);
            }
            // At the next tick again.
            (Asked::Prepare | Asked::Decide | Asked::Finish | Asked::Forget, _) => {}
        }
    }

    /// The deciding shard does not exist any more, says a map that is newer than the locks. A shard goes only when it has no decision
    /// left, and its number is never used again: nothing was decided, and nothing ever will be.
    pub fn coordinator_is_gone(&mut self, out: &mut Vec<Propose>) {
        self.asked.remove(&self.coordinator);
        self.decision.get_or_insert(Decision::Abort);
        self.tick(out);
    }

    /// Proposes what is to be done and is not under way.
    pub fn tick(&mut self, out: &mut Vec<Propose>) {
        let txn = self.txn;
        let Some(decision) = self.decision.clone() else {
            if self.asked.insert(self.coordinator) {
                // If anything was decided, that stands and is the answer.
                let decision = Decision::Abort;
                out.push(Propose {
                    group: self.coordinator,
                    asked: Asked::Decide,
                    command: ShardCommand::Decide { txn, decision },
                });
            }
            return;
        };
        for group in &self.holding {
            if self.asked.insert(*group) {
                let decision = decision.clone();
                out.push(Propose {
                    group: *group,
                    asked: Asked::Finish,
                    command: ShardCommand::Finish { txn, decision },
                });
            }
        }
    }
}

/// Brings a decision that is still kept to every shard, and has it forgotten: what a dead coordinator left. A shard with decisions cannot
/// be merged away.
///
/// Only for a transaction that nobody runs any more: the member in its id says that it does not, has booted since, or is no member any
/// more. Were one alive whose abort is forgotten, it could still decide to commit, without the shards that have let go.
#[derive(Clone, Debug)]
pub struct Cleanup {
    txn: TxnId,
    coordinator: GroupId,
    decision: Decision,
    /// Shards that have not said that they are finished.
    left: BTreeSet<GroupId>,
    asked: BTreeSet<GroupId>,
    done: bool,
}

impl Cleanup {
    /// Begins one. `shards` are all shards of the keyspace, by a map that was read after the decision was seen: a shard that takes part
    /// in a transaction is neither cut nor merged before it has finished, so they hold all participants.
    #[must_use]
    pub fn new(
        txn: TxnId,
        decision: Decision,
        coordinator: GroupId,
        shards: BTreeSet<GroupId>,
    ) -> (Self, Vec<Propose>) {
        let mut this = Self {
            txn,
            coordinator,
            decision,
            left: shards,
            asked: BTreeSet::new(),
            done: false,
        };
        let mut out = Vec::new();
        this.tick(&mut out);
        (this, out)
    }

    /// Whether the decision is forgotten.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes in what became of a proposal.
    pub fn answered(&mut self, group: GroupId, asked: Asked, answer: &Answer, out: &mut Vec<Propose>) {
        self.asked.remove(&group);
        match (asked, answer) {
            (Asked::Finish, Answer::Did(ShardResult::Finished(_))) => {
                self.left.remove(&group);
                if self.left.is_empty() {
                    self.tick(out);
                }
            }
            (Asked::Forget, Answer::Did(_)) => self.done = true,
            // At the next tick again.
            (Asked::Prepare | Asked::Decide | Asked::Finish | Asked::Forget, _) => {}
        }
    }

    /// Proposes what is to be done and is not under way.
    pub fn tick(&mut self, out: &mut Vec<Propose>) {
        let txn = self.txn;
        let propose = |group, asked, command| Propose { group, asked, command };
        for group in &self.left {
            if self.asked.insert(*group) {
                let decision = self.decision.clone();
                out.push(propose(*group, Asked::Finish, ShardCommand::Finish { txn, decision }));
            }
        }
        if self.left.is_empty() && !self.done && self.asked.insert(self.coordinator) {
            out.push(propose(self.coordinator, Asked::Forget, ShardCommand::Forget { txn }));
        }
    }
}
