//! What a layout asks for, and what is told of it.

use althing_admin::{
    KeyspaceState, KeyspaceStatus, LayoutMember, LayoutStatus, MemberState, OperationKind, OperationStatus,
    Partitioning, ReadMode, ReadsRequest, RevisionSource, Revisions, ShardInfo,
};
use althing_crds::{ShardLayout, ShardLayoutStatus, ValidatedLayout};
use althing_plan::layout::claims::Claim;
use althing_plan::layout::{
    ClusterSeen, LayoutObserved, LayoutPlan, LayoutStep, Obstacle, Seen, assess, plan, request,
};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

fn layout(spec: Value) -> ValidatedLayout {
    let mut raw = json!({
        "apiVersion": "althing.dev/v1alpha1", "kind": "ShardLayout", "metadata": {"name": "audit", "namespace": "shop"},
        "spec": {"clusterRef": {"name": "orders"}, "keyspace": "audit"}
    });
    for (name, value) in spec.as_object().expect("fields") {
        raw["spec"][name] = value.clone();
    }
    let raw: ShardLayout = serde_json::from_value(raw).expect("a layout");
    ValidatedLayout::try_from(&raw).expect("valid")
}

fn id(member: u32) -> String {
    format!("{member:016x}")
}

fn shard(number: u64, start: &str, end: &str) -> ShardInfo {
    ShardInfo {
        id: number,
        start: start.into(),
        end: end.into(),
        epoch: 1,
        leader: Some(id(0)),
        replicas: vec![id(0), id(1), id(2)],
        voters: vec![id(2), id(0), id(1)],
        learners: vec![],
        keys: 10,
        bytes: 1_000_000,
        revision: 7,
        lag: Some(3),
        hibernating: false,
        operation: None,
    }
}

fn keyspace(desired: u32, shards: Vec<ShardInfo>) -> KeyspaceStatus {
    KeyspaceStatus {
        id: 2,
        name: "audit".into(),
        state: KeyspaceState::Active,
        source: RevisionSource::Sequenced,
        desired_shards: desired,
        current_shards: u32::try_from(shards.len()).expect("few"),
        replicas: None,
        port: None,
        partitioning: Partitioning::Range { split_keys: vec![] },
        quota_bytes: None,
        reads: None,
        shards,
        message: String::new(),
    }
}

fn seen(keyspaces: Vec<KeyspaceStatus>, operations: Vec<OperationStatus>) -> LayoutObserved {
    let member = |number: u32| LayoutMember {
        id: id(number),
        name: format!("orders-{number}"),
        labels: [].into(),
        state: MemberState::Active,
        replicas: 1,
        leaders: 0,
        bytes: 0,
    };
    LayoutObserved {
        cluster: Some(ClusterSeen {
            bootstrapped: true,
            paused: false,
            deleting: false,
        }),
        claims: vec![Claim {
            layout: "audit".into(),
            born: 1,
            keyspace: "audit".into(),
            port: None,
        }],
        finalizer: false,
        layout: Seen::Layout(LayoutStatus {
            version: 9,
            members: (0..3).map(member).collect(),
            keyspaces,
            operations,
        }),
    }
}

fn split() -> OperationStatus {
    OperationStatus {
        id: 5,
        kind: OperationKind::Split,
        keyspace: "audit".into(),
        shards: vec![4, 6],
        phase: "Cut".into(),
        reason: "3 shards are desired".into(),
        since_seconds: 1,
    }
}

fn step(plan: &LayoutPlan) -> String {
    match (plan.steps.as_slice(), &plan.obstacle) {
        ([], None) => "nothing".to_owned(),
        ([], Some(obstacle)) => format!(
            "{} ({})",
            obstacle.reason,
            if obstacle.stuck { "stuck" } else { "waits" }
        ),
        ([(step, reason)], None) => format!("{}: {reason}", step.word()),
        other => panic!("one step or one obstacle: {other:?}"),
    }
}

