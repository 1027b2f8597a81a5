//! The shard map: routes, rows and wishes.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a panic is this test's failure"
)]

use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::roster::{ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Span as ReadSpan};
use althing_shard::map::{
    KeyspaceId, KeyspaceState, Lineage, MemberRecord, MemberState, MergePhase, Operation, OperationId, RouteTable,
    SequencePhase, ShardRecord, Work,
};
use althing_shard::meta::{KeyspaceSpec, MetaChange, MetaError, MetaState, printable, unprintable};
use althing_store::ops::{Command, KeyRange, OpResult, Range};
use althing_store::partition::{Partitioning, RevisionSource, Span};
use althing_store::{ApplyItem, MemStore, Mvcc};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn span(start: &str, end: Option<&str>) -> Span {
    Span {
        start: key(start),
        end: end.map(key),
    }
}

fn born() -> MetaState {
    let mut state = MetaState::default();
    let member = |name: &str| MemberRecord {
        name: name.to_owned(),
        ..MemberRecord::default()
    };
    let members = (1..=3)
        .map(|id| (MemberId(id), member(&format!("orders-{id}"))))
        .collect();
    let change = state.genesis(&members).unwrap();
    state.apply(&change);
    state
}

/// A map of the default keyspace, cut at these keys.
fn cut(keys: &[&str]) -> MetaState {
    let mut state = born();
    let first = state.shards[&GroupId::FIRST_SHARD].clone();
    state.shards.clear();
    let starts = std::iter::once("").chain(keys.iter().copied());
    let ends = keys.iter().copied().map(Some).chain([None]);
    for (number, (start, end)) in starts.zip(ends).enumerate() {
        let shard = ShardRecord {
            span: span(start, end),
            ..first.clone()
        };
        // Group numbers say nothing about the order of spans.
        state.shards.insert(GroupId(100 - number as u64), shard);
    }
    state.counters.next_group = 101;
    state
}

fn table(state: &MetaState) -> RouteTable {
    RouteTable::all(state).remove(&KeyspaceId::DEFAULT).unwrap()
}

fn groups(table: &RouteTable, keys: &KeyRange) -> Vec<u64> {
    table.shards_of(keys).iter().map(|route| route.group.0).collect()
}

#[test]
fn a_range_meets_exactly_the_shards_that_it_touches() {
    let table = table(&cut(&["b", "d"]));
    let between = |start, end| KeyRange::Between(key(start), key(end));
    let cases = [
        (KeyRange::Single(key("a")), vec![100]),
        (KeyRange::Single(key("b")), vec![99]),
        (KeyRange::Single(key("zz")), vec![98]),
        (between("a", "b"), vec![100]),
        (between("a", "b\0"), vec![100, 99]),
        (between("b", "d"), vec![99]),
        (between("a", "e"), vec![100, 99, 98]),
        (between("c", "c"), vec![]),
        (between("d", "c"), vec![]),
        (KeyRange::From(key("c")), vec![99, 98]),
        (KeyRange::From(key("")), vec![100, 99, 98]),
    ];
    for (keys, expected) in cases {
        assert_eq!(groups(&table, &keys), expected, "{keys:?}");
    }
}

/// Makes the shards of the default keyspace equal parts of its slots.
fn hash(state: &mut MetaState, partitioning: Partitioning) {
    state.keyspaces.get_mut(&KeyspaceId::DEFAULT).unwrap().partitioning = partitioning;
    let Partitioning::Hash { slots, .. } = partitioning else {
        panic!("{partitioning:?}");
    };
    let count = u32::try_from(state.shards.len()).unwrap();
    let at = |number: u32| Bytes::copy_from_slice(&(number * slots / count).to_be_bytes());
    for (shard, number) in state.shards.values_mut().zip(0..) {
        shard.span = Span {
            start: if number == 0 { Bytes::new() } else { at(number) },
            end: (number + 1 < count).then(|| at(number + 1)),
        };
    }
}

