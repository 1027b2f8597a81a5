//! The simulator as a test: fixed seeds, kept seeds, repeatability, and proof that it can find bugs.

use althing_sim::rng::mix;
use althing_sim::{Counts, Mutant, Profile, Run, run};

/// Seeds of the fixed base. About ten seconds of one core.
const SEEDS: u64 = 200;
/// Where the fixed seeds come from.
const BASE: u64 = 0x0a17_4149;
/// Names another base (decimal, or hexadecimal with 0x), so that scheduled runs walk on: the time of day, a build's number.
const BASE_VARIABLE: &str = "ALTHING_SIM_BASE";
/// Seeds within which every mutant must be found.
const MUTANT_SEEDS: u64 = 60;

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}

fn seeds(base: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |number| mix(base.wrapping_add(mix(number))))
}

/// Runs every seed and says of each that fails what broke and how to replay it.
fn all_pass(seeds: impl Iterator<Item = u64>) -> Counts {
    let mut counts = Counts::default();
    let mut failed = String::new();
    for seed in seeds {
        let report = run(Run::of(Profile::Swarm, seed));
        counts.add(report.counts);
        if !report.violations.is_empty() {
            failed += &report.to_string();
        }
    }
    assert!(failed.is_empty(), "{failed}");
    counts
}

#[test]
fn two_hundred_seeds_keep_every_promise_and_exercise_every_fault() {
    let counts = all_pass(seeds(BASE, SEEDS));
    println!("{counts:#?}");
    // Good weather proves nothing.
    let exercised = [
        ("elections", counts.elections),
        ("truncations", counts.truncations),
        ("crashes", counts.crashes),
        ("wipes", counts.wipes),
        ("cuts", counts.cuts),
        ("pauses", counts.pauses),
        ("sync errors", counts.sync_errors),
        ("snapshots installed", counts.installs),
        ("transfers", counts.transfers),
        ("configuration changes", counts.config_changes),
        ("joint configurations", counts.joint_changes),
        ("forwarded proposals", counts.forwards),
        ("operations with an open end", counts.unknown),
    ];
    for (what, count) in exercised {
        assert!(
            count >= 10,
            "{SEEDS} seeds saw only {count} {what}: the profiles do not reach them any more"
        );
    }
    assert!(
        counts.ok > 10 * SEEDS,
        "only {} operations succeeded: clients are not served",
        counts.ok
    );
}

#[test]
fn seeds_of_another_base_keep_every_promise() {
    let Ok(base) = std::env::var(BASE_VARIABLE) else {
        println!("{BASE_VARIABLE} is not set: only the fixed base {BASE:#x} is tested");
        return;
    };
    println!("base {base}");
    all_pass(seeds(number(&base), SEEDS));
}

#[test]
fn kept_seeds_keep_every_promise() {
    let kept = include_str!("../regressions/seeds.txt");
    let lines = kept
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    all_pass(lines.map(|line| number(line.split_whitespace().next().expect("a seed comes first"))));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in seeds(BASE ^ 1, 8) {
        let (first, second) = (run(Run::of(Profile::Swarm, seed)), run(Run::of(Profile::Swarm, seed)));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed:#x} went two ways");
        assert_eq!(first.counts, second.counts);
    }
}

#[test]
fn different_seeds_give_different_runs() {
    let mut hashes: Vec<u64> = seeds(BASE ^ 2, 8)
        .map(|seed| run(Run::of(Profile::Swarm, seed)).trace_hash)
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 8);
}

#[test]
fn every_broken_rule_is_found() {
    let mut survivors = Vec::new();
    for mutant in Mutant::all() {
        let found = seeds(BASE, MUTANT_SEEDS).zip(1..).find_map(|(seed, count)| {
            let report = run(Run {
                mutant: Some(mutant),
                ..Run::of(Profile::Swarm, seed)
            });
            let violation = report.violations.first()?.lines().next()?.to_owned();
            Some((count, violation))
        });
        match found {
            Some((count, violation)) => println!("{mutant:<28} {count:>4} seeds  {violation}"),
            None => survivors.push(mutant.to_string()),
        }
    }
    assert!(
        survivors.is_empty(),
        "{MUTANT_SEEDS} seeds did not notice {survivors:?}"
    );
}
