//! What members do when they are told, as the actions' contracts say.

use crate::group::{Does, Group, Replica, State};
use crate::world::{Mutant, World};
use althing_raft::entry::{ConfigState, ConfigStep};
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_shard::conductor::{Action, CloseGuard};
use althing_store::ops::{Revision, ShardCommand};
use althing_store::partition::Span;
use std::collections::BTreeSet;

impl World {
    pub(crate) fn execute(&mut self, action: Action, version: u64) {
        match action {
            Action::Change(change) => {
                if version == self.meta.version || self.mutant == Some(Mutant::AnyVersion) {
                    self.change(&change);
                }
            }
            Action::Open { member, group } => {
                if self.up(member) && self.replica(member, group).is_none() {
                    let life = self.life();
                    let member = self.members.get_mut(&member).unwrap();
                    member.groups.insert(group, Replica::empty(life));
                    member.had.insert(group);
                    self.copies += 1;
                }
            }
            Action::Create {
                member,
                group,
                territory,
                source,
            } => {
                let again = self.mutant == Some(Mutant::BornAgain) && self.replica(member, group).is_none();
                if self.up(member) && (again || !self.members[&member].had.contains(&group)) {
                    let state = State {
                        config: ConfigState {
                            voters: BTreeSet::from([member]),
                            ..ConfigState::default()
                        },
                        revision: Revision(1),
                        territory,
                        source,
                        ..State::default()
                    };
                    self.birth(group, member, state);
                }
            }
            Action::Close { member, group, guard } => self.close(member, group, guard),
            Action::Configure {
                leader,
                group,
                step,
                expected,
                ..
            } => self.configure(leader, group, &step, expected),
            Action::Transfer { leader, group, to } => self.transfer(leader, group, to),
            Action::Command { leader, group, command } => self.command(leader, group, command),
            Action::Reads { leader, group, spec } => {
                if let Some(mut next) = self.led_by(leader, group) {
                    next.reads = spec;
                    self.commit(group, next);
                }
            }
            Action::ConfirmSealed { member, group, .. } => {
                if self.up(member)
                    && let Some(replica) = self.members.get_mut(&member).unwrap().groups.get_mut(&group)
                {
                    replica.durable = replica.applied;
                }
            }
            Action::StartSequencer { leader, group, above } => {
                if let Some(mut next) = self.led_by(leader, group) {
                    next.ceiling = Some(next.ceiling.unwrap_or(above).max(above));
                    if self.commit(group, next) {
                        let mutant = self.mutant;
                        let group = self.groups.get_mut(&group).unwrap();
                        if mutant != Some(Mutant::StartFromZero) {
                            group.given = group.given.max(above.0);
                        }
                    }
                }
            }
        }
    }

    /// The state that the next entry starts from, if this member leads.
    fn led_by(&self, leader: MemberId, group: GroupId) -> Option<State> {
        let group = self.groups.get(&group)?;
        let leads = self.up(leader) && group.leader == Some(leader);
        leads.then(|| State {
            does: Does::Nothing,
            ..group.now().clone()
        })
    }

    fn close(&mut self, member: MemberId, group: GroupId, guard: CloseGuard) {
        let Some(replica) = self.replica(member, group) else {
            return;
        };
        let holds = match guard {
            CloseGuard::Forgotten { life } => {
                assert!(
                    self.meta.is_forgotten(group),
                    "{group} is taken down and the map still has it"
                );
                replica.life == life
            }
            CloseGuard::Unchanged { life, last } => {
                let same = replica.life == life && self.groups[&group].position(replica.log) == last;
                same || self.mutant == Some(Mutant::CloseAnyway)
            }
        };
        if holds && self.up(member) {
            self.members.get_mut(&member).unwrap().groups.remove(&group);
        }
    }

