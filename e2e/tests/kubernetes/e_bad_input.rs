//! What cannot be done is said clearly, loses nothing, and leaves other clusters alone.

use althing_e2e::command::wait_until;

use crate::kit::{CHANGE_LIMIT, Cluster, bed, install_operator, kubectl};

/// Applies YAML that the API server must refuse, and returns its words.
fn refused(cluster: &Cluster<'_>, manifest: &str) -> String {
    match cluster.bed.apply(manifest) {
        Ok(answer) => panic!("this was accepted: {answer}\n{manifest}"),
        Err(error) => error.to_string(),
    }
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn the_api_server_refuses_what_the_rules_forbid_and_says_what_to_write() {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::declare(&bed, "rules", 1, "");
    cluster.wait_ready(1, CHANGE_LIMIT);
    let layout = |name: &str, spec: &str| {
        format!(
            "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: {name}, namespace: {}}}\nspec: {spec}\n",
            cluster.namespace
        )
    };
    let table = [
        ("an even number of members", cluster.manifest(2, ""), "members"),
        ("too many members", cluster.manifest(11, ""), "members"),
        ("TLS", cluster.manifest(1, "  tls: {mode: Auto}\n"), "Disabled"),
        (
            "another storage class",
            cluster.manifest(1, "").replace("1Gi}", "1Gi, storageClassName: other}"),
            "storageClassName",
        ),
        (
            "too many shards",
            layout("many", "{clusterRef: {name: rules}, shards: 1025}"),
            "1024",
        ),
        (
            "a port of the members' own",
            layout("port", "{clusterRef: {name: rules}, keyspace: audit, port: 2380}"),
            "2379, 2380 or 2381",
        ),
        (
            "dropping the default keyspace",
            layout("drop", "{clusterRef: {name: rules}, deletionPolicy: Delete}"),
            "default",
        ),
        (
            "a lease that no mode takes",
            layout(
                "lease",
                "{clusterRef: {name: rules}, reads: {mode: ReadIndex, leaseMillis: 500}}",
            ),
            "leaseMillis",
        ),
    ];
    for (what, manifest, word) in table {
        let said = refused(&cluster, &manifest);
        println!("{what}: {}", said.lines().last().unwrap_or_default());
        assert!(said.contains(word), "{what}: {said}");
    }
    bed.apply(&layout("one", "{clusterRef: {name: rules}, shards: 1}"))
        .unwrap();
    let said = refused(&cluster, &layout("one", "{clusterRef: {name: other}, shards: 1}"));
    assert!(said.contains("clusterRef"), "{said}");
    let said = refused(
        &cluster,
        &layout("one", "{clusterRef: {name: rules}, partitioning: {hash: {slots: 16}}}"),
    );
    assert!(said.contains("cannot change between range"), "{said}");
    cluster.wait_ready(1, CHANGE_LIMIT);
    cluster.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn an_unknown_image_is_reported_and_the_next_spec_mends_it() {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::declare(
        &bed,
        "no-image",
        1,
        "  image: {repository: localhost/no-such-image, pullPolicy: Never}\n",
    );
    // What kubelet says about the image, and not only that the pod is young.
    let message = wait_until(
        "the condition names the image's trouble",
        CHANGE_LIMIT,
        || match cluster.condition("Degraded") {
            Some((_, _, message)) if message.contains("ErrImageNeverPull") => Ok(message),
            other => Err(format!("{other:?}")),
        },
    )
    .unwrap();
    println!("unknown image: {message}");
    wait_for_event(&cluster, "ErrImageNeverPull");
    // A better spec supersedes the bad one at once.
    bed.apply(&cluster.manifest(1, "")).unwrap();
    cluster.wait_ready(1, CHANGE_LIMIT);
    cluster.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn an_unschedulable_pod_is_reported_and_others_are_not_affected() {
    let bed = bed();
    install_operator(&bed, &[]);
    let neighbour = Cluster::create(&bed, "neighbour", 1);
    let cluster = Cluster::declare(&bed, "no-room", 1, "  podTemplate: {nodeSelector: {no-such: label}}\n");
    let message = cluster.wait_condition("Degraded", "True", "MemberPending", CHANGE_LIMIT);
    println!("unschedulable: {message}");
    assert!(message.contains("Unschedulable"), "{message}");
    wait_for_event(&cluster, "Unschedulable");
    assert_eq!(neighbour.etcdctl(&["put", "still", "here"]).trim(), "OK");
    neighbour.scale(3);
    neighbour.wait_ready(3, CHANGE_LIMIT);
    cluster.delete();
    neighbour.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_spec_that_would_shrink_below_quorum_while_a_member_is_down_waits_and_says_so() {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create(&bed, "shrink", 3);
    cluster.etcdctl(&["put", "k", "kept"]);
    // Member 0 cannot be scheduled any more: of three voters two are up, and the third would be one of the one left.
    let pod = format!("{}-0", cluster.name);
    let node = bed.node_of(&cluster.namespace, &pod).unwrap();
    kubectl(&bed, &["cordon", &node.to_string()]);
    cluster.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    wait_until("the pod is pending", CHANGE_LIMIT, || {
        let found = bed
            .get(&["pod", &pod, "--namespace", &cluster.namespace])
            .map_err(|error| error.to_string())?;
        if found["status"]["phase"] == "Pending" {
            Ok(())
        } else {
            Err(found["status"]["phase"].to_string())
        }
    })
    .unwrap();
    cluster.scale(1);
    let message = cluster.wait_condition("Degraded", "True", "WouldLoseQuorum", CHANGE_LIMIT);
    println!("shrink with a member down: {message}");
    assert_eq!(cluster.etcdctl(&["get", "k", "--print-value-only"]).trim(), "kept");
    kubectl(&bed, &["uncordon", &node.to_string()]);
    cluster.wait_ready(1, CHANGE_LIMIT);
    assert_eq!(cluster.etcdctl(&["get", "k", "--print-value-only"]).trim(), "kept");
    cluster.delete();
}

fn wait_for_event(cluster: &Cluster<'_>, word: &str) {
    wait_until(&format!("an event speaks of `{word}`"), CHANGE_LIMIT, || {
        let events = cluster.events();
        let found = events
            .iter()
            .any(|(reason, note)| format!("{reason} {note}").contains(word));
        if found { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .unwrap();
}
