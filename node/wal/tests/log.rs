//! What the log promises, on a disk that crashes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use althing_raft::entry::{Entry, HardState, LeaseState, Payload};
use althing_raft::ids::{Epoch, GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::roster::Ballot;
use althing_wal::sim_disk::SimDisk;
use althing_wal::{Disk, GroupWrite, LAGGARD_SEGMENTS, Options, Recovered, RecoveredGroup, StdDisk, Wal, WalError};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/wal";
const G: GroupId = GroupId::FIRST_SHARD;
const OPTIONS: Options = Options { segment_bytes: 4096 };

fn open(disk: &SimDisk) -> (Wal, Recovered) {
    try_open(disk).unwrap()
}

fn try_open(disk: &SimDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS)
}

fn entry(term: u64, index: u64, text: &str) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        payload: Payload::Command(Bytes::from(text.to_owned())),
    }
}

fn entries(term: u64, indices: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    indices
        .map(|index| entry(term, index, &format!("value {index} of term {term}")))
        .collect()
}

fn position(term: u64, index: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: Index(index),
    }
}

fn write(group: GroupId, entries: Vec<Entry>) -> GroupWrite {
    GroupWrite {
        group,
        hard_state: None,
        reset_to: None,
        entries,
    }
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: Some(MemberId(7)),
        commit: Index(commit),
        ..HardState::default()
    }
}

fn commit(wal: &mut Wal, entries: Vec<Entry>) {
    wal.append(&[write(G, entries)]).unwrap();
    wal.sync().unwrap();
}

fn segments(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<_> = disk
        .list(Path::new(DIR))
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".wal"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_synced_is_there_after_a_crash() {
    let disk = SimDisk::new(1);
    let (mut wal, recovered) = open(&disk);
    assert!(recovered.groups.is_empty());
    wal.append(&[
        GroupWrite {
            hard_state: Some(hard_state(3, 2)),
            ..write(G, entries(3, 1..=3))
        },
        write(GroupId(9), entries(1, 1..=1)),
    ])
    .unwrap();
    wal.sync().unwrap();
    disk.crash();
    let (_, recovered) = open(&disk);
    let expected = RecoveredGroup {
        hard_state: hard_state(3, 2),
        log_start: LogPosition::default(),
        entries: entries(3, 1..=3),
    };
    assert_eq!(recovered.groups[&G], expected);
    assert_eq!(recovered.groups[&GroupId(9)].entries, entries(1, 1..=1));
    assert_eq!(recovered.truncated_tail, None);
}

#[test]
fn a_later_write_replaces_the_tail_from_its_first_index_on() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=5));
    commit(&mut wal, entries(2, 3..=4));
    disk.crash();
    let (_, recovered) = open(&disk);
    let expected = [entries(1, 1..=2), entries(2, 3..=4)].concat();
    assert_eq!(recovered.groups[&G].entries, expected);
}

#[test]
fn a_reset_replaces_the_whole_log() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=5));
    let reset = GroupWrite {
        reset_to: Some(position(4, 90)),
        ..write(G, entries(4, 91..=92))
    };
    wal.append(&[reset]).unwrap();
    wal.sync().unwrap();
    disk.crash();
    let (mut wal, recovered) = open(&disk);
    assert_eq!(recovered.groups[&G].log_start, position(4, 90));
    assert_eq!(recovered.groups[&G].entries, entries(4, 91..=92));
    commit(&mut wal, entries(4, 93..=93));
}

#[test]
fn entries_that_leave_a_gap_are_refused_and_nothing_is_written() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=2));
    let gap_to_log = wal.append(&[write(G, entries(1, 4..=4))]).unwrap_err();
    assert!(matches!(gap_to_log, WalError::Misuse { .. }), "{gap_to_log}");
    let gap_inside = [entries(1, 3..=3), entries(1, 5..=5)].concat();
    assert!(matches!(
        wal.append(&[write(G, gap_inside)]).unwrap_err(),
        WalError::Misuse { .. }
    ));
    wal.compact(G, position(1, 2)).unwrap();
    let before_start = wal.append(&[write(G, entries(1, 2..=2))]).unwrap_err();
    assert!(matches!(before_start, WalError::Misuse { .. }), "{before_start}");
    assert!(matches!(
        wal.compact(G, position(1, 9)).unwrap_err(),
        WalError::Misuse { .. }
    ));
    commit(&mut wal, entries(1, 3..=3));
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&G].entries, entries(1, 3..=3));
}

