//! A keyspace that is cut and joined again under load, while members join and one is lost.

use std::fmt::Write as _;
use std::time::Duration;

use althing_e2e::command::wait_until;
use althing_e2e::workload::{Plan, Workload};

use crate::kit::{CHANGE_LIMIT, Cluster, bed, install_operator, judge, pod_uid, wait_for_new_pod};

/// As for any lost leader, of whichever shard: an election, and the clients' own time to give a dead connection up.
const GAP_MAX: Duration = Duration::from_secs(15);

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn one_shard_becomes_eight_and_three_under_load_while_members_join_and_one_is_lost() {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create(&bed, "shards", 3);
    bed.apply(&format!(
        "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: shards, namespace: {}}}\n\
         spec:\n  clusterRef: {{name: shards}}\n  shards: 1\n  replicas: 3\n  partitioning: {{range: {{}}}}\n",
        cluster.namespace
    ))
    .unwrap();
    cluster.wait_layout("shards", 1);
    let load = Workload::start(Plan::spread([cluster.endpoint()])).unwrap();
    load.wait_for_writes(200, CHANGE_LIMIT).unwrap();

    cluster.scale_layout("shards", 8);
    println!("1 to 8 shards: {:.1} s", cluster.wait_layout("shards", 8).as_secs_f64());
    println!("{}", cluster.kubectl(&["get", "shardlayouts"]));
    println!("{}", shards(&cluster));

    cluster.scale(5);
    wait_until("the fourth member is there", CHANGE_LIMIT, || {
        let members = cluster.status()["status"]["readyMembers"].as_u64();
        members
            .filter(|members| *members >= 4)
            .ok_or_else(|| format!("{members:?}"))
            .map(drop)
    })
    .unwrap();
    // In the middle of it, a member with all that it has.
    let victim = "shards-1";
    let before = pod_uid(&cluster, victim);
    let id = cluster.member_id(victim);
    cluster.kubectl(&["delete", "pvc", "data-shards-1", "--wait=false"]);
    cluster.kubectl(&["delete", "pod", victim, "--wait=false"]);
    wait_for_new_pod(&cluster, victim, &before);
    let ready = cluster.wait_ready(5, CHANGE_LIMIT * 2);
    println!("3 to 5 members and a lost volume: {:.1} s", ready.as_secs_f64());
    println!(
        "shards in place: {:.1} s later",
        cluster.wait_layout("shards", 8).as_secs_f64()
    );
    assert_ne!(cluster.member_id(victim), id, "an empty volume is another member");
    println!("{}", shards(&cluster));
    for (member, replicas) in cluster.replicas() {
        println!("{member}: {replicas} replicas");
        assert!(
            replicas > 0,
            "{member} holds no replica: the shards were not spread over the new members"
        );
    }

    cluster.scale_layout("shards", 3);
    println!("8 to 3 shards: {:.1} s", cluster.wait_layout("shards", 3).as_secs_f64());
    println!("{}", shards(&cluster));

    let summary = judge("shards", load, GAP_MAX);
    println!("largest write gap of each key:");
    for (number, gap) in summary.write_gaps() {
        println!("  key {number:>2}  {gap}");
    }
    cluster.delete();
}

/// The shards as status shows them.
fn shards(cluster: &Cluster<'_>) -> String {
    let layout = cluster.layout("shards");
    let mut text = String::new();
    for shard in layout["status"]["shards"].as_array().into_iter().flatten() {
        let word = |field: &str| shard[field].as_str().unwrap_or("-").to_owned();
        let voters: Vec<&str> = shard["voters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str())
            .collect();
        writeln!(
            text,
            "  shard {:>3}  {:<12} leader {:<10} voters {}  {}",
            shard["id"],
            word("state"),
            word("leader"),
            voters.join(","),
            word("range")
        )
        .unwrap();
    }
    text
}
