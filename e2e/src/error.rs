//! What can go wrong between a test and the machine it runs on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A failure of the bed, its tools or its host: what failed, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: "read", "create" ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program is not installed or cannot be started.
    #[error("cannot start `{program}`: {source}; {hint}")]
    Start {
        /// The program's name.
        program: String,
        /// What the system said.
        source: io::Error,
        /// Where it is to be had.
        hint: &'static str,
    },
    /// A program ran and said no.
    #[error("`{command}` failed with {status}:\n{output}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Exit code or signal.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A condition did not come true in time.
    #[error("{what}: not so after {} s; last seen: {last}", limit.as_secs())]
    Timeout {
        /// The condition that was waited for.
        what: String,
        /// How long it was given.
        limit: Duration,
        /// What the last look showed.
        last: String,
    },
    /// A process of the bed ended although it was to stay.
    #[error("{name} ended; the last lines of {}:\n{tail}", log.display())]
    Died {
        /// The process.
        name: String,
        /// Its log.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
    /// The host cannot or should not do this.
    #[error("{what}; {remedy}")]
    Refused {
        /// What is in the way.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A document does not have the expected shape.
    #[error("{what} is not what was expected: {source}")]
    Json {
        /// The document.
        what: String,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}: {source}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on file operations: names the verb and the path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// A refusal and its remedy.
    pub fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
