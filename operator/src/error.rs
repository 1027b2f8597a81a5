//! What can go wrong in the shell, and what follows from it.

use althing_crds::InvalidResource;

use crate::admin::AdminError;

/// Why a reconciliation ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The resource breaks its own rules; only a new spec helps.
    #[error(transparent)]
    Invalid(#[from] InvalidResource),
    /// The API server refused or did not answer.
    #[error("cannot {doing}: {source}")]
    Kube {
        /// What was attempted, as a clause: "create pod orders-0".
        doing: String,
        /// Cause.
        source: Box<kube::Error>,
    },
    /// A node refused or did not answer.
    #[error("cannot {doing}: {source}")]
    Node {
        /// What was attempted.
        doing: String,
        /// Cause.
        source: AdminError,
    },
    /// The plan relied on something that is not there any more; observing again cures it.
    #[error("{0}")]
    Stale(String),
    /// No random numbers.
    #[error("cannot draw a cluster id: {0}; the kernel's random source is needed")]
    Random(getrandom::Error),
    /// The custom resource is of a shape that this operator does not know.
    #[error("{kind} {name} cannot be read: {message}; are the installed definitions of this operator's version?")]
    Unreadable {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
        /// Cause.
        message: String,
    },
}

/// What to do after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cure {
    /// A person must edit the resource; the watch will tell.
    Edit,
    /// Somebody else was faster: look again at once.
    LookAgain,
    /// Try again, less and less often.
    Retry,
}

impl Error {
    /// Names the attempt that a call to the API server was.
    pub(crate) fn kube(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Kube {
            doing,
            source: Box::new(source),
        }
    }

    /// One word for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Kube { .. } => "kube",
            Self::Node { .. } => "node",
            Self::Stale(_) => "stale",
            Self::Random(_) => "random",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// What to do about it.
    pub(crate) fn cure(&self) -> Cure {
        match self {
            Self::Invalid(_) | Self::Unreadable { .. } => Cure::Edit,
            Self::Stale(_) => Cure::LookAgain,
            Self::Kube { source, .. } if is_conflict(source) => Cure::LookAgain,
            Self::Node { source, .. } if source.passes() => Cure::LookAgain,
            Self::Kube { .. } | Self::Node { .. } | Self::Random(_) => Cure::Retry,
        }
    }
}

/// HTTP 409: the object has changed since it was read, or exists already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// HTTP 404.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "kube's error is open; only its API statuses matter here"
)]
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
