//! Random clusters under random failures: the world asserts at every step what must never happen; here, that the
//! cluster settles as declared once failures stop, and that nothing is left to do then.

mod world;

use std::collections::BTreeSet;

use althing_plan::model::{MemberId, Ordinal, Volume};
use althing_plan::{ConditionKind, ConditionStatus, assess, plan};
use proptest::prelude::*;
use world::{Shards, World};

/// What goes wrong, or what a person asks for.
#[derive(Clone, Debug)]
enum Event {
    /// Plan, and act until a crash after so many steps.
    Turn { steps: usize },
    /// A pod is deleted.
    KillPod(u32),
    /// A pod cannot be scheduled.
    Unschedulable(u32),
    /// It can again.
    Schedulable(u32),
    /// A volume and its pod are gone.
    LoseVolume(u32),
    /// A volume's object stays, its data does not.
    LoseData(u32),
    /// A person deletes a volume claim under a running pod.
    DeleteClaim(u32),
    /// `kubectl scale`.
    Scale(u32),
    /// A new version.
    Version(u8),
    /// Leadership moves by itself.
    Elect(u32),
    /// `spec.paused`.
    Pause(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let ordinal = 0..7u32;
    prop_oneof![
        12 => Just(Event::Turn { steps: usize::MAX }),
        6 => (0..4usize).prop_map(|steps| Event::Turn { steps }),
        2 => ordinal.clone().prop_map(Event::KillPod),
        1 => ordinal.clone().prop_map(Event::Unschedulable),
        1 => ordinal.clone().prop_map(Event::Schedulable),
        1 => ordinal.clone().prop_map(Event::LoseVolume),
        1 => ordinal.clone().prop_map(Event::LoseData),
        1 => ordinal.clone().prop_map(Event::DeleteClaim),
        2 => prop_oneof![Just(1u32), Just(3), Just(5), Just(7)].prop_map(Event::Scale),
        1 => any::<u8>().prop_map(Event::Version),
        1 => ordinal.prop_map(Event::Elect),
        1 => any::<bool>().prop_map(Event::Pause),
    ]
}

/// Whether the cluster outlives the loss of this volume: some majority of voters keeps its data. What it does not outlive
/// is an outage or a loss that no planner can mend, and is tested by itself.
fn outlives(world: &World, ordinal: u32) -> bool {
    let Some(config) = &world.config else {
        return false;
    };
    let Some(disk) = world.disks.get(&Ordinal(ordinal)) else {
        return true;
    };
    let holds = world
        .shards
        .as_ref()
        .is_some_and(|shards| shards.replicas(&disk.member) > 0);
    if !config.voters.contains(&disk.member) && !holds {
        return true;
    }
    let intact = |voters: &BTreeSet<MemberId>| {
        let kept = world
            .disks
            .iter()
            .filter(|(other, disk)| {
                other.0 != ordinal && !disk.lost && !disk.terminating && voters.contains(&disk.member)
            })
            .count();
        kept > voters.len() / 2
    };
    let shards = world.shards.iter().flat_map(|shards| shards.voters.values());
    let mut shards = shards.filter(|voters| !voters.is_empty());
    world.status_bootstrapped && intact(&config.voters) && shards.all(intact)
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Turn { steps } => {
            world.turn(*steps);
        }
        Event::KillPod(ordinal) => {
            world.pods.remove(&Ordinal(*ordinal));
        }
        Event::Unschedulable(ordinal) => set_pending(world, *ordinal, true),
        Event::Schedulable(ordinal) => set_pending(world, *ordinal, false),
        Event::LoseVolume(ordinal) if outlives(world, *ordinal) => {
            world.disks.remove(&Ordinal(*ordinal));
            world.pods.remove(&Ordinal(*ordinal));
        }
        Event::LoseData(ordinal) if outlives(world, *ordinal) => {
            if let Some(disk) = world.disks.get_mut(&Ordinal(*ordinal)) {
                disk.lost = true;
            }
        }
        Event::DeleteClaim(ordinal) if outlives(world, *ordinal) => {
            if let Some(disk) = world.disks.get_mut(&Ordinal(*ordinal)) {
                disk.terminating = true;
            }
        }
        Event::LoseVolume(_) | Event::LoseData(_) | Event::DeleteClaim(_) => {}
        Event::Scale(members) => world.desired.members = *members,
        Event::Version(version) => world.desired.workload_hash = format!("h{}", version % 3),
        Event::Elect(ordinal) => {
            let alive = world.alive();
            let id = world.disks.get(&Ordinal(*ordinal)).map(|disk| disk.member.clone());
            if let (Some(config), Some(id)) = (&mut world.config, id)
                && config.leader.is_some()
                && config.voters.contains(&id)
                && alive.contains(&id)
            {
                config.leader = Some(id);
            }
        }
        Event::Pause(paused) => world.desired.paused = *paused,
    }
}

fn set_pending(world: &mut World, ordinal: u32, pending: bool) {
    if let Some(pod) = world.pods.get_mut(&Ordinal(ordinal)) {
        pod.pending = pending;
    }
}

/// At least as many as find planted defects within seconds; `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    let asked = ProptestConfig::default();
    ProptestConfig {
        cases: asked.cases.max(512),
        ..asked
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_cluster_keeps_its_promises_under_failures_and_settles_after_them(
        members in prop_oneof![Just(1u32), Just(3), Just(5)],
        lag_rounds in 0..3u32,
        shards in prop::option::of((1..4usize, prop_oneof![Just(1usize), Just(3)])),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(members);
        world.lag_rounds = lag_rounds;
        world.shards = shards.map(|(shards, replicas)| Shards::new(shards, replicas));
        for event in &events {
            happen(&mut world, event);
        }
        // Failures stop.
        world.desired.paused = false;
        for pod in world.pods.values_mut() {
            pod.pending = false;
        }
        world.settle();
        if let Some((_, replicas)) = shards {
            world.conducted();
            world.settle();
            let shards = world.shards.as_ref().expect("there are some");
            let wanted = replicas.min(world.desired.members as usize);
            prop_assert!(shards.voters.values().all(|voters| voters.len() == wanted), "{:?}", shards);
            prop_assert!(shards.draining.is_empty(), "{:?}", shards);
        }

        let names: Vec<String> = (0..world.desired.members).map(|ordinal| format!("x-{ordinal}")).collect();
        prop_assert_eq!(world.voters(), names);
        let observed = world.observe();
        let after = plan(&world.desired, &observed);
        prop_assert!(after.done, "a second plan is empty: {:?}", after);
        prop_assert_eq!(observed.slots.len() as u32, world.desired.members, "no leftovers");
        for slot in observed.slots.values() {
            prop_assert_eq!(slot.workload_hash.as_deref(), Some(world.desired.workload_hash.as_str()));
            prop_assert_eq!(&slot.volume, &Volume::Present);
        }
        let assessment = assess(&world.desired, &observed, &after);
        for condition in &assessment.conditions {
            let expected = match condition.kind {
                ConditionKind::Ready | ConditionKind::Available | ConditionKind::QuorumHealthy => ConditionStatus::True,
                ConditionKind::Progressing | ConditionKind::Degraded => ConditionStatus::False,
            };
            prop_assert_eq!(condition.status, expected, "{:?}", condition);
        }
    }

    #[test]
    fn planning_is_a_function_of_what_is_seen(events in prop::collection::vec(event(), 0..30)) {
        let mut world = World::new(3);
        for event in &events {
            happen(&mut world, event);
            let observed = world.observe();
            prop_assert_eq!(plan(&world.desired, &observed), plan(&world.desired, &observed));
        }
    }
}