    fn configure(&mut self, leader: MemberId, id: GroupId, step: &ConfigStep, expected: Index) {
        let Some(mut next) = self.led_by(leader, id) else {
            return;
        };
        let present = next.config.clone();
        if present.index != expected || present.is_joint() {
            return;
        }
        let last = self.groups[&id].last();
        let caught_up =
            |member: MemberId| self.up(member) && self.replica(member, id).is_some_and(|has| has.log == last);
        let fits = match step {
            ConfigStep::AddLearner(member) => !present.is_voter(*member),
            ConfigStep::Promote(member) => present.learners.contains(member) && caught_up(*member),
            ConfigStep::Remove(member) => {
                assert!(*member != leader, "a leader is removed before it handed over");
                present.contains(*member)
            }
            ConfigStep::EnterJoint(target) => {
                assert!(
                    target.voters.contains(&leader),
                    "a leader loses its vote before it handed over"
                );
                target.fits(&present)
                    && target
                        .voters
                        .difference(&present.voters)
                        .all(|member| caught_up(*member))
            }
            ConfigStep::LeaveJoint => false,
        };
        if !fits {
            return;
        }
        next.config = present.after(step, Index(last as u64 + 1));
        self.commit(id, next);
    }

    fn transfer(&mut self, leader: MemberId, id: GroupId, to: MemberId) {
        let Some(next) = self.led_by(leader, id) else {
            return;
        };
        let last = self.groups[&id].last();
        let able = self.up(to) && self.replica(to, id).is_some_and(|replica| replica.log == last);
        if next.config.is_voter(to) && able {
            let group = self.groups.get_mut(&id).unwrap();
            group.term += 1;
            group.leader = Some(to);
            self.commit(id, next);
        }
    }

    fn command(&mut self, leader: MemberId, id: GroupId, command: ShardCommand) {
        let Some(mut next) = self.led_by(leader, id) else {
            return;
        };
        match command {
            ShardCommand::Settle { territory, source } => {
                if territory.epoch <= next.territory.epoch || next.sealed.is_some() {
                    return;
                }
                next.territory = territory;
                next.source = source;
            }
            ShardCommand::Split { epoch, at, child } => return self.split(id, next, epoch, at, child),
            ShardCommand::Seal { operation } => {
                if next.sealed.is_some() {
                    return;
                }
                next.sealed = Some(operation);
            }
            ShardCommand::Unseal { operation } => {
                if next.sealed != Some(operation) {
                    return;
                }
                next.sealed = None;
            }
            ShardCommand::Absorb {
                operation,
                from,
                position,
                territory,
            } => {
                if territory.epoch <= next.territory.epoch {
                    return;
                }
                let right = self.groups[&from].now();
                assert_eq!(
                    right.sealed,
                    Some(operation),
                    "{id} absorbs {from}, which is not sealed for it"
                );
                assert_eq!(right.territory.span.start, next.territory.span.end.clone().unwrap());
                next.data.extend(right.data.clone());
                next.revision = next.revision.max(right.revision);
                next.territory = territory;
                next.does = Does::Absorb {
                    from,
                    position,
                    operation,
                };
            }
            ShardCommand::Prepare { .. }
            | ShardCommand::Decide { .. }
            | ShardCommand::Finish { .. }
            | ShardCommand::Forget { .. } => panic!("the conductor runs no transactions"),
        }
        self.commit(id, next);
    }

    fn split(&mut self, id: GroupId, mut next: State, epoch: u64, at: bytes::Bytes, child: GroupId) {
        let fresh = next.territory.epoch == epoch || self.mutant == Some(Mutant::AnyEpoch);
        if !fresh || next.sealed.is_some() {
            return;
        }
        assert!(
            at > next.territory.span.start && next.territory.span.contains(&at),
            "{id} is cut outside of what it owns"
        );
        assert!(next.territory.partitioning.may_cut_at(&at), "{id} is cut inside a slot");
        let mut born = next.clone();
        born.data = next.data.split_off(&at);
        born.territory.epoch = epoch + 1;
        born.territory.span = Span {
            start: at.clone(),
            end: next.territory.span.end.clone(),
        };
        born.config.index = Index(0);
        next.territory.epoch = epoch + 1;
        next.territory.span.end = Some(at);
        next.does = Does::Split(child);
        // First the child, because applying the entry makes its replicas.
        let fits = !self.groups.contains_key(&child);
        assert!(fits, "{child} is born twice");
        let cut_by = Some((id, self.groups[&id].last() + 1));
        let born = Group {
            cut_by,
            ..Group::born(born, None)
        };
        self.groups.insert(child, born);
        if !self.commit(id, next) {
            self.groups.remove(&child);
        }
    }
}
