//! From looks at idle members to what is shown. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::super::report::{Goal, median};
use super::super::usage::Thread;

/// So much of one core may all members together use, with a thousand shards.
const CPU_PERCENT_MAX: f64 = 5.0;
/// Shards that the goal speaks of.
const SHARDS_OF_GOAL: u32 = 1_000;

/// What members did in a look.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Window {
    /// How long it was.
    pub(super) seconds: f64,
    /// Processor seconds of each member.
    pub(super) cpu: Vec<f64>,
    /// What their threads did, by name, all members together.
    pub(super) threads: BTreeMap<String, Thread>,
    /// Syncs of their logs.
    pub(super) fsyncs: f64,
}

/// All looks at the members in one state.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) windows: Vec<Window>,
    pub(super) rss: Vec<u64>,
    pub(super) groups: Vec<u64>,
    pub(super) asleep: Vec<u64>,
}

/// Where and how it was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Processors.
    pub cores: usize,
    /// Type of the filesystem that all members' data lie on.
    pub filesystem: String,
    /// Members, each with a replica of every shard.
    pub members: usize,
    /// Shards that nobody uses.
    pub shards: u32,
    /// Looks.
    pub rounds: usize,
    /// Seconds of each.
    pub seconds: u64,
    /// Our version.
    pub althing: &'static str,
}

/// What threads of one name used.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadLine {
    /// Their name.
    pub name: String,
    /// Of one core, all members together.
    pub cpu_percent: f64,
    /// Times a second that one of them was woken.
    pub wakes_per_second: f64,
}

/// The members in one state.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Which.
    pub name: String,
    /// Of one core, all members together; the median of the looks.
    pub cpu_percent: f64,
    /// The same of each look, in order.
    pub rounds: Vec<f64>,
    /// The same of each member.
    pub members_cpu_percent: Vec<f64>,
    /// Times a second that some thread was woken.
    pub wakes_per_second: f64,
    /// Syncs of all members' logs in a second.
    pub fsyncs_per_second: f64,
    /// Resident MiB of each member.
    pub rss_mib: Vec<f64>,
    /// Replicas at each member, the cluster's own too.
    pub groups: Vec<u64>,
    /// How many of them sleep.
    pub asleep: Vec<u64>,
    /// The threads that used most.
    pub threads: Vec<ThreadLine>,
}

impl Line {
    fn of(stage: &Stage) -> Self {
        let percent = |seconds: f64, window: &Window| seconds * 100.0 / window.seconds;
        let middle = |of: &dyn Fn(&Window) -> f64| median(stage.windows.iter().map(of).collect()).unwrap_or_default();
        let rounds: Vec<f64> = stage
            .windows
            .iter()
            .map(|window| percent(window.cpu.iter().sum(), window))
            .collect();
        let of_thread = |window: &Window, name: &str| window.threads.get(name).cloned().unwrap_or_default();
        let names = stage
            .windows
            .first()
            .into_iter()
            .flat_map(|window| window.threads.keys());
        let mut threads: Vec<ThreadLine> = names
            .map(|name| ThreadLine {
                name: name.clone(),
                cpu_percent: middle(&|window| percent(of_thread(window, name).cpu, window)),
                wakes_per_second: middle(&|window| of_thread(window, name).sleeps as f64 / window.seconds),
            })
            .collect();
        threads.sort_by(|left, right| right.cpu_percent.total_cmp(&left.cpu_percent));
        Self {
            name: stage.name.clone(),
            cpu_percent: median(rounds.clone()).unwrap_or_default(),
            members_cpu_percent: (0..stage.rss.len())
                .map(|member| middle(&|window| percent(window.cpu[member], window)))
                .collect(),
            rounds,
            wakes_per_second: threads.iter().map(|thread| thread.wakes_per_second).sum(),
            fsyncs_per_second: middle(&|window| window.fsyncs / window.seconds),
            rss_mib: stage
                .rss
                .iter()
                .map(|bytes| *bytes as f64 / f64::from(1 << 20))
                .collect(),
            groups: stage.groups.clone(),
            asleep: stage.asleep.clone(),
            threads,
        }
    }
}

/// How long writes took, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// How many, one after another.
    pub count: u32,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub slowest_ms: f64,
}

