//! What the command line says.

use althing_sim::{Mutant, Profile, Run};
use std::path::PathBuf;

pub(crate) const USAGE: &str =
    "usage: althing-sim [--profile NAME] [--seeds N] [--base 0x..] [--seed 0x..] [--seconds N] [--mutant NAME]
                   [--mutants] [--threads N] [--keep-going] [--trace] [--shrink FILE] [--replay FILE]

  --profile NAME  kind of weather: calm, swarm, or `all` (the default)
  --seeds N       run N seeds derived from the base, in each profile (default 200)
  --base 0x..     where to derive them from (default: the time of day; it is printed)
  --seed 0x..     run exactly this seed
  --seconds N     simulated seconds of chaos (default: drawn from the seed)
  --mutant NAME   break a rule on purpose, to see it found; an unknown one prints the list
  --mutants       break each rule in turn and print how many seeds it took to notice
  --threads N     run so many seeds at a time (default: one for each core)
  --keep-going    do not stop at the first failing seed
  --trace         print what happens, one line an event
  --shrink FILE   make the first failing run as small as it gets and write its decisions there
  --replay FILE   run the decisions of such a file";

pub(crate) struct Arguments {
    /// Of every run, but for the seed and the profile.
    pub(crate) run: Run,
    pub(crate) profiles: Vec<Profile>,
    /// Exactly this seed.
    pub(crate) seed: Option<u64>,
    pub(crate) seeds: u64,
    pub(crate) base: u64,
    pub(crate) mutants: bool,
    pub(crate) threads: usize,
    pub(crate) keep_going: bool,
    pub(crate) shrink: Option<PathBuf>,
    pub(crate) replay: Option<PathBuf>,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text:?} is no number: {error}"))
}

fn small<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    T::try_from(number(text)?).map_err(|_| format!("{text} is too large"))
}

fn mutant(name: &str) -> Result<Mutant, String> {
    name.parse::<Mutant>().map_err(|error| {
        let names: Vec<String> = Mutant::all().map(|mutant| mutant.to_string()).collect();
        format!("{error}; there are {}", names.join(", "))
    })
}

/// Reads the words after the program's name. An empty error asks for the usage alone.
pub(crate) fn parse(mut words: impl Iterator<Item = String>, base: u64, cores: usize) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        run: Run::of(Profile::default(), 0),
        profiles: Profile::ALL.to_vec(),
        seed: None,
        seeds: 200,
        base,
        mutants: false,
        threads: cores,
        keep_going: false,
        shrink: None,
        replay: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--profile" => match value()?.as_str() {
                "all" => parsed.profiles = Profile::ALL.to_vec(),
                name => {
                    let profile: Result<Profile, _> = name.parse();
                    parsed.profiles = vec![profile.map_err(|error| error.to_string())?];
                }
            },
            "--seeds" => parsed.seeds = number(&value()?)?,
            "--base" => parsed.base = number(&value()?)?,
            "--seed" => parsed.seed = Some(number(&value()?)?),
            "--seconds" => parsed.run.seconds = Some(small(&value()?)?),
            "--mutant" => parsed.run.mutant = Some(mutant(&value()?)?),
            "--mutants" => parsed.mutants = true,
            "--threads" => parsed.threads = small::<usize>(&value()?)?.max(1),
            "--keep-going" => parsed.keep_going = true,
            "--shrink" => parsed.shrink = Some(value()?.into()),
            "--replay" => parsed.replay = Some(value()?.into()),
            "--trace" => parsed.run.trace = true,
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("{other:?} is not known here")),
        }
    }
    Ok(parsed)
}
