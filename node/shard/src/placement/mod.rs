//! Where replicas should be.
//!
//! Contract: [`Placement::desired`] says where one shard's replicas should be, given where they are: in as many zones as there are,
//! then on as many machines, then where there are few, and among equals where the rendezvous hash says. It moves nothing that
//! need not move: a member that comes changes nothing by itself, one that goes changes only what it held. [`Placement::relief`]
//! then evens out what members hold, one replica at a time.
//!
//! What it is not: it does not know how replicas get there (that is `crate::conductor`), and it weighs replicas by number, not by
//! bytes.

mod balance;
mod rendezvous;
mod site;

pub use balance::Relief;
pub use rendezvous::score;
pub use site::{Fault, Placement, Site};
