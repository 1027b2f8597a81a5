//! Members as places for replicas.

use crate::map::{MemberRecord, NODE_LABEL, ZONE_LABEL};
use crate::meta::REPLICAS_MAX;
use crate::placement::rendezvous::score;
use althing_raft::ids::{GroupId, MemberId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A member as a place for replicas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Site {
    /// Its zone, if it has one: replicas in one zone fail together.
    pub zone: Option<String>,
    /// Its machine, likewise.
    pub node: Option<String>,
    /// Whether it may hold replicas at all: it does not leave.
    pub active: bool,
    /// Whether it answers now, so that it could get one.
    pub reachable: bool,
    /// Whether it has been silent for so long that its replicas are made elsewhere.
    pub dead: bool,
    /// Replicas that it holds or is about to get.
    pub load: usize,
}

impl Site {
    /// Of a member that is there and well, without replicas.
    #[must_use]
    pub fn of(record: &MemberRecord) -> Self {
        let label = |name: &str| record.labels.get(name).filter(|value| !value.is_empty()).cloned();
        Self {
            zone: label(ZONE_LABEL),
            node: label(NODE_LABEL),
            active: true,
            reachable: true,
            dead: false,
            load: 0,
        }
    }
}

/// All places.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    pub(super) sites: BTreeMap<MemberId, Site>,
    /// Active members.
    active: usize,
    /// Those that answer.
    fit: usize,
    /// Zones and machines of active members that answer.
    zones: usize,
    nodes: usize,
}

/// What is wrong with where a shard's replicas are, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// One has been silent for long, and there is another place.
    Dead,
    /// There are too few, and there is another place.
    Missing,
    /// One is at a member that leaves.
    Leaving,
    /// Some fail together that need not.
    Crowded,
    /// There are too many.
    Surplus,
}

/// Pairs of replicas that fail together: by zone, by machine. The first number counts more.
pub(super) type Clashes = (usize, usize);

impl Placement {
    /// Of these.
    #[must_use]
    pub fn new(sites: BTreeMap<MemberId, Site>) -> Self {
        let fit = || sites.values().filter(|site| site.active && site.reachable);
        let zones: BTreeSet<&String> = fit().filter_map(|site| site.zone.as_ref()).collect();
        let nodes: BTreeSet<&String> = fit().filter_map(|site| site.node.as_ref()).collect();
        Self {
            active: sites.values().filter(|site| site.active).count(),
            fit: fit().count(),
            zones: zones.len(),
            nodes: nodes.len(),
            sites,
        }
    }

    /// The places.
    #[must_use]
    pub fn sites(&self) -> &BTreeMap<MemberId, Site> {
        &self.sites
    }

    /// Replicas go from some members to others.
    pub fn shift(&mut self, from: &BTreeSet<MemberId>, to: &BTreeSet<MemberId>) {
        for gone in from.difference(to) {
            if let Some(site) = self.sites.get_mut(gone) {
                site.load = site.load.saturating_sub(1);
            }
        }
        for new in to.difference(from) {
            if let Some(site) = self.sites.get_mut(new) {
                site.load += 1;
            }
        }
    }

    /// How many replicas a shard should have: as many as wanted, or as there are members, and at most
    /// [`REPLICAS_MAX`].
    #[must_use]
    pub fn count(&self, want: Option<u32>) -> usize {
        let most = usize::try_from(want.unwrap_or(REPLICAS_MAX).min(REPLICAS_MAX)).unwrap_or(usize::MAX);
        most.min(self.active)
    }

    /// What is wrong with these places for a shard's replicas. Cheap: it looks for no better ones, so there may be none.
    #[must_use]
    pub fn fault(&self, current: &BTreeSet<MemberId>, want: Option<u32>) -> Option<Fault> {
        if self.active == 0 {
            return None;
        }
        let count = self.count(want);
        let site = |member: &MemberId| self.sites.get(member);
        let active = |member: &MemberId| site(member).is_some_and(|site| site.active);
        let dead = |member: &MemberId| site(member).is_none_or(|site| site.dead);
        let well = current.iter().filter(|member| active(member) && !dead(member)).count();
        let fit = current
            .iter()
            .filter(|member| site(member).is_some_and(|site| site.active && site.reachable))
            .count();
        let spare = self.fit > fit;
        if spare && current.iter().any(|member| active(member) && dead(member)) {
            Some(Fault::Dead)
        } else if spare && well < count {
            Some(Fault::Missing)
        } else if well >= count && current.iter().any(|member| !active(member)) {
            Some(Fault::Leaving)
        } else if self.clashes(current) > self.fewest_clashes(current.len()) {
            Some(Fault::Crowded)
        } else if current.len() > count.max(1) {
            Some(Fault::Surplus)
        } else {
            None
        }
    }

