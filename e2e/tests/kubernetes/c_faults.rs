//! Things that break, under load: it heals by itself, no acknowledged write is lost, no read is stale.

use std::time::Duration;

use althing_e2e::command::wait_until;

use crate::kit::{CHANGE_LIMIT, Cluster, bed, install_operator, judge, pod_uid, wait_for_new_pod};

/// A lost leader costs an election timeout of 1 to 2 s, and the clients' own time to give a dead connection up (2 s) and
/// to find another member through the Service.
const GAP_MAX: Duration = Duration::from_secs(15);

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_deleted_leader_pod_comes_back_with_its_volume() {
    deleted_leader_pod(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_a_deleted_leader_pod_comes_back_with_its_volume() {
    deleted_leader_pod(4);
}

fn deleted_leader_pod(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "pod-lost", 3, shards);
    let load = cluster.load();
    let leader = cluster.leader();
    let id = cluster.member_id(&leader);
    let before = pod_uid(&cluster, &leader);
    cluster.kubectl(&["delete", "pod", &leader, "--wait=false"]);
    wait_for_new_pod(&cluster, &leader, &before);
    println!(
        "deleted leader pod: healed after {:.1} s",
        cluster.wait_ready(3, CHANGE_LIMIT).as_secs_f64()
    );
    judge("deleted leader pod", load, GAP_MAX);
    assert_eq!(cluster.member_id(&leader), id, "the same volume is the same member");
    cluster.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_killed_node_process_comes_back() {
    killed_process(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_a_killed_node_process_comes_back() {
    killed_process(4);
}

fn killed_process(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "process-lost", 3, shards);
    let load = cluster.load();
    let leader = cluster.leader();
    let id = cluster.member_id(&leader);
    let restarts = restarts(&cluster, &leader);
    bed.kill_container(&cluster.namespace, &leader, "member").unwrap();
    wait_until("kubelet starts it again", CHANGE_LIMIT, || {
        let now = self::restarts(&cluster, &leader);
        if now > restarts {
            Ok(())
        } else {
            Err(format!("{now} restarts"))
        }
    })
    .unwrap();
    println!(
        "kill -9 of the leader: healed after {:.1} s",
        cluster.wait_ready(3, CHANGE_LIMIT).as_secs_f64()
    );
    judge("kill -9 of the leader", load, GAP_MAX);
    assert_eq!(cluster.member_id(&leader), id);
    cluster.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_leader_cut_off_the_network_is_replaced_and_follows_when_it_returns() {
    partitioned_leader(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_a_leader_cut_off_the_network_is_replaced_and_follows_when_it_returns() {
    partitioned_leader(4);
}

fn partitioned_leader(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "partition", 3, shards);
    let load = cluster.load();
    let leader = cluster.leader();
    let node = bed.node_of(&cluster.namespace, &leader).unwrap();
    let partition = bed.partition(node).unwrap();
    // The majority goes on without it.
    load.wait_for_writes(100, CHANGE_LIMIT).unwrap();
    partition.heal().unwrap();
    println!(
        "partitioned leader: healed after {:.1} s",
        cluster.wait_ready(3, CHANGE_LIMIT).as_secs_f64()
    );
    judge("partitioned leader", load, GAP_MAX);
    cluster.delete();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_lost_volume_is_replaced_by_a_new_member() {
    lost_volume(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_a_lost_volume_is_replaced_by_a_new_member() {
    lost_volume(4);
}

fn lost_volume(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "volume-lost", 3, shards);
    let load = cluster.load();
    let victim = format!("{}-1", cluster.name);
    let id = cluster.member_id(&victim);
    let before = pod_uid(&cluster, &victim);
    cluster.kubectl(&["delete", "pvc", &format!("data-{victim}"), "--wait=false"]);
    cluster.kubectl(&["delete", "pod", &victim, "--wait=false"]);
    wait_for_new_pod(&cluster, &victim, &before);
    println!(
        "deleted volume: healed after {:.1} s",
        cluster.wait_ready(3, CHANGE_LIMIT).as_secs_f64()
    );
    cluster.wait_shards();
    judge("deleted volume", load, GAP_MAX);
    assert_ne!(cluster.member_id(&victim), id, "an empty volume is another member");
    assert_eq!(
        cluster.etcdctl(&["member", "list"]).lines().count(),
        3,
        "and the old one is gone"
    );
    cluster.delete();
}

fn restarts(cluster: &Cluster<'_>, pod: &str) -> u64 {
    let pod = cluster
        .bed
        .get(&["pod", pod, "--namespace", &cluster.namespace])
        .unwrap();
    pod["status"]["containerStatuses"][0]["restartCount"]
        .as_u64()
        .unwrap_or_default()
}
