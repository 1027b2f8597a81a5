//! Growing and shrinking under load.

use std::time::Duration;

use crate::kit::{CHANGE_LIMIT, Cluster, bed, install_operator, judge};

/// Scaling hands leadership over before it takes a member away; an election in between is the worst that may happen.
const GAP_MAX: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn scaling_from_three_to_five_to_three_loses_no_write_and_shows_no_stale_read() {
    scaling(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_scaling_from_three_to_five_to_three_loses_no_write_and_shows_no_stale_read() {
    scaling(4);
}

fn scaling(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "scale", 3, shards);

    let load = cluster.load();
    cluster.scale(5);
    println!("3 to 5: {:.1} s", cluster.wait_ready(5, CHANGE_LIMIT).as_secs_f64());
    cluster.wait_shards();
    judge("3 to 5", load, GAP_MAX);

    let load = cluster.load();
    cluster.scale(3);
    println!("5 to 3: {:.1} s", cluster.wait_ready(3, CHANGE_LIMIT).as_secs_f64());
    cluster.wait_shards();
    judge("5 to 3", load, GAP_MAX);

    let members = cluster.etcdctl(&["member", "list"]);
    assert_eq!(members.lines().count(), 3, "{members}");
    cluster.delete();
}
