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

/// Records of one group that lie further apart in a segment are two runs, so that reading one run reads little of other groups.
const RUN_GAP_BYTES_MAX: u64 = 64 << 10;

/// Consecutive entries of one group in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) segment: u64,
    pub(crate) first: Index,
    pub(crate) last: Index,
    /// Where the records lie. Others' records and replaced ones may lie between.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Bytes of the records themselves; an estimate once a part of the run has died.
    pub(crate) bytes: u64,
}

/// Where an entry's record lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Run {
    fn entries(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }

    /// Narrows the run to these indices, which lie inside it.
    fn narrow(&mut self, first: Index, last: Index) {
        let before = self.entries().max(1);
        (self.first, self.last) = (first, last);
        self.bytes = self.bytes / before * self.entries();
    }
}

/// Drops `index` and everything after it.
pub(crate) fn truncate_runs(runs: &mut VecDeque<Run>, index: Index) {
    while runs.back().is_some_and(|run| run.first >= index) {
        runs.pop_back();
    }
    if let Some(run) = runs.back_mut().filter(|run| run.last >= index) {
        run.narrow(run.first, index.prev());
    }
}

/// Drops everything up to `index`.
pub(crate) fn compact_runs(runs: &mut VecDeque<Run>, index: Index) {
    while runs.front().is_some_and(|run| run.last <= index) {
        runs.pop_front();
    }
    if let Some(run) = runs.front_mut().filter(|run| run.first <= index) {
        run.narrow(index.next(), run.last);
    }
}

/// Adds one entry at the end.
pub(crate) fn extend_runs(runs: &mut VecDeque<Run>, place: Place, index: Index) {
    let Place { segment, from, to } = place;
    match runs.back_mut() {
        Some(run)
            if run.segment == segment
                && run.last.next() == index
                && from >= run.to
                && from - run.to <= RUN_GAP_BYTES_MAX =>
        {
            run.last = index;
            run.to = to;
            run.bytes += to - from;
        }
        Some(_) | None => runs.push_back(Run {
            segment,
            first: index,
            last: index,
            from,
            to,
            bytes: to - from,
        }),
    }
}

/// One group while its records are replayed. There may be gaps meanwhile: older segments held what is between, and a later
/// `Compact`, `Reset` or `Rewrite` says what became of it. Whether it was rightly dropped is judged at the end.
#[derive(Default)]
pub(crate) struct Replayed {
    hard_state: HardState,
    log_start: LogPosition,
    entries: BTreeMap<Index, (Entry, Place)>,
    /// Last index of the log, whether its entry is here or not.
    last: Index,
}

impl Replayed {
    fn check(&self, entry: &Entry) -> Result<(), String> {
        if entry.index <= self.log_start.index {
            return Err(format!(
                "entry {} lies before the log's start {}",
                entry.index, self.log_start.index
            ));
        }
        Ok(())
    }

    fn append(&mut self, place: Place, entry: Entry) -> Result<(), String> {
        self.check(&entry)?;
        if entry.index <= self.last {
            self.entries.split_off(&entry.index);
        }
        self.last = entry.index;
        self.entries.insert(entry.index, (entry, place));
        Ok(())
    }

    fn rewrite(&mut self, place: Place, entry: Entry) -> Result<(), String> {
        self.check(&entry)?;
        if let Some((present, _)) = self.entries.get(&entry.index).filter(|(old, _)| *old != entry) {
            return Err(format!(
                "entry {} of term {} was copied as one of term {}",
                entry.index, present.term, entry.term
            ));
        }
        self.last = self.last.max(entry.index);
        self.entries.insert(entry.index, (entry, place));
        Ok(())
    }

    fn compact(&mut self, to: LogPosition) {
        if to.index > self.log_start.index {
            self.log_start = to;
            self.entries = self.entries.split_off(&to.index.next());
            self.last = self.last.max(to.index);
        }
    }

    fn reset(&mut self, to: LogPosition) {
        self.log_start = to;
        self.entries.clear();
        self.last = to.index;
    }

    fn finish(self) -> Result<(RecoveredGroup, VecDeque<Run>), String> {
        let mut runs = VecDeque::new();
        let mut entries = Vec::with_capacity(self.entries.len());
        let mut expected = self.log_start.index.next();
        for (index, (entry, place)) in self.entries {
            if index != expected {
                return Err(format!(
                    "entries after {} up to {} are in no segment",
                    expected.prev(),
                    index.prev()
                ));
            }
            extend_runs(&mut runs, place, index);
            entries.push(entry);
            expected = index.next();
        }
        if self.last >= expected {
            return Err(format!(
                "entries after {} up to {} are in no segment",
                expected.prev(),
                self.last
            ));
        }
        let mut hard_state = self.hard_state;
        // Commit is a hint (pitfall P16): it may have been written in a batch whose entries came after it.
        hard_state.commit = hard_state.commit.min(self.last.max(self.log_start.index));
        let group = RecoveredGroup {
            hard_state,
            log_start: self.log_start,
            entries,
        };
        Ok((group, runs))
    }
}

/// Indices and sequence numbers beyond this do not occur; refusing them keeps arithmetic on what a file says from overflowing.
const COUNTERS_MAX: u64 = 1 << 62;

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
        if header.first_seq > COUNTERS_MAX {
            return Err(self.corrupt(0, format!("record {} is beyond every log", header.first_seq)));
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
        let mut pending: Vec<(GroupId, Record, Place)> = Vec::new();
        let mut seq = self.next_seq;
        while sealed_at != Some(self.next_seq) {
            let Some(raw) = read_record(segment.number, &segment.bytes, at).filter(|raw| raw.seq == seq) else {
                break;
            };
            let (group, next) = (raw.group, raw.next);
            let record = raw.parse().map_err(|error| segment.corrupt(at, error.to_string()))?;
            if matches!(record, Record::BatchEnd { .. }) {
                for (group, record, place) in pending.drain(..) {
                    self.apply(place, group, record)
                        .map_err(|what| segment.corrupt(offset, what))?;
                }
                offset = next;
                self.next_seq = seq + 1;
            } else {
                let place = Place {
                    segment: segment.number,
                    from: at as u64,
                    to: next as u64,
                };
                pending.push((group, record, place));
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

    fn apply(&mut self, place: Place, group: GroupId, record: Record) -> Result<(), String> {
        let index = match &record {
            Record::Entry(entry) | Record::Rewrite(entry) => entry.index,
            Record::Reset(to) | Record::Compact(to) => to.index,
            Record::HardState(_) | Record::BatchEnd { .. } => Index::ZERO,
        };
        if index.0 > COUNTERS_MAX {
            return Err(format!("group {group}: index {index} is beyond every log"));
        }
        let replayed = self.groups.entry(group).or_default();
        match record {
            Record::HardState(state) => replayed.hard_state = state,
            Record::Entry(entry) => replayed
                .append(place, unshare(entry))
                .map_err(|what| format!("group {group}: {what}"))?,
            Record::Rewrite(entry) => replayed
                .rewrite(place, unshare(entry))
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

    /// What the segments held, after a check of what can only be judged at the end.
    pub(crate) fn finish(
        self,
        last: &Segment<'_>,
    ) -> Result<BTreeMap<GroupId, (RecoveredGroup, VecDeque<Run>)>, WalError> {
        let judge = |(group, replayed): (GroupId, Replayed)| match replayed.finish() {
            Ok(found) => Ok((group, found)),
            Err(what) => Err(last.corrupt(0, format!("group {group}: {what}"))),
        };
        self.groups.into_iter().map(judge).collect()
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
