//! `cargo run --release -p althing-sim -- --seeds 1000`: runs seeds and says how to replay what fails.

#![expect(
    clippy::disallowed_methods,
    reason = "a shell: it picks a base by the clock and measures its own speed"
)]

#[path = "shell/arguments.rs"]
mod arguments;
#[path = "shell/batch.rs"]
mod batch;

use althing_sim::rng::mix;
use althing_sim::{Case, Counts, Mark, Profile, Report, Run, SimError, repeat, shrink};
use arguments::Arguments;
use batch::Totals;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// Runs that a search for a smaller case may take: a minute or two.
const SHRINK_RUNS: u64 = 5_000;

fn main() -> ExitCode {
    let base = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let arguments = match arguments::parse(std::env::args().skip(1), base, cores) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    let outcome = match &arguments.replay {
        Some(path) => replay(path, &arguments),
        None if arguments.mutants => Ok(mutants(&arguments)),
        None => weather(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// The runs of one profile.
fn runs(arguments: &Arguments, profile: Profile) -> Vec<Run> {
    let derived = (0..arguments.seeds).map(|number| mix(arguments.base.wrapping_add(mix(number))));
    let seeds = arguments.seed.map_or_else(|| derived.collect(), |seed| vec![seed]);
    seeds
        .into_iter()
        .map(|seed| Run {
            seed,
            profile,
            ..arguments.run
        })
        .collect()
}

/// Runs every profile's seeds and prints what they exercised.
fn weather(arguments: &Arguments) -> Result<bool, SimError> {
    if arguments.seed.is_none() {
        println!("base {:#x}", arguments.base);
    }
    let one = arguments.seed.is_some();
    // Lines of several runs would mix.
    let threads = if arguments.run.trace { 1 } else { arguments.threads };
    let mut all = Vec::new();
    for &profile in &arguments.profiles {
        let totals = batch::batch(runs(arguments, profile), threads, arguments.keep_going, one);
        let failed = totals.failed > 0;
        all.push((profile, totals));
        if failed && !arguments.keep_going {
            break;
        }
    }
    print_counts(&all);
    print_marks(&all);
    println!();
    for (profile, totals) in &all {
        println!(
            "{profile:<12} {} seeds, {} failed, {:.0} simulated seconds in {:.1} s: {:.1} seeds/s, {:.0} events/s",
            totals.seeds,
            totals.failed,
            totals.simulated_seconds,
            totals.seconds,
            totals.seeds as f64 / totals.seconds,
            totals.counts.events as f64 / totals.seconds,
        );
    }
    let failure = all.iter().find_map(|(_, totals)| totals.failure.as_ref());
    if let (Some(path), Some(report)) = (&arguments.shrink, failure) {
        write_smallest(path, report)?;
    }
    Ok(failure.is_none())
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> SimError {
    let path = path.to_owned();
    move |source| SimError::File { path, source }
}

/// Makes a failing run small and keeps it.
fn write_smallest(path: &Path, report: &Report) -> Result<(), SimError> {
    let Some(case) = &report.case else {
        return Ok(());
    };
    let mut small = shrink(case, report.run.mutant, SHRINK_RUNS);
    println!(
        "{} faults and {} operations became {} and {}: {}",
        case.faults(),
        case.operations(),
        small.faults(),
        small.operations(),
        path.display()
    );
    let violations = repeat(&small, report.run.mutant, false).violations;
    let line = violations.first().and_then(|text| text.lines().next());
    line.unwrap_or_default().clone_into(&mut small.note);
    std::fs::write(path, small.to_json()).map_err(at(path))
}

/// Runs a case once.
fn replay(path: &Path, arguments: &Arguments) -> Result<bool, SimError> {
    let case = Case::from_json(&std::fs::read_to_string(path).map_err(at(path))?)?;
    let mutant = case.mutant.as_deref().and_then(|name| name.parse().ok());
    let report = repeat(&case, mutant.or(arguments.run.mutant), arguments.run.trace);
    println!("{}", case.note);
    report.violations.iter().for_each(|violation| println!("  {violation}"));
    Ok(report.violations.is_empty())
}

fn print_counts(all: &[(Profile, Totals)]) {
    print!("\n{:<36}", "exercised");
    all.iter().for_each(|(profile, _)| print!("{profile:>14}"));
    println!();
    for (row, (label, _)) in Counts::default().rows().into_iter().enumerate() {
        print!("{label:<36}");
        all.iter()
            .for_each(|(_, totals)| print!("{:>14}", totals.counts.rows()[row].1));
        println!();
    }
}

/// Marks that no seed hit, and the rarest of the others.
fn print_marks(all: &[(Profile, Totals)]) {
    /// Enough to see what the next larger batch would lose.
    const RAREST: usize = 5;
    let mut hits: BTreeMap<Mark, u64> = Mark::ALL.iter().map(|mark| (*mark, 0)).collect();
    for (mark, seeds) in all.iter().flat_map(|(_, totals)| &totals.marks) {
        *hits.entry(*mark).or_default() += seeds;
    }
    let never: Vec<String> = hits
        .iter()
        .filter(|(_, seeds)| **seeds == 0)
        .map(|(mark, _)| format!("{mark:?}"))
        .collect();
    let mut rare: Vec<(u64, Mark)> = hits
        .into_iter()
        .filter(|(_, seeds)| *seeds > 0)
        .map(|(mark, seeds)| (seeds, mark))
        .collect();
    rare.sort_unstable();
    let rare: Vec<String> = rare
        .iter()
        .take(RAREST)
        .map(|(seeds, mark)| format!("{mark:?} ({seeds} seeds)"))
        .collect();
    println!(
        "\nmarks hit     {} of {}",
        Mark::ALL.len() - never.len(),
        Mark::ALL.len()
    );
    println!("rarest        {}", rare.join(", "));
    if !never.is_empty() {
        println!("never hit     {}", never.join(", "));
    }
}

/// Breaks every rule in turn and prints how soon each was noticed.
fn mutants(arguments: &Arguments) -> bool {
    /// What fits on a line.
    const TEXT_MAX: usize = 110;
    println!("base {:#x}, at most {} seeds each", arguments.base, arguments.seeds);
    let each: Vec<Vec<Run>> = arguments
        .profiles
        .iter()
        .map(|&profile| runs(arguments, profile))
        .collect();
    // The profiles take turns, so that one seed more means one seed more in each kind of weather.
    let turns: Vec<Run> = (0..each.first().map_or(0, Vec::len))
        .flat_map(|number| each.iter().map(move |runs| runs[number]))
        .collect();
    let killed = batch::mutants(&turns, arguments.threads);
    println!("{:<28}{:>6}  noticed", "mutant", "seeds");
    for one in &killed {
        match &one.by {
            Some((seeds, violation)) => {
                let text: String = violation.chars().take(TEXT_MAX).collect();
                println!("{:<28}{seeds:>6}  {text}", one.mutant);
            }
            None => println!("{:<28}{:>6}  SURVIVED", one.mutant, turns.len()),
        }
    }
    let alive = killed.iter().filter(|one| one.by.is_none()).count();
    println!("\n{} mutants, {alive} survived", killed.len());
    alive == 0
}
