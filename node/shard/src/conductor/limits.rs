//! How much may go on at once, and how long is too long.

use std::time::Duration;

/// Operations in the whole cluster. Each is a handful of small messages but for moves, which have a limit of their own.
const OPERATIONS_MAX: usize = 32;
/// Moves that bring a replica to one member or read one from it: each may be a whole snapshot on its disk and its network.
const COPIES_PER_MEMBER_MAX: usize = 2;
/// Leaderships handed over by one plan, to even them out: each is a short pause for its shard.
const TRANSFERS_MAX: usize = 2;
/// Replicas that one plan takes down: it is cheap and never urgent.
const CLOSES_MAX: usize = 64;
/// Silence after which a member does not count as reachable: several rounds of asking.
const REACH: Duration = Duration::from_secs(3);
/// Silence after which a member's replicas are made elsewhere. A restart with recovery is far quicker; a machine that burns is not.
const REPLACE_AFTER: Duration = Duration::from_secs(600);
/// Entries that a voter may lack and still count as caught up: what a leader under load writes within a few round trips.
const LAG_MAX: u64 = althing_raft::PROMOTE_LAG_MAX;
/// Seconds for which a merge may keep its right shard sealed before it is given up: clients wait meanwhile.
const SEALED_SECONDS_MAX: u64 = 5;

/// The limits of one cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Operations at once.
    pub operations: usize,
    /// Moves at once that a member takes part in as the one who gets or gives a copy.
    pub copies_per_member: usize,
    /// Leaderships handed over by one plan, to even them out.
    pub transfers: usize,
    /// Old replicas taken down by one plan.
    pub closes: usize,
    /// Silence after which a member does not count as reachable.
    pub reach: Duration,
    /// Silence after which its replicas are made elsewhere.
    pub replace_after: Duration,
    /// Entries that a voter may lack.
    pub lag: u64,
    /// Seconds for which a merge may keep a shard sealed.
    pub sealed_seconds: u64,
}

impl Limits {
    /// What production uses.
    pub const PRODUCTION: Self = Self {
        operations: OPERATIONS_MAX,
        copies_per_member: COPIES_PER_MEMBER_MAX,
        transfers: TRANSFERS_MAX,
        closes: CLOSES_MAX,
        reach: REACH,
        replace_after: REPLACE_AFTER,
        lag: LAG_MAX,
        sealed_seconds: SEALED_SECONDS_MAX,
    };
}
