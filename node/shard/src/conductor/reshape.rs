//! Splits, merges and moves under way.

use crate::conductor::align::Aligned;
use crate::conductor::draft::Draft;
use crate::conductor::view::Leader;
use crate::conductor::{Action, Subject};
use crate::map::{KeyspaceRecord, Lineage, MergePhase, Operation, OperationId, ShardRecord, Work};
use althing_raft::ids::{GroupId, LogPosition, MemberId};
use althing_raft::mutant::Mutant;
use althing_store::ops::ShardCommand;
use althing_store::partition::{Span, Territory};
use std::collections::BTreeSet;

impl<'a> Draft<'a> {
    pub(super) fn drive_split(&mut self, id: OperationId, operation: &Operation) {
        let Work::Split {
            parent,
            child,
            at,
            epoch,
            cancelled,
        } = &operation.work
        else {
            return;
        };
        let (Some(keyspace), Some(record)) = (
            self.state.keyspaces.get(&operation.keyspace),
            self.state.shards.get(parent),
        ) else {
            return self.end(id, format!("shard {parent} is not there any more"));
        };
        let Some(leader) = self.view.leader(*parent) else {
            return self.wait(
                Subject::Operation(id),
                format!("shard {parent} has no leader that answers"),
            );
        };
        let seen = &leader.seen.territory;
        if seen.epoch <= *epoch {
            // Both need the present epoch, so only the first of them in the log does anything.
            let (command, reason) = if *cancelled {
                let territory = Territory {
                    epoch: epoch + 1,
                    ..record.territory(keyspace)
                };
                let source = leader.seen.source;
                let command = ShardCommand::Settle { territory, source };
                (command, format!("shard {parent} is not to be cut after all"))
            } else {
                let (epoch, at, child) = (*epoch, at.clone(), *child);
                let command = ShardCommand::Split { epoch, at, child };
                (command, format!("shard {parent} is cut, {child} gets the right part"))
            };
            return self.command(leader, *parent, command, reason);
        }
        let kept = ShardRecord {
            epoch: seen.epoch,
            span: seen.span.clone(),
            ..record.clone()
        };
        if seen.span.end.as_ref() == Some(at) {
            let born = ShardRecord {
                span: Span {
                    start: at.clone(),
                    end: record.span.end.clone(),
                },
                parent: Some(Lineage {
                    group: *parent,
                    epoch: seen.epoch,
                }),
                ..kept.clone()
            };
            self.put_shard(*child, Some(born));
            self.end(id, format!("shard {parent} is cut, {child} has the right part"));
        } else {
            self.end(id, format!("shard {parent} is whole, its cut was cancelled"));
        }
        self.put_shard(*parent, Some(kept));
    }

    pub(super) fn drive_move(&mut self, id: OperationId, operation: &Operation) {
        let Work::Move { group, to } = &operation.work else {
            return;
        };
        let Some(record) = self.state.shards.get(group) else {
            return self.end(id, format!("shard {group} is not there any more"));
        };
        let target: BTreeSet<MemberId> = to.iter().copied().collect();
        let config = self.view.leader(*group).map(|leader| &leader.seen.config);
        let hopeless = target.iter().copied().find(|member| {
            let newcomer = config.is_some_and(|config| !config.is_voter(*member));
            let leaves = self.placement.sites().get(member).is_none_or(|site| !site.active);
            newcomer && (leaves || !self.view.reachable(*member))
        });
        if let Some(member) = hopeless {
            return self.end(
                id,
                format!("shard {group} goes elsewhere: member {member} leaves or does not answer"),
            );
        }
        match self.align(*group, &target, Subject::Operation(id)) {
            Aligned::NotYet => {}
            Aligned::Yes => {
                let record = ShardRecord {
                    replicas: to.clone(),
                    ..record.clone()
                };
                self.put_shard(*group, Some(record));
                self.end(id, format!("the replicas of shard {group} are where they should be"));
            }
        }
    }

