//! From nothing to a working cluster, with the stock tools.

use std::time::Instant;

use althing_e2e::command::run_with_input;

use crate::kit::{Cluster, READY_LIMIT, bed, install_operator};

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
    };
    cluster.wait_ready(3, READY_LIMIT);
    println!(
        "quickstart: Ready {:.1} s after kubectl apply",
        begun.elapsed().as_secs_f64()
    );

    assert_eq!(cluster.etcdctl(&["put", "greeting", "hello"]).trim(), "OK");
    assert_eq!(cluster.etcdctl(&["get", "greeting"]).trim(), "greeting\nhello");
    let txn = "value(\"greeting\") = \"hello\"\n\nput greeting goodbye\n\nput greeting lost\n\n";
    let answer = run_with_input(bed.etcdctl(&cluster.endpoint()).unwrap().arg("txn"), txn).unwrap();
    assert!(answer.contains("SUCCESS"), "{answer}");
    assert_eq!(
        cluster.etcdctl(&["get", "greeting", "--print-value-only"]).trim(),
        "goodbye"
    );
    assert_eq!(cluster.etcdctl(&["del", "greeting"]).trim(), "1");
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
    cluster.kubectl(&["delete", "shardlayout,raftcluster", "orders", "--wait=false"]);
}
