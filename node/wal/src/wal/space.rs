//! Room on the volume. A segment is allocated whole before it is needed, and every batch makes sure of its segments before its
//! first byte, so a full volume refuses a batch that nobody was promised anything about, and never breaks one in the middle.

use super::{STATE_BYTES_MAX, Wal};
use crate::error::{WalError, is_full};
use crate::record::{BATCH_END_BYTES, SEGMENT_HEADER_BYTES};
use crate::segment::{Filling, io_error};
use std::path::PathBuf;

/// Bytes of the next segment that one `prepare` fills: about a millisecond, so that no batch waits long behind it.
const PREPARE_BYTES: u64 = 1 << 20;

impl Wal {
    /// Fills a part of the next segment, if none is ready and the active one is half full. For quiet moments: without it the
    /// batch that needs the segment waits until all of it is filled.
    ///
    /// # Errors
    /// `NoSpace` if the volume has no room for it: what is appended still fits into the active segment for a while.
    /// Anything else is final.
    pub fn prepare(&mut self) -> Result<(), WalError> {
        self.check_usable()?;
        if !self.spares.is_empty() || self.offset * 2 < self.active_bytes() {
            return Ok(());
        }
        let result = self.fill(PREPARE_BYTES);
        self.latch(result)
    }

    /// Whether the volume refused a segment when one was last asked for.
    #[must_use]
    pub fn wants_space(&self) -> bool {
        self.out_of_space
    }

    /// Makes sure of a segment for each that records of these sizes will open, when there are so many groups at the end.
    pub(super) fn reserve(&mut self, groups: usize, sizes: impl IntoIterator<Item = usize>) -> Result<(), WalError> {
        let needed = self.rolls(groups, sizes);
        while self.spares.len() < needed {
            let result = self.fill(u64::MAX);
            self.latch(result)?;
        }
        Ok(())
    }

    /// How many segments `push` opens for records of these sizes.
    fn rolls(&self, groups: usize, sizes: impl IntoIterator<Item = usize>) -> usize {
        let states = groups * STATE_BYTES_MAX;
        let header = SEGMENT_HEADER_BYTES as u64;
        let mut rolls = 0;
        let mut used = self.offset + self.batch.len() as u64;
        let mut limit = self.active_bytes();
        for bytes in sizes {
            if used + (bytes + BATCH_END_BYTES) as u64 > limit {
                rolls += 1;
                used = header;
                limit = self.options.segment_bytes;
            }
            if used == header {
                used += states as u64;
            }
            used += bytes as u64;
        }
        rolls
    }

    /// Fills up to `bytes` of a spare, and makes it one when it is whole.
    fn fill(&mut self, bytes: u64) -> Result<(), WalError> {
        if self.filling.is_none() {
            let path = self.next_spare_path("new");
            self.filling = Some(self.roomy(|wal| Filling::begin(&*wal.disk, path))?);
        }
        let mut filling = self.filling.take().expect("invariant: just set");
        let whole = self.options.segment_bytes;
        let filled = filling.fill(bytes, whole);
        match filled {
            Ok(true) => {
                let spare = self.next_spare_path("spare");
                let from = filling.path;
                self.disk.rename(&from, &spare).map_err(io_error("rename", &from))?;
                self.spares.push(spare);
                self.out_of_space = false;
                Ok(())
            }
            Ok(false) => {
                self.filling = Some(filling);
                Ok(())
            }
            Err(error) => {
                // Given back, so that others on the volume are not starved by half a segment.
                let path = filling.path.clone();
                drop(filling);
                self.disk.remove(&path).map_err(io_error("remove", &path))?;
                self.roomy(|_| Err(error))
            }
        }
    }

    /// Tells a full volume from other failures.
    fn roomy<T>(&mut self, act: impl FnOnce(&Self) -> Result<T, WalError>) -> Result<T, WalError> {
        match act(self) {
            Err(WalError::Io { source, .. }) if is_full(&source) => {
                self.out_of_space = true;
                Err(WalError::NoSpace {
                    dir: self.dir.clone(),
                    bytes: self.options.segment_bytes,
                })
            }
            other => other,
        }
    }

    pub(super) fn next_spare_path(&mut self, ending: &str) -> PathBuf {
        let path = self.dir.join(format!("{:04x}.{ending}", self.next_spare));
        self.next_spare += 1;
        path
    }
}
