//! Layouts against members in memory: what is asked of the meta group, what is told, and how members leave.

use serde_json::{Value, json};

use super::bed::Bed;

fn spec(members: u32) -> Value {
    json!({"members": members, "version": "0.1.0", "storage": {"size": "1Gi"}})
}

fn shards(bed: &Bed, layout: &str) -> usize {
    bed.object("shardlayouts", layout)["status"]["shards"]
        .as_array()
        .map_or(0, Vec::len)
}

fn events(bed: &Bed, reason: &str) -> usize {
    let server = bed.server.0.lock().expect("not poisoned");
    server.events.iter().filter(|event| *event == reason).count()
}

fn puts(bed: &Bed) -> u32 {
    bed.members.0.lock().expect("not poisoned").layout.puts
}

#[tokio::test]
async fn a_layout_is_scaled_up_and_down_and_tells_of_every_split_and_merge() {
    let mut bed = Bed::new(20, spec(3)).await;
    bed.settle().await;
    bed.declare("orders", 0, json!({"shards": 1}));
    bed.settle_layout("orders").await;
    assert_eq!(
        puts(&bed),
        0,
        "one shard on every member is what a cluster is born with"
    );
    assert_eq!(shards(&bed, "orders"), 1);

    bed.edit("shardlayouts", "orders", |raw| raw["spec"]["shards"] = json!(4));
    bed.layout_turn("orders").await.expect("a turn");
    assert_eq!(
        bed.layout_condition("orders", "Progressing"),
        ("True".into(), "Splitting".into())
    );
    bed.settle_layout("orders").await;
    let status = bed.object("shardlayouts", "orders")["status"].clone();
    assert_eq!(
        (&status["currentShards"], &status["revisions"]),
        (&json!(4), &json!("Sequenced"))
    );
    assert_eq!(status["endpoint"], "orders.shop.svc:2379");
    assert_eq!(status["shards"][1]["range"], "[/001, /002)");
    assert_eq!(
        status["shards"][0]["voters"],
        json!(["orders-0", "orders-1", "orders-2"])
    );
    assert_eq!((puts(&bed), events(&bed, "ShardSplit")), (1, 3));

    bed.edit("shardlayouts", "orders", |raw| raw["spec"]["shards"] = json!(2));
    bed.settle_layout("orders").await;
    assert_eq!((shards(&bed, "orders"), events(&bed, "ShardMerged")), (2, 2));
}

#[tokio::test]
async fn a_settled_layout_is_neither_asked_for_nor_written_again() {
    let mut bed = Bed::new(21, spec(3)).await;
    bed.settle().await;
    bed.declare(
        "orders",
        0,
        json!({"shards": 2, "replicas": 3, "quota": "1Gi", "reads": {"mode": "RosterLease"}}),
    );
    bed.settle_layout("orders").await;
    bed.layout_turn("orders").await.expect("a turn");
    let (writes, asked) = (bed.server.0.lock().expect("not poisoned").writes, puts(&bed));
    for _ in 0..3 {
        bed.layout_turn("orders").await.expect("a turn");
    }
    assert_eq!(
        (bed.server.0.lock().expect("not poisoned").writes, puts(&bed)),
        (writes, asked)
    );
}

