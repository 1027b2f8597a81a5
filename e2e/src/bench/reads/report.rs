//! From samples to what is shown: figures by mode and site, goals. Pure.

use std::time::Duration;

use serde::Serialize;

use super::super::report::Goal;
use super::measure::{Samples, Traffic};
use super::plan::Mode;
use super::sites::{self, Distances, SITES};

/// At least so many times lower is the mean read latency of roster leases than that of leader leases to be.
const FASTER_MIN: f64 = 5.0;
/// So long may nobody be able to write after a responder was killed.
const GAP_MAX: Duration = Duration::from_millis(1500);
/// So many of the longest round trips may a planned change of rosters take.
const CHANGE_RTTS_MAX: f64 = 2.5;
/// Messages of one read that count as none: heartbeats do not come by the clock, and one more or less in a window is no read's.
const NO_MESSAGES: f64 = 0.01;

/// How long requests took, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// How many there were.
    pub count: usize,
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

impl Latency {
    /// `None` of nothing.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            count: sorted.len(),
            mean_ms: sorted.iter().sum::<f64>() / sorted.len() as f64,
            p50_ms: percentile(&sorted, 50)?,
            p99_ms: percentile(&sorted, 99)?,
        })
    }
}

/// The smallest value that so many of a hundred do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// One site in one mode.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteLine {
    /// Its name.
    pub site: &'static str,
    /// Reads of its clients.
    pub reads: Latency,
    /// Their writes.
    pub writes: Latency,
}

/// One mode.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModeLine {
    /// [`Mode::name`].
    pub mode: &'static str,
    /// One per site.
    pub sites: Vec<SiteLine>,
    /// The mean of the sites' mean read latencies: sites near the leader answer more requests in the same time, and must not count
    /// more for it.
    pub mean_read_ms: f64,
    /// The same of writes.
    pub mean_write_ms: f64,
    /// The mean read latency of all sites in each round, in order: how much it wavered.
    pub rounds: Vec<f64>,
    /// Requests without an answer.
    pub failed: usize,
    /// Messages between members that one read costs, beside those that are sent while nobody reads.
    pub messages_per_read: f64,
    /// Bytes, likewise.
    pub bytes_per_read: f64,
    /// The share of reads that members answered without a message.
    pub local_share: f64,
}

impl ModeLine {
    /// `None` if a site had no read or no write.
    pub fn new(mode: Mode, rounds: &[Samples], traffic: Traffic) -> Option<Self> {
        let mut all = Samples::default();
        rounds.iter().for_each(|round| all.extend(round.clone()));
        let lines = (0..SITES).map(|site| {
            Some(SiteLine {
                site: sites::NAMES[site],
                reads: Latency::of(&all.reads[site])?,
                writes: Latency::of(&all.writes[site])?,
            })
        });
        let lines: Vec<SiteLine> = lines.collect::<Option<_>>()?;
        let rounds = rounds.iter().map(|round| {
            let means: Option<Vec<f64>> = round
                .reads
                .iter()
                .map(|reads| Some(Latency::of(reads)?.mean_ms))
                .collect();
            means.map(|means| mean(means.into_iter()))
        });
        Some(Self {
            mode: mode.name(),
            mean_read_ms: mean(lines.iter().map(|line| line.reads.mean_ms)),
            mean_write_ms: mean(lines.iter().map(|line| line.writes.mean_ms)),
            sites: lines,
            rounds: rounds.collect::<Option<_>>()?,
            failed: all.failed,
            messages_per_read: traffic.messages_per_read(),
            bytes_per_read: traffic.bytes_per_read(),
            local_share: traffic.local_share(),
        })
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// A responder is killed.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Killed {
    /// Where it was.
    pub site: &'static str,
    /// The longest time without an acknowledged write of anybody, in each trial, in milliseconds.
    pub write_gaps_ms: Vec<f64>,
}

/// Rosters are changed on purpose, while everybody is well.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// From the leader's making of a new roster until every responder answers reads under it, in each trial, in milliseconds. A responder
    /// leaves, and comes back, in turns.
    pub took_ms: Vec<f64>,
    /// The same in round trips between the two members that are farthest from each other.
    pub took_rtts: Vec<f64>,
    /// The longest time without an acknowledged write meanwhile.
    pub write_gaps_ms: Vec<f64>,
    /// The same while nothing changes.
    pub calm_gap_ms: f64,
}

