//! Groups that become two, and two that become one.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod common;

use althing_raft::ids::{GroupId, LogPosition};
use althing_store::ops::{
    Command, KeyRange, OpError, OpResult, Partitioning, Range, Revision, RevisionSource, ShardCommand, ShardResult,
    Span, Territory,
};
use althing_store::{
    ApplyItem, CHILD_BIRTH, KeySpan, MemStore, Mvcc, Order, PageLimit, StateStore, StoreError, groups,
};
use bytes::Bytes;
use common::*;

const CHILD: GroupId = GroupId(2);

fn shard<S: StateStore>(keys: &Keys<S>, command: ShardCommand) -> Result<ShardResult, OpError> {
    let result = keys.run(Command::Shard(command)).1?;
    let OpResult::Shard(result) = result else {
        panic!("{result:?}")
    };
    Ok(result)
}

fn put_at<S: StateStore>(keys: &Keys<S>, key: &str, value: &str, stamp: i64) {
    let item = ApplyItem::Command {
        command: Command::Put(put(key, value)),
        stamp: Some(Revision(stamp)),
    };
    let (revision, result) = keys.apply(&[item]).remove(0).unwrap();
    assert_eq!((revision, result), (stamp, Ok(OpResult::Put { prev: None })));
}

/// A sequenced group with keys a to f of revisions 2 to 7.
fn parent(store: MemStore, partitioning: Partitioning) -> Keys<MemStore> {
    let keys = Keys {
        mvcc: Mvcc::open(store, G).unwrap(),
    };
    let territory = Territory {
        partitioning,
        epoch: 1,
        ..Territory::default()
    };
    let source = RevisionSource::Sequenced;
    shard(&keys, ShardCommand::Settle { territory, source }).unwrap();
    for (at, key) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        put_at(&keys, key, "1", at as i64 + 2);
    }
    keys
}

fn split(keys: &Keys<MemStore>, at: &str, child: GroupId) -> Keys<MemStore> {
    let command = ShardCommand::Split {
        epoch: keys.mvcc.territory().epoch,
        at: bytes(at),
        child,
    };
    assert_eq!(shard(keys, command), Ok(ShardResult::Split));
    Keys {
        mvcc: keys.mvcc.take_born().unwrap(),
    }
}

fn owned(keys: &Keys<MemStore>) -> Vec<String> {
    let Span { start, end } = keys.mvcc.territory().span;
    let owned = match end {
        Some(end) => KeyRange::Between(start, end),
        None => KeyRange::From(start),
    };
    show(&keys.range(&Range::of(owned)).unwrap().kvs)
}

fn absorb(left: &Keys<MemStore>, right: &Keys<MemStore>, operation: u64) -> Result<ShardResult, OpError> {
    let Ok(ShardResult::Sealed { at: position }) = shard(right, ShardCommand::Seal { operation }) else {
        panic!("not sealed")
    };
    let (mut territory, its) = (left.mvcc.territory(), right.mvcc.territory());
    territory.epoch = territory.epoch.max(its.epoch) + 1;
    territory.span.end = its.span.end;
    apply_absorb(left, right, operation, position, territory)
}

fn apply_absorb(
    left: &Keys<MemStore>,
    right: &Keys<MemStore>,
    operation: u64,
    position: LogPosition,
    territory: Territory,
) -> Result<ShardResult, OpError> {
    let command = ShardCommand::Absorb {
        operation,
        from: GroupId(CHILD.0),
        position,
        territory,
    };
    let items = [ApplyItem::unstamped(Command::Shard(command))];
    let applied = meta(left.mvcc.applied().position.index.0 + 1);
    let error = left.mvcc.apply_behind(&items, applied.clone()).unwrap_err();
    assert!(matches!(error, StoreError::Neighbour { from: CHILD, .. }), "{error}");
    let results = left.mvcc.apply_beside(&items, applied, Some(&right.mvcc)).unwrap();
    let OpResult::Shard(result) = results[0].clone().unwrap().result? else {
        panic!("{results:?}")
    };
    Ok(result)
}

fn rows(store: &MemStore) -> usize {
    let all = KeySpan::prefix(&[]);
    let limit = PageLimit {
        rows: usize::MAX,
        bytes: usize::MAX,
    };
    store.scan(&all, Order::Forward, limit).unwrap().len()
}

