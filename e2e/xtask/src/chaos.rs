//! `cargo xtask chaos`: builds the members' program and the harness, both optimised, and runs the harness.

use std::process::Command;

use althing_e2e::command::run_inherited;
use althing_e2e::{Result, paths};
use clap::Args;

/// What to run; the harness knows what it means and checks it.
#[derive(Args)]
pub(crate) struct Options {
    /// Members, from 3 to 9
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// How long the clients work
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Seed of the faults, decimal or 0x...; drawn if it is not given
    #[arg(long)]
    seed: Option<String>,
    /// Ask for so many shards, and for other numbers up to that now and then
    #[arg(long)]
    shards: Option<u32>,
    /// Flag for every member, as --read-mode=roster-lease; may be given several times
    #[arg(long = "member-flag", value_name = "FLAG", allow_hyphen_values = true)]
    member_flags: Vec<String>,
    /// No fault at all: what splits, merges and moves of shards cost by themselves
    #[arg(long)]
    without_faults: bool,
    /// Milliseconds from one request of a client to its next, if not as usual
    #[arg(long)]
    period_ms: Option<u64>,
    /// No file system for each member, hence no full disk (also so without root)
    #[arg(long)]
    without_volumes: bool,
    /// No clocks with another rate (also so without a C compiler)
    #[arg(long)]
    without_clocks: bool,
    /// cargo's profile for members and harness
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Returns when the run has passed.
///
/// # Errors
/// If it has not, or something does not build.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .args(["run", "--quiet", "--locked", "--profile", &options.profile])
        .args(["--package", "althing-e2e", "--bin", "chaos", "--"])
        .args(["--profile", &options.profile])
        .args(["--nodes", &options.nodes.to_string()])
        .args(["--seconds", &options.seconds.to_string()])
        .args(options.seed.iter().flat_map(|seed| ["--seed", seed]))
        .args(options.shards.iter().map(|shards| format!("--shards={shards}")))
        .args(options.member_flags.iter().map(|flag| format!("--member-flag={flag}")))
        .args(options.without_faults.then_some("--without-faults"))
        .args(options.period_ms.iter().map(|period| format!("--period-ms={period}")))
        .args(options.without_volumes.then_some("--without-volumes"))
        .args(options.without_clocks.then_some("--without-clocks"))
        .current_dir(paths::checkout());
    run_inherited(&mut command)
}
