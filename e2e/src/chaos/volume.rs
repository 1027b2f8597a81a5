//! A small file system for each member, so that its disk can be full without anybody else's being so.
//!
//! The file systems live in a mount namespace of their own, which a process holds that does nothing else: whatever becomes of the
//! test, they go with it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::fault::Fill;
use crate::error::{Error, Result};
use crate::host;

/// Bytes of one volume: log segments and state of a run of some minutes, and in memory five times over.
const VOLUME_BYTES: u64 = 192 << 20;
/// At what free space members refuse writes; the default is two thirds of such a volume.
pub(super) const RESERVE_BYTES: u64 = 16 << 20;
/// The file that takes the space away.
const FILLER: &str = "filler";
/// Written at once; also how exactly a volume is filled.
const CHUNK: usize = 64 << 10;

/// The namespace with the volumes.
#[derive(Debug)]
pub(super) struct Volumes {
    holder: Child,
}

impl Drop for Volumes {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Whether this process may make them.
pub(super) fn available() -> bool {
    cfg!(target_os = "linux") && host::is_root()
}

impl Volumes {
    /// Mounts one on each of these folders.
    ///
    /// # Errors
    /// If that is not allowed here.
    pub(super) fn mount(folders: &[PathBuf]) -> Result<Self> {
        let script: String = folders
            .iter()
            .map(|folder| {
                format!(
                    "mount -t tmpfs -o size={VOLUME_BYTES} althing-chaos '{}' && ",
                    folder.display()
                )
            })
            .collect();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
            .args(["sh", "-c", &format!("{script} echo mounted && exec sleep infinity")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut holder = command.spawn().map_err(|source| Error::Start {
            program: "setpriv".to_owned(),
            source,
            hint: "install util-linux",
        })?;
        let mut word = [0; 7];
        let mut stdout = holder.stdout.take().expect("invariant: stdout was piped above");
        let volumes = Self { holder };
        stdout.read_exact(&mut word).map_err(|_| {
            Error::refused(
                "the volumes cannot be mounted",
                "run with --without-volumes, or as root of this machine",
            )
        })?;
        Ok(volumes)
    }

    /// A command that runs where the volumes are. The process keeps the number of the one that is started.
    pub(super) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command
    }

    /// The same folder, as it is seen from outside.
    pub(super) fn see(&self, folder: &Path) -> PathBuf {
        let inside = folder.strip_prefix("/").unwrap_or(folder);
        Path::new("/proc")
            .join(self.holder.id().to_string())
            .join("root")
            .join(inside)
    }

    /// Takes space away.
    ///
    /// # Errors
    /// If the filler cannot be made.
    pub(super) fn fill(&self, folder: &Path, fill: Fill) -> Result<()> {
        let folder = self.see(folder);
        let path = folder.join(FILLER);
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let chunk = [0; CHUNK];
        let free = match fill {
            Fill::Full => 0,
            Fill::BelowReserve => RESERVE_BYTES / 2,
        };
        while free == 0 || free_bytes(&folder)? > free {
            match filler.write(&chunk) {
                Ok(1..) => {}
                Ok(0) => break,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(Error::io("fill", &path)(error)),
            }
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// If the filler cannot be removed.
    pub(super) fn free(&self, folder: &Path) -> Result<()> {
        let path = self.see(folder).join(FILLER);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }
}

fn free_bytes(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).map_err(|errno| Error::io("look at", folder)(errno.into()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}
