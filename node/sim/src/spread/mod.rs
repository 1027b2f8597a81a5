//! A model of one keyspace on several shards: what `althing_shard::{route, txn, sequencer}` decide, run under faults.
//!
//! Contract: the same seed gives the same run. Shards are real state machines behind the simplest log that can lose its leader: what a
//! leader has in its log is committed in order, unless another one takes over, which keeps some of it. A replaced leader goes on
//! believing in itself for a while. Messages are late, lost and repeated; whoever runs a transaction may die between any two of its
//! steps; every process has a clock of another rate. The host's part (commands that wait for revisions, reads that wait for
//! commands) is a model here, see [`leader`]; whole clusters with the real host are the matter of `crate::world`.
//!
//! The verdict is a replay, see [`check`]: all that took effect, in the order of revisions, on one state machine with all the keys, must
//! give the answers that clients had, in an order that real time allows.

mod check;
mod client;
mod drive;
mod event;
mod group;
mod lead;
mod leader;
mod serve;
mod workload;
mod world;

use crate::rng::Rng;
use std::fmt;

/// A rule that can be broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// A sequencer answers only after its leadership was confirmed.
    SequencerConfirms,
    /// A sequencer that begins to lead starts above the ceiling.
    StartsAboveCeiling,
    /// A client hears of a transaction's success only when it was decided.
    AckAfterDecision,
    /// Reads wait at locks.
    ReadsHeedLocks,
    /// A read waits for the commands that wait for revisions.
    ReadsWaitForTickets,
    /// A read waits until its shard's leader is confirmed.
    ReadsConfirm,
    /// A revision that a leader has not used dies with its leadership.
    StampsDieWithLeadership,
    /// Whoever frees locks asks what was decided.
    RecoveryAsks,
    /// A decision is forgotten after all have finished.
    ForgetLast,
    /// A decision is forgotten only when nobody runs its transaction.
    ForgetTheDead,
    /// A transaction's revision is asked for after all have prepared.
    StampAfterPrepare,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::SequencerConfirms,
        Self::StartsAboveCeiling,
        Self::AckAfterDecision,
        Self::ReadsHeedLocks,
        Self::ReadsWaitForTickets,
        Self::ReadsConfirm,
        Self::StampsDieWithLeadership,
        Self::RecoveryAsks,
        Self::ForgetLast,
        Self::ForgetTheDead,
        Self::StampAfterPrepare,
    ];
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Everything that there is.
    Mixed,
    /// Writers count one key up and then one of another shard; readers look at both (etcd-api.md, 6.7, test 1).
    LongFork,
    /// Reads of all shards, each followed at once by the death of an idle shard's leader and a write to that shard (test 2).
    IdleRead,
    /// A lock as clients make it: who made the oldest key has it, and the keys lie on two shards (test 3).
    Mutex,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mixed, Self::LongFork, Self::IdleRead, Self::Mutex];
}

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Everything follows from it.
    pub seed: u64,
    /// What clients do.
    pub workload: Workload,
    /// What is broken.
    pub broken: Option<Rule>,
}

/// What a run exercised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requests that were answered with a result.
    pub done: u64,
    /// Requests that certainly did nothing.
    pub refused: u64,
    /// Requests of which nobody knows.
    pub unknown: u64,
    /// Writes over several shards that took effect.
    pub spread: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that met a lock.
    pub blocked: u64,
    /// Locks freed by others than who took them, and how many of these found a commit.
    pub recovered: (u64, u64),
    /// Changes of leadership, and how many of them were the sequencer's.
    pub elections: (u64, u64),
    /// Clients that died.
    pub crashes: u64,
    /// Events.
    pub events: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: Self) {
        self.done += other.done;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.spread += other.spread;
        self.reads += other.reads;
        self.blocked += other.blocked;
        self.recovered.0 += other.recovered.0;
        self.recovered.1 += other.recovered.1;
        self.elections.0 += other.elections.0;
        self.elections.1 += other.elections.1;
        self.crashes += other.crashes;
        self.events += other.events;
    }
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs one seed.
///
/// # Errors
/// The first promise that was broken.
pub fn run(run: Run) -> Result<Counts, Violation> {
    let mut world = world::World::new(run, Rng::split(run.seed, "spread", 0));
    world.chaos()?;
    world.calm()?;
    check::check(&world)?;
    Ok(world.counts)
}
