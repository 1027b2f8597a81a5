//! Snapshots, and a state machine ahead of its log: P13, P15.

use crate::help::{entry, lone, message, position};
use crate::kit::{ELECTION, Net, id};
use althing_raft::entry::{HardState, SnapshotMeta};
use althing_raft::ids::{Index, Now, Term};
use althing_raft::io::{Input, Start};
use althing_raft::message::Body;

#[test]
fn p13_a_snapshot_resets_log_membership_and_commit_in_one_step() {
    let mut net = Net::new(3);
    net.elect(1);
    net.isolate(3);
    for n in 0..30 {
        net.propose(id(1), &format!("{n}"));
    }
    net.run(ELECTION / 2);
    let applied = net.raft(1).view().commit;
    net.step(id(1), Input::Compact(applied));
    net.cut.clear();
    net.run(ELECTION * 4);
    assert_eq!(net.commands(3).len(), 30);
    assert_eq!(net.raft(3).view().first, applied.next());
    let leader = net.leader().unwrap();
    net.propose(leader, "after");
    net.run(ELECTION);
    assert_eq!(net.commands(3).last().unwrap(), "after");
}

#[test]
fn p13_a_snapshot_that_is_older_than_the_commit_index_is_only_acknowledged() {
    let start = Start {
        entries: vec![entry(1, 1), entry(1, 2)],
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(2),
            ..Default::default()
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let meta = SnapshotMeta {
        position: position(1, 1),
        ..Default::default()
    };
    let out = raft.step(Now(0), message(2, 1, 1, Body::Snapshot { meta }));
    assert_eq!(out.install, None);
    assert_eq!(
        out.messages[0].body,
        Body::AppendAccepted {
            last: Index(2),
            stamp: None
        }
    );
}

#[test]
fn p13_what_commits_while_a_snapshot_is_being_installed_is_not_handed_out_behind_it() {
    let mut raft = lone(&[1, 2, 3], Start::default());
    let append = Body::Append {
        prev: position(0, 0),
        entries: vec![entry(1, 1), entry(1, 2)],
        commit: Index(2),
    };
    let write = raft.step(Now(0), message(2, 1, 1, append)).persist.unwrap();
    let meta = SnapshotMeta {
        position: position(1, 5),
        ..Default::default()
    };
    let out = raft.step(Now(0), message(2, 1, 1, Body::Snapshot { meta }));
    assert!(out.install.is_some());
    // The disk is slow: what was committed before the snapshot came is durable only now, and the snapshot has it.
    let out = raft.step(Now(0), Input::Persisted(write.seq));
    assert_eq!(out.apply, vec![]);
}

#[test]
fn p13_a_snapshot_of_what_the_log_holds_drops_no_acknowledged_entry_behind_it() {
    let start = Start {
        entries: (1..=7).map(|index| entry(1, index)).collect(),
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(2),
            ..Default::default()
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let meta = SnapshotMeta {
        position: position(1, 6),
        ..Default::default()
    };
    let out = raft.step(Now(0), message(2, 1, 1, Body::Snapshot { meta }));
    assert_eq!(
        (out.install, raft.view().commit, raft.view().last),
        (None, Index(6), position(1, 7))
    );
}

#[test]
fn p15_a_state_machine_ahead_of_its_log_resets_the_log() {
    for (term_in_log, entries_in_log) in [(1, 2), (1, 7)] {
        let mut start = Start {
            entries: (1..=entries_in_log).map(|index| entry(term_in_log, index)).collect(),
            ..Default::default()
        };
        start.applied.position = position(3, 5);
        let mut raft = lone(&[1, 2, 3], start);
        assert_eq!(
            (raft.view().first, raft.view().last, raft.view().commit),
            (Index(6), position(3, 5), Index(5))
        );
        assert!(raft.view().soft.term >= Term(3));
        let _ = raft.step(Now(0), Input::Tick);
    }
}
