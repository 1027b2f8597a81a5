//! Several shards under one revision: the model must keep its promises, and notice each broken rule. The tests by number are those of
//! the study of etcd's semantics (etcd-api.md, 6.7). There is no clock in the protocol to skew: what processes have is timers, and every
//! client's run between half and twice as fast.

use althing_sim::rng::mix;
use althing_sim::spread::{Counts, Rule, Run, Workload, run};

/// Where the seeds come from.
const BASE: u64 = 0x5912_ead5;
/// Seeds of each workload. A few seconds of one core.
const SEEDS: u64 = 300;
/// Seeds within which a broken rule must be noticed.
const MUTANT_SEEDS: u64 = 600;

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| mix(BASE.wrapping_add(mix(number))))
}

/// Runs seeds of a workload; all must pass.
fn all_pass(workload: Workload) -> Counts {
    let mut counts = Counts::default();
    for seed in seeds(SEEDS) {
        let broken = None;
        let of = Run { seed, workload, broken };
        match run(of) {
            Ok(of) => counts.add(of),
            Err(violation) => panic!("{of:?}: {violation}"),
        }
    }
    println!("{workload:?}, {SEEDS} seeds: {counts:?}");
    counts
}

/// After how many seeds of a workload a broken rule was noticed, and by what.
fn found(rule: Rule, workload: Workload) -> Option<(usize, String)> {
    let broken = Some(rule);
    seeds(MUTANT_SEEDS).zip(1..).find_map(|(seed, count)| {
        let violation = run(Run { seed, workload, broken }).err()?;
        Some((count, violation.to_string().chars().take(100).collect()))
    })
}

#[test]
fn whatever_clients_do_there_is_one_order_that_revisions_answers_and_real_time_agree_on() {
    let counts = all_pass(Workload::Mixed);
    // What did not happen was not tested.
    assert!(counts.spread > SEEDS && counts.reads > 10 * SEEDS, "{counts:?}");
    assert!(counts.blocked > SEEDS && counts.crashes > SEEDS, "{counts:?}");
    assert!(
        counts.recovered.1 > 50 && counts.recovered.0 > 2 * counts.recovered.1,
        "{counts:?}"
    );
    assert!(counts.elections.1 > SEEDS, "{counts:?}");
}

#[test]
fn test_1_nobody_sees_an_effect_without_its_cause() {
    let counts = all_pass(Workload::LongFork);
    assert!(counts.reads > 10 * SEEDS && counts.elections.1 > SEEDS, "{counts:?}");
    for rule in [Rule::SequencerConfirms, Rule::ReadsWaitForTickets] {
        let found = found(rule, Workload::LongFork);
        assert!(found.is_some(), "{rule:?} was not noticed");
    }
}

#[test]
fn test_2_a_new_leader_of_an_idle_shard_never_writes_below_what_was_read() {
    let counts = all_pass(Workload::IdleRead);
    assert!(
        counts.elections.0 > 10 * SEEDS && counts.reads > 10 * SEEDS,
        "{counts:?}"
    );
    for rule in [
        Rule::StartsAboveCeiling,
        Rule::ReadsConfirm,
        Rule::StampsDieWithLeadership,
    ] {
        let found = found(rule, Workload::IdleRead);
        assert!(found.is_some(), "{rule:?} was not noticed");
    }
}

#[test]
fn test_3_a_lock_whose_keys_lie_on_two_shards_has_one_owner() {
    let counts = all_pass(Workload::Mutex);
    assert!(counts.done > 20 * SEEDS && counts.crashes > SEEDS / 2, "{counts:?}");
    for rule in [Rule::StartsAboveCeiling, Rule::ReadsWaitForTickets] {
        let found = found(rule, Workload::Mutex);
        assert!(found.is_some(), "{rule:?} was not noticed");
    }
}

#[test]
fn every_broken_rule_is_noticed() {
    let mut survivors = Vec::new();
    for rule in Rule::ALL {
        // Elections are everywhere in one of them, and transactions in the other.
        let noticed = found(rule, Workload::Mixed).or_else(|| found(rule, Workload::IdleRead));
        match noticed {
            Some((count, violation)) => println!("{:<26} {count:>4} seeds  {violation}", format!("{rule:?}")),
            None => survivors.push(rule),
        }
    }
    assert!(
        survivors.is_empty(),
        "{MUTANT_SEEDS} seeds did not notice {survivors:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in seeds(20) {
        let (workload, broken) = (Workload::Mixed, None);
        let of = Run { seed, workload, broken };
        assert_eq!(run(of), run(of), "{of:?}");
    }
}
