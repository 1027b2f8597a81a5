//! The measurement of recovery, in small: `cargo xtask recovery` runs for minutes, and nobody would notice that a node does not start any more on
//! the volume that it writes.
#![allow(clippy::unwrap_used, reason = "a panic is the test's own failure")]

use std::process::Command;

#[test]
fn a_node_starts_on_the_volume_that_the_measurement_of_recovery_writes() {
    // Cargo builds examples along with tests, in the folder beside theirs.
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/recovery");
    let mut measure = Command::new(&example);
    measure.args(["--keys", "3000", "--value-bytes", "200", "--starts", "2"]);
    let output = measure
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples` makes it", example.display()));
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}{complained}");
    assert_eq!(
        said.lines().filter(|line| line.contains("ready in")).count(),
        3,
        "{said}"
    );
}
