//! What one run looks like in numbers: all drawn from the seed, within what its profile allows.

use crate::profile::Profile;
use crate::rng::Rng;
use althing_raft::roster::{DRIFT_PPM_MAX, DRIFT_PPM_MIN};
use althing_shard::policy::CutPolicy;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One millisecond of simulated time, in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// Machines of a run: five members at most, and one that waits.
pub(crate) const MACHINES_MAX: usize = 6;
/// Chance that a client rests after an operation.
pub(crate) const REST_PER_MILLE: u64 = 100;

/// How membership moves during a run. Kept apart, because a wiped disk counts as a lost copy: safe only
/// while no other change could make the lost copy part of a majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Churn {
    /// Not at all.
    Fixed,
    /// Members are added and removed.
    Scale,
    /// Several members are exchanged at once, by joint consensus.
    Joint,
    /// Disks are wiped, and the members replaced under new ids.
    Wipe,
}

/// What read leases add to the weather.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseWeather {
    /// The bound on clock rates that members are told.
    pub(crate) drift_bound_ppm: u32,
    /// Whether local reads owe the revisions of their keys only.
    pub(crate) revisions_of_keys: bool,
    /// How far from true time rates really are, up and down.
    pub(crate) drift_ppm: u64,
    pub(crate) demote_after: Duration,
    /// Chance that an operation is a read, beyond the usual mixture.
    pub(crate) reads_per_mille: u64,
    /// Time between the host's answer to a read and the look at the state.
    pub(crate) serve_time: (u64, u64),
}

/// One run's numbers. Times in nanoseconds, chances in a thousand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conditions {
    /// Members at first.
    pub(crate) members: usize,
    /// Whether they begin as one configuration, or as one voter that the others join.
    pub(crate) born_together: bool,
    pub(crate) churn: Churn,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) append_bytes_max: usize,
    pub(crate) inflight_appends_max: usize,
    pub(crate) inflight_bytes_max: usize,
    pub(crate) uncommitted_bytes_max: usize,
    pub(crate) segment_bytes: u64,
    /// How the log is cut; see [`CutPolicy`].
    pub(crate) tail_entries: u64,
    pub(crate) step_entries: u64,
    pub(crate) log_bytes_max: usize,

    pub(crate) clients: u32,
    pub(crate) keys: u64,
    pub(crate) operations: u32,
    pub(crate) think_max: u64,
    /// Longest rest between two bursts of a client; with a chance of [`REST_PER_MILLE`] an operation.
    pub(crate) rest_max: u64,
    pub(crate) patience: u64,
    /// Chance that a client stays at its machine for the next operation.
    pub(crate) sticky: u64,

    pub(crate) net_delay: (u64, u64),
    pub(crate) net_spike: u64,
    pub(crate) net_loss: u64,
    pub(crate) net_duplicate: u64,
    pub(crate) sync_time: (u64, u64),
    pub(crate) apply_time: (u64, u64),
    pub(crate) checkpoint_every: u64,
    /// Longest time until a checkpoint is durable.
    pub(crate) checkpoint_time: u64,
    pub(crate) compact_at_boot: u64,
    /// How much faster than true time a clock may run in profiles without leases.
    pub(crate) clock_drift_ppm: u64,

    /// Idleness after which a group hibernates, if it may.
    #[serde(default)]
    pub(crate) hibernate_after: Option<Duration>,
    /// What read leases add, if they are used.
    #[serde(default)]
    pub(crate) leases: Option<LeaseWeather>,

    pub(crate) chaos_time: u64,
    pub(crate) fault_every: u64,
    /// Weights of the kinds of fault.
    #[serde(skip, default = "Weights::none")]
    pub(crate) faults: Weights,
}

/// How often each kind of fault is chosen, relative to the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Weights {
    pub(crate) crash: u64,
    pub(crate) crash_all: u64,
    pub(crate) install_crash: u64,
    pub(crate) stray_snapshot: u64,
    pub(crate) storm: u64,
    pub(crate) pause: u64,
    pub(crate) split: u64,
    pub(crate) one_way: u64,
    pub(crate) isolate_leader: u64,
    pub(crate) flap: u64,
    pub(crate) heal: u64,
    pub(crate) transfer: u64,
    pub(crate) sync_error: u64,
    pub(crate) slow_sync: u64,
    pub(crate) disk_full: u64,
    pub(crate) clock_jump: u64,
    pub(crate) membership: u64,
    /// Another way to answer reads.
    pub(crate) reads: u64,
    /// A clock changes its rate.
    pub(crate) drift: u64,
}

impl Weights {
    /// Of a run that is repeated: its faults are known.
    fn none() -> Self {
        Self::NONE
    }

    /// No fault at all.
    pub(crate) const NONE: Self = Self {
        crash: 0,
        crash_all: 0,
        install_crash: 0,
        stray_snapshot: 0,
        storm: 0,
        pause: 0,
        split: 0,
        one_way: 0,
        isolate_leader: 0,
        flap: 0,
        heal: 0,
        transfer: 0,
        sync_error: 0,
        slow_sync: 0,
        disk_full: 0,
        clock_jump: 0,
        membership: 0,
        reads: 0,
        drift: 0,
    };
}