fn told(desired: &ValidatedLayout, observed: &LayoutObserved, refused: Option<&Obstacle>, expected: &Expect) {
    let planned = plan(desired, observed);
    let lines: Vec<String> = assess(desired, observed, &planned, refused)
        .conditions
        .into_iter()
        .map(|one| {
            format!(
                "{} {} {}: {}\n",
                one.kind.word(),
                one.status.word(),
                one.reason,
                one.message
            )
        })
        .collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn the_request_is_the_spec_in_the_contracts_words() {
    let asked = request(&layout(json!({
        "shards": 4, "replicas": 3, "port": 2479, "quota": "1Gi",
        "partitioning": {"hash": {"slots": 1024, "prefixSegments": 2}},
        "reads": {"mode": "RosterLease", "responders": "All", "revisions": "OfKeys", "leaseMillis": 500}
    })));
    assert_eq!((asked.shards, asked.replicas, asked.port), (4, Some(3), Some(2479)));
    assert_eq!(asked.quota_bytes, Some(1 << 30));
    assert_eq!(
        asked.partitioning,
        Some(Partitioning::Hash {
            slots: 1024,
            prefix_segments: Some(2)
        })
    );
    assert_eq!(
        asked.reads,
        Some(ReadsRequest {
            mode: ReadMode::RosterLease,
            ranges: None,
            revisions: Some(Revisions::OfKeys),
            lease_millis: Some(500)
        })
    );
    assert_eq!(
        request(&layout(json!({}))).reads,
        None,
        "reads that nobody speaks of are left alone"
    );
}

#[test]
fn only_what_differs_is_asked_for_and_the_reason_says_what() {
    let settled = |change: &dyn Fn(&mut KeyspaceStatus)| {
        let mut present = keyspace(2, vec![shard(4, "", "/m"), shard(5, "/m", "")]);
        change(&mut present);
        seen(vec![present], vec![])
    };
    let as_it_is = settled(&|_| {});
    let two = || layout(json!({"shards": 2}));
    assert_eq!(step(&plan(&two(), &as_it_is)), "nothing");
    assert_eq!(
        step(&plan(&two(), &seen(vec![], vec![]))),
        "PutKeyspace: there is no keyspace audit yet"
    );
    assert_eq!(
        step(&plan(
            &layout(json!({"shards": 8, "replicas": 3, "port": 2479})),
            &as_it_is
        )),
        "PutKeyspace: spec.shards is 8, not 2, spec.replicas is 3, not every member, spec.port has changed"
    );
    let lease = layout(json!({"shards": 2, "reads": {"mode": "RosterLease"}}));
    assert_eq!(step(&plan(&lease, &as_it_is)), "PutKeyspace: spec.reads has changed");
    let filled_in = settled(&|present| {
        present.reads = Some(ReadsRequest {
            mode: ReadMode::RosterLease,
            ranges: None,
            revisions: Some(Revisions::Current),
            lease_millis: Some(1000),
        });
    });
    assert_eq!(
        step(&plan(&lease, &filled_in)),
        "nothing",
        "what was left out is filled in"
    );
    let limited = settled(&|present| present.quota_bytes = Some(1 << 30));
    assert_eq!(step(&plan(&two(), &limited)), "PutKeyspace: spec.quota has changed");
}

#[test]
fn what_hinders_is_told_before_anything_is_asked() {
    let desired = layout(json!({}));
    let present = || seen(vec![keyspace(1, vec![shard(4, "", "")])], vec![]);
    let with = |change: &dyn Fn(&mut LayoutObserved)| {
        let mut observed = present();
        change(&mut observed);
        step(&plan(&desired, &observed))
    };
    assert_eq!(with(&|_| {}), "nothing");
    assert_eq!(with(&|observed| observed.cluster = None), "ClusterNotFound (stuck)");
    assert_eq!(with(&|observed| observed.layout = Seen::NoLeader), "NoLeader (waits)");
    assert_eq!(
        with(&|observed| observed.layout = Seen::NotServed),
        "NotSupported (stuck)"
    );
    assert_eq!(
        with(&|observed| {
            observed.layout = Seen::NoLeader;
            observed.cluster = observed.cluster.map(|cluster| ClusterSeen {
                bootstrapped: false,
                ..cluster
            });
        }),
        "NotBootstrapped (waits)"
    );
    assert_eq!(
        with(
            &|observed| observed.cluster = observed.cluster.map(|cluster| ClusterSeen {
                paused: true,
                ..cluster
            })
        ),
        "Paused (waits)"
    );
    let elder = Claim {
        layout: "elder".into(),
        born: 0,
        keyspace: "audit".into(),
        port: None,
    };
    assert_eq!(
        with(&|observed| observed.claims.push(elder.clone())),
        "KeyspaceTaken (stuck)"
    );
    let hash = layout(json!({"partitioning": {"hash": {"slots": 16}}}));
    let differs = plan(&hash, &present());
    assert_eq!(step(&differs), "PartitioningDiffers (stuck)");
    let message = differs.obstacle.expect("an obstacle").message;
    assert!(
        message.contains("keyspace audit is partitioned by range, and spec.partitioning asks for one by a hash of whole keys into 16 slots"),
        "{message}"
    );
}

#[test]
fn a_layout_that_is_deleted_takes_its_keyspace_with_it_only_if_it_shall() {
    let ending = |policy: &str| {
        let mut layout = layout(json!({"deletionPolicy": policy}));
        layout.deleting = true;
        layout
    };
    let with = |finalizer: bool, keyspaces: Vec<KeyspaceStatus>| LayoutObserved {
        finalizer,
        ..seen(keyspaces, vec![])
    };
    let there = || vec![keyspace(1, vec![shard(4, "", "")])];
    let dropping = || {
        vec![KeyspaceStatus {
            state: KeyspaceState::Dropping,
            ..keyspace(1, vec![])
        }]
    };
    let said = |policy: &str, observed: &LayoutObserved| step(&plan(&ending(policy), observed));
    assert_eq!(said("Retain", &with(false, there())), "nothing");
    assert_eq!(
        said("Retain", &with(true, there())),
        "RemoveFinalizer: the keyspace stays"
    );
    assert_eq!(
        said("Delete", &with(true, there())),
        "DropKeyspace: the layout is being deleted and spec.deletionPolicy is Delete"
    );
    assert_eq!(said("Delete", &with(true, dropping())), "Dropping (waits)");
    assert_eq!(
        said("Delete", &with(true, vec![])),
        "RemoveFinalizer: the keyspace is gone"
    );
    let mut gone = with(true, there());
    gone.cluster = None;
    assert_eq!(
        said("Delete", &gone),
        "RemoveFinalizer: the cluster is gone, and the keyspace with it"
    );
    let mut younger = with(true, there());
    younger.claims.push(Claim {
        layout: "elder".into(),
        born: 0,
        keyspace: "audit".into(),
        port: None,
    });
    assert_eq!(
        said("Delete", &younger),
        "RemoveFinalizer: the keyspace is another layout's"
    );
    let mut silent = with(true, there());
    silent.layout = Seen::NoLeader;
    assert_eq!(said("Delete", &silent), "NoLeader (waits)");

    // Before that: the finalizer is there exactly while the policy wants it.
    let policy = |policy: &str| layout(json!({"deletionPolicy": policy}));
    assert!(step(&plan(&policy("Delete"), &with(false, there()))).starts_with("AddFinalizer"));
    assert_eq!(step(&plan(&policy("Delete"), &with(true, there()))), "nothing");
    assert!(step(&plan(&policy("Retain"), &with(true, there()))).starts_with("RemoveFinalizer"));
    assert!(matches!(
        plan(&policy("Delete"), &with(true, vec![])).steps.as_slice(),
        [(LayoutStep::Put(_), _)]
    ));
}

#[test]
fn conditions_tell_how_far_it_is() {
    let three = layout(json!({"shards": 3}));
    let two = || vec![shard(4, "", "/m"), shard(5, "/m", "")];
    told(
        &three,
        &seen(vec![keyspace(3, two())], vec![split()]),
        None,
        &expect![[r#"
            Ready False Splitting: 2 of 3 shards; Split of shard 4 (Cut): 3 shards are desired
            Progressing True Splitting: Split of shard 4 (Cut): 3 shards are desired
            Degraded False NoDamage: every shard that was heard of has a leader
        "#]],
    );
    told(
        &three,
        &seen(vec![keyspace(3, two())], vec![]),
        None,
        &expect![[r#"
        Ready False Resharding: 2 of 3 shards
        Progressing True Resharding: 2 of 3 shards
        Degraded False NoDamage: every shard that was heard of has a leader
    "#]],
    );
    let full = || vec![shard(4, "", "/g"), shard(6, "/g", "/m"), shard(5, "/m", "")];
    told(
        &three,
        &seen(vec![keyspace(3, full())], vec![]),
        None,
        &expect![[r#"
            Ready True AsDeclared: keyspace audit serves from 3 shards
            Progressing False AsDeclared: nothing is left to do
            Degraded False NoDamage: every shard that was heard of has a leader
        "#]],
    );
    let moving = OperationStatus {
        kind: OperationKind::Move,
        phase: "CatchUp".into(),
        reason: "orders-4 is being emptied".into(),
        ..split()
    };
    told(
        &three,
        &seen(vec![keyspace(3, full())], vec![moving]),
        None,
        &expect![[r#"
            Ready True AsDeclared: keyspace audit serves from 3 shards
            Progressing True Moving: Move of shard 4 (CatchUp): orders-4 is being emptied
            Degraded False NoDamage: every shard that was heard of has a leader
        "#]],
    );
    let mut headless = full();
    headless[1].leader = None;
    told(
        &three,
        &seen(vec![keyspace(3, headless)], vec![]),
        None,
        &expect![[r#"
            Ready False NoLeader: shard 6 [/g, /m) has no leader
            Progressing True NoLeader: shard 6 [/g, /m) has no leader
            Degraded True NoLeader: shard 6 [/g, /m) has no leader
        "#]],
    );
    let refused = Obstacle {
        reason: "Refused",
        message: "shards must be at most 2".into(),
        stuck: true,
    };
    told(
        &three,
        &seen(vec![keyspace(2, two())], vec![]),
        Some(&refused),
        &expect![[r#"
            Ready False Refused: shards must be at most 2
            Progressing False Refused: shards must be at most 2
            Degraded True Refused: shards must be at most 2
        "#]],
    );
}

#[test]
fn the_table_has_a_row_for_each_shard_with_names() {
    let three = layout(json!({"shards": 3}));
    let mut shards = vec![shard(4, "", "/m"), shard(5, "/m", "")];
    shards[0].operation = Some(5);
    shards[1].lag = Some(100_000);
    let observed = seen(vec![keyspace(3, shards)], vec![split()]);
    let table = assess(&three, &observed, &plan(&three, &observed), None)
        .table
        .expect("a table");
    let rows: Vec<String> = table
        .shards
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {} {} {:?} {:?}\n",
                row.id,
                row.range,
                row.state,
                row.leader.as_deref().unwrap_or("-"),
                row.voters.join(","),
                row.bytes,
                row.lag
            )
        })
        .collect();
    expect![[r#"
        4 [.., /m) Splitting orders-0 orders-0,orders-1,orders-2 Some(917504) Some(0)
        5 [/m, ..) Behind orders-0 orders-0,orders-1,orders-2 Some(917504) Some(98304)
    "#]]
    .assert_eq(&rows.concat());
    assert_eq!(
        (table.current_shards, table.revisions, table.not_listed),
        (2, Some("Sequenced"), 0)
    );
    assert_eq!(table.operations[0].shards, [4, 6]);
}

#[test]
fn of_a_thousand_shards_those_that_need_attention_are_listed() {
    let many = layout(json!({"shards": 1000}));
    let mut shards: Vec<ShardInfo> = (0..1000).map(|number| shard(number + 10, "a", "b")).collect();
    for lost in [500, 900] {
        shards[lost].leader = None;
    }
    let observed = seen(vec![keyspace(1000, shards)], vec![]);
    let table = assess(&many, &observed, &plan(&many, &observed), None)
        .table
        .expect("a table");
    assert_eq!(table.shards.len(), ShardLayoutStatus::MAX_SHARDS);
    assert_eq!(table.not_listed, 872);
    let ids: Vec<i64> = table.shards.iter().map(|row| row.id).collect();
    assert!(ids.contains(&510) && ids.contains(&910) && ids.is_sorted(), "{ids:?}");
}

#[test]
fn a_layout_without_the_keyspace_shows_nothing_of_it() {
    let desired = layout(json!({}));
    let mut observed = seen(vec![keyspace(1, vec![shard(4, "", "")])], vec![]);
    observed.claims.push(Claim {
        layout: "elder".into(),
        born: 0,
        keyspace: "audit".into(),
        port: None,
    });
    let table = assess(&desired, &observed, &plan(&desired, &observed), None).table;
    assert_eq!(table.map(|table| table.shards.len()), Some(0));
    observed.layout = Seen::NoLeader;
    observed.claims.truncate(1);
    let unseen = assess(&desired, &observed, &plan(&desired, &observed), None);
    assert_eq!(unseen.table, None, "what was known stays");
}
