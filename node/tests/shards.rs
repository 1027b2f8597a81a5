//! Real processes with a keyspace of several shards: it is cut and put together while it serves.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use althing_admin::{KeyspaceRequest, KeyspaceStatus};
use althing_api::pb::etcdserverpb::request_op::Request;
use althing_api::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{Node, lay_out, three};

fn wish(shards: u32) -> KeyspaceRequest {
    KeyspaceRequest {
        shards,
        ..KeyspaceRequest::default()
    }
}

async fn scale(nodes: &[Node], shards: u32) -> KeyspaceStatus {
    lay_out(&nodes.iter().collect::<Vec<_>>(), wish(shards)).await
}

fn key(number: u64) -> String {
    format!("/k/{number:05}")
}

/// Everything under a prefix: keys with their values, and the revision of the answer.
async fn all(node: &Node, revision: i64) -> (BTreeMap<String, String>, i64) {
    let request = RangeRequest {
        key: "/k/".into(),
        range_end: "/k0".into(),
        revision,
        ..RangeRequest::default()
    };
    let answer = node.kv().await.range(request).await.unwrap().into_inner();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let kvs = answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
    (kvs, answer.header.unwrap().revision)
}

fn put(key: &str, value: &str) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..PutRequest::default()
        })),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_is_cut_and_put_together_while_it_serves_and_nothing_is_lost() {
    let nodes = Arc::new(three().await);
    for number in 0..400 {
        nodes[0].put(&key(number), "0").await.unwrap();
    }
    // Writers, each to its own keys through its own member, until they are told to stop. What became of a write that failed nobody
    // knows, now or later, so its key is not written again.
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3_u64)
        .map(|writer| {
            let (nodes, stop, written) = (Arc::clone(&nodes), Arc::clone(&stop), Arc::clone(&written));
            tokio::spawn(async move {
                let mut last: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
                let (mut round, mut revision) = (0, 0);
                let node = &nodes[usize::try_from(writer).unwrap()];
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let number = writer + 3 * (round * 37 % 130);
                    let known = last.entry(number).or_insert_with(|| vec![0]);
                    if known.len() > 1 {
                        continue;
                    }
                    match node.put(&key(number), &round.to_string()).await {
                        Ok(at) => {
                            assert!(at > revision, "revisions rise: {at} after {revision}");
                            (revision, *known) = (at, vec![round]);
                            written.fetch_add(1, Ordering::Relaxed);
                            let read = node.get(&key(number)).await.unwrap();
                            assert_eq!(read.as_deref(), Some(round.to_string().as_str()));
                        }
                        Err(status) => {
                            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
                            known.push(round);
                        }
                    }
                }
                last
            })
        })
        .collect();
    for shards in [4, 8, 3, 1] {
        let status = scale(&nodes, shards).await;
        let before = written.load(Ordering::Relaxed);
        eprintln!(
            "{shards} shards after {before} writes: {:?}",
            status.shards.iter().map(|shard| shard.keys).collect::<Vec<_>>()
        );
    }
    stop.store(true, Ordering::Relaxed);
    let mut expected: BTreeMap<String, Vec<u64>> = (0..400).map(|number| (key(number), vec![0])).collect();
    for writer in writers {
        let last = writer.await.unwrap();
        expected.extend(last.into_iter().map(|(number, known)| (key(number), known)));
    }
    let unknown = expected.values().filter(|known| known.len() > 1).count();
    eprintln!("{} writes, of {unknown} nobody knows", written.load(Ordering::Relaxed));
    assert!(unknown < 20, "{unknown} writes failed");
    let (first, _) = all(&nodes[0], 0).await;
    assert_eq!(first.len(), expected.len());
    for (key, value) in &first {
        let value: u64 = value.parse().unwrap();
        assert!(
            expected[key].contains(&value),
            "{key}: {value}, not one of {:?}",
            expected[key]
        );
    }
    for node in nodes.iter() {
        assert_eq!(all(node, 0).await.0, first, "{}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_ranges_and_compactions_go_over_shards_as_over_one() {
    let nodes = three().await;
    for number in 0..300 {
        nodes[0].put(&key(number), "a").await.unwrap();
    }
    let status = scale(&nodes, 4).await;
    assert_eq!(status.shards.len(), 4);
    let (before, revision) = all(&nodes[1], 0).await;
    assert_eq!(before.len(), 300);

    // On three shards at once, if one key is as it was.
    let compare = |value: &str| Compare {
        key: key(150).into(),
        target: compare::CompareTarget::Value.into(),
        result: compare::CompareResult::Equal.into(),
        target_union: Some(compare::TargetUnion::Value(value.to_owned().into())),
        ..Compare::default()
    };
    let txn = |value: &str| TxnRequest {
        compare: vec![compare("a")],
        success: vec![put(&key(0), value), put(&key(150), value), put(&key(299), value)],
        failure: vec![put(&key(1), "failed")],
    };
    let done = nodes[2].kv().await.txn(txn("b")).await.unwrap().into_inner();
    assert!(done.succeeded);
    let at = done.header.unwrap().revision;
    assert!(at > revision);
    for node in &nodes {
        for number in [0, 150, 299] {
            assert_eq!(
                node.get(&key(number)).await.unwrap().as_deref(),
                Some("b"),
                "{}",
                node.name
            );
        }
    }
    let failed = nodes[0].kv().await.txn(txn("c")).await.unwrap().into_inner();
    assert!(!failed.succeeded);
    assert_eq!(nodes[1].get(&key(1)).await.unwrap().as_deref(), Some("failed"));

    // As it was before the transaction, and at it.
    assert_eq!(all(&nodes[0], at - 1).await.0, before);
    let with = all(&nodes[0], at).await.0;
    assert_eq!((with[&key(0)].as_str(), with[&key(299)].as_str()), ("b", "b"));

    let limited = RangeRequest {
        key: "/k/".into(),
        range_end: "/k0".into(),
        limit: 200,
        ..RangeRequest::default()
    };
    let limited = nodes[1].kv().await.range(limited).await.unwrap().into_inner();
    assert_eq!((limited.kvs.len(), limited.more, limited.count), (200, true, 300));

    let delete = DeleteRangeRequest {
        key: key(100).into(),
        range_end: key(200).into(),
        prev_kv: true,
    };
    let deleted = nodes[2].kv().await.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (100, 100));
    assert_eq!(all(&nodes[0], 0).await.0.len(), 200);

    let compact = |revision| CompactionRequest {
        revision,
        physical: false,
    };
    nodes[0].kv().await.compact(compact(at)).await.unwrap();
    let gone = RangeRequest {
        key: "/k/".into(),
        range_end: "/k0".into(),
        revision: at - 1,
        ..RangeRequest::default()
    };
    let gone = nodes[1].kv().await.range(gone).await.unwrap_err();
    assert!(gone.message().contains("compacted"), "{gone}");
    let future = nodes[1].kv().await.compact(compact(1 << 40)).await.unwrap_err();
    assert!(future.message().contains("future revision"), "{future}");
}
