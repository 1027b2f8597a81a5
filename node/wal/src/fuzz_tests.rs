//! Bytes that nobody wrote, behind checksums that hold: what a checksum does not catch, the decoder must.
//!
//! Every length that a file declares is checked against the bytes that are there before anything is sliced or reserved, so what
//! comes out is never larger than what went in; the tests count that.

use crate::codec::{entry_len, tests::arb_entry};
use crate::inspect::inspect;
use crate::record::{Record, SegmentHeader, encode_record, forge_record};
use crate::recover::{Replay, Segment};
use crate::{Options, StdDisk, Wal};
use althing_raft::entry::{HardState, LeaseState};
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use bytes::Bytes;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

const OPTIONS: Options = Options { segment_bytes: 4096 };

/// A record of any kind with any body, its checksum right.
fn arb_forged() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (0..9u8, proptest::collection::vec(any::<u8>(), 0..60))
}

/// A record that parses, with numbers from small to absurd.
fn arb_record() -> impl Strategy<Value = Record> {
    let number = || prop_oneof![0..20u64, any::<u64>(), Just(u64::MAX), Just(u64::MAX - 1)];
    let position = move || {
        (number(), number()).prop_map(|(term, index)| LogPosition {
            term: Term(term),
            index: Index(index),
        })
    };
    let entry = move || {
        (arb_entry(), number()).prop_map(|(mut entry, index)| {
            entry.index = Index(index);
            entry
        })
    };
    prop_oneof![
        entry().prop_map(Record::Entry),
        entry().prop_map(Record::Rewrite),
        position().prop_map(Record::Reset),
        position().prop_map(Record::Compact),
        (number(), number(), number()).prop_map(|(term, commit, incarnation)| Record::HardState(HardState {
            term: Term(term),
            vote: None,
            commit: Index(commit),
            lease: LeaseState {
                incarnation,
                ..LeaseState::default()
            },
        })),
        number().prop_map(|durable| Record::BatchEnd { durable }),
    ]
}

fn header(first_seq: u64) -> Vec<u8> {
    SegmentHeader { number: 1, first_seq }.encode().to_vec()
}

/// Replays one segment and says how many bytes of entries came out.
fn replay(bytes: Vec<u8>) -> Result<usize, String> {
    let path = Path::new("fuzzed.wal");
    let segment = Segment {
        number: 1,
        path,
        bytes: Bytes::from(bytes),
    };
    let mut replay = Replay::default();
    replay.segment(&segment, None).map_err(|error| error.to_string())?;
    let groups = replay.finish(&segment).map_err(|error| error.to_string())?;
    let entries = groups.values().flat_map(|(group, _)| &group.entries);
    Ok(entries.map(entry_len).sum())
}

/// What was read, or an error that says where.
fn clear(result: Result<usize, String>, len: usize) -> Result<(), TestCaseError> {
    match result {
        Ok(bytes) => prop_assert!(bytes <= len, "{bytes} bytes came out of {len}"),
        Err(text) => prop_assert!(text.contains("fuzzed.wal"), "{text}"),
    }
    Ok(())
}

