//! Groups that leave this node.

use super::Host;
use crate::effect::{Effect, Refusal};
use crate::pending::Stage;
use althing_raft::entry::{ConfigState, HardState};
use althing_raft::ids::{GroupId, Index, LogPosition, Now};

impl Host {
    /// Forgets a group, but for its vote and its promises. Whoever waits for something that may have taken effect hears that, not that
    /// there is no group: only what certainly had none may be tried elsewhere.
    pub(super) fn retire(&mut self, now: Now, id: GroupId, ends_at: Option<LogPosition>) {
        let Some(group) = self.groups.get(&id) else { return };
        if ends_at.is_some_and(|end| end != group.raft.view().last) {
            return self.turn.effects.push(Effect::Kept { group: id });
        }
        let Some(group) = self.groups.remove(&id) else { return };
        self.neighbours_change(now, &group.soft.config, &ConfigState::default());
        if let Some(at) = group.scheduled {
            self.due.remove(&(at, id));
        }
        self.waiting.remove(&id);
        self.turn.touched.remove(&id);
        // What was not written yet must not be written behind the reset; and what is being written concerns nobody any more, least of all
        // a group of this id that is started later.
        self.turn.writes.retain(|write| write.group != id);
        self.turn.persists.retain(|(of, _)| *of != id);
        for persists in self.writes.values_mut() {
            persists.retain(|(of, _)| *of != id);
        }
        self.turn.effects.retain(|effect| match effect {
            Effect::SendSnapshot { group, .. } | Effect::Install { group, .. } | Effect::Stamp { group, .. } => {
                *group != id
            }
            Effect::Write { .. }
            | Effect::Compact { .. }
            | Effect::Send { .. }
            | Effect::Apply { .. }
            | Effect::Complete { .. }
            | Effect::Discard { .. }
            | Effect::Retired { .. }
            | Effect::Kept { .. }
            | Effect::Peers(_)
            | Effect::Changed { .. } => true,
        });
        let answered_by_apply = group.answered_by_apply();
        let requests: Vec<_> = self.requests.of_group(id).collect();
        for (request, stage) in requests {
            self.requests.remove(request);
            let refusal = match stage {
                Stage::Committed if answered_by_apply.contains(&request) => continue,
                Stage::Committed | Stage::Sent(_) => Refusal::LeaderChanged,
                Stage::Held | Stage::Stamping | Stage::Read | Stage::Transfer | Stage::Resolve => Refusal::NoGroup,
            };
            self.turn.complete(request, Err(refusal));
        }
        self.book.retired(id);
        self.turn.peers = true;
        let hard_state = HardState {
            commit: Index::ZERO,
            ..group.raft.hard_state()
        };
        self.turn.effects.push(Effect::Retired { group: id, hard_state });
    }
}
