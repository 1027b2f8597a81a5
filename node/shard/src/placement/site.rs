//! Members as places for replicas.

use crate::map::{MemberRecord, NODE_LABEL, ZONE_LABEL};
use crate::meta::REPLICAS_MAX;
use crate::placement::rendezvous::score;
use althing_raft::ids::{GroupId, MemberId};
use std::cmp::{Ordering, Reverse};
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
    /// The same, made for being gone over for every shard: by member, with labels as numbers.
    places: Vec<Place>,
    /// Active members.
    active: usize,
    /// Those that answer.
    fit: usize,
    /// Zones and machines of active members that answer.
    zones: usize,
    nodes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    member: MemberId,
    zone: Option<usize>,
    node: Option<usize>,
    /// Whether it could get a replica.
    fit: bool,
    load: usize,
}

impl Place {
    fn clashes_with(&self, other: &Self) -> Clashes {
        let zone = self.zone.is_some() && self.zone == other.zone;
        let node = self.node.is_some() && self.node == other.node;
        (usize::from(zone), usize::from(node))
    }
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
        let (zones, nodes, fit) = (zones.len(), nodes.len(), fit().count());
        let numbers = |label: fn(&Site) -> Option<&String>| -> BTreeMap<&String, usize> {
            let names: BTreeSet<&String> = sites.values().filter_map(label).collect();
            names.into_iter().zip(0..).collect()
        };
        let zone_numbers = numbers(|site| site.zone.as_ref());
        let node_numbers = numbers(|site| site.node.as_ref());
        let place = |(member, site): (&MemberId, &Site)| Place {
            member: *member,
            zone: site.zone.as_ref().map(|zone| zone_numbers[zone]),
            node: site.node.as_ref().map(|node| node_numbers[node]),
            fit: site.active && site.reachable,
            load: site.load,
        };
        Self {
            active: sites.values().filter(|site| site.active).count(),
            fit,
            zones,
            nodes,
            places: sites.iter().map(place).collect(),
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
            self.set_load(*gone, |load| load.saturating_sub(1));
        }
        for new in to.difference(from) {
            self.set_load(*new, |load| load + 1);
        }
    }

    fn set_load(&mut self, member: MemberId, change: impl Fn(usize) -> usize) {
        if let Some(site) = self.sites.get_mut(&member) {
            site.load = change(site.load);
            let at = self.places.binary_search_by_key(&member, |place| place.member);
            self.places[at.expect("invariant: every site has a place")].load = site.load;
        }
    }

    fn place(&self, member: MemberId) -> Option<&Place> {
        let at = self.places.binary_search_by_key(&member, |place| place.member).ok()?;
        Some(&self.places[at])
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
        let chosen: Vec<&Place> = chosen.iter().filter_map(|member| self.place(*member)).collect();
        let mut best: Option<(Clashes, usize, MemberId)> = None;
        for place in self.places.iter().filter(|place| place.fit) {
            let rank = (sum(chosen.iter().map(|other| place.clashes_with(other))), place.load);
            let better = best.is_none_or(|(clashes, load, other)| match rank.cmp(&(clashes, load)) {
                Ordering::Less => true,
                Ordering::Equal => score(group, place.member) > score(group, other),
                Ordering::Greater => false,
            });
            if better && !not.contains(&place.member) {
                best = Some((rank.0, rank.1, place.member));
            }
        }
        best.map(|(.., member)| member)
    }

    /// How bad a place is beside the others: smaller is better.
    fn rank(&self, group: GroupId, member: MemberId, others: &BTreeSet<MemberId>) -> (Clashes, usize, Reverse<u64>) {
        let load = self.place(member).map_or(0, |place| place.load);
        (self.clashes_with(member, others), load, Reverse(score(group, member)))
    }

    fn clashes_with(&self, member: MemberId, others: &BTreeSet<MemberId>) -> Clashes {
        let Some(place) = self.place(member) else {
            return (0, 0);
        };
        let others = others.iter().filter(|other| **other != member);
        sum(others.filter_map(|other| Some(place.clashes_with(self.place(*other)?))))
    }

    /// Pairs that fail together.
    pub(super) fn clashes(&self, members: &BTreeSet<MemberId>) -> Clashes {
        let (zone, node) = sum(members.iter().map(|member| self.clashes_with(*member, members)));
        // Every pair was counted from both ends.
        (zone / 2, node / 2)
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

fn sum(clashes: impl Iterator<Item = Clashes>) -> Clashes {
    clashes.fold((0, 0), |(zone, node), (more_zone, more_node)| {
        (zone + more_zone, node + more_node)
    })
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
