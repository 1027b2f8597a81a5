//! `cargo xtask bench shards`.

use std::path::PathBuf;
use std::time::Duration;

use althing_e2e::Result;
use althing_e2e::bench::plan::SHARDS_MAX;
use althing_e2e::bench::shards::report::{Disk, Line, Report, Role, ShardLine};
use althing_e2e::bench::shards::{self, Options, chart};
use comfy_table::Table;

use super::{build_node, figures_table, must_be_above_zero, out_folder, parse_names, write, write_json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of shards that the keyspace is cut into.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8],
        value_parser = clap::value_parser!(u32).range(1..=i64::from(SHARDS_MAX)))]
    shards: Vec<u32>,
    /// Only these disks.
    #[arg(long, value_delimiter = ',', default_values_t = Disk::ALL.map(Disk::name).map(str::to_owned))]
    disks: Vec<String>,
    /// Milliseconds that every sync of the slow disk takes longer.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    delay_ms: u64,
    /// Times that each has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one run takes, about.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Requests under way at any time.
    #[arg(long, default_value_t = 1_000)]
    clients: usize,
    /// A built althing-node, instead of building one.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where to write shards.json and shards.svg [default: docs/bench of the checkout].
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<()> {
    must_be_above_zero(
        "rounds, clients and seconds",
        args.rounds > 0 && args.clients > 0 && args.seconds > 0.0,
    )?;
    let report = shards::shards(&Options {
        shards: args.shards,
        disks: parse_names(&args.disks)?,
        delay: Duration::from_millis(args.delay_ms),
        rounds: args.rounds,
        seconds: args.seconds,
        clients: args.clients,
        node: args.node.map_or_else(build_node, Ok)?,
    })?;
    let out = out_folder(args.out)?;
    write_json(&out.join("shards.json"), &report)?;
    write(&out.join("shards.svg"), &chart::svg(&report))?;
    println!(
        "\n{}\n\nWhat each shard did in the last run:\n{}\n",
        lines(&report),
        groups(&report)
    );
    println!(
        "All groups of a member share one log and one sync, and all members and the load generator share {} cores: shards add neither\n\
         disks nor processors here. What this shows is what they cost, and whether a slow disk makes them cost more.",
        report.setting.cores
    );
    println!("shards.json and shards.svg are in {}", out.display());
    Ok(())
}

fn lines(report: &Report) -> Table {
    let header = [
        "disk",
        "shards",
        "puts/s",
        "",
        "by round",
        "p50 ms",
        "p99 ms",
        "server CPU us/put",
        "syncs/put",
        "sync ms",
        "us/put by threads",
    ];
    let mut table = figures_table(header, 1, 10);
    for line in &report.lines {
        let rounds: Vec<String> = line.rounds.iter().map(|rate| format!("{rate:.0}")).collect();
        table.add_row([
            line.disk.name().to_owned(),
            line.shards.to_string(),
            format!("{:.0}", line.requests_per_second),
            format!("{:.2}x", line.throughput_ratio),
            rounds.join(" "),
            format!("{:.1}", line.p50_ms),
            format!("{:.1}", line.p99_ms),
            format!("{:.0}", line.server_cpu_us_per_request),
            format!("{:.3}", line.fsyncs_per_request),
            format!("{:.2}", line.fsync_ms),
            threads(line),
        ]);
    }
    table
}

fn threads(line: &Line) -> String {
    let mut threads: Vec<(&String, &f64)> = line.threads_cpu_us_per_request.iter().collect();
    threads.sort_by(|left, right| right.1.total_cmp(left.1));
    let texts: Vec<String> = threads.iter().map(|(name, cpu)| format!("{name} {cpu:.0}")).collect();
    texts.join(", ")
}

/// One row per run: rows of their own for every group would fill pages, and `shards.json` has them.
fn groups(report: &Report) -> Table {
    let header = [
        "disk",
        "shards",
        "entries (leader)",
        "entries applied at once",
        "applying, us/entry",
        "applying, s of all replicas",
        "sequencer's entries",
    ];
    let mut table = figures_table(header, 1, 7);
    for line in &report.lines {
        let of = |role: Role| line.groups.iter().filter(move |group| group.role == role);
        let list = |of_group: &dyn Fn(&ShardLine) -> String| {
            let texts: Vec<String> = of(Role::Data).map(of_group).collect();
            // Four to a line, so that eight fit on a screen.
            texts
                .chunks(4)
                .map(|some| some.join("  "))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let leader = |group: &ShardLine| group.leader.map_or_else(|| "?".to_owned(), |leader| leader.to_string());
        let sequencer: Vec<String> = of(Role::Sequencer)
            .map(|group| format!("{:.0}", group.entries))
            .collect();
        table.add_row([
            line.disk.name().to_owned(),
            line.shards.to_string(),
            list(&|group| format!("{:.0} ({})", group.entries, leader(group))),
            list(&|group| format!("{:.0}", group.entries_per_batch)),
            list(&|group| format!("{:.1}", group.apply_us_per_entry)),
            list(&|group| format!("{:.2}", group.apply_seconds)),
            sequencer.join(" "),
        ]);
    }
    table
}
