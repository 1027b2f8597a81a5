//! What a cluster goes through.

use crate::world::{Faults, Mutant, World};
use althing_raft::ids::MemberId;
use althing_shard::map::MemberState;
use althing_shard::meta::KeyspaceSpec;
use althing_store::partition::Partitioning;
use std::collections::BTreeMap;

/// Rounds after which a world without faults must have come to rest. A round is half a second.
pub(crate) const ROUNDS_MAX: usize = 400;

pub(crate) fn wish(world: &mut World, name: &str, spec: &KeyspaceSpec) {
    let change = world.meta.put_keyspace(name, spec).unwrap();
    world.wish(change);
}

pub(crate) fn spec(shards: u32, replicas: Option<u32>) -> KeyspaceSpec {
    KeyspaceSpec {
        shards,
        replicas,
        ..KeyspaceSpec::default()
    }
}

pub(crate) fn hashed(shards: u32, replicas: Option<u32>) -> KeyspaceSpec {
    KeyspaceSpec {
        partitioning: Some(Partitioning::Hash {
            slots: 64,
            prefix_segments: None,
        }),
        ..spec(shards, replicas)
    }
}

#[test]
fn the_first_shard_spreads_over_all_members() {
    let mut world = World::new(1, 3);
    world.settle(ROUNDS_MAX);
    world.check_rest();
    let shard = world.meta.shards.values().next().unwrap();
    assert_eq!(shard.replicas, vec![MemberId(1), MemberId(2), MemberId(3)]);
}

#[test]
fn one_shard_becomes_eight_and_then_three_while_clients_write() {
    for (name, eight, three) in [
        ("range", spec(8, Some(3)), spec(3, Some(3))),
        ("hash", hashed(8, Some(3)), hashed(3, Some(3))),
    ] {
        let mut world = World::new(2, 5);
        world.settle(ROUNDS_MAX);
        if name == "hash" {
            wish(&mut world, "default", &hashed(1, Some(3)));
            world.acknowledged.clear();
        }
        wish(&mut world, "default", &eight);
        let up = world.settle(ROUNDS_MAX);
        world.check_rest();
        wish(&mut world, "default", &three);
        let down = world.settle(ROUNDS_MAX);
        world.check_rest();
        println!(
            "{name}: 1 -> 8 in {up} rounds, 8 -> 3 in {down}, {} writes refused",
            world.refused
        );
    }
}

#[test]
fn members_come_and_are_drained() {
    let mut world = World::new(3, 3);
    wish(&mut world, "default", &spec(6, Some(3)));
    world.settle(ROUNDS_MAX);
    world.check_rest();
    world.join(4, &[]);
    world.join(5, &[]);
    world.settle(ROUNDS_MAX);
    world.check_rest();
    let (replicas, leaders) = world.spread();
    assert!(replicas <= 1 && leaders <= 2, "{replicas} {leaders}");
    for id in [1, 4] {
        let drain = world
            .meta
            .set_member_state(MemberId(id), MemberState::Draining)
            .unwrap();
        world.wish(drain);
    }
    world.settle(ROUNDS_MAX);
    world.check_rest();
    assert!(world.meta.placed_on(MemberId(1)).is_empty() && world.meta.placed_on(MemberId(4)).is_empty());
    for id in [1, 4] {
        world.members.get_mut(&MemberId(id)).unwrap().joined = false;
    }
    world.settle(ROUNDS_MAX);
    assert_eq!(world.meta.members.len(), 3, "who has left is forgotten");
}

#[test]
fn keyspaces_are_made_and_dropped() {
    let mut world = World::new(4, 4);
    wish(&mut world, "events", &hashed(4, Some(3)));
    world.settle(ROUNDS_MAX);
    world.check_rest();
    let drop = world.meta.drop_keyspace("events").unwrap();
    world.wish(drop);
    world.settle(ROUNDS_MAX);
    world.check_rest();
    assert_eq!(world.meta.keyspaces.len(), 1);
}

#[test]
fn a_dead_member_is_replaced_and_its_old_replicas_go_when_it_returns() {
    let mut world = World::new(5, 4);
    wish(&mut world, "default", &spec(4, Some(3)));
    world.settle(ROUNDS_MAX);
    world.flip(MemberId(2));
    for _ in 0..200 {
        let _ = world.step();
    }
    assert!(world.meta.placed_on(MemberId(2)).is_empty());
    world.flip(MemberId(2));
    world.settle(ROUNDS_MAX);
    world.check_rest();
}

