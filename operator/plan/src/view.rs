//! From what nodes answer to what the planner reads, the same for every executor.

use std::collections::{BTreeMap, BTreeSet};

use althing_admin::{LayoutStatus, MemberList, MemberState, NodeStatus, ShardKind, ShardStatus};

use crate::guard::quorum;
use crate::model::{Consensus, Group, MemberId, Place, Report};

/// The meta group: its configuration are the members, its state is the shard map.
pub const META: u64 = 0;

/// The members' group of nodes that have no meta group: the first shard of the default keyspace.
pub const FIRST_SHARD: u64 = 1;

/// The role that a leader reports (`ShardStatus::role`).
const ROLE_LEADER: &str = "Leader";

/// A member that lacks at most this many entries counts as caught up: a few heartbeats' worth of a busy log, which the
/// last round of replication closes well within an election timeout.
pub const CAUGHT_UP_LAG: u64 = 4096;

/// What a node says of itself.
#[must_use]
pub fn report(status: &NodeStatus) -> Report {
    Report {
        member_id: MemberId(status.member_id.clone()),
        cluster_id: status.cluster_id.clone(),
        ready: status.ready,
        not_ready_reason: status.not_ready_reason.clone(),
        peer_address: status.peer_address.clone(),
        client_urls: status.client_urls.clone(),
        version: status.version.clone(),
    }
}

/// The node that leads the members' group, among all that answered: the one with the highest term that hears a quorum of
/// its voters. One that merely believes to lead (it was cut off a moment ago) does not count.
#[must_use]
pub fn leader<'a>(statuses: impl IntoIterator<Item = &'a NodeStatus>) -> Option<&'a NodeStatus> {
    let statuses: Vec<&NodeStatus> = statuses.into_iter().collect();
    let reports = |group: u64| replicas(&statuses, group);
    // Whichever node has a meta group: the others are on their way to one.
    let meta = reports(META);
    leading(if meta.is_empty() { reports(FIRST_SHARD) } else { meta }).map(|(status, _)| status)
}

/// The configuration as the leader tells it. `members` is the leader's own `/v1/members`.
#[must_use]
pub fn consensus(leader: &NodeStatus, members: &MemberList) -> Option<Consensus> {
    let shard = shard(leader, META).or_else(|| shard(leader, FIRST_SHARD))?;
    let own = MemberId(leader.member_id.clone());
    let mut lag: BTreeMap<MemberId, u64> = shard
        .progress
        .iter()
        .map(|peer| (MemberId(peer.member_id.clone()), peer.lag))
        .collect();
    lag.insert(own.clone(), 0);
    let active = active(leader, shard);
    let caught_up = lag
        .iter()
        .filter(|(id, lag)| **lag <= CAUGHT_UP_LAG && active.contains(*id))
        .map(|(id, _)| id.clone())
        .collect();
    Some(Consensus {
        group: shard.id,
        leader: own,
        config_index: shard.config_index,
        voters: ids(&shard.voters),
        learners: ids(&shard.learners),
        names: members
            .members
            .iter()
            .map(|member| (MemberId(member.id.clone()), member.name.clone()))
            .collect(),
        active,
        caught_up,
        lag,
    })
}

/// Every group that has voters, put together from what its replicas say.
#[must_use]
pub fn groups<'a>(statuses: impl IntoIterator<Item = &'a NodeStatus>) -> BTreeMap<u64, Group> {
    let statuses: Vec<&NodeStatus> = statuses.into_iter().collect();
    let mut reports: BTreeMap<u64, Vec<(&NodeStatus, &ShardStatus)>> = BTreeMap::new();
    for status in &statuses {
        for shard in &status.shards {
            reports.entry(shard.id).or_default().push((status, shard));
        }
    }
    reports
        .into_iter()
        .filter_map(|(id, reports)| group(reports).map(|group| (id, group)))
        .collect()
}

