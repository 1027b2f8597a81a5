//! From segments back to groups: pure, bytes in and state out.

use crate::error::WalError;
use crate::record::{FORMAT_VERSION, HeaderError, Record, SEGMENT_HEADER_BYTES, SegmentHeader, peek_seq, read_record};
use althing_raft::entry::{Entry, HardState, Payload};
use althing_raft::ids::{GroupId, Index, LogPosition};
use althing_raft::mark::Mark;
use althing_raft::roster::{Responders, Span};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every group that ever wrote.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// The unsynced tail that a crash left half written, if there was one. Nothing in it was ever acknowledged.
    pub truncated_tail: Option<TruncatedTail>,
}

/// One group's durable log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveredGroup {
    /// Term, vote, and a commit index that is never beyond the last entry.
    pub hard_state: HardState,
    /// Position just before `entries[0]`.
    pub log_start: LogPosition,
    /// The entries, contiguous.
    pub entries: Vec<Entry>,
}

impl RecoveredGroup {
    /// Position of the last entry, or of the log's start.
    #[must_use]
    pub fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.log_start, Entry::position)
    }
}

/// Where a torn tail was cut off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TruncatedTail {
    /// The segment.
    pub file: PathBuf,
    /// First byte that was dropped.
    pub offset: u64,
    /// Whole records, without their batch's end or out of order, that were dropped.
    pub records: u64,
}

/// Consecutive entries of one group in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) segment: u64,
    pub(crate) first: Index,
    pub(crate) last: Index,
}

/// Drops `index` and everything after it.
pub(crate) fn truncate_runs(runs: &mut VecDeque<Run>, index: Index) {
    while runs.back().is_some_and(|run| run.first >= index) {
        runs.pop_back();
    }
    if let Some(run) = runs.back_mut() {
        run.last = run.last.min(index.prev());
    }
}

/// Drops everything up to `index`.
pub(crate) fn compact_runs(runs: &mut VecDeque<Run>, index: Index) {
    while runs.front().is_some_and(|run| run.last <= index) {
        runs.pop_front();
    }
    if let Some(run) = runs.front_mut() {
        run.first = run.first.max(index.next());
    }
}

/// Adds one entry at the end.
pub(crate) fn extend_runs(runs: &mut VecDeque<Run>, segment: u64, index: Index) {
    match runs.back_mut() {
        Some(run) if run.segment == segment && run.last.next() == index => run.last = index,
        Some(_) | None => runs.push_back(Run {
            segment,
            first: index,
            last: index,
        }),
    }
}

/// One group while its records are replayed.
#[derive(Default)]
pub(crate) struct Replayed {
    pub(crate) group: RecoveredGroup,
    pub(crate) runs: VecDeque<Run>,
    /// Entries up to here were in segments that are gone. A later `Compact` must cover them.
    missing_to: Index,
}

impl Replayed {
    fn last(&self) -> Index {
        self.group
            .entries
            .last()
            .map_or(self.group.log_start.index.max(self.missing_to), |entry| entry.index)
    }

    fn append(&mut self, segment: u64, entry: Entry) -> Result<(), String> {
        if entry.index <= self.group.log_start.index {
            return Err(format!(
                "entry {} lies before the log's start {}",
                entry.index, self.group.log_start.index
            ));
        }
        let first = self
            .group
            .entries
            .first()
            .map_or(self.last().next(), |entry| entry.index);
        if entry.index < first || entry.index > self.last().next() {
            // Older segments held what is between; whether they were rightly dropped is judged at the end.
            self.group.entries.clear();
            self.runs.clear();
            self.missing_to = entry.index.prev();
        } else {
            let keep = usize::try_from(entry.index.0 - first.0).expect("invariant: recovered entries fit in memory");
            self.group.entries.truncate(keep);
            truncate_runs(&mut self.runs, entry.index);
        }
        extend_runs(&mut self.runs, segment, entry.index);
        self.group.entries.push(entry);
        Ok(())
    }

    fn compact(&mut self, to: LogPosition) {
        if to.index > self.group.log_start.index {
            self.group.log_start = to;
            let dropped = self.group.entries.partition_point(|entry| entry.index <= to.index);
            self.group.entries.drain(..dropped);
            compact_runs(&mut self.runs, to.index);
        }
    }

    fn reset(&mut self, to: LogPosition) {
        self.group.log_start = to;
        self.group.entries.clear();
        self.runs.clear();
        self.missing_to = Index::ZERO;
    }

    fn finish(&mut self) -> Result<(), String> {
        if self.missing_to > self.group.log_start.index {
            return Err(format!(
                "entries after {} up to {} are in no segment",
                self.group.log_start.index, self.missing_to
            ));
        }
        let last = self.group.last().index;
        // Commit is a hint (pitfall P16): it may have been written in a batch whose entries came after it.
        self.group.hard_state.commit = self.group.hard_state.commit.min(last);
        Ok(())
    }
}

/// Replays segments one by one, oldest first.
#[derive(Default)]
pub(crate) struct Replay {
    pub(crate) groups: BTreeMap<GroupId, Replayed>,
    /// Seq of the next record; 0 before the first segment.
    pub(crate) next_seq: u64,
}

/// How the last segment ended.
pub(crate) struct Tail {
    /// Where the next batch goes.
    pub(crate) offset: usize,
    pub(crate) torn: Option<TruncatedTail>,
}

/// A segment's file as read.
pub(crate) struct Segment<'a> {
    pub(crate) number: u64,
    pub(crate) path: &'a Path,
    pub(crate) bytes: Bytes,
}