    /// Where the replicas of a shard should be that now are at `current`. Never fewer than now but for members that leave for good,
    /// never none.
    #[must_use]
    pub fn desired(&self, group: GroupId, current: &BTreeSet<MemberId>, want: Option<u32>) -> BTreeSet<MemberId> {
        if self.active == 0 {
            // Everybody leaves: then nobody is a better place.
            return current.clone();
        }
        let count = self.count(want);
        let site = |member: &MemberId| self.sites.get(member);
        let well = |member: &&MemberId| site(member).is_some_and(|site| site.active && !site.dead);
        let mut kept: BTreeSet<MemberId> = current.iter().filter(well).copied().collect();
        while kept.len() > count.max(1) {
            let worst = kept
                .iter()
                .copied()
                .max_by_key(|member| self.rank(group, *member, &kept));
            kept.remove(&worst.expect("invariant: more than one is kept"));
        }
        while kept.len() < count {
            match self.best(group, &kept, &kept) {
                Some(best) => kept.insert(best),
                None => break,
            };
        }
        // What cannot be replaced stays: the silent before those that leave.
        let active = |member: &MemberId| site(member).is_some_and(|site| site.active);
        let mut spare: Vec<MemberId> = current.difference(&kept).copied().collect();
        spare.sort_by_key(|member| !active(member));
        let missing = count.max(1).saturating_sub(kept.len());
        kept.extend(spare.into_iter().filter(|member| !well(&member)).take(missing));
        self.spread(group, kept)
    }

    /// Exchanges one member whose failure would take others along for a better one, if there is one.
    fn spread(&self, group: GroupId, kept: BTreeSet<MemberId>) -> BTreeSet<MemberId> {
        let present = self.clashes(&kept);
        if present <= self.fewest_clashes(kept.len()) {
            return kept;
        }
        let mut best: Option<(Clashes, BTreeSet<MemberId>)> = None;
        for out in &kept {
            let mut rest = kept.clone();
            rest.remove(out);
            let Some(new) = self.best(group, &rest, &kept) else {
                continue;
            };
            rest.insert(new);
            let clashes = self.clashes(&rest);
            if clashes < best.as_ref().map_or(present, |(fewest, _)| *fewest) {
                best = Some((clashes, rest));
            }
        }
        best.map_or(kept, |(_, better)| better)
    }

    /// The best place beside `chosen` for one more replica, outside of `not`.
    fn best(&self, group: GroupId, chosen: &BTreeSet<MemberId>, not: &BTreeSet<MemberId>) -> Option<MemberId> {
        let fit = |(member, site): &(&MemberId, &Site)| site.active && site.reachable && !not.contains(member);
        let fitting = self.sites.iter().filter(fit).map(|(member, _)| *member);
        fitting.min_by_key(|member| self.rank(group, *member, chosen))
    }

    /// How bad a place is beside the others: smaller is better.
    fn rank(&self, group: GroupId, member: MemberId, others: &BTreeSet<MemberId>) -> (Clashes, usize, Reverse<u64>) {
        let load = self.sites.get(&member).map_or(0, |site| site.load);
        (self.clashes_with(member, others), load, Reverse(score(group, member)))
    }

    pub(super) fn clashes_with(&self, member: MemberId, others: &BTreeSet<MemberId>) -> Clashes {
        let Some(site) = self.sites.get(&member) else {
            return (0, 0);
        };
        let mut clashes = (0, 0);
        for other in others.iter().filter(|other| **other != member) {
            if let Some(other) = self.sites.get(other) {
                clashes.0 += usize::from(site.zone.is_some() && site.zone == other.zone);
                clashes.1 += usize::from(site.node.is_some() && site.node == other.node);
            }
        }
        clashes
    }

    /// Pairs that fail together.
    pub(super) fn clashes(&self, members: &BTreeSet<MemberId>) -> Clashes {
        let mut sum = (0, 0);
        for member in members {
            let (zone, node) = self.clashes_with(*member, members);
            sum = (sum.0 + zone, sum.1 + node);
        }
        // Every pair was counted from both ends.
        (sum.0 / 2, sum.1 / 2)
    }