#[test]
fn a_split_gives_each_half_its_keys_with_their_history_and_a_reopen_the_same() {
    let store = MemStore::default();
    let keys = parent(store.clone(), Partitioning::Range);
    let child = split(&keys, "d", CHILD);
    assert_eq!(groups(&store).unwrap(), [G, CHILD]);
    assert_eq!(child.mvcc.applied().position, CHILD_BIRTH);
    let again = |group| Keys {
        mvcc: Mvcc::open(store.clone(), group).unwrap(),
    };
    let left = ["a=1@2/2/1", "b=1@3/3/1", "c=1@4/4/1"];
    let right = ["d=1@5/5/1", "e=1@6/6/1", "f=1@7/7/1"];
    for (keys, child) in [(&keys, &child), (&again(G), &again(CHILD))] {
        assert_eq!(
            (owned(keys), owned(child)),
            (left.map(str::to_owned).to_vec(), right.map(str::to_owned).to_vec())
        );
        assert_eq!(keys.range(&Range::of(single("d"))), Err(OpError::WrongShard));
        assert_eq!(child.range(&Range::of(single("c"))), Err(OpError::WrongShard));
        assert_eq!(child.get_at("d", 4), Ok(None));
        assert_eq!((keys.mvcc.territory().epoch, child.mvcc.territory().epoch), (2, 2));
        assert_eq!((keys.revision(), child.revision()), (7, 7));
        let (one, other) = (keys.mvcc.size().unwrap(), child.mvcc.size().unwrap());
        assert_eq!((one.keys, one.revisions, other.keys, other.revisions), (3, 3, 3, 3));
    }
    put_at(&keys, "a", "2", 8);
    put_at(&child, "d", "2", 9);
    assert_eq!(owned(&again(G))[0], "a=2@2/8/2");
    assert_eq!(owned(&again(CHILD))[0], "d=2@5/9/2");
}

#[test]
fn a_split_may_be_asked_for_again_and_not_for_another_state() {
    let keys = parent(MemStore::default(), Partitioning::Range);
    let command = |epoch, at: &str, child| ShardCommand::Split {
        epoch,
        at: bytes(at),
        child: GroupId(child),
    };
    assert_eq!(shard(&keys, command(2, "d", 2)), Err(OpError::Stale));
    assert_eq!(shard(&keys, command(1, "", 2)), Err(OpError::Stale));
    assert_eq!(shard(&keys, command(1, "d", 2)), Ok(ShardResult::Split));
    assert!(keys.mvcc.take_born().is_some() && keys.mvcc.take_born().is_none());
    assert_eq!(shard(&keys, command(1, "d", 2)), Ok(ShardResult::Split));
    assert!(keys.mvcc.take_born().is_none());
    assert_eq!(shard(&keys, command(1, "d", 3)), Err(OpError::Stale));
    assert_eq!(
        shard(&keys, command(2, "e", 3)),
        Err(OpError::Stale),
        "e is not there any more"
    );
}

#[test]
fn hashed_shards_are_cut_between_slots() {
    let partitioning = Partitioning::Hash {
        slots: 16,
        prefix_segments: None,
    };
    let store = MemStore::default();
    let keys = parent(store.clone(), partitioning);
    let middle = keys.mvcc.middle_key().unwrap();
    assert_eq!(middle.len(), 4);
    let command = ShardCommand::Split {
        epoch: 1,
        at: middle,
        child: CHILD,
    };
    shard(&keys, command).unwrap();
    let child = Keys {
        mvcc: keys.mvcc.take_born().unwrap(),
    };
    let part = |keys: &Keys<MemStore>| {
        let part = KeyRange::Part {
            start: Bytes::new(),
            end: None,
            span: keys.mvcc.territory().span,
        };
        let found = keys.range(&Range::of(part)).unwrap().kvs;
        assert!(found.iter().all(|kv| keys.mvcc.territory().owns(&kv.key)));
        found.len()
    };
    assert!(part(&keys) > 0 && part(&child) > 0);
    assert_eq!(part(&keys) + part(&child), 6);
    let reopened = |group| Keys {
        mvcc: Mvcc::open(store.clone(), group).unwrap(),
    };
    assert_eq!(
        (part(&reopened(G)), part(&reopened(CHILD))),
        (part(&keys), part(&child))
    );
    assert_eq!(keys.range(&Range::of(all())), Err(OpError::WrongShard));
}

