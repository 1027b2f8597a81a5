//! From runs with several shards to what is shown: medians over rounds, shares, what each shard did. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;

use super::super::report::median;
use super::super::tool::Run;
use super::super::usage::Thread;

/// What members' logs lie on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// The machine's.
    AsIs,
    /// The same, with a delay after every sync.
    Slow,
}

impl Disk {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AsIs, Self::Slow];

    /// Its name in tables, files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsIs => "as-is",
            Self::Slow => "slow",
        }
    }
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|disk| disk.name() == text)
            .ok_or_else(|| format!("there is no disk `{text}`; there are {}", names()))
    }
}

/// What takes turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// On what.
    pub disk: Disk,
    /// Shards of the keyspace.
    pub shards: u32,
}

/// All of them.
pub(super) fn points(disks: &[Disk], shards: &[u32]) -> Vec<Point> {
    disks
        .iter()
        .flat_map(|&disk| shards.iter().map(move |&shards| Point { disk, shards }))
        .collect()
}

/// What a group is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The shard map.
    Map,
    /// Revisions.
    Sequencer,
    /// Keys.
    Data,
}

/// What one group did in a run, all its replicas together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct ShardSample {
    pub(super) shard: String,
    pub(super) role: Role,
    /// Which member led it at the end.
    pub(super) leader: Option<usize>,
    pub(super) entries: f64,
    pub(super) batches: f64,
    pub(super) apply_seconds: f64,
}

/// One run.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sample {
    pub(super) point: Point,
    pub(super) run: Run,
    pub(super) requests: u64,
    /// Processor seconds of all members together.
    pub(super) cpu: f64,
    /// Syncs of all members' logs, and how long they took.
    pub(super) fsyncs: f64,
    pub(super) fsync_seconds: f64,
    /// What threads did, by name, all members together.
    pub(super) threads: BTreeMap<String, Thread>,
    pub(super) shards: Vec<ShardSample>,
}

/// Where and how it was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Processors, shared by all members and the load generator.
    pub cores: usize,
    /// Type of the filesystem that all members' data lie on.
    pub filesystem: String,
    /// Members, each with a replica of every shard.
    pub members: usize,
    /// Requests under way.
    pub clients: usize,
    /// Rounds; in each, every number of shards ran on every disk.
    pub rounds: usize,
    /// Seconds that a run was planned for.
    pub seconds: f64,
    /// Milliseconds that a sync of the slow disk takes longer.
    pub delay_ms: f64,
    /// Bytes of keys.
    pub key_bytes: usize,
    /// Bytes of values.
    pub value_bytes: usize,
    /// Our version.
    pub althing: &'static str,
}

/// What one group did.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardLine {
    /// Its number.
    pub shard: String,
    /// What it is for.
    pub role: Role,
    /// Which member led it at the end of the run; a number from 0.
    pub leader: Option<usize>,
    /// Log entries that each replica applied.
    pub entries: f64,
    /// How many of them at once.
    pub entries_per_batch: f64,
    /// Microseconds of applying an entry, by the clock, at one replica.
    pub apply_us_per_entry: f64,
    /// Seconds of applying, by the clock, at all replicas.
    pub apply_seconds: f64,
}

/// One number of shards on one disk.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// On what.
    pub disk: Disk,
    /// Shards of the keyspace.
    pub shards: u32,
    /// Puts a second.
    pub requests_per_second: f64,
    /// By that of the fewest shards on the same disk.
    pub throughput_ratio: f64,
    /// Puts a second of each round, in order of the runs.
    pub rounds: Vec<f64>,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
    /// Microseconds of processor time of all members together, for one put.
    pub server_cpu_us_per_request: f64,
    /// The same of the threads that used most, by their names.
    pub threads_cpu_us_per_request: BTreeMap<String, f64>,
    /// Syncs of all members' logs, for one put.
    pub fsyncs_per_request: f64,
    /// Mean time of a write and sync, in milliseconds.
    pub fsync_ms: f64,
    /// What each group did in the last run.
    pub groups: Vec<ShardLine>,
}

/// Everything.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where and how.
    pub setting: Setting,
    /// By disk, then by number of shards.
    pub lines: Vec<Line>,
}

/// Threads of less than so many microseconds a request are left out.
const THREAD_US_MIN: f64 = 0.5;

impl Report {
    pub(super) fn new(setting: Setting, points: &[Point], samples: &[Sample]) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        for point in points {
            let samples: Vec<&Sample> = samples.iter().filter(|sample| sample.point == *point).collect();
            let Some(mut line) = line(&samples, setting.members) else {
                continue;
            };
            let first = lines.iter().find(|first| first.disk == line.disk);
            line.throughput_ratio = first.map_or(1.0, |first| line.requests_per_second / first.requests_per_second);
            lines.push(line);
        }
        Self { setting, lines }
    }
}

