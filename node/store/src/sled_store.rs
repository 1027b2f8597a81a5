//! sled 0.34.7 as an engine, under the rules that its real behaviour asks for.
//!
//! What it does, read in its source and seen in power-cut replay: `flush` does not fsync on Linux (it calls
//! `sync_file_range`, which commits neither the device's cache nor the file's size), the `conf` file made at creation is
//! never synced, files in `blobs/` and their directory neither, and a damaged file can make `open` panic. Therefore:
//!
//! 1. Creation ends with an fsync of every file and directory, and only then the `FORMAT` marker is written. A directory without
//!    marker was never finished: it is deleted and made anew.
//! 2. sled's own flusher is off. `checkpoint` flushes and then calls fdatasync on the database file itself.
//!    Also, sled takes a segment of its file into use again as soon as what it held was written elsewhere, durable or not: a power cut
//!    between two checkpoints could leave neither copy. So nothing more is applied before what was is durable, in steps
//!    of [`BARRIER_BYTES`], which is less than a segment: what a step frees is not overwritten within it.
//! 3. One tree; one batch per apply, with the applied record in it. Nothing spans trees.
//! 4. An `open` that fails or panics moves the directory into quarantine and starts empty: the WAL and snapshots rebuild it. Every
//!    other call is guarded too; after a panic all fail.
//! 5. No value ever becomes a blob file: larger ones are cut into rows of [`CHUNK_BYTES`].
//! 6. One thread writes. Others only read. No sled transactions, merge operators or subscriptions.
//! 7. The cache is sized by the caller; resident memory is three to five times the data in it.
//! 8. Deleting does not shrink the file; [`SledStore::defragment`] copies what is live into a fresh store and swaps the marker.
//! 9. The host checks at start that `applied` lies within the WAL's log and quarantines otherwise: only it sees both.
//! 10. On a full disk ([`StoreError::is_no_space`]) the host stops writing; sled is not asked to write again.

mod defrag;
mod rows;

pub use defrag::Defragmented;

use crate::error::StoreError;
use crate::mem::fill_page;
use crate::pack;
use crate::state::{Batch, BatchOp, KeySpan, Order, Page, PageLimit, StateStore};
use bytes::{Buf, Bytes};
use rows::{CHUNKED, DATA, INLINE, chunk_count, chunk_key, data_key, put, put_run};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Bytes of a value that stay in one row. sled keeps a leaf of up to 20 rows (16 and what a merge may add) as one log record, and
/// records above 128 KiB become blob files: 20 rows of 6 KiB with their keys stay below.
pub const CHUNK_BYTES: usize = 6 << 10;

/// Weight of what is applied between two syncs of the database, and of what one batch should have at most. sled's segments have 512 KiB, and it writes a few bytes for every byte applied.
pub const BARRIER_BYTES: usize = 128 << 10;

/// Damaged stores kept for a look by a person; older ones are deleted so that they do not fill the volume.
pub const QUARANTINES_MAX: usize = 2;

const MARKER: &str = "FORMAT";
/// What the marker says of a store in [`SLED_DIR`]; one that a defragmentation made has its directory's name after it. 2: rows may be
/// packed.
const MARKER_TEXT: &str = "althing-store 2";
/// What this build reads too, and turns into its own before it writes: its rows are all unpacked ones.
const MARKER_TEXT_BEFORE: &str = "althing-store 1";
const SLED_DIR: &str = "sled";
const QUARANTINE: &str = "quarantine-";

/// How to run sled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SledOptions {
    /// Bytes of page cache.
    pub cache_bytes: u64,
}

/// How `open` found the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// As it was left.
    Existing,
    /// There was none.
    Created,
    /// It could not be read and was moved away; the state must be rebuilt.
    Quarantined {
        /// Where it is now.
        path: PathBuf,
        /// Why it was moved.
        reason: String,
    },
}

/// One sled database of a node; all its groups share it.
#[derive(Clone)]
pub struct SledStore(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// The database in use. A call takes it once and keeps it to its end, so that a swap never shows half of each.
    current: RwLock<Arc<Database>>,
    panicked: AtomicBool,
    /// Held by whoever writes. While a defragmentation copies, what is applied goes to its copy too.
    writer: Mutex<Writing>,
    /// Held by the defragmentation under way.
    defragmenting: Mutex<()>,
    _lock: File,
}

