//! The pitfalls of the study whose rule the log keeps: P18 and P19.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use althing_raft::entry::{Entry, Payload};
use althing_raft::ids::{GroupId, Index, Term};
use althing_wal::sim_disk::SimDisk;
use althing_wal::{Disk, GroupWrite, Options, Recovered, Wal, WalError};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/wal";
const GROUP: GroupId = GroupId::FIRST_SHARD;
const OPTIONS: Options = Options { segment_bytes: 4096 };

fn open(disk: &SimDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS)
}

/// A batch of entries of 100 bytes.
fn batch(indices: std::ops::RangeInclusive<u64>) -> GroupWrite {
    let entries = indices.map(|index| Entry {
        term: Term(1),
        index: Index(index),
        payload: Payload::Command(Bytes::from(vec![7; 100])),
    });
    GroupWrite {
        group: GROUP,
        hard_state: None,
        reset_to: None,
        entries: entries.collect(),
    }
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

#[test]
fn p18_a_torn_tail_is_cut_off_and_everything_synced_before_it_stays() {
    let mut torn = 0;
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = open(&disk).unwrap();
        wal.append(&[batch(1..=5)]).unwrap();
        wal.sync().unwrap();
        wal.append(&[batch(6..=12)]).unwrap();
        // Power fails before the second sync: any part of the second batch may be there.
        disk.crash();
        let (_, recovered) = open(&disk).unwrap();
        let found = recovered.groups[&GROUP].entries.len();
        assert!(found == 5 || found == 12, "seed {seed}: {found} entries came back");
        torn += u32::from(recovered.truncated_tail.is_some());
    }
    assert!(
        torn > 10,
        "only {torn} of 100 crashes tore a tail: the disk is too kind"
    );
}

#[test]
fn p18_damage_in_a_sealed_segment_is_never_a_torn_tail() {
    let disk = SimDisk::new(4);
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[batch(1..=100)]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let all = segments(&disk);
    let (_, sealed) = all.split_last().unwrap();
    assert!(!sealed.is_empty());
    for segment in sealed {
        assert!(disk.flip_bit(segment, 700, 2));
        assert!(
            matches!(open(&disk), Err(WalError::Corrupt { .. })),
            "{}",
            segment.display()
        );
        assert!(disk.flip_bit(segment, 700, 2));
    }
}

#[test]
fn p19_a_failed_sync_is_never_retried_into_success() {
    // A kernel may drop the dirty pages of a failed sync and call the next one good: what was not synced the first time must
    // not count after a second try.
    let disk = SimDisk::new(5);
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[batch(1..=2)]).unwrap();
    wal.sync().unwrap();
    wal.append(&[batch(3..=4)]).unwrap();
    disk.fail_syncs(true);
    assert!(matches!(wal.sync(), Err(WalError::Io { .. })));
    disk.fail_syncs(false);
    for _ in 0..3 {
        assert!(
            matches!(wal.sync(), Err(WalError::Failed { .. })),
            "the failure is latched"
        );
        assert!(matches!(wal.append(&[batch(5..=5)]), Err(WalError::Failed { .. })));
    }
    drop(wal);
    // Only a new process, which reads back what is really there, goes on.
    disk.crash();
    let (mut wal, recovered) = open(&disk).unwrap();
    let found = recovered.groups[&GROUP].entries.len() as u64;
    assert!(found >= 2, "what was synced is there");
    wal.append(&[batch(found + 1..=found + 1)]).unwrap();
    wal.sync().unwrap();
}
