//! One write-ahead log per node, shared by all its Raft groups: segmented, checksummed, with group commit.
//!
//! Contract: after [`Wal::sync`] returns `Ok`, everything appended before it survives any crash, and [`Wal::open`] gives it
//! back. What was appended but not synced survives as some prefix. Nothing else ever comes back: not a record after a
//! lost one, not one of a recycled file's earlier life. Durable bytes that changed make `open` fail rather than give back
//! a shorter log, because a member that forgets what it acknowledged breaks its cluster (pitfall P18).
//!
//! What it is not: it has no thread and no queue (the shell's writer thread drains its own, appends, syncs once and
//! completes all who waited), it does not read entries back while running (the Raft core keeps the live log in memory),
//! and it does not know what an entry means.
//!
//! Segments die from the oldest on, when no group has a live entry in them. What a slow group keeps alive in the oldest one is copied
//! to the end when most of the log is garbage, so the log stays below about twice what is live in it.
//!
//! A full volume is no failure: a segment is allocated and zero-filled before it is needed, a batch that would need more is refused
//! whole ([`WalError::NoSpace`]) and may be tried again. A failed write or sync is: see [`WalError::Failed`].

mod disk;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod record;
mod recover;
mod segment;
mod wal;

pub mod codec;
pub mod inspect;
pub mod sim_disk;

pub use disk::{Disk, File, StdDisk};
pub use error::WalError;
pub use recover::{Recovered, RecoveredGroup, TruncatedTail};
pub use wal::{GroupWrite, LAGGARD_SEGMENTS, Options, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SPARES_MAX, Wal, WalStats};
