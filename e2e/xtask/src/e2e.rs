//! `cargo xtask e2e`: the tests that need a real Kubernetes, on a bed of their own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use althing_e2e::bed::{self, Bed, BedName, Lifetime};
use althing_e2e::command::{describe, run as run_program};
use althing_e2e::parts::Parts;
use althing_e2e::process::ProcessId;
use althing_e2e::progress::Step;
use althing_e2e::{Error, Result, host, image, paths};

/// The test programs that need a bed, in the order in which they run: first the bed itself.
const TARGETS: [&str; 2] = ["bed", "kubernetes"];

/// Crash points between the operator's steps; no other image carries them.
const FEATURES: [&str; 1] = ["althing-operator/failpoints"];

/// What the test programs said in the end.
pub(crate) struct Report {
    /// Their own summary lines.
    pub(crate) summaries: Vec<String>,
    /// Those that failed.
    pub(crate) failed: Vec<&'static str>,
}

/// Builds everything, boots a bed, runs the tests that match `filter`, and clears the bed away.
///
/// # Errors
/// If something before or after the tests goes wrong; failed tests are in the report.
pub(crate) fn run(filter: Option<&str>) -> Result<Report> {
    host::require_root()?;
    host::install_packages()?;
    let parts = Parts::build()?;
    let images = image::build(&image::PROGRAMS, &FEATURES)?;
    let programs = build_tests()?;
    let name: BedName = format!("e2e-{}", std::process::id()).parse()?;
    // Whatever becomes of us, Ctrl-C and SIGKILL included, the guard clears away after us.
    start_guard()?;
    let bed = Bed::up(&name, Lifetime::Ours, &parts)?;
    let outcome = import(&bed, &images).and_then(|()| run_all(&bed, &programs, filter));
    if outcome.as_ref().map_or(true, |report| !report.failed.is_empty()) {
        match keep(&bed) {
            Ok(kept) => eprintln!("  logs of the failed run: {}", kept.display()),
            Err(error) => eprintln!("  the logs of the failed run could not be kept: {error}"),
        }
    }
    let step = Step::begin("clearing the bed away");
    bed.down()?;
    step.done();
    outcome
}

fn import(bed: &Bed, images: &[image::Built]) -> Result<()> {
    let step = Step::begin("importing images");
    for image in images {
        bed.import_image(&image.archive)?;
    }
    step.done();
    Ok(())
}

fn run_all(bed: &Bed, programs: &[(&'static str, PathBuf)], filter: Option<&str>) -> Result<Report> {
    let mut report = Report {
        summaries: Vec::new(),
        failed: Vec::new(),
    };
    for (target, program) in programs {
        let mut command = bed.command(program)?;
        // One at a time: they break the bed for each other. Without capture, because they print what they measured.
        command
            .args(["--ignored", "--test-threads=1", "--nocapture"])
            .args(filter);
        // Where cargo runs a package's tests.
        command
            .current_dir(paths::checkout().join("e2e"))
            .stdout(Stdio::piped());
        println!("\n=== {target}");
        let mut child = command.spawn().map_err(Error::io("start", program))?;
        let stdout = child.stdout.take().expect("invariant: stdout was piped above");
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            println!("{line}");
            if line.starts_with("test result:") {
                report.summaries.push(format!("e2e {target}: {line}"));
            }
        }
        if !child.wait().map_err(Error::io("wait for", program))?.success() {
            report.failed.push(target);
        }
    }
    Ok(report)
}

/// The test programs, built as `cargo test --workspace` builds them, so that both share what is built.
fn build_tests() -> Result<Vec<(&'static str, PathBuf)>> {
    let step = Step::begin("building the end-to-end tests");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["test", "--workspace", "--locked", "--no-run", "--message-format=json"])
        .current_dir(paths::checkout());
    cargo.args(TARGETS.iter().flat_map(|target| ["--test", target]));
    cargo.stderr(Stdio::inherit());
    let messages = run_program(&mut cargo)?;
    let programs = TARGETS
        .iter()
        .map(|target| {
            find_program(&messages, target)
                .map(|program| (*target, program))
                .ok_or_else(|| {
                    Error::refused(
                        format!("`{}` built no test `{target}`", describe(&cargo)),
                        "see e2e/tests",
                    )
                })
        })
        .collect::<Result<_>>()?;
    step.done();
    Ok(programs)
}

/// The executable of a test target among cargo's messages, one JSON document a line.
fn find_program(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| {
            let is_it = message["reason"] == "compiler-artifact"
                && message["target"]["name"] == target
                && message["target"]["kind"][0] == "test";
            if is_it {
                message["executable"].as_str().map(PathBuf::from)
            } else {
                None
            }
        })
}

/// The bed's logs, and how Kubernetes saw it in the end.
fn keep(bed: &Bed) -> Result<PathBuf> {
    let kept = bed.keep_logs()?;
    let views: [(&str, &[&str]); 3] = [
        (
            "objects.txt",
            &[
                "get",
                "raftclusters,shardlayouts,pods,pvc,pv,services,leases",
                "--all-namespaces",
                "-o",
                "wide",
            ],
        ),
        (
            "events.txt",
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
        ),
        (
            "clusters.yaml",
            &["get", "raftclusters,shardlayouts", "--all-namespaces", "-o", "yaml"],
        ),
    ];
    for (file, args) in views {
        // Best effort: a run that failed early has no such objects.
        let text = run_program(bed.kubectl()?.args(args)).unwrap_or_else(|error| error.to_string());
        let path = kept.join(file);
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    }
    Ok(kept)
}

fn start_guard() -> Result<()> {
    // Not the path: building the tests may have replaced the file that this process was started from.
    let own = Path::new("/proc/self/exe");
    let mut guard = Command::new(own);
    guard.args(["guard", &std::process::id().to_string()]).process_group(0);
    guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    guard.spawn().map(drop).map_err(Error::io("start", own))
}

/// Waits until a process has ended, then clears away the beds that were its.
///
/// # Errors
/// If a bed does not go away.
pub(crate) fn guard(pid: u32) -> Result<()> {
    if let Some(owner) = ProcessId::of(pid) {
        owner.wait()?;
    }
    bed::reap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_found_among_cargos_messages_by_name_and_kind() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"bed","kind":["lib"]},"executable":null}
            not json
            {"reason":"compiler-artifact","target":{"name":"bed","kind":["test"]},"executable":"/t/bed-1"}
        "#;
        assert_eq!(find_program(messages, "bed"), Some(PathBuf::from("/t/bed-1")));
        assert_eq!(find_program(messages, "kubernetes"), None);
    }
}
