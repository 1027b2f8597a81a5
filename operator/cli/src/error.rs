//! What can go wrong, for a person: what failed, where, and what to do next.

use std::io;
use std::path::PathBuf;

/// An error of the program. Each says the next step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Neither a supervisor nor a kubeconfig.
    #[error(
        "there is nothing to talk to: no supervisor runs on {}, and there is no kubeconfig\n  \
         start clusters here with `althing up manifests/samples/quickstart.yaml`, name a folder with --dir, or point KUBECONFIG at a Kubernetes",
        dir.display()
    )]
    NoTarget {
        /// The folder that was looked at.
        dir: PathBuf,
    },
    /// A local command without a supervisor.
    #[error(
        "no supervisor runs on {}\n  start it in another terminal with `althing up`{}", dir.display(),
        if *.has_clusters { " (the folder's clusters and their data are still there)" } else { " FILE" }
    )]
    NoSupervisor {
        /// The folder.
        dir: PathBuf,
        /// Whether there is something to go on with.
        has_clusters: bool,
    },
    /// A second supervisor on one folder.
    #[error(
        "a supervisor already runs on {}{}\n  change its clusters with `althing apply -f FILE`, stop it with `althing down`, or use another --dir",
        dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    AlreadySupervised {
        /// The folder.
        dir: PathBuf,
        /// Who holds the lock, if it could be read.
        pid: Option<u32>,
    },
    /// Nothing to run.
    #[error(
        "there is nothing to run: no file was given and {} holds no cluster\n  try `althing up manifests/samples/quickstart.yaml`", dir.display()
    )]
    NothingToRun {
        /// The folder.
        dir: PathBuf,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// "read", "write", ...
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that we wrote ourselves does not read back.
    #[error("{} is damaged: {message}\n  move it away to start afresh; what is lost: {lost}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
        /// What the person gives up by removing it.
        lost: &'static str,
    },
    /// YAML that cannot be taken; every complaint on a line of its own.
    #[error("{}", complaints.join("\n"))]
    Manifest {
        /// Each names its file, document and field.
        complaints: Vec<String>,
    },
    /// The socket's path is longer than the system takes.
    #[error(
        "the path of the control socket is too long for this system ({} bytes, at most {max}): {}\n  use a shorter --dir",
        path.as_os_str().len(), path.display()
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// No node program.
    #[error("{0}")]
    NodeBinary(String),
    /// The supervisor refused or could not be reached.
    #[error("{0}")]
    Supervisor(String),
    /// A node refused or could not be reached.
    #[error(transparent)]
    Node(#[from] althing_admin::client::AdminError),
    /// Kubernetes refused or could not be reached.
    #[error("{what}: {message}{hint}")]
    Kube {
        /// What was tried.
        what: String,
        /// Why not, in the API server's words.
        message: String,
        /// What to do.
        hint: &'static str,
    },
    /// The kubeconfig is not usable.
    #[error(
        "cannot use the kubeconfig: {0}\n  check KUBECONFIG and --context (`kubectl config get-contexts` lists them)"
    )]
    Kubeconfig(String),
    /// `up` in Kubernetes.
    #[error(
        "`up` runs clusters on this machine\n  for Kubernetes: althing --kube apply -f FILE, with the operator installed (helm install althing charts/althing)"
    )]
    UpInKubernetes,
    /// No such object.
    #[error(
        "there is no {kind} {namespace}/{name} {place}\n  `althing get -A` lists what is there; -n names another namespace"
    )]
    NotFound {
        /// RaftCluster or ShardLayout.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// "on this machine", "in Kubernetes".
        place: &'static str,
    },
    /// No ports left.
    #[error(
        "found no three free ports in a row for {member} from {first} on\n  stop what occupies them, or start the search elsewhere with --first-port"
    )]
    NoPorts {
        /// For whom.
        member: String,
        /// Where the search began.
        first: u16,
    },
    /// More clusters than one supervisor takes.
    #[error(
        "one supervisor runs at most {max} clusters; this would be one more\n  use another --dir for it, or delete one"
    )]
    TooManyClusters {
        /// The bound.
        max: usize,
    },
    /// Something was to be printed and standard output is gone or refuses.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

impl Error {
    /// A file error, with its path.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { what, path, source }
    }
}