#[test]
fn a_directory_of_a_hashed_keyspace_lies_in_one_shard() {
    let mut state = cut(&["b", "d", "f"]);
    let partitioning = Partitioning::Hash {
        slots: 64,
        prefix_segments: Some(2),
    };
    hash(&mut state, partitioning);
    let table = table(&state);
    let between = |start, end| KeyRange::Between(key(start), key(end));
    let list = between("/registry/pods/", "/registry/pods0");
    let own = table.shard_of(b"/registry/pods/default/web").group.0;
    assert_eq!(groups(&table, &list), vec![own]);
    assert_eq!(
        groups(&table, &between("/registry/pods/a", "/registry/pods/b")),
        vec![own]
    );
    assert_eq!(groups(&table, &between("/registry/", "/registry0")).len(), 4);
    assert_eq!(groups(&table, &KeyRange::From(key("/registry/pods/"))).len(), 4);
}

#[test]
fn a_keyspace_that_does_not_serve_has_no_routes() {
    let mut state = cut(&["b"]);
    for unfit in [KeyspaceState::Creating, KeyspaceState::Dropping] {
        state.keyspaces.get_mut(&KeyspaceId::DEFAULT).unwrap().state = unfit;
        assert_eq!(RouteTable::all(&state), BTreeMap::new());
    }
}

#[test]
#[should_panic(expected = "leave a gap or overlap")]
fn a_map_with_a_gap_is_not_routed_by() {
    let mut state = cut(&["b", "d"]);
    state.shards.remove(&GroupId(99));
    let _ = RouteTable::all(&state);
}

proptest! {
    #[test]
    fn the_shard_of_a_key_is_among_those_of_every_range_that_holds_it(
        cuts in proptest::collection::btree_set("[a-d]{1,2}", 0..6),
        keys in proptest::collection::vec("[a-e]{0,3}", 1..20),
        from in "[a-e]{0,3}", to in "[a-e]{0,3}", hashed in any::<bool>(),
    ) {
        let cuts: Vec<&str> = cuts.iter().map(String::as_str).collect();
        let mut state = cut(&cuts);
        if hashed {
            hash(&mut state, Partitioning::Hash { slots: 16, prefix_segments: None });
        }
        let table = table(&state);
        for text in keys {
            let route = table.shard_of(text.as_bytes());
            prop_assert!(route.span.contains(&table.partitioning.partition_key(text.as_bytes())));
            for range in [
                KeyRange::Single(key(&text)),
                KeyRange::From(key(&from)),
                KeyRange::Between(key(&from), key(&to)),
            ] {
                if range.contains(text.as_bytes()) {
                    prop_assert!(table.shards_of(&range).contains(route), "{:?} {:?}", text, range);
                }
            }
        }
    }

    #[test]
    fn any_key_survives_being_printed(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let text = printable(&bytes);
        prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        prop_assert_eq!(unprintable(&text), Some(Bytes::from(bytes)));
    }
}

#[test]
fn a_printed_key_can_be_read_and_what_nobody_printed_is_refused() {
    assert_eq!(printable(b"/a\\b\x00\xff"), "/a\\\\b\\x00\\xff");
    for odd in ["\\", "\\x1", "\\xzz", "\\y", "\u{e4}"] {
        assert_eq!(unprintable(odd), None, "{odd:?}");
    }
}