/// What the writing side keeps.
#[derive(Default)]
struct Writing {
    /// The copy that a defragmentation makes.
    copy: Option<sled::Db>,
    /// Bytes applied since the last sync.
    unsynced: usize,
}

/// One sled database.
struct Database {
    db: sled::Db,
    path: PathBuf,
    /// Our own descriptor of sled's database file, for rule 2.
    file: File,
    /// Blob files that are durable; also keeps two checkpoints from running at once.
    synced_blobs: Mutex<BTreeSet<OsString>>,
    /// After `db`, which writes when it closes.
    leftover: defrag::Leftover,
}

impl Database {
    fn new(db: sled::Db, path: PathBuf) -> Result<Self, StoreError> {
        let db_file = path.join("db");
        let file = File::open(&db_file).map_err(io_error("open", &db_file))?;
        // What a killed process had written may still be in the page cache alone; `Writing::unsynced` begins at nothing.
        file.sync_data().map_err(io_error("sync", &db_file))?;
        Ok(Self {
            db,
            leftover: defrag::Leftover::new(&path),
            path,
            file,
            synced_blobs: Mutex::new(BTreeSet::new()),
        })
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

/// Syncs a directory with everything below it.
fn sync_tree(dir: &Path) -> Result<(), StoreError> {
    for item in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = item.map_err(io_error("list", dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(io_error("sync", &path))?;
        }
    }
    sync_dir(dir)
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs a call into sled and turns a panic into an error.
fn guard<T>(action: &'static str, path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(StoreError::Engine {
            action,
            path: path.to_owned(),
            source,
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let message = message.unwrap_or_else(|| "no message".to_owned());
            Err(StoreError::Panicked {
                action,
                path: path.to_owned(),
                message,
            })
        }
    }
}

/// How often, and how long apart, to try again while a database that this process has dropped is still closing: sled does that on its own
/// threads. A second and a half is far more than it takes.
const CLOSING_TRIES: u32 = 75;
const CLOSING_PAUSE: Duration = Duration::from_millis(20);

#[expect(
    clippy::disallowed_methods,
    reason = "an engine is opened once, before anything is served"
)]
fn open_sled(path: &Path, options: SledOptions) -> Result<sled::Db, StoreError> {
    for _ in 0..CLOSING_TRIES {
        match try_open_sled(path, options) {
            Err(error) if error.is_still_closing() => std::thread::sleep(CLOSING_PAUSE),
            opened => return opened,
        }
    }
    try_open_sled(path, options)
}

