//! Segments that die, and the live entries of slow groups that keep them from it.
//!
//! Segments die from the oldest on. One entry of a group that writes once a week would keep everything after it on the volume, so
//! once the log is mostly garbage, what is live in its oldest segment is copied to the end (the way of every log-structured
//! store; raft-engine calls it the rewrite queue). A copy is a record of its own kind: unlike an entry it does not
//! replace the log's tail, so it may come at any time. The original goes only after a sync of the copy.

use super::Wal;
use crate::error::WalError;
use crate::record::{Record, entry_record_len, read_record};
use crate::recover::{Run, extend_runs};
use crate::segment::{io_error, segment_name};
use althing_raft::entry::Entry;
use althing_raft::ids::{GroupId, Index};
use althing_raft::mutant::Mutant;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Segments that a log may take before anything is copied: below that there is little to win.
pub const LAGGARD_SEGMENTS: usize = 4;
/// Share of the log that must be garbage before anything is copied, as a divisor of the live bytes: at half, copying never
/// writes more than what it frees.
const LIVE_SHARE: u64 = 2;
/// Bytes copied per sync, at least one entry: a few milliseconds, so that no request waits long behind it.
const COPY_BYTES_MAX: usize = 1 << 20;

impl Wal {
    /// The oldest segment that holds a live entry, and whose.
    pub(super) fn oldest_live(&self) -> Option<(u64, GroupId)> {
        let first = |(group, log): (&GroupId, &super::GroupLog)| {
            let oldest = log.runs.iter().map(|run| run.segment).min();
            oldest.map(|segment| (segment, *group))
        };
        self.groups.iter().filter_map(first).min()
    }

    /// Bytes of live records.
    pub(super) fn live_bytes(&self) -> u64 {
        let runs = self.groups.values().flat_map(|log| &log.runs);
        runs.map(|run| run.bytes).sum()
    }

    /// Frees segments from the oldest on until one holds something live. Only after a sync, so that what says that they are
    /// dead is durable; and only if the active segment has its states.
    pub(super) fn collect_garbage(&mut self) -> Result<(), WalError> {
        if !self.garbage || self.offset == crate::record::SEGMENT_HEADER_BYTES as u64 {
            return Ok(());
        }
        self.garbage = false;
        let keep_from = self
            .oldest_live()
            .map_or_else(|| self.active_segment(), |(segment, _)| segment);
        let keep_from = keep_from + u64::from(Mutant::FreeLiveSegment.active() && keep_from < self.active_segment());
        while let Some((number, bytes)) = self.segments.front().copied().filter(|(number, _)| *number < keep_from) {
            let path = self.dir.join(segment_name(number));
            if self.spares.len() < super::SPARES_MAX && bytes == self.options.segment_bytes {
                let spare = self.next_spare_path("spare");
                self.disk.rename(&path, &spare).map_err(io_error("set aside", &path))?;
                self.spares.push(spare);
            } else {
                self.disk.remove(&path).map_err(io_error("remove", &path))?;
            }
            // One by one: recovery must never meet a gap between segments.
            self.disk.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Copies some live entries out of the oldest segment, if the log is long and mostly garbage. What is copied is durable with
    /// the next sync, and the segment dies after it.
    pub(super) fn rewrite_laggards(&mut self) -> Result<(), WalError> {
        if self.segments.len() <= LAGGARD_SEGMENTS {
            return Ok(());
        }
        let in_use: u64 = self.segments.iter().map(|(_, bytes)| bytes).sum();
        let Some((segment, group)) = self.oldest_live() else {
            return Ok(());
        };
        if segment == self.active_segment() || self.live_bytes().saturating_mul(LIVE_SHARE) > in_use {
            return Ok(());
        }
        let log = self.groups.get(&group).expect("invariant: its run was just seen");
        let (at, run) = log
            .runs
            .iter()
            .copied()
            .enumerate()
            .find(|(_, run)| run.segment == segment)
            .expect("invariant: its run was just seen");
        let mut budget = COPY_BYTES_MAX;
        let mut entries = Vec::new();
        for entry in self.read_run(group, run)? {
            let bytes = entry_record_len(&entry);
            if !entries.is_empty() && bytes > budget {
                break;
            }
            budget = budget.saturating_sub(bytes);
            entries.push(entry);
        }
        match self.reserve(self.groups.len(), entries.iter().map(entry_record_len)) {
            Ok(()) => {}
            // Copying needs room before it makes room. Without it the log stays as long as it is.
            Err(WalError::NoSpace { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut copies = VecDeque::new();
        for entry in entries {
            let index = entry.index;
            let place = self.push(group, Record::Rewrite(entry))?;
            extend_runs(&mut copies, place, index);
        }
        self.write_batch()?;
        let log = self.groups.get_mut(&group).expect("invariant: its run was just seen");
        let copied = copies.back().map_or(run.first, |last| last.last.next());
        let mut runs: Vec<_> = log.runs.drain(..).collect();
        let mut rest = runs.remove(at);
        if copied <= rest.last {
            rest.first = copied;
            rest.bytes = rest.bytes.saturating_sub(copies.iter().map(|run| run.bytes).sum());
            runs.insert(at, rest);
        }
        runs.splice(at..at, copies);
        log.runs = runs.into();
        self.garbage = true;
        Ok(())
    }

    /// Reads a run's live entries back, in order.
    fn read_run(&self, group: GroupId, run: Run) -> Result<Vec<Entry>, WalError> {
        let path = self.dir.join(segment_name(run.segment));
        let file = self.disk.open(&path, false).map_err(io_error("open", &path))?;
        let len = usize::try_from(run.to - run.from).expect("invariant: a run lies in a segment, which fits in memory");
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, run.from)
            .map_err(io_error("read", &path))?;
        let bytes = Bytes::from(bytes);
        let corrupt = |at: usize, what: String| WalError::Corrupt {
            file: path.clone(),
            offset: run.from + at as u64,
            what,
        };
        let mut found: BTreeMap<Index, Entry> = BTreeMap::new();
        let mut at = 0;
        while at < bytes.len() {
            let raw = read_record(run.segment, &bytes, at)
                .ok_or_else(|| corrupt(at, "a live record is damaged".to_owned()))?;
            let next = raw.next;
            if raw.group == group {
                match raw.parse().map_err(|error| corrupt(at, error.to_string()))? {
                    // A later record of the same index replaced the earlier one.
                    Record::Entry(entry) | Record::Rewrite(entry) if (run.first..=run.last).contains(&entry.index) => {
                        found.insert(entry.index, entry);
                    }
                    Record::Entry(_)
                    | Record::Rewrite(_)
                    | Record::HardState(_)
                    | Record::Reset(_)
                    | Record::Compact(_)
                    | Record::BatchEnd { .. } => {}
                }
            }
            at = next;
        }
        let complete = found.len() as u64 == run.last.0 - run.first.0 + 1;
        if !complete {
            return Err(corrupt(
                0,
                format!("entries {} to {} are not all there", run.first, run.last),
            ));
        }
        Ok(found.into_values().collect())
    }
}