#[test]
#[should_panic(expected = "is committed")]
fn a_committed_entry_is_never_replaced() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let first = GroupWrite {
        hard_state: Some(hard_state(1, 2)),
        ..write(G, entries(1, 1..=3))
    };
    wal.append(&[first]).unwrap();
    let _ = wal.append(&[write(G, entries(2, 2..=2))]);
}

#[test]
fn an_entry_larger_than_a_segment_is_refused_and_the_log_goes_on() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let error = wal
        .append(&[write(G, vec![entry(1, 1, &"x".repeat(4096))])])
        .unwrap_err();
    assert!(matches!(error, WalError::TooLarge { .. }), "{error}");
    commit(&mut wal, entries(1, 1..=1));
}

#[test]
fn a_batch_larger_than_a_segment_is_spread_over_several() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=500));
    assert!(wal.stats().segments > 5);
    disk.crash();
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&G].entries, entries(1, 1..=500));
}

#[test]
fn segments_die_when_every_group_has_compacted_past_them_and_are_used_again() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let other = GroupId(2);
    wal.append(&[write(other, entries(1, 1..=220)), write(G, entries(1, 1..=100))])
        .unwrap();
    wal.sync().unwrap();
    let before = wal.stats();
    wal.compact(G, position(1, 90)).unwrap();
    wal.sync().unwrap();
    assert_eq!(
        wal.stats().segments,
        before.segments,
        "the other group's entries are in the oldest segments"
    );
    assert_eq!(wal.stats().oldest_group, Some(other));
    wal.compact(other, position(1, 220)).unwrap();
    wal.sync().unwrap();
    assert!(wal.stats().segments <= 2, "{:?}", wal.stats());
    assert_eq!(wal.stats().oldest_group.filter(|group| *group == other), None);
    assert!(wal.stats().spares > 0);
    let spares = wal.stats().spares;
    commit(&mut wal, entries(1, 101..=200));
    assert!(wal.stats().spares < spares);
    disk.crash();
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&G].log_start, position(1, 90));
    assert_eq!(recovered.groups[&G].entries, entries(1, 91..=200));
    assert_eq!(recovered.groups[&other].log_start, position(1, 220));
    assert_eq!(recovered.groups[&other].entries, vec![]);
}

#[test]
fn a_group_that_never_compacts_does_not_keep_old_segments_for_ever() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let slow = GroupId(2);
    // The slow group writes now and then, the other one all the time.
    let mut slow_entries = Vec::new();
    for index in 1..=3_000 {
        if index % 250 == 1 {
            let next = entries(1, index / 250 + 1..=index / 250 + 1);
            slow_entries.extend(next.clone());
            wal.append(&[write(slow, next)]).unwrap();
        }
        commit(&mut wal, entries(1, index..=index));
        if index % 20 == 0 {
            wal.compact(G, position(1, index - 5)).unwrap();
        }
    }
    assert!(
        wal.stats().segments as usize <= LAGGARD_SEGMENTS + 1,
        "{:?} and the slow group's entries fit into one",
        wal.stats()
    );
    assert!(!segments(&disk).contains(&"0000000000000001.wal".to_owned()));
    disk.crash();
    let (mut wal, recovered) = open(&disk);
    assert_eq!(recovered.groups[&slow].entries, slow_entries);
    assert_eq!(recovered.groups[&slow].log_start, LogPosition::default());
    // Copies are entries like others: they can be replaced and compacted.
    wal.append(&[write(slow, entries(2, 5..=6))]).unwrap();
    wal.compact(slow, position(1, 2)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = open(&disk);
    let expected = [slow_entries[2..4].to_vec(), entries(2, 5..=6)].concat();
    assert_eq!(recovered.groups[&slow].entries, expected);
}

