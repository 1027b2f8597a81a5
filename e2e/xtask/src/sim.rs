//! `cargo xtask sim`: the simulator in release mode. It is a program of its own, so that this one stays quick to build.

use std::process::{Command, ExitCode};

use althing_e2e::{Error, Result, paths};
use clap::Args;

/// What is handed on. The rest of the simulator's options: `cargo run --release -p althing-sim -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run so many seeds in each profile.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Kind of weather, or `all`.
    #[arg(long, default_value = "all")]
    profile: String,
    /// Run exactly this seed (0x for hexadecimal).
    #[arg(long)]
    seed: Option<String>,
    /// Where to derive seeds from; the time of day if not given. It is printed.
    #[arg(long)]
    base: Option<String>,
    /// Simulated seconds of chaos in each run; drawn from the seed if not given.
    #[arg(long)]
    seconds: Option<u32>,
    /// Break this rule on purpose, to see it noticed.
    #[arg(long)]
    mutant: Option<String>,
    /// Break each rule in turn instead, and print how many seeds it took to notice.
    #[arg(long)]
    mutants: bool,
    /// Do not stop at the first failing seed.
    #[arg(long)]
    keep_going: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = Command::new("cargo");
    command
        .args([
            "run",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            "althing-sim",
            "--",
        ])
        .args(["--profile", &arguments.profile, "--seeds", &arguments.seeds.to_string()])
        .current_dir(paths::checkout());
    for (name, value) in [
        ("--seed", &arguments.seed),
        ("--base", &arguments.base),
        ("--mutant", &arguments.mutant),
    ] {
        if let Some(value) = value {
            command.args([name, value]);
        }
    }
    if let Some(seconds) = arguments.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    for (name, given) in [("--mutants", arguments.mutants), ("--keep-going", arguments.keep_going)] {
        if given {
            command.arg(name);
        }
    }
    let status = command.status().map_err(Error::io("start", "cargo"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
