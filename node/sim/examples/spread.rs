//! `cargo run --release -p althing-sim --example spread -- SEEDS BASE [mutants]`: a longer search of the model of several shards.
//!
//! Prints for each workload how many seeds broke a promise and what the runs exercised; with `mutants` for each rule that is
//! broken on purpose, how many noticed it, and the first of them.

use althing_sim::rng::mix;
use althing_sim::spread::{Counts, Rule, Run, Workload, run};

const USAGE: &str = "how many seeds, and from which base? for example: 10000 1";

fn search(seeds: u64, base: u64, workload: Workload, broken: Option<Rule>) {
    let (mut failed, mut counts, mut first) = (0, Counts::default(), None);
    for number in 0..seeds {
        let seed = mix(base.wrapping_add(mix(number)));
        match run(Run { seed, workload, broken }) {
            Ok(of) => counts.add(of),
            Err(violation) => {
                failed += 1;
                first.get_or_insert((number + 1, seed, violation));
            }
        }
    }
    match broken {
        None => println!("{workload:?}: {failed} of {seeds} seeds failed; {counts:?}"),
        Some(rule) => println!("{workload:?} without {rule:?}: {failed} of {seeds} seeds failed"),
    }
    if let Some((number, seed, violation)) = first {
        let violation: String = violation.to_string().chars().take(300).collect();
        println!("    after {number} seeds, {seed:#x}: {violation}");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
    let (Some(seeds), Some(base)) = (number(0), number(1)) else {
        eprintln!("{USAGE}");
        return;
    };
    let mutants = arguments.get(2).is_some_and(|word| word == "mutants");
    for workload in Workload::ALL {
        if mutants {
            Rule::ALL
                .into_iter()
                .for_each(|rule| search(seeds, base, workload, Some(rule)));
        } else {
            search(seeds, base, workload, None);
        }
    }
}
