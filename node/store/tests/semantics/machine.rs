//! The replicated state machine's own duties: batches, order, members, reopening.

use crate::common::*;
use althing_raft::entry::{ConfigChange, ConfigState, ConfigStep, JointTarget, SnapshotMeta};
use althing_raft::ids::{Index, LogPosition, MemberId, Term};
use althing_store::ops::{Command, Delete, Op, OpError, OpResult, Put, Range, Revision, Txn};
use althing_store::{ApplyItem, MemStore, Mvcc, StoreError};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_batch_is_one_step_with_an_answer_for_each_entry() {
    let keys = keys();
    let results = keys.apply(&[
        ApplyItem::Noop,
        ApplyItem::unstamped(Command::Put(put("a", "1"))),
        ApplyItem::unstamped(Command::Put(Put {
            prev_kv: true,
            ..put("a", "2")
        })),
        ApplyItem::unstamped(Command::Delete(Delete {
            keys: single("nope"),
            prev_kv: false,
        })),
        ApplyItem::unstamped(Command::Compact(Revision(3))),
        ApplyItem::unstamped(Command::Txn(Txn {
            success: vec![
                put_op("b", "1"),
                Op::Range(Range {
                    revision: Some(Revision(2)),
                    ..Range::of(all())
                }),
            ],
            ..Txn::default()
        })),
        ApplyItem::unstamped(Command::Put(put("c", "1"))),
    ]);
    let revisions: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map(|(revision, _)| *revision))
        .collect();
    assert_eq!(revisions, [None, Some(2), Some(3), Some(3), Some(3), Some(3), Some(4)]);
    let (_, Ok(OpResult::Put { prev: Some(prev) })) = results[2].as_ref().unwrap() else {
        panic!("{results:?}")
    };
    assert_eq!(show(std::slice::from_ref(prev)), ["a=1@2/2/1"]);
    assert_eq!(
        results[5].as_ref().unwrap().1,
        Err(OpError::Compacted),
        "the compaction before it holds"
    );
    assert_eq!(
        show(&keys.range(&Range::of(all())).unwrap().kvs),
        ["a=2@2/3/2", "c=1@4/4/1"]
    );
}

#[test]
fn entries_are_applied_in_order_or_not_at_all() {
    let keys = keys();
    keys.put("a", "1");
    for index in [1, 3] {
        let error = keys
            .mvcc
            .apply(&[ApplyItem::unstamped(Command::Put(put("b", "")))], meta(index))
            .unwrap_err();
        assert!(
            matches!(error, StoreError::OutOfOrder { expected: Index(2), .. }),
            "{error}"
        );
    }
    assert_eq!((keys.get("b"), keys.revision()), (None, 2));
}

#[test]
fn members_follow_configuration_changes_and_survive_a_reopen() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    let first = MemberId(1);
    let config = ConfigState {
        voters: BTreeSet::from([first]),
        ..ConfigState::default()
    };
    keys.mvcc
        .bootstrap(config.clone(), BTreeMap::from([(first, bytes("one"))]))
        .unwrap();
    let again = keys.mvcc.bootstrap(config.clone(), BTreeMap::new()).unwrap_err();
    assert!(matches!(again, StoreError::Bootstrapped { .. }));
    assert_eq!(keys.mvcc.applied().config, config);

    let change = |step, context: &str| {
        ApplyItem::Config(ConfigChange {
            request: 0,
            step,
            context: bytes(context),
        })
    };
    keys.apply(&[
        change(ConfigStep::AddLearner(MemberId(2)), "two"),
        change(ConfigStep::Promote(MemberId(2)), ""),
        change(ConfigStep::AddLearner(MemberId(3)), "three"),
        change(ConfigStep::AddLearner(MemberId(3)), "three, moved"),
        change(ConfigStep::Remove(first), ""),
    ]);
    let expected = BTreeMap::from([(MemberId(2), bytes("two")), (MemberId(3), bytes("three, moved"))]);
    assert_eq!(keys.mvcc.members(), expected);
    assert_eq!(Mvcc::open(store, G).unwrap().members(), expected);
}

#[test]
fn whoever_a_joint_change_leaves_out_stays_in_the_table_until_its_end() {
    let store = MemStore::default();
    let mvcc = Mvcc::open(store, G).unwrap();
    let member = |id: u64| MemberId(id);
    let change = |step, context: &str| {
        ApplyItem::Config(ConfigChange {
            request: 0,
            step,
            context: bytes(context),
        })
    };
    let mut config = ConfigState::default();
    let mut at = Index(0);
    let mut apply = |steps: Vec<(ConfigStep, &str)>| {
        let mut items = Vec::new();
        for (step, context) in steps {
            at = at.next();
            config = config.after(&step, at);
            items.push(change(step, context));
        }
        let position = LogPosition {
            term: Term(1),
            index: at,
        };
        let config = config.clone();
        mvcc.apply(
            &items,
            SnapshotMeta {
                position,
                config,
                ..SnapshotMeta::default()
            },
        )
        .unwrap();
        mvcc.members().keys().map(|member| member.0).collect::<Vec<_>>()
    };
    let present = apply(vec![
        (ConfigStep::AddLearner(member(1)), "one"),
        (ConfigStep::Promote(member(1)), ""),
        (ConfigStep::AddLearner(member(2)), "two"),
        (ConfigStep::AddLearner(member(3)), "three"),
    ]);
    assert_eq!(present, [1, 2, 3]);
    let target = JointTarget {
        voters: [member(2)].into(),
        learners: [].into(),
    };
    let joint = apply(vec![(ConfigStep::EnterJoint(target), "")]);
    assert_eq!(joint, [1, 2, 3], "1 still votes, and must be reachable");
    // The end, and a newcomer in the same batch.
    let left = apply(vec![
        (ConfigStep::LeaveJoint, ""),
        (ConfigStep::AddLearner(member(4)), "four"),
    ]);
    assert_eq!(left, [2, 4]);
}

