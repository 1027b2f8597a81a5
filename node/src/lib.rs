//! The node's shell: settings, files, sockets, threads, telemetry. It moves bytes between the pure rooms and the world.
//!
//! Contract: [`node::Node::start`] gives a running member and [`node::Node::shutdown`] ends it in order. After any other end (kill -9, a
//! failed disk, a panic of one of its threads) the next start goes on from what was durable.
//!
//! What it is not: it decides nothing about consensus (`althing-raft`), groups (`althing-shard`), keys (`althing-store`) or
//! etcd's wire format (`althing-api`).
// This is the shell: it reads clocks so that nothing below has to.
#![allow(clippy::disallowed_methods, reason = "clocks and randomness enter the program here")]

pub mod admin;
pub mod ask;
pub mod atlas;
pub mod calls;
mod clients;
pub mod clock;
pub mod conductor;
pub mod config;
pub mod control;
pub mod desk;
mod endpoints;
pub mod identity;
pub mod inbox;
pub mod inspect;
pub mod keyspace;
mod lane;
pub mod lifecycle;
mod listener;
pub mod local;
pub mod members;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod patience;
pub mod peers;
pub mod reach;
pub mod ready;
pub mod recover;
pub mod sequencers;
pub mod shard_labels;
pub mod shared;
pub mod snapshot;
pub mod space;
pub mod spread;
pub mod stamps;
pub mod telemetry;
pub mod threads;
pub mod volume;
pub mod waiters;
pub mod wire;
