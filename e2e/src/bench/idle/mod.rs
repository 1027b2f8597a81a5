//! What groups cost that nobody uses: three members of ours with a thousand shards asleep.
//!
//! The members are looked at twice, without and with the shards, so that what each of these costs can be told from what a cluster costs
//! anyway. The shards are those of a keyspace that is cut by hash: slots are halved without any data in them.
//!
//! [`report`] is pure; this module touches the machine.

pub mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster::{Cluster, MEMBERS, Programs, free_port};
use super::plan::{KEY_BYTES, VALUE_BYTES};
use super::report::System;
use super::usage::{self, Thread};
use super::{BENCHMARK, ETCD, Folder, filesystem, tool};
use crate::command::{run, wait_until};
use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::progress::Step;
use report::{Report, Setting, Stage, Window, Writes};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shards of the keyspace that nobody uses.
    pub shards: u32,
    /// Seconds of each look.
    pub seconds: u64,
    /// Looks without and with the shards.
    pub rounds: usize,
    /// Our program.
    pub node: PathBuf,
}

/// The most shards: a conductor under its present limits makes about a hundred in a second, and `CUT_LIMIT` has to suffice.
pub const SHARDS_MAX: u32 = 4_096;
/// The keyspace.
const KEYSPACE: &str = "idle";
/// As many as by default.
const SLOTS: u32 = 16_384;
/// How long all the cuts may take: a thousand take about ten seconds.
const CUT_LIMIT: Duration = Duration::from_secs(180);
/// How long it may take until everybody sleeps: five seconds of idleness, after the leaders have been evened out.
const SLEEP_LIMIT: Duration = Duration::from_secs(240);
/// Groups of a member that do not sleep: whoever conducts reads the meta group's map.
const AWAKE_MAX: f64 = 1.0;
/// Nothing changes for so long before a look begins: what was just put to sleep is written out meanwhile.
const CALM: Duration = Duration::from_secs(3);
/// Writes to sleeping shards. A tenth of them finds a shard that one before it has woken, if there are a thousand.
const WRITES: u32 = 200;
/// Different keys that those writes draw from.
const KEY_SPACE: u32 = 100_000_000;

/// Measures.
///
/// # Errors
/// If a part cannot be built, a member does not start, or shards are not made or do not fall asleep in time.
pub fn idle(options: &Options) -> Result<Report> {
    let (etcd, benchmark) = (Parts::build_family(ETCD)?, Parts::build_family(BENCHMARK)?);
    let programs = Programs::new(&etcd, &options.node, None);
    let folder = Folder::create()?;
    let filesystem = filesystem(&folder.0)?;
    let step = Step::begin(format!("starting {MEMBERS} members on {filesystem}"));
    let cluster = Cluster::start(System::Althing, &programs, &folder.0)?;
    step.done();
    let alone = stage(&cluster, "the cluster alone", options)?;

    let step = Step::begin(format!("{} shards", options.shards));
    let port = free_port()?;
    let wanted = json!({"shards": options.shards, "port": port, "partitioning": {"hash": {"slots": SLOTS}}});
    cluster.declare(KEYSPACE, &wanted, CUT_LIMIT, |shards| {
        step.note(format!("{shards} are there"));
    })?;
    let created = step.done();
    let with_shards = stage(&cluster, &format!("and {} shards", options.shards), options)?;

    let step = Step::begin("writes to sleeping shards");
    let tool = benchmark.path("benchmark");
    let endpoints = cluster.endpoints_at(port);
    let put = |total: u32, keys: u32| {
        let mut command = Command::new(&tool);
        command.args(["put", "--clients=1", "--conns=1", "--precise"]).args([
            format!("--endpoints={}", endpoints.join(",")),
            format!("--key-size={KEY_BYTES}"),
            format!("--val-size={VALUE_BYTES}"),
            format!("--key-space-size={keys}"),
            format!("--total={total}"),
        ]);
        run(&mut command)
    };
    let first = tool::slowest(&put(1, KEY_SPACE)?).map_err(unread)?;
    let asleep = put(WRITES, KEY_SPACE)?;
    let awake = put(WRITES, 1)?;
    step.done();
    let setting = Setting {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        filesystem,
        members: MEMBERS,
        shards: options.shards,
        rounds: options.rounds,
        seconds: options.seconds,
        althing: env!("CARGO_PKG_VERSION"),
    };
    let writes = Writes {
        first_ms: first * 1e3,
        asleep: latency(&asleep)?,
        awake: latency(&awake)?,
    };
    Ok(Report::new(setting, created, [alone, with_shards], writes))
}

fn latency(output: &str) -> Result<report::Latency> {
    let run = tool::parse(output).map_err(unread)?;
    Ok(report::Latency {
        count: WRITES,
        p50_ms: run.p50 * 1e3,
        p99_ms: run.p99 * 1e3,
        slowest_ms: tool::slowest(output).map_err(unread)? * 1e3,
    })
}

fn unread(what: String) -> Error {
    Error::refused(format!("writes to sleeping shards: {what}"), "run it again")
}

/// Waits until all groups sleep, and looks.
fn stage(cluster: &Cluster, name: &str, options: &Options) -> Result<Stage> {
    let step = Step::begin(format!("{name}: falling asleep"));
    wait_until("all groups but the meta group sleep", SLEEP_LIMIT, || {
        let awake = cluster.scrape().map_err(|error| error.to_string())?;
        let awake: Vec<f64> = awake
            .iter()
            .map(|page| page.get("althing_groups") - page.get("althing_groups_hibernating"))
            .collect();
        step.note(format!("awake: {awake:?}"));
        if awake.iter().all(|awake| *awake <= AWAKE_MAX) {
            Ok(())
        } else {
            Err(format!("groups awake at each member: {awake:?}"))
        }
    })?;
    sleep(CALM);
    step.done();
    let step = Step::begin(format!("{name}: {} x {} s", options.rounds, options.seconds));
    let mut windows = Vec::new();
    for round in 1..=options.rounds {
        step.note(format!("round {round}"));
        windows.push(look(cluster, Duration::from_secs(options.seconds))?);
    }
    let pages = cluster.scrape()?;
    let of = |series: &str| pages.iter().map(|page| page.get(series) as u64).collect();
    let stage = Stage {
        name: name.to_owned(),
        windows,
        rss: cluster.usage()?.iter().map(|usage| usage.rss).collect(),
        groups: of("althing_groups"),
        asleep: of("althing_groups_hibernating"),
    };
    step.done();
    Ok(stage)
}

/// Does nothing for so long, and tells what the members did.
fn look(cluster: &Cluster, length: Duration) -> Result<Window> {
    let threads = || -> Result<Vec<BTreeMap<u32, Thread>>> { cluster.pids().into_iter().map(usage::threads).collect() };
    let fsyncs = || -> Result<f64> {
        let pages = cluster.scrape()?;
        Ok(pages
            .iter()
            .map(|page| page.get("althing_wal_fsync_duration_seconds_count"))
            .sum())
    };
    // Outside of the time that counts: pages cost something.
    let fsyncs_before = fsyncs()?;
    let (begun, usage_before, threads_before) = (Instant::now(), cluster.usage()?, threads()?);
    sleep(length);
    let (usage_after, threads_after) = (cluster.usage()?, threads()?);
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Window {
        seconds,
        cpu: usage_before
            .iter()
            .zip(&usage_after)
            .map(|(before, after)| after.cpu - before.cpu)
            .collect(),
        threads: usage::spent(&threads_before, &threads_after),
        fsyncs: fsyncs()? - fsyncs_before,
    })
}