fn line(samples: &[&Sample], members: usize) -> Option<Line> {
    let last = samples.last()?;
    let middle = |of: &dyn Fn(&Sample) -> f64| median(samples.iter().map(|sample| of(sample)).collect());
    let of_thread = |name: &str| {
        middle(&|sample| {
            let thread = sample.threads.get(name);
            thread.map_or(0.0, |thread| thread.cpu * 1e6 / sample.requests as f64)
        })
    };
    let threads = last
        .threads
        .keys()
        .filter_map(|name| Some((name.clone(), of_thread(name)?)));
    Some(Line {
        disk: last.point.disk,
        shards: last.point.shards,
        requests_per_second: middle(&|sample| sample.run.rate)?,
        throughput_ratio: 1.0,
        rounds: samples.iter().map(|sample| sample.run.rate).collect(),
        p50_ms: middle(&|sample| sample.run.p50 * 1e3)?,
        p99_ms: middle(&|sample| sample.run.p99 * 1e3)?,
        server_cpu_us_per_request: middle(&|sample| sample.cpu * 1e6 / sample.requests as f64)?,
        threads_cpu_us_per_request: threads.filter(|(_, cpu)| *cpu >= THREAD_US_MIN).collect(),
        fsyncs_per_request: middle(&|sample| sample.fsyncs / sample.requests as f64)?,
        fsync_ms: middle(&|sample| sample.fsync_seconds * 1e3 / sample.fsyncs.max(1.0))?,
        groups: last.shards.iter().map(|shard| shard_line(shard, members)).collect(),
    })
}

fn shard_line(sample: &ShardSample, members: usize) -> ShardLine {
    ShardLine {
        shard: sample.shard.clone(),
        role: sample.role,
        leader: sample.leader,
        entries: sample.entries / members as f64,
        entries_per_batch: sample.entries / sample.batches.max(1.0),
        apply_us_per_entry: sample.apply_seconds * 1e6 / sample.entries.max(1.0),
        apply_seconds: sample.apply_seconds,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::usage::tests::thread;

    pub(crate) fn report() -> Report {
        let setting = Setting {
            cores: 2,
            filesystem: "ext4".to_owned(),
            members: 3,
            clients: 1000,
            rounds: 1,
            seconds: 3.0,
            delay_ms: 5.0,
            key_bytes: 32,
            value_bytes: 256,
            althing: "0.1.0",
        };
        let points = points(&Disk::ALL, &[1, 4]);
        let samples: Vec<Sample> = points
            .iter()
            .zip([10_000.0, 5_000.0, 4_000.0, 4_000.0])
            .map(|(point, rate)| sample(*point, rate))
            .collect();
        Report::new(setting, &points, &samples)
    }

    fn sample(point: Point, rate: f64) -> Sample {
        Sample {
            point,
            run: Run {
                rate,
                p50: 0.1,
                p99: 0.3,
            },
            requests: 1_000,
            cpu: 0.05,
            fsyncs: 300.0,
            fsync_seconds: 0.6,
            threads: ["net", "wal"]
                .map(|name| {
                    let cpu = if name == "net" { 0.04 } else { 0.000_1 };
                    (name.to_owned(), thread("", cpu, 0))
                })
                .into(),
            shards: vec![ShardSample {
                shard: "1".to_owned(),
                role: Role::Data,
                leader: Some(2),
                entries: 3_000.0,
                batches: 30.0,
                apply_seconds: 0.006,
            }],
        }
    }

    #[test]
    fn shares_are_of_one_request_and_ratios_of_the_fewest_shards_on_the_same_disk() {
        let report = report();
        let ratios: Vec<f64> = report.lines.iter().map(|line| line.throughput_ratio).collect();
        assert_eq!(ratios, [1.0, 0.5, 1.0, 1.0]);
        let line = &report.lines[0];
        assert!((line.server_cpu_us_per_request - 50.0).abs() < 1e-9, "{line:?}");
        assert!((line.fsyncs_per_request - 0.3).abs() < 1e-9 && (line.fsync_ms - 2.0).abs() < 1e-9);
        assert_eq!(line.threads_cpu_us_per_request.keys().collect::<Vec<_>>(), ["net"]);
    }

    #[test]
    fn a_groups_entries_are_those_of_one_replica_and_its_time_that_of_all() {
        let group = &report().lines[0].groups[0];
        assert_eq!((group.entries, group.entries_per_batch), (1_000.0, 100.0));
        assert!((group.apply_us_per_entry - 2.0).abs() < 1e-9 && group.leader == Some(2));
    }

    #[test]
    fn a_wrong_disk_is_answered_with_the_right_ones() {
        assert_eq!("slow".parse(), Ok(Disk::Slow));
        assert!("fast".parse::<Disk>().unwrap_err().contains("as-is"));
    }
}
