//! From nothing to a working cluster, with the stock tools.

use std::time::Instant;

use althing_e2e::command::{run, run_with_input};
use serde_json::Value;

use crate::kit::{Cluster, READY_LIMIT, bed, install_operator};

/// One for each shard, once the keyspace is cut into four at [`SPLIT_KEYS`].
const KEYS: [&str; 4] = ["alpha", "greeting", "night", "tango"];
const SPLIT_KEYS: [&str; 3] = ["g", "n", "t"];

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn helm_install_and_kubectl_apply_give_a_cluster_that_etcdctl_uses() {
    let bed = bed();
    install_operator(&bed, &[]);
    let begun = Instant::now();
    let sample =
        std::fs::read_to_string(althing_e2e::paths::checkout().join("manifests/samples/quickstart.yaml")).unwrap();
    bed.apply(&sample).unwrap();
    let cluster = Cluster {
        bed: &bed,
        namespace: "default".into(),
        name: "orders".into(),
        shards: 1,
    };
    cluster.wait_ready(3, READY_LIMIT);
    println!(
        "quickstart: Ready {:.1} s after kubectl apply",
        begun.elapsed().as_secs_f64()
    );

    session(&cluster);
    let members = cluster.etcdctl(&["member", "list"]);
    assert_eq!(members.lines().count(), 3, "{members}");
    assert!(
        cluster
            .etcdctl(&["endpoint", "status", "-w", "table"])
            .contains("false")
    );

    let layout = cluster.kubectl(&["wait", "--for=condition=Ready", "shardlayout/orders", "--timeout=30s"]);
    assert!(layout.contains("condition met"), "{layout}");
    println!(
        "{}",
        cluster.kubectl(&["get", "raftclusters,shardlayouts,pods", "-o", "wide"])
    );

    // The same with four shards.
    bed.apply(&format!(
        "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: orders}}\n\
         spec:\n  clusterRef: {{name: orders}}\n  shards: 4\n  partitioning: {{range: {{splitKeys: {SPLIT_KEYS:?}}}}}\n"
    ))
    .unwrap();
    println!("1 to 4 shards: {:.1} s", cluster.wait_layout("orders", 4).as_secs_f64());
    let cluster = Cluster { shards: 4, ..cluster };
    session(&cluster);
    cluster.kubectl(&["delete", "shardlayout,raftcluster", "orders", "--wait=false"]);
}

/// What people do with etcdctl, on keys that are one shard's or several's. It leaves no key behind.
fn session(cluster: &Cluster<'_>) {
    let get = |key: &str| cluster.etcdctl(&["get", key, "--print-value-only"]).trim().to_owned();
    let put = |key: &str, value: &str| {
        let answer: Value = serde_json::from_str(&cluster.etcdctl(&["put", key, value, "-w", "json"])).unwrap();
        answer["header"]["revision"]
            .as_i64()
            .expect("every answer has a revision")
    };
    let mut revisions = Vec::new();
    for key in KEYS {
        revisions.push(put(key, "hello"));
        assert_eq!(cluster.etcdctl(&["get", key]).trim(), format!("{key}\nhello"));
    }
    for pair in revisions.windows(2) {
        match cluster.shards {
            1 => assert_eq!(pair[0] + 1, pair[1], "one shard counts as etcd does"),
            // A client may rely on their order, and not on there being none in between.
            _ => assert!(pair[0] < pair[1], "{revisions:?}"),
        }
    }
    let everything = ["get", "", "--prefix", "--keys-only"];
    let found = cluster.etcdctl(&everything);
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>(),
        KEYS,
        "in order, each once"
    );

    // On the first key and the last at once, or not at all.
    let txn = |expected: &str, value: &str| {
        let txn = format!(
            "value(\"alpha\") = \"{expected}\"\nvalue(\"tango\") = \"{expected}\"\n\nput alpha {value}\nput tango {value}\n\nput night lost\n\n"
        );
        run_with_input(cluster.bed.etcdctl(&cluster.endpoint()).unwrap().arg("txn"), &txn).unwrap()
    };
    let answer = txn("hello", "goodbye");
    assert!(answer.contains("SUCCESS"), "{answer}");
    assert_eq!(KEYS.map(get), ["goodbye", "hello", "hello", "goodbye"]);
    let answer = txn("hello", "again");
    assert!(answer.contains("FAILURE"), "{answer}");
    assert_eq!(KEYS.map(get), ["goodbye", "hello", "lost", "goodbye"]);

    // All of it as it was, and then no more.
    let last = *revisions.last().expect("something was written");
    let then = format!("--rev={last}");
    let before = cluster.etcdctl(&["get", "", "--prefix", "--print-value-only", &then]);
    assert_eq!(before.split_whitespace().collect::<Vec<_>>(), ["hello"; 4]);
    let now = put("night", "hello");
    cluster.etcdctl(&["compact", &now.to_string()]);
    let mut old = cluster.bed.etcdctl(&cluster.endpoint()).unwrap();
    let refused = run(old.args(["get", "", "--prefix", &then])).unwrap_err().to_string();
    assert!(refused.contains("required revision has been compacted"), "{refused}");

    assert_eq!(cluster.etcdctl(&["put", "greeting", "hello"]).trim(), "OK");
    assert_eq!(cluster.etcdctl(&["del", "greeting"]).trim(), "1");
    assert_eq!(cluster.etcdctl(&["del", "a", "z"]).trim(), "3");
    assert_eq!(cluster.etcdctl(&everything).trim(), "");
}