/// One trial.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Change {
    /// As in [`Changes::took_ms`].
    pub took: Duration,
    /// As in [`Changes::write_gaps_ms`].
    pub write_gap: Duration,
}

/// Where and how it was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Processors, shared by all members, the clients and what delays frames.
    pub cores: usize,
    /// Type of the filesystem that all members' data lie on.
    pub filesystem: String,
    /// How far members are from each other.
    pub distances: Distances,
    /// Clients at each site; they ask the member there.
    pub clients_per_site: u32,
    /// From one request of a client to its next.
    pub period_ms: u64,
    /// Puts in a thousand requests; the rest are gets.
    pub writes_per_mille: u16,
    /// Keys.
    pub keys: u32,
    /// Bytes of values.
    pub value_bytes: usize,
    /// Rounds; in each, every mode had its turn.
    pub rounds: usize,
    /// Seconds of each turn.
    pub seconds: u64,
    /// Our version.
    pub althing: &'static str,
}

/// What the judge says of everything that clients saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// Requests in the history, over all modes, kills and changes.
    pub requests: usize,
    /// Whether one etcd at one place could have answered so, and every acknowledged write is there in the end.
    pub linearizable: bool,
}

/// Everything.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where and how.
    pub setting: Setting,
    /// One per mode.
    pub modes: Vec<ModeLine>,
    /// Leader leases' mean read latency by that of roster leases.
    pub faster: f64,
    /// The same of roster leases whose revisions are those of keys.
    pub faster_own_keys: f64,
    /// After a kill.
    pub killed: Killed,
    /// After changes.
    pub changes: Changes,
    /// By whom and how.
    pub judged: Judged,
    /// Goals and whether they are reached.
    pub goals: Vec<Goal>,
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What was measured beside the modes.
#[derive(Clone, PartialEq, Debug)]
pub struct Trials {
    /// Write gaps after kills.
    pub killed: Vec<Duration>,
    /// Changes.
    pub changes: Vec<Change>,
    /// The write gap while nothing happens.
    pub calm: Duration,
}

