//! Segments as files: names, reading, creating, cleaning a tail.

use crate::disk::{Disk, File};
use crate::error::WalError;
use crate::record::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::wal::SEGMENT_BYTES_MAX;
use althing_raft::mark::Mark;
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};

/// Unit in which new segments are zero-filled and dirty tails are looked for.
const BLOCK_BYTES: usize = 64 << 10;

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
    let path = path.to_owned();
    move |source| WalError::Io { action, path, source }
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:016x}.wal")
}

pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

pub(crate) fn read_header(disk: &dyn Disk, path: &Path) -> Result<Bytes, WalError> {
    let file = disk.open(path, false).map_err(io_error("open", path))?;
    let len = file
        .len()
        .map_err(io_error("measure", path))?
        .min(SEGMENT_HEADER_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(len).expect("invariant: a header is small")];
    file.read_exact_at(&mut bytes, 0).map_err(io_error("read", path))?;
    Ok(bytes.into())
}

pub(crate) fn read_segment(
    disk: &dyn Disk,
    dir: &Path,
    number: u64,
) -> Result<(PathBuf, Box<dyn File>, Bytes), WalError> {
    let path = dir.join(segment_name(number));
    let file = disk.open(&path, false).map_err(io_error("open", &path))?;
    let len = file.len().map_err(io_error("measure", &path))?;
    if len > SEGMENT_BYTES_MAX {
        let what = format!("the segment has {len} bytes, more than any segment");
        return Err(WalError::Corrupt {
            file: path,
            offset: SEGMENT_BYTES_MAX,
            what,
        });
    }
    let mut bytes = vec![0; usize::try_from(len).expect("invariant: at most SEGMENT_BYTES_MAX")];
    file.read_exact_at(&mut bytes, 0).map_err(io_error("read", &path))?;
    Ok((path, file, bytes.into()))
}

/// Zeroes what follows the last whole batch, so that no later batch can bring a lost one's successor back to life, and
/// makes what was recovered durable: it may have been in the page cache only.
pub(crate) fn settle_tail(file: &mut dyn File, bytes: &[u8], offset: usize) -> io::Result<()> {
    let zeros = [0; BLOCK_BYTES];
    let mut at = offset;
    for block in bytes[offset..].chunks(BLOCK_BYTES) {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(&zeros[..block.len()], at as u64)?;
        }
        at += block.len();
    }
    file.sync_data()
}

/// A file that is being filled with zeros, to become a segment. Zeros that are written, not a hole: a later fdatasync then has no
/// metadata to commit, and cannot run out of space.
pub(crate) struct Filling {
    pub(crate) path: PathBuf,
    file: Box<dyn File>,
    at: u64,
}

impl Filling {
    pub(crate) fn begin(disk: &dyn Disk, path: PathBuf) -> Result<Self, WalError> {
        let file = disk.open(&path, true).map_err(io_error("create", &path))?;
        Ok(Self { path, file, at: 0 })
    }

    /// Adds up to `bytes` zeros and makes them durable, which is when a file system that allocates late finds out that it is full.
    /// `true` once there are `whole`.
    pub(crate) fn fill(&mut self, bytes: u64, whole: u64) -> Result<bool, WalError> {
        let zeros = vec![0; BLOCK_BYTES];
        let end = self.at.saturating_add(bytes).min(whole);
        while self.at < end {
            let len = usize::try_from((end - self.at).min(BLOCK_BYTES as u64)).expect("invariant: at most a block");
            self.file
                .write_all_at(&zeros[..len], self.at)
                .map_err(io_error("fill", &self.path))?;
            self.at += len as u64;
        }
        self.file.sync_data().map_err(io_error("sync", &self.path))?;
        Ok(self.at == whole)
    }
}

/// Makes a segment under another name and renames it when it is whole and durable, so that a segment's header is never torn.
pub(crate) fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    header: SegmentHeader,
    bytes: u64,
    spare: Option<PathBuf>,
) -> Result<Box<dyn File>, WalError> {
    let path = dir.join(segment_name(header.number));
    let (from, mut file) = match spare {
        Some(spare) => {
            Mark::SegmentRecycled.hit();
            let file = disk.open(&spare, false).map_err(io_error("open", &spare))?;
            (spare, file)
        }
        None => {
            let mut filling = Filling::begin(disk, dir.join(format!("{:016x}.new", header.number)))?;
            filling.fill(bytes, bytes)?;
            (filling.path, filling.file)
        }
    };
    file.write_all_at(&header.encode(), 0)
        .map_err(io_error("write", &from))?;
    file.sync_data().map_err(io_error("sync", &from))?;
    disk.rename(&from, &path).map_err(io_error("rename", &from))?;
    disk.sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok(file)
}
