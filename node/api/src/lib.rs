//! The etcd v3 gRPC interface over a [`keyspace::Keyspace`].
//!
//! Requests are parsed at this edge ([`parse`]: etcd's checks, in etcd's order), handed to the keyspace as
//! operations, and its results and refusals are put back on the wire exactly as etcd words them ([`render`],
//! [`errors`]). [`server::server`] puts the services on one HTTP port.
//!
//! What this crate is not: it knows no consensus, no storage and no clock but the one that measures requests; it
//! retries nothing and keeps nothing between requests. Watches, leases, authentication and the JSON gateway are not
//! here yet: their services are not registered, and clients get `Unimplemented`.

mod door;
pub mod errors;
mod gather;
pub mod health;
pub mod keyspace;
mod observe;
mod overlap;
pub mod parse;
pub mod pb;
pub mod render;
pub mod server;
mod services;
mod unary;

pub use door::{Directory, Door, DoorKeeper};
pub use gather::settle;
pub use observe::Observer;
pub use server::{ClientServer, Limits, serve, server};