impl Report {
    /// Puts it together.
    pub fn new(setting: Setting, modes: Vec<ModeLine>, killed: &'static str, trials: &Trials, judged: Judged) -> Self {
        let mean_of = |mode: Mode| {
            let line = modes.iter().find(|line| line.mode == mode.name());
            line.map_or(f64::NAN, |line| line.mean_read_ms)
        };
        let faster = mean_of(Mode::LeaderLease) / mean_of(Mode::RosterLease);
        let faster_own_keys = mean_of(Mode::LeaderLease) / mean_of(Mode::RosterLeaseOfKeys);
        let rtt = sites::longest_rtt().as_secs_f64();
        let changes = Changes {
            took_ms: trials.changes.iter().map(|change| millis(change.took)).collect(),
            took_rtts: trials
                .changes
                .iter()
                .map(|change| change.took.as_secs_f64() / rtt)
                .collect(),
            write_gaps_ms: trials.changes.iter().map(|change| millis(change.write_gap)).collect(),
            calm_gap_ms: millis(trials.calm),
        };
        let goal = |what, reached| Goal { what, reached };
        let free = |mode: Mode| {
            let line = modes.iter().find(|line| line.mode == mode.name());
            line.is_some_and(|line| line.messages_per_read.abs() < NO_MESSAGES && line.local_share >= 1.0)
        };
        let goals = vec![
            goal(
                "roster leases that wait for their own keys read at least 5x faster than leader leases",
                faster_own_keys >= FASTER_MIN,
            ),
            goal(
                "a roster read costs no message",
                free(Mode::RosterLease) && free(Mode::RosterLeaseOfKeys),
            ),
            goal(
                "a killed responder stops writes for at most 1.5 s",
                !trials.killed.is_empty() && trials.killed.iter().all(|gap| *gap <= GAP_MAX),
            ),
            goal(
                "a planned change takes at most 2.5 round trips",
                !changes.took_rtts.is_empty() && changes.took_rtts.iter().all(|rtts| *rtts <= CHANGE_RTTS_MAX),
            ),
            goal("linearizable, and no acknowledged write is lost", judged.linearizable),
        ];
        Self {
            setting,
            modes,
            faster,
            faster_own_keys,
            killed: Killed {
                site: killed,
                write_gaps_ms: trials.killed.iter().copied().map(millis).collect(),
            },
            changes,
            judged,
            goals,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::measure::Counters;
    use super::*;

    pub(crate) fn setting() -> Setting {
        Setting {
            cores: 2,
            filesystem: "ext4".to_owned(),
            distances: sites::distances(),
            clients_per_site: 10,
            period_ms: 50,
            writes_per_mille: 10,
            keys: 1000,
            value_bytes: 128,
            rounds: 2,
            seconds: 12,
            althing: "0.1.0",
        }
    }

    /// Every site reads in so many milliseconds, the leader's in a tenth of that.
    pub(crate) fn line(mode: Mode, read_ms: f64, messages: f64) -> ModeLine {
        let mut samples = Samples::default();
        for site in 0..SITES {
            let took = if site == 0 { read_ms / 10.0 } else { read_ms };
            samples.reads[site] = vec![took; 100];
            samples.writes[site] = vec![150.0; 3];
        }
        let traffic = Traffic {
            idle: Counters::default(),
            idle_seconds: 1.0,
            reading: Counters {
                messages: messages * 500.0,
                local: if messages > 0.0 { 0.0 } else { 500.0 },
                by_index: if messages > 0.0 { 500.0 } else { 0.0 },
                ..Counters::default()
            },
            reading_seconds: 1.0,
            reads: 500,
        };
        ModeLine::new(mode, &[samples.clone(), samples], traffic).unwrap()
    }

    pub(crate) fn report(roster_ms: f64, gap_ms: u64, change_ms: u64, linearizable: bool) -> Report {
        let modes = vec![
            line(Mode::ReadIndex, 100.0, 2.0),
            line(Mode::LeaderLease, 80.0, 2.0),
            line(Mode::RosterLease, 40.0, 0.0),
            line(Mode::RosterLeaseOfKeys, roster_ms, 0.0),
        ];
        let trials = Trials {
            killed: vec![Duration::from_millis(gap_ms)],
            changes: vec![Change {
                took: Duration::from_millis(change_ms),
                write_gap: Duration::from_millis(300),
            }],
            calm: Duration::from_millis(20),
        };
        let judged = Judged {
            requests: 1000,
            linearizable,
        };
        Report::new(setting(), modes, "California", &trials, judged)
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let latency = Latency::of(&samples).unwrap();
        assert_eq!(
            (latency.count, latency.mean_ms, latency.p50_ms, latency.p99_ms),
            (200, 100.5, 100.0, 198.0)
        );
        assert_eq!(Latency::of(&[7.0]).unwrap().p99_ms, 7.0);
        assert_eq!(Latency::of(&[]), None);
    }

    #[test]
    fn every_site_counts_the_same_however_many_requests_it_had() {
        let mut samples = Samples::default();
        for site in 0..SITES {
            samples.reads[site] = vec![10.0];
            samples.writes[site] = vec![1.0];
        }
        samples.reads[0] = vec![0.0; 1000];
        let traffic = Traffic {
            idle_seconds: 1.0,
            reads: 1,
            ..Traffic::default()
        };
        let line = ModeLine::new(Mode::LeaderLease, &[samples], traffic).unwrap();
        assert!((line.mean_read_ms - 8.0).abs() < 1e-9, "{}", line.mean_read_ms);
        assert_eq!(line.rounds.len(), 1);
    }

    #[test]
    fn a_site_without_requests_makes_no_line() {
        assert_eq!(
            ModeLine::new(Mode::ReadIndex, &[Samples::default()], Traffic::default()),
            None
        );
    }

    #[test]
    fn goals_are_reached_and_missed_one_by_one() {
        let reached = |report: Report| report.goals.iter().map(|goal| goal.reached).collect::<Vec<_>>();
        assert_eq!(reached(report(16.0, 1500, 552, true)), [true; 5]);
        assert_eq!(
            reached(report(16.1, 1501, 553, false)),
            [false, true, false, false, false]
        );
    }

    #[test]
    fn a_change_is_told_in_the_longest_round_trips() {
        let changes = report(1.0, 1, 442, true).changes;
        assert!((changes.took_rtts[0] - 2.0).abs() < 1e-9);
        assert!((changes.took_ms[0] - 442.0).abs() < 1e-9);
    }
}