#[test]
fn a_reopened_store_is_the_same_state() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    for at in 0..50 {
        keys.put(&format!("k{}", at % 7), &at.to_string());
    }
    keys.delete(between("k2", "k4"));
    keys.compact(20).unwrap();
    keys.delete(single("k6"));
    let reopened = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    assert_eq!(reopened.revision(), keys.revision());
    assert_eq!(reopened.mvcc.applied(), keys.mvcc.applied());
    assert_eq!(reopened.mvcc.size().unwrap(), keys.mvcc.size().unwrap());
    for revision in 20..=keys.revision() {
        let range = Range {
            revision: Some(Revision(revision)),
            ..Range::of(all())
        };
        assert_eq!(reopened.range(&range), keys.range(&range), "{revision}");
    }
    assert_eq!(reopened.put("k2", "new"), keys.put("k2", "new"));
    assert_eq!(reopened.get("k2"), keys.get("k2"));
}

#[test]
fn a_current_revision_that_was_a_swept_removal_is_not_forgotten() {
    let store = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    keys.put("a", "1");
    keys.delete(single("a"));
    keys.put("b", "1");
    keys.delete(single("b"));
    keys.compact(5).unwrap();
    keys.sweep();
    let reopened = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    assert_eq!(reopened.revision(), 5);
    assert_eq!(reopened.put("c", "1"), 6);
}

#[test]
fn groups_in_one_store_do_not_see_each_other() {
    let store = MemStore::default();
    let one = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    let two = Keys {
        mvcc: Mvcc::open(store.clone(), althing_raft::ids::GroupId(2)).unwrap(),
    };
    one.put("a", "1");
    two.put("b", "1");
    two.put("b", "2");
    let again = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    assert_eq!((again.revision(), again.get("b")), (2, None));
}

#[test]
fn sizes_count_keys_changes_and_bytes() {
    let keys = keys();
    assert_eq!(keys.mvcc.size().unwrap().in_use, 0);
    keys.put("a", &"x".repeat(1000));
    keys.put("a", &"x".repeat(1000));
    keys.put("b", "");
    keys.delete(single("b"));
    let size = keys.mvcc.size().unwrap();
    assert_eq!((size.keys, size.revisions), (1, 4));
    assert!((2000..2400).contains(&size.in_use), "{size:?}");
    keys.compact(keys.revision()).unwrap();
    keys.sweep();
    let swept = keys.mvcc.size().unwrap();
    assert_eq!(
        (swept.keys, swept.revisions),
        (1, 2),
        "the last put of a, and b's removal at the compacted revision"
    );
    assert!((1000..1200).contains(&swept.in_use), "{swept:?}");
}

#[test]
fn what_is_applied_behind_is_seen_at_once_and_reaches_the_engine_in_one_piece() {
    let engine = MemStore::default();
    let keys = Keys {
        mvcc: Mvcc::open(engine.clone(), G).unwrap(),
    };
    let behind = |index: u64, command: Command| {
        let results = keys
            .mvcc
            .apply_behind(&[ApplyItem::unstamped(command)], meta(index))
            .unwrap();
        results[0].clone().unwrap().result.unwrap()
    };
    // What a crash now would leave.
    let crashed = || Mvcc::open(engine.fork(), G).unwrap();

    behind(1, Command::Put(put("a", "1")));
    behind(2, Command::Put(put("b", "1")));
    let again = Put {
        prev_kv: true,
        ..put("a", "2")
    };
    let OpResult::Put { prev: Some(prev) } = behind(3, Command::Put(again)) else {
        panic!("the row before is in no engine yet and must be found all the same")
    };
    assert_eq!(show(std::slice::from_ref(&prev)), ["a=1@2/2/1"]);
    let seen = ["a=2@2/4/2", "b=1@3/3/1"];
    assert_eq!(show(&keys.range(&Range::of(all())).unwrap().kvs), seen);
    assert_eq!(crashed().applied().position.index, Index(0));
    assert!(keys.mvcc.pending_bytes() > 0);

    keys.mvcc.write_out().unwrap();
    assert_eq!(keys.mvcc.pending_bytes(), 0);
    assert_eq!(crashed().applied(), keys.mvcc.applied());
    assert_eq!(show(&keys.range(&Range::of(all())).unwrap().kvs), seen);

    // A checkpoint, a sweep and a snapshot cover what waits.
    behind(4, Command::Put(put("c", "1")));
    let durable = keys.mvcc.checkpoint().unwrap();
    assert_eq!((&durable, &crashed().applied()), (&keys.mvcc.applied(), &durable));
    behind(5, Command::Put(put("a", "3")));
    behind(6, Command::Compact(Revision(6)));
    keys.sweep();
    assert_eq!(crashed().size().unwrap(), keys.mvcc.size().unwrap());
    behind(7, Command::Put(put("d", "1")));
    let other = Mvcc::open(MemStore::default(), G).unwrap();
    let mut import = other.import();
    for chunk in keys.mvcc.export().unwrap() {
        import.chunk(&chunk.unwrap()).unwrap();
    }
    assert_eq!(other.install(import).unwrap(), keys.mvcc.applied());
    assert_eq!(other.size().unwrap().keys, 4);
}
