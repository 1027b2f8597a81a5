//! A log looked at from outside: nothing is changed, nothing is locked, and what is damaged is described, not refused.

use crate::error::WalError;
use crate::record::{Record, SEGMENT_HEADER_BYTES, read_record};
use crate::recover::{Recovered, Replay, Segment};
use crate::segment::{parse_segment_name, segment_name};
use crate::wal::SEGMENT_BYTES_MAX;
use althing_raft::ids::{GroupId, Index};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// A log's files, and what a start would make of them.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Segments in use, oldest first.
    pub segments: Vec<SegmentFacts>,
    /// Files kept for reuse or half made, with their sizes. A start removes them.
    pub spares: Vec<(String, u64)>,
    /// What a start would recover; what stands before the damage if there is some.
    pub recovered: Recovered,
    /// Why a start would refuse the log.
    pub problem: Option<String>,
}

/// One segment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentFacts {
    /// Its number, which is also the salt of its records' checksums.
    pub number: u64,
    /// Name of the file.
    pub name: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes up to the last record that can be read.
    pub used: u64,
    /// Sequence number of the first record, as the header says.
    pub first_seq: Option<u64>,
    /// Sequence number of the last record that can be read.
    pub last_seq: Option<u64>,
    /// Entries per group.
    pub groups: BTreeMap<GroupId, EntryRange>,
    /// What is wrong with it, as far as it shows without the others.
    pub problem: Option<String>,
}

/// Entries of a group in a segment, replaced ones included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRange {
    /// Records.
    pub records: u64,
    /// Least index.
    pub first: Index,
    /// Greatest index.
    pub last: Index,
}

/// Reads the log in `dir` as far as it can be read. Of a log that is being written, the end may look torn.
///
/// # Errors
/// If the directory itself cannot be listed. A directory that is not there holds an empty log.
pub fn inspect(dir: &Path) -> io::Result<Inspection> {
    let mut found = Inspection::default();
    let mut numbers = Vec::new();
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        listing => listing?,
    };
    for item in listing {
        let item = item?;
        let name = item.file_name().to_string_lossy().into_owned();
        if let Some(number) = parse_segment_name(&name) {
            numbers.push(number);
        } else if name.ends_with(".spare") || name.ends_with(".new") {
            found.spares.push((name, item.metadata().map_or(0, |data| data.len())));
        }
    }
    numbers.sort_unstable();
    found.spares.sort();

    let mut replay = Some(Replay::default());
    for (at, number) in numbers.iter().copied().enumerate() {
        let path = dir.join(segment_name(number));
        let bytes = match read(&path, SEGMENT_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                let problem = format!("cannot read it: {error}");
                found.segments.push(SegmentFacts {
                    number,
                    name: segment_name(number),
                    problem: Some(problem.clone()),
                    ..SegmentFacts::default()
                });
                found.problem.get_or_insert(format!("{}: {problem}", path.display()));
                replay = None;
                continue;
            }
        };
        let segment = Segment {
            number,
            path: &path,
            bytes,
        };
        let next = numbers.get(at + 1).copied();
        let sealed_at = next.map(|next| first_seq_of(dir, number, next));
        found
            .segments
            .push(facts(&segment, sealed_at.as_ref().and_then(|seq| seq.as_ref().ok())));
        let Some(mut going) = replay.take() else { continue };
        let judged = match sealed_at.transpose() {
            Err(error) => Err(error),
            Ok(sealed_at) => going.segment(&segment, sealed_at).map(|tail| {
                if next.is_none() {
                    found.recovered.truncated_tail = tail.torn;
                }
                going
            }),
        };
        match judged {
            Err(error) => found.problem = Some(error.to_string()),
            Ok(going) if next.is_none() => match going.finish(&segment) {
                Ok(groups) => {
                    found.recovered.groups = groups.into_iter().map(|(id, (group, _))| (id, group)).collect();
                }
                Err(error) => found.problem = Some(error.to_string()),
            },
            Ok(going) => replay = Some(going),
        }
    }
    Ok(found)
}

fn read(path: &Path, limit: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// The first sequence number of the segment after `number`.
fn first_seq_of(dir: &Path, number: u64, next: u64) -> Result<u64, WalError> {
    let path = dir.join(segment_name(next));
    if next != number + 1 {
        return Err(WalError::Corrupt {
            file: dir.join(segment_name(number + 1)),
            offset: 0,
            what: "the segment is missing".to_owned(),
        });
    }
    let bytes = read(&path, SEGMENT_HEADER_BYTES as u64).map_err(crate::segment::io_error("read", &path))?;
    let header = Segment {
        number: next,
        path: &path,
        bytes,
    }
    .header()?;
    Ok(header.first_seq)
}

/// What one segment holds by itself.
fn facts(segment: &Segment<'_>, next_first_seq: Option<&u64>) -> SegmentFacts {
    let mut facts = SegmentFacts {
        number: segment.number,
        name: segment_name(segment.number),
        bytes: segment.bytes.len() as u64,
        ..SegmentFacts::default()
    };
    let header = match segment.header() {
        Ok(header) => header,
        Err(error) => {
            facts.problem = Some(error.to_string());
            return facts;
        }
    };
    facts.first_seq = Some(header.first_seq);
    let mut at = SEGMENT_HEADER_BYTES;
    let mut seq = header.first_seq;
    while let Some(raw) = read_record(segment.number, &segment.bytes, at).filter(|raw| raw.seq == seq) {
        let (group, next) = (raw.group, raw.next);
        match raw.parse() {
            Ok(Record::Entry(entry) | Record::Rewrite(entry)) => {
                let range = facts.groups.entry(group).or_insert(EntryRange {
                    records: 0,
                    first: entry.index,
                    last: entry.index,
                });
                range.records += 1;
                range.first = range.first.min(entry.index);
                range.last = range.last.max(entry.index);
            }
            Ok(Record::HardState(_) | Record::Reset(_) | Record::Compact(_) | Record::BatchEnd { .. }) => {}
            Err(error) => {
                facts.problem = Some(format!("byte {at}, record {seq}: {error}"));
                break;
            }
        }
        facts.last_seq = Some(seq);
        facts.used = next as u64;
        seq += 1;
        at = next;
    }
    if let Some(next) = next_first_seq
        && seq != *next
        && facts.problem.is_none()
    {
        facts.problem = Some(format!(
            "byte {at}: record {seq} cannot be read, and the next segment begins with record {next}"
        ));
    }
    facts
}
