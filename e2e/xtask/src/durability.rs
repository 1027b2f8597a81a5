//! The long forms of the tests of what survives: power cuts, and starts with much data.

use althing_e2e::command::run_inherited;
use althing_e2e::{Result, paths};
use std::process::Command;

/// Replays power cuts; the test says what was lost, and how far it is meanwhile.
pub(crate) fn power_cut(images: u32) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["test", "--locked", "--package=althing-node", "--test=power_cut", "--"])
        .args(["--ignored", "--nocapture", "--test-threads=1", "many_power_cuts"])
        .env("ALTHING_POWER_CUT_IMAGES", images.to_string())
        .current_dir(paths::checkout());
    run_inherited(&mut cargo)
}

/// Measures recovery with optimised programs.
pub(crate) fn recovery(args: &[String]) -> Result<()> {
    let package = ["--release", "--locked", "--package=althing-node"];
    let mut build = Command::new("cargo");
    build
        .arg("build")
        .args(package)
        .args(["--bin=althing-node", "--example=recovery"])
        .current_dir(paths::checkout());
    run_inherited(&mut build)?;
    let mut run = Command::new("cargo");
    run.arg("run")
        .args(package)
        .args(["--quiet", "--example=recovery", "--"])
        .args(args)
        .current_dir(paths::checkout());
    run_inherited(&mut run)
}
