//! What is seen, looked at from the side of groups.

use crate::conductor::{GroupSeen, Limits, MemberView, Observed};
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, Index, MemberId, Now};
use althing_raft::io::Role;
use std::collections::{BTreeMap, BTreeSet};

/// The leader of a group, as it says itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leader<'a> {
    pub(super) member: MemberId,
    pub(super) seen: &'a GroupSeen,
}

/// Everything seen, with an index by group.
pub(super) struct View<'a> {
    seen: &'a Observed,
    now: Now,
    limits: &'a Limits,
    leaders: BTreeMap<GroupId, Leader<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn new(seen: &'a Observed, now: Now, limits: &'a Limits) -> Self {
        let mut view = Self {
            seen,
            now,
            limits,
            leaders: BTreeMap::new(),
        };
        for (member, described) in &seen.members {
            if !view.reachable(*member) {
                continue;
            }
            for (group, seen) in described.groups.iter().filter(|(_, seen)| seen.role == Role::Leader) {
                // Of two that believe to lead, the one of the older term will hear soon that it does not.
                let newest = view.leaders.get(group).is_none_or(|other| other.seen.term < seen.term);
                if newest {
                    let member = *member;
                    view.leaders.insert(*group, Leader { member, seen });
                }
            }
        }
        view
    }

    pub(super) fn members(&self) -> &'a BTreeMap<MemberId, MemberView> {
        &self.seen.members
    }

    pub(super) fn wall_seconds(&self) -> u64 {
        self.seen.wall_seconds
    }

    /// Whether a member answers.
    pub(super) fn reachable(&self, member: MemberId) -> bool {
        let heard = self.seen.members.get(&member).and_then(|view| view.heard);
        heard.is_some_and(|heard| self.now.since(heard) <= self.limits.reach)
    }

    /// Whether a member has been silent for so long that it is given up, or exists no more.
    pub(super) fn dead(&self, member: MemberId) -> bool {
        let Some(view) = self.seen.members.get(&member) else {
            return true;
        };
        let heard = view.heard.map_or(self.seen.since, |heard| heard.max(self.seen.since));
        self.now.since(heard) > self.limits.replace_after
    }

    pub(super) fn leader(&self, group: GroupId) -> Option<Leader<'a>> {
        self.leaders.get(&group).copied()
    }

    /// A replica, however old the view is.
    pub(super) fn replica(&self, member: MemberId, group: GroupId) -> Option<&'a GroupSeen> {
        self.seen.members.get(&member)?.groups.get(&group)
    }

    /// Whether some replica of the group is seen at all.
    pub(super) fn replicas(&self, group: GroupId, among: &BTreeSet<MemberId>) -> impl Iterator<Item = &'a GroupSeen> {
        among.iter().filter_map(move |member| self.replica(*member, group))
    }

    /// Whether a replica answers and has about everything that its leader has.
    pub(super) fn caught_up(&self, leader: Leader<'_>, member: MemberId) -> bool {
        if !self.reachable(member) {
            return false;
        }
        if member == leader.member {
            return true;
        }
        leader.seen.peers.get(&member).is_some_and(|peer| {
            // A leader that has just begun has heard of nothing that others hold; they may hold nothing at all.
            let near = peer.matched > Index::ZERO && peer.matched.0 + self.limits.lag >= leader.seen.last.index.0;
            // Nobody speaks in a group that sleeps; it fell asleep because everybody had everything.
            near && !peer.snapshot && (peer.active || leader.seen.hibernating)
        })
    }

    /// Whether those who are caught up, without these, are a majority of the configuration.
    pub(super) fn quorum_without(&self, leader: Leader<'_>, without: &BTreeSet<MemberId>) -> bool {
        let counts = |member| !without.contains(&member) && self.caught_up(leader, member);
        leader.seen.config.is_majority(counts)
    }

    /// Whether these alone would be a configuration with a caught-up majority.
    pub(super) fn would_have_quorum(&self, leader: Leader<'_>, voters: &BTreeSet<MemberId>) -> bool {
        let config = ConfigState {
            voters: voters.clone(),
            ..ConfigState::default()
        };
        config.is_majority(|member| self.caught_up(leader, member))
    }
}
