//! Writing: batches and segments.

mod laggards;
mod space;

pub use laggards::LAGGARD_SEGMENTS;

use crate::disk::{Disk, File};
use crate::error::WalError;
use crate::record::{BATCH_END_BYTES, Record, SEGMENT_HEADER_BYTES, SegmentHeader, encode_record, entry_record_len};
use crate::recover::{Place, Recovered, Replay, Run, Segment, Tail, compact_runs, extend_runs, truncate_runs};
use crate::segment::{
    Filling, create_segment, io_error, parse_segment_name, read_header, read_segment, segment_name, settle_tail,
};
use althing_raft::entry::{Entry, HardState};
use althing_raft::ids::{GroupId, Index, LogPosition};
use althing_raft::mark::Mark;
use althing_raft::mutant::Mutant;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Smallest segment: a header and a batch of a few records.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Largest segment: recovery reads whole segments into memory.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Dead segments kept for reuse. One is enough for a steady log; two absorb a compaction that frees several.
pub const SPARES_MAX: usize = 2;

/// Largest share of a segment that the states of all groups may take, as a divisor: with the default size more than a hundred
/// thousand groups.
const STATES_SHARE: usize = 2;

/// How to keep a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Bytes of a new segment, preallocated. A change holds for new segments only.
    pub segment_bytes: u64,
}

impl Default for Options {
    /// 64 MiB: long enough that rolling over is rare, short enough that a dead segment frees space soon.
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

/// What one group adds to the log. Applied in the order of the fields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupWrite {
    /// The group.
    pub group: GroupId,
    /// Its new hard state.
    pub hard_state: Option<HardState>,
    /// The whole log is replaced by this position (a snapshot was installed).
    pub reset_to: Option<LogPosition>,
    /// Contiguous entries; the first may lie inside the log, whose tail is then replaced.
    pub entries: Vec<Entry>,
}

/// Figures for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalStats {
    /// Bytes on disk, with segments kept for reuse.
    pub bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Segments kept for reuse.
    pub spares: u64,
    /// Records written since the log was born.
    pub records: u64,
    /// The group that keeps the oldest segment alive, if it is not the active one: the first to compact when the log grows.
    pub oldest_group: Option<GroupId>,
    /// Bytes of records that are live.
    pub live_bytes: u64,
}

/// What the log knows about a group without reading.
#[derive(Default)]
struct GroupLog {
    hard_state: HardState,
    start: LogPosition,
    last: Index,
    runs: VecDeque<Run>,
}

/// One shared log. Not thread-safe and without threads: the shell's writer thread drains its queue into `append`, calls
/// `sync` once, and then completes everybody who waited.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    active: Box<dyn File>,
    /// Segments in use, oldest first, with their sizes; the last is the active one.
    segments: VecDeque<(u64, u64)>,
    offset: u64,
    next_seq: u64,
    durable_seq: u64,
    spares: Vec<PathBuf>,
    next_spare: u64,
    /// A spare under construction.
    filling: Option<Filling>,
    /// The volume had no room for a segment when one was last wanted.
    out_of_space: bool,
    groups: BTreeMap<GroupId, GroupLog>,
    /// Whether some run may have died since garbage was last collected.
    garbage: bool,
    failed: Option<String>,
    /// The batch being built, and how many records are in it.
    batch: Vec<u8>,
    _lock: Box<dyn Send>,
}

