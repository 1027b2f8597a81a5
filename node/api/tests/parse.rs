//! What requests mean, and which are refused, one sentence a rule.

use althing_api::errors::RequestError;
use althing_api::keyspace::Consistency;
use althing_api::parse;
use althing_api::pb::etcdserverpb::compare::{CompareResult, CompareTarget as WireTarget, TargetUnion};
use althing_api::pb::etcdserverpb::range_request::{SortOrder, SortTarget as WireSort};
use althing_api::pb::etcdserverpb::request_op::Request;
use althing_api::pb::etcdserverpb::{
    Compare as WireCompare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use althing_store::ops::{
    Compare, CompareOp, CompareTarget, Descending, KeyRange, Op, Put, Range, Revision, SortTarget,
};
use bytes::Bytes;
use proptest::prelude::*;

/// etcd's default, which the limits are written for.
const MAX_OPS: usize = 128;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        ..RangeRequest::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn read(key: &'static str) -> RequestOp {
    op(Request::RequestRange(get(key)))
}

fn put(key: &'static str) -> RequestOp {
    op(Request::RequestPut(PutRequest {
        key: bytes(key),
        ..PutRequest::default()
    }))
}

fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        prev_kv: false,
    }))
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(TxnRequest {
        compare: vec![],
        success,
        failure,
    }))
}

/// A transaction with this success branch.
fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        ..TxnRequest::default()
    }
}

fn refusal(request: TxnRequest) -> Option<RequestError> {
    parse::txn(request, MAX_OPS).err()
}

#[test]
fn an_empty_key_is_refused_wherever_a_key_stands() {
    assert_eq!(parse::range(get("")), Err(RequestError::EmptyKey));
    assert_eq!(parse::put(PutRequest::default()), Err(RequestError::EmptyKey));
    assert_eq!(
        parse::delete(DeleteRangeRequest::default()),
        Err(RequestError::EmptyKey)
    );
    assert_eq!(refusal(then(vec![read("")])), Some(RequestError::EmptyKey));
    assert_eq!(
        refusal(then(vec![nested(vec![], vec![put("")])])),
        Some(RequestError::EmptyKey)
    );
    let compare = vec![WireCompare::default()];
    assert_eq!(
        refusal(TxnRequest {
            compare,
            ..TxnRequest::default()
        }),
        Some(RequestError::EmptyKey)
    );
}

#[test]
fn an_end_of_nothing_is_one_key_a_zero_byte_is_no_end_and_anything_else_is_exclusive() {
    let meaning = |key, range_end| {
        let request = RangeRequest {
            range_end: bytes(range_end),
            ..get(key)
        };
        parse::range(request).expect("a key is given").0.keys
    };
    assert_eq!(meaning("a", ""), KeyRange::Single(bytes("a")));
    assert_eq!(meaning("a", "\0"), KeyRange::From(bytes("a")));
    assert_eq!(meaning("\0", "\0"), KeyRange::From(bytes("\0")));
    assert_eq!(meaning("a", "b"), KeyRange::Between(bytes("a"), bytes("b")));
    // Empty, and not an error.
    assert_eq!(meaning("b", "a"), KeyRange::Between(bytes("b"), bytes("a")));
    assert_eq!(meaning("a", "\0\0"), KeyRange::Between(bytes("a"), bytes("\0\0")));
}

#[test]
fn a_range_without_options_is_the_latest_linearizable_read_in_key_order() {
    assert_eq!(
        parse::range(get("a")),
        Ok((Range::of(KeyRange::Single(bytes("a"))), Consistency::Linearizable))
    );
}

#[test]
fn every_option_of_a_range_arrives() {
    let request = RangeRequest {
        limit: 7,
        revision: 9,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 1,
        max_mod_revision: 2,
        min_create_revision: 3,
        max_create_revision: 4,
        ..get("a")
    };
    let range = Range {
        limit: Some(7),
        revision: Some(Revision(9)),
        keys_only: true,
        count_only: true,
        mod_revision: (1, 2),
        create_revision: (3, 4),
        ..Range::of(KeyRange::Single(bytes("a")))
    };
    assert_eq!(parse::range(request), Ok((range, Consistency::Serializable)));
}

#[test]
fn a_limit_or_revision_of_zero_or_less_is_none() {
    for number in [0, -1, i64::MIN] {
        let (range, _) = parse::range(RangeRequest {
            limit: number,
            revision: number,
            ..get("a")
        })
        .expect("valid");
        assert_eq!((range.limit, range.revision), (None, None), "{number}");
    }
}

