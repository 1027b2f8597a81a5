//! `cargo xtask bench profile`.

use std::path::PathBuf;

use althing_e2e::bench::plan::{Case, Kind};
use althing_e2e::bench::profile::{self, Options, Profile};
use althing_e2e::bench::report::System;
use althing_e2e::{Error, Result};
use comfy_table::Table;

use super::{build_node_in, figures_table, must_be_above_zero, out_folder, target_folder, write, write_json};

/// Threads that are shown: the rest uses next to nothing.
const THREADS_SHOWN: usize = 6;
/// Fewer system calls of a name for a request than this are not shown.
const CALLS_SHOWN: f64 = 0.05;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What clients do meanwhile; `bench etcd` has the names.
    #[arg(long, default_value = "put")]
    case: String,
    /// Requests under way at any time.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Seconds of each of the three runs against either system, about.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// An althing-node built with frame pointers, instead of building one.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where to write the figures and the flame graphs [default: docs/bench of the checkout].
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<()> {
    let kind: Kind = args.case.parse().map_err(|what| Error::refused(what, "see --help"))?;
    must_be_above_zero("clients and seconds", args.clients > 0 && args.seconds > 0.0)?;
    let profiles = profile::profile(&Options {
        case: Case {
            kind,
            clients: args.clients,
        },
        seconds: args.seconds,
        node: args.node.map_or_else(build_with_frames, Ok)?,
    })?;
    let out = out_folder(args.out)?;
    let name = format!("profile-{}-{}", kind.name(), args.clients);
    write_json(&out.join(format!("{name}.json")), &profiles)?;
    for profile in &profiles {
        let flames = out.join(format!("{name}-{}.svg", profile.system.to_lowercase()));
        write(&flames, &profile.flames)?;
    }
    println!("\n{}\n", table(&profiles));
    println!(
        "{name}.json and a flame graph of each system are in {}: open one in a browser, and click on what is wide.",
        out.display()
    );
    Ok(())
}

/// The program as it is released, and every function says who called it; in a folder of its own, so that neither build undoes the other.
fn build_with_frames() -> Result<PathBuf> {
    let target = target_folder().join("frames");
    build_node_in(&target, &[("RUSTFLAGS", "-C force-frame-pointers=yes")])
}

fn table(profiles: &[Profile]) -> Table {
    let [etcd, ours] = System::BOTH.map(System::name);
    let mut table = figures_table(["for one request, all members together", etcd, ours], 1, 3);
    let mut row = |name: &str, value: &dyn Fn(&Profile) -> String| {
        let cells = std::iter::once(name.to_owned()).chain(profiles.iter().map(value));
        table.add_row(cells.collect::<Vec<_>>());
    };
    row("p50, ms", &|profile| format!("{:.2}", profile.p50_ms));
    row("processor time, us", &|profile| {
        format!("{:.0}", profile.cpu_us_per_request)
    });
    row("  in the kernel", &|profile| format!("{:.0} %", profile.shares.kernel));
    row("  for memory", &|profile| match profile.shares.memory {
        Some(share) => format!("{share:.0} %"),
        None => "not known: stripped".to_owned(),
    });
    row("context switches", &|profile| {
        format!("{:.1}", profile.counts.context_switches)
    });
    row("system calls", &|profile| format!("{:.1}", profile.counts.system_calls));
    let calls: Vec<&String> = profiles[0].counts.by_name.keys().collect();
    for call in calls {
        let of = |profile: &Profile| profile.counts.by_name.get(call).copied().unwrap_or_default();
        if profiles.iter().any(|profile| of(profile) >= CALLS_SHOWN) {
            row(&format!("  {call}"), &|profile| format!("{:.2}", of(profile)));
        }
    }
    row("threads", &|profile| {
        let shown = profile.shares.threads.iter().take(THREADS_SHOWN);
        let lines: Vec<String> = shown.map(|(name, share)| format!("{name} {share:.0} %")).collect();
        lines.join("\n")
    });
    table
}
