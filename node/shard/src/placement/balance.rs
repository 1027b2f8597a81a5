//! Evening out.

use crate::placement::{Placement, score};
use althing_raft::ids::{GroupId, MemberId};
use std::collections::{BTreeMap, BTreeSet};

/// Replicas looked at in search of one that may move, per call: where zones forbid every exchange, looking at all pairs of members
/// in every plan would take longer than it is worth.
const LOOKS_MAX: usize = 200_000;

/// One replica that should move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relief {
    /// Of which shard.
    pub group: GroupId,
    /// From here.
    pub from: MemberId,
    /// To here.
    pub to: MemberId,
}

impl Placement {
    /// Whether no member that could get a replica holds two fewer than another.
    #[must_use]
    pub fn is_even(&self) -> bool {
        let loads = || {
            self.sites
                .values()
                .filter(|site| site.active && site.reachable)
                .map(|site| site.load)
        };
        loads().max().unwrap_or_default() < loads().min().unwrap_or_default() + 2
    }

    /// Replicas that should move so that members hold equally many, at most so many: each from a member to one that holds at
    /// least two fewer, so that this ends, and never into worse company. `movable` are the shards that may change, and where
    /// their replicas are; `may_get` says who may get one more now, and is asked again after each.
    #[must_use]
    pub fn relief(
        &self,
        movable: &BTreeMap<GroupId, BTreeSet<MemberId>>,
        most: usize,
        mut may_get: impl FnMut(MemberId, usize) -> bool,
    ) -> Vec<Relief> {
        let mut loads: BTreeMap<MemberId, usize> = self
            .sites
            .iter()
            .filter(|(_, site)| site.active && site.reachable)
            .map(|(member, site)| (*member, site.load))
            .collect();
        let (least, largest) = (loads.values().min(), loads.values().max());
        let (Some(least), Some(largest)) = (least.copied(), largest.copied()) else {
            return Vec::new();
        };
        if largest < least + 2 || most == 0 {
            return Vec::new();
        }
        let mut held: BTreeMap<MemberId, Vec<GroupId>> = BTreeMap::new();
        for (group, members) in movable {
            for member in members {
                held.entry(*member).or_default().push(*group);
            }
        }
        let mut given = BTreeMap::<MemberId, usize>::new();
        let mut moved = BTreeSet::new();
        let mut found = Vec::new();
        let mut looks = LOOKS_MAX;
        let mut needy: BTreeSet<(usize, MemberId)> = loads.iter().map(|(member, load)| (*load, *member)).collect();
        while let Some((load, to)) = needy.pop_first() {
            if found.len() >= most || looks == 0 || largest < load + 2 {
                break;
            }
            let count = given.entry(to).or_default();
            if !may_get(to, *count) {
                continue;
            }
            let mut rich: Vec<(usize, MemberId)> = loads.iter().map(|(member, load)| (*load, *member)).collect();
            rich.sort_unstable_by(|a, b| b.cmp(a));
            let givers = rich.into_iter().take_while(|(held, _)| *held >= load + 2);
            for (_, from) in givers {
                let groups = held.get(&from).map_or(&[][..], Vec::as_slice);
                looks = looks.saturating_sub(groups.len());
                let fits = |group: &&GroupId| !moved.contains(*group) && self.not_worse(&movable[*group], from, to);
                let best = groups.iter().filter(fits).max_by_key(|group| score(**group, to));
                if let Some(group) = best.copied() {
                    moved.insert(group);
                    found.push(Relief { group, from, to });
                    *count += 1;
                    *loads.entry(from).or_default() -= 1;
                    *loads.entry(to).or_default() += 1;
                    needy.insert((load + 1, to));
                    break;
                }
                if looks == 0 {
                    break;
                }
            }
        }
        found
    }

    fn not_worse(&self, members: &BTreeSet<MemberId>, from: MemberId, to: MemberId) -> bool {
        if members.contains(&to) {
            return false;
        }
        let mut after = members.clone();
        after.remove(&from);
        after.insert(to);
        self.clashes(&after) <= self.clashes(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Site;

    fn placed(groups: u64, on: &[u64]) -> BTreeMap<GroupId, BTreeSet<MemberId>> {
        let members: BTreeSet<MemberId> = on.iter().map(|id| MemberId(*id)).collect();
        (1..=groups).map(|id| (GroupId(id), members.clone())).collect()
    }

    fn placement(loads: &[(usize, &str)]) -> Placement {
        let site = |(load, zone): &(usize, &str)| Site {
            zone: Some((*zone).to_owned()),
            active: true,
            reachable: true,
            load: *load,
            ..Site::default()
        };
        Placement::new((1..).map(MemberId).zip(loads.iter().map(site)).collect())
    }

    #[test]
    fn an_empty_member_gets_its_share_and_no_more() {
        let placement = placement(&[(10, "a"), (10, "b"), (10, "c"), (0, "d")]);
        let moves = placement.relief(&placed(10, &[1, 2, 3]), 100, |_, _| true);
        // Thirty replicas on four members: seven or eight each.
        assert_eq!(moves.len(), 7);
        assert!(moves.iter().all(|relief| relief.to == MemberId(4)));
        let groups: BTreeSet<GroupId> = moves.iter().map(|relief| relief.group).collect();
        assert_eq!(groups.len(), 7, "each from another shard");
    }

    #[test]
    fn what_is_even_stays() {
        let placement = placement(&[(10, "a"), (10, "b"), (9, "c")]);
        assert_eq!(placement.relief(&placed(10, &[1, 2]), 100, |_, _| true), vec![]);
    }

    #[test]
    fn a_replica_does_not_move_into_a_zone_that_has_one() {
        let placement = placement(&[(10, "a"), (10, "b"), (0, "b")]);
        let moves = placement.relief(&placed(10, &[1, 2]), 100, |_, _| true);
        assert_eq!(moves.len(), 5);
        assert!(moves.iter().all(|relief| relief.from == MemberId(2)), "{moves:?}");
    }

    #[test]
    fn limits_hold() {
        let placement = placement(&[(10, "a"), (10, "b"), (0, "c")]);
        assert_eq!(placement.relief(&placed(10, &[1, 2]), 3, |_, _| true).len(), 3);
        assert_eq!(
            placement.relief(&placed(10, &[1, 2]), 100, |_, given| given < 2).len(),
            2
        );
    }
}