#[test]
fn a_crash_at_any_operation_while_a_laggard_is_copied_loses_nothing() {
    let run = |disk: &SimDisk| -> Result<u64, WalError> {
        let (mut wal, _) = Wal::open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS)?;
        wal.append(&[write(GroupId(2), entries(1, 1..=30))])?;
        wal.sync()?;
        let mut synced = 0;
        for index in 1..=600 {
            let step = |wal: &mut Wal| -> Result<(), WalError> {
                wal.append(&[write(G, entries(1, index..=index))])?;
                wal.sync()?;
                if index % 20 == 0 {
                    wal.compact(G, position(1, index - 5))?;
                }
                Ok(())
            };
            if step(&mut wal).is_err() {
                return Ok(synced);
            }
            synced = index;
        }
        Ok(synced)
    };
    let whole = SimDisk::new(0);
    run(&whole).unwrap();
    for at in (60..whole.ops()).step_by(7) {
        let disk = SimDisk::new(at);
        disk.fail_after(at);
        let Ok(synced) = run(&disk) else { continue };
        disk.crash();
        let (_, recovered) = open(&disk);
        let slow = &recovered.groups[&GroupId(2)];
        assert_eq!(slow.entries, entries(1, 1..=30), "after {at} operations");
        assert!(
            recovered.groups.get(&G).map_or(0, |log| log.last().index.0) >= synced,
            "after {at} operations"
        );
    }
}

#[test]
fn a_crash_at_any_operation_while_segments_are_recycled_loses_nothing_and_revives_nothing() {
    // Terms tell a record of a recycled file's earlier life from one that belongs there.
    let term = |index: u64| index / 40 + 1;
    let at = |index: u64| entry(term(index), index, &format!("value {index}"));
    let run = |disk: &SimDisk| -> (u64, u64) {
        let Ok((mut wal, _)) = try_open(disk) else {
            return (0, 0);
        };
        let mut recycled = 0;
        for index in 1..=400 {
            let spares = wal.stats().spares;
            let mut step = || -> Result<(), WalError> {
                wal.append(&[write(G, vec![at(index)])])?;
                if index % 10 == 0 {
                    wal.compact(G, position(term(index - 2), index - 2))?;
                }
                wal.sync()
            };
            if step().is_err() {
                return (index - 1, recycled);
            }
            recycled += u64::from(wal.stats().spares < spares);
        }
        (400, recycled)
    };
    let whole = SimDisk::new(0);
    let (_, recycled) = run(&whole);
    assert!(recycled >= 3, "only {recycled} segments were taken into use again");
    for ops in 0..whole.ops() {
        let disk = SimDisk::new(ops);
        disk.fail_after(ops);
        let (synced, _) = run(&disk);
        disk.crash();
        let (_, recovered) = open(&disk);
        let log = recovered.groups.get(&G).cloned().unwrap_or_default();
        let (first, last) = (log.log_start.index.0 + 1, log.last().index.0);
        assert!(last >= synced, "after {ops} operations: {last} of {synced}");
        assert_eq!(
            log.entries,
            (first..=last).map(at).collect::<Vec<_>>(),
            "after {ops} operations"
        );
    }
}

#[test]
fn a_log_that_is_mostly_alive_is_not_copied() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    for batch in 0..30 {
        commit(&mut wal, entries(1, batch * 20 + 1..=batch * 20 + 20));
    }
    let stats = wal.stats();
    assert!(stats.live_bytes * 2 > stats.bytes, "{stats:?}");
    assert!(segments(&disk).contains(&"0000000000000001.wal".to_owned()));
}

