//! Proof that the simulator finds bugs: every rule that can be broken is broken, and must be noticed.

use althing_sim::herd::judge;
use althing_sim::rng::mix;
use althing_sim::{Mutant, Profile, Run, repeat, run, shrink};

/// Where the seeds come from.
const BASE: u64 = 0x0a17_4149;
/// Seeds within which every mutant must be noticed: most are within ten, and those that need several accidents at once within some
/// hundreds.
const SEEDS: u64 = 2_000;

/// What longer searches found for rules on which few runs depend: mutant, seed, and how many it took. These are tried first. Should one
/// not show its mutant any more, because members that send other messages live through other accidents, and the search here finds no
/// other, then search longer: `cargo xtask sim --mutant NAME --seeds 20000`.
const RARE: [(&str, u64, u64); 4] = [
    ("commit-is-kept-secret", 0x96a3_0eda_65b1_4001, 12_037),
    ("count-learners", 0x8e2e_61e9_8d6a_850d, 1_919),
    ("count-learners", 0xf457_0af7_29b7_e585, 5_601),
    ("skip-incarnation", 0x2f3c_8eda_7069_412f, 574),
];

/// Rules whose break thousands of runs do not show (of some with many shards, what seemed to show them was the judge, which did not look at
/// all writes), and where each one's break fails a build instead. The accidents that they need have to be made.
const ELSEWHERE: [(&str, &str); 6] = [
    (
        "stand-through-change",
        "althing-raft, pitfalls: a candidate that hears of a committed change does not go on",
    ),
    ("stamps-outlive-leadership", "spread::Rule::StampsDieWithLeadership"),
    ("sequencer-unconfirmed", "spread::Rule::SequencerConfirms"),
    ("clean-up-the-living", "spread::Rule::ForgetTheDead"),
    (
        "earlier-ticket-serves",
        "althing-shard, stamps: a command takes no revision that was asked for before it came",
    ),
    (
        "close-without-guard",
        "althing-shard, conductor: stories with CloseAnyway",
    ),
];

fn seeds() -> impl Iterator<Item = u64> {
    (0..SEEDS).map(|number| mix(BASE.wrapping_add(mix(number))))
}

#[test]
fn every_broken_rule_is_noticed() {
    let mut survivors = Vec::new();
    for mutant in Mutant::all() {
        let name = mutant.to_string();
        // What takes several groups or a very particular silence to see.
        let staged = mutant.of_hibernation().then(|| judge(Some(mutant), 12));
        if let Some((scene, wrong)) = staged.and_then(|failed| failed.into_iter().next()) {
            println!("{name:<28} scene: {scene}: {wrong}");
            continue;
        }
        if let Some((_, place)) = ELSEWHERE.iter().find(|(unseen, _)| *unseen == name) {
            println!("{name:<28} elsewhere: {place}");
            continue;
        }
        let rare = RARE.iter().filter(|(rare, _, _)| *rare == name);
        let rare = rare.map(|(_, seed, count)| (*seed, *count));
        let found = rare.chain(seeds().zip(1..)).find_map(|(seed, count)| {
            let report = run(Run {
                mutant: Some(mutant),
                ..Run::of(mutant.weather(), seed)
            });
            let violation = report.violations.first()?.lines().next()?.to_owned();
            Some((count, violation))
        });
        match found {
            Some((count, violation)) => println!("{name:<28} {count:>4} seeds  {violation}"),
            None => survivors.push(name),
        }
    }
    assert!(survivors.is_empty(), "{SEEDS} seeds did not notice {survivors:?}");
}

#[test]
fn a_failing_run_shrinks_to_a_handful_of_decisions() {
    let mutant: Mutant = "forgetful-change".parse().expect("there is one of this name");
    let failing = seeds().find_map(|seed| {
        let report = run(Run {
            mutant: Some(mutant),
            ..Run::of(Profile::Swarm, seed)
        });
        report.case.filter(|_| !report.violations.is_empty())
    });
    let case = failing.expect("some seed notices it");
    let small = shrink(&case, Some(mutant), 600);
    println!(
        "{} faults and {} operations became {} and {}",
        case.faults(),
        case.operations(),
        small.faults(),
        small.operations()
    );
    assert!(!repeat(&small, Some(mutant), false).violations.is_empty());
    assert!(repeat(&small, None, false).violations.is_empty());
    assert!(small.faults() + small.operations() <= 12, "{}", small.to_json());
}