/// A map with one of everything.
fn everything() -> MetaState {
    let mut state = cut(&["b\0", "d"]);
    state.members.get_mut(&MemberId(2)).unwrap().state = MemberState::Draining;
    state.members.get_mut(&MemberId(3)).unwrap().labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let keyspace = state.keyspaces.get_mut(&KeyspaceId::DEFAULT).unwrap();
    keyspace.source = RevisionSource::Sequenced;
    keyspace.sequencer = Some(GroupId(50));
    keyspace.replicas = Some(3);
    keyspace.split_keys = vec![key("b\0"), key("d")];
    keyspace.port = Some(2479);
    keyspace.quota_bytes = Some(1 << 40);
    keyspace.reads = Some(ReadSpec {
        mode: ReadMode::RosterLease,
        responders: Responders::Ranges(vec![
            ResponderRange {
                span: ReadSpan::all(),
                members: BTreeSet::from([MemberId(1), MemberId(u64::MAX)]),
            },
            ResponderRange {
                span: ReadSpan::Key(key("k")),
                members: BTreeSet::new(),
            },
        ]),
        revisions: Revisions::OfKeys,
        lease: Duration::from_millis(750),
    });
    let mut other = keyspace.clone();
    other.name = "events".to_owned();
    other.partitioning = Partitioning::Hash {
        slots: 16_384,
        prefix_segments: Some(2),
    };
    other.reads = None;
    other.sequencer = None;
    state.keyspaces.insert(KeyspaceId(2), other);
    state.counters.next_keyspace = 3;
    let mut sequencer = state.shards[&GroupId(100)].clone();
    sequencer.sequencer = true;
    sequencer.parent = Some(Lineage {
        group: GroupId(9),
        epoch: 7,
    });
    state.shards.insert(GroupId(50), sequencer);
    let at = LogPosition {
        term: Term(3),
        index: Index(77),
    };
    let (left, right) = (GroupId(100), GroupId(99));
    let works = [
        Work::Create {
            group: GroupId(7),
            birthplace: MemberId(1),
            to: vec![MemberId(1), MemberId(2)],
            born: true,
        },
        Work::Sequence {
            shard: GroupId(100),
            sequencer: GroupId(50),
            birthplace: MemberId(2),
            to: vec![MemberId(2), MemberId(3)],
            phase: SequencePhase::Settle,
        },
        Work::Split {
            parent: GroupId(100),
            child: GroupId(51),
            at: key("a\u{f6}"),
            epoch: 4,
            cancelled: true,
        },
        Work::Merge {
            left,
            right,
            phase: MergePhase::Align,
        },
        Work::Merge {
            left,
            right,
            phase: MergePhase::Absorb { at },
        },
        Work::Move {
            group: GroupId(98),
            to: vec![MemberId(1), MemberId(3)],
        },
    ];
    for (number, work) in works.into_iter().enumerate() {
        let operation = Operation {
            keyspace: KeyspaceId::DEFAULT,
            work,
            since: 1_700_000_000,
            phase_since: 1_700_000_001,
            reason: "scale \"out\"".to_owned(),
        };
        state.operations.insert(OperationId(number as u64 + 1), operation);
    }
    state.counters.next_operation = 7;
    state
}

#[test]
fn every_row_says_what_it_was_written_from() {
    let state = everything();
    assert_eq!(MetaState::load(state.rows()).unwrap(), state);
}

#[test]
fn rows_are_readable_and_stay_as_they_are() {
    let rows: BTreeMap<String, String> = everything()
        .rows()
        .into_iter()
        .map(|(key, value)| (printable(&key), String::from_utf8(value.to_vec()).unwrap()))
        .collect();
    assert_eq!(rows["version"], "1");
    assert_eq!(
        rows["counters"],
        r#"{"format":1,"nextGroup":101,"nextKeyspace":3,"nextOperation":7}"#
    );
    assert_eq!(
        rows["members/0000000000000003"],
        r#"{"format":1,"name":"orders-3","labels":{"zone":"a"},"state":"Active"}"#
    );
    assert_eq!(
        rows["shards/99"],
        r#"{"format":1,"keyspace":1,"span":{"start":"b\\x00","end":"d"},"epoch":0,"replicas":["0000000000000001","0000000000000002","0000000000000003"],"sequencer":false,"parent":null}"#
    );
    assert_eq!(
        rows["operations/5"],
        r#"{"format":1,"keyspace":1,"work":{"kind":"Merge","left":100,"right":99,"phase":{"phase":"Absorb","at":{"term":3,"index":77}}},"since":1700000000,"phaseSince":1700000001,"reason":"scale \"out\""}"#
    );
}

#[test]
fn unknown_fields_and_rows_are_passed_over_and_unknown_formats_are_refused() {
    let state = born();
    let mut rows: BTreeMap<Bytes, Bytes> = state.rows().into_iter().collect();
    let shard = key("shards/1");
    let text = String::from_utf8(rows[&shard].to_vec()).unwrap();
    rows.insert(key("weather/today"), key("{\"format\":9}"));
    rows.insert(shard.clone(), Bytes::from(text.replacen('{', "{\"mood\":[1,2],", 1)));
    assert_eq!(MetaState::load(&rows).unwrap(), state);

    rows.insert(shard.clone(), Bytes::from(text.replace("\"format\":1", "\"format\":2")));
    let error = MetaState::load(&rows).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row shards/1 of the meta group has format 2, this version knows up to 1; start a newer version"
    );
    rows.insert(shard.clone(), key("{}"));
    let error = MetaState::load(&rows).unwrap_err().to_string();
    assert!(
        error.starts_with("row shards/1 of the meta group is unreadable: missing field `format`"),
        "{error}"
    );
    rows.remove(&shard);
    rows.insert(key("shards/x"), Bytes::from(text));
    assert!(matches!(MetaState::load(&rows), Err(MetaError::Row { .. })));
}

