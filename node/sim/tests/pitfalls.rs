//! The pitfalls of the study that take a whole cluster: P20 and P30, and those of joint consensus. Each is shown twice: the rule
//! holds, and the search notices when it is broken.

use althing_sim::rng::mix;
use althing_sim::{Counts, Mutant, Profile, Run, run};

/// Where the seeds come from: another base than the other tests'.
const BASE: u64 = 0x9133_0020;
/// Seeds that must pass. A few seconds of one core.
const SEEDS: u64 = 60;

/// Seeds within which a broken rule of configuration changes must be noticed: one seed in six changes several members at once,
/// and only for moments.
const MUTANT_SEEDS: u64 = 400;

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| mix(BASE.wrapping_add(mix(number))))
}

fn all_pass() -> Counts {
    let mut counts = Counts::default();
    for seed in seeds(SEEDS) {
        let report = run(Run::of(Profile::Swarm, seed));
        assert!(report.violations.is_empty(), "{report}");
        counts.add(report.counts);
    }
    counts
}

/// After how many seeds a broken rule was noticed.
fn found(mutant: &str, count: u64) -> Option<usize> {
    let mutant: Mutant = mutant.parse().expect("there is one of this name");
    seeds(count).position(|seed| {
        let broken = Run {
            mutant: Some(mutant),
            ..Run::of(Profile::Swarm, seed)
        };
        !run(broken).violations.is_empty()
    })
}

#[test]
fn p20_a_quorum_that_loses_what_was_not_synced_loses_nothing_that_was_acknowledged() {
    let counts = all_pass();
    assert!(counts.crashes > SEEDS, "only {} crashes", counts.crashes);
    // The same crashes after syncs that did nothing, and after answers that did not wait for them.
    assert!(found("lying-disk", SEEDS).is_some());
    assert!(found("ack-before-sync", SEEDS).is_some());
}

#[test]
fn p30_a_wiped_volume_is_another_member_and_would_do_harm_under_its_old_id() {
    let counts = all_pass();
    assert!(counts.wipes >= 10, "only {} wipes", counts.wipes);
    assert!(found("same-id-after-wipe", SEEDS).is_some());
}

#[test]
fn p8_and_p11_broken_rules_of_configuration_changes_are_found() {
    for mutant in ["joint-counts-one-half", "joint-is-never-left", "forgetful-change"] {
        let after = found(mutant, MUTANT_SEEDS);
        println!("{mutant}: noticed after {after:?} seeds");
        assert!(after.is_some(), "{MUTANT_SEEDS} seeds did not notice {mutant}");
    }
    let counts = all_pass();
    assert!(
        counts.joint_changes >= 20,
        "only {} joint changes",
        counts.joint_changes
    );
}
