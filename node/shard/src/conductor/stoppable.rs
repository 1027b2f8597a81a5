//! Whether a member may stop.

use crate::conductor::view::View;
use crate::conductor::{Limits, Observed};
use crate::meta::MetaState;
use althing_raft::ids::{GroupId, MemberId, Now};
use std::collections::BTreeSet;

/// Why a member should not stop now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unstoppable {
    /// A shard of it has no leader that answers, so nobody knows how well its other replicas are.
    #[error("shard {group} has no leader that answers; wait until it has one")]
    NoLeader {
        /// Which shard.
        group: GroupId,
    },
    /// A shard would lose its quorum.
    #[error("without member {member}, shard {group} has no quorum that is caught up; wait until its other voters are")]
    NoQuorum {
        /// Which shard.
        group: GroupId,
        /// Who should stay.
        member: MemberId,
    },
}

/// Whether every shard, and the meta group, keeps a caught-up quorum if this member stops.
///
/// # Errors
/// The first shard that would not.
pub fn stoppable(
    state: &MetaState,
    seen: &Observed,
    now: Now,
    limits: &Limits,
    member: MemberId,
) -> Result<(), Unstoppable> {
    let view = View::new(seen, now, limits);
    let held = seen.members.get(&member).map(|view| &view.groups);
    // A shard may be newer than the map: the child of a split that is not recorded yet.
    let unknown = held.into_iter().flat_map(|held| held.keys().copied());
    let unknown = unknown.filter(|group| !state.is_forgotten(*group));
    let listed = state
        .shards
        .iter()
        .filter(|(_, shard)| shard.replicas.contains(&member));
    let mut groups: BTreeSet<GroupId> = listed.map(|(group, _)| *group).collect();
    groups.extend(unknown);
    groups.insert(GroupId::META);
    for group in groups {
        let Some(leader) = view.leader(group) else {
            return Err(Unstoppable::NoLeader { group });
        };
        let votes = leader.seen.config.is_voter(member);
        if votes && !view.quorum_without(leader, &BTreeSet::from([member])) {
            return Err(Unstoppable::NoQuorum { group, member });
        }
    }
    Ok(())
}
