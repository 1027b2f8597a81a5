//! One real process: birth, durability, refusals.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use althing_admin::client::AdminError;
use althing_admin::{BootstrapRequest, ProblemReason, TransferLeaderRequest};
use std::process::Stdio;
use support::{CLUSTER, Node, cut};
use tonic::Code;

fn reason(error: &AdminError) -> ProblemReason {
    match error {
        AdminError::Refused { problem, .. } => problem.reason,
        AdminError::Transport { .. } => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_waits_and_serves_nothing_until_it_is_bootstrapped_once() {
    let node = Node::start("a-0");
    let status = node.status().await;
    assert!(
        !status.ready && status.not_ready_reason.contains("not in a cluster"),
        "{status:?}"
    );
    assert_eq!(status.cluster_id, None);
    assert_eq!(node.put("k", "v").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(node.get("k").await.unwrap_err().code(), Code::Unavailable);

    let nonsense = node
        .admin()
        .bootstrap(&BootstrapRequest {
            cluster_id: "xyz".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&nonsense), ProblemReason::Invalid);
    node.bootstrap().await;
    assert_eq!(node.put("k", "v").await.unwrap(), 2);
    node.bootstrap().await;
    assert_eq!(
        node.get("k").await.unwrap().as_deref(),
        Some("v"),
        "a repeated bootstrap changes nothing"
    );
    let other = node
        .admin()
        .bootstrap(&BootstrapRequest {
            cluster_id: "c2".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&other), ProblemReason::OtherCluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_kill_9_and_the_member_keeps_its_id() {
    let (last, next) = survive_kill_9(&[]).await;
    assert_eq!((last, next), (51, 52), "revisions go on without a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_four_shards_acknowledged_writes_survive_kill_9_and_the_member_keeps_its_id() {
    let (last, next) = survive_kill_9(&["k2", "k3", "k4"]).await;
    assert!(
        last < next,
        "revisions rise, whatever became of those that were not used: {last}, then {next}"
    );
}

/// The last revision before the kill, and the first one after it.
async fn survive_kill_9(split_keys: &[&str]) -> (i64, i64) {
    let mut node = Node::start("a-0");
    node.bootstrap().await;
    cut(&[&node], split_keys).await;
    let member = node.status().await.member_id;
    let mut last = 0;
    for number in 0..50 {
        let revision = node.put(&format!("k{number}"), "v").await.unwrap();
        assert!(revision > last, "{last}, then {revision}");
        last = revision;
    }
    node.kill();
    node.run();
    let status = node.ready().await;
    assert_eq!(
        (status.member_id, status.cluster_id.as_deref()),
        (member, Some(CLUSTER))
    );
    for number in 0..50 {
        assert_eq!(node.get(&format!("k{number}")).await.unwrap().as_deref(), Some("v"));
    }
    (last, node.put("k", "v").await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_volume_is_refused_and_the_first_goes_on() {
    let node = Node::start("a-0");
    node.bootstrap().await;
    let mut second = node.command();
    // Other ports, the same volume.
    for flag in ["--client-addr", "--peer-addr", "--admin-addr"] {
        let at = second.get_args().position(|arg| arg == flag).unwrap();
        let mut args: Vec<_> = second.get_args().map(ToOwned::to_owned).collect();
        args[at + 1] = "127.0.0.1:0".into();
        let program = second.get_program().to_owned();
        second = std::process::Command::new(program);
        second.env_clear().args(args);
    }
    let output = second.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("is in use by another process"),
        "{said}"
    );
    node.put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_all_told_at_once() {
    let node = Node::start("a-0");
    let mut command = node.command();
    let output = command
        .args(["--heartbeat-interval", "soon", "--otlp-endpoint", "nowhere"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        said.contains("heartbeat_interval \"soon\"") && said.contains("otlp_endpoint \"nowhere\""),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_short_of_space_takes_deletions_but_no_puts_and_says_so() {
    let mut node = Node::start("a-0");
    node.bootstrap().await;
    node.put("k", "v").await.unwrap();
    assert!(node.terminate().success());
    let mut node = node;
    node.require(&["--volume-reserve-bytes", "9000000000000000000"]);
    node.run();
    let status = node.ready().await;
    assert!(status.not_ready_reason.contains("volume is almost full"), "{status:?}");
    assert_eq!(node.put("k", "w").await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(node.delete("k").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_of_a_single_member_cannot_go_anywhere() {
    let node = Node::start("a-0");
    node.bootstrap().await;
    let error = node
        .admin()
        .transfer_leader(1, &TransferLeaderRequest { to: None })
        .await
        .unwrap_err();
    assert_eq!(reason(&error), ProblemReason::Invalid);
    let error = node
        .admin()
        .transfer_leader(7, &TransferLeaderRequest { to: None })
        .await
        .unwrap_err();
    assert_eq!(reason(&error), ProblemReason::NotFound);
}
