//! One run's numbers, drawn from the seed.

use crate::profile::Profile;
use crate::rng::Rng;
use crate::world::conditions::{Churn, Conditions, MS, Weights};
use althing_shard::conductor::Limits;
use std::time::Duration;

/// Times in nanoseconds, chances in a thousand.
pub(crate) struct Weather {
    /// Of machines, network and the core.
    pub(crate) conditions: Conditions,
    /// How often somebody wishes for another map, about.
    pub(crate) wish_every: u64,
    /// Shards that are wished for at most.
    pub(crate) shards_max: u64,
    /// Whether keys are put in order by a hash.
    pub(crate) hashed: bool,
    /// How long a client's node tries.
    pub(crate) patience: u64,
    /// Longest time between the host's answer to a read and the look at the state.
    pub(crate) serve_max: u64,
    /// Whether clients write several keys at once.
    pub(crate) transactions: bool,
    /// The conductor's limits.
    pub(crate) limits: Limits,
}

impl Weather {
    pub(crate) fn draw(seed: u64, chaos_time: Option<u64>) -> Self {
        let mut rng = Rng::split(seed, "shards", 0);
        let drawn = Conditions::draw(Profile::Swarm, seed, chaos_time);
        let some = |rng: &mut Rng, per_mille: u64, most: u64| {
            if rng.chance(per_mille) { rng.between(1, most) } else { 0 }
        };
        let chaos_time = chaos_time.unwrap_or_else(|| rng.between(6_000, 14_000) * MS);
        let conditions = Conditions {
            members: usize::try_from(rng.between(3, 5)).expect("invariant: small"),
            born_together: true,
            churn: Churn::Fixed,
            append_bytes_max: usize::try_from(rng.between(256, 8192)).expect("invariant: small"),
            inflight_bytes_max: usize::try_from(rng.between(2048, 65_536)).expect("invariant: small"),
            // A change of the map is a few kilobytes.
            uncommitted_bytes_max: 256 << 10,
            segment_bytes: 64 << 10,
            clients: u32::try_from(rng.between(3, 6)).expect("invariant: small"),
            keys: rng.between(4, 12),
            operations: u32::try_from(rng.between(40, 120)).expect("invariant: small"),
            think_max: rng.pick(&[10, 50, 200]).expect("invariant: not empty") * MS,
            net_loss: drawn.net_loss.min(30),
            checkpoint_time: rng.between(1, 800) * MS,
            chaos_time,
            fault_every: rng.between(200, 2500) * MS,
            faults: Weights {
                crash: rng.between(1, 10),
                crash_all: some(&mut rng, 300, 3),
                pause: some(&mut rng, 500, 8),
                split: some(&mut rng, 500, 8),
                one_way: some(&mut rng, 300, 6),
                isolate_leader: some(&mut rng, 400, 8),
                heal: rng.between(3, 14),
                transfer: some(&mut rng, 500, 8),
                sync_error: some(&mut rng, 300, 3),
                slow_sync: some(&mut rng, 300, 6),
                disk_full: some(&mut rng, 200, 4),
                clock_jump: some(&mut rng, 300, 6),
                ..Weights::NONE
            },
            leases: None,
            ..drawn
        };
        Self {
            wish_every: rng.between(300, 3000) * MS,
            shards_max: rng.between(2, 5),
            hashed: rng.chance(300),
            patience: rng.between(500, 4000) * MS,
            serve_max: rng.pick(&[1, 1, 20]).expect("invariant: not empty") * MS,
            transactions: rng.chance(800),
            limits: Limits {
                reach: Duration::from_millis(rng.between(500, 3000)),
                replace_after: Duration::from_millis(rng.between(2_000, 60_000)),
                sealed_seconds: rng.between(1, 5),
                ..Limits::PRODUCTION
            },
            conditions,
        }
    }

    pub(crate) fn clients(&self) -> usize {
        usize::try_from(self.conditions.clients).expect("invariant: small")
    }
}
