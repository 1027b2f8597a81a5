//! Many Raft groups on one node: the pure host between their cores and the shell's threads.
//!
//! Contract: [`Host::poll`] takes the time and everything that happened since the last turn, and answers with
//! [`Effect`]s: what to write, send, apply, complete. One turn makes one write for all groups and one list of messages per
//! peer, whatever the number of requests in it. Every request that enters is answered exactly once: by an
//! [`Effect::Complete`], or by the apply of the entry that carries it ([`Work::Command`] with a waiter). Every queue has
//! a named bound.
//!
//! What it is not: it has no thread, socket, file or clock; it does not know what a command means (that is `althing-store`) nor
//! how consensus is reached (that is `althing-raft`).
//!
//! Beside the host: [`envelope`] names who proposed a command, [`frame`] is the peers' wire format, [`book`] knows where
//! members live.

mod beat_frame;
pub mod book;
pub mod conductor;
pub mod effect;
pub mod envelope;
mod fields;
pub mod frame;
pub mod host;
mod lease_frame;
pub mod map;
mod message_frame;
pub mod meta;
mod pending;
pub mod placement;
pub mod policy;
pub mod route;
pub mod sequencer;
pub mod txn;

pub use effect::{Done, Effect, Event, Item, Refusal, Ticket, Work, WriteToken};
pub use host::{GroupStart, Host, HostConfig};

/// What can go wrong in a host. All of it is fatal: the shell says it and ends the process, because going on could
/// make this member's state differ from its peers'.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A committed command cannot be understood.
    #[error("entry {index} of group {group} is committed and cannot be read: {source}; start a version that knows it")]
    Envelope {
        /// The group.
        group: althing_raft::ids::GroupId,
        /// The entry.
        index: althing_raft::ids::Index,
        /// Why not.
        source: envelope::EnvelopeError,
    },
}