    /// No placement of so many replicas has fewer: a bound that saves looking for a better one.
    fn fewest_clashes(&self, replicas: usize) -> Clashes {
        let fewest = |places: usize| {
            if places == 0 {
                return 0;
            }
            let (each, more) = (replicas / places, replicas % places);
            let pairs = |count: usize| count * count.saturating_sub(1) / 2;
            more * pairs(each + 1) + (places - more) * pairs(each)
        };
        (fewest(self.zones), fewest(self.nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().map(|id| MemberId(*id)).collect()
    }

    /// Members 1, 2, ... in these zones.
    fn zones(zones: &[&str]) -> BTreeMap<MemberId, Site> {
        let site = |zone: &str| Site {
            zone: (!zone.is_empty()).then(|| zone.to_owned()),
            active: true,
            reachable: true,
            ..Site::default()
        };
        (1u64..)
            .map(MemberId)
            .zip(zones.iter().map(|zone| site(zone)))
            .collect()
    }

    const G: GroupId = GroupId(7);

    #[test]
    fn replicas_go_to_different_zones_first() {
        let placement = Placement::new(zones(&["a", "a", "a", "b", "c"]));
        let placed = placement.desired(G, &BTreeSet::new(), Some(3));
        assert_eq!(placement.clashes(&placed), (0, 0), "{placed:?}");
        let placed = placement.desired(G, &members(&[1, 2, 3]), Some(3));
        assert_eq!(placement.clashes(&placed), (1, 0), "one exchange at a time: {placed:?}");
        let placed = placement.desired(G, &placed, Some(3));
        assert_eq!(placement.clashes(&placed), (0, 0), "{placed:?}");
        assert_eq!(placement.desired(G, &placed, Some(3)), placed, "what is good stays");
    }

    #[test]
    fn more_replicas_than_zones_are_spread_evenly_and_then_stay() {
        let placement = Placement::new(zones(&["a", "a", "a", "b", "b"]));
        let placed = placement.desired(G, &BTreeSet::new(), Some(4));
        assert_eq!(placement.clashes(&placed), (2, 0));
        assert_eq!(placement.desired(G, &placed, Some(4)), placed);
    }

    #[test]
    fn without_a_number_every_member_has_a_replica_up_to_the_most_that_vote() {
        let placement = Placement::new(zones(&[""; 5]));
        assert_eq!(placement.desired(G, &members(&[1]), None), members(&[1, 2, 3, 4, 5]));
        let placement = Placement::new(zones(&[""; 20]));
        assert_eq!(placement.desired(G, &members(&[1]), None).len(), 7);
    }

    #[test]
    fn whoever_leaves_is_replaced_or_given_up_if_nobody_is_left() {
        let mut sites = zones(&[""; 4]);
        sites.get_mut(&MemberId(1)).unwrap().active = false;
        let placement = Placement::new(sites.clone());
        assert_eq!(placement.desired(G, &members(&[1, 2, 3]), Some(3)), members(&[2, 3, 4]));
        sites.get_mut(&MemberId(4)).unwrap().reachable = false;
        let placement = Placement::new(sites.clone());
        assert_eq!(
            placement.desired(G, &members(&[1, 2, 3]), Some(3)),
            members(&[1, 2, 3]),
            "4 will do once it answers"
        );
        sites.remove(&MemberId(4));
        let placement = Placement::new(sites.clone());
        assert_eq!(placement.desired(G, &members(&[1, 2, 3]), Some(3)), members(&[2, 3]));
        for site in sites.values_mut() {
            site.active = false;
        }
        let last = Placement::new(sites).desired(G, &members(&[1, 2, 3]), Some(3));
        assert_eq!(last, members(&[1, 2, 3]), "nobody is left to take over");
    }

    #[test]
    fn the_dead_are_replaced_and_never_just_dropped() {
        let mut sites = zones(&[""; 4]);
        let dead = sites.get_mut(&MemberId(1)).unwrap();
        (dead.dead, dead.reachable) = (true, false);
        let placement = Placement::new(sites.clone());
        assert_eq!(placement.desired(G, &members(&[1, 2, 3]), Some(3)), members(&[2, 3, 4]));
        sites.remove(&MemberId(4));
        let placement = Placement::new(sites);
        assert_eq!(placement.desired(G, &members(&[1, 2, 3]), Some(3)), members(&[1, 2, 3]));
        assert_eq!(placement.desired(G, &members(&[1, 2, 3]), None), members(&[1, 2, 3]));
    }

    #[test]
    fn replicas_too_many_go_from_where_they_are_worst_placed() {
        let mut sites = zones(&["a", "a", "b", "c"]);
        sites.get_mut(&MemberId(2)).unwrap().load = 9;
        let placement = Placement::new(sites);
        assert_eq!(
            placement.desired(G, &members(&[1, 2, 3, 4]), Some(3)),
            members(&[1, 3, 4])
        );
    }
}