/// Writes after all have slept.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// The very first one, with a connection to be made and a sequencer that sleeps as well.
    pub first_ms: f64,
    /// Those after it, each to a key drawn at random and so nearly always a shard that sleeps.
    pub asleep: Latency,
    /// As many to one key, hence a shard that is awake.
    pub awake: Latency,
}

/// Everything.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where and how.
    pub setting: Setting,
    /// Seconds from asking for the shards until all were there.
    pub created_seconds: f64,
    /// Without and with the shards.
    pub lines: [Line; 2],
    /// Microseconds of processor time that one replica of one shard costs in a second: the difference, shared out.
    pub cpu_us_per_replica_second: f64,
    /// KiB of memory that it takes, likewise.
    pub rss_kib_per_replica: f64,
    /// Writes after that.
    pub writes: Writes,
    /// Goals and whether they are reached; none for other numbers of shards than the goal speaks of.
    pub goals: Vec<Goal>,
}

impl Report {
    pub(super) fn new(setting: Setting, created: Duration, stages: [Stage; 2], writes: Writes) -> Self {
        let lines = stages.map(|stage| Line::of(&stage));
        let [alone, with_shards] = &lines;
        let replicas = f64::from(setting.shards) * setting.members as f64;
        let rss = |line: &Line| line.rss_mib.iter().sum::<f64>();
        let goal = Goal {
            what: "1,000 idle groups under 5 % of one core",
            reached: with_shards.cpu_percent < CPU_PERCENT_MAX,
        };
        Self {
            created_seconds: created.as_secs_f64(),
            cpu_us_per_replica_second: (with_shards.cpu_percent - alone.cpu_percent) * 1e4 / replicas,
            rss_kib_per_replica: (rss(with_shards) - rss(alone)) * 1024.0 / replicas,
            goals: Vec::from_iter((setting.shards == SHARDS_OF_GOAL).then_some(goal)),
            setting,
            lines,
            writes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::usage::tests::thread;

    fn stage(cpu: [f64; 3], mib: u64) -> Stage {
        let window = |factor: f64| Window {
            seconds: 10.0,
            cpu: cpu.map(|seconds| seconds * factor).to_vec(),
            threads: [
                ("net".to_owned(), thread("", 0.1, 20)),
                ("wal".to_owned(), thread("", 0.2, 10)),
            ]
            .into(),
            fsyncs: 5.0,
        };
        Stage {
            name: "so".to_owned(),
            windows: vec![window(1.0), window(9.0), window(1.0)],
            rss: vec![mib << 20; 3],
            groups: vec![2; 3],
            asleep: vec![1; 3],
        }
    }

    fn report(shards: u32, cpu: f64) -> Report {
        let setting = Setting {
            cores: 2,
            filesystem: "ext4".to_owned(),
            members: 3,
            shards,
            rounds: 3,
            seconds: 10,
            althing: "0.1.0",
        };
        let latency = Latency {
            count: 1,
            p50_ms: 1.0,
            p99_ms: 1.0,
            slowest_ms: 1.0,
        };
        let writes = Writes {
            first_ms: 1.0,
            asleep: latency,
            awake: latency,
        };
        let stages = [stage([0.1, 0.0, 0.0], 10), stage([cpu, 0.0, 0.0], 20)];
        Report::new(setting, Duration::from_secs(2), stages, writes)
    }

    #[test]
    fn one_wild_look_does_not_move_what_is_shown_and_the_thread_that_used_most_is_first() {
        let line = Line::of(&stage([0.2, 0.1, 0.1], 10));
        assert!((line.cpu_percent - 4.0).abs() < 1e-9, "{line:?}");
        assert!((line.members_cpu_percent[0] - 2.0).abs() < 1e-9, "{line:?}");
        assert_eq!((line.threads[0].name.as_str(), line.wakes_per_second), ("wal", 3.0));
    }

    #[test]
    fn a_replicas_share_is_of_the_difference_and_the_goal_is_of_a_thousand() {
        let good = report(1_000, 0.4);
        assert!((good.cpu_us_per_replica_second - 10.0).abs() < 1e-9, "{good:?}");
        assert!((good.rss_kib_per_replica - 10.24).abs() < 1e-9, "{good:?}");
        assert!(good.goals[0].reached && !report(1_000, 0.5).goals[0].reached);
        assert!(report(999, 0.4).goals.is_empty());
    }
}