fn try_open_sled(path: &Path, options: SledOptions) -> Result<sled::Db, StoreError> {
    guard("open", path, || {
        sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity(options.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            .open()
    })
}

impl SledStore {
    /// Opens the store in `dir`, creates it, or replaces a damaged one by an empty one.
    ///
    /// # Errors
    /// If another process has it, another version wrote it, or the disk refuses.
    pub fn open(dir: &Path, options: SledOptions) -> Result<(Self, Opened), StoreError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let lock_path = dir.join("LOCK");
        let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => StoreError::Locked { dir: dir.to_owned() },
            fs::TryLockError::Error(source) => io_error("lock", &lock_path)(source),
        })?;

        let fresh = dir.join(SLED_DIR);
        let (db, path, opened) = if let Some(path) = Self::current_dir(dir)? {
            // What a defragmentation left that did not come to its end, or whose end was cut short.
            defrag::remove_others(dir, Some(&path))?;
            match open_sled(&path, options) {
                Ok(db) => {
                    Self::mark_version(dir, &path)?;
                    (db, path, Opened::Existing)
                }
                Err(error) if error.is_damage() => {
                    let moved = Self::quarantine(dir)?;
                    (
                        Self::create(dir, options)?,
                        fresh,
                        Opened::Quarantined {
                            path: moved,
                            reason: error.to_string(),
                        },
                    )
                }
                Err(error) => return Err(error),
            }
        } else {
            (Self::create(dir, options)?, fresh, Opened::Created)
        };
        let inner = Inner {
            dir: dir.to_owned(),
            current: RwLock::new(Arc::new(Database::new(db, path)?)),
            panicked: AtomicBool::new(false),
            writer: Mutex::default(),
            defragmenting: Mutex::new(()),
            _lock: lock,
        };
        Ok((Self(Arc::new(inner)), opened))
    }

    /// Moves a store that was found unusable after it was opened (by `Mvcc::open`, or by the check of rule 9) away, so
    /// that the next `open` creates an empty one. Every handle must have been dropped before.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn quarantine(dir: &Path) -> Result<PathBuf, StoreError> {
        let path = Self::current_dir(dir)?.unwrap_or_else(|| dir.join(SLED_DIR));
        // The marker goes first: a crash in between leaves a store that `open` deletes, never one that it trusts.
        let marker = dir.join(MARKER);
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &marker)(error));
            }
            Ok(()) | Err(_) => sync_dir(dir)?,
        }
        let mut present = BTreeSet::new();
        for item in fs::read_dir(dir).map_err(io_error("list", dir))? {
            let name = item.map_err(io_error("list", dir))?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(QUARANTINE))
                .map(str::parse::<u32>);
            if let Some(Ok(number)) = number {
                present.insert(number);
            }
        }
        let number = present.last().map_or(1, |last| last + 1);
        while present.len() >= QUARANTINES_MAX
            && let Some(oldest) = present.pop_first()
        {
            remove_dir(&dir.join(format!("{QUARANTINE}{oldest}")))?;
        }
        let target = dir.join(format!("{QUARANTINE}{number}"));
        fs::rename(&path, &target).map_err(io_error("move away", &path))?;
        sync_dir(dir)?;
        Ok(target)
    }

    /// The directory of the database in use; `None` if its creation was never finished.
    ///
    /// # Errors
    /// If another version wrote the marker, or it cannot be read.
    pub fn current_dir(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
        let marker = dir.join(MARKER);
        let text = match fs::read_to_string(&marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &marker)(error)),
        };
        let named = |version| {
            let rest = text.trim_end().strip_prefix(version)?;
            match rest {
                "" => Some(SLED_DIR),
                rest => rest.strip_prefix(' ').filter(|name| defrag::number(name).is_some()),
            }
        };
        match named(MARKER_TEXT).or_else(|| named(MARKER_TEXT_BEFORE)) {
            Some(name) => Ok(Some(dir.join(name))),
            None => Err(StoreError::Version {
                file: marker,
                found: text.trim().chars().take(80).collect(),
            }),
        }
    }

    fn create(dir: &Path, options: SledOptions) -> Result<sled::Db, StoreError> {
        defrag::remove_others(dir, None)?;
        let path = dir.join(SLED_DIR);
        let db = open_sled(&path, options)?;
        guard("flush", &path, || db.flush())?;
        sync_tree(&path)?;
        Self::mark(dir, SLED_DIR)?;
        Ok(db)
    }

    /// Makes a directory, whose content is durable, the database.
    fn mark(dir: &Path, name: &str) -> Result<(), StoreError> {
        sync_dir(dir)?;
        let text = if name == SLED_DIR {
            format!("{MARKER_TEXT}\n")
        } else {
            format!("{MARKER_TEXT} {name}\n")
        };
        let (marker, new) = (dir.join(MARKER), dir.join("FORMAT.new"));
        fs::write(&new, text).map_err(io_error("write", &new))?;
        File::open(&new)
            .and_then(|file| file.sync_all())
            .map_err(io_error("sync", &new))?;
        fs::rename(&new, &marker).map_err(io_error("rename", &new))?;
        sync_dir(dir)
    }

    /// Names this version before anything is written that an earlier one could not read.
    fn mark_version(dir: &Path, path: &Path) -> Result<(), StoreError> {
        let marker = dir.join(MARKER);
        let text = fs::read_to_string(&marker).map_err(io_error("read", &marker))?;
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if text.starts_with(MARKER_TEXT_BEFORE) => Self::mark(dir, name),
            Some(_) | None => Ok(()),
        }
    }

    fn current(&self) -> Arc<Database> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn call<T>(
        &self,
        database: &Database,
        action: &'static str,
        call: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let panicked = &self.0.panicked;
        if panicked.load(Ordering::Acquire) {
            let message = "it panicked before".to_owned();
            return Err(StoreError::Panicked {
                action,
                path: database.path.clone(),
                message,
            });
        }
        let result = guard(action, &database.path, || call(&database.db));
        if let Err(StoreError::Panicked { .. }) = &result {
            panicked.store(true, Ordering::Release);
        }
        result
    }

    /// Files that sled made beside its log; rule 5 keeps this at zero.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn blob_files(&self) -> Result<usize, StoreError> {
        Ok(list_blobs(&self.current())?.len())
    }

    fn damaged(database: &Database, what: &str, row: &[u8]) -> StoreError {
        StoreError::Engine {
            action: "read",
            path: database.path.clone(),
            source: sled::Error::ReportableBug(format!("{what} of a value of {} bytes", row.len())),
        }
    }

    /// The pack in which a key would stand that has no row of its own: that of the last row before it.
    fn pack_before(&self, database: &Database, key: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>, StoreError> {
        let before = self.call(database, "read", |db| db.get_lt(key))?;
        Ok(before.filter(|(at, row)| at.first() == Some(&DATA) && row.first() == Some(&pack::PACKED)))
    }

    /// All rows that are stored as this one, with the keys as callers know them.
    fn unfold(&self, database: &Database, at: &[u8], row: &sled::IVec) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if row.first() != Some(&pack::PACKED) {
            let key = Bytes::copy_from_slice(&at[1..]);
            let value = self.assemble(database, &key, row)?;
            return Ok(vec![(key, value)]);
        }
        pack::entries(row)
            .map(|entry| {
                let (key, value) = entry.ok_or_else(|| Self::damaged(database, "a pack", row))?;
                Ok((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
            })
            .collect()
    }

    /// The value behind a row, put together from its chunks.
    fn assemble(&self, database: &Database, key: &[u8], row: &sled::IVec) -> Result<Bytes, StoreError> {
        let damaged = |what: &str| Self::damaged(database, what, row);
        let Some((tag, mut rest)) = row.split_first() else {
            return Err(damaged("no tag"));
        };
        if *tag == INLINE {
            return Ok(Bytes::copy_from_slice(rest));
        }
        if *tag != CHUNKED || rest.len() != 4 {
            return Err(damaged("unknown tag"));
        }
        let len = rest.get_u32_le() as usize;
        let mut value = Vec::new();
        for number in 0..chunk_count(len) {
            let chunk = self.call(database, "read", |db| db.get(chunk_key(key, number)))?;
            value.extend_from_slice(&chunk.ok_or_else(|| damaged("a chunk is missing"))?);
        }
        if value.len() == len {
            Ok(value.into())
        } else {
            Err(damaged("wrong chunks"))
        }
    }
}

fn list_blobs(database: &Database) -> Result<BTreeSet<OsString>, StoreError> {
    let dir = database.path.join("blobs");
    let names = fs::read_dir(&dir).map_err(io_error("list", &dir))?;
    names
        .map(|item| item.map(|item| item.file_name()).map_err(io_error("list", &dir)))
        .collect()
}

impl StateStore for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let at = data_key(key);
        let database = self.current();
        loop {
            let Some(row) = self.call(&database, "read", |db| db.get(&at))? else {
                return match self.pack_before(&database, &at)? {
                    Some((_, pack)) => pack::find(&pack, key).ok_or_else(|| Self::damaged(&database, "a pack", &pack)),
                    None => Ok(None),
                };
            };
            if row.first() == Some(&pack::PACKED) {
                return pack::find(&row, key).ok_or_else(|| Self::damaged(&database, "a pack", &row));
            }
            match self.assemble(&database, key, &row) {
                Ok(value) => return Ok(Some(value)),
                // Row and chunks are read one after the other. If the row has changed since, they did not belong together.
                Err(error) => {
                    if self.call(&database, "read", |db| db.get(&at))?.as_ref() == Some(&row) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn scan(&self, span: &KeySpan, order: Order, limit: PageLimit) -> Result<Page, StoreError> {
        if span.is_empty() {
            return Ok(Page::new());
        }
        let start = data_key(&span.start);
        let end = span.end.as_ref().map_or_else(|| vec![DATA + 1], |end| data_key(end));
        // The first rows of the span may stand in a pack that begins before it.
        let database = self.current();
        let mut first = match self.call(&database, "read", |db| db.get(&start))? {
            Some(_) => None,
            None => self.pack_before(&database, &start)?,
        };
        let mut rows = self.call(&database, "scan", |db| Ok(db.range(start..end)))?;
        let stored = std::iter::from_fn(|| {
            let forward = order == Order::Forward;
            if forward && let Some(first) = first.take() {
                return Some(Ok(first));
            }
            let row = self.call(&database, "scan", |_| {
                let row = if forward { rows.next() } else { rows.next_back() };
                row.transpose()
            });
            row.transpose().or_else(|| first.take().map(Ok))
        });
        let within = |key: &[u8]| *key >= *span.start && span.end.as_ref().is_none_or(|end| *key < **end);
        let rows = stored.flat_map(|stored| {
            let unfolded = stored.and_then(|(at, row)| self.unfold(&database, &at, &row));
            let (rows, error) = match unfolded {
                Ok(mut rows) => {
                    rows.retain(|(key, _)| within(key));
                    if order == Order::Backward {
                        rows.reverse();
                    }
                    (rows, None)
                }
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            rows.into_iter().map(Ok).chain(error)
        });
        fill_page(rows, limit)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let mut writing = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.current();
        let weight = batch.weight();
        if writing.unsynced > 0 && writing.unsynced + weight > BARRIER_BYTES {
            self.call(&database, "flush", |db| db.flush())?;
            database.file.sync_data().map_err(io_error("sync", &database.path))?;
            writing.unsynced = 0;
        }
        writing.unsynced += weight;
        let mut rows = sled::Batch::default();
        // Packs that lose rows.
        let mut packs: BTreeMap<sled::IVec, (sled::IVec, BTreeSet<Bytes>)> = BTreeMap::new();
        for op in batch.0 {
            match op {
                BatchOp::Put(key, value) => put(&key, &value, &mut rows),
                BatchOp::Run(run) => put_run(&run, &mut rows),
                BatchOp::Delete(key) => {
                    let at = data_key(&key);
                    let row = self.call(&database, "read", |db| db.get(&at))?;
                    let pack = match &row {
                        Some(row) if row.first() == Some(&pack::PACKED) => Some((at.as_slice().into(), row.clone())),
                        Some(_) => None,
                        None => self.pack_before(&database, &at)?,
                    };
                    if let Some((at, pack)) = pack {
                        packs.entry(at).or_insert_with(|| (pack, BTreeSet::new())).1.insert(key);
                        continue;
                    }
                    if let Some([CHUNKED, len @ ..]) = row.as_deref()
                        && let Ok(len) = <[u8; 4]>::try_from(len)
                    {
                        for number in 0..chunk_count(u32::from_le_bytes(len) as usize) {
                            rows.remove(chunk_key(&key, number));
                        }
                    }
                    rows.remove(at);
                }
            }
        }
        for (at, (pack, gone)) in packs {
            match pack::without(&pack, |key| gone.contains(key)) {
                Some(left) => rows.insert(at, left),
                None => rows.remove(at),
            }
        }
        match writing.copy.as_ref() {
            None => self.call(&database, "apply a batch", |db| db.apply_batch(rows)),
            Some(to) => {
                self.call(&database, "apply a batch", |db| db.apply_batch(rows.clone()))?;
                // The copy is nobody's state yet: if it fails, so does the defragmentation, and nothing else.
                if guard("apply a batch", &database.path, || to.apply_batch(rows)).is_err() {
                    writing.copy = None;
                }
                Ok(())
            }
        }
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let database = self.current();
        let mut synced = database.synced_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        self.call(&database, "flush", |db| db.flush())?;
        database.file.sync_data().map_err(io_error("sync", &database.path))?;
        // Rule 5 says that there are none. If there are all the same, they are part of the state.
        let blobs = list_blobs(&database)?;
        let dir = database.path.join("blobs");
        let new: Vec<_> = blobs.difference(&synced).collect();
        for name in &new {
            let path = dir.join(name);
            match File::open(&path).and_then(|file| file.sync_all()) {
                // sled removed it since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(io_error("sync", &path))?,
            }
        }
        if !new.is_empty() {
            sync_dir(&dir)?;
        }
        *synced = blobs;
        Ok(())
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.call(&self.current(), "measure", sled::Db::size_on_disk)
    }
}
