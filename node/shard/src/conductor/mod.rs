//! The conductor: from the map and what is seen of the groups to the next safe steps.
//!
//! Contract: [`conduct`] is a pure function, asked again and again. It keeps nothing between two calls: what must outlive it is an
//! operation's row in the map, written before the operation's first step; everything else is seen. So another member can
//! go on at any step, and it does not matter whether an action was lost, done twice or done late. [`stoppable`] says whether a
//! member may stop.
//!
//! What it is not: it does no IO (the shell gathers [`Observed`] and does [`Action`]s), and it leaves the meta group's own
//! configuration to whoever adds and removes members.

mod action;
mod align;
mod choose;
mod draft;
mod grow;
mod limits;
mod observed;
mod quota;
mod reshape;
mod stoppable;
mod upkeep;
mod view;

pub use action::{Action, CloseGuard, Pending, Plan, Step, Subject};
pub use limits::Limits;
pub use observed::{GroupSeen, MemberView, Observed, PeerSeen};
pub use stoppable::{Unstoppable, stoppable};

use crate::map::{KeyspaceState, Operation, OperationId, Work};
use crate::meta::MetaState;
use althing_raft::ids::Now;
use draft::Draft;

/// What to do now. `state` is the map as the meta group has it, `seen` what members say of themselves; either may be old.
pub fn conduct(state: &MetaState, seen: &Observed, now: Now, limits: &Limits) -> Plan {
    let mut draft = Draft::new(state, seen, now, limits);
    if state.version == 0 || seen.members.is_empty() {
        // No map yet, or nothing looked at: members that are not seen are not members that have left.
        return draft.finish();
    }
    draft.tend_members();
    for (id, operation) in &state.operations {
        draft.drive(*id, operation);
    }
    draft.choose();
    draft.tend_groups();
    draft.tend_leftovers();
    draft.tend_leaders();
    draft.tend_quotas();
    draft.finish()
}

impl Draft<'_> {
    /// The next step of an operation that is under way.
    fn drive(&mut self, id: OperationId, operation: &Operation) {
        // What is being dropped is taken down as a whole (`choose`).
        let keyspace = self.state.keyspaces.get(&operation.keyspace);
        let dropping = keyspace.is_some_and(|keyspace| keyspace.state == KeyspaceState::Dropping);
        if dropping || !self.has_room() {
            return;
        }
        match &operation.work {
            Work::Create { .. } => self.drive_create(id, operation),
            Work::Sequence { .. } => self.drive_sequence(id, operation),
            Work::Split { .. } => self.drive_split(id, operation),
            Work::Merge { .. } => self.drive_merge(id, operation),
            Work::Move { .. } => self.drive_move(id, operation),
        }
    }
}
