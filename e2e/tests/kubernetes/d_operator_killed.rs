//! The operator dies after each step of a scale; the next one carries on.

use std::time::Duration;

use althing_e2e::command::wait_until;

use crate::kit::{CHANGE_LIMIT, Cluster, bed, install_operator, judge, operator_restarts, replace_operator_pods};

/// Every kind of step that scaling and its bookkeeping take; the operator dies right after each, every time.
const STEPS: [&str; 8] = [
    "CreateVolume",
    "StartMember",
    "AddLearner",
    "Promote",
    "TransferLeader",
    "RemoveMember",
    "StopMember",
    "DeleteVolume",
];

/// As for any scaling: the operator's death itself must not cost the clients anything.
const GAP_MAX: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn an_operator_that_dies_after_each_step_of_a_scale_is_carried_on_by_the_next() {
    operator_killed(1);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn with_four_shards_an_operator_that_dies_after_each_step_of_a_scale_is_carried_on_by_the_next() {
    operator_killed(4);
}

fn operator_killed(shards: u32) {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create_with_shards(&bed, "crash", 1, shards);
    let points: Vec<String> = STEPS.iter().map(|step| format!("after-{step}=panic")).collect();
    let value = format!("extraEnv[0].name=FAILPOINTS,extraEnv[0].value={}", points.join(";"));
    install_operator(&bed, &[&value]);
    let load = cluster.load();

    let mut deaths = 0;
    for members in [3, 1] {
        cluster.scale(members);
        wait_until(
            &format!("{members} members in spite of crashes"),
            CHANGE_LIMIT * 2,
            || {
                let restarts = operator_restarts(&bed);
                if restarts > 0 {
                    deaths += restarts;
                    replace_operator_pods(&bed);
                }
                let ready = cluster.condition("Ready");
                let count = cluster.status()["status"]["readyMembers"].as_u64();
                match &ready {
                    Some((is, _, _)) if is == "True" && count == Some(members.into()) => Ok(()),
                    _ => Err(format!(
                        "after {deaths} deaths Ready is {ready:?} with {count:?} members"
                    )),
                }
            },
        )
        .unwrap();
    }
    println!("the operator died {deaths} times on the way from 1 to 3 to 1 members");
    // More than one death for each way; a death is missed when its pod is replaced before kubelet has counted it.
    assert!(
        deaths >= 4,
        "only {deaths} deaths: the crash points are not in this build"
    );
    judge("operator killed at every step", load, GAP_MAX);
    install_operator(&bed, &[]);
    cluster.wait_ready(1, CHANGE_LIMIT);
    cluster.delete();
}
