//! The seam to a disk, and the real one.
//!
//! Narrow on purpose: what a log needs and what a simulator can model with crash semantics. Implementations
//! promise no more than POSIX does: a write is durable after `sync_data` on its file, a name after `sync_dir` on
//! its directory, and before that any part of it may be lost or kept.

use std::fs;
use std::io;
use std::path::Path;

/// A place for files. Paths are whole paths, not relative to anything here.
pub trait Disk: Send + Sync {
    /// Creates the directory and its parents, durably.
    ///
    /// # Errors
    /// As the operating system has them.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names of the files in a directory, in no order.
    ///
    /// # Errors
    /// As the operating system has them.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens for reading and writing; `create` makes an empty file, replacing a present one.
    ///
    /// # Errors
    /// As the operating system has them.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>>;

    /// Renames, replacing the target.
    ///
    /// # Errors
    /// As the operating system has them.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system has them.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in the directory durable.
    ///
    /// # Errors
    /// As the operating system has them.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes a lock that ends with the returned guard or the process, so that two processes never share a log.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send>>;
}

/// An open file. Reads and writes go to positions; there is no cursor.
pub trait File: Send {
    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system has them.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// As the operating system has them.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, and what the operating system has.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, growing the file if needed.
    ///
    /// # Errors
    /// As the operating system has them; some of it may then have been written.
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable, with the metadata needed to read it (fdatasync).
    ///
    /// # Errors
    /// As the operating system has them. What is durable is then unknown, and a later success means nothing
    /// (pitfall P19).
    fn sync_data(&mut self) -> io::Result<()>;
}

/// The machine's own disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdDisk;

impl Disk for StdDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir(parent)?;
        }
        fs::create_dir(dir)?;
        parent.map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is none of ours.
        fs::read_dir(dir)?
            .filter_map(|item| item.map(|item| item.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .open(path)?;
        Ok(Box::new(StdFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        Ok(Box::new(file))
    }
}

struct StdFile(fs::File);

impl File for StdFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, buf, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
