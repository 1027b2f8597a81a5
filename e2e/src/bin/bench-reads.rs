//! `cargo xtask bench reads`: figures for docs/bench, and tables for a person. Started by xtask, which builds it first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use althing_e2e::bench::reads::report::{Latency, ModeLine, Report};
use althing_e2e::bench::reads::{self, Options, chart};
use althing_e2e::{Error, Result};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_NO_BORDERS};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench reads",
    about = "The ways to answer linearizable reads side by side, at five emulated sites"
)]
struct Cli {
    /// Times that every mode has its turn.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=20))]
    rounds: u64,
    /// Seconds of each turn.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Puts in a thousand requests.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    writes_per_mille: u16,
    /// Times that a responder is killed, and that rosters change and change back.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=20))]
    trials: u64,
    /// Program of the members.
    #[arg(long)]
    node: PathBuf,
    /// Where to write reads.json and reads.svg.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench reads: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the history is sound: figures of wrong answers are no figures.
fn run(cli: Cli) -> Result<bool> {
    let count = |number| usize::try_from(number).expect("invariant: the range of the flag");
    let report = reads::reads(&Options {
        rounds: count(cli.rounds),
        seconds: cli.seconds,
        writes_per_mille: cli.writes_per_mille,
        trials: count(cli.trials),
        node: cli.node,
    })?;
    fs::create_dir_all(&cli.out).map_err(Error::io("create", &cli.out))?;
    let json = serde_json::to_string_pretty(&report).expect("invariant: a report is plain data");
    write(&cli.out.join("reads.json"), &(json + "\n"))?;
    write(&cli.out.join("reads.svg"), &chart::svg(&report))?;
    println!("\n{}\n\n{}\n", latencies(&report), costs(&report));
    print_trials(&report);
    println!("reads.json and reads.svg are in {}", cli.out.display());
    Ok(report.judged.linearizable)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}

fn table<const N: usize>(header: [&str; N], left: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_NO_BORDERS).set_header(header);
    for column in left..N {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Latencies by site and mode.
fn latencies(report: &Report) -> Table {
    let header = [
        "site", "reads by", "reads", "mean ms", "p50 ms", "p99 ms", "writes", "mean ms", "p50 ms", "p99 ms",
    ];
    let mut table = table(header, 2);
    let figures = |latency: &Latency| {
        [
            latency.count.to_string(),
            format!("{:.2}", latency.mean_ms),
            format!("{:.2}", latency.p50_ms),
            format!("{:.2}", latency.p99_ms),
        ]
    };
    for (site, name) in report.setting.distances.sites.iter().enumerate() {
        for (at, mode) in report.modes.iter().enumerate() {
            let line = &mode.sites[site];
            let names = [if at == 0 { name } else { "" }, mode.mode].map(str::to_owned);
            table.add_row(
                names
                    .into_iter()
                    .chain(figures(&line.reads))
                    .chain(figures(&line.writes)),
            );
        }
    }
    table
}

/// Means over sites, and what reads cost.
fn costs(report: &Report) -> Table {
    let header = [
        "all sites, reads by",
        "mean read ms",
        "by round",
        "mean write ms",
        "failed",
        "messages/read",
        "bytes/read",
        "answered locally",
    ];
    let mut table = table(header, 1);
    for ModeLine {
        mode,
        mean_read_ms,
        mean_write_ms,
        rounds,
        failed,
        messages_per_read,
        bytes_per_read,
        local_share,
        ..
    } in &report.modes
    {
        let rounds: Vec<String> = rounds.iter().map(|mean| format!("{mean:.2}")).collect();
        table.add_row([
            (*mode).to_owned(),
            format!("{mean_read_ms:.2}"),
            rounds.join(" "),
            format!("{mean_write_ms:.2}"),
            failed.to_string(),
            format!("{messages_per_read:.3}"),
            format!("{bytes_per_read:.1}"),
            format!("{:.2} %", local_share * 100.0),
        ]);
    }
    table
}

fn print_trials(report: &Report) {
    let list = |values: &[f64], digits: usize| {
        let texts: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
        texts.join(", ")
    };
    println!(
        "{} killed: nobody could write for {} ms",
        report.killed.site,
        list(&report.killed.write_gaps_ms, 0)
    );
    println!(
        "planned change of the roster: {} ms = {} of the longest round trips",
        list(&report.changes.took_ms, 0),
        list(&report.changes.took_rtts, 2)
    );
    println!(
        "  nobody could write for {} ms meanwhile; while nothing changes, for {:.0} ms at most",
        list(&report.changes.write_gaps_ms, 0),
        report.changes.calm_gap_ms
    );
    println!(
        "leader leases' mean read latency is {:.1}x that of roster leases, {:.1}x that of those that wait for their own keys",
        report.faster, report.faster_own_keys
    );
    println!("{} requests judged", report.judged.requests);
    for goal in &report.goals {
        println!("{} {}", if goal.reached { "✓" } else { "✗" }, goal.what);
    }
}
