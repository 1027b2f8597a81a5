//! Whoever runs the cluster: moves its configuration toward the wanted one, a step at a time, as the real
//! operator does through the admin API, or several members at once by joint consensus. It may be wrong about who leads, and
//! it may ask twice.

use super::Todo;
use super::World;
use super::conditions::{Churn, MS};
use super::machine::GROUP;
use althing_raft::entry::{ConfigState, ConfigStep, JointTarget};
use althing_raft::ids::MemberId;
use althing_raft::io::Role;
use althing_shard::Event;
use bytes::Bytes;
use std::collections::BTreeSet;

/// How often it looks.
const EVERY: u64 = 250 * MS;

/// Chance in a thousand that voters who leave by a joint change stay as learners first.
const DEMOTE: u64 = 300;

/// What it asks for next.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Change(ConfigStep),
    /// The leader cannot remove itself: leadership moves first.
    MoveLeadership,
}

impl World {
    pub(super) fn operate(&mut self) {
        self.later(EVERY, Todo::Operate);
        self.stop_the_removed();
        self.begin_leases();
        // Any member that believes that it leads will do: the core must refuse what is wrong.
        let leaders: Vec<usize> = (0..self.machines.len())
            .filter(|&number| self.believes_to_lead(number))
            .collect();
        let Some(&leader) = self.operator.pick(&leaders) else {
            return;
        };
        let Some(config) = self.config_at(leader) else {
            return;
        };
        let me = self.machines[leader].member;
        let wanted: BTreeSet<MemberId> = self
            .machines
            .iter()
            .filter(|machine| machine.wanted)
            .map(|machine| machine.member)
            .collect();
        let planned = if self.conditions.churn == Churn::Joint {
            let demote = self.operator.chance(DEMOTE);
            plan_jointly(&config, &wanted, me, demote)
        } else {
            plan(&config, &wanted, me)
        };
        let Some(step) = planned else {
            return;
        };
        self.trace
            .note(self.now, leader as u64, "operate", &[], || format!("{step:?}"));
        match step {
            Step::MoveLeadership => {
                self.ask(leader, |request, deadline| Event::Transfer {
                    request,
                    group: GROUP,
                    to: None,
                    deadline,
                });
            }
            Step::Change(step) => {
                let expected = Some(config.index);
                let context = Bytes::from_static(b"somewhere:2380");
                self.ask(leader, |request, deadline| Event::Configure {
                    request,
                    group: GROUP,
                    step,
                    context,
                    expected,
                    deadline,
                });
            }
        }
    }

    /// A member that has left is switched off for good as soon as a leader says that it has left: that may not be
    /// forgotten, or the removed one's vote could be needed again.
    fn stop_the_removed(&mut self) {
        let newest = self.watch.config().index;
        let leaders = (0..self.machines.len()).filter(|&number| self.believes_to_lead(number));
        let told = leaders
            .filter_map(|number| self.config_at(number))
            .find(|config| config.index >= newest);
        let Some(config) = told else { return };
        for number in 0..self.machines.len() {
            let machine = &self.machines[number];
            if !machine.wanted && !machine.gone && !config.contains(machine.member) {
                self.crash(number);
                self.machines[number].gone = true;
            }
        }
    }

    /// Whether every voter has the newest configuration durably. Configurations hold when applied, as in etcd, so
    /// until then a survivor may believe in the one before, and need a vote of it.
    pub(super) fn config_is_known(&self) -> bool {
        let config = self.watch.config();
        self.machines
            .iter()
            .filter(|machine| config.voters.contains(&machine.member))
            .all(|machine| {
                let durable = althing_store::Mvcc::open(machine.checkpoint.fork(), GROUP);
                durable.is_ok_and(|state| state.applied().position.index >= config.index)
            })
    }

    fn believes_to_lead(&self, number: usize) -> bool {
        let process = self.machines[number].process.as_ref();
        process
            .and_then(|process| process.host.view(GROUP))
            .is_some_and(|view| view.raft.soft.role == Role::Leader)
    }

    fn config_at(&self, number: usize) -> Option<ConfigState> {
        Some(
            self.machines[number]
                .process
                .as_ref()?
                .host
                .view(GROUP)?
                .raft
                .soft
                .config,
        )
    }
}

