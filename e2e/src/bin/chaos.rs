//! `cargo xtask chaos`: a long run of real processes under faults. Started by xtask, which builds it first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use althing_e2e::chaos::plan::Abilities;
use althing_e2e::chaos::{self, Options};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "cargo xtask chaos",
    about = "Real processes on loopback under faults, judged by what clients saw"
)]
struct Cli {
    /// Program of the members; built if it is not given.
    #[arg(long)]
    program: Option<PathBuf>,
    /// cargo's profile to build it with.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Members, from 3 to 9.
    #[arg(long, default_value_t = 3, value_parser = parse_members)]
    nodes: usize,
    /// How long the clients work.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the faults, decimal or 0x...; drawn if it is not given.
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
    /// Ask for so many shards, and for other numbers up to that now and then.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: Option<u32>,
    /// Flag for every member, as --read-mode=roster-lease; may be given several times.
    #[arg(long = "member-flag", value_name = "FLAG", allow_hyphen_values = true)]
    member_flags: Vec<String>,
    /// No fault at all: what splits, merges and moves of shards cost by themselves.
    #[arg(long)]
    without_faults: bool,
    /// Milliseconds from one request of a client to its next, if not as usual.
    #[arg(long)]
    period_ms: Option<u64>,
    /// No file system for each member, hence no full disk. Also so without root.
    #[arg(long)]
    without_volumes: bool,
    /// No clocks with another rate. Also so without a C compiler.
    #[arg(long)]
    without_clocks: bool,
}

fn parse_members(text: &str) -> Result<usize, String> {
    let members = text.parse().ok().filter(|members| chaos::MEMBERS.contains(members));
    members.ok_or_else(|| format!("choose from {} to {}", chaos::MEMBERS.start(), chaos::MEMBERS.end()))
}

fn parse_seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> althing_e2e::Result<ExitCode> {
    let machine = chaos::abilities();
    let abilities = Abilities {
        volumes: machine.volumes && !cli.without_volumes,
        clocks: machine.clocks && !cli.without_clocks,
    };
    if !machine.volumes {
        eprintln!("no full disks: a file system for each member needs root");
    }
    if !machine.clocks {
        eprintln!("no clocks of another rate: that needs a C compiler");
    }
    let program = match cli.program {
        Some(program) => program,
        None => chaos::build_node(&cli.profile)?,
    };
    let seed = cli.seed.unwrap_or_else(random_seed);
    let mut options = Options::drawn(program, cli.nodes, Duration::from_secs(cli.seconds), seed, abilities);
    options.flags = cli.member_flags;
    options.period = cli.period_ms.map(Duration::from_millis);
    if cli.without_faults {
        options = options.without_faults();
    }
    if let Some(shards) = cli.shards {
        options = options.with_shards(shards);
    }
    eprintln!(
        "seed {seed:#x}: {} faults in {} s",
        options.plan.faults.len(),
        cli.seconds
    );
    let report = chaos::run(&options, &|line| eprintln!("{line}"))?;
    println!("{report}");
    Ok(if report.failures().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Any will do that is another one each time.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
