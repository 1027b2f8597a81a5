//! The conductor: from the map and what is seen of the groups to the next safe steps.
//!
//! Contract: [`Action`] says what the shell may be asked for, [`Observed`] what it must look at.
//!
//! What it is not: it does no IO and keeps no memory. Whatever must outlive it is a row of the map.

mod action;
mod limits;
mod observed;

pub use action::{Action, CloseGuard, Pending, Plan, Step, Subject};
pub use limits::Limits;
pub use observed::{GroupSeen, MemberView, Observed, PeerSeen};
