//! Quorum arithmetic: may this voter go?

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Consensus, Group, MemberId};

/// How many of `voters` make a majority.
#[must_use]
pub(crate) const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Why a voter cannot be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Short {
    /// Voters that would answer.
    pub(crate) active: usize,
    /// Voters that would have to.
    pub(crate) needed: usize,
}

/// Whether the configuration without `member` keeps a quorum of voters that answer. Learners may always go.
pub(crate) fn may_remove(consensus: &Consensus, member: &MemberId) -> Result<(), Short> {
    if !consensus.voters.contains(member) {
        return Ok(());
    }
    let rest: BTreeSet<&MemberId> = consensus.voters.iter().filter(|voter| *voter != member).collect();
    let active = rest.iter().filter(|voter| consensus.active.contains(**voter)).count();
    let needed = quorum(rest.len());
    if !rest.is_empty() && active >= needed {
        Ok(())
    } else {
        Err(Short {
            active,
            needed: needed.max(1),
        })
    }
}

/// Whether the configuration keeps a quorum of voters that answer while `member` is stopped. A voter that does not
/// answer already takes nothing away.
pub(crate) fn may_stop(consensus: &Consensus, member: &MemberId) -> Result<(), Short> {
    if !consensus.voters.contains(member) || !consensus.active.contains(member) {
        return Ok(());
    }
    let active = consensus
        .voters
        .iter()
        .filter(|voter| *voter != member && consensus.active.contains(*voter))
        .count();
    let needed = quorum(consensus.voters.len());
    if active >= needed {
        Ok(())
    } else {
        Err(Short { active, needed })
    }
}

/// Why a replica is needed where it is, for people; none if every group keeps a quorum of voters that are caught up while
/// `member` is stopped. What has one voter only goes down with it, as whoever asked for one replica knows.
pub(crate) fn needed_by(groups: &BTreeMap<u64, Group>, member: &MemberId) -> Option<String> {
    groups
        .values()
        .filter(|group| group.voters.len() > 1 && group.active.contains(member))
        .find_map(|group| {
            let name = &group.name;
            if group.leader.is_none() {
                return Some(format!("{name} has no leader that answers"));
            }
            let left = group.caught_up.iter().filter(|voter| *voter != member).count();
            let needed = quorum(group.voters.len());
            (left < needed)
                .then(|| format!("without it {left} voters of {name} would be caught up, and {needed} are needed"))
        })
}

/// How many voters may be down in every group at the same time; groups of one voter have none to spare and are not counted.
#[must_use]
pub fn spare(groups: &BTreeMap<u64, Group>) -> Option<usize> {
    groups
        .values()
        .map(|group| group.voters.len())
        .filter(|voters| *voters > 1)
        .map(|voters| voters - quorum(voters))
        .min()
}

/// The first group that cannot commit: too few of its voters answer.
pub(crate) fn without_quorum(groups: &BTreeMap<u64, Group>) -> Option<String> {
    groups
        .values()
        .find(|group| group.active.len() < quorum(group.voters.len()))
        .map(|group| {
            format!(
                "{} of {} voters of {} answer, {} are needed",
                group.active.len(),
                group.voters.len(),
                group.name,
                quorum(group.voters.len())
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consensus(voters: &[&str], active: &[&str]) -> Consensus {
        let ids = |names: &[&str]| {
            names
                .iter()
                .map(|name| MemberId((*name).to_owned()))
                .collect::<BTreeSet<_>>()
        };
        Consensus {
            group: 0,
            leader: MemberId(active[0].to_owned()),
            config_index: 1,
            voters: ids(voters),
            learners: BTreeSet::new(),
            names: BTreeMap::new(),
            active: ids(active),
            caught_up: ids(active),
            lag: BTreeMap::new(),
        }
    }

    fn id(name: &str) -> MemberId {
        MemberId(name.to_owned())
    }

    #[test]
    fn a_dead_voter_of_three_may_be_removed_and_a_live_one_may_not_while_it_is_dead() {
        let three = consensus(&["a", "b", "c"], &["a", "b"]);
        assert_eq!(may_remove(&three, &id("c")), Ok(()));
        assert_eq!(may_remove(&three, &id("b")), Err(Short { active: 1, needed: 2 }));
    }

    #[test]
    fn the_last_voter_is_never_removed() {
        assert!(may_remove(&consensus(&["a"], &["a"]), &id("a")).is_err());
    }

    #[test]
    fn one_of_three_may_be_stopped_only_while_all_answer() {
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b", "c"]), &id("b")),
            Ok(())
        );
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b"]), &id("b")),
            Err(Short { active: 1, needed: 2 })
        );
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b"]), &id("c")),
            Ok(()),
            "it is down already"
        );
    }

    fn group(name: &str, voters: &[&str], caught_up: &[&str]) -> Group {
        let of = consensus(voters, caught_up);
        Group {
            name: name.into(),
            leader: Some(of.leader),
            voters: of.voters,
            active: of.active.clone(),
            caught_up: of.active,
        }
    }

    #[test]
    fn a_member_is_needed_while_any_group_would_miss_it() {
        let groups = BTreeMap::from([
            (0, group("the meta group", &["a", "b", "c"], &["a", "b", "c"])),
            (7, group("shard 7", &["a", "b", "d"], &["a", "b"])),
            (8, group("shard 8", &["c"], &["c"])),
        ]);
        let why = needed_by(&groups, &id("b"));
        assert_eq!(
            why.as_deref(),
            Some("without it 1 voters of shard 7 would be caught up, and 2 are needed")
        );
        assert_eq!(needed_by(&groups, &id("d")), None, "it is down already");
        assert_eq!(needed_by(&groups, &id("c")), None, "one replica was asked for");
        let mut behind = groups;
        behind.get_mut(&7).expect("a group").leader = None;
        assert_eq!(
            needed_by(&behind, &id("a")).as_deref(),
            Some("shard 7 has no leader that answers")
        );
    }

    #[test]
    fn the_smallest_group_says_how_many_may_be_down() {
        let five = ["a", "b", "c", "d", "e"];
        let groups = BTreeMap::from([
            (0, group("the meta group", &five, &five)),
            (7, group("shard 7", &["a", "b", "d"], &["a"])),
            (8, group("shard 8", &["c"], &["c"])),
        ]);
        assert_eq!(spare(&groups), Some(1));
        assert_eq!(spare(&BTreeMap::new()), None);
        assert_eq!(
            without_quorum(&groups).as_deref(),
            Some("1 of 3 voters of shard 7 answer, 2 are needed")
        );
    }
}
