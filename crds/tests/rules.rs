//! Every rule of both kinds, as the API server would run it: what passes, and what a person reads when it does not.

use althing_crds::{DeletionPolicy, Partitioned, RaftCluster, ShardLayout, ValidatedCluster, ValidatedLayout};
use serde_json::{Value, json};

fn cluster(change: impl FnOnce(&mut Value)) -> RaftCluster {
    let mut raw = json!({
        "apiVersion": "althing.dev/v1alpha1",
        "kind": "RaftCluster",
        "metadata": {"name": "orders", "namespace": "default"},
        "spec": {"members": 3, "version": "0.1.0", "storage": {"size": "10Gi", "storageClassName": "fast"}}
    });
    change(&mut raw);
    serde_json::from_value(raw).expect("the test's cluster has the shape of a RaftCluster")
}

fn layout(change: impl FnOnce(&mut Value)) -> ShardLayout {
    let mut raw = json!({
        "apiVersion": "althing.dev/v1alpha1",
        "kind": "ShardLayout",
        "metadata": {"name": "orders", "namespace": "default"},
        "spec": {"clusterRef": {"name": "orders"}}
    });
    change(&mut raw);
    serde_json::from_value(raw).expect("the test's layout has the shape of a ShardLayout")
}

fn set(path: &'static str, value: Value) -> impl FnOnce(&mut Value) {
    move |raw| {
        let (parent, field) = path.rsplit_once('/').expect("a path has a parent");
        let mut at = raw;
        for segment in parent.split('/').filter(|segment| !segment.is_empty()) {
            at = &mut at[segment];
        }
        at[field] = value;
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, impl std::fmt::Display>, says: &str) {
    let message = outcome.expect_err("the rule refuses").to_string();
    assert!(message.contains(says), "expected `{says}` in: {message}");
}

#[track_caller]
fn cluster_refused(path: &'static str, value: Value, says: &str) {
    let raw = cluster(set(path, value));
    refused(raw.validate_cel(), says);
    refused(ValidatedCluster::try_from(&raw), says);
}

#[track_caller]
fn layout_refused(path: &'static str, value: Value, says: &str) {
    let raw = layout(set(path, value));
    refused(raw.validate_cel(), says);
    refused(ValidatedLayout::try_from(&raw), says);
}

#[track_caller]
fn cluster_accepted(path: &'static str, value: Value) {
    let raw = cluster(set(path, value));
    raw.validate_cel().expect("the rules accept it");
    ValidatedCluster::try_from(&raw).expect("validation accepts it");
}

#[test]
fn the_smallest_cluster_and_layout_are_accepted_with_their_defaults() {
    let valid = ValidatedCluster::try_from(&cluster(|_| {})).expect("valid");
    assert_eq!(
        (valid.members.get(), valid.volumes.bytes.0, valid.telemetry.sample_ratio),
        (3, 10 << 30, 0.05)
    );
    let valid = ValidatedLayout::try_from(&layout(|_| {})).expect("valid");
    assert_eq!(
        (valid.keyspace.as_str(), valid.shards, valid.replicas),
        ("default", 1, None)
    );
}

#[test]
fn members_are_odd_and_from_one_to_nine() {
    for members in [1, 3, 5, 7, 9] {
        cluster_accepted("/spec/members", json!(members));
    }
    for members in [2, 4, 8] {
        cluster_refused(
            "/spec/members",
            json!(members),
            "spec.members must be odd; write 1, 3, 5, 7 or 9",
        );
    }
    for members in [-1, 0, 11] {
        cluster_refused("/spec/members", json!(members), "spec.members must be 1, 3, 5, 7 or 9");
    }
}

#[test]
fn a_version_has_three_numbers_and_no_v() {
    for version in ["0.1.0", "12.3.45", "0.2.0-rc.1"] {
        cluster_accepted("/spec/version", json!(version));
    }
    for version in ["", "v0.1.0", "0.1", "latest", "0.1.0+build", "0.1.0/../x"] {
        cluster_refused(
            "/spec/version",
            json!(version),
            "spec.version must be a version such as 0.1.0",
        );
    }
}

#[test]
fn a_size_is_a_positive_quantity() {
    for size in ["1Gi", "500M", "1.5Ti"] {
        cluster_accepted("/spec/storage/size", json!(size));
    }
    for size in ["ten", "10gb", "0", "-1Gi"] {
        cluster_refused(
            "/spec/storage/size",
            json!(size),
            "spec.storage.size must be a positive quantity such as 10Gi",
        );
    }
}

#[test]
fn a_size_grows_and_never_shrinks() {
    let old = cluster(|_| {});
    cluster(set("/spec/storage/size", json!("20Gi")))
        .validate_cel_update(&old)
        .expect("growth is accepted");
    cluster(set("/spec/storage/size", json!("10240Mi")))
        .validate_cel_update(&old)
        .expect("the same size is accepted");
    refused(
        cluster(set("/spec/storage/size", json!("9Gi"))).validate_cel_update(&old),
        "spec.storage.size can grow but not shrink",
    );
}

#[test]
fn a_storage_class_is_neither_changed_nor_removed_nor_added() {
    let with = cluster(|_| {});
    let without = cluster(|raw| {
        raw["spec"]["storage"]
            .as_object_mut()
            .expect("an object")
            .remove("storageClassName");
    });
    with.validate_cel_update(&with).expect("unchanged");
    without.validate_cel_update(&without).expect("still unset");
    let says = "spec.storage.storageClassName cannot change";
    refused(
        cluster(set("/spec/storage/storageClassName", json!("slow"))).validate_cel_update(&with),
        says,
    );
    refused(without.validate_cel_update(&with), says);
    refused(with.validate_cel_update(&without), says);
}

#[test]
fn tls_is_refused_in_this_release_and_the_message_says_what_to_write() {
    cluster_accepted("/spec/tls", json!({"mode": "Disabled"}));
    for mode in ["Auto", "CertManager", "Provided"] {
        cluster_refused("/spec/tls", json!({"mode": mode}), "write `tls: {mode: Disabled}`");
    }
}

#[test]
fn telemetry_wants_a_url_and_a_ratio() {
    cluster_accepted(
        "/spec/telemetry",
        json!({"otlp": {"endpoint": "http://otel-collector:4317"}, "sampleRatio": 1.0}),
    );
    cluster_accepted("/spec/telemetry", json!({"sampleRatio": 0.0}));
    cluster_refused(
        "/spec/telemetry",
        json!({"otlp": {"endpoint": "otel-collector:4317"}}),
        "such as http://otel-collector:4317",
    );
    for ratio in [-0.1, 1.1] {
        cluster_refused(
            "/spec/telemetry",
            json!({"sampleRatio": ratio}),
            "spec.telemetry.sampleRatio must be from 0 to 1",
        );
    }
}

#[test]
fn the_operators_own_labels_are_not_to_be_set() {
    cluster_accepted(
        "/spec/podTemplate",
        json!({"labels": {"team": "orders"}, "annotations": {"app.kubernetes.io/x": "y"}}),
    );
    cluster_refused(
        "/spec/podTemplate",
        json!({"labels": {"althing.dev/ordinal": "7"}}),
        "spec.podTemplate.labels",
    );
    cluster_refused(
        "/spec/podTemplate",
        json!({"labels": {"app.kubernetes.io/instance": "x"}}),
        "spec.podTemplate.labels",
    );
    cluster_refused(
        "/spec/podTemplate",
        json!({"annotations": {"althing.dev/x": "7"}}),
        "spec.podTemplate.annotations",
    );
}

#[test]
fn pod_template_takes_kubernetes_own_fields() {
    cluster_accepted(
        "/spec/podTemplate",
        json!({
            "resources": {"requests": {"cpu": 1, "memory": "256Mi"}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "priorityClassName": "system-cluster-critical"
        }),
    );
}

#[test]
fn names_fit_the_objects_that_are_named_after_them() {
    cluster_accepted("/metadata/name", json!("a".repeat(40)));
    cluster_refused(
        "/metadata/name",
        json!("a".repeat(41)),
        "metadata.name must be at most 40 characters",
    );
    for name in ["1orders", "orders.eu", "orders-"] {
        cluster_refused("/metadata/name", json!(name), "metadata.name must be a DNS label");
    }
    layout_refused(
        "/metadata/name",
        json!("a".repeat(41)),
        "metadata.name must be at most 40 characters",
    );
}

#[track_caller]
fn layout_accepted(path: &'static str, value: Value) -> ValidatedLayout {
    let raw = layout(set(path, value));
    raw.validate_cel().expect("the rules accept it");
    ValidatedLayout::try_from(&raw).expect("validation accepts it")
}

/// The message of an update that is refused.
#[track_caller]
fn change_refused(old: Value, new: Value, says: &str) {
    let spec = |fields: Value| {
        layout(|raw| {
            for (name, value) in fields.as_object().expect("fields") {
                raw["spec"][name] = value.clone();
            }
        })
    };
    refused(spec(new).validate_cel_update(&spec(old)), says);
}

#[track_caller]
fn change_accepted(old: Value, new: Value) {
    let spec = |fields: Value| {
        layout(|raw| {
            for (name, value) in fields.as_object().expect("fields") {
                raw["spec"][name] = value.clone();
            }
        })
    };
    spec(new).validate_cel_update(&spec(old)).expect("the rules accept it");
}

#[test]
fn a_layout_has_one_to_1024_shards() {
    for shards in [1, 4, 1024] {
        assert_eq!(
            i64::from(layout_accepted("/spec/shards", json!(shards)).shards),
            i64::from(shards)
        );
    }
    for shards in [-1, 0, 1025] {
        layout_refused("/spec/shards", json!(shards), "spec.shards must be from 1 to 1024");
    }
    change_accepted(json!({"shards": 1}), json!({"shards": 8}));
    change_accepted(json!({"shards": 8}), json!({"shards": 3}));
}

#[test]
fn a_keyspace_is_named_by_a_dns_label() {
    for keyspace in ["default", "audit", "k8s-events", "1", &"a".repeat(40)] {
        assert_eq!(layout_accepted("/spec/keyspace", json!(keyspace)).keyspace, keyspace);
    }
    for keyspace in ["", "Audit", "a.b", "-a", "a-", "a/b", "a_b", &"a".repeat(41)] {
        layout_refused(
            "/spec/keyspace",
            json!(keyspace),
            "spec.keyspace must be a DNS label of at most 40 characters",
        );
    }
}

#[test]
fn a_layout_stays_with_its_cluster_and_keyspace() {
    let old = layout(|_| {});
    old.validate_cel_update(&old).expect("unchanged");
    refused(
        layout(set("/spec/clusterRef/name", json!("other"))).validate_cel_update(&old),
        "spec.clusterRef.name cannot change",
    );
    refused(
        layout(set("/spec/keyspace", json!("other"))).validate_cel_update(&old),
        "spec.keyspace cannot change",
    );
}

#[test]
fn a_port_is_none_of_the_members_own() {
    for port in [1024, 2378, 2382, 65535] {
        assert_eq!(
            layout_accepted("/spec/port", json!(port)).port.map(i32::from),
            Some(port)
        );
    }
    for port in [2379, 2380, 2381] {
        layout_refused("/spec/port", json!(port), "spec.port cannot be 2379, 2380 or 2381");
    }
    for port in [-1, 0, 80, 1023, 65536, 1_000_000] {
        layout_refused("/spec/port", json!(port), "spec.port must be from 1024 to 65535");
    }
    change_accepted(json!({"port": 2479}), json!({"port": 2480}));
    change_accepted(json!({"port": 2479}), json!({}));
}

#[test]
fn a_quota_is_a_positive_quantity() {
    assert_eq!(
        layout_accepted("/spec/quota", json!("8Gi")).quota.map(|bytes| bytes.0),
        Some(8 << 30)
    );
    for quota in ["eight", "8gb", "0", "-1Gi"] {
        layout_refused(
            "/spec/quota",
            json!(quota),
            "spec.quota must be a positive quantity such as 8Gi",
        );
    }
    // CEL's quantities know these two; a size in bytes makes no sense of them.
    for quota in ["5m", "1e3"] {
        refused(
            ValidatedLayout::try_from(&layout(set("/spec/quota", json!(quota)))),
            "is not a storage size",
        );
    }
}

#[test]
fn only_keyspaces_beside_the_default_one_can_be_deleted() {
    let policy = |valid: ValidatedLayout| valid.deletion_policy;
    assert_eq!(
        policy(ValidatedLayout::try_from(&layout(|_| {})).expect("valid")),
        DeletionPolicy::Retain
    );
    assert_eq!(
        policy(layout_accepted("/spec/deletionPolicy", json!("Retain"))),
        DeletionPolicy::Retain
    );
    layout_refused(
        "/spec/deletionPolicy",
        json!("Delete"),
        "the keyspace default lives as long as its RaftCluster",
    );
    let audit = layout(|raw| {
        raw["spec"]["keyspace"] = json!("audit");
        raw["spec"]["deletionPolicy"] = json!("Delete");
    });
    audit.validate_cel().expect("another keyspace can");
}

#[test]
fn replicas_are_odd() {
    layout(set("/spec/replicas", json!(5))).validate_cel().expect("odd");
    for replicas in [0, 2, 10, 11] {
        layout_refused(
            "/spec/replicas",
            json!(replicas),
            "spec.replicas must be 1, 3, 5, 7 or 9",
        );
    }
}

#[test]
fn partitioning_is_exactly_one_of_range_and_hash() {
    let range = json!({"range": {"splitKeys": []}});
    let hash = json!({"hash": {"slots": 16384, "prefixSegments": 2}});
    assert_eq!(
        layout_accepted("/spec/partitioning", range.clone()).partitioning,
        Partitioned::Range { split_keys: vec![] }
    );
    assert_eq!(
        layout_accepted("/spec/partitioning", hash.clone()).partitioning,
        Partitioned::Hash {
            slots: 16384,
            prefix_segments: Some(2)
        }
    );
    layout_refused("/spec/partitioning", json!({}), "exactly one of");
    layout_refused(
        "/spec/partitioning",
        json!({"range": range["range"], "hash": hash["hash"]}),
        "exactly one of",
    );
}

#[test]
fn split_keys_do_not_make_more_ranges_than_shards() {
    layout_refused(
        "/spec/partitioning",
        json!({"range": {"splitKeys": ["/m"]}}),
        "with one shard, leave splitKeys empty",
    );
    let two = |keys: Value| {
        layout(|raw| {
            raw["spec"]["shards"] = json!(2);
            raw["spec"]["partitioning"] = json!({"range": {"splitKeys": keys}});
        })
    };
    ValidatedLayout::try_from(&two(json!(["/m"]))).expect("one key cuts into two");
    ValidatedLayout::try_from(&two(json!([]))).expect("where it is cut can be left to the cluster");
    refused(two(json!(["/m", "/t"])).validate_cel(), "ask for more shards");
}

#[test]
fn split_keys_ascend_as_bytes_and_may_be_any_bytes() {
    let with = |keys: Value| {
        ValidatedLayout::try_from(&layout(|raw| {
            raw["spec"]["shards"] = json!(8);
            raw["spec"]["partitioning"] = json!({"range": {"splitKeys": keys}});
        }))
    };
    with(json!(["/a", "/b", "\\x80"])).expect("ascending");
    // As text, a backslash sorts behind "/a"; the byte that it stands for does not.
    refused(with(json!(["/a", "\\x00"])), "splitKeys must be in ascending order");
    refused(with(json!(["/b", "/a"])), "splitKeys must be in ascending order");
    refused(with(json!(["/a", "/a"])), "each once");
    refused(with(json!(["/a\\n"])), "begins no escape");
}

#[test]
fn every_shard_has_a_slot() {
    let with = |shards: i32, slots: i32| {
        layout(|raw| {
            raw["spec"]["shards"] = json!(shards);
            raw["spec"]["partitioning"] = json!({"hash": {"slots": slots}});
        })
    };
    ValidatedLayout::try_from(&with(16, 16)).expect("one slot each");
    refused(
        with(17, 16).validate_cel(),
        "spec.shards is more than spec.partitioning.hash.slots",
    );
    for slots in [-1, 0, 65537] {
        refused(
            with(1, slots).validate_cel(),
            "spec.partitioning.hash.slots must be from 1 to 65536",
        );
    }
    for segments in [0, 17] {
        layout_refused(
            "/spec/partitioning",
            json!({"hash": {"slots": 16, "prefixSegments": segments}}),
            "spec.partitioning.hash.prefixSegments must be from 1 to 16",
        );
    }
}

#[test]
fn what_says_where_keys_live_does_not_change() {
    let hash = |slots: i32| json!({"partitioning": {"hash": {"slots": slots, "prefixSegments": 2}}});
    let range = json!({"partitioning": {"range": {"splitKeys": []}}});
    let kind = "spec.partitioning cannot change between range";
    change_refused(range.clone(), hash(16), kind);
    change_refused(hash(16), range.clone(), kind);
    change_refused(json!({}), hash(16), kind);
    change_refused(hash(16), json!({}), kind);
    change_refused(hash(16), hash(32), "spec.partitioning.hash.slots cannot change");
    let segments = "spec.partitioning.hash.prefixSegments cannot change";
    let whole = json!({"partitioning": {"hash": {"slots": 16}}});
    let three = json!({"partitioning": {"hash": {"slots": 16, "prefixSegments": 3}}});
    change_refused(hash(16), three, segments);
    change_refused(hash(16), whole.clone(), segments);
    change_refused(whole.clone(), hash(16), segments);
    change_accepted(whole.clone(), whole);
    change_accepted(hash(16), hash(16));
    // Not given means by range, and where ranges begin is a wish that may change.
    change_accepted(json!({}), range.clone());
    change_accepted(range, json!({}));
    let split = |key: &str| json!({"shards": 2, "partitioning": {"range": {"splitKeys": [key]}}});
    change_accepted(split("/m"), split("/n"));
}

#[test]
fn reads_are_answered_in_one_of_three_ways() {
    assert_eq!(ValidatedLayout::try_from(&layout(|_| {})).expect("valid").reads, None);
    for mode in ["ReadIndex", "LeaderLease", "RosterLease"] {
        layout_accepted("/spec/reads", json!({"mode": mode}));
    }
    layout_accepted(
        "/spec/reads",
        json!({"mode": "RosterLease", "responders": "All", "revisions": "OfKeys", "leaseMillis": 500}),
    );
    layout_accepted("/spec/reads", json!({"mode": "LeaderLease", "leaseMillis": 100}));
    for reads in [
        json!({"responders": "All"}),
        json!({"mode": "ReadIndex", "revisions": "Current"}),
        json!({"mode": "ReadIndex", "leaseMillis": 1000}),
    ] {
        layout_refused(
            "/spec/reads",
            reads,
            "responders, revisions and leaseMillis belong to leases",
        );
    }
    for millis in [0, 99, 60_001] {
        layout_refused(
            "/spec/reads",
            json!({"mode": "RosterLease", "leaseMillis": millis}),
            "spec.reads.leaseMillis must be from 100 to 60000",
        );
    }
}

#[test]
fn all_broken_rules_are_told_at_once() {
    let raw = cluster(|raw| {
        raw["spec"]["members"] = json!(4);
        raw["spec"]["version"] = json!("v1");
    });
    let error = ValidatedCluster::try_from(&raw)
        .expect_err("two rules are broken")
        .to_string();
    assert!(
        error.contains("spec.members must be odd") && error.contains("spec.version must be"),
        "{error}"
    );
    assert!(error.starts_with("RaftCluster orders is invalid"), "{error}");
}
