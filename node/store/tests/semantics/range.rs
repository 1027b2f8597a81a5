//! Range (2.2): which keys, at which revision, filtered, sorted, cut.

use crate::common::*;
use althing_store::ops::{Descending, KeyRange, OpError, Range, Revision, SortTarget};

#[test]
fn ranges_hold_what_etcds_range_end_says() {
    let keys = keys();
    for key in ["a", "a/1", "a/2", "b", "c"] {
        keys.put(key, "");
    }
    let found = |range: KeyRange| {
        let result = keys
            .range(&Range {
                keys_only: true,
                ..Range::of(range)
            })
            .unwrap();
        assert_eq!(result.count, result.kvs.len() as i64);
        result
            .kvs
            .iter()
            .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(single("a")), ["a"]);
    assert_eq!(found(single("nope")), [""; 0]);
    assert_eq!(found(between("a/", "a0")), ["a/1", "a/2"]);
    assert_eq!(found(between("a", "b")), ["a", "a/1", "a/2"]);
    assert_eq!(
        found(between("c", "a")),
        [""; 0],
        "start beyond end is empty, not an error"
    );
    assert_eq!(found(between("b", "b")), [""; 0]);
    assert_eq!(found(KeyRange::From(bytes("b"))), ["b", "c"]);
    assert_eq!(found(all()).len(), 5);
}

#[test]
fn a_past_revision_is_readable_and_the_header_is_the_current_one() {
    let keys = keys();
    keys.put("a", "old");
    keys.put("a", "new");
    keys.delete(single("a"));
    let at = |revision| Range {
        revision: Some(Revision(revision)),
        ..Range::of(single("a"))
    };
    let values: Vec<_> = (1..=4)
        .map(|revision| show(&keys.range(&at(revision)).unwrap().kvs))
        .collect();
    assert_eq!(
        values,
        [
            vec![],
            vec!["a=old@2/2/1".to_owned()],
            vec!["a=new@2/3/2".to_owned()],
            vec![]
        ]
    );
    assert_eq!(keys.mvcc.range(&at(2)).unwrap().unwrap().0, Revision(4));
    assert_eq!(keys.range(&at(5)), Err(OpError::FutureRevision));
    assert_eq!(keys.range(&at(0)).unwrap().kvs, []);
    assert_eq!(keys.range(&at(-7)).unwrap().kvs, [], "negative means the latest");
}

#[test]
fn limit_cuts_more_tells_and_count_ignores_both() {
    let keys = keys();
    for key in ["a", "b", "c"] {
        keys.put(key, "");
    }
    let limited = |limit| {
        let result = keys
            .range(&Range {
                limit: Some(limit),
                ..Range::of(all())
            })
            .unwrap();
        (result.kvs.len(), result.more, result.count)
    };
    assert_eq!(limited(1), (1, true, 3));
    assert_eq!(limited(2), (2, true, 3));
    assert_eq!(limited(3), (3, false, 3));
    assert_eq!(limited(u64::MAX), (3, false, 3));
}

#[test]
fn count_only_counts_and_ignores_filters_and_limit() {
    let keys = keys();
    for key in ["a", "b", "c"] {
        keys.put(key, "");
    }
    let range = Range {
        count_only: true,
        limit: Some(1),
        mod_revision: (3, 3),
        ..Range::of(all())
    };
    let result = keys.range(&range).unwrap();
    assert_eq!((result.kvs.len(), result.more, result.count), (0, false, 3));
}

#[test]
fn keys_only_strips_the_value_and_nothing_else() {
    let keys = keys();
    keys.put("a", "secret");
    keys.put("a", "secret");
    let result = keys
        .range(&Range {
            keys_only: true,
            ..Range::of(all())
        })
        .unwrap();
    assert_eq!(show(&result.kvs), ["a=@2/3/2"]);
}

#[test]
fn sorting_comes_before_the_limit_and_ties_stay_in_key_order() {
    let keys = keys();
    for (key, value) in [("a", "2"), ("b", "3"), ("c", "1"), ("d", "3"), ("a", "2")] {
        keys.put(key, value);
    }
    let sorted = |target, descending, limit| {
        let range = Range {
            sort: Some((target, Descending(descending))),
            limit,
            ..Range::of(all())
        };
        let result = keys.range(&range).unwrap();
        let keys: String = result.kvs.iter().map(|kv| kv.key[0] as char).collect();
        (keys, result.more, result.count)
    };
    let of = |keys: &str, more| (keys.to_owned(), more, 4);
    assert_eq!(sorted(SortTarget::Key, false, None), of("abcd", false));
    assert_eq!(sorted(SortTarget::Key, true, None), of("dcba", false));
    assert_eq!(sorted(SortTarget::Value, false, None), of("cabd", false));
    assert_eq!(sorted(SortTarget::Value, true, Some(3)), of("bda", true));
    assert_eq!(sorted(SortTarget::Mod, false, Some(1)), of("b", true));
    assert_eq!(sorted(SortTarget::Create, true, Some(1)), of("d", true));
    assert_eq!(sorted(SortTarget::Version, true, Some(2)), of("ab", true));
}

#[test]
fn filters_are_inclusive_and_come_before_the_limit() {
    let keys = keys();
    for key in ["a", "b", "c", "d", "a"] {
        keys.put(key, "");
    }
    let filtered = |mod_revision, create_revision, limit| {
        let range = Range {
            mod_revision,
            create_revision,
            limit,
            ..Range::of(all())
        };
        let result = keys.range(&range).unwrap();
        (
            result.kvs.iter().map(|kv| kv.key[0] as char).collect::<String>(),
            result.more,
            result.count,
        )
    };
    assert_eq!(filtered((3, 5), (0, 0), None), ("bcd".to_owned(), false, 4));
    assert_eq!(filtered((4, 0), (0, 0), Some(1)), ("a".to_owned(), true, 4));
    assert_eq!(filtered((0, 0), (0, 2), None), ("a".to_owned(), false, 4));
    assert_eq!(filtered((6, 6), (2, 2), Some(1)), ("a".to_owned(), false, 4));
    assert_eq!(filtered((9, 0), (0, 0), None), (String::new(), false, 4));
}
