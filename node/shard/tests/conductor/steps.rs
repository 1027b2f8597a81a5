//! Single decisions.

use crate::stories::{ROUNDS_MAX, spec, wish};
use crate::world::{Faults, World};
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_shard::conductor::{Action, Subject, Unstoppable, conduct, stoppable};
use althing_shard::map::{KeyspaceId, MemberState};
use althing_shard::meta::KeyspaceSpec;
use althing_store::ops::ShardCommand;
use bytes::Bytes;

fn stop(world: &World, member: u64) -> Result<(), Unstoppable> {
    stoppable(&world.meta, &world.observed, world.now, &world.limits, MemberId(member))
}

fn pending(world: &World) -> Vec<String> {
    let plan = conduct(&world.meta, &world.observed, world.now, &world.limits);
    let keyspace =
        |pending: &&althing_shard::conductor::Pending| pending.subject == Subject::Keyspace(KeyspaceId::DEFAULT);
    plan.pending
        .iter()
        .filter(keyspace)
        .map(|pending| pending.reason.clone())
        .collect()
}

#[test]
fn a_member_may_stop_only_while_every_shard_keeps_a_quorum_without_it() {
    let mut world = World::new(1, 3);
    world.settle(ROUNDS_MAX);
    assert_eq!((1..=3).map(|id| stop(&world, id)).collect::<Vec<_>>(), vec![Ok(()); 3]);
    world.flip(MemberId(2));
    for _ in 0..20 {
        let _ = world.step();
    }
    let error = stop(&world, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "without member 0000000000000001, shard 0 has no quorum that is caught up; wait until its other voters are"
    );
    assert_eq!(stop(&world, 2), Ok(()), "it is down: it takes nothing away");
    world.flip(MemberId(2));
    world.settle(ROUNDS_MAX);
    assert_eq!(stop(&world, 1), Ok(()));
}

#[test]
fn a_voter_that_has_confirmed_nothing_to_this_leader_is_not_caught_up_however_short_the_log_is() {
    let mut world = World::new(9, 3);
    wish(&mut world, "default", &spec(1, Some(3)));
    world.settle(ROUNDS_MAX);
    let group = GroupId::FIRST_SHARD;
    let leader = world.groups[&group].leader.unwrap();
    let [blank, other] = world.meta.shards[&group]
        .replicas
        .iter()
        .filter(|id| **id != leader)
        .collect::<Vec<_>>()[..]
    else {
        panic!("two followers")
    };
    let (blank, other) = (*blank, *other);
    let view = world.observed.members.get_mut(&leader).unwrap();
    let seen = view.groups.get_mut(&group).unwrap();
    assert!(
        seen.last.index.0 <= world.limits.lag,
        "{:?} would be lag enough",
        seen.last
    );
    let peer = seen.peers.get_mut(&blank).unwrap();
    (peer.matched, peer.active) = (Index::ZERO, true);
    assert_eq!(
        stop(&world, other.0),
        Err(Unstoppable::NoQuorum { group, member: other })
    );
    assert_eq!(stop(&world, blank.0), Ok(()), "it takes nothing away");
}

#[test]
fn the_only_replica_of_a_shard_does_not_stop() {
    let mut world = World::new(1, 3);
    wish(&mut world, "default", &spec(1, Some(1)));
    world.settle(ROUNDS_MAX);
    let (group, member) = (
        GroupId::FIRST_SHARD,
        world.meta.shards[&GroupId::FIRST_SHARD].replicas[0],
    );
    assert_eq!(stop(&world, member.0), Err(Unstoppable::NoQuorum { group, member }));
}

#[test]
fn the_only_replica_of_a_shard_moves_without_a_moment_without_one() {
    let mut world = World::new(2, 3);
    wish(&mut world, "default", &spec(1, Some(1)));
    world.settle(ROUNDS_MAX);
    let home = world.meta.shards[&GroupId::FIRST_SHARD].replicas[0];
    let drain = world.meta.set_member_state(home, MemberState::Draining).unwrap();
    world.wish(drain);
    world.settle(ROUNDS_MAX);
    world.check_rest();
    assert_ne!(world.meta.shards[&GroupId::FIRST_SHARD].replicas, vec![home]);
}

#[test]
fn a_keyspace_without_data_waits_to_be_cut_and_says_so() {
    let mut world = World::new(3, 3);
    world.clients = false;
    wish(&mut world, "default", &spec(3, Some(3)));
    world.settle(ROUNDS_MAX);
    assert_eq!(
        pending(&world),
        vec![
            "2 more shards are wanted and every other shard is busy, not as the map says, or has too few keys to be cut in the middle: it waits for data"
        ]
    );
}

#[test]
fn named_keys_are_cut_first_and_kept_longest() {
    let mut world = World::new(4, 3);
    world.clients = false;
    let key = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let named = |shards| KeyspaceSpec {
        split_keys: vec![key("050"), key("150")],
        ..spec(shards, Some(3))
    };
    wish(&mut world, "default", &named(3));
    world.settle(ROUNDS_MAX);
    world.check_rest();
    let starts = |world: &World| -> Vec<Bytes> {
        let shards = world.meta.shards_of(KeyspaceId::DEFAULT);
        shards.iter().map(|(_, shard)| shard.span.start.clone()).collect()
    };
    assert_eq!(starts(&world), vec![key(""), key("050"), key("150")]);
    world.clients = true;
    for _ in 0..50 {
        let _ = world.step();
    }
    wish(&mut world, "default", &named(5));
    world.settle(ROUNDS_MAX);
    wish(&mut world, "default", &named(3));
    world.settle(ROUNDS_MAX);
    world.check_rest();
    assert_eq!(starts(&world), vec![key(""), key("050"), key("150")]);
}

