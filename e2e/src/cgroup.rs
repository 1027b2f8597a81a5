//! A control group for each machine of the bed, so that its containers are found and cleared away together.
//!
//! Works on cgroup v2 (one hierarchy) and v1 (one per controller). runc puts a container whose path is relative below
//! its caller's group on v1 and beside it on v2; either way it ends up below the bed's group.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::wait_until;
use crate::error::{Error, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// The group that all beds' groups live in.
const PARENT: &str = "althing";

/// How long killed processes may linger.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// A group of this name in every hierarchy of the host.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Creates the group of machine `machine` of bed `bed`.
    ///
    /// # Errors
    /// If the kernel refuses, as it does to anyone but root.
    pub(crate) fn create(bed: &str, machine: &str) -> Result<Self> {
        let mut folders = Vec::new();
        for hierarchy in hierarchies() {
            let mut folder = hierarchy;
            for name in [PARENT, bed, machine] {
                let parent = folder.clone();
                folder = parent.join(name);
                fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
                inherit_cpuset(&parent, &folder)?;
            }
            folders.push(folder);
        }
        Ok(Self { folders })
    }

    /// The files that a process writes its pid into to become a member.
    pub(crate) fn doors(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.folders.iter().map(|folder| folder.join("cgroup.procs"))
    }

    /// Its path below each hierarchy's root.
    pub(crate) fn path(bed: &str, machine: &str) -> String {
        format!("/{PARENT}/{bed}/{machine}")
    }

    /// Removes everything of bed `bed`; its processes must be gone.
    ///
    /// # Errors
    /// If a group still has members after a while.
    pub(crate) fn remove(bed: &str) -> Result<()> {
        for hierarchy in hierarchies() {
            let parent = hierarchy.join(PARENT);
            let folder = parent.join(bed);
            // The programs that led into the machines' namespaces end a moment after what they led in.
            wait_until(&format!("{} is empty", folder.display()), EMPTY_LIMIT, || {
                remove_tree(&folder).map_err(|error| error.to_string())
            })?;
            // Fails while another bed has groups here, which is why it is not an error.
            drop(fs::remove_dir(&parent));
        }
        Ok(())
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(MOUNT);
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let Ok(entries) = fs::read_dir(&root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// cgroup v1 lets nobody into a cpuset without processors and memory nodes, and starts every new one empty.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), child.join(name));
        let is_v1 = !parent.join("cgroup.controllers").exists();
        if is_v1 && from.exists() && fs::read_to_string(&to).is_ok_and(|value| value.trim().is_empty()) {
            let value = fs::read_to_string(&from).map_err(Error::io("read", &from))?;
            fs::write(&to, value).map_err(Error::io("write", &to))?;
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder).map_err(Error::io("remove", folder))
}
