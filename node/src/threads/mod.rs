//! The node's own threads: host, log writer, state machine, checkpointer. Each has one inbox and does one thing; everything
//! that waits for the disk waits here and not in tokio.

pub mod apply;
pub mod checkpoint;
pub mod host;
pub mod wal;

/// Ends the process. What is durable after a failed write is unknown (pitfall P19), and state that cannot be applied
/// must not be skipped: the only safe way on is a restart from what the disk holds.
pub fn die(what: &str, error: &dyn std::error::Error) -> ! {
    tracing::error!(%error, "{what}; the process ends, its durable state is intact");
    // Not a panic: nothing may catch it.
    std::process::abort();
}
