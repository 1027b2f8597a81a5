//! What can go wrong with a log.

use althing_raft::ids::GroupId;
use std::io;
use std::path::PathBuf;

/// Why the log could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
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
    /// Durable bytes changed or vanished.
    #[error(
        "{file}, byte {offset}: {what}. Records that were durable are damaged, so this member could break promises that it made. \
         Do not repair the log by hand: remove the member from its cluster and let it join again with an empty volume"
    )]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// The log was written by another version.
    #[error(
        "{file} has log format version {found} and this build reads version {supported}; start the version that wrote it"
    )]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// What this build reads.
        supported: u32,
    },
    /// Another process has the log open.
    #[error("{dir} is in use by another process; stop that one first")]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// An earlier write or sync failed, so what is durable is unknown (pitfall P19). The process must end.
    #[error("the log failed before and takes no more writes: {first}; restart the process")]
    Failed {
        /// The first failure.
        first: String,
    },
    /// The caller broke the contract; nothing was written.
    #[error("write to group {group} refused: {what}")]
    Misuse {
        /// The group.
        group: GroupId,
        /// What was wrong.
        what: String,
    },
    /// One entry is larger than a segment can hold; nothing was written.
    #[error(
        "an entry of group {group} takes {bytes} bytes and a segment holds {limit}; raise the segment size or lower the entry limit"
    )]
    TooLarge {
        /// The group.
        group: GroupId,
        /// Bytes of its record.
        bytes: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// Every segment begins with the states of all groups, and so many would leave too little of it; nothing was written.
    #[error("{groups} groups are too many for segments of {bytes} bytes, which hold {limit}; raise the segment size")]
    TooManyGroups {
        /// Groups that there would be.
        groups: usize,
        /// As many as may be.
        limit: usize,
        /// Bytes of a segment.
        bytes: u64,
    },
    /// The volume is full. Nothing was written, and the same call may be tried again.
    #[error("{dir} has no room for the log's next {bytes} bytes; free some space on the volume, and writing goes on")]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
        /// Bytes of a segment.
        bytes: u64,
    },
    /// The options make no sense.
    #[error("segments of {bytes} bytes are not possible: use {min} to {max}")]
    SegmentSize {
        /// What was asked for.
        bytes: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
}

impl WalError {
    /// Whether the volume is full, and nothing else is wrong.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => is_full(source),
            Self::Corrupt { .. }
            | Self::Version { .. }
            | Self::Locked { .. }
            | Self::Failed { .. }
            | Self::Misuse { .. }
            | Self::TooLarge { .. }
            | Self::TooManyGroups { .. }
            | Self::SegmentSize { .. } => false,
        }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
