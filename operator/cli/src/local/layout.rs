//! Names of the things in a supervisor's folder. Pure.
//!
//! ```text
//! <dir>/supervisor.lock           held by the supervisor
//! <dir>/control.sock              where the other commands talk to it
//! <dir>/ports.json                who has which ports
//! <dir>/<namespace>/<cluster>/
//!     desired.yaml                what was applied
//!     status.json                 what was recorded: the cluster id, the last status
//!     members/<ordinal>/
//!         process.json            there is a process, or there shall be one; its pid and start time
//!         log                     its standard output and error
//!         volume/                 its data
//!         volume.doomed           its data is being deleted
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use althing_plan::model::Ordinal;

/// A cluster of a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ClusterKey {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
}

impl ClusterKey {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ClusterKey {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A member of a cluster of a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct MemberKey {
    /// The cluster.
    pub(crate) cluster: ClusterKey,
    /// Which of its members.
    pub(crate) ordinal: Ordinal,
}

impl MemberKey {
    /// `<cluster>-<ordinal>`: the name a node goes by.
    pub(crate) fn node_name(&self) -> String {
        format!("{}-{}", self.cluster.name, self.ordinal)
    }
}

impl fmt::Display for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.ordinal)
    }
}

/// A supervisor's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Layout { dir: dir.into() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    pub(crate) fn ports(&self) -> PathBuf {
        self.dir.join("ports.json")
    }

    pub(crate) fn cluster(&self, key: &ClusterKey) -> PathBuf {
        self.dir.join(&key.namespace).join(&key.name)
    }

    pub(crate) fn desired(&self, key: &ClusterKey) -> PathBuf {
        self.cluster(key).join("desired.yaml")
    }

    pub(crate) fn status(&self, key: &ClusterKey) -> PathBuf {
        self.cluster(key).join("status.json")
    }

    pub(crate) fn members(&self, key: &ClusterKey) -> PathBuf {
        self.cluster(key).join("members")
    }

    pub(crate) fn member(&self, key: &MemberKey) -> PathBuf {
        self.members(&key.cluster).join(key.ordinal.to_string())
    }

    pub(crate) fn volume(&self, key: &MemberKey) -> PathBuf {
        self.member(key).join("volume")
    }

    pub(crate) fn doomed(&self, key: &MemberKey) -> PathBuf {
        self.member(key).join("volume.doomed")
    }

    pub(crate) fn log(&self, key: &MemberKey) -> PathBuf {
        self.member(key).join("log")
    }

    pub(crate) fn process(&self, key: &MemberKey) -> PathBuf {
        self.member(key).join("process.json")
    }
}
