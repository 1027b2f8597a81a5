//! The node's own threads: sockets and host, log writer, state machine, checkpointer. Each has one inbox and does one thing;
//! everything that waits for the disk waits in a thread of its own and not among the sockets.

pub mod apply;
pub mod checkpoint;
pub mod host;
pub mod machine;
pub mod net;
pub mod wal;

/// Ends the process. What is durable after a failed write is unknown (pitfall P19), and state that cannot be applied
/// must not be skipped: the only safe way on is a restart from what the disk holds.
pub fn die(what: &str, error: &dyn std::error::Error) -> ! {
    tracing::error!(%error, "{what}; the process ends, its durable state is intact");
    // Not a panic: nothing may catch it.
    std::process::abort();
}

/// A node without one of its threads would hang instead of failing over. Held by each of them.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