#[test]
fn rows_that_contradict_each_other_are_refused() {
    let mut state = born();
    state.counters.next_group = 1;
    let error = MetaState::load(state.rows()).unwrap_err().to_string();
    assert!(
        error.contains("shard 1 is there and 1 counts as the next free number"),
        "{error}"
    );
}

/// The meta group's keyspace.
struct Group(Mvcc<MemStore>);

impl Group {
    fn new() -> Self {
        Self(Mvcc::open(MemStore::default(), GroupId::META).unwrap())
    }

    fn swap(&self, change: &MetaChange, expected: u64) -> bool {
        let index = self.0.applied().position.index.next();
        let position = LogPosition { term: Term(1), index };
        let meta = SnapshotMeta {
            position,
            ..SnapshotMeta::default()
        };
        let command = Command::Txn(change.clone().into_txn(expected));
        let mut results = self.0.apply(&[ApplyItem::unstamped(command)], meta).unwrap();
        match results.remove(0).unwrap().result.unwrap() {
            OpResult::Txn { succeeded, .. } => succeeded,
            other => panic!("{other:?}"),
        }
    }

    fn load(&self) -> MetaState {
        let (_, result) = self.0.range(&Range::of(KeyRange::From(Bytes::new()))).unwrap().unwrap();
        MetaState::load(result.kvs.into_iter().map(|row| (row.key, row.value))).unwrap()
    }
}

#[test]
fn of_two_changes_from_the_same_state_only_one_happens() {
    let group = Group::new();
    assert_eq!(group.load(), MetaState::default());
    let mut state = MetaState::default();
    let change = state
        .genesis(&BTreeMap::from([(MemberId(1), MemberRecord::default())]))
        .unwrap();
    assert!(group.swap(&change, 0));
    assert!(!group.swap(&change, 0), "there is a map now");
    state.apply(&change);
    assert_eq!(group.load(), state);

    let spec = KeyspaceSpec {
        shards: 4,
        ..KeyspaceSpec::default()
    };
    let scale = state.put_keyspace("default", &spec).unwrap();
    let drain = state.set_member_state(MemberId(1), MemberState::Draining).unwrap();
    assert!(group.swap(&scale, state.version));
    assert!(!group.swap(&drain, state.version), "the map has changed since");
    state.apply(&scale);
    assert_eq!(group.load(), state);
    let remove = MetaChange {
        members: BTreeMap::from([(MemberId(1), None)]),
        ..MetaChange::default()
    };
    assert!(group.swap(&remove, state.version));
    state.apply(&remove);
    assert_eq!(group.load(), state);
    assert_eq!(state.members, BTreeMap::new());
}

fn spec(shards: u32) -> KeyspaceSpec {
    KeyspaceSpec {
        shards,
        ..KeyspaceSpec::default()
    }
}

#[test]
fn a_wish_that_makes_no_sense_says_what_would() {
    let state = cut(&["m"]);
    let hash = |slots| {
        Some(Partitioning::Hash {
            slots,
            prefix_segments: None,
        })
    };
    let table: Vec<(&str, KeyspaceSpec, &str)> = vec![
        ("default", spec(0), "shards: 0 must be from 1 to 16384"),
        (
            "Events",
            spec(1),
            "name: \"Events\" must be 1 to 63 small letters, digits and inner dashes",
        ),
        (
            "events",
            KeyspaceSpec {
                partitioning: hash(4),
                ..spec(5)
            },
            "shards: 5 must be from 1 to 4",
        ),
        (
            "events",
            KeyspaceSpec {
                replicas: Some(8),
                ..spec(1)
            },
            "replicas: 8 must be from 1 to 7",
        ),
        (
            "events",
            KeyspaceSpec {
                partitioning: hash(4),
                split_keys: vec![key("a")],
                ..spec(1)
            },
            "splitKeys: only a keyspace partitioned by range is cut at keys",
        ),
        (
            "default",
            KeyspaceSpec {
                partitioning: hash(64),
                ..spec(2)
            },
            "partitioning: Range cannot change while keyspace \"default\" has 2 shards or an operation is under way; scale it to 1 shard first",
        ),
    ];
    for (name, spec, expected) in table {
        assert_eq!(state.put_keyspace(name, &spec).unwrap_err().to_string(), expected);
    }
    let error = state.drop_keyspace("default").unwrap_err().to_string();
    assert_eq!(
        error,
        "name: keyspace \"default\" is the cluster's own and cannot be dropped"
    );
    let error = state.drop_keyspace("nope").unwrap_err().to_string();
    assert_eq!(error, "there is no keyspace \"nope\"");
    let error = state.set_member_state(MemberId(9), MemberState::Draining).unwrap_err();
    assert_eq!(error, MetaError::NoMember { member: MemberId(9) });
}