impl Conditions {
    /// The run of a seed. Chaos lasts `chaos_time` if the caller wants it to.
    pub(crate) fn draw(profile: Profile, seed: u64, chaos_time: Option<u64>) -> Self {
        let mut rng = Rng::split(seed, "profile", 0);
        let drawn = Self::swarm(&mut rng);
        let mut drawn = match profile {
            Profile::Calm => drawn.calm(&mut rng),
            // Its own numbers are drawn elsewhere.
            Profile::Swarm | Profile::Shards => drawn,
            Profile::LeaseHeavy => drawn.leased(&mut rng),
            Profile::WildClocks => {
                let drawn = drawn.leased(&mut rng);
                let wild = LeaseWeather {
                    drift_ppm: rng.between(300_000, 800_000),
                    drift_bound_ppm: DRIFT_PPM_MIN,
                    ..drawn.leases.expect("invariant: just drawn")
                };
                Self {
                    leases: Some(wild),
                    ..drawn
                }
            }
        };
        // From dice of its own: what was found without hibernation stays what it was.
        let mut rng = Rng::split(seed, "hibernation", 0);
        let spell = drawn.heartbeat_interval * u32::try_from(rng.between(1, 20)).expect("invariant: small");
        drawn.hibernate_after = rng.chance(600).then_some(spell);
        drawn.chaos_time = chaos_time.unwrap_or(drawn.chaos_time);
        // A client rests now and then, so that its operations come in bursts and last about as long as chaos does.
        drawn.rest_max = 2 * 1000 / REST_PER_MILLE * drawn.chaos_time / u64::from(drawn.operations);
        drawn
    }

    /// Whether a promise of that length is always renewed in time in calm weather: it is asked for once a heartbeat, and the answer may
    /// take a round trip; both ends take a little off for their clocks.
    pub(super) fn outlives_a_round(&self, lease: Duration) -> bool {
        let round = Duration::from_nanos(2 * self.net_delay.1) + 2 * self.heartbeat_interval;
        lease * 9 / 10 > round
    }

    /// Whether clocks are beyond the bound, so that leases promise nothing.
    pub(crate) fn wild(&self) -> bool {
        self.leases
            .is_some_and(|leases| leases.drift_ppm > u64::from(leases.drift_bound_ppm))
    }

    pub(crate) fn drift_bound_ppm(&self) -> u32 {
        self.leases.map_or(DRIFT_PPM_MIN, |leases| leases.drift_bound_ppm)
    }

    pub(crate) fn demote_after(&self) -> Duration {
        self.leases
            .map_or(self.heartbeat_interval * 4, |leases| leases.demote_after)
    }

    /// What a repeated run needs of it.
    pub(crate) fn without_dice(&self) -> Self {
        Self {
            faults: Weights::NONE,
            ..self.clone()
        }
    }

    pub(crate) fn cut(&self) -> CutPolicy {
        CutPolicy {
            tail_entries: self.tail_entries,
            log_bytes_max: self.log_bytes_max,
            step_entries: self.step_entries,
            // Members of this world never come back under the same id.
            behind_removals: false,
        }
    }

    /// The same without bad luck, and with more to do.
    fn calm(self, rng: &mut Rng) -> Self {
        Self {
            churn: match self.churn {
                // A lost disk is bad luck.
                Churn::Wipe => Churn::Scale,
                Churn::Fixed | Churn::Scale | Churn::Joint => self.churn,
            },
            operations: 2 * self.operations,
            // Nobody loses patience while nothing fails.
            patience: self.patience.max(2000 * MS),
            net_delay: (MS / 10, 2 * MS),
            net_spike: 0,
            net_loss: 0,
            net_duplicate: 0,
            sync_time: (MS / 10, 2 * MS),
            apply_time: (MS / 100, MS),
            faults: Weights {
                transfer: rng.between(1, 8),
                membership: rng.between(1, 8),
                ..Weights::NONE
            },
            ..self
        }
    }

    /// The same with read leases, and the bad luck that they fear: partial cuts, pauses, crashes shorter than a lease, clocks.
    fn leased(self, rng: &mut Rng) -> Self {
        let drift_bound_ppm = *rng
            .pick(&[20_000_u32, 100_000, DRIFT_PPM_MAX])
            .expect("invariant: not empty");
        let heartbeat = u64::try_from(self.heartbeat_interval.as_nanos()).expect("invariant: short");
        Self {
            members: match self.churn {
                Churn::Wipe => self.members,
                Churn::Fixed | Churn::Scale | Churn::Joint => self.members.max(3),
            },
            leases: Some(LeaseWeather {
                drift_bound_ppm,
                revisions_of_keys: rng.chance(500),
                // Within the bound, but for what rounding to nanoseconds may add.
                drift_ppm: u64::from(drift_bound_ppm) * 99 / 100,
                demote_after: Duration::from_nanos(heartbeat * rng.between(3, 5)),
                reads_per_mille: rng.between(200, 800),
                serve_time: (MS / 100, rng.between(1, 50) * MS),
            }),
            clock_drift_ppm: 0,
            clients: self.clients + 3,
            operations: 2 * self.operations,
            think_max: rng.between(1, 100) * MS,
            sticky: rng.between(0, 900),
            fault_every: rng.between(50, 800) * MS,
            faults: Weights {
                pause: rng.between(0, 6),
                one_way: rng.between(1, 10),
                split: rng.between(0, 6),
                heal: rng.between(4, 14),
                transfer: rng.between(0, 3),
                crash: rng.between(0, 5),
                membership: rng.between(0, 4),
                reads: rng.between(1, 4),
                drift: rng.between(1, 8),
                // A jump is drift without a bound.
                clock_jump: 0,
                ..self.faults
            },
            ..self
        }
    }

