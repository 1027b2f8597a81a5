//! `cargo xtask bench`: figures for docs/bench, and a table for a person.

mod idle;
mod profile;
mod shards;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use althing_e2e::bench::plan::{Kind, SHARDS_MAX};
use althing_e2e::bench::report::{Figures, Goal, Line, Report};
use althing_e2e::bench::{self, Options, chart};
use althing_e2e::command::run_inherited;
use althing_e2e::{Error, Result, paths};
use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_NO_BORDERS};
use serde::Serialize;

/// Where the figures that the README shows are kept.
const FOLDER: &str = "docs/bench";

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Three members of Althing and three of etcd side by side, driven by etcd's own `benchmark`.
    Etcd(Etcd),
    /// The ways to answer linearizable reads side by side, at five emulated sites.
    Reads(Reads),
    /// What a thousand shards cost that nobody uses.
    Idle(idle::Args),
    /// Where members' time goes, ours and etcd's: system calls, wake-ups, memory, and flame graphs.
    Profile(profile::Args),
    /// Puts against a keyspace that is cut into more and more shards, also with a disk that is slow.
    Shards(shards::Args),
}

/// What to run; the harness knows what it means and checks it.
#[derive(Args)]
pub(crate) struct Reads {
    /// Times that every mode has its turn.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Puts in a thousand requests; the rest are gets.
    #[arg(long, default_value_t = 10)]
    writes_per_mille: u16,
    /// Times that a responder is killed, and that rosters change and change back.
    #[arg(long, default_value_t = 3)]
    trials: usize,
    /// A built althing-node, instead of building one.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where to write reads.json and reads.svg [default: docs/bench of the checkout].
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Etcd {
    /// Times that every case runs against both.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one run takes, about.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Requests under way at any time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000])]
    clients: Vec<usize>,
    /// Only these cases.
    #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL.map(Kind::name).map(str::to_owned))]
    cases: Vec<String>,
    /// Shards that our keyspace is cut into; the files are named after them if there are several.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(SHARDS_MAX)))]
    shards: u32,
    /// A built althing-node, instead of building one.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where to write etcd.json and etcd.svg [default: docs/bench of the checkout].
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(task: Task) -> Result<()> {
    match task {
        Task::Etcd(args) => etcd(args),
        Task::Reads(args) => reads(args),
        Task::Idle(args) => idle::run(args),
        Task::Profile(args) => profile::run(args),
        Task::Shards(args) => shards::run(args),
    }
}

/// Clients are not built into xtask: another program has them.
fn reads(args: Reads) -> Result<()> {
    let node = args.node.map_or_else(build_node, Ok)?;
    let out = args.out.unwrap_or_else(|| paths::checkout().join(FOLDER));
    let mut command = Command::new("cargo");
    command
        .args(["run", "--quiet", "--locked", "--release"])
        .args(["--package", "althing-e2e", "--bin", "bench-reads", "--"])
        .arg("--node")
        .arg(node)
        .arg("--out")
        .arg(out)
        .args(["--rounds", &args.rounds.to_string()])
        .args(["--seconds", &args.seconds.to_string()])
        .args(["--writes-per-mille", &args.writes_per_mille.to_string()])
        .args(["--trials", &args.trials.to_string()])
        .current_dir(paths::checkout());
    run_inherited(&mut command)
}

fn etcd(args: Etcd) -> Result<()> {
    let kinds = parse_names(&args.cases)?;
    must_be_above_zero(
        "rounds, clients and seconds",
        args.rounds > 0 && !args.clients.contains(&0) && args.seconds > 0.0,
    )?;
    let node = args.node.map_or_else(build_node, Ok)?;
    let report = bench::etcd(&Options {
        rounds: args.rounds,
        seconds: args.seconds,
        clients: args.clients,
        kinds,
        node,
        shards: args.shards,
    })?;
    let out = out_folder(args.out)?;
    let name = match args.shards {
        1 => "etcd".to_owned(),
        shards => format!("etcd-{shards}-shards"),
    };
    write_json(&out.join(format!("{name}.json")), &report)?;
    write(&out.join(format!("{name}.svg")), &chart::svg(&report))?;
    println!("\n{}\n", table(&report));
    if args.shards > 1 {
        println!(
            "{} shards on {} cores: all of them, all members and the load generator share these, so that this shows what shards\n\
             cost (a revision from the sequencer, a log per shard) and not how they scale.",
            args.shards, report.setting.cores
        );
    }
    println!("{name}.json and {name}.svg are in {}", out.display());
    Ok(())
}

/// Cases or disks; a wrong name is answered with the right ones.
fn parse_names<T: FromStr<Err = String>>(names: &[String]) -> Result<Vec<T>> {
    let parse = |name: &String| name.parse().map_err(|what: String| Error::refused(what, "see --help"));
    names.iter().map(parse).collect()
}

/// Refuses what would measure nothing; `numbers` names the flags, and `they_are` tells whether all of them are above 0.
fn must_be_above_zero(numbers: &str, they_are: bool) -> Result<()> {
    if they_are {
        return Ok(());
    }
    Err(Error::refused(format!("{numbers} must be above 0"), "see --help"))
}

/// Where figures go, made if it is not there.
fn out_folder(given: Option<PathBuf>) -> Result<PathBuf> {
    let out = given.unwrap_or_else(|| paths::checkout().join(FOLDER));
    fs::create_dir_all(&out).map_err(Error::io("create", &out))?;
    Ok(out)
}

fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(report).expect("invariant: a report is plain data");
    write(path, &(json + "\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}

/// The program as it is released.
fn build_node() -> Result<PathBuf> {
    build_node_in(&target_folder(), &[])
}

/// The same, built into that folder, and with these variables for Cargo.
fn build_node_in(target: &Path, variables: &[(&str, &str)]) -> Result<PathBuf> {
    run_inherited(
        Command::new("cargo")
            .args(["build", "--release", "--locked", "--package=althing-node"])
            .env("CARGO_TARGET_DIR", target)
            .envs(variables.iter().copied())
            .current_dir(paths::checkout()),
    )?;
    Ok(target.join("release/althing-node"))
}

/// Where Cargo builds.
fn target_folder() -> PathBuf {
    let checkout = paths::checkout();
    let given = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    checkout.join(given)
}

/// An empty table; columns from `left` to before `right` hold numbers.
fn figures_table<const N: usize>(header: [&str; N], left: usize, right: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_NO_BORDERS).set_header(header);
    for column in left..right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A goal with a mark, for a person.
fn goal_text(goal: &Goal) -> String {
    format!("{} {}", if goal.reached { "✓" } else { "✗" }, goal.what)
}

fn table(report: &Report) -> Table {
    let header = [
        "case",
        "clients",
        "",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "server CPU us/request",
        "RSS MiB per member",
        "goals",
    ];
    let mut table = figures_table(header, 3, 7);
    for line in &report.lines {
        table.add_row(cells([line.case, &line.clients.to_string(), "etcd"], &line.etcd, ""));
        table.add_row(cells(["", "", "Althing"], &line.althing, ""));
        table.add_row(ratios(line));
    }
    table
}

fn cells(names: [&str; 3], figures: &Figures, goals: &str) -> Vec<Cell> {
    let rss: Vec<String> = figures.rss_mib.iter().map(|mib| format!("{mib:.0}")).collect();
    names
        .into_iter()
        .map(str::to_owned)
        .chain([
            format!("{:.0}", figures.requests_per_second),
            format!("{:.2}", figures.p50_ms),
            format!("{:.2}", figures.p99_ms),
            format!("{:.0}", figures.server_cpu_us_per_request),
            rss.join(" "),
            goals.to_owned(),
        ])
        .map(Cell::new)
        .collect()
}

fn ratios(line: &Line) -> Vec<Cell> {
    let goals: Vec<String> = line.goals.iter().map(goal_text).collect();
    [
        String::new(),
        String::new(),
        "ratio".to_owned(),
        format!("{:.2}x", line.throughput_ratio),
        format!("{:.2}x", line.p50_ratio),
        format!("{:.2}x", line.althing.p99_ms / line.etcd.p99_ms),
        format!("{:.2}x", line.cpu_ratio),
        String::new(),
        goals.join("\n"),
    ]
    .map(Cell::new)
    .into()
}