/// A small log of three groups over several segments, as files.
fn a_real_log(dir: &Path) {
    let (mut wal, _) = Wal::open(Arc::new(StdDisk), dir, OPTIONS).unwrap();
    for index in 1..=60 {
        let writes: Vec<_> = (1..=3)
            .map(|group| crate::GroupWrite {
                group: GroupId(group),
                hard_state: None,
                reset_to: None,
                entries: vec![althing_raft::entry::Entry {
                    term: Term(1),
                    index: Index(index),
                    payload: althing_raft::entry::Payload::Command(Bytes::from(vec![group as u8; 20])),
                }],
            })
            .collect();
        wal.append(&writes).unwrap();
        wal.sync().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn forged_records_with_right_checksums_give_a_log_or_a_clear_error(
        records in proptest::collection::vec(arb_forged(), 0..12), ended in any::<bool>(), first in prop_oneof![1..9u64, any::<u64>()],
    ) {
        let mut bytes = header(first);
        let mut seq = first;
        for (kind, body) in &records {
            forge_record(1, seq, GroupId(1), *kind, body, &mut bytes);
            seq = seq.wrapping_add(1);
        }
        if ended {
            encode_record(1, seq, GroupId(0), &Record::BatchEnd { durable: 0 }, &mut bytes);
        }
        let len = bytes.len();
        clear(replay(bytes), len)?;
    }

    #[test]
    fn records_in_any_order_with_any_numbers_give_a_log_or_a_clear_error(
        records in proptest::collection::vec((0..3u64, arb_record()), 0..20),
    ) {
        let mut bytes = header(1);
        for (seq, (group, record)) in (1..).zip(&records) {
            encode_record(1, seq, GroupId(*group), record, &mut bytes);
        }
        encode_record(1, records.len() as u64 + 1, GroupId(0), &Record::BatchEnd { durable: 0 }, &mut bytes);
        let len = bytes.len();
        clear(replay(bytes), len)?;
    }

    #[test]
    fn arbitrary_bytes_after_a_header_are_a_tail_and_nothing_more(noise in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let mut bytes = header(1);
        bytes.extend(noise);
        prop_assert_eq!(replay(bytes), Ok(0));
    }

    #[test]
    fn arbitrary_files_are_refused_with_their_name(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(replay(noise).unwrap_err().contains("fuzzed.wal"));
    }
}

/// What happens to a file.
#[derive(Clone, Debug)]
enum Harm {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Copy {
        from: prop::sample::Index,
        to: prop::sample::Index,
        len: usize,
    },
    Grow(Vec<u8>),
    Swap,
    Remove,
}

fn arb_harm() -> impl Strategy<Value = Harm> {
    use prop::sample::Index as Place;
    prop_oneof![
        (any::<Place>(), 1..=255u8).prop_map(|(at, flip)| Harm::Flip(at, flip)),
        any::<Place>().prop_map(Harm::Cut),
        (any::<Place>(), any::<Place>(), 1..300usize).prop_map(|(from, to, len)| Harm::Copy { from, to, len }),
        proptest::collection::vec(any::<u8>(), 0..500).prop_map(Harm::Grow),
        Just(Harm::Swap),
        Just(Harm::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever happens to the files, opening and inspecting end with a log or a clear error, and agree on which.
    #[test]
    fn harmed_files_give_a_log_or_a_clear_error(harms in proptest::collection::vec((any::<prop::sample::Index>(), arb_harm()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        a_real_log(dir.path());
        for (which, harm) in harms {
            let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|item| item.unwrap().path()).collect();
            files.retain(|path| path.extension().is_some_and(|end| end == "wal"));
            if files.is_empty() {
                break;
            }
            files.sort();
            let path = &files[which.index(files.len())];
            let mut bytes = std::fs::read(path).unwrap();
            match harm {
                Harm::Flip(at, flip) if !bytes.is_empty() => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= flip;
                }
                Harm::Cut(at) if !bytes.is_empty() => bytes.truncate(at.index(bytes.len())),
                Harm::Copy { from, to, len } if !bytes.is_empty() => {
                    let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                    let len = len.min(bytes.len() - from.max(to));
                    bytes.copy_within(from..from + len, to);
                }
                Harm::Flip(..) | Harm::Cut(_) | Harm::Copy { .. } => {}
                Harm::Grow(more) => bytes.extend(more),
                Harm::Swap => {
                    let other = &files[0];
                    let content = std::fs::read(other).unwrap();
                    std::fs::write(other, &bytes).unwrap();
                    bytes = content;
                }
                Harm::Remove => {
                    std::fs::remove_file(path).unwrap();
                    continue;
                }
            }
            std::fs::write(path, bytes).unwrap();
        }
        let seen = inspect(dir.path()).unwrap();
        match Wal::open(Arc::new(StdDisk), dir.path(), OPTIONS) {
            Ok((_, recovered)) => {
                prop_assert_eq!(seen.problem, None);
                prop_assert_eq!(seen.recovered.groups, recovered.groups);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.contains(".wal"), "{}", text);
                prop_assert!(seen.problem.is_some(), "{}", text);
            }
        }
    }
}

#[test]
fn a_file_longer_than_any_segment_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // A hole: it has a length and takes no room.
    let file = std::fs::File::create(dir.path().join("0000000000000001.wal")).unwrap();
    file.set_len(1 << 42).unwrap();
    let error = Wal::open(Arc::new(StdDisk), dir.path(), OPTIONS)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("more than any segment"), "{error}");
}
