//! Commands about the shard itself, run on top of a state.

use crate::mvcc::exec::{Exec, Path};
use crate::mvcc::shard::Access;
use crate::mvcc::split::Reshape;
use crate::mvcc::txns::{DECISIONS_MAX, PREPARED_MAX, Prepared, Table, decision_row, locked};
use crate::mvcc::view::Fail;
use crate::ops::{
    Command, Decision, KeyRange, Op, OpError, Revision, RevisionSource, ShardCommand, ShardResult, Territory, Txn,
    TxnId, Verdict,
};
use crate::state::StateStore;
use althing_raft::ids::{GroupId, LogPosition};
use althing_raft::mutant::Mutant;
use bytes::Bytes;
use std::sync::Arc;

impl<S: StateStore> Exec<'_, S> {
    /// Runs one; if it is refused, nothing has changed.
    pub(super) fn shard_command(&mut self, command: &ShardCommand) -> Result<ShardResult, Fail> {
        match command {
            ShardCommand::Settle { territory, source } => self.settle(territory, *source),
            ShardCommand::Seal { operation } => self.seal(*operation),
            ShardCommand::Unseal { operation } => match self.shard.sealed {
                Some(other) if other != *operation || self.shard.absorbed => Err(OpError::Stale.into()),
                Some(_) | None => {
                    self.shard.sealed = None;
                    Ok(ShardResult::Unsealed)
                }
            },
            ShardCommand::Split { epoch, at, child } => Ok(self.split(*epoch, at, *child)?),
            ShardCommand::Absorb {
                operation,
                from,
                position,
                territory,
            } => Ok(self.absorb(*operation, *from, *position, territory)?),
            ShardCommand::Prepare { txn, coordinator, part } => self.prepare(*txn, *coordinator, part),
            ShardCommand::Decide { txn, decision } => self.decide(*txn, decision),
            ShardCommand::Finish { txn, decision } => self.finish(*txn, decision),
            ShardCommand::Forget { txn } => {
                if self.txns.decided.contains_key(txn) {
                    self.txns.to_mut().decided.remove(txn);
                    self.txn_changes.insert((Table::Decided, *txn), None);
                }
                Ok(ShardResult::Forgotten)
            }
        }
    }

    /// Nothing may be under way that is about the group as it is.
    fn may_reshape(&self) -> Result<(), OpError> {
        if self.shard.sealed.is_some() {
            return Err(OpError::Sealed);
        }
        // Two shards that count by themselves are not one keyspace. A configuration under way would go on in one of them only.
        if self.shard.source == RevisionSource::Dense || self.joint {
            return Err(OpError::Stale);
        }
        self.txns.any_prepared()
    }

    fn split(&mut self, epoch: u64, at: &Bytes, child: GroupId) -> Result<ShardResult, OpError> {
        let territory = &self.shard.territory;
        if self.shard.last_child == Some(child) && territory.epoch > epoch {
            return Ok(ShardResult::Split);
        }
        self.may_reshape()?;
        if territory.epoch != epoch || child == self.group() {
            return Err(OpError::Stale);
        }
        let (left, right) = territory.cut(at).ok_or(OpError::Stale)?;
        self.reshape = Some(Reshape::Split {
            at: at.clone(),
            child,
            left,
            right,
        });
        Ok(ShardResult::Split)
    }

    fn absorb(
        &mut self,
        operation: u64,
        from: GroupId,
        position: LogPosition,
        territory: &Territory,
    ) -> Result<ShardResult, OpError> {
        if self.shard.last_absorb == Some(operation) {
            return Ok(ShardResult::Absorbed);
        }
        self.may_reshape()?;
        let present = &self.shard.territory;
        let grows = territory.partitioning == present.partitioning
            && territory.span.start == present.span.start
            && present.span.end.is_some()
            && territory
                .span
                .end
                .as_ref()
                .is_none_or(|end| present.span.end.as_ref() < Some(end));
        if territory.epoch <= present.epoch || !grows || from == self.group() {
            return Err(OpError::Stale);
        }
        self.reshape = Some(Reshape::Absorb {
            operation,
            from,
            position,
            territory: territory.clone(),
        });
        Ok(ShardResult::Absorbed)
    }

    fn settle(&mut self, territory: &Territory, source: RevisionSource) -> Result<ShardResult, Fail> {
        let shard = &self.shard;
        if territory.epoch > shard.territory.epoch {
            if shard.sealed.is_some() {
                return Err(OpError::Sealed.into());
            }
            self.txns.any_prepared()?;
            // A slot that others share is shared by partition keys.
            let apart = shard.last_child.is_some() || shard.last_absorb.is_some() || !shard.territory.span.is_whole();
            if apart && territory.partitioning != shard.territory.partitioning {
                return Err(OpError::Stale.into());
            }
            let narrower = territory.partitioning != shard.territory.partitioning && !territory.span.is_whole()
                || territory.span.and(&shard.territory.span).as_ref() != Some(&shard.territory.span);
            if narrower && self.any_key_outside(territory) {
                return Err(OpError::Stale.into());
            }
            self.shard.territory = territory.clone();
            self.shard.source = source;
        }
        let current = Revision(self.current);
        Ok(ShardResult::Settled { current })
    }

    fn seal(&mut self, operation: u64) -> Result<ShardResult, Fail> {
        match self.shard.sealed {
            Some(other) if other != operation => return Err(OpError::Sealed.into()),
            Some(_) => {}
            None => {
                self.txns.any_prepared()?;
                // Who takes over does not take over decisions, so that nobody may need one any more.
                if let Some((txn, _)) = self.txns.decided.first_key_value() {
                    return Err(locked(*txn, self.group()).into());
                }
                self.shard.sealed = Some(operation);
            }
        }
        Ok(ShardResult::Sealed { at: self.position })
    }

    fn prepare(&mut self, txn: TxnId, coordinator: GroupId, part: &Txn) -> Result<ShardResult, Fail> {
        if let Some(prepared) = self.txns.prepared.get(&txn) {
            // The locks keep what was looked at then as it was.
            return self.look_over(&prepared.part);
        }
        if self.shard.sealed.is_some() {
            return Err(OpError::Sealed.into());
        }
        if !self.shard.owns_txn(part) {
            return Err(OpError::WrongShard.into());
        }
        if self.shard.source == RevisionSource::Dense {
            return Err(OpError::Unstamped.into());
        }
        self.txns.admit_txn(part)?;
        if self.txns.prepared.len() >= PREPARED_MAX {
            self.txns.any_prepared()?;
        }
        let result = self.look_over(part)?;
        let prepared = Prepared::new(coordinator, self.current, part.clone());
        self.txn_changes.insert((Table::Prepared, txn), Some(prepared.encode()));
        self.txns.to_mut().prepared.insert(txn, Arc::new(prepared));
        Ok(result)
    }

    /// What every branch would come to.
    fn look_over(&self, part: &Txn) -> Result<ShardResult, Fail> {
        let (mut verdicts, mut errors) = (Vec::new(), Vec::new());
        self.look_into(part, &mut verdicts, &mut errors)?;
        Ok(ShardResult::Prepared { verdicts, errors })
    }

    fn look_into(
        &self,
        txn: &Txn,
        verdicts: &mut Vec<Vec<Verdict>>,
        errors: &mut Vec<[Option<OpError>; 2]>,
    ) -> Result<(), Fail> {
        let found = txn.compares.iter().map(|compare| self.verdict(compare));
        verdicts.push(found.collect::<Result<_, _>>()?);
        let mut of = [None; 2];
        for (branch, error) in [&txn.success, &txn.failure].into_iter().zip(&mut of) {
            for op in branch {
                *error = match (&*error, op) {
                    (Some(error), _) => Some(*error),
                    (None, Op::Put(put)) => refusal(self.check_put(put))?,
                    // A revision that is not there yet is for whoever knows the sequencer to refuse.
                    (None, Op::Range(range)) => range
                        .revision
                        .filter(|Revision(asked)| *asked > 0 && *asked < self.compacted)
                        .map(|_| OpError::Compacted),
                    (None, Op::Delete(_) | Op::Txn(_)) => None,
                };
            }
        }
        errors.push(of);
        for op in txn.success.iter().chain(&txn.failure) {
            if let Op::Txn(inner) = op {
                self.look_into(inner, verdicts, errors)?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, txn: TxnId, decision: &Decision) -> Result<ShardResult, Fail> {
        if let Some(stands) = self.txns.decided.get(&txn)
            && !Mutant::LastDecisionStands.active()
        {
            return Ok(ShardResult::Decided(stands.clone()));
        }
        // An abort may be needed now: the shard that is to take this one over waits for locks whose transaction is decided here.
        if self.shard.sealed.is_some() && *decision != Decision::Abort {
            return Err(OpError::Sealed.into());
        }
        if self.shard.source == RevisionSource::Dense {
            return Err(OpError::Unstamped.into());
        }
        if self.txns.decided.len() >= DECISIONS_MAX
            && let Some((oldest, _)) = self.txns.decided.first_key_value()
        {
            return Err(locked(*oldest, self.group()).into());
        }
        self.txn_changes
            .insert((Table::Decided, txn), Some(decision_row(decision)));
        self.txns.to_mut().decided.insert(txn, decision.clone());
        Ok(ShardResult::Decided(decision.clone()))
    }

    fn finish(&mut self, txn: TxnId, decision: &Decision) -> Result<ShardResult, Fail> {
        let Some(prepared) = self.txns.prepared.get(&txn) else {
            return Ok(ShardResult::Finished(None));
        };
        let prepared = Arc::clone(prepared);
        let result = match decision {
            // A repeated preparation after it was finished: the revision was there already.
            Decision::Commit { revision, .. } if revision.0 <= prepared.floor => None,
            Decision::Commit { revision, path } => {
                let mut branches = path.iter().copied();
                let path = Path::forced(&prepared.part, &mut branches).filter(|_| branches.next().is_none());
                let path = path.ok_or(OpError::Stale)?;
                self.late = revision.0 <= self.current;
                self.current = revision.0 - 1;
                self.newest = Some(i64::MAX);
                let result = self.run_txn(&prepared.part, &path);
                self.newest = None;
                Some(result?)
            }
            Decision::Abort => None,
        };
        self.txns.to_mut().prepared.remove(&txn);
        self.txn_changes.insert((Table::Prepared, txn), None);
        Ok(ShardResult::Finished(result.map(Box::new)))
    }

    /// Whether the keys of a command are free.
    pub(super) fn admit_keys(&self, command: &Command) -> Result<(), OpError> {
        if self.txns.prepared.is_empty() {
            return Ok(());
        }
        match command {
            Command::Put(put) => {
                let key = KeyRange::Single(put.key.clone());
                self.txns.admit(&key, Access::Write, None)
            }
            Command::Delete(delete) => self.txns.admit(&delete.keys, Access::Write, None),
            Command::Txn(txn) => self.txns.admit_txn(txn),
            Command::Compact(revision) => self.txns.admit_compaction(revision.0),
            Command::Shard(_) => Ok(()),
        }
    }
}

fn refusal(checked: Result<(), Fail>) -> Result<Option<OpError>, Fail> {
    match checked {
        Ok(()) => Ok(None),
        Err(Fail::Op(error)) => Ok(Some(error)),
        Err(Fail::Store(error)) => Err(Fail::Store(error)),
    }
}
