//! What can go wrong with the state machine's storage.

use crate::codec::CodecError;
use althing_raft::ids::{GroupId, Index, LogPosition};
use std::io;
use std::path::PathBuf;

/// Why the store could not do what it was asked. Not one of these is a client's fault: those are `ops::OpError`.
///
/// After any error of a write the process should end: the WAL rebuilds whatever was lost.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// sled refused.
    #[error(
        "the store at {path} cannot {action}: {source}; if it stays so, stop the node, move that directory away and start again"
    )]
    Engine {
        /// What was being done.
        action: &'static str,
        /// The store's directory.
        path: PathBuf,
        /// Why not.
        source: sled::Error,
    },
    /// sled panicked. Nothing it says afterwards can be trusted, so every later call fails too.
    #[error(
        "the store at {path} panicked while it tried to {action}: {message}; restart the process, it will rebuild from the log"
    )]
    Panicked {
        /// What was being done.
        action: &'static str,
        /// The store's directory.
        path: PathBuf,
        /// The panic's message.
        message: String,
    },
    /// Another process has the store open.
    #[error("{dir} is in use by another process; stop that one first")]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// Another version wrote it.
    #[error("{file} says {found:?}, which this build cannot read; start the version that wrote it")]
    Version {
        /// The marker file.
        file: PathBuf,
        /// What it says.
        found: String,
    },
    /// What the store holds contradicts itself.
    #[error("group {group}: {what}; the state must be rebuilt from a snapshot and the log")]
    Corrupt {
        /// The group.
        group: GroupId,
        /// What was found.
        what: String,
    },
    /// A row does not parse.
    #[error("group {group}: {what} is unreadable: {source}")]
    Unreadable {
        /// The group.
        group: GroupId,
        /// Which row or chunk.
        what: &'static str,
        /// Why.
        source: CodecError,
    },
    /// The caller applied something else than the next entries.
    #[error("group {group}: applying up to entry {found} although {expected} comes next")]
    OutOfOrder {
        /// The group.
        group: GroupId,
        /// Last index that the items lead to.
        expected: Index,
        /// What the caller said.
        found: Index,
    },
    /// A defragmentation came to nothing. The store is what it was.
    #[error("the store at {path} was not defragmented: {what}; nothing has changed, try again later")]
    Defragment {
        /// The store's directory.
        path: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// The group was born already.
    #[error("group {group} is bootstrapped already")]
    Bootstrapped {
        /// The group.
        group: GroupId,
    },
    /// A neighbour is to join whose state is not here as it must be.
    #[error(
        "group {group}: group {from} is to join, and is not here sealed and applied up to entry {}; ask the leader for a snapshot", position.index
    )]
    Neighbour {
        /// The group.
        group: GroupId,
        /// The neighbour.
        from: GroupId,
        /// What must be applied of its log.
        position: LogPosition,
    },
    /// A snapshot's chunks are damaged, out of order or incomplete. The present state is untouched.
    #[error("group {group}: snapshot refused: {what}; ask the leader for a new one")]
    Snapshot {
        /// The group.
        group: GroupId,
        /// What was wrong.
        what: String,
    },
}

impl StoreError {
    /// Whether sled's own lock on its file is still held. Ours keeps other processes away, so it is a database of this process that is
    /// still closing.
    #[must_use]
    pub(crate) fn is_still_closing(&self) -> bool {
        // sled wraps the operating system's error into a text.
        matches!(
            self,
            Self::Engine { source: sled::Error::Io(source), .. } if source.to_string().contains("could not acquire lock")
        )
    }

    /// Whether what the store holds is damaged, so that moving it away and rebuilding it helps. Against a full disk or missing
    /// permissions it does not.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Engine {
                source: sled::Error::Io(source),
                ..
            } => {
                !self.is_still_closing()
                    && (source.raw_os_error().is_none() || source.kind() == io::ErrorKind::NotFound)
            }
            Self::Engine { .. } | Self::Panicked { .. } | Self::Corrupt { .. } | Self::Unreadable { .. } => true,
            Self::Io { .. }
            | Self::Locked { .. }
            | Self::Version { .. }
            | Self::OutOfOrder { .. }
            | Self::Defragment { .. }
            | Self::Bootstrapped { .. }
            | Self::Neighbour { .. }
            | Self::Snapshot { .. } => false,
        }
    }

    /// Whether the volume is full: time to stop writing and raise an alarm.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. }
            | Self::Engine {
                source: sled::Error::Io(source),
                ..
            } => source.kind() == io::ErrorKind::StorageFull,
            Self::Engine { .. }
            | Self::Panicked { .. }
            | Self::Locked { .. }
            | Self::Version { .. }
            | Self::Corrupt { .. }
            | Self::Unreadable { .. }
            | Self::OutOfOrder { .. }
            | Self::Defragment { .. }
            | Self::Bootstrapped { .. }
            | Self::Neighbour { .. }
            | Self::Snapshot { .. } => false,
        }
    }
}