#[test]
fn a_full_volume_refuses_a_batch_whole_and_takes_it_once_there_is_room() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=5));
    disk.set_capacity(Some(2 * OPTIONS.segment_bytes + 100));
    let large = entries(1, 6..=300);
    for _ in 0..3 {
        let error = wal.append(&[write(G, large.clone())]).unwrap_err();
        assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
        assert!(wal.wants_space());
    }
    assert!(
        disk.paths()
            .iter()
            .all(|path| path.extension().is_none_or(|end| end != "new")),
        "what was half allocated is given back"
    );
    // What fits is taken meanwhile, and nothing of the refused batch is there.
    commit(&mut wal, entries(2, 6..=8));
    let mut next = 9;
    loop {
        match wal.append(&[write(G, entries(2, next..=next))]) {
            Ok(()) => next += 1,
            Err(WalError::NoSpace { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        wal.sync().unwrap();
    }
    assert!(next > 60, "the segments that were allocated are filled first: {next}");
    disk.set_capacity(None);
    let rest = entries(2, next..=400);
    commit(&mut wal, rest);
    assert!(!wal.wants_space());
    disk.crash();
    let (_, recovered) = open(&disk);
    assert_eq!(
        recovered.groups[&G].entries,
        [entries(1, 1..=5), entries(2, 6..=400)].concat()
    );
}

#[test]
fn a_batch_of_many_new_groups_has_room_for_the_states_of_all_of_them_or_is_refused_whole() {
    let options = Options {
        segment_bytes: 16 << 10,
    };
    let large = HardState {
        lease: LeaseState {
            incarnation: 1,
            adopted: Ballot {
                term: Term(3),
                epoch: Epoch(4),
            },
            ..LeaseState::default()
        },
        ..hard_state(3, 0)
    };
    let text = "x".repeat(700);
    let newcomer = |group| GroupWrite {
        hard_state: Some(large),
        ..write(GroupId(group), (1..=4).map(|index| entry(1, index, &text)).collect())
    };
    let newcomers: Vec<_> = (2..=38).map(newcomer).collect();
    // However far the segment is filled before.
    for before in 1..=150 {
        let disk = SimDisk::new(1);
        let (mut wal, _) = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
        commit(&mut wal, entries(1, 1..=before));
        disk.set_capacity(Some(3 * options.segment_bytes));
        let error = wal.append(&newcomers).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        disk.set_capacity(None);
        wal.append(&newcomers).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let (_, recovered) = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
        for write in &newcomers {
            let found = &recovered.groups[&write.group];
            assert_eq!((found.hard_state, &found.entries), (large, &write.entries));
        }
    }
}

#[test]
fn more_groups_than_a_segment_can_begin_with_are_refused() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let states = |count| {
        let state = |group| GroupWrite {
            hard_state: Some(hard_state(1, 0)),
            ..write(GroupId(group), Vec::new())
        };
        (1..=count).map(state).collect::<Vec<_>>()
    };
    let error = wal.append(&states(50)).unwrap_err().to_string();
    expect_test::expect!["50 groups are too many for segments of 4096 bytes, which hold 9; raise the segment size"]
        .assert_eq(&error);
    wal.append(&states(9)).unwrap();
    wal.sync().unwrap();
    for round in 0..20 {
        commit(&mut wal, entries(1, 1 + round * 5..=5 + round * 5));
    }
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups.len(), 9);
}

#[test]
fn a_group_that_left_keeps_its_vote_and_nothing_of_its_log() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=30));
    let retired = GroupWrite {
        hard_state: Some(hard_state(4, 0)),
        reset_to: Some(LogPosition::default()),
        ..write(G, Vec::new())
    };
    wal.append(&[retired]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (mut wal, recovered) = open(&disk);
    let group = &recovered.groups[&G];
    assert_eq!(
        (group.hard_state, group.log_start),
        (hard_state(4, 0), LogPosition::default())
    );
    assert!(group.entries.is_empty());
    // It comes back with an empty log, whose beginning may be replaced: nothing of it is committed.
    commit(&mut wal, entries(5, 1..=3));
    commit(&mut wal, entries(6, 2..=3));
    drop(wal);
    let (_, recovered) = open(&disk);
    let expected = [entries(5, 1..=1), entries(6, 2..=3)].concat();
    assert_eq!(recovered.groups[&G].entries, expected);
    assert_eq!(recovered.groups[&G].hard_state, hard_state(4, 0));
}

