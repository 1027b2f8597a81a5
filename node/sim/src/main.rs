//! `cargo run --release -p althing-sim -- --seeds 1000`: runs seeds and says how to replay what fails.

#![expect(
    clippy::disallowed_methods,
    reason = "a shell: it picks a base by the clock and measures its own speed"
)]

use althing_sim::rng::mix;
use althing_sim::{Counts, Mutant, Profile, Run, run};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str =
    "usage: althing-sim [--profile NAME] [--seeds N] [--base 0x..] [--seed 0x..] [--seconds N] [--mutant NAME]
                   [--trace] [--keep-going]

  --profile NAME  kind of weather (default swarm); an unknown one prints the list
  --seeds N       run N seeds derived from the base (default 200)
  --base 0x..     where to derive them from (default: the time of day; it is printed)
  --seed 0x..     run exactly this seed
  --seconds N     simulated seconds of chaos (default: drawn from the seed)
  --mutant NAME   break a rule on purpose, to see it found; an unknown one prints the list
  --trace         print what happens, one line an event
  --keep-going    do not stop at the first failing seed";

struct Arguments {
    run: Run,
    /// Whether `run.seed` was asked for.
    one: bool,
    seeds: u64,
    base: u64,
    keep_going: bool,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text:?} is no number: {error}"))
}

fn mutant(name: &str) -> Result<Mutant, String> {
    name.parse::<Mutant>().map_err(|error| {
        let names: Vec<String> = Mutant::all().map(|mutant| mutant.to_string()).collect();
        format!("{error}; there are {}", names.join(", "))
    })
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let base = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut parsed = Arguments {
        run: Run::of(Profile::default(), 0),
        one: false,
        seeds: 200,
        base,
        keep_going: false,
    };
    let run = &mut parsed.run;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--profile" => run.profile = value()?.parse::<Profile>().map_err(|error| error.to_string())?,
            "--seeds" => parsed.seeds = number(&value()?)?,
            "--base" => parsed.base = number(&value()?)?,
            "--seed" => {
                run.seed = number(&value()?)?;
                parsed.one = true;
            }
            "--seconds" => {
                let seconds = number(&value()?)?;
                run.seconds = Some(u32::try_from(seconds).map_err(|_| format!("{seconds} seconds are too many"))?);
            }
            "--mutant" => run.mutant = Some(mutant(&value()?)?),
            "--trace" => run.trace = true,
            "--keep-going" => parsed.keep_going = true,
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("{other:?} is not known here")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let seeds: Vec<u64> = if arguments.one {
        vec![arguments.run.seed]
    } else {
        println!("base {:#x}", arguments.base);
        (0..arguments.seeds)
            .map(|number| mix(arguments.base.wrapping_add(mix(number))))
            .collect()
    };
    let started = Instant::now();
    let (mut done, mut failed, mut simulated) = (0_u64, 0_u64, 0.0);
    let mut counts = Counts::default();
    for seed in seeds {
        let report = run(Run { seed, ..arguments.run });
        done += 1;
        simulated += report.simulated_ns as f64 / 1e9;
        counts.add(report.counts);
        if !report.violations.is_empty() || arguments.one {
            print!("{report}");
        }
        failed += u64::from(!report.violations.is_empty());
        if failed > 0 && !arguments.keep_going {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{counts:#?}");
    println!(
        "{done} seeds, {failed} failed, {simulated:.0} simulated seconds; {:.1} seeds/s, {:.0} events/s",
        done as f64 / seconds,
        counts.events as f64 / seconds,
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
