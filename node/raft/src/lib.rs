//! Sans-IO Raft core of one group, and the vocabulary that the other rooms share.
//!
//! # Contract
//! [`Raft::step`] takes an [`io::Input`] and the time, and returns an [`io::Output`]: what to write, send, apply, answer. It
//! reads no clock, draws no randomness of its own and does no IO, so the same source runs in production, in the
//! simulator and in a browser. The behavioural reference is etcd's raft; the papers are Ongaro and Ousterhout's
//! "In Search of an Understandable Consensus Algorithm" and Ongaro's thesis.
//!
//! # The shell's duties
//! 1. Write every [`io::Persist`] in order, make it durable, then say [`io::Input::Persisted`]. Writes may be batched and a later
//!    number covers the earlier ones. On a write error: stop the process, never retry.
//! 2. Send [`io::Output::messages`] whenever; losing, repeating and reordering them is allowed, but for
//!    [`message::Body::Forward`], which must arrive at most once. What must wait for a write has been held back already.
//! 3. Apply [`io::Output::apply`] in order, and say [`io::Input::Applied`]. A read of [`io::Output::reads`] may be served once that index is
//!    applied.
//! 4. Say [`io::Input::Tick`] when [`io::Output::next_deadline`] comes; a late tick is harmless, a missing one stops elections.
//! 5. Where groups may hibernate ([`io::Config::hibernate_after`]): watch the nodes of their members, and say [`io::Input::Silent`] of each
//!    that shows no sign of life for an election timeout, or that is started anew, and [`io::Input::Returned`] when it does again.
//! 6. [`io::Config::seed`] differs from boot to boot: it also makes read tokens unique.
//!
//! # What is absent
//! Ticks (deadlines instead), many groups (`althing-shard`), the log's disk format (`althing-wal`), and what keys and values
//! mean: of keys the core knows only which ones a command or a read touches ([`io::Config::footprint`]).

mod config;
mod election;
pub mod entry;
mod gate;
mod hibernate;
pub mod ids;
pub mod io;
mod lease;
mod log;
pub mod mark;
mod membership;
pub mod message;
mod mint;
pub mod mutant;
mod progress;
mod raft;
mod read;
mod replication;
mod rng;
pub mod roster;
pub mod spec_codec;
mod touched;

pub use membership::PROMOTE_LAG_MAX;
pub use raft::Raft;
