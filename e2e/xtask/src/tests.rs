//! `cargo xtask test`: sets up, then every check there is, from formatting to a real Kubernetes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use althing_e2e::command::{describe, run as run_program, run_inherited};
use althing_e2e::parts::Parts;
use althing_e2e::{Error, Result, host, paths};
use comfy_table::{Cell, Table, presets::UTF8_NO_BORDERS};

use crate::{codegen, e2e, manifests};

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// How a check ended, if it did not fail.
enum Outcome {
    Passed,
    /// Not run, or only in part, and why.
    Skipped(String),
}

/// A check's end; any error will do, it is only shown.
type CheckResult = std::result::Result<Outcome, Box<dyn std::error::Error>>;

/// A check; to add one, add a line to [`CHECKS`].
struct Check {
    name: &'static str,
    run: fn(&mut Vec<String>) -> CheckResult,
}

const CHECKS: [Check; 10] = [
    Check {
        name: "set-up",
        run: |_| set_up(),
    },
    Check {
        name: "formatting",
        run: |_| cargo(&["fmt", "--all", "--check"]),
    },
    Check {
        name: "clippy",
        run: |_| {
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ])
        },
    },
    Check {
        name: "dependencies",
        run: |_| dependencies(),
    },
    Check {
        name: "generated gRPC code",
        run: |_| Ok(codegen::run(true).map(|()| Outcome::Passed)?),
    },
    Check {
        name: "generated CRDs",
        run: |_| {
            let crdgen = [
                "run",
                "--locked",
                "--quiet",
                "--package=althing-crds",
                "--bin=crdgen",
                "--",
            ];
            cargo(&[&crdgen[..], &["--check", "charts/althing/crds"]].concat())
        },
    },
    Check {
        name: "rendered manifests",
        run: |_| Ok(manifests::check().map(|()| Outcome::Passed)?),
    },
    Check {
        name: "alert rules",
        run: |_| alert_rules(),
    },
    Check {
        name: "tests",
        run: workspace_tests,
    },
    Check {
        name: "end-to-end tests",
        run: end_to_end,
    },
];

/// Runs all checks, also after one has failed; returns whether all passed.
pub(crate) fn run() -> bool {
    let mut table = Table::new();
    table
        .load_style(UTF8_NO_BORDERS)
        .set_header(["check", "result", "time", ""]);
    let mut summaries = Vec::new();
    let mut passed = true;
    let begun = Instant::now();
    for check in &CHECKS {
        println!("\n=== {}", check.name);
        let begun = Instant::now();
        let (result, remark) = match (check.run)(&mut summaries) {
            Ok(Outcome::Passed) => ("passed", String::new()),
            Ok(Outcome::Skipped(why)) => ("skipped", why),
            Err(error) => {
                passed = false;
                eprintln!("{error}");
                (
                    "FAILED",
                    error.to_string().lines().next().unwrap_or_default().to_owned(),
                )
            }
        };
        table.add_row([check.name, result, &time(begun.elapsed()), &remark].map(Cell::new));
    }
    table.add_row(
        [
            "all",
            if passed { "passed" } else { "FAILED" },
            &time(begun.elapsed()),
            "",
        ]
        .map(Cell::new),
    );
    println!("\n{table}\n");
    // Last, as the test runners wrote them: what reads this output looks for them at the end.
    summaries.iter().for_each(|line| println!("{line}"));
    passed
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn set_up() -> CheckResult {
    if host::is_root() {
        host::install_packages()?;
        host::install_target(paths::checkout())?;
        Parts::build()?;
        Ok(Outcome::Passed)
    } else {
        Ok(Outcome::Skipped(
            "without root: no packages are installed, and Helm alone is built".to_owned(),
        ))
    }
}

fn cargo(args: &[&str]) -> CheckResult {
    run_inherited(Command::new("cargo").args(args).current_dir(paths::checkout()))?;
    Ok(Outcome::Passed)
}

/// Licences, sources and banned crates always; advisories where their database can be had.
fn dependencies() -> CheckResult {
    let program = cargo_deny()?;
    let deny = |checks: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(["--locked", "check", "--hide-inclusion-graph"])
            .args(checks)
            .current_dir(paths::checkout());
        command
    };
    run_inherited(&mut deny(&["bans", "licenses", "sources"]))?;
    match run_program(&mut deny(&["advisories"])) {
        Ok(_) => Ok(Outcome::Passed),
        Err(Error::Command { output, .. }) if output.contains("failed to fetch advisory database") => Ok(
            Outcome::Skipped("advisories only: their database could not be fetched; the rest passed".to_owned()),
        ),
        Err(error) => Err(error.into()),
    }
}

/// cargo-deny of the pinned version, in the cache.
fn cargo_deny() -> Result<PathBuf> {
    let root = paths::cache()?.join("tools").join(format!("cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let mut install = Command::new("cargo");
        // Unoptimised: it runs for seconds, and takes minutes more to build optimised.
        install.args([
            "install",
            "cargo-deny",
            "--debug",
            "--locked",
            "--quiet",
            "--version",
            CARGO_DENY,
            "--root",
        ]);
        run_inherited(install.arg(&root).current_dir(paths::checkout()))?;
    }
    Ok(program)
}

fn alert_rules() -> CheckResult {
    let promtool = Path::new("/usr/bin/promtool");
    if !promtool.exists() {
        return Ok(Outcome::Skipped(
            "promtool (Debian package prometheus) is not installed".to_owned(),
        ));
    }
    let rules = paths::checkout().join("charts/althing/rules");
    run_inherited(
        Command::new(promtool)
            .args(["check", "rules", "althing.yaml"])
            .current_dir(&rules),
    )?;
    run_inherited(
        Command::new(promtool)
            .args(["test", "rules", "althing_test.yaml"])
            .current_dir(&rules),
    )?;
    Ok(Outcome::Passed)
}

fn workspace_tests(summaries: &mut Vec<String>) -> CheckResult {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .current_dir(paths::checkout());
    // Built beside us by this very command before any test runs; alone it would have other features, and be built twice.
    let own = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    command.env("ALTHING_NODE_BINARY", own.with_file_name("althing-node"));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io("start", "cargo"))?;
    let stdout = child.stdout.take().expect("invariant: stdout was piped above");
    for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
        println!("{line}");
        if line.starts_with("test result:") {
            summaries.push(line);
        }
    }
    let status = child.wait().map_err(Error::io("wait for", "cargo"))?;
    if status.success() {
        return Ok(Outcome::Passed);
    }
    Err(format!("`{}` failed with {status}", describe(&command)).into())
}

fn end_to_end(summaries: &mut Vec<String>) -> CheckResult {
    if !host::is_root() {
        return Ok(Outcome::Skipped("needs root: namespaces, mounts, cgroups".to_owned()));
    }
    let report = e2e::run(None)?;
    summaries.extend(report.summaries);
    if report.failed.is_empty() {
        return Ok(Outcome::Passed);
    }
    Err(format!("failed: {}", report.failed.join(", ")).into())
}