impl Wal {
    /// Opens or creates the log in `dir` and reads back everything durable in it. A torn tail is cut off.
    ///
    /// # Errors
    /// If another process has it, the disk refuses, or durable bytes are damaged.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<(Self, Recovered), WalError> {
        let (min, max) = (SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        if !(min..=max).contains(&options.segment_bytes) || !options.segment_bytes.is_multiple_of(8) {
            return Err(WalError::SegmentSize {
                bytes: options.segment_bytes,
                min,
                max,
            });
        }
        disk.create_dir(dir).map_err(io_error("create", dir))?;
        let lock_path = dir.join("LOCK");
        let lock = disk.lock(&lock_path).map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                WalError::Locked { dir: dir.to_owned() }
            } else {
                WalError::Io {
                    action: "lock",
                    path: lock_path,
                    source,
                }
            }
        })?;

        let mut numbers = Vec::new();
        for name in disk.list(dir).map_err(io_error("list", dir))? {
            if let Some(number) = parse_segment_name(&name) {
                numbers.push(number);
            } else if name.ends_with(".spare") || name.ends_with(".new") {
                // Spares are not worth keeping over a restart: their content is garbage, and a half-made one is no use.
                let path = dir.join(&name);
                disk.remove(&path).map_err(io_error("remove", &path))?;
            }
        }
        disk.sync_dir(dir).map_err(io_error("sync", dir))?;
        numbers.sort_unstable();

        let mut replay = Replay::default();
        let mut segments = VecDeque::new();
        let mut last = None;
        let mut iter = numbers.iter().copied().peekable();
        while let Some(number) = iter.next() {
            let (path, file, bytes) = read_segment(&*disk, dir, number)?;
            segments.push_back((number, bytes.len() as u64));
            let segment = Segment {
                number,
                path: &path,
                bytes,
            };
            let sealed_at = match iter.peek() {
                None => None,
                Some(next) if *next != number + 1 => {
                    let file = dir.join(segment_name(number + 1));
                    return Err(WalError::Corrupt {
                        file,
                        offset: 0,
                        what: "the segment is missing".to_owned(),
                    });
                }
                Some(next) => {
                    let path = dir.join(segment_name(*next));
                    let bytes = read_header(&*disk, &path)?;
                    Some(
                        Segment {
                            number: *next,
                            path: &path,
                            bytes,
                        }
                        .header()?
                        .first_seq,
                    )
                }
            };
            let tail = replay.segment(&segment, sealed_at)?;
            if sealed_at.is_none() {
                last = Some((path.clone(), file, tail, segment.bytes));
            }
        }

        let next_seq = replay.next_seq.max(1);
        let mut recovered = Recovered::default();
        let mut groups = BTreeMap::new();
        let found = match &last {
            Some((path, _, _, bytes)) => {
                let number = segments.back().map_or(0, |(number, _)| *number);
                replay.finish(&Segment {
                    number,
                    path,
                    bytes: bytes.clone(),
                })?
            }
            None => BTreeMap::new(),
        };
        for (group, (found, runs)) in found {
            groups.insert(
                group,
                GroupLog {
                    hard_state: found.hard_state,
                    start: found.log_start,
                    last: found.last().index,
                    runs,
                },
            );
            recovered.groups.insert(group, found);
        }
        let (active, offset) = match last {
            Some((path, mut file, Tail { offset, torn }, bytes)) => {
                recovered.truncated_tail = torn;
                settle_tail(&mut *file, &bytes, offset).map_err(io_error("clean the tail of", &path))?;
                (file, offset as u64)
            }
            None => {
                let header = SegmentHeader {
                    number: 1,
                    first_seq: next_seq,
                };
                segments.push_back((1, options.segment_bytes));
                (
                    create_segment(&*disk, dir, header, options.segment_bytes, None)?,
                    SEGMENT_HEADER_BYTES as u64,
                )
            }
        };
        let wal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            active,
            segments,
            offset,
            next_seq,
            durable_seq: next_seq - 1,
            spares: Vec::new(),
            next_spare: 0,
            filling: None,
            out_of_space: false,
            groups,
            garbage: true,
            failed: None,
            batch: Vec::new(),
            _lock: lock,
        };
        wal.check_groups(wal.groups.len())?;
        Ok((wal, recovered))
    }

    /// Writes a batch. It is durable after the next `sync`; after a crash before that, any prefix of what was appended
    /// since the last `sync` may be there.
    ///
    /// # Errors
    /// `Misuse`, `TooLarge` and `NoSpace` before anything is written; after `NoSpace` the same call may be tried again.
    /// Any other failure is final: see [`WalError::Failed`].
    pub fn append(&mut self, writes: &[GroupWrite]) -> Result<(), WalError> {
        self.check_usable()?;
        let mut named = BTreeSet::new();
        for write in writes {
            // A group may appear twice in one batch; only its first write can be checked against the log as it is.
            if named.insert(write.group) {
                self.check_write(write)?;
            }
        }
        // Whatever opens a segment in the middle of the batch must have room for the newcomers before it as well.
        let groups = self.groups.len() + named.iter().filter(|group| !self.groups.contains_key(group)).count();
        self.check_groups(groups)?;
        writes.iter().try_for_each(|write| self.check_shape(write, groups))?;
        // Before the first byte: a batch that runs out of segments halfway could be neither finished nor taken back.
        self.reserve(groups, writes.iter().flat_map(record_sizes))?;
        let result = self.append_checked(writes);
        self.latch(result)
    }

    fn append_checked(&mut self, writes: &[GroupWrite]) -> Result<(), WalError> {
        for write in writes {
            let group = write.group;
            if let Some(state) = write.hard_state {
                self.push(group, Record::HardState(state))?;
                self.groups.entry(group).or_default().hard_state = state;
            }
            if let Some(position) = write.reset_to {
                self.push(group, Record::Reset(position))?;
                let log = self.groups.entry(group).or_default();
                log.start = position;
                log.last = position.index;
                log.runs.clear();
                self.garbage = true;
            }
            if let Some(first) = write.entries.first() {
                let log = self.groups.entry(group).or_default();
                assert!(
                    first.index > log.start.index && first.index <= log.last.next(),
                    "invariant: entries follow the log of group {group}"
                );
                if first.index <= log.last {
                    truncate_runs(&mut log.runs, first.index);
                    log.last = first.index.prev();
                    self.garbage = true;
                }
            }
            for entry in &write.entries {
                let place = self.push(group, Record::Entry(entry.clone()))?;
                let log = self.groups.entry(group).or_default();
                extend_runs(&mut log.runs, place, entry.index);
                log.last = entry.index;
            }
        }
        self.write_batch()
    }

    /// Makes everything appended durable (one fdatasync), then frees segments that nobody needs, and copies some of what
    /// keeps the oldest one alive.
    ///
    /// # Errors
    /// Any failure is final: see [`WalError::Failed`].
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_usable()?;
        let result = self
            .sync_active()
            .and_then(|()| self.collect_garbage())
            .and_then(|()| self.rewrite_laggards());
        self.latch(result)
    }

    /// Says that a group's entries up to here are never needed again: they are applied, and the state machine holds them
    /// durably. Written with the next `sync`; space is freed by it.
    ///
    /// # Errors
    /// `Misuse` if the log does not reach so far, `NoSpace` as of [`Wal::append`]; anything else is final.
    pub fn compact(&mut self, group: GroupId, up_to: LogPosition) -> Result<(), WalError> {
        self.check_usable()?;
        let (start, last) = self
            .groups
            .get(&group)
            .map_or_else(Default::default, |log| (log.start.index, log.last));
        if up_to.index > last {
            let what = format!("cannot compact up to {}: the log ends at {last}", up_to.index);
            return Err(WalError::Misuse { group, what });
        }
        if up_to.index <= start {
            return Ok(());
        }
        self.reserve(self.groups.len(), [STATE_RECORD_BYTES])?;
        let result = self
            .push(group, Record::Compact(up_to))
            .and_then(|_| self.write_batch());
        if let Some(log) = self.groups.get_mut(&group) {
            log.start = up_to;
            compact_runs(&mut log.runs, up_to.index);
        }
        self.garbage = true;
        self.latch(result)
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        let in_use: u64 = self.segments.iter().map(|(_, bytes)| bytes).sum();
        let oldest = self
            .oldest_live()
            .filter(|(segment, _)| *segment != self.active_segment());
        WalStats {
            bytes: in_use + self.spares.len() as u64 * self.options.segment_bytes,
            segments: self.segments.len() as u64,
            spares: self.spares.len() as u64,
            records: self.next_seq - 1,
            oldest_group: oldest.map(|(_, group)| group),
            live_bytes: self.live_bytes(),
        }
    }

    fn segment_bytes(&self) -> usize {
        usize::try_from(self.options.segment_bytes).expect("invariant: at most SEGMENT_BYTES_MAX")
    }

    /// Largest record that a segment takes beside the header, the states of so many groups, which open every segment, and the
    /// batch's end.
    fn record_bytes_max(&self, groups: usize) -> usize {
        let around = SEGMENT_HEADER_BYTES + 2 * BATCH_END_BYTES + groups * STATE_BYTES_MAX;
        self.segment_bytes().saturating_sub(around)
    }

    fn check_groups(&self, groups: usize) -> Result<(), WalError> {
        let limit = self.segment_bytes() / STATES_SHARE / STATE_BYTES_MAX;
        if groups > limit {
            let bytes = self.options.segment_bytes;
            return Err(WalError::TooManyGroups { groups, limit, bytes });
        }
        Ok(())
    }

    fn check_usable(&self) -> Result<(), WalError> {
        match &self.failed {
            Some(first) => Err(WalError::Failed { first: first.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers the first failure for ever (pitfall P19).
    fn latch<T>(&mut self, result: Result<T, WalError>) -> Result<T, WalError> {
        match &result {
            // A full volume refuses what nobody was promised anything about.
            Ok(_) | Err(WalError::NoSpace { .. }) => {}
            Err(error) => {
                self.failed.get_or_insert_with(|| error.to_string());
            }
        }
        result
    }

    fn check_shape(&self, write: &GroupWrite, groups: usize) -> Result<(), WalError> {
        let group = write.group;
        if let Some(pair) = write
            .entries
            .windows(2)
            .find(|pair| pair[1].index != pair[0].index.next())
        {
            let what = format!("entry {} follows entry {}", pair[1].index, pair[0].index);
            return Err(WalError::Misuse { group, what });
        }
        let limit = self.record_bytes_max(groups);
        match write.entries.iter().map(entry_record_len).find(|bytes| *bytes > limit) {
            Some(bytes) => Err(WalError::TooLarge { group, bytes, limit }),
            None => Ok(()),
        }
    }

    fn check_write(&self, write: &GroupWrite) -> Result<(), WalError> {
        let group = write.group;
        let log = self.groups.get(&group);
        let (start, last) = match write.reset_to {
            Some(position) => (position.index, position.index),
            None => log.map_or_else(Default::default, |log| (log.start.index, log.last)),
        };
        let Some(first) = write.entries.first() else {
            return Ok(());
        };
        if first.index <= start || first.index > last.next() {
            let what = format!("entry {} does not follow a log of {start} to {last}", first.index);
            return Err(WalError::Misuse { group, what });
        }
        // Committed entries are for ever (pitfall P17).
        let commit = log.map_or(Index::ZERO, |log| log.hard_state.commit);
        assert!(
            first.index > last || first.index > commit,
            "invariant: group {group} replaces entry {} although {commit} is committed",
            first.index
        );
        Ok(())
    }

    fn active_segment(&self) -> u64 {
        self.segments
            .back()
            .expect("invariant: there is always an active segment")
            .0
    }

    fn active_bytes(&self) -> u64 {
        self.segments
            .back()
            .expect("invariant: there is always an active segment")
            .1
    }

    /// Adds a record to the batch, in a new segment if it does not fit. A batch that crosses segments becomes two; that is no
    /// loss, because recovery promises prefixes only.
    fn push(&mut self, group: GroupId, record: Record) -> Result<Place, WalError> {
        let bytes = match &record {
            Record::Entry(entry) | Record::Rewrite(entry) => entry_record_len(entry),
            Record::HardState(_) | Record::Reset(_) | Record::Compact(_) | Record::BatchEnd { .. } => {
                STATE_RECORD_BYTES
            }
        };
        if self.offset + (self.batch.len() + bytes + BATCH_END_BYTES) as u64 > self.active_bytes() {
            self.write_batch()?;
            self.roll()?;
        }
        let opens = self.offset == SEGMENT_HEADER_BYTES as u64 && self.batch.is_empty();
        if opens && !Mutant::SegmentWithoutStates.active() {
            self.push_states();
        }
        let from = self.offset + self.batch.len() as u64;
        self.encode(group, &record);
        Ok(Place {
            segment: self.active_segment(),
            from,
            to: self.offset + self.batch.len() as u64,
        })
    }

    /// Opens a segment with every group's state, so that a quiet group never keeps an old segment alive by it.
    fn push_states(&mut self) {
        let states: Vec<_> = self
            .groups
            .iter()
            .map(|(group, log)| (*group, log.hard_state, log.start))
            .collect();
        for (group, hard_state, start) in states {
            self.encode(group, &Record::HardState(hard_state));
            self.encode(group, &Record::Compact(start));
        }
    }

    fn encode(&mut self, group: GroupId, record: &Record) {
        let segment = self.active_segment();
        encode_record(segment, self.next_seq, group, record, &mut self.batch);
        self.next_seq += 1;
    }

    fn write_batch(&mut self) -> Result<(), WalError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.encode(
            GroupId::META,
            &Record::BatchEnd {
                durable: self.durable_seq,
            },
        );
        let end = self.offset + self.batch.len() as u64;
        assert!(end <= self.active_bytes(), "invariant: a batch ends inside its segment");
        let path = self.dir.join(segment_name(self.active_segment()));
        self.active
            .write_all_at(&self.batch, self.offset)
            .map_err(io_error("write", &path))?;
        self.offset = end;
        self.batch.clear();
        Ok(())
    }

    fn sync_active(&mut self) -> Result<(), WalError> {
        if self.durable_seq + 1 == self.next_seq {
            return Ok(());
        }
        let path = self.dir.join(segment_name(self.active_segment()));
        if !Mutant::SkipSync.active() {
            self.active.sync_data().map_err(io_error("sync", &path))?;
        }
        self.durable_seq = self.next_seq - 1;
        Ok(())
    }

    /// Seals the active segment and starts the next one.
    fn roll(&mut self) -> Result<(), WalError> {
        if !Mutant::SealWithoutSync.active() {
            self.sync_active()?;
        }
        Mark::SegmentSealed.hit();
        let header = SegmentHeader {
            number: self.active_segment() + 1,
            first_seq: self.next_seq,
        };
        let bytes = self.options.segment_bytes;
        let spare = self.spares.pop();
        assert!(
            spare.is_some(),
            "invariant: a spare was reserved for every segment that a batch opens"
        );
        self.active = create_segment(&*self.disk, &self.dir, header, bytes, spare)?;
        self.segments.push_back((header.number, bytes));
        self.offset = SEGMENT_HEADER_BYTES as u64;
        self.garbage = true;
        Ok(())
    }
}

/// An upper bound of each record's bytes, in the order in which `append` writes them.
fn record_sizes(write: &GroupWrite) -> impl Iterator<Item = usize> + '_ {
    let states = usize::from(write.hard_state.is_some()) + usize::from(write.reset_to.is_some());
    std::iter::repeat_n(STATE_RECORD_BYTES, states).chain(write.entries.iter().map(entry_record_len))
}

/// Bytes of the largest record that is not an entry: a hard state with a vote and leases has 65.
const STATE_RECORD_BYTES: usize = crate::record::RECORD_HEADER_BYTES + 72;
/// Bytes of one group's hard state and start.
const STATE_BYTES_MAX: usize = 2 * STATE_RECORD_BYTES;
const _: () = assert!(STATE_RECORD_BYTES >= crate::record::RECORD_HEADER_BYTES + 65);