    fn swarm(rng: &mut Rng) -> Self {
        let churn = *rng
            .pick(&[Churn::Fixed, Churn::Scale, Churn::Joint, Churn::Wipe])
            .expect("invariant: not empty");
        let members = match churn {
            Churn::Wipe => 3 + 2 * usize::from(rng.chance(300)),
            Churn::Fixed | Churn::Scale | Churn::Joint => {
                [1, 2, 3, 3, 3, 3, 3, 4, 5, 5][usize::try_from(rng.below(10)).expect("invariant: below ten")]
            }
        };
        let heartbeat = rng.between(20, 100) * MS;
        let maybe = |rng: &mut Rng, per_mille: u64, low: u64, high: u64| {
            if rng.chance(per_mille) {
                rng.between(low, high)
            } else {
                0
            }
        };
        let slow_net = rng.chance(250);
        let slow_disk = rng.chance(250);
        let slow_apply = rng.chance(200);
        Self {
            members,
            born_together: rng.chance(500),
            churn,
            election_timeout: Duration::from_nanos(heartbeat * rng.between(5, 10)),
            heartbeat_interval: Duration::from_nanos(heartbeat),
            append_bytes_max: usize::try_from(rng.between(64, 4096)).expect("invariant: small"),
            inflight_appends_max: usize::try_from(rng.between(1, 8)).expect("invariant: small"),
            inflight_bytes_max: usize::try_from(rng.between(64, 16_384)).expect("invariant: small"),
            uncommitted_bytes_max: usize::try_from(rng.between(150, 4096)).expect("invariant: small"),
            segment_bytes: 8 * rng.between(512, 4096),
            tail_entries: rng.below(60),
            step_entries: rng.between(1, 30),
            log_bytes_max: usize::try_from(rng.between(4 << 10, 256 << 10)).expect("invariant: small"),

            clients: u32::try_from(rng.between(2, 6)).expect("invariant: small"),
            keys: rng.between(1, 4),
            operations: u32::try_from(rng.between(40, 160)).expect("invariant: small"),
            // Often short: a stale read needs a write elsewhere a moment before.
            think_max: rng.pick(&[2, 10, 50, 400]).expect("invariant: not empty") * MS,
            rest_max: 0,
            patience: rng.between(200, 4000) * MS,
            sticky: rng.below(1000),

            net_delay: if slow_net {
                (10 * MS, 80 * MS)
            } else {
                (MS / 10, 3 * MS)
            },
            net_spike: maybe(rng, 300, 1, 30),
            net_loss: maybe(rng, 500, 1, 100),
            net_duplicate: maybe(rng, 500, 1, 100),
            sync_time: if slow_disk {
                (5 * MS, 60 * MS)
            } else {
                (MS / 10, 2 * MS)
            },
            apply_time: if slow_apply {
                (10 * MS, 150 * MS)
            } else {
                (MS / 100, MS)
            },
            checkpoint_every: rng.between(100, 5000) * MS,
            checkpoint_time: rng.between(1, 1500) * MS,
            compact_at_boot: rng.below(1000),
            clock_drift_ppm: maybe(rng, 500, 1, 20_000),

            hibernate_after: None,
            leases: None,

            chaos_time: rng.between(10_000, 30_000) * MS,
            fault_every: rng.between(100, 3000) * MS,
            faults: Weights {
                crash: rng.between(1, 10),
                crash_all: maybe(rng, 300, 1, 3),
                install_crash: maybe(rng, 300, 1, 8),
                stray_snapshot: maybe(rng, 500, 1, 20),
                storm: maybe(rng, 300, 1, 5),
                pause: maybe(rng, 500, 1, 8),
                split: maybe(rng, 600, 1, 8),
                one_way: maybe(rng, 400, 1, 8),
                isolate_leader: maybe(rng, 400, 1, 8),
                flap: maybe(rng, 300, 1, 8),
                heal: rng.between(1, 10),
                transfer: maybe(rng, 500, 1, 8),
                sync_error: maybe(rng, 300, 1, 3),
                slow_sync: maybe(rng, 300, 1, 6),
                disk_full: maybe(rng, 300, 1, 6),
                clock_jump: maybe(rng, 300, 1, 6),
                membership: rng.between(2, 10),
                reads: 0,
                drift: 0,
            },
        }
    }
}
