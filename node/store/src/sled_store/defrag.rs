//! Rule 8: a fresh copy of what is live, while everything goes on.
//!
//! Rows are copied page by page. Each page is read and written while no batch is applied, and batches between pages go to both databases, so
//! whatever lies before the cursor is equal in both. At the end the copy is flushed, every file and directory of it is
//! synced, and the marker is replaced by one rename: a crash before it leaves the old database, one after it the new one, and the
//! next open deletes the other. Readers keep the database that they began with.

use super::{Database, Inner, SLED_DIR, SledOptions, SledStore, guard, io_error, open_sled, remove_dir, sync_tree};
use crate::error::StoreError;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, TryLockError};

/// Rows per page: some milliseconds during which no batch is applied.
const PAGE_ROWS: usize = 512;
/// The same in bytes.
const PAGE_BYTES: usize = 1 << 20;

/// What a defragmentation came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Defragmented {
    /// Bytes on disk before.
    pub before: u64,
    /// Bytes on disk after.
    pub after: u64,
    /// Rows copied.
    pub rows: u64,
}

/// Removes a database's directory once it is closed, if it was replaced.
pub(super) struct Leftover {
    path: PathBuf,
    replaced: AtomicBool,
}

impl Leftover {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            replaced: AtomicBool::new(false),
        }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Acquire) {
            // The next open deletes what is left of it.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The number in a database directory's name.
pub(super) fn number(name: &str) -> Option<u64> {
    let rest = name.strip_prefix(SLED_DIR)?;
    if rest.is_empty() {
        return Some(0);
    }
    rest.strip_prefix('-')?.parse().ok()
}

/// Deletes database directories beside the one in use.
pub(super) fn remove_others(dir: &Path, keep: Option<&Path>) -> Result<(), StoreError> {
    for item in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let item = item.map_err(io_error("list", dir))?;
        let ours = item.file_name().to_str().is_some_and(|name| number(name).is_some());
        if ours && Some(&*item.path()) != keep {
            remove_dir(&item.path())?;
        }
    }
    Ok(())
}

impl SledStore {
    /// Copies what is live into a fresh database and goes on with that: what deletions left behind goes back to the volume, which must
    /// have room for both meanwhile. Runs beside readers and the writer. `go_on` is asked between pages, for instance whether
    /// there is still room.
    ///
    /// # Errors
    /// If another one is under way, `go_on` says no, or the copy fails; the store is what it was before.
    pub fn defragment(
        &self,
        options: SledOptions,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Defragmented, StoreError> {
        let inner = &*self.0;
        let _alone = match inner.defragmenting.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Defragment {
                    path: inner.dir.clone(),
                    what: "it is under way already",
                });
            }
        };
        let old = self.current();
        let before = self.call(&old, "measure", sled::Db::size_on_disk)?;
        let last = old.path.file_name().and_then(|name| number(name.to_str()?));
        let name = format!("{SLED_DIR}-{}", last.unwrap_or_default() + 1);
        let path = inner.dir.join(&name);
        remove_dir(&path)?;
        let copied = self.copy(&old, &path, &name, options, &mut go_on);
        inner.writer.lock().unwrap_or_else(PoisonError::into_inner).copy = None;
        match copied {
            Ok((rows, after)) => {
                old.leftover.replaced.store(true, Ordering::Release);
                Ok(Defragmented { before, after, rows })
            }
            Err(error) => {
                // Unless the marker may name it already: then both stay, nothing is written any more, and the next open sees which it is.
                if !inner.panicked.load(Ordering::Acquire) {
                    remove_dir(&path)?;
                }
                Err(error)
            }
        }
    }

    fn copy(
        &self,
        old: &Database,
        path: &Path,
        name: &str,
        options: SledOptions,
        go_on: &mut impl FnMut() -> bool,
    ) -> Result<(u64, u64), StoreError> {
        let inner: &Inner = &self.0;
        let stopped = |what| StoreError::Defragment {
            path: inner.dir.clone(),
            what,
        };
        let new = open_sled(path, options)?;
        inner.writer.lock().unwrap_or_else(PoisonError::into_inner).copy = Some(new.clone());
        let mut rows = 0;
        let mut cursor: Vec<u8> = Vec::new();
        loop {
            if !go_on() {
                return Err(stopped(
                    "there is not enough room on the volume, or the node is going down",
                ));
            }
            let writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.copy.is_none() {
                return Err(stopped("the copy could not be written"));
            }
            let mut page = sled::Batch::default();
            let (mut count, mut bytes) = (0, 0);
            for row in self.call(old, "scan", |db| Ok(db.range(cursor.clone()..)))? {
                let (key, value) = self.call(old, "scan", |_| row)?;
                bytes += key.len() + value.len();
                count += 1;
                cursor.clear();
                cursor.extend_from_slice(&key);
                cursor.push(0);
                page.insert(key, value);
                if count == PAGE_ROWS || bytes >= PAGE_BYTES {
                    break;
                }
            }
            if count == 0 {
                break;
            }
            rows += count as u64;
            guard("apply a batch", path, || new.apply_batch(page))?;
        }
        // Most of it without holding anybody up; what was applied since then is little.
        guard("flush", path, || new.flush())?;
        sync_tree(path)?;
        let mut writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.copy.is_none() {
            return Err(stopped("the copy could not be written"));
        }
        guard("flush", path, || new.flush())?;
        sync_tree(path)?;
        let after = guard("measure", path, || new.size_on_disk())?;
        let database = Database::new(new, path.to_owned())?;
        if let Err(error) = Self::mark(&inner.dir, name) {
            let unchanged = Self::current_dir(&inner.dir).is_ok_and(|present| present.as_ref() == Some(&old.path));
            if !unchanged {
                inner.panicked.store(true, Ordering::Release);
            }
            return Err(error);
        }
        writer.copy = None;
        *inner.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(database);
        Ok((rows, after))
    }
}
