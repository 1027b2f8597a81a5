//! The members' shards in the model world: a conductor that moves one shard at each observation, as slow as one can be.

use std::collections::{BTreeMap, BTreeSet};

use althing_plan::model::{Group, MemberId, Place};

/// The shards: who votes in each.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    pub(crate) voters: BTreeMap<u64, BTreeSet<MemberId>>,
    pub(crate) draining: BTreeSet<MemberId>,
    replicas: usize,
}

/// The first shard's group; the members' own group is 0.
const FIRST: u64 = 1;

impl Shards {
    pub(crate) fn new(shards: usize, replicas: usize) -> Self {
        let ids = FIRST..FIRST + u64::try_from(shards).expect("few");
        Self {
            voters: ids.map(|id| (id, BTreeSet::new())).collect(),
            draining: BTreeSet::new(),
            replicas,
        }
    }

    /// Moves one shard to where it belongs, by a joint change: at once, if a majority of those that hold it is there, and of
    /// those that shall.
    /// `doomed` live and will lose their data: luck that no test should need keeps replicas off them.
    pub(crate) fn conduct(
        &mut self,
        members: &BTreeSet<MemberId>,
        alive: &BTreeSet<MemberId>,
        doomed: &BTreeSet<MemberId>,
    ) {
        for (id, voters) in &mut self.voters {
            let may_hold = |member: &&MemberId| !self.draining.contains(*member);
            // Who holds it keeps it, also one that is down for a moment.
            let holders = voters.iter().filter(|voter| members.contains(*voter)).filter(may_hold);
            let others: Vec<&MemberId> = members
                .intersection(alive)
                .filter(may_hold)
                .filter(|member| !doomed.contains(*member))
                .collect();
            let from = usize::try_from(*id).expect("few") % others.len().max(1);
            let others = others.iter().copied().cycle().skip(from).take(others.len());
            let mut home = BTreeSet::new();
            for member in holders.chain(others) {
                if home.len() < self.replicas {
                    home.insert(member.clone());
                }
            }
            let there = |group: &BTreeSet<MemberId>| group.intersection(alive).count() > group.len() / 2;
            if home != *voters && there(&home) && (voters.is_empty() || there(voters)) {
                *voters = home;
                return;
            }
        }
    }

    /// How many shards have a quorum.
    pub(crate) fn healthy(&self, alive: &BTreeSet<MemberId>) -> usize {
        let healthy =
            |voters: &&BTreeSet<MemberId>| voters.len() < 2 || voters.intersection(alive).count() > voters.len() / 2;
        self.voters.values().filter(healthy).count()
    }

    pub(crate) fn replicas(&self, member: &MemberId) -> usize {
        self.voters.values().filter(|voters| voters.contains(member)).count()
    }

    pub(crate) fn groups(&self, alive: &BTreeSet<MemberId>) -> BTreeMap<u64, Group> {
        self.voters
            .iter()
            .filter(|(_, voters)| !voters.is_empty())
            .map(|(id, voters)| {
                let active: BTreeSet<MemberId> = voters.intersection(alive).cloned().collect();
                let leads = active.len() > voters.len() / 2;
                let group = Group {
                    name: format!("shard {id}"),
                    leader: active.first().filter(|_| leads).cloned(),
                    voters: voters.clone(),
                    caught_up: if leads { active.clone() } else { BTreeSet::new() },
                    active,
                };
                (*id, group)
            })
            .collect()
    }

    pub(crate) fn places<'a>(&self, members: impl Iterator<Item = &'a MemberId>) -> BTreeMap<MemberId, Place> {
        members
            .map(|member| {
                let place = Place {
                    replicas: u32::try_from(self.replicas(member)).expect("few"),
                    draining: self.draining.contains(member),
                    labels: BTreeMap::new(),
                };
                (member.clone(), place)
            })
            .collect()
    }
}