    pub(super) fn drive_merge(&mut self, id: OperationId, operation: &Operation) {
        let Work::Merge { left, right, phase } = &operation.work else {
            return;
        };
        let (Some(keyspace), Some(left_record), Some(right_record)) = (
            self.state.keyspaces.get(&operation.keyspace),
            self.state.shards.get(left),
            self.state.shards.get(right),
        ) else {
            return self.end(id, format!("shards {left} and {right} are not there any more"));
        };
        let merge = Merge {
            id,
            operation,
            keyspace,
            left: *left,
            left_record,
            right: *right,
            right_record,
        };
        match phase {
            MergePhase::Align => self.merge_align(&merge),
            MergePhase::Seal => self.merge_seal(&merge),
            MergePhase::Confirm { at } => self.merge_confirm(&merge, *at),
            MergePhase::Absorb { at } => self.merge_absorb(&merge, *at),
            MergePhase::Unseal => self.merge_unseal(&merge),
        }
    }

    fn merge_align(&mut self, merge: &Merge<'_>) {
        if let Some(why) = self.objection(merge) {
            return self.end(merge.id, format!("{merge} is given up: {why}"));
        }
        let target: BTreeSet<MemberId> = merge.left_record.replicas.iter().copied().collect();
        let left = self.align(merge.left, &target, Subject::Operation(merge.id));
        let right = self.align(merge.right, &target, Subject::Operation(merge.id));
        if (left, right) == (Aligned::Yes, Aligned::Yes) {
            let record = ShardRecord {
                replicas: merge.left_record.replicas.clone(),
                ..merge.right_record.clone()
            };
            self.put_shard(merge.right, Some(record));
            let reason = format!("{merge}: their replicas are on the same members");
            self.advance(merge.id, merge.operation, merge.at(MergePhase::Seal), reason);
        }
    }

    fn merge_seal(&mut self, merge: &Merge<'_>) {
        if self.give_up_if_hopeless(merge) {
            return;
        }
        let Some(leader) = self.leader_or_wait(merge, merge.right) else {
            return;
        };
        if leader.seen.sealed != Some(merge.id.0) {
            let command = ShardCommand::Seal { operation: merge.id.0 };
            return self.command(
                leader,
                merge.right,
                command,
                format!("{merge}: {} stops serving", merge.right),
            );
        }
        if leader.seen.transactions > 0 {
            return self.wait(
                Subject::Operation(merge.id),
                format!(
                    "{} transactions of shard {} must end first",
                    leader.seen.transactions, merge.right
                ),
            );
        }
        let at = leader.seen.applied;
        let reason = format!("{merge}: {} is sealed at entry {}", merge.right, at.index);
        self.advance(merge.id, merge.operation, merge.at(MergePhase::Confirm { at }), reason);
    }

    /// Every replica of the right shard has to have all of it durably, because every replica of the left one will take it from its
    /// own disk, whenever it comes to that entry.
    fn merge_confirm(&mut self, merge: &Merge<'_>, at: LogPosition) {
        if self.give_up_if_hopeless(merge) {
            return;
        }
        let Some(leader) = self.leader_or_wait(merge, merge.right) else {
            return;
        };
        let config = leader.seen.config.members();
        // `at` stays what it was when the shard was seen sealed and without transactions: nothing after it changes the state, neither a
        // new leader's first entry nor what clients go on asking for, and following those would never end.
        let confirmed = |member: &MemberId| {
            let seen = self.view.replica(*member, merge.right);
            seen.is_some_and(|seen| {
                seen.sealed == Some(merge.id.0) && seen.durable.up_to_date_with(at) && seen.transactions == 0
            })
        };
        let missing: Vec<MemberId> = config.iter().copied().filter(|member| !confirmed(member)).collect();
        if missing.is_empty() || Mutant::AbsorbUnconfirmed.active() {
            let reason = format!("{merge}: every replica has all of {}", merge.right);
            return self.advance(merge.id, merge.operation, merge.at(MergePhase::Absorb { at }), reason);
        }
        for member in missing {
            let action = Action::ConfirmSealed {
                member,
                group: merge.right,
                at,
            };
            self.act(
                action,
                format!("{merge}: all of {} has to be durable there", merge.right),
            );
        }
    }

