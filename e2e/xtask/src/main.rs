//! The project's task runner, `cargo xtask <task>`: thin; what it runs lies in `althing_e2e` and the modules here.
#![allow(clippy::disallowed_methods, reason = "measures how long tasks take")]

mod bench;
mod chaos;
mod cluster;
mod codegen;
mod durability;
mod e2e;
mod images;
mod manifests;
mod sim;
mod tests;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's task runner")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A real Kubernetes with three nodes on this machine, to play with.
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// Build the project's images; import them into the cluster that `cluster up` has started, if there is one.
    Images(cluster::Which),
    /// Set up, then run every check, from formatting to tests on a real Kubernetes.
    Test,
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Task),
    /// Run the tests that need a real Kubernetes, on a cluster of their own that is gone afterwards.
    E2e {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Run real processes on loopback under faults, and judge what their clients saw.
    Chaos(chaos::Options),
    /// Run the simulator's seeds, in release mode on all cores; without arguments, 200 new ones in each profile.
    Sim(sim::Arguments),
    /// Cut the power of a recorded node at many moments, start a node on each image, and look for what was lost.
    PowerCut {
        /// How many images.
        #[arg(long, default_value_t = 300)]
        images: u32,
    },
    /// Measure how long a member with much data takes to serve; arguments go to the measuring program.
    Recovery {
        /// --keys, --value-bytes, --starts, --dir, --cold
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Render manifests/install.yaml from the chart.
    Manifests {
        /// Change nothing; fail if the file differs.
        #[arg(long)]
        check: bool,
    },
    /// Clear away what a run has left when its process ends; started by `e2e`.
    #[command(hide = true)]
    Guard {
        /// The process to wait for.
        pid: u32,
    },
    /// Generate node/api's Rust from its .proto files.
    Codegen {
        /// Change nothing; fail if the checked-in files differ.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode, Box<dyn Error>> {
    match task {
        Task::Cluster(task) => cluster::run(task).map_err(Into::into),
        Task::Bench(task) => done(bench::run(task)),
        Task::Images(which) => images::run(&which).map_err(Into::into),
        Task::Test => Ok(if tests::run() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }),
        Task::E2e { filter } => end_to_end(filter.as_deref()).map_err(Into::into),
        Task::Chaos(options) => done(chaos::run(&options)),
        Task::Sim(arguments) => sim::run(&arguments).map_err(Into::into),
        Task::PowerCut { images } => done(durability::power_cut(images)),
        Task::Recovery { args } => done(durability::recovery(&args)),
        Task::Manifests { check: true } => done(manifests::check()),
        Task::Manifests { check: false } => done(manifests::write()),
        Task::Guard { pid } => done(e2e::guard(pid)),
        Task::Codegen { check } => codegen::run(check).map(|()| ExitCode::SUCCESS).map_err(Into::into),
    }
}

fn done(outcome: althing_e2e::Result<()>) -> Result<ExitCode, Box<dyn Error>> {
    outcome.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

fn end_to_end(filter: Option<&str>) -> althing_e2e::Result<ExitCode> {
    let report = e2e::run(filter)?;
    println!();
    report.summaries.iter().for_each(|line| println!("{line}"));
    Ok(if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