#[test]
fn a_sealed_neighbour_joins_and_can_be_cut_off_and_join_again() {
    let store = MemStore::default();
    let keys = parent(store.clone(), Partitioning::Range);
    let child = split(&keys, "d", CHILD);
    put_at(&keys, "a", "2", 8);
    put_at(&child, "e", "2", 9);
    assert_eq!(absorb(&keys, &child, 7), Ok(ShardResult::Absorbed));
    let all_keys = [
        "a=2@2/8/2",
        "b=1@3/3/1",
        "c=1@4/4/1",
        "d=1@5/5/1",
        "e=2@6/9/2",
        "f=1@7/7/1",
    ];
    let reopened = |group| Keys {
        mvcc: Mvcc::open(store.clone(), group).unwrap(),
    };
    for keys in [&keys, &reopened(G)] {
        assert_eq!(owned(keys), all_keys);
        assert_eq!(keys.mvcc.territory().span, Span::default());
        assert_eq!((keys.mvcc.territory().epoch, keys.revision()), (3, 9));
        assert_eq!(show(&[keys.get_at("e", 8).unwrap().unwrap()]), ["e=1@6/6/1"]);
    }
    for child in [&child, &reopened(CHILD)] {
        assert_eq!(child.range(&Range::of(single("e"))), Err(OpError::Sealed));
        assert_eq!(shard(child, ShardCommand::Unseal { operation: 7 }), Err(OpError::Stale));
        assert_eq!(child.mvcc.size().unwrap().revisions, 0);
    }
    // Asked for again, it is done.
    let again = ShardCommand::Absorb {
        operation: 7,
        from: CHILD,
        position: LogPosition::default(),
        territory: Territory::default(),
    };
    assert_eq!(shard(&keys, again), Ok(ShardResult::Absorbed));
    child.mvcc.retire().unwrap();
    child.sweep();
    assert_eq!(groups(&store).unwrap(), [G]);

    // The same once more, with a group that has left and comes again.
    let child = split(&keys, "b", CHILD);
    put_at(&child, "c", "2", 10);
    assert_eq!(absorb(&keys, &child, 8), Ok(ShardResult::Absorbed));
    put_at(&keys, "f", "2", 11);
    let expected = [
        "a=2@2/8/2",
        "b=1@3/3/1",
        "c=2@4/10/2",
        "d=1@5/5/1",
        "e=2@6/9/2",
        "f=2@7/11/2",
    ];
    assert_eq!(owned(&keys), expected);
    assert_eq!(owned(&reopened(G)), expected);
}

#[test]
fn a_neighbour_that_is_not_sealed_or_behind_does_not_join() {
    let keys = parent(MemStore::default(), Partitioning::Range);
    let child = split(&keys, "d", CHILD);
    let territory = Territory {
        epoch: 3,
        ..Territory::default()
    };
    let position = child.mvcc.applied().position;
    let command = |position| {
        let territory = territory.clone();
        Command::Shard(ShardCommand::Absorb {
            operation: 7,
            from: CHILD,
            position,
            territory,
        })
    };
    let applied = meta(keys.mvcc.applied().position.index.0 + 1);
    let refused = |position| {
        let items = [ApplyItem::unstamped(command(position))];
        let refused = keys.mvcc.apply_beside(&items, applied.clone(), Some(&child.mvcc));
        matches!(refused, Err(StoreError::Neighbour { from: CHILD, .. }))
    };
    assert!(refused(position));
    shard(&child, ShardCommand::Seal { operation: 8 }).unwrap();
    assert!(refused(position), "sealed by another operation");
    shard(&child, ShardCommand::Unseal { operation: 8 }).unwrap();
    shard(&child, ShardCommand::Seal { operation: 7 }).unwrap();
    let mut later = child.mvcc.applied().position;
    later.index = later.index.next();
    assert!(refused(later), "not yet far enough");
    assert_eq!(owned(&keys).len(), 3, "nothing was applied");
    assert!(
        keys.mvcc
            .apply_beside(&[ApplyItem::unstamped(command(position))], applied, Some(&child.mvcc))
            .is_ok()
    );
    assert_eq!(owned(&keys).len(), 6);
}

