//! How Althing is checked: histories of client operations, a linearizability checker for them, and a
//! deterministic simulator that produces such histories from the production Raft core under faults.
//!
//! Contract: nothing here reads a clock, draws entropy or does IO of its own. Times are nanoseconds that
//! the caller passes in; randomness comes from seeds. The same seed gives the same run, bit for bit.
//!
//! Not here: faults against real processes or a real Kubernetes. The `e2e` crate makes those; it records
//! a [`History`] and hands it to [`lin::check`], so that one checker judges both worlds.

pub mod herd;
pub mod history;
mod instant;
pub mod lin;
pub mod mutant;
pub mod profile;
pub mod rng;
mod run;
mod shards;
mod shrink;
pub mod spread;
mod world;

pub use althing_raft::mark::Mark;
pub use history::{CallId, ClientId, Event, History, Op, Outcome, Recorder, Reply, Seen};
pub use mutant::Mutant;
pub use profile::Profile;
pub use run::{Report, Run, repeat, run};
pub use shrink::shrink;
pub use world::{Case, Counts};

/// What can go wrong while handling histories. A violated invariant is a verdict, not an error.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A line of a recorded history is not an event.
    #[error("history line {line}: {source}; each line must be one event as `History::write_json_lines` prints it")]
    HistoryLine {
        /// Line number, from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is no case.
    #[error("this is no case: {0}; a case is what `--shrink` writes")]
    Case(serde_json::Error),
    /// The history could not be read or written.
    #[error("history: {0}; check the path and the free space")]
    Io(#[from] std::io::Error),
}
