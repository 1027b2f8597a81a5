//! Real processes on loopback under faults, judged by what their clients saw.
//!
//! [`plan`] draws faults from a seed, pure; [`run`] starts members from the real program, each with its own volume, puts a
//! [`proxy`] between every two of them, has clients at every member write and read, carries the plan out, and says in a
//! [`Report`] whether one etcd at one place could have answered so, whether an acknowledged write is lost, whether all members
//! hold the same in the end, whether one found itself in the wrong, and what each kind of fault cost.

mod clock;
pub(crate) mod cluster;
pub mod fault;
mod layouts;
pub(crate) mod member;
mod nemesis;
pub mod plan;
pub mod proxy;
mod report;
mod volume;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cluster::Cluster;
pub use cluster::MEMBERS;
pub use layouts::Laid;
use layouts::Layouts;
pub use member::Exit;
use nemesis::Nemesis;
pub use nemesis::Struck;
use plan::{Abilities, FaultPlan};
pub use report::{Report, Row};

use crate::command;
use crate::error::{Error, Result};
use crate::paths;
use crate::workload::{Attach, Mix, Plan, Reads, Workload};

/// Clients at each member: two, so that some of their requests are at one member at one time.
const CLIENTS_PER_MEMBER: u32 = 2;
/// From one request of a client to its next: with six clients some 150 requests a second, which leaves two cores to the members.
const PERIOD: Duration = Duration::from_millis(40);
/// Above two election timeouts: a request that comes while nobody leads is answered after all. A request that was lost with a leader
/// holds up its client for so long, and so the table's gaps too, if that happens to all clients at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Keys under use at one time, and for how long: about 700 operations a key for the judge.
const KEYS: u32 = 4;
const KEY_LIFE: Duration = Duration::from_secs(20);
/// Enough that log segments are filled and cut, and that a member which was away for some seconds may need a snapshot.
const VALUE_BYTES: usize = 2 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program of a member.
    pub program: PathBuf,
    /// Flags for every member, beside the harness's own.
    pub flags: Vec<String>,
    /// How many members.
    pub members: usize,
    /// The faults.
    pub plan: FaultPlan,
    /// The seed that the plan was drawn from; `None` if it was made by hand.
    pub seed: Option<u64>,
    /// The most shards that the plan wishes for, if it does for any.
    pub shards: Option<u32>,
    /// What the members are given beside the plain program.
    pub abilities: Abilities,
    /// How clients read; anything but linearizable is there to be found out.
    pub reads: Reads,
    /// From one request of a client to its next, if not as usual.
    pub period: Option<Duration>,
}

impl Options {
    /// The faults of a seed.
    pub fn drawn(program: PathBuf, members: usize, length: Duration, seed: u64, abilities: Abilities) -> Self {
        Self {
            program,
            flags: Vec::new(),
            members,
            plan: plan::draw(seed, members, length, abilities),
            seed: Some(seed),
            shards: None,
            abilities,
            reads: Reads::Linearizable,
            period: None,
        }
    }

    /// Without any fault: what splits, merges and moves cost by themselves.
    #[must_use]
    pub fn without_faults(mut self) -> Self {
        self.plan.faults.clear();
        self
    }

    /// With wishes for at most so many shards, of the same seed.
    #[must_use]
    pub fn with_shards(mut self, shards: u32) -> Self {
        self.plan.layouts = plan::draw_layouts(self.seed.unwrap_or_default(), shards, self.members, self.plan.end);
        self.shards = Some(shards);
        self
    }
}

/// All that this machine can do.
pub fn abilities() -> Abilities {
    Abilities {
        volumes: volume::available(),
        clocks: clock::available(),
    }
}

/// Runs it to its end. `say` is told what happens while it does.
///
/// # Errors
/// If members cannot be started, or the harness itself fails; what is wrong with the members is in the report.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    let folder = own_folder()?;
    let outcome = run_in(options, &folder, say);
    match &outcome {
        Ok(report) if report.failures().is_empty() => {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
        Ok(report) => report.summary.keep(&folder.join("history.jsonl"))?,
        Err(_) => say(&format!("logs: {}", folder.display())),
    }
    outcome
}

fn run_in(options: &Options, folder: &Path, say: &dyn Fn(&str)) -> Result<Report> {
    let mut cluster = Cluster::start(
        &options.program,
        &options.flags,
        options.members,
        folder,
        options.abilities,
    )?;
    let endpoints: Vec<_> = cluster.members.iter().map(member::Member::client_url).collect();
    let plan = match options.shards {
        None => Plan {
            clients: CLIENTS_PER_MEMBER * u32::try_from(options.members).unwrap_or(u32::MAX),
            keys: KEYS,
            period: PERIOD,
            mix: Mix::Everything,
            ..Plan::new(endpoints)
        },
        Some(_) => Plan::spread(endpoints),
    };
    let workload = Workload::start(Plan {
        period: options.period.unwrap_or(plan.period),
        request_timeout: REQUEST_TIMEOUT,
        reads: options.reads,
        attach: Attach::Stay,
        key_life: KEY_LIFE,
        value_bytes: VALUE_BYTES,
        ..plan
    })?;
    let layouts = Layouts::start(&cluster.admin_urls(), options.plan.layouts.clone(), workload.begun())?;
    let struck = Nemesis::new(&mut cluster, &workload, say).run(&options.plan)?;
    let ended = workload.elapsed();
    // Before the last reads: they are to find members that serve, and their words are better than a read's that failed.
    let mut agreement = match options.shards {
        None => cluster.agree(ended),
        Some(_) => cluster.all_serve(ended).map(|()| 0),
    };
    let (laid, reached) = layouts.finish();
    agreement = agreement.and_then(|revision| reached.map(|()| revision));
    let summary = match &agreement {
        Ok(_) => workload.stop(),
        Err(_) => workload.stop_without_last_look(),
    }?;
    // Once more without writes under way.
    let agreement = agreement.and_then(|_| match options.shards {
        None => cluster.agree(ended),
        Some(_) => cluster.agree_at_last(),
    });
    Ok(Report {
        seed: options.seed,
        members: options.members,
        length: options.plan.end,
        abilities: options.abilities,
        flags: options.flags.clone(),
        struck,
        shards: options.shards,
        laid,
        summary,
        agreement,
        exits: cluster
            .members
            .iter()
            .flat_map(|member| member.exits.iter().map(|exit| (member.name.clone(), exit.clone())))
            .collect(),
        panics: cluster
            .members
            .iter()
            .flat_map(|member| member.panics().into_iter().map(|panic| (member.name.clone(), panic)))
            .collect(),
        folder: folder.to_owned(),
    })
}

/// The program that `ALTHING_NODE_BINARY` names; else builds it as `cargo build` does at the root, in this profile of cargo's.
///
/// # Errors
/// If it does not build.
pub fn build_node(profile: &str) -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("ALTHING_NODE_BINARY") {
        return Ok(program.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // Not `--package`: among the default members, as the CLI builds it for local clusters, so that both get the same program and none of
    // what tests switch on.
    build
        .args(["build", "--locked", "--bin", "althing-node", "--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(paths::checkout())
        .stderr(Stdio::inherit());
    let messages = command::run(&mut build)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == "althing-node")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Error::refused("cargo did not say where althing-node is", "see what it printed above"))
}

/// A folder for one run's volumes and logs.
fn own_folder() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let run = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("althing-chaos-{}-{run}", std::process::id()));
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    Ok(folder)
}