impl Segment<'_> {
    pub(crate) fn corrupt(&self, offset: usize, what: String) -> WalError {
        WalError::Corrupt {
            file: self.path.to_owned(),
            offset: offset as u64,
            what,
        }
    }

    /// The header, which was synced before the file got its name: it is never torn.
    pub(crate) fn header(&self) -> Result<SegmentHeader, WalError> {
        let header = SegmentHeader::decode(&self.bytes).map_err(|error| match error {
            HeaderError::Damaged => self.corrupt(0, "the segment's header is damaged".to_owned()),
            HeaderError::Version(found) => WalError::Version {
                file: self.path.to_owned(),
                found,
                supported: FORMAT_VERSION,
            },
        })?;
        if header.number != self.number {
            return Err(self.corrupt(0, format!("the header says segment {:016x}", header.number)));
        }
        Ok(header)
    }
}

impl Replay {
    /// Replays one segment. `sealed_at` is the first seq of the next one, if there is one.
    pub(crate) fn segment(&mut self, segment: &Segment<'_>, sealed_at: Option<u64>) -> Result<Tail, WalError> {
        let header = segment.header()?;
        if self.next_seq == 0 {
            self.next_seq = header.first_seq;
        } else if self.next_seq != header.first_seq {
            let what = format!(
                "it starts with record {} where {} was expected",
                header.first_seq, self.next_seq
            );
            return Err(segment.corrupt(0, what));
        }

        let mut offset = SEGMENT_HEADER_BYTES;
        let mut at = offset;
        let mut pending: Vec<(GroupId, Record)> = Vec::new();
        let mut seq = self.next_seq;
        while sealed_at != Some(self.next_seq) {
            let Some(raw) = read_record(segment.number, &segment.bytes, at).filter(|raw| raw.seq == seq) else {
                break;
            };
            let (group, next) = (raw.group, raw.next);
            let record = raw.parse().map_err(|error| segment.corrupt(at, error.to_string()))?;
            if matches!(record, Record::BatchEnd { .. }) {
                for (group, record) in pending.drain(..) {
                    self.apply(segment.number, group, record)
                        .map_err(|what| segment.corrupt(offset, what))?;
                }
                offset = next;
                self.next_seq = seq + 1;
            } else {
                pending.push((group, record));
            }
            seq += 1;
            at = next;
        }

        if let Some(sealed_at) = sealed_at {
            return if self.next_seq == sealed_at {
                Ok(Tail { offset, torn: None })
            } else {
                Err(segment.corrupt(
                    at,
                    format!(
                        "record {seq} is damaged, in a segment that was synced up to record {}",
                        sealed_at - 1
                    ),
                ))
            };
        }
        let torn = self.judge_tail(segment, offset)?;
        Ok(Tail { offset, torn })
    }

    fn apply(&mut self, segment: u64, group: GroupId, record: Record) -> Result<(), String> {
        let replayed = self.groups.entry(group).or_default();
        match record {
            Record::HardState(state) => replayed.group.hard_state = state,
            Record::Entry(entry) => replayed
                .append(segment, unshare(entry))
                .map_err(|what| format!("group {group}: {what}"))?,
            Record::Reset(to) => replayed.reset(to),
            Record::Compact(to) => replayed.compact(to),
            Record::BatchEnd { .. } => {}
        }
        Ok(())
    }

    /// Tells a torn tail from damage: a later batch may say that the missing record was durable (pitfall P18).
    fn judge_tail(&self, segment: &Segment<'_>, offset: usize) -> Result<Option<TruncatedTail>, WalError> {
        let bytes = &segment.bytes;
        // No segment holds more records than this, so a larger seq is chance.
        let seq_max = self.next_seq + bytes.len() as u64;
        let mut records = 0;
        let mut at = offset;
        while at < bytes.len() {
            let found = peek_seq(bytes, at)
                .filter(|seq| (self.next_seq..seq_max).contains(seq))
                .and_then(|_| read_record(segment.number, bytes, at));
            let Some(raw) = found else {
                at += 8;
                continue;
            };
            records += 1;
            at = raw.next;
            if let Ok(Record::BatchEnd { durable }) = raw.parse()
                && durable >= self.next_seq
            {
                let what = format!(
                    "record {} is damaged, and a later one says that it was synced",
                    self.next_seq
                );
                return Err(segment.corrupt(offset, what));
            }
        }
        let started = peek_seq(bytes, offset) == Some(self.next_seq);
        let torn = records > 0 || started;
        if torn {
            Mark::TornTail.hit();
        }
        Ok(torn.then(|| TruncatedTail {
            file: segment.path.to_owned(),
            offset: offset as u64,
            records,
        }))
    }

    /// Checks what can only be judged at the end.
    pub(crate) fn finish(&mut self, last: &Segment<'_>) -> Result<(), WalError> {
        for (group, replayed) in &mut self.groups {
            replayed
                .finish()
                .map_err(|what| last.corrupt(0, format!("group {group}: {what}")))?;
        }
        Ok(())
    }
}

/// Copies the payload, so that a small entry does not keep a whole segment in memory.
fn unshare(mut entry: Entry) -> Entry {
    match &mut entry.payload {
        Payload::Noop => {}
        Payload::Command(bytes) => *bytes = Bytes::copy_from_slice(bytes),
        Payload::Config(change) => change.context = Bytes::copy_from_slice(&change.context),
        Payload::Reads(change) => {
            if let Responders::Ranges(ranges) = &mut change.spec.responders {
                for range in ranges {
                    match &mut range.span {
                        Span::Key(key) => *key = Bytes::copy_from_slice(key),
                        Span::Range { start, end } => {
                            *start = Bytes::copy_from_slice(start);
                            *end = end.as_ref().map(|end| Bytes::copy_from_slice(end));
                        }
                    }
                }
            }
        }
    }
    entry
}
