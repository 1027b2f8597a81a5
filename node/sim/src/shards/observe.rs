//! How the groups of a node are, for whoever conducts: `node/src/observe.rs`.

use super::Node;
use super::call::Failure;
use super::sequencer::ceiling;
use althing_raft::ids::{GroupId, LogPosition};
use althing_raft::io::Role;
use althing_shard::conductor::{GroupSeen, PeerSeen};
use std::collections::BTreeMap;

impl Node {
    pub(crate) fn observe(&self) -> BTreeMap<GroupId, GroupSeen> {
        self.with(|process| {
            let seen = process.groups.iter().filter_map(|(group, store)| {
                let view = process.host.view(*group)?;
                let meta = store.applied();
                let size = store.size().ok()?;
                let soft = &view.raft.soft;
                let leads = soft.role == Role::Leader;
                let peers = view.raft.progress.iter().map(|peer| {
                    let seen = PeerSeen {
                        matched: peer.matched,
                        active: peer.recent_active,
                        snapshot: peer.snapshot,
                    };
                    (peer.member, seen)
                });
                let seen = GroupSeen {
                    life: process.lives.get(group).copied().unwrap_or_default(),
                    role: soft.role,
                    leader: soft.leader,
                    term: soft.term,
                    config: meta.config,
                    applied: meta.position,
                    last: view.raft.last,
                    durable: process.durable.get(group).copied().unwrap_or_default(),
                    peers: peers.collect(),
                    hibernating: view.raft.hibernates,
                    reads: view.raft.lease.reads.spec.clone(),
                    territory: store.territory(),
                    source: store.source(),
                    revision: store.current_revision(),
                    sealed: store.sealed(),
                    transactions: store.transactions(),
                    ceiling: ceiling(store),
                    bytes: size.in_use,
                    keys: size.keys,
                    writes_per_second: 0,
                    middle: if leads { store.middle_key() } else { None },
                };
                Some((*group, seen))
            });
            seen.collect()
        })
        .unwrap_or_default()
    }

    /// Makes a group durable, if it is there already.
    pub(crate) fn confirm(&self, group: GroupId, at: LogPosition) -> Result<(), Failure> {
        let store = self.store(group)?;
        let position = store.applied().position;
        if position.index < at.index {
            return Err(Failure::No(format!(
                "group {group} has not come to entry {} yet",
                at.index
            )));
        }
        self.ground.world.borrow_mut().make_durable(self.number);
        self.with(|process| process.durable.insert(group, position));
        Ok(())
    }
}
