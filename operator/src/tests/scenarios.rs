//! What must come out, whatever the order of calls.

use serde_json::{Value, json};

use super::bed::Bed;
use crate::error::Cure;

fn spec(members: u32) -> Value {
    json!({"members": members, "version": "0.1.0", "storage": {"size": "1Gi"}})
}

fn scale(bed: &Bed, members: u32) {
    bed.edit("raftclusters", "orders", |raw| raw["spec"]["members"] = json!(members));
}

#[tokio::test]
async fn a_cluster_is_made_grows_and_shrinks_and_leaves_nothing_behind() {
    let mut bed = Bed::new(1, spec(3)).await;
    bed.settle().await;
    assert_eq!(bed.names("pods"), ["orders-0", "orders-1", "orders-2"]);
    assert_eq!(bed.names("services"), ["orders", "orders-peers"]);
    assert_eq!(bed.names("configmaps"), ["orders"]);
    assert_eq!(bed.names("serviceaccounts"), ["orders"]);
    assert_eq!(bed.object("poddisruptionbudgets", "orders")["spec"]["minAvailable"], 2);
    let status = bed.status();
    assert_eq!(
        (&status["readyMembers"], &status["bootstrapped"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(
        status["selector"]
            .as_str()
            .map(|text| text.contains("app.kubernetes.io/instance=orders")),
        Some(true)
    );

    scale(&bed, 5);
    bed.settle().await;
    assert_eq!((bed.voters(), bed.names("pods").len()), (5, 5));
    bed.turn(false).await.expect("a turn");
    assert_eq!(bed.object("poddisruptionbudgets", "orders")["spec"]["minAvailable"], 3);

    scale(&bed, 1);
    bed.settle().await;
    assert_eq!(bed.names("pods"), ["orders-0"]);
    assert_eq!(bed.names("persistentvolumeclaims"), ["data-orders-0"]);
    bed.turn(false).await.expect("a turn");
    assert_eq!(
        bed.names("poddisruptionbudgets"),
        Vec::<String>::new(),
        "a single member never blocks a drain"
    );
    assert_eq!(bed.members.0.lock().expect("not poisoned").bootstraps, 1);
}

#[tokio::test]
async fn a_settled_cluster_is_not_written_to() {
    let mut bed = Bed::new(2, spec(3)).await;
    bed.settle().await;
    bed.turn(false).await.expect("a turn");
    let writes = bed.server.0.lock().expect("not poisoned").writes;
    for _ in 0..3 {
        bed.turn(false).await.expect("a turn");
    }
    assert_eq!(bed.server.0.lock().expect("not poisoned").writes, writes);
}

#[tokio::test]
async fn the_operator_may_die_at_any_write_and_the_next_one_carries_on() {
    let mut bed = Bed::new(3, spec(1)).await;
    bed.settle().await;
    // Each scale dies at another write; a fresh operator, without any memory but the status, takes over each time.
    for (round, members) in [3, 1, 5, 3, 1, 5, 3, 1].into_iter().cycle().take(24).enumerate() {
        scale(&bed, members);
        {
            // At each of the first writes of a scale, once before it goes through and once after.
            let mut server = bed.server.0.lock().expect("not poisoned");
            let at = server.writes + 1 + u64::try_from(round % 8).expect("small");
            server.dies_at = Some((at, (round / 8) % 2 == 1));
        }
        for _ in 0..40 {
            if bed.turn(false).await.is_err() {
                bed.turn(true).await.ok();
            }
        }
        bed.settle().await;
        assert_eq!(bed.voters(), usize::try_from(members).expect("small"));
    }
    let deaths = bed.server.0.lock().expect("not poisoned").deaths;
    assert_eq!(
        deaths, 24,
        "every round has a death, or this test tests less than it says"
    );
    assert_eq!(bed.members.0.lock().expect("not poisoned").bootstraps, 1);
}

#[tokio::test]
async fn a_deleted_claim_is_replaced_by_a_new_member_and_a_deleted_pod_keeps_its_own() {
    let mut bed = Bed::new(4, spec(3)).await;
    bed.settle().await;
    let member = |bed: &Bed, at: usize| bed.status()["members"][at]["memberId"].clone();
    let (first, second) = (member(&bed, 0), member(&bed, 1));
    bed.delete("pods", "orders-0");
    bed.settle().await;
    assert_eq!(member(&bed, 0), first);
    bed.delete("persistentvolumeclaims", "data-orders-1");
    bed.settle().await;
    assert_ne!(member(&bed, 1), second);
    assert_eq!(bed.voters(), 3);
}

#[tokio::test]
async fn an_invalid_spec_is_told_and_touches_nothing() {
    let mut bed = Bed::new(5, spec(3)).await;
    bed.settle().await;
    let before = bed.status();
    scale(&bed, 4);
    let error = bed.turn(false).await.expect_err("an even number is refused");
    assert_eq!(error.cure(), Cure::Edit);
    assert_eq!(bed.condition("Ready"), ("False".into(), "Invalid".into()));
    assert_eq!(bed.names("pods").len(), 3);
    assert_eq!(bed.status()["clusterId"], before["clusterId"], "the memory is kept");
    scale(&bed, 3);
    bed.settle().await;
}

#[tokio::test]
async fn pods_that_no_node_takes_are_told_in_conditions_and_events() {
    let mut bed = Bed::new(6, spec(3)).await;
    bed.unschedulable = true;
    for _ in 0..4 {
        bed.turn(false).await.expect("a turn");
    }
    assert_eq!(bed.condition("Degraded"), ("True".into(), "MemberPending".into()));
    let message = bed.status()["activity"].to_string();
    assert!(
        message.contains("Unschedulable") && message.contains("0/3 nodes are available"),
        "{message}"
    );
    assert!(
        bed.server
            .0
            .lock()
            .expect("not poisoned")
            .events
            .contains(&"MemberPending".to_owned())
    );
    bed.unschedulable = false;
    bed.turn(false).await.ok();
    bed.settle().await;
}

#[tokio::test]
async fn a_cluster_that_is_declared_again_takes_its_retained_volumes_over() {
    let mut bed = Bed::new(7, spec(3)).await;
    bed.settle().await;
    let (id, members) = (bed.status()["clusterId"].clone(), bed.status()["members"].clone());
    // Deleted with its pods; the claims stay. The new declaration has another uid and no status.
    bed.edit("raftclusters", "orders", |raw| {
        raw["metadata"]["uid"] = json!("u-new");
        raw.as_object_mut().expect("an object").remove("status");
    });
    for pod in bed.names("pods") {
        bed.delete("pods", &pod);
    }
    bed.settle().await;
    assert_eq!(bed.status()["clusterId"], id);
    let ids = |members: &Value| {
        members
            .as_array()
            .expect("members")
            .iter()
            .map(|m| m["memberId"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&bed.status()["members"]), ids(&members));
    assert_eq!(bed.members.0.lock().expect("not poisoned").bootstraps, 1);
}

#[tokio::test]
async fn a_claim_grows_when_the_spec_does() {
    let mut bed = Bed::new(8, spec(1)).await;
    bed.settle().await;
    bed.edit("raftclusters", "orders", |raw| {
        raw["spec"]["storage"]["size"] = json!("2Gi")
    });
    bed.settle().await;
    assert_eq!(
        bed.object("persistentvolumeclaims", "data-orders-0")["spec"]["resources"]["requests"]["storage"],
        "2Gi"
    );
}

#[tokio::test]
async fn a_paused_cluster_is_left_alone_and_its_status_is_kept() {
    let mut bed = Bed::new(9, spec(3)).await;
    bed.settle().await;
    bed.edit("raftclusters", "orders", |raw| raw["spec"]["paused"] = json!(true));
    bed.delete("pods", "orders-2");
    for _ in 0..3 {
        bed.turn(false).await.expect("a turn");
    }
    assert_eq!(bed.names("pods"), ["orders-0", "orders-1"]);
    assert_eq!(
        (&bed.status()["readyMembers"], bed.condition("Progressing").1.as_str()),
        (&json!(2), "Paused")
    );
}