#[test]
fn nothing_is_merged_while_a_member_does_not_answer() {
    let mut world = World::new(5, 3);
    wish(&mut world, "default", &spec(4, Some(3)));
    world.settle(ROUNDS_MAX);
    world.flip(MemberId(3));
    for _ in 0..10 {
        let _ = world.step();
    }
    wish(&mut world, "default", &spec(2, Some(3)));
    for _ in 0..20 {
        let plan = world.step();
        assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    }
    assert_eq!(
        pending(&world),
        vec!["2 fewer shards are wanted and member 0000000000000003 does not answer"]
    );
    world.flip(MemberId(3));
    world.settle(ROUNDS_MAX);
    world.check_rest();
}

#[test]
fn a_merge_that_hangs_is_given_up_and_its_shard_serves_again() {
    let mut world = World::new(6, 3);
    wish(&mut world, "default", &spec(2, Some(3)));
    world.settle(ROUNDS_MAX);
    // Followers hear nothing, so none can confirm what it has.
    world.faults = Faults {
        lag: 100,
        ..Faults::default()
    };
    wish(&mut world, "default", &spec(1, Some(3)));
    let (mut sealed, mut longest) = (0, 0);
    for _ in 0..120 {
        let _ = world.step();
        let any = world.groups.values().any(|group| group.now().sealed.is_some());
        sealed = if any { sealed + 1 } else { 0 };
        longest = longest.max(sealed);
    }
    assert!(world.ended["merge given up"] > 0, "{:?}", world.ended);
    // Two rounds a second, and a few to seal and to unseal.
    let most = 2 * world.limits.sealed_seconds + 8;
    assert!((1..=most).contains(&longest), "a shard was sealed for {longest} rounds");
    world.faults = Faults::default();
    world.settle(ROUNDS_MAX);
    world.check_rest();
}

#[test]
fn a_merge_that_is_not_wanted_any_more_is_given_up_before_it_seals() {
    let mut world = World::new(7, 5);
    wish(&mut world, "default", &spec(4, Some(3)));
    world.settle(ROUNDS_MAX);
    wish(&mut world, "default", &spec(2, Some(3)));
    let _ = world.step();
    wish(&mut world, "default", &spec(4, Some(3)));
    let merges = world.ended.get("merge").copied();
    world.settle(ROUNDS_MAX);
    world.check_rest();
    assert_eq!(world.ended.get("merge").copied(), merges);
}

#[test]
fn a_late_seal_of_an_operation_that_is_over_is_undone() {
    let mut world = World::new(8, 3);
    wish(&mut world, "default", &spec(2, Some(3)));
    world.settle(ROUNDS_MAX);
    let over = world.meta.counters.next_operation - 1;
    let group = *world.meta.shards.keys().next().unwrap();
    let seal = |operation| Action::Command {
        leader: world.groups[&group].leader.unwrap(),
        group,
        command: ShardCommand::Seal { operation },
    };
    let (old, new) = (seal(over), seal(over + 1));
    world.execute(old, 0);
    assert_eq!(world.groups[&group].now().sealed, Some(over));
    world.settle(ROUNDS_MAX);
    world.check_rest();
    // A number that this map has not given out yet is a newer map's.
    world.execute(new, 0);
    for _ in 0..10 {
        let _ = world.step();
    }
    assert_eq!(world.groups[&group].now().sealed, Some(over + 1));
}

#[test]
fn a_keyspace_is_full_from_its_quota_on_until_it_holds_clearly_less_and_that_is_for_the_map_to_say() {
    let mut world = World::new(10, 3);
    wish(&mut world, "default", &spec(3, Some(3)));
    world.settle(ROUNDS_MAX);
    world.clients = false;
    let held = |world: &World| -> u64 {
        let shards = world.meta.shards_of(KeyspaceId::DEFAULT);
        let data = shards
            .iter()
            .map(|(group, _)| 100 * world.groups[group].now().data.len() as u64);
        data.sum()
    };
    let full = |world: &World| world.meta.keyspaces[&KeyspaceId::DEFAULT].full;
    let quota = |world: &mut World, quota_bytes| {
        let spec = KeyspaceSpec {
            quota_bytes: Some(quota_bytes),
            ..spec(3, Some(3))
        };
        wish(world, "default", &spec);
        world.settle(ROUNDS_MAX);
    };
    let held = held(&world);
    assert!(held >= 1000, "{held} bytes are too few to tell");
    quota(&mut world, held + 1);
    assert!(!full(&world));
    quota(&mut world, held);
    assert!(full(&world));
    assert!(
        pending(&world)[0].starts_with(&format!("it holds {held} of the {held} bytes")),
        "{:?}",
        pending(&world)
    );
    quota(&mut world, held + held / 20);
    assert!(full(&world), "a little room is none");
    quota(&mut world, 2 * held);
    assert!(!full(&world));
    assert_eq!(pending(&world), Vec::<String>::new());
}