#[test]
fn the_next_segment_is_ready_before_it_is_needed() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let mut next = 1;
    while wal.stats().segments == 1 {
        wal.prepare().unwrap();
        commit(&mut wal, entries(1, next..=next));
        next += 1;
        if next == 30 {
            assert_eq!(wal.stats().spares, 1, "half of the segment is used");
            // Rolling over needs no room any more.
            disk.set_capacity(Some(0));
        }
    }
    assert!(matches!(wal.prepare(), Ok(())), "the new segment is not half full yet");
    for index in next..next + 30 {
        commit(&mut wal, entries(1, index..=index));
    }
    assert!(matches!(wal.prepare().unwrap_err(), WalError::NoSpace { .. }));
    assert!(wal.wants_space());
    disk.set_capacity(None);
    wal.prepare().unwrap();
    assert!(!wal.wants_space());
}

#[test]
fn a_steady_log_stays_small() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    for index in 1..=5_000 {
        commit(&mut wal, entries(1, index..=index));
        if index % 20 == 0 {
            wal.compact(G, position(1, index - 5)).unwrap();
        }
    }
    assert!(wal.stats().bytes <= 5 * OPTIONS.segment_bytes, "{:?}", wal.stats());
}

#[test]
fn a_quiet_group_keeps_its_vote_when_its_segment_dies() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let quiet = GroupId(2);
    let vote = GroupWrite {
        hard_state: Some(hard_state(9, 0)),
        ..write(quiet, vec![])
    };
    wal.append(&[vote]).unwrap();
    commit(&mut wal, entries(1, 1..=400));
    wal.compact(G, position(1, 399)).unwrap();
    wal.sync().unwrap();
    assert!(!segments(&disk).contains(&"0000000000000001.wal".to_owned()));
    disk.crash();
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&quiet].hard_state, hard_state(9, 0));
}

#[test]
fn a_commit_index_that_ran_ahead_of_its_entries_is_brought_back() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let ahead = GroupWrite {
        hard_state: Some(hard_state(1, 9)),
        ..write(G, entries(1, 1..=2))
    };
    wal.append(&[ahead]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&G].hard_state.commit, Index(2));
}

#[test]
fn a_batch_without_its_end_is_cut_off_and_reported() {
    // Crash at every operation of a small history until one leaves a torn tail.
    let mut torn = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = open(&disk);
        commit(&mut wal, entries(1, 1..=2));
        wal.append(&[write(G, entries(1, 3..=30))]).unwrap();
        disk.crash();
        let (mut wal, recovered) = open(&disk);
        let found = recovered.groups[&G].entries.len();
        assert!(
            found == 2 || found == 30,
            "a batch counts whole or not at all, and {found} entries came back"
        );
        torn += u32::from(recovered.truncated_tail.is_some());
        let next = found as u64 + 1;
        commit(&mut wal, entries(2, next..=next));
        drop(wal);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.groups[&G].entries.len() as u64, next);
        assert_eq!(recovered.truncated_tail, None, "the tail was cleaned");
    }
    assert!(torn > 20, "{torn}");
}

#[test]
fn a_flipped_bit_in_what_a_later_batch_knows_to_be_durable_is_an_error_that_says_what_to_do() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=2));
    commit(&mut wal, entries(1, 3..=3));
    commit(&mut wal, entries(1, 4..=4));
    drop(wal);
    let path = Path::new(DIR).join("0000000000000001.wal");
    assert!(disk.flip_bit(&path, 32 + 40, 3));
    let error = try_open(&disk).err().expect("a damaged log must not open").to_string();
    expect_test::expect![[r#"/wal/0000000000000001.wal, byte 32: record 1 is damaged, and a later one says that it was synced. Records that were durable are damaged, so this member could break promises that it made. Do not repair the log by hand: remove the member from its cluster and let it join again with an empty volume"#]].assert_eq(&error);
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_an_error() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=200));
    drop(wal);
    for name in &segments(&disk)[..2] {
        let path = Path::new(DIR).join(name);
        assert!(disk.flip_bit(&path, 500, 1));
        assert!(matches!(try_open(&disk).err(), Some(WalError::Corrupt { file, .. }) if file == path));
        assert!(disk.flip_bit(&path, 500, 1));
    }
    assert!(try_open(&disk).is_ok());
}

