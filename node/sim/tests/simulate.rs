//! The simulator as a test: fixed seeds and fresh ones in every kind of weather, kept cases, repeatability.

use althing_sim::rng::mix;
use althing_sim::{Case, Counts, Mark, Profile, Report, Run, repeat, run};
use std::collections::BTreeSet;

/// Seeds of each base and profile. About ten seconds of one core.
const SEEDS: u64 = 200;
/// Seeds of each base with many shards: such a run is as long as ten others. A minute of one core.
const SHARD_SEEDS: u64 = 100;
/// Where the fixed seeds come from.
const BASE: u64 = 0x0a17_4149;
/// Names the fresh base (decimal, or hexadecimal with 0x) instead of the time of day: a build's number, or what an earlier run
/// printed.
const BASE_VARIABLE: &str = "ALTHING_SIM_BASE";

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "another base for every test run, so that no build runs old seeds alone"
)]
fn fresh_base() -> u64 {
    match std::env::var(BASE_VARIABLE) {
        Ok(base) => number(&base),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
    }
}

fn seeds(base: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |number| mix(base.wrapping_add(mix(number))))
}

/// What many runs exercised.
#[derive(Default)]
struct Exercised {
    counts: Counts,
    marks: BTreeSet<Mark>,
}

impl Exercised {
    fn add(&mut self, report: &Report) {
        self.counts.add(report.counts);
        self.marks.extend(&report.marks);
    }
}

/// Runs every seed and says of each that fails what broke and how to replay it.
fn all_pass(profile: Profile, seeds: impl Iterator<Item = u64>) -> Exercised {
    let mut exercised = Exercised::default();
    let mut failed = String::new();
    for seed in seeds {
        let report = run(Run::of(profile, seed));
        exercised.add(&report);
        if !report.violations.is_empty() {
            failed += &report.to_string();
        }
    }
    assert!(failed.is_empty(), "{failed}");
    exercised
}

/// One test for each profile, so that they use the cores side by side.
fn both_bases(profile: Profile) {
    all_pass(profile, seeds(BASE, SEEDS));
    let fresh = fresh_base();
    println!("{profile}: fresh base {fresh:#x}; {BASE_VARIABLE} repeats it");
    all_pass(profile, seeds(fresh, SEEDS));
}

#[test]
fn calm_weather_keeps_every_promise() {
    both_bases(Profile::Calm);
}

#[test]
fn swarm_weather_keeps_every_promise() {
    both_bases(Profile::Swarm);
}

#[test]
fn lease_heavy_weather_keeps_every_promise() {
    both_bases(Profile::LeaseHeavy);
}

#[test]
fn clocks_beyond_their_bound_break_leases_and_nothing_else() {
    let exercised = all_pass(Profile::WildClocks, seeds(BASE, SEEDS));
    // The judge sees what such clocks do: it would see it within the bound too.
    println!("lease promises broken by wild clocks: {}", exercised.counts.wild);
    assert!(exercised.counts.wild > 0);
}

#[test]
fn shards_keep_every_promise_while_they_are_cut_joined_and_moved() {
    let exercised = all_pass(Profile::Shards, seeds(BASE, SHARD_SEEDS));
    for (what, count) in exercised.counts.rows_of_shards() {
        println!("{what:<56}{count:>10}");
        assert!(count > 0, "{SHARD_SEEDS} seeds with shards saw no {what}");
    }
    assert!(
        exercised.counts.ok > 100 * SHARD_SEEDS,
        "only {} succeeded",
        exercised.counts.ok
    );
    let fresh = fresh_base();
    println!("shards: fresh base {fresh:#x}; {BASE_VARIABLE} repeats it");
    all_pass(Profile::Shards, seeds(fresh, SHARD_SEEDS));
}

#[test]
fn the_fixed_seeds_exercise_every_fault_and_hit_every_mark() {
    let mut all = Exercised::default();
    for profile in Profile::ALL.into_iter().filter(|profile| profile.has_cases()) {
        for seed in seeds(BASE, SEEDS) {
            all.add(&run(Run::of(profile, seed)));
        }
    }
    // Good weather proves nothing.
    let of_shards: BTreeSet<_> = all.counts.rows_of_shards().into_iter().map(|(what, _)| what).collect();
    for (what, count) in all.counts.rows() {
        println!("{what:<36}{count:>10}");
        assert!(
            of_shards.contains(what) || count > 0,
            "{SEEDS} seeds of each profile saw no {what}"
        );
    }
    let never: Vec<_> = Mark::ALL.iter().filter(|mark| !all.marks.contains(mark)).collect();
    assert!(never.is_empty(), "{SEEDS} seeds of each profile never hit {never:?}");
    assert!(
        all.counts.ok > 40 * SEEDS,
        "only {} operations succeeded: the weather is too bad to prove anything",
        all.counts.ok
    );
}

#[test]
fn kept_seeds_keep_every_promise() {
    let kept = include_str!("../regressions/seeds.txt");
    let lines = kept
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let seeds = lines.map(|line| number(line.split_whitespace().next().expect("a seed comes first")));
    all_pass(Profile::Swarm, seeds);
}

#[test]
fn kept_cases_keep_every_promise() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is checked in")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .collect();
    paths.sort_unstable();
    assert!(!paths.is_empty(), "there are kept cases");
    for path in paths {
        let name = path.display();
        let case = Case::from_json(&std::fs::read_to_string(&path).expect("a kept case can be read"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let report = repeat(&case, None, false);
        assert!(report.violations.is_empty(), "{name}: {:?}", report.violations);
        if let Some(mutant) = &case.mutant {
            let mutant = mutant.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            let report = repeat(&case, Some(mutant), false);
            // No promise for ever: a core that sends other messages may take the same decisions elsewhere.
            match report.violations.first() {
                Some(violation) => println!("{name}: with {mutant}: {violation}"),
                None => println!("{name}: the same decisions no longer show {mutant}"),
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_so_do_its_decisions() {
    for profile in Profile::ALL {
        for seed in seeds(BASE ^ 1, 8) {
            let (first, second) = (run(Run::of(profile, seed)), run(Run::of(profile, seed)));
            assert_eq!(
                first.trace_hash, second.trace_hash,
                "{profile} seed {seed:#x} went two ways"
            );
            assert_eq!(first.counts, second.counts);
            if !profile.has_cases() {
                continue;
            }
            let case = first.case.expect("a run tells what was decided");
            let read = Case::from_json(&case.to_json()).expect("a case survives its file");
            assert_eq!(read, case);
            let again = repeat(&read, None, false);
            assert_eq!(
                again.trace_hash, first.trace_hash,
                "{profile} seed {seed:#x}: its decisions lead elsewhere"
            );
        }
    }
}

#[test]
fn different_seeds_give_different_runs() {
    let hashes: BTreeSet<u64> = seeds(BASE ^ 2, 8)
        .map(|seed| run(Run::of(Profile::Swarm, seed)).trace_hash)
        .collect();
    assert_eq!(hashes.len(), 8);
}