    fn merge_absorb(&mut self, merge: &Merge<'_>, at: LogPosition) {
        let Some(leader) = self.leader_or_wait(merge, merge.left) else {
            return;
        };
        let territory = merge.territory();
        if leader.seen.territory.epoch < territory.epoch {
            let command = ShardCommand::Absorb {
                operation: merge.id.0,
                from: merge.right,
                position: at,
                territory,
            };
            return self.command(
                leader,
                merge.left,
                command,
                format!("{merge}: {} takes over", merge.left),
            );
        }
        assert!(
            leader.seen.territory.span == territory.span,
            "{merge}: shard {} has epoch {} without the part of shard {}",
            merge.left,
            leader.seen.territory.epoch,
            merge.right
        );
        let record = ShardRecord {
            epoch: leader.seen.territory.epoch,
            span: territory.span,
            ..merge.left_record.clone()
        };
        self.put_shard(merge.left, Some(record));
        self.put_shard(merge.right, None);
        self.end(merge.id, format!("{merge} is done"));
    }

    fn merge_unseal(&mut self, merge: &Merge<'_>) {
        let Some(leader) = self.leader_or_wait(merge, merge.right) else {
            return;
        };
        if leader.seen.sealed == Some(merge.id.0) {
            let command = ShardCommand::Unseal { operation: merge.id.0 };
            let reason = format!("{merge} is given up: {} serves again", merge.right);
            return self.command(leader, merge.right, command, reason);
        }
        self.end(merge.id, format!("{merge} is given up"));
    }

    /// Ends what keeps clients waiting, as soon as it cannot go on.
    fn give_up_if_hopeless(&mut self, merge: &Merge<'_>) -> bool {
        let age = self.view.wall_seconds().saturating_sub(merge.operation.phase_since);
        let why = self.objection(merge).or_else(|| {
            let hangs = age > self.limits.sealed_seconds;
            hangs.then(|| format!("shard {} was sealed for {age} seconds", merge.right))
        });
        match why {
            Some(why) => {
                let reason = format!("{merge} is given up: {why}");
                self.advance(merge.id, merge.operation, merge.at(MergePhase::Unseal), reason);
                true
            }
            None => false,
        }
    }

    /// Why a merge should not go on, while it can still be stopped.
    fn objection(&self, merge: &Merge<'_>) -> Option<String> {
        let shards = self.shards_of(merge.operation.keyspace).len();
        if usize::try_from(merge.keyspace.shards).unwrap_or(usize::MAX) >= shards {
            return Some("fewer shards are not wanted any more".to_owned());
        }
        let silent = self
            .silent_member(merge.left)
            .or_else(|| self.silent_member(merge.right));
        silent.map(|member| format!("member {member} does not answer"))
    }

    /// A member of the group that does not answer.
    pub(super) fn silent_member(&self, group: GroupId) -> Option<MemberId> {
        let listed = self.state.shards.get(&group).map(|shard| &shard.replicas);
        let config = self.view.leader(group).map(|leader| leader.seen.config.members());
        let mut all = listed
            .into_iter()
            .flatten()
            .copied()
            .chain(config.into_iter().flatten());
        all.find(|member| !self.view.reachable(*member))
    }

    fn leader_or_wait(&mut self, merge: &Merge<'_>, group: GroupId) -> Option<Leader<'a>> {
        if self.view.leader(group).is_none() {
            self.wait(
                Subject::Operation(merge.id),
                format!("shard {group} has no leader that answers"),
            );
        }
        self.view.leader(group)
    }

    pub(super) fn command(&mut self, leader: Leader<'_>, group: GroupId, command: ShardCommand, reason: String) {
        let action = Action::Command {
            leader: leader.member,
            group,
            command,
        };
        self.act(action, reason);
    }
}

/// A merge and its shards.
struct Merge<'a> {
    id: OperationId,
    operation: &'a Operation,
    keyspace: &'a KeyspaceRecord,
    left: GroupId,
    left_record: &'a ShardRecord,
    right: GroupId,
    right_record: &'a ShardRecord,
}

impl Merge<'_> {
    fn at(&self, phase: MergePhase) -> Work {
        Work::Merge {
            left: self.left,
            right: self.right,
            phase,
        }
    }

    /// What the left shard owns in the end. Newer than both, so that no route to either part is mistaken for newer.
    fn territory(&self) -> Territory {
        Territory {
            partitioning: self.keyspace.partitioning,
            span: Span {
                start: self.left_record.span.start.clone(),
                end: self.right_record.span.end.clone(),
            },
            epoch: self.left_record.epoch.max(self.right_record.epoch) + 1,
        }
    }
}

impl std::fmt::Display for Merge<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the merge of shards {} and {}", self.left, self.right)
    }
}
