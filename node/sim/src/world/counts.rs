//! How much of what a run exercised.

/// Counts of what a run exercised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Steps of the world.
    pub events: u64,
    /// Terms with a leader.
    pub elections: u64,
    /// Logs whose tail was replaced.
    pub truncations: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Disks wiped.
    pub wipes: u64,
    /// Links or groups of links cut.
    pub cuts: u64,
    /// Machines stopped for a while.
    pub pauses: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Snapshots installed.
    pub installs: u64,
    /// Leadership transfers that took place.
    pub transfers: u64,
    /// Configuration changes applied.
    pub config_changes: u64,
    /// Of these, joint configurations entered.
    pub joint_changes: u64,
    /// Proposals sent on to a leader.
    pub forwards: u64,
    /// Operations that succeeded.
    pub ok: u64,
    /// Operations that certainly failed.
    pub failed: u64,
    /// Operations whose fate is open.
    pub unknown: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: Self) {
        let pairs = [
            (&mut self.events, other.events),
            (&mut self.elections, other.elections),
            (&mut self.truncations, other.truncations),
            (&mut self.crashes, other.crashes),
            (&mut self.wipes, other.wipes),
            (&mut self.cuts, other.cuts),
            (&mut self.pauses, other.pauses),
            (&mut self.sync_errors, other.sync_errors),
            (&mut self.installs, other.installs),
            (&mut self.transfers, other.transfers),
            (&mut self.config_changes, other.config_changes),
            (&mut self.joint_changes, other.joint_changes),
            (&mut self.forwards, other.forwards),
            (&mut self.ok, other.ok),
            (&mut self.failed, other.failed),
            (&mut self.unknown, other.unknown),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }
}