#[test]
fn a_sort_by_anything_but_the_key_is_ascending_unless_it_says_descending() {
    let sort = |target: WireSort, order: SortOrder| {
        let request = RangeRequest {
            sort_target: target.into(),
            sort_order: order.into(),
            ..get("a")
        };
        parse::range(request).expect("known options").0.sort
    };
    assert_eq!(sort(WireSort::Key, SortOrder::None), None);
    assert_eq!(sort(WireSort::Key, SortOrder::Ascend), None);
    assert_eq!(
        sort(WireSort::Key, SortOrder::Descend),
        Some((SortTarget::Key, Descending(true)))
    );
    for (wire, target) in [
        (WireSort::Version, SortTarget::Version),
        (WireSort::Create, SortTarget::Create),
        (WireSort::Mod, SortTarget::Mod),
        (WireSort::Value, SortTarget::Value),
    ] {
        assert_eq!(sort(wire, SortOrder::None), Some((target, Descending(false))));
        assert_eq!(sort(wire, SortOrder::Ascend), Some((target, Descending(false))));
        assert_eq!(sort(wire, SortOrder::Descend), Some((target, Descending(true))));
    }
}

#[test]
fn an_unknown_sort_is_refused() {
    assert_eq!(
        parse::range(RangeRequest {
            sort_order: 3,
            ..get("a")
        }),
        Err(RequestError::InvalidSortOption)
    );
    assert_eq!(
        parse::range(RangeRequest {
            sort_target: 5,
            ..get("a")
        }),
        Err(RequestError::InvalidSortOption)
    );
    assert_eq!(
        parse::range(RangeRequest {
            sort_target: -1,
            ..get("a")
        }),
        Err(RequestError::InvalidSortOption)
    );
}

#[test]
fn a_put_that_keeps_the_value_or_lease_may_not_bring_one() {
    let request = PutRequest {
        key: bytes("a"),
        ..PutRequest::default()
    };
    assert_eq!(
        parse::put(PutRequest {
            ignore_value: true,
            value: bytes("v"),
            ..request.clone()
        }),
        Err(RequestError::ValueProvided)
    );
    assert_eq!(
        parse::put(PutRequest {
            ignore_lease: true,
            lease: 1,
            ..request.clone()
        }),
        Err(RequestError::LeaseProvided)
    );
    assert_eq!(
        parse::put(PutRequest {
            ignore_value: true,
            ignore_lease: true,
            prev_kv: true,
            ..request
        }),
        Ok(Put {
            key: bytes("a"),
            value: None,
            lease: None,
            prev_kv: true
        })
    );
}

#[test]
fn a_put_without_value_and_lease_writes_the_empty_value_and_detaches() {
    assert_eq!(
        parse::put(PutRequest {
            key: bytes("a"),
            ..PutRequest::default()
        }),
        Ok(Put {
            key: bytes("a"),
            value: Some(Bytes::new()),
            lease: Some(0),
            prev_kv: false
        })
    );
}

#[test]
fn a_level_of_a_transaction_has_at_most_128_comparisons_or_operations() {
    let reads = |count| vec![read("a"); count];
    let compares = |count| {
        vec![
            WireCompare {
                key: bytes("a"),
                ..WireCompare::default()
            };
            count
        ]
    };
    let txn = |compare, success, failure| TxnRequest {
        compare,
        success,
        failure,
    };
    assert_eq!(refusal(txn(compares(128), reads(128), reads(128))), None);
    assert_eq!(
        refusal(txn(compares(129), vec![], vec![])),
        Some(RequestError::TooManyOps)
    );
    assert_eq!(refusal(txn(vec![], reads(129), vec![])), Some(RequestError::TooManyOps));
    assert_eq!(refusal(txn(vec![], vec![], reads(129))), Some(RequestError::TooManyOps));
}

#[test]
fn a_level_has_only_what_the_widest_list_of_each_level_above_leaves() {
    let inner = |count| nested(vec![read("a"); count], vec![]);
    let outer = |inner| {
        let mut ops = vec![read("a"); 99];
        ops.push(inner);
        then(ops)
    };
    assert_eq!(refusal(outer(inner(28))), None);
    assert_eq!(refusal(outer(inner(29))), Some(RequestError::TooManyOps));
}

#[test]
fn an_operation_with_nothing_in_it_is_refused() {
    assert_eq!(
        refusal(then(vec![RequestOp { request: None }])),
        Some(RequestError::EmptyOp)
    );
}