/// One step from a configuration toward the wanted members, if any is left. Those who are gone go first: their votes
/// only hurt.
fn plan(config: &ConfigState, wanted: &BTreeSet<MemberId>, leader: MemberId) -> Option<Step> {
    let present: BTreeSet<MemberId> = config.voters.union(&config.learners).copied().collect();
    // Never remove the last wanted voters' only company: a newcomer first, if nobody wanted votes yet.
    let stays = config.voters.intersection(wanted).count() > 0;
    if let Some(gone) = present.difference(wanted).find(|member| stays && **member != leader) {
        return Some(Step::Change(ConfigStep::Remove(*gone)));
    }
    if let Some(learner) = config.learners.intersection(wanted).next() {
        return Some(Step::Change(ConfigStep::Promote(*learner)));
    }
    if let Some(new) = wanted.difference(&present).next() {
        return Some(Step::Change(ConfigStep::AddLearner(*new)));
    }
    (!wanted.contains(&leader)).then_some(Step::MoveLeadership)
}

/// The same with all voters exchanged at once: newcomers become learners one by one, then a single joint change moves every
/// vote, also the leader's own.
fn plan_jointly(config: &ConfigState, wanted: &BTreeSet<MemberId>, leader: MemberId, demote: bool) -> Option<Step> {
    if config.is_joint() {
        // The leader ends it by itself.
        return None;
    }
    if let Some(new) = wanted.difference(&config.members()).next() {
        return Some(Step::Change(ConfigStep::AddLearner(*new)));
    }
    if config.voters == *wanted {
        return plan(config, wanted, leader);
    }
    let leaving = config.voters.difference(wanted).copied();
    let learners = if demote { leaving.collect() } else { BTreeSet::new() };
    Some(Step::Change(ConfigStep::EnterJoint(JointTarget {
        voters: wanted.clone(),
        learners,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_exchanges_all_voters_at_once_when_the_newcomers_are_there() {
        let set = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect::<BTreeSet<_>>();
        let config = |voters: &[u64], outgoing: &[u64], learners: &[u64]| ConfigState {
            voters: set(voters),
            outgoing: set(outgoing),
            learners: set(learners),
            ..ConfigState::default()
        };
        let joint = |voters: &[u64], learners: &[u64]| {
            Some(Step::Change(ConfigStep::EnterJoint(JointTarget {
                voters: set(voters),
                learners: set(learners),
            })))
        };
        let add = Some(Step::Change(ConfigStep::AddLearner(MemberId(5))));
        let remove = Some(Step::Change(ConfigStep::Remove(MemberId(1))));
        let table = [
            (config(&[1, 2, 3], &[], &[4]), false, add),
            (config(&[1, 2, 3], &[], &[4, 5]), false, joint(&[3, 4, 5], &[])),
            (config(&[1, 2, 3], &[], &[4, 5]), true, joint(&[3, 4, 5], &[1, 2])),
            (config(&[3, 4, 5], &[1, 2, 3], &[]), false, None),
            (config(&[3, 4, 5], &[], &[]), false, None),
            (config(&[3, 4, 5], &[], &[1]), false, remove),
        ];
        for (config, demote, step) in table {
            let wanted = set(&[3, 4, 5]);
            assert_eq!(plan_jointly(&config, &wanted, MemberId(3), demote), step, "{config:?}");
        }
    }

    #[test]
    fn the_operator_takes_one_step_at_a_time_and_never_removes_the_leader() {
        let set = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect::<BTreeSet<_>>();
        let config = |voters: &[u64], learners: &[u64]| ConfigState {
            voters: set(voters),
            learners: set(learners),
            ..ConfigState::default()
        };
        let change = |step| Some(Step::Change(step));
        let leader = MemberId(1);
        let table = [
            (config(&[1, 2, 3], &[]), set(&[1, 2, 3]), None),
            (
                config(&[1], &[]),
                set(&[1, 2, 3]),
                change(ConfigStep::AddLearner(MemberId(2))),
            ),
            (
                config(&[1], &[2]),
                set(&[1, 2, 3]),
                change(ConfigStep::Promote(MemberId(2))),
            ),
            (
                config(&[1, 2, 9], &[]),
                set(&[1, 2, 3]),
                change(ConfigStep::Remove(MemberId(9))),
            ),
            (config(&[1, 2, 3], &[]), set(&[2, 3]), Some(Step::MoveLeadership)),
            (
                config(&[1], &[]),
                set(&[2]),
                change(ConfigStep::AddLearner(MemberId(2))),
            ),
        ];
        for (config, wanted, step) in table {
            assert_eq!(plan(&config, &wanted, leader), step, "{config:?} toward {wanted:?}");
        }
    }
}