fn group(reports: Vec<(&NodeStatus, &ShardStatus)>) -> Option<Group> {
    let leader = leading(reports.clone());
    let (_, told) = match leader {
        Some(leader) => leader,
        None => reports.iter().copied().max_by_key(|(_, shard)| shard.config_index)?,
    };
    let voters = ids(&told.voters);
    if voters.is_empty() {
        return None;
    }
    let (active, caught_up) = match leader {
        Some((status, shard)) => {
            let mut active = active(status, shard);
            let mut lag: BTreeMap<MemberId, u64> = shard
                .progress
                .iter()
                .map(|peer| (MemberId(peer.member_id.clone()), peer.lag))
                .collect();
            lag.insert(MemberId(status.member_id.clone()), 0);
            if shard.hibernating == Some(true) {
                // Asleep, the leader hears nothing of its followers' being well; what they say themselves counts as much.
                for (peer, asleep) in &reports {
                    let id = MemberId(peer.member_id.clone());
                    if asleep.leader == shard.leader && asleep.term == shard.term && !active.contains(&id) {
                        lag.insert(id.clone(), shard.last_index.saturating_sub(asleep.last_index));
                        active.insert(id);
                    }
                }
            }
            let caught_up = active
                .iter()
                .filter(|id| voters.contains(*id) && lag.get(*id).is_some_and(|lag| *lag <= CAUGHT_UP_LAG))
                .cloned()
                .collect();
            (active, caught_up)
        }
        None => (
            reports
                .iter()
                .map(|(status, _)| MemberId(status.member_id.clone()))
                .collect(),
            BTreeSet::new(),
        ),
    };
    Some(Group {
        name: name(told),
        leader: leader.map(|(status, _)| MemberId(status.member_id.clone())),
        active: active.intersection(&voters).cloned().collect(),
        caught_up,
        voters,
    })
}

fn name(shard: &ShardStatus) -> String {
    match (shard.kind, &shard.keyspace) {
        (Some(ShardKind::Meta), _) => "the meta group".to_owned(),
        (Some(ShardKind::Sequencer), Some(keyspace)) => format!("the sequencer of keyspace {keyspace}"),
        (Some(ShardKind::Sequencer), None) => format!("sequencer {}", shard.id),
        (Some(ShardKind::Data) | None, Some(keyspace)) => format!("shard {} of keyspace {keyspace}", shard.id),
        (Some(ShardKind::Data) | None, None) => format!("shard {}", shard.id),
    }
}

/// What the members hold.
#[must_use]
pub fn places(layout: &LayoutStatus) -> BTreeMap<MemberId, Place> {
    layout
        .members
        .iter()
        .map(|member| {
            let place = Place {
                replicas: member.replicas,
                draining: match member.state {
                    MemberState::Active => false,
                    MemberState::Draining => true,
                },
                labels: member.labels.clone(),
            };
            (MemberId(member.id.clone()), place)
        })
        .collect()
}

fn ids(list: &[String]) -> BTreeSet<MemberId> {
    list.iter().cloned().map(MemberId).collect()
}

fn replicas<'a>(statuses: &[&'a NodeStatus], group: u64) -> Vec<(&'a NodeStatus, &'a ShardStatus)> {
    statuses
        .iter()
        .filter_map(|status| shard(status, group).map(|shard| (*status, shard)))
        .collect()
}

/// The replica with the highest term that leads and hears a quorum.
fn leading<'a>(reports: Vec<(&'a NodeStatus, &'a ShardStatus)>) -> Option<(&'a NodeStatus, &'a ShardStatus)> {
    reports
        .into_iter()
        .filter(|(_, shard)| shard.role == ROLE_LEADER)
        .filter(|(status, shard)| {
            // A leader that sleeps is kept by its followers' consent, not by what it hears.
            let active = active(status, shard);
            let heard = ids(&shard.voters).intersection(&active).count();
            shard.hibernating == Some(true) || heard >= quorum(shard.voters.len())
        })
        .max_by_key(|(_, shard)| shard.term)
}

fn shard(status: &NodeStatus, group: u64) -> Option<&ShardStatus> {
    status.shards.iter().find(|shard| shard.id == group)
}

fn active(status: &NodeStatus, shard: &ShardStatus) -> BTreeSet<MemberId> {
    shard
        .progress
        .iter()
        .filter(|peer| peer.recent_active)
        .map(|peer| MemberId(peer.member_id.clone()))
        .chain([MemberId(status.member_id.clone())])
        .collect()
}