#[test]
fn a_comparison_takes_its_number_from_the_field_of_its_target() {
    let table = [
        (WireTarget::Version, TargetUnion::Version(5), CompareTarget::Version(5)),
        (
            WireTarget::Create,
            TargetUnion::CreateRevision(5),
            CompareTarget::Create(5),
        ),
        (WireTarget::Mod, TargetUnion::ModRevision(5), CompareTarget::Mod(5)),
        (
            WireTarget::Value,
            TargetUnion::Value(bytes("v")),
            CompareTarget::Value(bytes("v")),
        ),
        (WireTarget::Lease, TargetUnion::Lease(5), CompareTarget::Lease(5)),
        // A field of another target counts as absent, and absent as zero.
        (WireTarget::Version, TargetUnion::Lease(5), CompareTarget::Version(0)),
        (
            WireTarget::Value,
            TargetUnion::Lease(5),
            CompareTarget::Value(Bytes::new()),
        ),
    ];
    for (target, union, expected) in table {
        let compare = WireCompare {
            key: bytes("a"),
            range_end: bytes("b"),
            target: target.into(),
            result: CompareResult::Less.into(),
            target_union: Some(union),
        };
        let (txn, _) = parse::txn(
            TxnRequest {
                compare: vec![compare],
                ..TxnRequest::default()
            },
            MAX_OPS,
        )
        .expect("a valid comparison");
        let keys = KeyRange::Between(bytes("a"), bytes("b"));
        assert_eq!(
            txn.compares,
            [Compare {
                keys,
                op: CompareOp::Less,
                target: expected
            }]
        );
    }
}

#[test]
fn an_unknown_comparison_is_refused() {
    for (target, result) in [(5, 0), (0, 4)] {
        let compare = vec![WireCompare {
            key: bytes("a"),
            target,
            result,
            ..WireCompare::default()
        }];
        assert_eq!(
            refusal(TxnRequest {
                compare,
                ..TxnRequest::default()
            }),
            Some(RequestError::InvalidCompareOption)
        );
    }
}

#[test]
fn a_transaction_is_serializable_only_if_all_it_does_is_read_serializable_ranges() {
    let local = || {
        op(Request::RequestRange(RangeRequest {
            serializable: true,
            ..get("a")
        }))
    };
    let consistency = |success, failure| {
        parse::txn(
            TxnRequest {
                compare: vec![],
                success,
                failure,
            },
            MAX_OPS,
        )
        .expect("valid")
        .1
    };
    assert_eq!(consistency(vec![local()], vec![local()]), Consistency::Serializable);
    assert_eq!(consistency(vec![local()], vec![read("a")]), Consistency::Linearizable);
    assert_eq!(consistency(vec![local(), put("a")], vec![]), Consistency::Linearizable);
    assert_eq!(
        consistency(vec![nested(vec![local()], vec![])], vec![]),
        Consistency::Linearizable
    );
}

#[test]
fn no_branch_may_change_a_key_twice() {
    let duplicate = Some(RequestError::DuplicateKey);
    let table: Vec<(&str, Vec<RequestOp>, Option<RequestError>)> = vec![
        ("two puts of two keys", vec![put("a"), put("b")], None),
        ("two puts of one key", vec![put("a"), put("a")], duplicate),
        ("put and removal of one key", vec![put("a"), delete("a", "")], duplicate),
        ("removal and put of one key", vec![delete("a", ""), put("a")], duplicate),
        (
            "put inside a removed range",
            vec![put("b"), delete("a", "c")],
            duplicate,
        ),
        (
            "put at a removed range's start",
            vec![put("a"), delete("a", "c")],
            duplicate,
        ),
        ("put at a removed range's end", vec![put("c"), delete("a", "c")], None),
        (
            "put under a removal without end",
            vec![put("z"), delete("a", "\0")],
            duplicate,
        ),
        (
            "put before a removal without end",
            vec![put("a"), delete("b", "\0")],
            None,
        ),
        ("put beside an empty removal", vec![put("b"), delete("c", "a")], None),
        (
            "overlapping removals",
            vec![delete("a", "c"), delete("b", "d"), delete("b", "")],
            None,
        ),
        (
            "put between removals",
            vec![delete("a", "b"), delete("c", "d"), put("b")],
            None,
        ),
        (
            "put in the joint of removals",
            vec![delete("a", "b"), delete("b", "d"), put("b")],
            duplicate,
        ),
        ("put and read of one key", vec![put("a"), read("a")], None),
        (
            "put and nested put",
            vec![put("a"), nested(vec![put("a")], vec![])],
            duplicate,
        ),
        (
            "put and nested put in the other branch",
            vec![put("a"), nested(vec![], vec![put("a")])],
            duplicate,
        ),
        (
            "both branches of one nested",
            vec![nested(vec![put("a")], vec![put("a")])],
            None,
        ),
        (
            "put and removal in the branches of one nested",
            vec![nested(vec![put("a")], vec![delete("a", "")])],
            None,
        ),
        (
            "two nested put one key",
            vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])],
            duplicate,
        ),
        (
            "nested removal, then nested put",
            vec![nested(vec![delete("a", "c")], vec![]), nested(vec![put("b")], vec![])],
            duplicate,
        ),
        (
            "nested put, then nested removal",
            vec![nested(vec![put("b")], vec![]), nested(vec![delete("a", "c")], vec![])],
            duplicate,
        ),
        (
            "nested in nested",
            vec![put("a"), nested(vec![nested(vec![], vec![put("a")])], vec![])],
            duplicate,
        ),
    ];
    for (what, ops, expected) in table {
        assert_eq!(refusal(then(ops.clone())), expected, "{what}, in the success branch");
        let failure = TxnRequest {
            failure: ops,
            ..TxnRequest::default()
        };
        assert_eq!(refusal(failure), expected, "{what}, in the failure branch");
    }
}

