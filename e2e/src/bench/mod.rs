//! Althing and etcd side by side, driven by etcd's own `benchmark`.
//!
//! Both run on the same machine and the same filesystem, with their own defaults, and take turns case by case and round by
//! round, so that what disturbs the machine disturbs both. While one is loaded the other idles. Figures of two cores that
//! are shared with the load generator say little; ratios say what they can.
//!
//! `reads`, [`shards`] and [`idle`] measure members of ours alone, each in its own way; [`profile`] says where the time of both goes.
//!
//! [`plan`], [`tool`], [`scrape`], [`report`], [`chart`] and `picture` are pure; [`usage`], `disk`, `cluster` and this module touch the machine.

pub mod chart;
mod cluster;
mod disk;
mod http;
pub mod idle;
mod picture;
pub mod plan;
pub mod profile;
#[cfg(feature = "workload")]
pub mod reads;
pub mod report;
pub mod scrape;
pub mod shards;
pub mod tool;
pub mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::statfs;

use crate::command::{run, run_with_input};
use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::paths;
use crate::process::ProcessId;
use crate::progress::Step;
use cluster::{Cluster, MEMBERS, Programs};
use plan::{Case, KEY_BYTES, Kind, RANGE_KEY, VALUE_BYTES};
use report::{Report, Sample, Setting, System};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times that every case runs against both systems.
    pub rounds: usize,
    /// Seconds that one run takes, about.
    pub seconds: f64,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// What they do.
    pub kinds: Vec<Kind>,
    /// Our program.
    pub node: PathBuf,
    /// Shards of our keyspace.
    pub shards: u32,
}

/// The parts' families that are needed.
const ETCD: &str = "etcd";
const BENCHMARK: &str = "benchmark";

/// Measures.
///
/// # Errors
/// If a part cannot be built, a member does not start, or requests fail.
pub fn etcd(options: &Options) -> Result<Report> {
    let (etcd, benchmark) = (Parts::build_family(ETCD)?, Parts::build_family(BENCHMARK)?);
    let programs = Programs::new(&etcd, &options.node, None);
    let folder = Folder::create()?;
    let filesystem = filesystem(&folder.0)?;
    let step = Step::begin(format!("starting {MEMBERS} members of each system on {filesystem}"));
    let clusters =
        System::BOTH.map(|system| Cluster::start(system, &programs, &folder.0).map(|cluster| (system, cluster)));
    let clusters: Vec<(System, Cluster)> = clusters.into_iter().collect::<Result<_>>()?;
    for (system, cluster) in &clusters {
        match system {
            System::Etcd => {}
            System::Althing => cluster.cut(options.shards)?,
        }
        let endpoints = format!("--endpoints={}", cluster.endpoints().join(","));
        let value = "v".repeat(VALUE_BYTES);
        run_with_input(
            Command::new(&programs.etcdctl).args([&endpoints, "put", RANGE_KEY]),
            &value,
        )?;
    }
    step.done();

    let cases = plan::cases(&options.kinds, &options.clients);
    let tool = benchmark.path("benchmark");
    let mut samples = Vec::new();
    for &case in &cases {
        let step = Step::begin(format!("{} with {} client(s)", case.kind.name(), case.clients));
        let mut totals = Vec::new();
        for (system, cluster) in &clusters {
            step.note(format!("how fast is {}?", system.name()));
            totals.push(prepare(&tool, case, *system, cluster, options.seconds)?);
        }
        for round in 1..=options.rounds {
            for ((system, cluster), total) in clusters.iter().zip(&totals) {
                step.note(format!("round {round}, {}", system.name()));
                samples.push(measure(&tool, case, *system, cluster, *total)?);
            }
        }
        step.done();
    }
    let setting = Setting {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        filesystem,
        members: MEMBERS,
        shards: options.shards,
        rounds: options.rounds,
        seconds: options.seconds,
        key_bytes: KEY_BYTES,
        value_bytes: VALUE_BYTES,
        etcd: Parts::version(ETCD),
        althing: env!("CARGO_PKG_VERSION"),
    };
    Ok(Report::new(setting, &cases, &samples))
}

/// Has ours read as the case wants it, and finds out how many requests take about so many seconds.
fn prepare(tool: &Path, case: Case, system: System, cluster: &Cluster, seconds: f64) -> Result<u64> {
    match system {
        System::Etcd => {}
        System::Althing => cluster.read_by(case.kind.read_mode())?,
    }
    let first = measure(tool, case, system, cluster, case.first_total())?;
    Ok(case.total(first.run.rate, seconds))
}

fn measure(tool: &Path, case: Case, system: System, cluster: &Cluster, requests: u64) -> Result<Sample> {
    let cpu = |usage: &[usage::Usage]| usage.iter().map(|usage| usage.cpu).sum::<f64>();
    let before = cluster.usage()?;
    let mut command = Command::new(tool);
    command.args(case.arguments(&cluster.endpoints(), requests));
    let output = run(&mut command)?;
    let after = cluster.usage()?;
    let run = tool::parse(&output).map_err(|what| {
        Error::refused(
            format!("{} against {}: {what}", case.kind.name(), system.name()),
            "run it again",
        )
    })?;
    Ok(Sample {
        case,
        system,
        run,
        requests,
        cpu: cpu(&after) - cpu(&before),
        rss: after.iter().map(|usage| usage.rss).collect(),
    })
}

/// Where members keep their data; gone when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: the next run clears away what is left.
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Folder {
    const PREFIX: &'static str = "bench-";

    /// Makes one, and removes those of runs that were killed.
    fn create() -> Result<Self> {
        let state = paths::state()?;
        fs::create_dir_all(&state).map_err(Error::io("create", &state))?;
        for entry in fs::read_dir(&state).map_err(Error::io("list", &state))? {
            let path = entry.map_err(Error::io("list", &state))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let owner = name.and_then(|name| name.strip_prefix(Self::PREFIX)?.parse::<u32>().ok());
            if owner.is_some_and(|owner| ProcessId::of(owner).is_none()) {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        let own = state.join(format!("{}{}", Self::PREFIX, std::process::id()));
        fs::create_dir_all(&own).map_err(Error::io("create", &own))?;
        Ok(Self(own))
    }
}

/// The type of the filesystem at a path.
///
/// # Errors
/// If it lives in memory: an fsync that costs nothing would decide the comparison.
fn filesystem(path: &Path) -> Result<String> {
    const TMPFS: i64 = 0x0102_1994;
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    const OVERLAY: i64 = 0x794c_7630;
    let stat = statfs(path).map_err(|errno| Error::io("look at the filesystem of", path)(errno.into()))?;
    match stat.f_type {
        TMPFS => Err(Error::refused(
            format!("{} lies in memory, where fsync costs nothing", path.display()),
            "set ALTHING_STATE to a folder on a disk",
        )),
        EXT => Ok("ext4".to_owned()),
        XFS => Ok("xfs".to_owned()),
        BTRFS => Ok("btrfs".to_owned()),
        OVERLAY => Ok("overlayfs".to_owned()),
        other => Ok(format!("filesystem {other:#x}")),
    }
}
