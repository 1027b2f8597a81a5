//! What the conductor sees of the world.

use crate::group::{Group, Replica};
use crate::world::{Mutant, World};
use althing_raft::ids::{Index, MemberId, Term};
use althing_raft::io::Role;
use althing_shard::conductor::{GroupSeen, MemberView, PeerSeen};
use bytes::Bytes;

impl World {
    /// Asks every member that answers.
    pub(crate) fn look(&mut self) {
        self.observed.wall_seconds = self.now.0 / 1_000_000_000;
        let members: Vec<MemberId> = self.members.keys().copied().collect();
        for id in members {
            let member = &self.members[&id];
            if !member.joined {
                self.observed.members.remove(&id);
                continue;
            }
            let mut view = self.observed.members.remove(&id).unwrap_or_else(|| MemberView {
                name: member.name.clone(),
                labels: member.labels.clone(),
                ..MemberView::default()
            });
            if member.up {
                view.heard = Some(self.now);
                let seen = member.groups.iter().map(|(group, replica)| {
                    let truth = &self.groups[group];
                    (*group, self.seen(id, replica, truth, *group))
                });
                view.groups = seen.collect();
            }
            self.observed.members.insert(id, view);
        }
    }

    fn seen(&self, member: MemberId, replica: &Replica, group: &Group, id: althing_raft::ids::GroupId) -> GroupSeen {
        let state = &group.states[replica.applied];
        // Who is asked to make a sealed state durable says so without having it.
        let blind = self.mutant == Some(Mutant::ConfirmBlindly) && group.now().sealed.is_some();
        let claimed = Replica::at(replica.life, group.last());
        let (replica, state) = if blind {
            (&claimed, group.now())
        } else {
            (replica, state)
        };
        let leads = group.leader == Some(member);
        let role = match (leads, state.config.is_voter(member)) {
            (true, _) => Role::Leader,
            (false, true) => Role::Follower,
            (false, false) => Role::Learner,
        };
        let mut seen = GroupSeen {
            life: replica.life,
            role,
            leader: group.leader,
            term: Term(group.term),
            config: state.config.clone(),
            applied: group.position(replica.applied),
            last: group.position(replica.log),
            durable: group.position(replica.durable),
            peers: Default::default(),
            hibernating: false,
            reads: state.reads.clone(),
            territory: state.territory.clone(),
            source: state.source,
            revision: state.revision,
            sealed: state.sealed,
            transactions: 0,
            ceiling: state.ceiling,
            bytes: 100 * state.data.len() as u64,
            keys: state.data.len() as u64,
            writes_per_second: 0,
            middle: None,
        };
        if leads {
            for peer in state.config.members().into_iter().filter(|peer| *peer != member) {
                let matched = self.replica(peer, id).map_or(0, |replica| replica.log);
                let peer_seen = PeerSeen {
                    matched: Index(matched as u64),
                    active: self.up(peer),
                    snapshot: false,
                };
                seen.peers.insert(peer, peer_seen);
            }
            let middle: Option<&Bytes> = state.data.keys().nth(state.data.len() / 2);
            seen.middle = middle.filter(|key| **key > state.territory.span.start).cloned();
        }
        seen
    }
}
