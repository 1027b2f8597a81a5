//! `cargo xtask bench idle`.

use std::path::PathBuf;

use althing_e2e::Result;
use althing_e2e::bench::idle::report::{Latency, Report};
use althing_e2e::bench::idle::{self, Options, SHARDS_MAX};
use comfy_table::Table;

use super::{build_node, figures_table, goal_text, must_be_above_zero, out_folder, write_json};

/// Threads that are shown: the rest uses next to nothing.
const THREADS_SHOWN: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Shards of the keyspace that nobody uses.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=i64::from(SHARDS_MAX)))]
    shards: u32,
    /// Seconds of each look at the members.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Looks, without and with the shards.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// A built althing-node, instead of building one.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where to write idle.json [default: docs/bench of the checkout].
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<()> {
    must_be_above_zero("rounds and seconds", args.rounds > 0 && args.seconds > 0)?;
    let report = idle::idle(&Options {
        shards: args.shards,
        seconds: args.seconds,
        rounds: args.rounds,
        node: args.node.map_or_else(build_node, Ok)?,
    })?;
    let out = out_folder(args.out)?;
    write_json(&out.join("idle.json"), &report)?;
    println!("\n{}\n", processor(&report));
    for line in &report.lines {
        let threads: Vec<String> = line
            .threads
            .iter()
            .take(THREADS_SHOWN)
            .map(|thread| {
                format!(
                    "{} {:.2} % and {:.0} wakes/s",
                    thread.name, thread.cpu_percent, thread.wakes_per_second
                )
            })
            .collect();
        println!("{}: {}", line.name, threads.join(", "));
    }
    println!(
        "one replica costs {:.1} us of processor time a second and {:.0} KiB; all shards were there after {:.1} s\n",
        report.cpu_us_per_replica_second, report.rss_kib_per_replica, report.created_seconds
    );
    println!("{}\n", writes(&report));
    for goal in &report.goals {
        println!("{}", goal_text(goal));
    }
    println!("idle.json is in {}", out.display());
    Ok(())
}

fn processor(report: &Report) -> Table {
    let header = [
        "idle",
        "% of one core",
        "by round",
        "by member",
        "wakes/s",
        "fsyncs/s",
        "RSS MiB per member",
        "groups asleep per member",
    ];
    let mut table = figures_table(header, 1, 7);
    for line in &report.lines {
        let list = |values: &[f64], digits: usize| {
            let texts: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
            texts.join(" ")
        };
        let asleep: Vec<String> = line
            .asleep
            .iter()
            .zip(&line.groups)
            .map(|(asleep, groups)| format!("{asleep}/{groups}"))
            .collect();
        table.add_row([
            line.name.clone(),
            format!("{:.2}", line.cpu_percent),
            list(&line.rounds, 2),
            list(&line.members_cpu_percent, 2),
            format!("{:.0}", line.wakes_per_second),
            format!("{:.1}", line.fsyncs_per_second),
            list(&line.rss_mib, 0),
            asleep.join(" "),
        ]);
    }
    table
}

fn writes(report: &Report) -> Table {
    let mut table = figures_table(
        [
            "writes, one after another",
            "how many",
            "p50 ms",
            "p99 ms",
            "slowest ms",
        ],
        1,
        5,
    );
    let first = format!("{:.2}", report.writes.first_ms);
    table.add_row(["the very first", "1", "", "", &first].map(str::to_owned));
    let row = |name: &str, latency: &Latency| {
        [
            name.to_owned(),
            latency.count.to_string(),
            format!("{:.2}", latency.p50_ms),
            format!("{:.2}", latency.p99_ms),
            format!("{:.2}", latency.slowest_ms),
        ]
    };
    table.add_row(row("to shards that sleep", &report.writes.asleep));
    table.add_row(row("to a shard that is awake", &report.writes.awake));
    table
}
