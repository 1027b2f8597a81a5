//! Every rule of both kinds, as the API server would run it: what passes, and what a person reads when it does not.

use althing_crds::{RaftCluster, ShardLayout, ValidatedCluster, ValidatedLayout};
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

#[test]
fn a_layout_has_one_shard_of_the_default_keyspace_in_this_release() {
    layout_refused("/spec/shards", json!(4), "write `shards: 1`");
    layout_refused("/spec/shards", json!(0), "write `shards: 1`");
    layout_refused("/spec/keyspace", json!("audit"), "write `keyspace: default`");
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
    layout(set("/spec/partitioning", range.clone()))
        .validate_cel()
        .expect("range");
    layout(set("/spec/partitioning", hash.clone()))
        .validate_cel()
        .expect("hash");
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
}

#[test]
fn reads_are_confirmed_by_a_quorum_in_this_release() {
    layout(set("/spec/reads", json!({"mode": "ReadIndex"})))
        .validate_cel()
        .expect("ReadIndex");
    for mode in ["LeaderLease", "RosterLease"] {
        layout_refused("/spec/reads", json!({"mode": mode}), "write `reads: {mode: ReadIndex}`");
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
