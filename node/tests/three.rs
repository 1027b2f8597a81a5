//! Three real processes: growth by learner and promotion, failures, hand-over, removal.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use althing_admin::client::AdminError;
use althing_admin::{ConfigGuard, ProblemReason, TransferLeaderRequest};
use support::{cut, eventually, leader, leader_of, shard, three};

#[tokio::test(flavor = "multi_thread")]
async fn three_members_serve_everywhere_and_lose_nothing_when_the_leader_is_killed() {
    serve_everywhere_without_a_leader(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_four_shards_three_members_serve_everywhere_and_lose_nothing_when_the_leader_is_killed() {
    serve_everywhere_without_a_leader(&["k1", "k2", "l"]).await;
}

async fn serve_everywhere_without_a_leader(split_keys: &[&str]) {
    let mut nodes = three().await;
    cut(&nodes.iter().collect::<Vec<_>>(), split_keys).await;
    for (number, node) in nodes.iter().enumerate() {
        node.put(&format!("k{number}"), "v").await.unwrap();
        for reader in &nodes {
            assert_eq!(
                reader.get(&format!("k{number}")).await.unwrap().as_deref(),
                Some("v"),
                "{} reads its peer's write",
                reader.name
            );
        }
    }

    let all: Vec<_> = nodes.iter().collect();
    let killed = leader(&all).await.name.clone();
    let at = nodes.iter().position(|node| node.name == killed).unwrap();
    nodes[at].kill();
    let rest: Vec<_> = nodes.iter().filter(|node| node.name != killed).collect();
    let new = leader(&rest).await;
    new.put("after", "v").await.unwrap();
    for node in &rest {
        for key in ["k0", "k1", "k2", "after"] {
            assert_eq!(node.get(key).await.unwrap().as_deref(), Some("v"), "{key}");
        }
    }

    nodes[at].run();
    nodes[at].ready().await;
    assert_eq!(
        nodes[at].get("after").await.unwrap().as_deref(),
        Some("v"),
        "it catches up before it serves"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_leader_hands_over_first_and_the_cluster_goes_on_at_once() {
    let mut nodes = three().await;
    let all: Vec<_> = nodes.iter().collect();
    let name = leader(&all).await.name.clone();
    let at = nodes.iter().position(|node| node.name == name).unwrap();
    let term = shard(&nodes[at].status().await, 1).term;
    assert!(nodes[at].terminate().success());
    let log = std::fs::read_to_string(nodes[at].log_path()).unwrap();
    assert!(log.contains("handed leadership over"), "{log}");
    let rest: Vec<_> = nodes.iter().filter(|node| node.name != name).collect();
    let new = leader(&rest).await;
    assert_eq!(
        shard(&new.status().await, 1).term,
        term + 1,
        "one election, started by the hand-over"
    );
    new.put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_go_to_the_leader_with_the_right_guard_and_a_removed_member_says_so() {
    let nodes = three().await;
    let all: Vec<_> = nodes.iter().collect();
    let first = leader_of(&all, 0).await;
    let follower = *all.iter().find(|node| node.name != first.name).unwrap();
    let leader_id = first.status().await.member_id;
    let victim_id = follower.status().await.member_id;

    let guard = ConfigGuard {
        expected_config_index: None,
    };
    let refused = |error: AdminError| match error {
        AdminError::Refused { problem, .. } => problem,
        AdminError::Transport { .. } => panic!("{error}"),
    };
    let problem = refused(follower.admin().remove(&leader_id, &guard).await.unwrap_err());
    assert_eq!(
        (problem.reason, problem.leader.as_deref()),
        (ProblemReason::NotLeader, Some(leader_id.as_str()))
    );
    let stale = ConfigGuard {
        expected_config_index: Some(1),
    };
    assert_eq!(
        refused(first.admin().remove(&victim_id, &stale).await.unwrap_err()).reason,
        ProblemReason::Conflict
    );
    let problem = refused(first.admin().remove(&leader_id, &guard).await.unwrap_err());
    assert_eq!(
        problem.reason,
        ProblemReason::Invalid,
        "a leader hands over before it goes"
    );

    // Leadership moves where it is asked to.
    first
        .admin()
        .transfer_leader(
            0,
            &TransferLeaderRequest {
                to: Some(victim_id.clone()),
            },
        )
        .await
        .unwrap();
    let second = leader_of(&all, 0).await;
    assert_eq!(second.name, follower.name);
    second
        .admin()
        .transfer_leader(0, &TransferLeaderRequest { to: Some(leader_id) })
        .await
        .unwrap();
    let first = leader_of(&all, 0).await;

    let left = first.remove(&victim_id).await;
    assert_eq!(left.members.len(), 2);
    eventually("the removed member knows", || async {
        let status = follower.status().await;
        let knows = !status.ready && status.not_ready_reason.contains("was removed from its cluster");
        if knows { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    first.put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p30_a_wiped_volume_comes_back_as_another_member_and_is_not_mistaken_for_the_old_one() {
    let mut nodes = three().await;
    let all: Vec<_> = nodes.iter().collect();
    let name = leader_of(&all, 0).await.name.clone();
    let at = nodes.iter().position(|node| node.name != name).unwrap();
    let old = nodes[at].status().await.member_id;
    nodes[at].kill();
    nodes[at].wipe();
    nodes[at].run();
    let status = nodes[at].status().await;
    assert_ne!(status.member_id, old);
    assert_eq!(
        status.cluster_id, None,
        "the old member's peers do not adopt the new one"
    );
    let first = nodes.iter().find(|node| node.name == name).unwrap();
    first.remove(&old).await;
    first.add(&nodes[at]).await;
    nodes[at].put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_promised_and_the_member_says_why() {
    let mut nodes = three().await;
    let survivor = nodes.pop().unwrap();
    drop(nodes);
    let status = eventually("it notices", || async {
        let status = survivor.status().await;
        if status.ready {
            Err("still ready".to_owned())
        } else {
            Ok(status)
        }
    })
    .await;
    assert!(
        status.not_ready_reason.contains("linearizable read is not answered"),
        "{status:?}"
    );
    let error = survivor.put("k", "v").await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
}
