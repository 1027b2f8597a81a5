//! A keyspace of several shards against the flat model: whatever is split, joined, moved, crashed and prepared in between, all shards
//! together are one keyspace.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "common/arb.rs"]
mod arb;
mod common;
#[path = "common/flat.rs"]
mod flat;
#[path = "common/world.rs"]
mod world;

use althing_store::ops::Partitioning;
use althing_store::{SledOptions, SledStore};
use proptest::prelude::*;
use world::{Journal, steps};

const HASH: Partitioning = Partitioning::Hash {
    slots: 16,
    prefix_segments: None,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn shards_of_ranges_are_one_keyspace_whatever_a_crash_leaves(steps in steps()) {
        world::run(steps, Partitioning::Range, Journal::default(), Journal::crash)?;
    }

    #[test]
    fn shards_of_slots_are_one_keyspace_whatever_a_crash_leaves(steps in steps()) {
        world::run(steps, HASH, Journal::default(), Journal::crash)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn shards_over_sled_are_one_keyspace(steps in steps(), hashed: bool) {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), SledOptions { cache_bytes: 1 << 20 }).unwrap().0;
        // What it keeps of a crash is for the tests of the engine.
        let partitioning = if hashed { HASH } else { Partitioning::Range };
        world::run(steps, partitioning, store, |store, _| store.clone())?;
    }
}
