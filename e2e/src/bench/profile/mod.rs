//! Where members' time goes: system calls, wake-ups, memory, and a flame graph, of ours and of etcd's in one run.
//!
//! `perf` looks on from outside, at the same programs that are measured: `perf stat` counts during one run of etcd's `benchmark`, `perf
//! record` takes samples of stacks during another, because either costs something. [`counts`] and [`stacks`] are pure.

pub mod counts;
pub mod stacks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder as Collapser, Options as CollapseOptions};
use inferno::flamegraph;

use super::cluster::{Cluster, Programs};
use super::plan::Case;
use super::report::System;
use super::{BENCHMARK, ETCD, Folder, filesystem, measure, prepare};
use crate::command::run;
use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::progress::Step;

/// Samples a second of every processor. Not a divisor of what servers do in a rhythm, so that no beat hides between samples.
const SAMPLES_PER_SECOND: &str = "997";
/// Frames narrower than this share of the graph, in percent, are left out: nobody could read them.
const NARROWEST_FRAME: f64 = 0.2;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// What clients do meanwhile.
    pub case: Case,
    /// Seconds that each run takes, about.
    pub seconds: f64,
    /// Our program, built with frame pointers.
    pub node: PathBuf,
}

/// One system's members, all together.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// Whose.
    pub system: &'static str,
    /// Median milliseconds of a request, with nobody looking on.
    pub p50_ms: f64,
    /// Microseconds of processor time for a request, with nobody looking on.
    pub cpu_us_per_request: f64,
    /// What was counted, for a request.
    pub counts: counts::Counts,
    /// What the samples say.
    pub shares: stacks::Shares,
    /// The flame graph, as an SVG with buttons of its own.
    #[serde(skip)]
    pub flames: String,
}

/// Looks at both.
///
/// # Errors
/// If there is no `perf`, the kernel does not let it look, a member does not start, or requests fail.
pub fn profile(options: &Options) -> Result<Vec<Profile>> {
    run(Command::new("perf").arg("--version"))?;
    let (etcd, benchmark) = (Parts::build_family(ETCD)?, Parts::build_family(BENCHMARK)?);
    let programs = Programs::new(&etcd, &options.node, None);
    let tool = benchmark.path("benchmark");
    let folder = Folder::create()?;
    filesystem(&folder.0)?;
    System::BOTH
        .into_iter()
        .map(|system| {
            // One after the other: members that idle would be looked at for nothing.
            let step = Step::begin(format!("{} with {} clients", system.name(), options.case.clients));
            let cluster = Cluster::start(system, &programs, &folder.0)?;
            let profile = one(options, system, &cluster, &tool, &folder.0, &step)?;
            step.done();
            Ok(profile)
        })
        .collect()
}

fn one(
    options: &Options,
    system: System,
    cluster: &Cluster,
    tool: &Path,
    folder: &Path,
    step: &Step,
) -> Result<Profile> {
    let case = options.case;
    step.note("how fast is it?");
    let requests = prepare(tool, case, system, cluster, options.seconds)?;
    let alone = measure(tool, case, system, cluster, requests)?;

    let pids: Vec<String> = cluster.pids().iter().map(u32::to_string).collect();
    let perf = |arguments: &[&str], file: &Path| {
        let mut command = Command::new("perf");
        command.args(arguments).arg("--output").arg(file);
        command.args(["--pid", &pids.join(","), "--"]).arg(tool);
        command.args(case.arguments(&cluster.endpoints(), requests));
        run(&mut command)
    };
    step.note("counting");
    let counted = folder.join("counted");
    perf(&["stat", "--field-separator=,", "--event", &counts::events()], &counted)?;
    let counted = fs::read_to_string(&counted).map_err(Error::io("read", &counted))?;
    let counts = counts::parse(&counted, requests).map_err(|what| {
        Error::refused(
            format!("perf stat: {what}"),
            "run it as root, on a kernel with tracepoints",
        )
    })?;

    step.note("taking samples");
    let data = folder.join("samples");
    let record = [
        "record",
        "--event=cpu-clock",
        "--call-graph=fp",
        "--freq",
        SAMPLES_PER_SECOND,
    ];
    perf(&record, &data)?;
    let script = run(Command::new("perf").arg("script").arg("--input").arg(&data))?;
    let folded = collapse(&script)?;
    let title = format!("{}: {}, {} clients", system.name(), case.kind.name(), case.clients);
    Ok(Profile {
        system: system.name(),
        p50_ms: alone.run.p50 * 1e3,
        cpu_us_per_request: alone.cpu * 1e6 / requests as f64,
        counts,
        shares: stacks::shares(&folded),
        flames: draw(&folded, title)?,
    })
}

/// One line for each stack.
fn collapse(script: &str) -> Result<String> {
    let mut options = CollapseOptions::default();
    options.annotate_kernel = true;
    let mut folded = Vec::new();
    Collapser::from(options)
        .collapse(script.as_bytes(), &mut folded)
        .map_err(Error::io("read", "what perf script prints"))?;
    Ok(String::from_utf8_lossy(&folded).into_owned())
}

fn draw(folded: &str, title: String) -> Result<String> {
    let mut options = flamegraph::Options::default();
    options.title = title;
    options.count_name = "nanoseconds".to_owned();
    options.min_width = NARROWEST_FRAME;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut svg).map_err(Error::io("draw", "a flame graph"))?;
    Ok(String::from_utf8_lossy(&svg).into_owned())
}
