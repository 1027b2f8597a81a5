//! Which room may know which: ARCHITECTURE.md's arrows, held on `cargo metadata`.
#![allow(clippy::unwrap_used, reason = "a failing step is the test's failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use althing_e2e::command::run;
use althing_e2e::paths::checkout;
use serde_json::Value;

/// For each crate, the crates of ours that its shipped code may use. An arrow that is not here needs a reason first.
const ARROWS: [(&str, &[&str]); 15] = [
    ("althing-crds", &["althing-admin"]),
    ("althing-raft", &[]),
    ("althing-admin", &[]),
    ("althing-slots", &[]),
    ("althing-wal", &["althing-raft"]),
    ("althing-store", &["althing-raft", "althing-slots"]),
    (
        "althing-shard",
        &["althing-raft", "althing-slots", "althing-wal", "althing-store"],
    ),
    ("althing-api", &["althing-store"]),
    (
        "althing-node",
        &[
            "althing-raft",
            "althing-slots",
            "althing-wal",
            "althing-store",
            "althing-shard",
            "althing-admin",
            "althing-api",
        ],
    ),
    (
        "althing-sim",
        &[
            "althing-raft",
            "althing-slots",
            "althing-wal",
            "althing-store",
            "althing-shard",
        ],
    ),
    ("althing-plan", &["althing-crds", "althing-admin"]),
    ("althing-operator", &["althing-crds", "althing-plan", "althing-admin"]),
    ("althing", &["althing-crds", "althing-plan", "althing-admin"]),
    // As a client, and to have histories judged; never a shell.
    ("althing-e2e", &["althing-admin", "althing-api", "althing-sim"]),
    ("xtask", &["althing-e2e"]),
];

/// Crates that decide: nothing that does IO, keeps time or draws lots may come near them.
const PURE: [&str; 7] = [
    "althing-raft",
    "althing-slots",
    "althing-wal",
    "althing-store",
    "althing-shard",
    "althing-plan",
    "althing-sim",
];
const IMPURE: [&str; 6] = ["tokio", "reqwest", "rand", "getrandom", "chrono", "axum"];

fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(checkout());
    let metadata: Value = serde_json::from_str(&run(&mut cargo).unwrap()).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// What a package's own code depends on; its tests may use more.
fn dependencies(package: &Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().unwrap().iter();
    all.filter(|dependency| dependency["kind"] != "dev")
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let packages = packages();
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let allowed = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is new: say in ARROWS what it may use"));
        for dependency in dependencies(package)
            .iter()
            .filter(|dependency| ours.contains(dependency.as_str()))
        {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} uses {dependency}, but ARCHITECTURE.md has no such arrow"
            );
        }
    }
}

#[test]
fn rooms_that_decide_have_no_clock_no_network_and_no_dice() {
    for package in packages()
        .iter()
        .filter(|package| PURE.contains(&package["name"].as_str().unwrap()))
    {
        for impure in IMPURE {
            assert!(
                !dependencies(package).contains(impure),
                "{} depends on {impure}",
                package["name"]
            );
        }
    }
}

/// The one crate with `unsafe` code; the workspace's lints forbid it, and what is forbidden cannot be allowed again.
const UNSAFE: &str = "althing-slots";

#[test]
fn every_crate_takes_the_workspaces_lints() {
    for package in packages() {
        let path = package["manifest_path"].as_str().unwrap();
        let manifest = std::fs::read_to_string(path).unwrap();
        if package["name"] == UNSAFE {
            for lint in [
                "unsafe_code = \"deny\"",
                "unsafe_op_in_unsafe_fn = \"deny\"",
                "undocumented_unsafe_blocks = \"deny\"",
                "missing_docs = \"warn\"",
                "wildcard_enum_match_arm = \"warn\"",
            ] {
                assert!(manifest.contains(lint), "{path} does not say `{lint}`");
            }
            continue;
        }
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{path} does not say `[lints] workspace = true`"
        );
    }
}