#[test]
fn a_wish_that_is_fulfilled_changes_nothing() {
    let mut state = born();
    let wish = KeyspaceSpec {
        split_keys: vec![key("m"), key("c"), key("m")],
        port: Some(2479),
        ..spec(3)
    };
    let change = state.put_keyspace("events", &wish).unwrap();
    state.apply(&change);
    let (id, record) = state.keyspace("events").unwrap();
    assert_eq!((id, record.state), (KeyspaceId(2), KeyspaceState::Creating));
    assert_eq!(record.split_keys, vec![key("c"), key("m")]);
    assert!(state.put_keyspace("events", &wish).unwrap().is_empty());
    let error = state
        .put_keyspace(
            "more",
            &KeyspaceSpec {
                port: Some(2479),
                ..spec(1)
            },
        )
        .unwrap_err();
    assert_eq!(error.to_string(), "port 2479 belongs to keyspace \"events\" already");

    let change = state.drop_keyspace("events").unwrap();
    state.apply(&change);
    assert!(state.drop_keyspace("events").unwrap().is_empty());
    let error = state.put_keyspace("events", &wish).unwrap_err().to_string();
    assert_eq!(error, "keyspace \"events\" (2) is being dropped; wait until it is gone");
}

#[test]
fn a_keyspace_of_one_shard_may_change_how_it_is_partitioned() {
    let mut state = born();
    let hash = Partitioning::Hash {
        slots: 64,
        prefix_segments: Some(2),
    };
    let change = state
        .put_keyspace(
            "default",
            &KeyspaceSpec {
                partitioning: Some(hash),
                ..spec(1)
            },
        )
        .unwrap();
    state.apply(&change);
    assert_eq!(table(&state).partitioning, hash);
    assert_eq!(state.shards[&GroupId::FIRST_SHARD].epoch, 1, "the group has to be told");
}

#[test]
fn an_operation_is_cancelled_until_there_is_no_way_back() {
    let state = everything();
    let after = |id| state.cancel(OperationId(id)).map(|change| change.operations);
    assert!(matches!(after(1), Err(MetaError::TooLate { .. })));
    assert!(matches!(after(2), Err(MetaError::TooLate { .. })));
    assert_eq!(after(3).unwrap(), BTreeMap::new(), "it is being cancelled already");
    assert_eq!(after(4).unwrap(), BTreeMap::from([(OperationId(4), None)]));
    let late = after(5).unwrap_err().to_string();
    assert_eq!(
        late,
        "operation 5 cannot be cancelled any more: the left shard takes over"
    );
    assert_eq!(after(6).unwrap(), BTreeMap::from([(OperationId(6), None)]));
    assert_eq!(
        after(7).unwrap_err().to_string(),
        "there is no operation 7; it may have ended"
    );
}

#[test]
fn what_the_map_has_done_with_is_told_from_what_it_does_not_know_yet() {
    let state = everything();
    assert!(
        state.is_forgotten(GroupId(1)),
        "numbers below the next free one were taken once"
    );
    assert!(!state.is_forgotten(GroupId(51)), "an operation names it");
    assert!(!state.is_forgotten(GroupId(99)));
    assert!(!state.is_forgotten(GroupId(101)), "a newer map may know it");
    assert!(!state.is_forgotten(GroupId::META));
}
