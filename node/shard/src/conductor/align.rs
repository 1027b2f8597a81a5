//! One group's replicas, brought to where they should be one safe step at a time.

use crate::conductor::draft::Draft;
use crate::conductor::view::Leader;
use crate::conductor::{Action, Subject};
use althing_raft::entry::{ConfigStep, JointTarget};
use althing_raft::ids::{GroupId, MemberId};
use bytes::Bytes;
use std::collections::BTreeSet;

/// How far replicas are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Aligned {
    /// They are where they should be and nowhere else.
    Yes,
    /// Not yet; what can be done is in the plan.
    NotYet,
}

impl Draft<'_> {
    /// Plans the next step that brings the voters of a group to `to`. Every step leaves a configuration whose caught-up voters are
    /// a quorum, and each is decided by what is seen, not by what was done before: it does not matter who began.
    ///
    /// The order: newcomers get an empty replica, then the log as learners; when they have it, leadership moves to somebody who
    /// stays; then one configuration change lets all newcomers in and all leavers out.
    pub(super) fn align(&mut self, group: GroupId, to: &BTreeSet<MemberId>, subject: Subject) -> Aligned {
        let Some(leader) = self.view.leader(group) else {
            self.wait(subject, format!("shard {group} has no leader that answers"));
            return Aligned::NotYet;
        };
        let config = &leader.seen.config;
        if config.is_joint() {
            self.wait(
                subject,
                format!("shard {group} is about to leave a joint configuration"),
            );
            return Aligned::NotYet;
        }
        if config.voters == *to && config.learners.is_empty() {
            return Aligned::Yes;
        }
        if let Some(stray) = config.learners.difference(to).next() {
            let reason = format!("member {stray} gets no replica of shard {group} after all");
            self.configure(group, leader, ConfigStep::Remove(*stray), reason);
            return Aligned::NotYet;
        }
        let present = config.members();
        let newcomers: Vec<MemberId> = to.difference(&present).copied().collect();
        if !newcomers.is_empty() {
            self.invite(group, leader, &newcomers, subject);
            return Aligned::NotYet;
        }
        let behind: Vec<MemberId> = config
            .learners
            .iter()
            .copied()
            .filter(|member| !self.view.caught_up(leader, *member))
            .collect();
        if let Some(member) = behind.first() {
            self.wait(
                subject,
                format!(
                    "shard {group}: {} replicas catch up, member {member} first",
                    behind.len()
                ),
            );
            return Aligned::NotYet;
        }
        self.change_voters(group, leader, to, subject);
        Aligned::NotYet
    }

    /// Newcomers get a replica, and the first that has one becomes a learner.
    fn invite(&mut self, group: GroupId, leader: Leader<'_>, newcomers: &[MemberId], subject: Subject) {
        let mut ready = None;
        for member in newcomers {
            if !self.view.reachable(*member) {
                self.wait(
                    subject,
                    format!("member {member} should get a replica of shard {group} and does not answer"),
                );
            } else if self.view.replica(*member, group).is_none() {
                if !self.may_open(*member, group) {
                    self.wait(
                        subject,
                        format!("member {member} has yet to come to the split that shard {group} is from"),
                    );
                    continue;
                }
                let action = Action::Open { member: *member, group };
                self.act(action, format!("member {member} gets a replica of shard {group}"));
            } else {
                ready = ready.or(Some(*member));
            }
        }
        if let Some(member) = ready {
            let reason = format!("member {member} gets the log of shard {group}");
            self.configure(group, leader, ConfigStep::AddLearner(member), reason);
        }
    }

    /// All of `to` are members now, and its learners have what they need.
    fn change_voters(&mut self, group: GroupId, leader: Leader<'_>, to: &BTreeSet<MemberId>, subject: Subject) {
        let config = &leader.seen.config;
        if !self.view.would_have_quorum(leader, to) {
            self.wait(
                subject,
                format!("shard {group}: too few of the members that should hold it are caught up"),
            );
            return;
        }
        if !to.contains(&leader.member) {
            let heirs = to.intersection(&config.voters);
            let heir = heirs.copied().find(|member| self.view.caught_up(leader, *member));
            match heir {
                Some(heir) => {
                    let action = Action::Transfer {
                        leader: leader.member,
                        group,
                        to: heir,
                    };
                    let reason = format!("member {} leads shard {group} and is to leave it", leader.member);
                    self.act(action, reason);
                }
                // Nobody who stays has a vote: first they get one, and the leader keeps its own so long.
                None if config.voters.is_superset(to) => self.wait(
                    subject,
                    format!("shard {group}: nobody who stays could lead it, they are not caught up"),
                ),
                None => {
                    let mut both = to.clone();
                    both.insert(leader.member);
                    let reason = format!("shard {group} gets voters that its leader can hand over to");
                    self.reconfigure(group, leader, &both, reason);
                }
            }
            return;
        }
        let reason = format!("the replicas of shard {group} are complete at {}", names(to));
        self.reconfigure(group, leader, to, reason);
    }

    /// One change from the present voters to these: a simple one if it concerns one member, a joint one otherwise.
    fn reconfigure(&mut self, group: GroupId, leader: Leader<'_>, voters: &BTreeSet<MemberId>, reason: String) {
        let present = &leader.seen.config.voters;
        let joining: Vec<MemberId> = voters.difference(present).copied().collect();
        let leaving: Vec<MemberId> = present.difference(voters).copied().collect();
        let step = match (joining.as_slice(), leaving.as_slice()) {
            ([one], []) => ConfigStep::Promote(*one),
            ([], [one]) => ConfigStep::Remove(*one),
            _ => ConfigStep::EnterJoint(JointTarget {
                voters: voters.clone(),
                learners: leader.seen.config.learners.difference(voters).copied().collect(),
            }),
        };
        self.configure(group, leader, step, reason);
    }

    fn configure(&mut self, group: GroupId, leader: Leader<'_>, step: ConfigStep, reason: String) {
        let context = match &step {
            ConfigStep::AddLearner(member) => {
                let view = self.view.members().get(member);
                view.map_or_else(Bytes::new, |view| view.context.clone())
            }
            ConfigStep::Promote(_) | ConfigStep::Remove(_) | ConfigStep::EnterJoint(_) | ConfigStep::LeaveJoint => {
                Bytes::new()
            }
        };
        let action = Action::Configure {
            leader: leader.member,
            group,
            expected: leader.seen.config.index,
            step,
            context,
        };
        self.act(action, reason);
    }
}

/// Members, for a sentence.
pub(super) fn names(members: &BTreeSet<MemberId>) -> String {
    let names: Vec<String> = members.iter().map(ToString::to_string).collect();
    names.join(", ")
}