/// Worlds of each kind.
const WORLDS: u64 = 100;

const HARSH: Faults = Faults {
    lose: 20,
    repeat: 30,
    late: 10,
    delay: 12,
    stale: 30,
    die: 1,
    rise: 15,
    depose: 2,
    lag: 30,
};

/// Nothing goes wrong but that half of all orders come a second time, long after.
const BELATED: Faults = Faults {
    lose: 0,
    repeat: 0,
    late: 50,
    delay: 0,
    stale: 0,
    lag: 10,
    ..HARSH
};

/// Orders arrive and replicas do not.
const LAGGING: Faults = Faults {
    lose: 5,
    repeat: 5,
    late: 0,
    delay: 1,
    lag: 80,
    die: 0,
    ..HARSH
};

/// Five minutes of wishes, cancellations, drains and faults, then quiet.
fn ordeal(seed: u64, faults: Faults, mutant: Option<Mutant>) -> World {
    let mut world = World::new(seed, 5);
    (world.faults, world.mutant) = (faults, mutant);
    let hash = seed % 2 == 1;
    let of = |shards| {
        if hash {
            hashed(shards, Some(3))
        } else {
            spec(shards, Some(3))
        }
    };
    if hash {
        wish(&mut world, "default", &of(1));
    }
    for round in 0..600 {
        let _ = world.step();
        if round % 60 == 30 {
            let shards = u32::try_from(1 + world.random(8)).unwrap();
            wish(&mut world, "default", &of(shards));
        }
        if round % 100 == 50 {
            let member = MemberId(1 + world.random(5));
            let state = if world.chance(40) {
                MemberState::Draining
            } else {
                MemberState::Active
            };
            if let Ok(change) = world.meta.set_member_state(member, state) {
                world.wish(change);
            }
        }
        if round % 200 == 100 {
            wish(&mut world, "events", &spec(2, Some(3)));
        }
        if round % 200 == 180
            && let Ok(change) = world.meta.drop_keyspace("events")
        {
            world.wish(change);
        }
        let busy = world.meta.operations.len() as u64;
        if busy > 0 && world.chance(5) {
            let which = usize::try_from(world.random(busy)).unwrap();
            let operation = *world.meta.operations.keys().nth(which).unwrap();
            if let Ok(change) = world.meta.cancel(operation) {
                world.wish(change);
            }
        }
    }
    world.faults = Faults::default();
    for id in 1..=5 {
        if !world.up(MemberId(id)) {
            world.flip(MemberId(id));
        }
        if let Ok(change) = world.meta.set_member_state(MemberId(id), MemberState::Active) {
            world.wish(change);
        }
    }
    world.settle(ROUNDS_MAX);
    world.check_rest();
    world
}

#[test]
fn whatever_goes_wrong_nothing_is_lost_and_the_world_comes_to_rest() {
    let mut ended: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..WORLDS {
        let world = ordeal(seed, HARSH, None);
        for (kind, count) in world.ended {
            *ended.entry(kind).or_default() += count;
        }
    }
    println!("operations of {WORLDS} worlds: {ended:?}");
    let kinds = [
        "create",
        "sequence",
        "split",
        "merge",
        "move",
        "create given up",
        "sequence given up",
        "split given up",
        "merge given up",
        "move given up",
    ];
    for kind in kinds {
        assert!(
            ended.get(kind).is_some_and(|count| *count >= 10),
            "too few ends by {kind}: {ended:?}"
        );
    }
}

// The guard of `Configure` is not among them: a leader takes only changes that fit its configuration, so a late one costs a detour and
// no data; the world would have to be lucky to see one between the last two steps of a merge.
#[test]
fn the_world_notices_what_breaks_the_contracts_of_actions() {
    let mutants = [
        (Mutant::AnyVersion, HARSH),
        (Mutant::CloseAnyway, BELATED),
        (Mutant::ConfirmBlindly, LAGGING),
        (Mutant::AnyEpoch, HARSH),
        (Mutant::BornAgain, HARSH),
        (Mutant::StartFromZero, HARSH),
    ];
    let mut survivors = Vec::new();
    for (mutant, faults) in mutants {
        let fails = |seed: &u64| std::panic::catch_unwind(|| ordeal(*seed, faults, Some(mutant))).is_err();
        let noticed = (0..WORLDS).find(fails);
        println!("{mutant:?}: noticed by seed {noticed:?}");
        if noticed.is_none() {
            survivors.push(mutant);
        }
    }
    assert_eq!(survivors, vec![], "nobody noticed these");
}
