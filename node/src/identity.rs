//! Whose volume this is.
//!
//! A member id is drawn at a volume's first boot and never changes (pitfall P30): a wiped volume comes back as another member.
//! The cluster's id is added once, at bootstrap or when a leader first calls.

use althing_raft::ids::MemberId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Version of the volume's layout that this build writes.
const FORMAT_VERSION: u32 = 1;

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two processes, one volume.
    #[error("{0} is in use by another process; a volume belongs to one member, stop the other process first")]
    Locked(PathBuf),
    /// Not ours, or damaged.
    #[error("{path} is not an identity: {source}; restore it, or remove the member and start it with an empty volume")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error("{path} has volume format {found} and this build reads {FORMAT_VERSION}; start the version that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The volume of another member.
    #[error(
        "this volume belongs to {stored:?} and the node is started as {given:?}; attach the right volume or give the right name"
    )]
    OtherName {
        /// Who owns the volume.
        stored: String,
        /// As whom the node was started.
        given: String,
    },
    /// No randomness for a new id.
    #[error("cannot draw a member id: {0}")]
    Random(getrandom::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    format_version: u32,
    name: String,
    member_id: String,
    cluster_id: Option<String>,
}

/// A locked volume with its identity. The lock ends with this value or with the process.
#[derive(Debug)]
pub struct Identity {
    path: PathBuf,
    name: String,
    member: MemberId,
    cluster: Option<u64>,
    _lock: File,
}

impl Identity {
    /// Locks the directory and reads its identity, or draws one if it has none.
    ///
    /// # Errors
    /// If somebody else has the volume, it is another member's, or the disk refuses.
    pub fn open(dir: &Path, name: &str) -> Result<Self, IdentityError> {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let lock_path = dir.join("LOCK");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => IdentityError::Locked(dir.to_owned()),
            fs::TryLockError::Error(source) => failed("lock", &lock_path)(source),
        })?;
        let path = dir.join("identity.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let (stored, member, cluster) = parse(&path, &bytes)?;
                if stored != name {
                    return Err(IdentityError::OtherName {
                        stored,
                        given: name.to_owned(),
                    });
                }
                Ok(Self {
                    path,
                    name: stored,
                    member,
                    cluster,
                    _lock: lock,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // 0 means "no member" in etcd's API.
                let member = MemberId(draw()?.max(1));
                let identity = Self {
                    path,
                    name: name.to_owned(),
                    member,
                    cluster: None,
                    _lock: lock,
                };
                identity.write()?;
                Ok(identity)
            }
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Reads the name, member and cluster of a volume, without a lock and without changing anything; `None` if it has none.
    ///
    /// # Errors
    /// If it is damaged or of another version, or the disk refuses.
    pub fn peek(dir: &Path) -> Result<Option<(String, MemberId, Option<u64>)>, IdentityError> {
        let path = dir.join("identity.json");
        match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// The member.
    #[must_use]
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// The cluster, once it is known.
    #[must_use]
    pub fn cluster(&self) -> Option<u64> {
        self.cluster
    }

    /// Stores the cluster, durably.
    ///
    /// # Errors
    /// If the disk refuses; the cluster is not set then.
    ///
    /// # Panics
    /// If the volume belongs to another cluster already.
    pub fn join(&mut self, cluster: u64) -> Result<(), IdentityError> {
        assert!(
            self.cluster.is_none_or(|present| present == cluster),
            "invariant: a volume never changes its cluster"
        );
        let before = self.cluster.replace(cluster);
        self.write().inspect_err(|_| self.cluster = before)
    }

    fn write(&self) -> Result<(), IdentityError> {
        let stored = Stored {
            format_version: FORMAT_VERSION,
            name: self.name.clone(),
            member_id: self.member.to_string(),
            cluster_id: self.cluster.map(|cluster| format!("{cluster:016x}")),
        };
        let text = serde_json::to_vec_pretty(&stored).expect("invariant: strings and numbers always serialise");
        let aside = self.path.with_extension("json.new");
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&aside, &self.path)?;
            File::open(self.path.parent().expect("invariant: the file lies in the volume"))?.sync_all()
        };
        write().map_err(failed("write", &self.path))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(String, MemberId, Option<u64>), IdentityError> {
    let unreadable = |source| IdentityError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let stored: Stored = serde_json::from_slice(bytes).map_err(unreadable)?;
    if stored.format_version != FORMAT_VERSION {
        return Err(IdentityError::Version {
            path: path.to_owned(),
            found: stored.format_version,
        });
    }
    let bad = |what: std::num::ParseIntError| unreadable(serde::de::Error::custom(what));
    let member = stored.member_id.parse().map_err(bad)?;
    let cluster = stored
        .cluster_id
        .map(|id| u64::from_str_radix(&id, 16))
        .transpose()
        .map_err(bad)?;
    Ok((stored.name, member, cluster))
}

/// A random number from the operating system.
///
/// # Errors
/// If it has none to give.
pub fn draw() -> Result<u64, IdentityError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(IdentityError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_its_member_and_cluster_and_refuses_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::open(dir.path(), "a-0").unwrap();
        let member = first.member();
        first.join(7).unwrap();
        drop(first);
        let again = Identity::open(dir.path(), "a-0").unwrap();
        assert_eq!((again.member(), again.cluster()), (member, Some(7)));
        drop(again);
        let error = Identity::open(dir.path(), "a-1").unwrap_err();
        assert!(matches!(error, IdentityError::OtherName { .. }), "{error}");
    }

    #[test]
    fn two_processes_cannot_share_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Identity::open(dir.path(), "a-0").unwrap();
        let error = Identity::open(dir.path(), "a-0").unwrap_err();
        assert!(matches!(error, IdentityError::Locked(_)), "{error}");
    }

    #[test]
    fn a_damaged_or_newer_identity_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            Identity::open(dir.path(), "a-0").unwrap_err(),
            IdentityError::Unreadable { .. }
        ));
        fs::write(
            &path,
            r#"{"formatVersion":2,"name":"a-0","memberId":"1","clusterId":null}"#,
        )
        .unwrap();
        assert!(matches!(
            Identity::open(dir.path(), "a-0").unwrap_err(),
            IdentityError::Version { found: 2, .. }
        ));
    }
}
