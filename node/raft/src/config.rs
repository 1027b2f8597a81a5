//! What a configuration says, and what a change makes of it. Pure: the core and everything that follows its log use the same.

use crate::entry::{ConfigState, ConfigStep, JointTarget};
use crate::ids::{Index, MemberId};
use std::collections::BTreeSet;

impl ConfigState {
    /// Whether two sets of voters must agree (Raft thesis, section 4.3).
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `member` has a vote, in either half.
    #[must_use]
    pub fn is_voter(&self, member: MemberId) -> bool {
        self.voters.contains(&member) || self.outgoing.contains(&member)
    }

    /// Whether `member` is a voter or a learner.
    #[must_use]
    pub fn contains(&self, member: MemberId) -> bool {
        self.is_voter(member) || self.learners.contains(&member)
    }

    /// Everybody with a vote.
    #[must_use]
    pub fn voting(&self) -> BTreeSet<MemberId> {
        self.voters.union(&self.outgoing).copied().collect()
    }

    /// Everybody.
    #[must_use]
    pub fn members(&self) -> BTreeSet<MemberId> {
        let mut members = self.voting();
        members.extend(&self.learners);
        members
    }

    /// The configuration that this step, committed at `index`, makes of this one. The leader has checked the step when it
    /// proposed it; a step that says nothing new here changes only the index.
    ///
    /// # Panics
    /// If nobody would have a vote: no leader proposes that.
    #[must_use]
    pub fn after(&self, step: &ConfigStep, index: Index) -> Self {
        let mut next = Self { index, ..self.clone() };
        match step {
            ConfigStep::AddLearner(member) => {
                if !next.is_voter(*member) {
                    next.learners.insert(*member);
                }
            }
            ConfigStep::Promote(member) => {
                if next.learners.remove(member) {
                    next.voters.insert(*member);
                }
            }
            ConfigStep::Remove(member) => {
                next.learners.remove(member);
                next.voters.remove(member);
                assert!(
                    !next.voters.is_empty(),
                    "a configuration without voters was committed at {index}"
                );
            }
            ConfigStep::EnterJoint(JointTarget { voters, learners }) => {
                assert!(
                    !voters.is_empty() && !self.is_joint(),
                    "a joint configuration inside another, or one without voters, was committed at {index}"
                );
                next.outgoing = std::mem::replace(&mut next.voters, voters.clone());
                next.learners.clone_from(learners);
            }
            ConfigStep::LeaveJoint => next.outgoing.clear(),
        }
        next
    }
}

impl JointTarget {
    /// Whether a configuration can move here: it names present members only, nobody twice, at least one voter, and something
    /// changes.
    #[must_use]
    pub fn fits(&self, present: &ConfigState) -> bool {
        let known = self
            .voters
            .union(&self.learners)
            .all(|member| present.contains(*member));
        let news = self.voters != present.voters || self.learners != present.learners;
        known && news && !self.voters.is_empty() && self.voters.is_disjoint(&self.learners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().map(|id| MemberId(*id)).collect()
    }

    fn config(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> ConfigState {
        ConfigState {
            voters: set(voters),
            outgoing: set(outgoing),
            learners: set(learners),
            index: Index(0),
        }
    }

    fn target(voters: &[u64], learners: &[u64]) -> JointTarget {
        JointTarget {
            voters: set(voters),
            learners: set(learners),
        }
    }

    #[test]
    fn a_joint_change_keeps_the_old_votes_until_it_is_left() {
        let before = config(&[1, 2, 3], &[], &[4, 5]);
        // 3 stays, 1 loses its vote, 2 leaves, 4 gets one, 5 leaves.
        let joint = before.after(&ConfigStep::EnterJoint(target(&[3, 4], &[1])), Index(7));
        let expected = ConfigState {
            index: Index(7),
            ..config(&[3, 4], &[1, 2, 3], &[1])
        };
        assert_eq!(joint, expected);
        assert_eq!(joint.voting(), set(&[1, 2, 3, 4]));
        assert!(joint.is_voter(MemberId(1)) && joint.is_voter(MemberId(2)) && !joint.contains(MemberId(5)));
        let left = joint.after(&ConfigStep::LeaveJoint, Index(8));
        let expected = ConfigState {
            index: Index(8),
            ..config(&[3, 4], &[], &[1])
        };
        assert_eq!(left, expected);
        assert!(!left.is_voter(MemberId(1)) && !left.contains(MemberId(2)));
    }

    #[test]
    fn a_joint_majority_is_one_of_each_half() {
        let joint = config(&[1, 2, 3], &[3, 4, 5], &[]);
        let table: [(&[u64], bool); 7] = [
            (&[1, 2], false),
            (&[4, 5], false),
            (&[1, 2, 3], false),
            (&[1, 2, 4], false),
            (&[1, 2, 4, 5], true),
            (&[1, 3, 4], true),
            (&[3], false),
        ];
        for (members, enough) in table {
            assert_eq!(
                joint.is_majority(|member| set(members).contains(&member)),
                enough,
                "{members:?}"
            );
        }
    }

    #[test]
    fn the_smaller_of_both_halves_counts() {
        let joint = config(&[1, 2, 3], &[4], &[]);
        assert_eq!(joint.reached_by_majority(|member| 10 * member.0), 20);
        let joint = config(&[2, 3], &[1, 4, 5], &[]);
        assert_eq!(
            joint.reached_by_majority(|member| 10 - member.0),
            6,
            "2 reaches 8, 3 reaches 7; of 9, 6, 5 it is 6"
        );
    }

    #[test]
    fn a_target_names_present_members_once_and_changes_something() {
        let present = config(&[1, 2], &[], &[3]);
        let table = [
            (target(&[2, 3], &[]), true),
            (target(&[1, 2], &[]), true),
            (target(&[1], &[2, 3]), true),
            (target(&[1, 2], &[3]), false),
            (target(&[], &[1, 2, 3]), false),
            (target(&[1, 9], &[]), false),
            (target(&[1, 2], &[2]), false),
        ];
        for (target, fits) in table {
            assert_eq!(target.fits(&present), fits, "{target:?}");
        }
    }
}