#[tokio::test]
async fn a_keyspace_with_a_port_is_on_the_service_and_restarts_nothing() {
    let mut bed = Bed::new(22, spec(3)).await;
    bed.settle().await;
    let pods: Vec<Value> = bed
        .names("pods")
        .iter()
        .map(|pod| bed.object("pods", pod)["metadata"]["uid"].clone())
        .collect();
    bed.declare("audit", 0, json!({"keyspace": "audit", "port": 2479}));
    bed.settle_layout("audit").await;
    bed.settle().await;
    bed.turn(false).await.expect("a turn");
    let ports = |bed: &Bed| {
        let service = bed.object("services", "orders");
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().map(|port| port["port"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ports(&bed), [2379, 2381, 2479]);
    assert_eq!(
        bed.object("shardlayouts", "audit")["status"]["endpoint"],
        "orders.shop.svc:2479"
    );
    bed.edit("shardlayouts", "audit", |raw| raw["spec"]["port"] = json!(2579));
    bed.settle_layout("audit").await;
    bed.turn(false).await.expect("a turn");
    assert_eq!(ports(&bed), [2379, 2381, 2579]);
    let after: Vec<Value> = bed
        .names("pods")
        .iter()
        .map(|pod| bed.object("pods", pod)["metadata"]["uid"].clone())
        .collect();
    assert_eq!(pods, after);
}

#[tokio::test]
async fn of_two_layouts_of_one_keyspace_the_older_has_it() {
    let mut bed = Bed::new(23, spec(1)).await;
    bed.settle().await;
    bed.declare("first", 1, json!({"keyspace": "audit"}));
    bed.declare("second", 2, json!({"keyspace": "audit", "shards": 8}));
    bed.settle_layout("first").await;
    bed.layout_turn("second").await.expect("a turn");
    assert_eq!(
        (
            bed.layout_condition("second", "Ready"),
            bed.layout_condition("second", "Degraded")
        ),
        (
            ("False".into(), "KeyspaceTaken".into()),
            ("True".into(), "KeyspaceTaken".into())
        )
    );
    assert_eq!(puts(&bed), 1, "nothing is asked for on behalf of the younger");
    bed.delete("shardlayouts", "first");
    bed.layout_turn("first").await.expect("a turn");
    assert_eq!(
        bed.names("shardlayouts"),
        ["second"],
        "without a finalizer it is gone at once"
    );
    bed.settle_layout("second").await;
    assert_eq!(shards(&bed, "second"), 8);
}

#[tokio::test]
async fn a_deleted_layout_drops_its_keyspace_only_if_it_says_so() {
    let mut bed = Bed::new(24, spec(1)).await;
    bed.settle().await;
    bed.declare("kept", 0, json!({"keyspace": "kept"}));
    bed.declare("dropped", 0, json!({"keyspace": "dropped", "deletionPolicy": "Delete"}));
    for name in ["kept", "dropped"] {
        bed.settle_layout(name).await;
    }
    let finalizers = |bed: &Bed, name: &str| bed.object("shardlayouts", name)["metadata"]["finalizers"].clone();
    assert_eq!(finalizers(&bed, "kept"), Value::Null);
    assert_eq!(finalizers(&bed, "dropped"), json!(["althing.dev/keyspace"]));
    for name in ["kept", "dropped"] {
        bed.delete("shardlayouts", name);
    }
    for _ in 0..4 {
        if bed.names("shardlayouts").contains(&"dropped".to_owned()) {
            bed.layout_turn("dropped").await.expect("a turn");
        }
    }
    bed.turn(false).await.expect("a turn");
    assert_eq!(bed.names("shardlayouts"), Vec::<String>::new());
    let group = bed.members.0.lock().expect("not poisoned");
    let keyspaces: Vec<&String> = group.layout.keyspaces.keys().collect();
    assert_eq!(keyspaces, ["default", "kept"]);
}

#[tokio::test]
async fn a_request_that_the_members_refuse_is_told_in_their_words() {
    let mut bed = Bed::new(25, spec(1)).await;
    bed.settle().await;
    // The members in memory refuse a quota of thirteen bytes.
    bed.declare("orders", 0, json!({"quota": "13"}));
    bed.layout_turn("orders")
        .await
        .expect("it is told, and no failure of the operator");
    assert_eq!(
        bed.layout_condition("orders", "Degraded"),
        ("True".into(), "Refused".into())
    );
    bed.edit("shardlayouts", "orders", |raw| raw["spec"]["quota"] = json!("13k"));
    bed.settle_layout("orders").await;
}

#[tokio::test]
async fn members_hand_their_replicas_over_before_they_leave() {
    let mut bed = Bed::new(26, spec(5)).await;
    bed.settle().await;
    bed.declare("orders", 0, json!({"shards": 4, "replicas": 3}));
    bed.settle_layout("orders").await;
    bed.edit("raftclusters", "orders", |raw| raw["spec"]["members"] = json!(3));
    bed.settle().await;
    assert_eq!(bed.names("pods"), ["orders-0", "orders-1", "orders-2"]);
    assert_eq!((events(&bed, "Drain"), events(&bed, "RemoveMember")), (2, 2));
    bed.settle_layout("orders").await;
    let status = bed.object("shardlayouts", "orders")["status"].clone();
    for shard in status["shards"].as_array().expect("shards") {
        assert_eq!(shard["voters"], json!(["orders-0", "orders-1", "orders-2"]));
    }
    let held: Vec<Value> = bed.status()["members"]
        .as_array()
        .expect("members")
        .iter()
        .map(|member| member["replicas"].clone())
        .collect();
    assert_eq!(held, [4, 4, 4]);
}

#[tokio::test]
async fn the_budget_of_disruptions_follows_the_smallest_shard() {
    let mut bed = Bed::new(27, spec(5)).await;
    bed.settle().await;
    bed.turn(false).await.expect("a turn");
    assert_eq!(bed.object("poddisruptionbudgets", "orders")["spec"]["minAvailable"], 3);
    bed.declare("orders", 0, json!({"shards": 4, "replicas": 3}));
    bed.settle_layout("orders").await;
    for _ in 0..12 {
        bed.turn(false).await.expect("a turn");
    }
    assert_eq!(bed.object("poddisruptionbudgets", "orders")["spec"]["minAvailable"], 4);
}

#[tokio::test]
async fn a_layout_without_cluster_or_leader_says_so() {
    let mut bed = Bed::new(28, spec(1)).await;
    bed.declare("orders", 0, json!({}));
    bed.layout_turn("orders").await.expect("a turn");
    assert_eq!(
        bed.layout_condition("orders", "Ready"),
        ("False".into(), "NotBootstrapped".into())
    );
    bed.settle().await;
    bed.settle_layout("orders").await;
    bed.edit("shardlayouts", "orders", |raw| {
        raw["spec"]["clusterRef"]["name"] = json!("nobody")
    });
    bed.layout_turn("orders").await.expect("a turn");
    assert_eq!(
        bed.layout_condition("orders", "Degraded"),
        ("True".into(), "ClusterNotFound".into())
    );
}