#[test]
fn a_missing_segment_in_the_middle_is_an_error() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=200));
    drop(wal);
    let names = segments(&disk);
    disk.remove(&Path::new(DIR).join(&names[1])).unwrap();
    let error = try_open(&disk).err().expect("a hole must not open").to_string();
    assert!(error.contains("is missing"), "{error}");
}

#[test]
fn the_oldest_segment_missing_although_live_is_an_error() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    commit(&mut wal, entries(1, 1..=200));
    drop(wal);
    let names = segments(&disk);
    disk.remove(&Path::new(DIR).join(&names[0])).unwrap();
    let error = try_open(&disk)
        .err()
        .expect("missing entries must not go unnoticed")
        .to_string();
    assert!(error.contains("are in no segment"), "{error}");
}

#[test]
fn after_a_failed_sync_every_call_fails_although_the_disk_works_again() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    wal.append(&[write(G, entries(1, 1..=1))]).unwrap();
    disk.fail_syncs(true);
    assert!(matches!(wal.sync().unwrap_err(), WalError::Io { .. }));
    disk.fail_syncs(false);
    assert!(matches!(wal.sync().unwrap_err(), WalError::Failed { .. }));
    assert!(matches!(
        wal.append(&[write(G, entries(1, 2..=2))]).unwrap_err(),
        WalError::Failed { .. }
    ));
    assert!(matches!(
        wal.compact(G, position(1, 1)).unwrap_err(),
        WalError::Failed { .. }
    ));
}

#[test]
fn two_processes_never_share_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open(Arc::new(StdDisk), dir.path(), OPTIONS).unwrap();
    let error = Wal::open(Arc::new(StdDisk), dir.path(), OPTIONS)
        .err()
        .expect("the lock is held");
    assert!(matches!(error, WalError::Locked { .. }), "{error}");
    drop(wal);
    assert!(Wal::open(Arc::new(StdDisk), dir.path(), OPTIONS).is_ok());
}

#[test]
fn a_log_on_a_real_disk_comes_back_and_its_segments_have_their_full_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/wal");
    let (mut wal, _) = Wal::open(Arc::new(StdDisk), &path, OPTIONS).unwrap();
    commit(&mut wal, entries(1, 1..=100));
    wal.compact(G, position(1, 60)).unwrap();
    wal.sync().unwrap();
    let stats = wal.stats();
    drop(wal);
    let sizes: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|item| item.unwrap().metadata().unwrap().len())
        .filter(|len| *len > 0)
        .collect();
    assert_eq!(sizes.iter().sum::<u64>(), stats.bytes);
    let (_, recovered) = Wal::open(Arc::new(StdDisk), &path, OPTIONS).unwrap();
    assert_eq!(recovered.groups[&G].entries, entries(1, 61..=100));
}

#[test]
fn impossible_segment_sizes_are_refused() {
    let disk = SimDisk::new(1);
    for segment_bytes in [0, 4095, 4100, (1 << 30) + 8] {
        let error = Wal::open(Arc::new(disk.clone()), Path::new(DIR), Options { segment_bytes }).err();
        assert!(matches!(error, Some(WalError::SegmentSize { .. })), "{segment_bytes}");
    }
}

#[test]
fn a_replaced_tail_does_not_keep_its_segments_alive() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let other = GroupId(2);
    wal.append(&[write(other, entries(1, 1..=300))]).unwrap();
    wal.sync().unwrap();
    wal.append(&[write(other, entries(2, 2..=2))]).unwrap();
    wal.compact(other, position(1, 1)).unwrap();
    wal.sync().unwrap();
    assert_eq!(
        wal.stats().segments,
        1,
        "what is live is entry 2, in the active segment"
    );
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&other].entries, entries(2, 2..=2));
}
