//! From what nodes answer to what the planner reads, the same for every executor.

use std::collections::{BTreeMap, BTreeSet};

use althing_admin::{MemberList, NodeStatus, ShardStatus};

use crate::guard::quorum;
use crate::model::{Consensus, MemberId, Report};

/// The shard that the member table is about: the first shard of the default keyspace.
pub const SHARD: u64 = 1;

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

/// The node that leads, among all that answered: the one with the highest term that hears a quorum of its voters.
/// One that merely believes to lead (it was cut off a moment ago) does not count.
#[must_use]
pub fn leader<'a>(statuses: impl IntoIterator<Item = &'a NodeStatus>) -> Option<&'a NodeStatus> {
    statuses
        .into_iter()
        .filter_map(|status| shard(status).map(|shard| (status, shard)))
        .filter(|(_, shard)| shard.role == ROLE_LEADER)
        .filter(|(status, shard)| {
            let active = active(status, shard);
            shard
                .voters
                .iter()
                .filter(|id| active.contains(&MemberId((*id).clone())))
                .count()
                >= quorum(shard.voters.len())
        })
        .max_by_key(|(_, shard)| shard.term)
        .map(|(status, _)| status)
}

/// The configuration as the leader tells it. `members` is the leader's own `/v1/members`.
#[must_use]
pub fn consensus(leader: &NodeStatus, members: &MemberList) -> Option<Consensus> {
    let shard = shard(leader)?;
    let own = MemberId(leader.member_id.clone());
    let ids = |list: &[String]| list.iter().cloned().map(MemberId).collect::<BTreeSet<_>>();
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

fn shard(status: &NodeStatus) -> Option<&ShardStatus> {
    status.shards.iter().find(|shard| shard.id == SHARD)
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