#[test]
fn both_branches_of_a_transaction_may_put_one_key() {
    let txn = TxnRequest {
        success: vec![put("a")],
        failure: vec![put("a")],
        ..TxnRequest::default()
    };
    assert_eq!(refusal(txn), None);
}

/// Keys of the random transactions.
const ALPHABET: [&str; 5] = ["a", "b", "c", "d", "e"];

fn any_key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&ALPHABET[..])
}

fn any_op() -> impl Strategy<Value = RequestOp> {
    let end = prop::sample::select(vec!["", "\0", "a", "b", "c", "d", "e", "f"]);
    let leaf = prop_oneof![
        4 => any_key().prop_map(put),
        2 => (any_key(), end).prop_map(|(key, end)| delete(key, end)),
        1 => any_key().prop_map(read),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let branch = prop::collection::vec(inner, 0..3);
        (branch.clone(), branch).prop_map(|(success, failure)| nested(success, failure))
    })
}

/// Keys that a branch puts and removes, found key by key; `None` if it could change one twice.
fn changes(ops: &[Op]) -> Option<(Vec<&'static str>, Vec<&'static str>)> {
    let (mut puts, mut removed) = (Vec::new(), Vec::new());
    for op in ops {
        let (new_puts, new_removed) = match op {
            Op::Range(_) => (vec![], vec![]),
            Op::Put(put) => (ALPHABET.into_iter().filter(|key| put.key == *key).collect(), vec![]),
            Op::Delete(delete) => (
                vec![],
                ALPHABET
                    .into_iter()
                    .filter(|key| delete.keys.contains(key.as_bytes()))
                    .collect(),
            ),
            Op::Txn(txn) => {
                let (mut puts, mut removed) = changes(&txn.success)?;
                let (other_puts, other_removed) = changes(&txn.failure)?;
                puts.extend(other_puts);
                removed.extend(other_removed);
                (puts, removed)
            }
        };
        if new_puts.iter().any(|key| puts.contains(key) || removed.contains(key))
            || new_removed.iter().any(|key| puts.contains(key))
        {
            return None;
        }
        puts.extend(new_puts);
        removed.extend(new_removed);
    }
    Some((puts, removed))
}

/// The parsed form of operations that need no check.
fn parsed(ops: &[RequestOp]) -> Vec<Op> {
    ops.iter()
        .map(|op| match op.request.clone().expect("generated with one") {
            Request::RequestRange(request) => Op::Range(parse::range(request).expect("valid").0),
            Request::RequestPut(request) => Op::Put(parse::put(request).expect("valid")),
            Request::RequestDeleteRange(request) => Op::Delete(parse::delete(request).expect("valid")),
            Request::RequestTxn(request) => Op::Txn(althing_store::ops::Txn {
                compares: vec![],
                success: parsed(&request.success),
                failure: parsed(&request.failure),
            }),
        })
        .collect()
}

proptest! {
    #[test]
    fn the_overlap_check_agrees_with_looking_at_every_key(ops in prop::collection::vec(any_op(), 0..6)) {
        let allowed = changes(&parsed(&ops)).is_some();
        prop_assert_eq!(refusal(then(ops)).is_none(), allowed);
    }
}
