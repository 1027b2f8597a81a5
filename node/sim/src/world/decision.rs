//! What was chosen in a run, as data: the bad luck, and what clients asked for. A run can be repeated from such a list
//! without drawing again, and a list can be made shorter, which a seed cannot.

use super::conditions::{Conditions, MS};
use super::wishes::Wish;
use crate::history::Op;
use serde::{Deserialize, Serialize};

/// One piece of bad luck, with everything that was chosen about it. Machines are numbers from 0; times in nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub(crate) enum Fault {
    /// A process dies and comes back.
    Crash { machine: usize, down_ns: u64 },
    /// It dies right after the next installation of a snapshot.
    CrashAtInstall { machine: usize, down_ns: u64 },
    /// A snapshot of whoever leads then comes although it is not needed: a stream that was given up and goes on.
    StraySnapshot { machine: usize },
    /// It dies again and again, soon after each start.
    Storm { machine: usize, times: u64, every_ns: u64 },
    /// A machine stops for a while (a virtual machine that migrates, a process that swaps).
    Pause { machine: usize, for_ns: u64 },
    /// Links between the machines in `side` (a bit each) and the others are cut; who notices at once is a bit each in
    /// `noticed`.
    Split { side: u64, noticed: u64 },
    /// One direction of one link is cut.
    OneWay { from: usize, to: usize },
    /// Whoever leads then is cut off.
    IsolateLeader { noticed: u64 },
    /// A link breaks and works in turns.
    Flap {
        one: usize,
        other: usize,
        times: u64,
        every_ns: u64,
    },
    /// All links work again.
    Heal,
    /// Whoever leads then (or `instead`, if nobody does) is asked to hand over.
    Transfer { to: Option<usize>, instead: usize },
    /// The next sync of a machine fails.
    SyncError { machine: usize },
    /// Syncs of a machine take long.
    SlowSync { machine: usize, sync_ns: u64, for_ns: u64 },
    /// A machine's disk has no space for new files for a while.
    DiskFull { machine: usize, for_ns: u64 },
    /// A machine's clock jumps ahead.
    ClockJump { machine: usize, by_ns: u64 },
    /// Whoever leads then (or `instead`, if nobody does) is asked to have reads answered in another way.
    Reads { wish: Wish, instead: usize },
    /// A machine's clock runs at another rate from now on: so many parts per million above true time, or below it.
    Drift { machine: usize, ppm: i64 },
    /// One member more is wanted, or one less.
    Scale { machine: usize, join: bool },
    /// Another set of members (a bit each) is wanted, all at once.
    Exchange { next: u64 },
    /// A disk is lost, if the cluster can bear it.
    Wipe { machine: usize, down_ns: u64 },
    /// A bit of a sealed segment flips, if the cluster can bear the loss of that copy. `at` chooses the place.
    FlipBit { machine: usize, at: u64, down_ns: u64 },
}

/// A fault and its time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) at_ns: u64,
    #[serde(flatten)]
    pub(crate) fault: Fault,
}

/// An operation that a client begins at this time, or as soon as the one before has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub(crate) at_ns: u64,
    pub(crate) client: usize,
    pub(crate) machine: usize,
    pub(crate) op: Op,
}

/// What a run gets after its last decision before everything is repaired, when it is made shorter.
const SETTLE: u64 = 2_000 * MS;

/// A run as data. What is not a decision (delays, jitter, what a crash leaves on a disk) still follows from the seed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is about.
    pub note: String,
    /// The rule that must be broken for this case to fail; a case without one must always pass.
    pub mutant: Option<String>,
    /// Of everything that is not a decision.
    pub seed: u64,
    pub(crate) conditions: Conditions,
    pub(crate) faults: Vec<Decision>,
    pub(crate) operations: Vec<Planned>,
}

impl Case {
    /// Ways to make the weather plainer, each worth a try.
    pub(crate) const SIMPLER: [fn(&mut Self); 8] = [
        |case| case.conditions.net_loss = 0,
        |case| case.conditions.net_duplicate = 0,
        |case| case.conditions.net_spike = 0,
        |case| case.conditions.clock_drift_ppm = 0,
        |case| case.conditions.members = case.conditions.members.min(3),
        |case| case.conditions.clients = case.conditions.clients.min(1),
        |case| case.conditions.born_together = true,
        // Repair comes right after the last decision.
        |case| {
            let faults = case.faults.iter().map(|fault| fault.at_ns);
            let last = faults
                .chain(case.operations.iter().map(|operation| operation.at_ns))
                .max();
            case.conditions.chaos_time = case.conditions.chaos_time.min(last.unwrap_or(0) + SETTLE);
        },
    ];

    /// How many faults it has.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.faults.len()
    }

    /// How many operations it has.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// As a file: one line for each decision, so that a difference between two can be read.
    ///
    /// # Panics
    /// Never: a case is plain data.
    #[must_use]
    pub fn to_json(&self) -> String {
        let plain = |value: Result<String, serde_json::Error>| value.expect("invariant: a case is plain data");
        let list = |lines: Vec<String>| {
            if lines.is_empty() {
                "[]".to_owned()
            } else {
                format!("[\n    {}\n  ]", lines.join(",\n    "))
            }
        };
        let faults = self.faults.iter().map(|fault| plain(serde_json::to_string(fault)));
        let operations = self.operations.iter().map(|op| plain(serde_json::to_string(op)));
        format!(
            "{{\n  \"note\": {},\n  \"mutant\": {},\n  \"seed\": {},\n  \"conditions\": {},\n  \"faults\": {},\n  \"operations\": {}\n}}\n",
            plain(serde_json::to_string(&self.note)),
            plain(serde_json::to_string(&self.mutant)),
            self.seed,
            plain(serde_json::to_string(&self.conditions)),
            list(faults.collect()),
            list(operations.collect()),
        )
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// If the text is no case; the error says where.
    pub fn from_json(text: &str) -> Result<Self, crate::SimError> {
        serde_json::from_str(text).map_err(crate::SimError::Case)
    }
}