#[test]
fn what_a_leaving_group_had_goes_and_what_others_refer_to_stays() {
    let store = MemStore::default();
    let keys = parent(store.clone(), Partitioning::Range);
    let child = split(&keys, "d", CHILD);
    put_at(&child, "e", "2", 8);
    let (mine, theirs) = (owned(&keys), owned(&child));
    let before = rows(&store);
    // The child moves to another node.
    let mut chunks = Vec::new();
    for chunk in child.mvcc.export().unwrap() {
        chunks.push(chunk.unwrap());
    }
    child.mvcc.retire().unwrap();
    assert_eq!(child.range(&Range::of(single("e"))), Err(OpError::WrongShard));
    child.sweep();
    // Its four rows; its applied record and its reference have been replaced by one record.
    assert!(rows(&store) < before - 4, "{} of {before}", rows(&store));
    let kept = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    assert_eq!(owned(&kept), mine);
    // It comes back by a snapshot, into a slot of its own.
    let back = Keys {
        mvcc: Mvcc::open(store.clone(), CHILD).unwrap(),
    };
    let mut import = back.mvcc.import();
    chunks.iter().for_each(|chunk| import.chunk(chunk).unwrap());
    back.mvcc.install(import).unwrap();
    assert_eq!(owned(&back), theirs);
    // And joins again: what its rows once were beside the parent's is no matter.
    assert_eq!(absorb(&kept, &back, 9), Ok(ShardResult::Absorbed));
    put_at(&kept, "f", "2", 12);
    for keys in [
        &kept,
        &Keys {
            mvcc: Mvcc::open(store, G).unwrap(),
        },
    ] {
        let expected = [
            "a=1@2/2/1",
            "b=1@3/3/1",
            "c=1@4/4/1",
            "d=1@5/5/1",
            "e=2@6/8/2",
            "f=2@7/12/2",
        ];
        assert_eq!(owned(keys), expected);
    }
}

#[test]
fn a_parent_that_comes_late_to_a_split_leaves_the_child_alone_that_is_here() {
    let (there, here) = (MemStore::default(), MemStore::default());
    let (ahead, behind) = (
        parent(there, Partitioning::Range),
        parent(here.clone(), Partitioning::Range),
    );
    let child = split(&ahead, "d", CHILD);
    put_at(&child, "e", "2", 8);
    let came = Mvcc::open(here.clone(), CHILD).unwrap();
    let mut import = came.import();
    for chunk in child.mvcc.export().unwrap() {
        import.chunk(&chunk.unwrap()).unwrap();
    }
    came.install(import).unwrap();
    let command = ShardCommand::Split {
        epoch: 1,
        at: bytes("d"),
        child: CHILD,
    };
    assert_eq!(shard(&behind, command), Ok(ShardResult::Split));
    assert!(behind.mvcc.take_born().is_none());
    behind.sweep();
    for store in [
        behind,
        Keys {
            mvcc: Mvcc::open(here.clone(), G).unwrap(),
        },
    ] {
        assert_eq!(owned(&store), owned(&ahead));
        assert_eq!(store.mvcc.size().unwrap().revisions, 3);
    }
    let came = Keys {
        mvcc: Mvcc::open(here.clone(), CHILD).unwrap(),
    };
    assert_eq!(owned(&came), owned(&child));
}

#[test]
fn rows_in_too_many_slots_are_brought_together() {
    let store = MemStore::default();
    let keys = parent(store.clone(), Partitioning::Range);
    let mut stamp = 10;
    // Each round leaves rows of its own in three slots, and there is room for 256.
    for round in 0..100 {
        let child = split(&keys, "d", CHILD);
        for (keys, key) in [(&keys, "a"), (&child, "e")] {
            put_at(keys, key, &round.to_string(), stamp);
            stamp += 1;
        }
        assert_eq!(absorb(&keys, &child, round), Ok(ShardResult::Absorbed));
        child.mvcc.retire().unwrap();
        child.sweep();
        put_at(&keys, "f", &round.to_string(), stamp);
        stamp += 1;
    }
    keys.sweep();
    for keys in [
        &keys,
        &Keys {
            mvcc: Mvcc::open(store, G).unwrap(),
        },
    ] {
        assert_eq!(keys.mvcc.size().unwrap().revisions, 6 + 300);
        for round in 0..100 {
            let at = 10 + round * 3 + 2;
            for key in ["a", "e", "f"] {
                assert_eq!(keys.get_at(key, at).unwrap().unwrap().value, bytes(&round.to_string()));
            }
        }
    }
}
