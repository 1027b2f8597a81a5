//! Puts against one keyspace that is cut into more and more shards, on the disk as it is and on one whose syncs take longer.
//!
//! Every run has three members of its own that begin with nothing, so that none is judged by what another left behind, and all
//! take turns. What a shard did is told by the members' own counters.
//!
//! [`report`] and [`chart`] are pure; this module touches the machine.

pub mod chart;
pub mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cluster::{Cluster, MEMBERS, Programs};
use super::disk::SlowDisk;
use super::plan::{Case, KEY_BYTES, Kind, VALUE_BYTES};
use super::report::System;
use super::scrape::Scrape;
use super::usage::{self, Thread};
use super::{BENCHMARK, ETCD, Folder, filesystem, tool};
use crate::command::{run, wait_until};
use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::progress::Step;
use report::{Disk, Point, Report, Role, Sample, Setting, ShardSample};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of shards.
    pub shards: Vec<u32>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// How much longer a sync of the slow disk takes.
    pub delay: Duration,
    /// Times that each has its turn.
    pub rounds: usize,
    /// Seconds that one run takes, about.
    pub seconds: f64,
    /// Requests under way.
    pub clients: usize,
    /// Our program.
    pub node: PathBuf,
}

/// How long it may take until no member leads two shards more than another.
const EVEN_LIMIT: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// If a part cannot be built, a member does not start, or requests fail.
pub fn shards(options: &Options) -> Result<Report> {
    let (etcd, benchmark) = (Parts::build_family(ETCD)?, Parts::build_family(BENCHMARK)?);
    let folder = Folder::create()?;
    let filesystem = filesystem(&folder.0)?;
    let slow = SlowDisk::compile(&folder.0, options.delay)?;
    let bench = Bench {
        programs: |disk| {
            let disk = match disk {
                Disk::AsIs => None,
                Disk::Slow => Some(slow.clone()),
            };
            Programs::new(&etcd, &options.node, disk)
        },
        tool: benchmark.path("benchmark"),
        folder: &folder.0,
        options,
    };
    let points = report::points(&options.disks, &options.shards);
    let mut samples = Vec::new();
    for round in 1..=options.rounds {
        // There and back, so that what changes slowly changes for all.
        let turn: Vec<Point> = match round % 2 {
            0 => points.iter().rev().copied().collect(),
            _ => points.clone(),
        };
        for point in turn {
            samples.push(bench.measure(point, round)?);
        }
    }
    let setting = Setting {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        filesystem,
        members: MEMBERS,
        clients: options.clients,
        rounds: options.rounds,
        seconds: options.seconds,
        delay_ms: options.delay.as_secs_f64() * 1e3,
        key_bytes: KEY_BYTES,
        value_bytes: VALUE_BYTES,
        althing: env!("CARGO_PKG_VERSION"),
    };
    Ok(Report::new(setting, &points, &samples))
}

struct Bench<'a, F> {
    programs: F,
    tool: PathBuf,
    folder: &'a Path,
    options: &'a Options,
}

impl<F: Fn(Disk) -> Programs> Bench<'_, F> {
    /// One run against members of its own.
    fn measure(&self, point: Point, round: usize) -> Result<Sample> {
        let step = Step::begin(format!(
            "round {round}: {} shard(s), {}",
            point.shards,
            point.disk.name()
        ));
        let folder = self.folder.join("run");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        step.note("members start");
        let cluster = Cluster::start(System::Althing, &(self.programs)(point.disk), &folder)?;
        step.note("the keyspace is cut");
        cluster.cut(point.shards)?;
        even(&cluster)?;
        let case = Case {
            kind: Kind::Put,
            clients: self.options.clients,
        };
        step.note("how fast is it?");
        let first = self.run(case, &cluster, case.first_total())?;
        let requests = case.total(first.rate, self.options.seconds);
        step.note("measuring");
        let before = Counted::of(&cluster)?;
        let run = self.run(case, &cluster, requests)?;
        let after = Counted::of(&cluster)?;
        let sample = Sample {
            point,
            run,
            requests,
            cpu: after.cpu - before.cpu,
            fsyncs: sum(&before, &after, |page| {
                page.get("althing_wal_fsync_duration_seconds_count")
            }),
            fsync_seconds: sum(&before, &after, |page| {
                page.get("althing_wal_fsync_duration_seconds_sum")
            }),
            threads: usage::spent(&before.threads, &after.threads),
            shards: shard_samples(&cluster.data_shards()?, &before, &after),
        };
        drop(cluster);
        // The next one begins with nothing.
        fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        step.done();
        Ok(sample)
    }

    fn run(&self, case: Case, cluster: &Cluster, requests: u64) -> Result<tool::Run> {
        let mut command = Command::new(&self.tool);
        command.args(case.arguments(&cluster.endpoints(), requests));
        tool::parse(&run(&mut command)?).map_err(|what| Error::refused(what, "run it again"))
    }
}

/// What members have done so far.
struct Counted {
    pages: Vec<Scrape>,
    threads: Vec<BTreeMap<u32, Thread>>,
    cpu: f64,
}

impl Counted {
    fn of(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            pages: cluster.scrape()?,
            threads: cluster.pids().into_iter().map(usage::threads).collect::<Result<_>>()?,
            cpu: cluster.usage()?.iter().map(|usage| usage.cpu).sum(),
        })
    }
}

/// By how much something grew, all members together.
fn sum(before: &Counted, after: &Counted, of: impl Fn(&Scrape) -> f64) -> f64 {
    let all = |counted: &Counted| counted.pages.iter().map(&of).sum::<f64>();
    all(after) - all(before)
}

/// The name of a metric that every replica of a group has.
const APPLIED: &str = "althing_raft_applied_index";
/// That of those who lead.
const LEADER: &str = "althing_raft_leader";
/// The group of the map.
const META: &str = "0";

fn shard_samples(data: &[String], before: &Counted, after: &Counted) -> Vec<ShardSample> {
    let Some(page) = after.pages.first() else {
        return Vec::new();
    };
    let mut groups: Vec<&str> = page.shards(APPLIED).collect();
    groups.sort_by_key(|group| group.parse::<u64>().ok());
    let one = |group: &str| {
        let sum = |name: &str| sum(before, after, |page| page.of_shard(name, group));
        ShardSample {
            shard: group.to_owned(),
            role: if data.iter().any(|shard| shard == group) {
                Role::Data
            } else if group == META {
                Role::Map
            } else {
                Role::Sequencer
            },
            leader: after.pages.iter().position(|page| page.of_shard(LEADER, group) > 0.0),
            entries: sum(APPLIED),
            batches: sum("althing_apply_duration_seconds_count"),
            apply_seconds: sum("althing_apply_duration_seconds_sum"),
        }
    };
    groups.into_iter().map(one).collect()
}

/// Waits until leaders are spread over the members as evenly as the conductor makes them.
fn even(cluster: &Cluster) -> Result<()> {
    wait_until("leaders are spread over the members", EVEN_LIMIT, || {
        let pages = cluster.scrape().map_err(|error| error.to_string())?;
        let led = |page: &Scrape| {
            let groups = page.shards(LEADER).filter(|group| *group != META);
            groups.map(|group| page.of_shard(LEADER, group)).sum::<f64>() as u64
        };
        let led: Vec<u64> = pages.iter().map(led).collect();
        match (led.iter().min(), led.iter().max()) {
            (Some(least), Some(most)) if most - least < 2 => Ok(()),
            _ => Err(format!("groups led by each member: {led:?}")),
        }
    })
}
