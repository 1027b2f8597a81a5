//! A disk in memory that crashes the way disks do.
//!
//! Until a file is synced, a crash keeps any subset of what was written to it, torn at sectors; until a directory is
//! synced, a crash keeps any prefix of its renames, creations and removals (journaling file systems order them). Chance
//! comes from a seed, so a failing run can be run again.

use crate::disk::{Disk, File};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The shared disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    random: u64,
    /// Names as a running process sees them.
    names: BTreeMap<PathBuf, u64>,
    /// Names as the platter has them.
    durable_names: BTreeMap<PathBuf, u64>,
    /// What happened to names since, in order.
    pending_names: Vec<NameChange>,
    files: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Grows with every crash: handles from before are dead.
    boot: u64,
    /// Operations until the power fails.
    ops_left: Option<u64>,
    syncs_fail: bool,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    locked: bool,
    /// Writes and syncs so far.
    ops: u64,
}

#[derive(Clone)]
struct NameChange {
    path: PathBuf,
    inode: Option<u64>,
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    /// Unsynced writes, in order.
    pending: Vec<(usize, Vec<u8>)>,
    current: Vec<u8>,
}

fn write_into(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl State {
    /// SplitMix64 (Steele, Lea, Flood 2014): one word of state is enough here.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn op(&mut self) -> io::Result<()> {
        self.ops += 1;
        match &mut self.ops_left {
            Some(0) => Err(io::Error::other("simulated power failure")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change_name(&mut self, path: &Path, inode: Option<u64>) {
        match inode {
            Some(inode) => self.names.insert(path.to_owned(), inode),
            None => self.names.remove(path),
        };
        self.pending_names.push(NameChange {
            path: path.to_owned(),
            inode,
        });
    }

    /// Bytes by which files may still grow, if there is a limit. Files without a name take no room.
    fn room(&self) -> Option<u64> {
        let used = |capacity: u64| {
            let files = self.names.values().filter_map(|inode| self.files.get(inode));
            capacity.saturating_sub(files.map(|file| file.current.len() as u64).sum())
        };
        self.capacity.map(used)
    }

    fn inode(&self, path: &Path) -> io::Result<u64> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: seed,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            files: BTreeMap::new(),
            next_inode: 0,
            boot: 0,
            ops_left: None,
            syncs_fail: false,
            capacity: None,
            locked: false,
            ops: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("invariant: no panic while the disk is locked")
    }

    /// After so many more operations that change something, every one fails, as if the power were gone.
    pub fn fail_after(&self, ops: u64) {
        self.state().ops_left = Some(ops);
    }

    /// From now on every sync fails (or works again), and what is durable is anybody's guess.
    pub fn fail_syncs(&self, fail: bool) {
        self.state().syncs_fail = fail;
    }

    /// From now on nothing can grow (or can again). What is preallocated can still be written.
    pub fn fill(&self, full: bool) {
        self.set_capacity(full.then_some(0));
    }

    /// From now on no write may make the files longer than this together: the volume is full.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Operations that changed something since the beginning.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Cuts the power and starts again: open files are dead, and of what was not synced anything may be left.
    pub fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        state.boot += 1;
        state.ops_left = None;
        state.syncs_fail = false;
        state.locked = false;
        let kept = usize::try_from(state.random() % (state.pending_names.len() as u64 + 1))
            .expect("invariant: below a length");
        for change in std::mem::take(&mut state.pending_names).into_iter().take(kept) {
            match change.inode {
                Some(inode) => state.durable_names.insert(change.path, inode),
                None => state.durable_names.remove(&change.path),
            };
        }
        state.names = state.durable_names.clone();
        let mut files = std::mem::take(&mut state.files);
        // Per crash: nothing unsynced survives, everything does, or each sector decides for itself.
        let mood = state.random() % 4;
        for file in files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let mut at = 0;
                while at < bytes.len() {
                    let len = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len() - at);
                    let keep = match mood {
                        0 => false,
                        1 => true,
                        _ => state.random().is_multiple_of(2),
                    };
                    if keep {
                        write_into(&mut file.durable, offset + at, &bytes[at..at + len]);
                    }
                    at += len;
                }
            }
            file.current = file.durable.clone();
        }
        state.files = files;
    }

    /// Flips one bit of what is durable in a file; `false` if there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) -> bool {
        let mut state = self.state();
        let Some(inode) = state.names.get(path).copied() else {
            return false;
        };
        let Some(file) = state.files.get_mut(&inode) else {
            return false;
        };
        for content in [&mut file.durable, &mut file.current] {
            match content.get_mut(offset) {
                Some(byte) => *byte ^= 1 << (bit % 8),
                None => return false,
            }
        }
        true
    }

    /// Files there are, as a running process sees them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let inode = if create {
            state.op()?;
            let inode = state.next_inode;
            state.next_inode += 1;
            state.files.insert(inode, Inode::default());
            state.change_name(path, Some(inode));
            inode
        } else {
            state.inode(path)?
        };
        Ok(Box::new(SimFile {
            disk: self.clone(),
            inode,
            boot: state.boot,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.op()?;
        let inode = state.inode(from)?;
        // The new name first: a prefix may leave both names, never none.
        state.change_name(to, Some(inode));
        state.change_name(from, None);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.op()?;
        state.inode(path)?;
        state.change_name(path, None);
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.op()?;
        if state.syncs_fail {
            return Err(io::Error::other("simulated sync failure"));
        }
        state.pending_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Send>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            boot: state.boot,
        }))
    }
}

struct SimLock {
    disk: SimDisk,
    boot: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.boot == self.boot {
            state.locked = false;
        }
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    boot: u64,
}

impl SimFile {
    fn with<T>(&self, change: bool, act: impl FnOnce(&mut Inode, bool) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.boot != self.boot {
            return Err(io::Error::other("the file was opened before the power failed"));
        }
        if change {
            state.op()?;
        }
        let syncs_fail = state.syncs_fail;
        let inode = state
            .files
            .get_mut(&self.inode)
            .expect("invariant: files outlive their names");
        act(inode, syncs_fail)
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |inode, _| Ok(inode.current.len() as u64))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(false, |inode, _| {
            let from = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = inode
                .current
                .get(from..from + buf.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let room = self.disk.state().room();
        self.with(true, |inode, _| {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let growth = (at + buf.len()).saturating_sub(inode.current.len()) as u64;
            if growth > 0 && room.is_some_and(|room| growth > room) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            write_into(&mut inode.current, at, buf);
            inode.pending.push((at, buf.to_owned()));
            Ok(())
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.with(true, |inode, syncs_fail| {
            if syncs_fail {
                return Err(io::Error::other("simulated sync failure"));
            }
            for (offset, bytes) in std::mem::take(&mut inode.pending) {
                write_into(&mut inode.durable, offset, &bytes);
            }
            Ok(())
        })
    }
}
