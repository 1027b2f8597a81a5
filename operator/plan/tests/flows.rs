//! The main flows, told by the planner itself.

mod world;

use althing_plan::model::{Ordinal, Step};
use althing_plan::{ConditionKind, ConditionStatus, assess, plan};
use expect_test::{Expect, expect};
use world::World;

fn told(world: &mut World, turns: usize, expected: Expect) {
    expected.assert_eq(&world.story(turns));
}

#[test]
fn a_new_cluster_records_its_id_before_it_is_bootstrapped_and_grows_by_learners() {
    told(
        &mut World::new(3),
        9,
        expect![[r#"
        turn 1
          Doing: create the volume of x-0, because x-0 has no volume.
          Doing: start x-0, because x-0 is declared and does not run.
          Doing: create the volume of x-1, because x-1 has no volume.
          Doing: start x-1, because x-1 is declared and does not run.
          Doing: create the volume of x-2, because x-2 has no volume.
          Doing: start x-2, because x-2 is declared and does not run.
          Doing: choose a cluster id, because a new cluster needs an id before anything acts on it.
        turn 2
          Doing: bootstrap cluster c1 on x-0, because x-0 is empty and is the first member of the new cluster c1.
          Waiting (MemberNotReady): x-0 is not ready: it has no vote.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 3
          Doing: record that the cluster exists, because x-0 is a member of c1.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 4
          Doing: add x-1 (m2-1) as a learner, because x-1 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 5
          Doing: add x-2 (m3-2) as a learner, because x-2 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 6
          Doing: give x-1 (m2-1) its vote, because x-1 has caught up.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 7
          Doing: give x-2 (m3-2) its vote, because x-2 has caught up.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 8
        turn 9
    "#]],
    );
}

#[test]
fn one_grows_to_three() {
    let mut world = World::settled(1);
    world.desired.members = 3;
    told(
        &mut world,
        6,
        expect![[r#"
        turn 1
          Doing: create the volume of x-1, because x-1 has no volume.
          Doing: start x-1, because x-1 is declared and does not run.
          Doing: create the volume of x-2, because x-2 has no volume.
          Doing: start x-2, because x-2 is declared and does not run.
        turn 2
          Doing: add x-1 (m2-1) as a learner, because x-1 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 3
          Doing: add x-2 (m3-2) as a learner, because x-2 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 4
          Doing: give x-1 (m2-1) its vote, because x-1 has caught up.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 5
          Doing: give x-2 (m3-2) its vote, because x-2 has caught up.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 6
    "#]],
    );
}

#[test]
fn five_shrink_to_three_from_the_highest_ordinal_and_the_leader_hands_over_first() {
    let mut world = World::settled(5);
    let leader = world.member(4);
    world.config.as_mut().expect("a cluster").leader = Some(leader);
    world.desired.members = 3;
    told(
        &mut world,
        6,
        expect![[r#"
        turn 1
          Doing: move leadership from x-4 (m5-4) to x-0 (m1-0), because spec.members is 3 and x-4 is beyond it, and it leads.
        turn 2
          Doing: remove x-4 (m5-4), because spec.members is 3 and x-4 is beyond it.
        turn 3
          Doing: remove x-3 (m4-3), because spec.members is 3 and x-3 is beyond it.
          Doing: stop x-4, because x-4 is not needed: it has left the configuration.
        turn 4
          Doing: stop x-3, because x-3 is not needed: it has left the configuration.
          Doing: delete the volume of x-4, because the volume of x-4 is not needed: it has left the configuration.
        turn 5
          Doing: delete the volume of x-3, because the volume of x-3 is not needed: it has left the configuration.
        turn 6
    "#]],
    );
}

#[test]
fn a_lost_pod_is_started_again_with_its_volume() {
    let mut world = World::settled(3);
    let before = world.member(1);
    world.pods.remove(&Ordinal(1));
    told(
        &mut world,
        2,
        expect![[r#"
        turn 1
          Doing: start x-1, because x-1 is declared and does not run.
        turn 2
    "#]],
    );
    assert_eq!(world.member(1), before);
}

#[test]
fn a_lost_volume_is_replaced_by_a_new_member() {
    let mut world = World::settled(3);
    world.disks.remove(&Ordinal(1));
    world.pods.remove(&Ordinal(1));
    told(
        &mut world,
        4,
        expect![[r#"
        turn 1
          Doing: create the volume of x-1, because x-1 has no volume.
          Doing: start x-1, because x-1 is declared and does not run.
          Doing: remove x-1 (m2-1), because x-1 has lost its volume.
        turn 2
          Doing: add x-1 (m4-1) as a learner, because x-1 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
        turn 3
          Doing: give x-1 (m4-1) its vote, because x-1 has caught up.
          Waiting (MemberNotReady): x-1 is not ready: it has no vote.
        turn 4
    "#]],
    );
}

#[test]
fn a_claim_deleted_under_a_running_leader_moves_leadership_then_removes_then_replaces() {
    let mut world = World::settled(3);
    let leader = world.member(2);
    world.config.as_mut().expect("a cluster").leader = Some(leader);
    world.disks.get_mut(&Ordinal(2)).expect("a volume").terminating = true;
    told(
        &mut world,
        7,
        expect![[r#"
        turn 1
          Doing: move leadership from x-2 (m3-2) to x-0 (m1-0), because the volume of x-2 is being deleted, and it leads.
          Waiting (VolumeTerminating): the volume of x-2 is being deleted; a new one follows.
        turn 2
          Doing: remove x-2 (m3-2), because the volume of x-2 is being deleted.
          Waiting (VolumeTerminating): the volume of x-2 is being deleted; a new one follows.
        turn 3
          Doing: stop x-2, because x-2 has no volume any more and starts anew with an empty one.
          Waiting (VolumeTerminating): the volume of x-2 is being deleted; a new one follows.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 4
          Doing: create the volume of x-2, because x-2 has no volume.
          Doing: start x-2, because x-2 is declared and does not run.
        turn 5
          Doing: add x-2 (m4-2) as a learner, because x-2 runs and is not in the configuration yet.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 6
          Doing: give x-2 (m4-2) its vote, because x-2 has caught up.
          Waiting (MemberNotReady): x-2 is not ready: it has no vote.
        turn 7
    "#]],
    );
}

#[test]
fn shrinking_below_quorum_while_a_member_is_down_is_blocked_and_says_why() {
    let mut world = World::settled(3);
    world.pods.get_mut(&Ordinal(0)).expect("a pod").pending = true;
    world.desired.members = 1;
    told(
        &mut world,
        2,
        expect![[r#"
        turn 1
          Blocked (WouldLoseQuorum): spec.members is 1 and x-2 is beyond it, but without x-2 only 1 voters would answer and 2 are needed; bring back x-0 first.
          Waiting (MemberPending): x-0 cannot start yet (Unschedulable): 0/3 nodes are available.
        turn 2
          Blocked (WouldLoseQuorum): spec.members is 1 and x-2 is beyond it, but without x-2 only 1 voters would answer and 2 are needed; bring back x-0 first.
          Waiting (MemberPending): x-0 cannot start yet (Unschedulable): 0/3 nodes are available.
    "#]],
    );
    assert_eq!(world.voters(), ["x-0", "x-1", "x-2"]);
}

#[test]
fn members_that_are_down_leave_first_when_the_cluster_shrinks() {
    let mut world = World::settled(3);
    world.pods.get_mut(&Ordinal(1)).expect("a pod").pending = true;
    world.desired.members = 1;
    let observed = world.observe();
    let first = plan(&world.desired, &observed);
    assert!(
        matches!(&first.steps[0].step, Step::RemoveMember { member, .. } if *member == world.member(1)),
        "{first:?}"
    );
}

#[test]
fn a_new_version_restarts_followers_one_by_one_and_the_leader_last() {
    let mut world = World::settled(3);
    world.desired.workload_hash = "h2".into();
    world.desired.version = "0.2.0".into();
    told(
        &mut world,
        8,
        expect![[r#"
        turn 1
          Doing: stop x-2, because the declaration of x-2 has changed (version 0.2.0).
        turn 2
          Doing: start x-2, because x-2 is declared and does not run.
          Waiting (RestartPending): x-1 restarts with its new declaration when x-2 serves.
        turn 3
          Doing: stop x-1, because the declaration of x-1 has changed (version 0.2.0).
        turn 4
          Doing: start x-1, because x-1 is declared and does not run.
          Waiting (RestartPending): x-0 restarts with its new declaration when x-1 serves.
        turn 5
          Doing: move leadership from x-0 (m1-0) to x-1 (m2-1), because the declaration of x-0 has changed (version 0.2.0), and it leads.
        turn 6
          Doing: stop x-0, because the declaration of x-0 has changed (version 0.2.0).
        turn 7
          Doing: start x-0, because x-0 is declared and does not run.
        turn 8
    "#]],
    );
}

#[test]
fn a_bad_revision_is_superseded_without_waiting_for_health() {
    let mut world = World::settled(3);
    world.desired.workload_hash = "bad".into();
    world.turn(usize::MAX);
    world.turn(usize::MAX);
    world.pods.get_mut(&Ordinal(2)).expect("restarted").pending = true;
    world.turn(usize::MAX);
    assert_eq!(world.pods[&Ordinal(1)].hash, "h1", "the others keep serving");
    world.desired.workload_hash = "good".into();
    world.settle();
    assert_eq!(world.pods[&Ordinal(2)].hash, "good");
}

#[test]
fn a_cluster_that_lost_every_volume_is_never_bootstrapped_again() {
    let mut world = World::settled(1);
    world.disks.clear();
    world.pods.clear();
    for _ in 0..3 {
        world.turn(usize::MAX);
    }
    let observed = world.observe();
    let last = plan(&world.desired, &observed);
    assert!(last.steps.is_empty(), "{last:?}");
    assert_eq!(last.blocked[0].reason, "DataLost");
    let quorum = assess(&world.desired, &observed, &last)
        .conditions
        .into_iter()
        .find(|condition| condition.kind == ConditionKind::QuorumHealthy)
        .expect("always assessed");
    assert_eq!(
        (quorum.status, quorum.reason.as_str()),
        (ConditionStatus::False, "DataLost")
    );
}

#[test]
fn a_paused_cluster_is_left_alone_and_stays_ready() {
    let mut world = World::settled(3);
    world.desired.paused = true;
    world.desired.workload_hash = "h2".into();
    let observed = world.observe();
    let paused = plan(&world.desired, &observed);
    assert!(paused.steps.is_empty());
    assert_eq!(
        assess(&world.desired, &observed, &paused).conditions[0].status,
        ConditionStatus::True
    );
}

#[test]
fn a_deleted_cluster_is_left_to_garbage_collection() {
    let mut world = World::settled(3);
    world.desired.deleting = true;
    world.pods.clear();
    let observed = world.observe();
    assert!(plan(&world.desired, &observed).steps.is_empty());
}

#[test]
fn retained_volumes_are_asked_before_anything_is_bootstrapped() {
    let mut old = World::settled(3);
    let mut world = World::new(3);
    world.disks = std::mem::take(&mut old.disks);
    world.config = old.config.take();
    world.bootstraps = 1;
    world.retained = world.disks.keys().copied().collect();
    told(
        &mut world,
        3,
        expect![[r#"
        turn 1
          Doing: start x-0, because x-0 is declared and does not run.
          Doing: start x-1, because x-1 is declared and does not run.
          Doing: start x-2, because x-2 is declared and does not run.
          Waiting (RetainedVolume): the volume of x-0 is older than this cluster; x-0 must say whether it holds data before anything is bootstrapped.
          Waiting (RetainedVolume): the volume of x-1 is older than this cluster; x-1 must say whether it holds data before anything is bootstrapped.
          Waiting (RetainedVolume): the volume of x-2 is older than this cluster; x-2 must say whether it holds data before anything is bootstrapped.
        turn 2
          Doing: choose a cluster id, because a new cluster needs an id before anything acts on it.
        turn 3
          Doing: record that the cluster exists, because x-0 and x-1 and x-2 is a member of c1.
    "#]],
    );
    assert_eq!(world.status_cluster.as_deref(), Some("c1"));
}

#[test]
fn retained_volumes_block_a_member_that_would_join_with_them() {
    let mut world = World::settled(3);
    world.desired.keep_volumes = true;
    world.desired.members = 1;
    world.settle();
    assert!(world.disks.contains_key(&Ordinal(2)), "the volume is kept");
    world.desired.members = 3;
    for _ in 0..3 {
        world.turn(usize::MAX);
    }
    let observed = world.observe();
    let blocked = plan(&world.desired, &observed).blocked;
    assert_eq!(
        blocked.iter().map(|wait| wait.reason).collect::<Vec<_>>(),
        ["RetainedVolume", "RetainedVolume"]
    );
}

#[test]
fn a_crash_after_any_number_of_steps_is_carried_on_from() {
    for crash in 0..4 {
        let mut world = World::new(3);
        for members in [3, 5, 3] {
            world.desired.members = members;
            for _ in 0..40 {
                world.turn(crash);
                world.turn(1);
            }
            world.settle();
            assert_eq!(world.voters().len(), members as usize);
        }
        assert_eq!(world.bootstraps, 1);
    }
}

#[test]
fn members_are_emptied_of_replicas_before_they_leave() {
    let mut world = World::sharded(5, 2, 3);
    world.hold(1, &[1, 3, 4]);
    world.hold(2, &[0, 1, 3]);
    world.desired.members = 3;
    told(
        &mut world,
        9,
        expect![[r#"
            turn 1
              Doing: empty x-4 (m5-4) of replicas, because spec.members is 3 and x-4 is beyond it.
              Doing: empty x-3 (m4-3) of replicas, because spec.members is 3 and x-3 is beyond it.
            turn 2
              Doing: remove x-4 (m5-4), because spec.members is 3 and x-4 is beyond it.
              Waiting (Draining): x-3 still holds 1 replica; it leaves when other members have taken over.
            turn 3
              Doing: remove x-3 (m4-3), because spec.members is 3 and x-3 is beyond it.
              Doing: stop x-4, because x-4 is not needed: it has left the configuration.
            turn 4
              Doing: stop x-3, because x-3 is not needed: it has left the configuration.
              Doing: delete the volume of x-4, because the volume of x-4 is not needed: it has left the configuration.
            turn 5
              Doing: delete the volume of x-3, because the volume of x-3 is not needed: it has left the configuration.
            turn 6
            turn 7
            turn 8
            turn 9
        "#]],
    );
    assert_eq!(world.voters(), ["x-0", "x-1", "x-2"]);
}

#[test]
fn a_member_that_is_wanted_again_takes_replicas_again() {
    let mut world = World::sharded(5, 4, 3);
    world.desired.members = 3;
    world.turn(usize::MAX);
    assert_eq!(world.shards.as_ref().map(|shards| shards.draining.len()), Some(2));
    world.desired.members = 5;
    told(
        &mut world,
        2,
        expect![[r#"
            turn 1
              Doing: let x-3 (m4-3) take replicas again, because x-3 is declared and stays.
              Doing: let x-4 (m5-4) take replicas again, because x-4 is declared and stays.
            turn 2
        "#]],
    );
    assert_eq!(world.shards.as_ref().map(|shards| shards.draining.len()), Some(0));
    world.settle();
    assert_eq!(world.voters().len(), 5);
}

#[test]
fn a_lost_volume_is_replaced_and_its_replicas_are_made_anew() {
    let mut world = World::sharded(3, 4, 3);
    world.disks.remove(&Ordinal(1));
    world.pods.remove(&Ordinal(1));
    world.settle();
    world.conducted();
    assert_eq!(world.voters(), ["x-0", "x-1", "x-2"]);
    let shards = world.shards.as_ref().expect("shards");
    assert!(shards.voters.values().all(|voters| voters.len() == 3), "{shards:?}");
    assert_eq!(shards.replicas(&world.member(1)), 4);
}

#[test]
fn a_restart_waits_for_a_shard_that_cannot_spare_the_member() {
    let mut world = World::sharded(5, 2, 3);
    world.hold(2, &[0, 3, 4]);
    let observed = world.observe();
    let mut groups = observed.groups.clone();
    // One of three replicas lags, so neither of the others may stop. The highest ordinal would be restarted first.
    let group = groups.get_mut(&2).expect("the shard");
    group.caught_up.remove(&world.member(0));
    world.desired.workload_hash = "h2".into();
    let behind = althing_plan::model::Observed { groups, ..observed };
    let held = plan(&world.desired, &behind);
    assert!(held.steps.is_empty(), "{held:?}");
    assert_eq!(held.waits[0].reason, "ShardAtRisk");
    assert!(
        held.waits[0]
            .message
            .contains("without it 1 voters of shard 2 would be caught up, and 2 are needed"),
        "{held:?}"
    );
    world.settle();
    assert!(world.pods.values().all(|pod| pod.hash == "h2"));
}

#[test]
fn a_shard_without_quorum_is_told_in_the_clusters_conditions() {
    let mut world = World::sharded(3, 2, 3);
    let mut observed = world.observe();
    let group = observed.groups.get_mut(&2).expect("a shard");
    let only = group.active.first().cloned().expect("someone answers");
    group.active.retain(|member| *member == only);
    let planned = plan(&world.desired, &observed);
    let told: Vec<String> = assess(&world.desired, &observed, &planned)
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
    expect![[r#"
        Ready False QuorumLost: 1 of 3 voters of shard 2 answer, 2 are needed
        Available True Serving: 3 members serve
        Progressing False AsDeclared: nothing is left to do
        Degraded True QuorumLost: 1 of 3 voters of shard 2 answer, 2 are needed
        QuorumHealthy False QuorumLost: 1 of 3 voters of shard 2 answer, 2 are needed
    "#]]
    .assert_eq(&told.concat());
}
