//! One seed, judged.

use crate::lin::{self, Verdict};
pub use crate::world::Sabotage;
use crate::world::{Counts, World};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Everything follows from it.
    pub seed: u64,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
    /// Whether to print what happens, line by line.
    pub trace: bool,
}

impl Run {
    /// A run of unbroken code.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            sabotage: Sabotage::None,
            trace: false,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Broken promises, the first one first; empty if the run passed.
    pub violations: Vec<String>,
    /// What it exercised.
    pub counts: Counts,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Simulated nanoseconds.
    pub simulated_ns: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.violations.is_empty() { "passed" } else { "FAILED" };
        writeln!(
            f,
            "seed {:#018x} {verdict} after {} events, trace {:#018x}",
            self.seed, self.counts.events, self.trace_hash
        )?;
        self.violations
            .iter()
            .try_for_each(|violation| writeln!(f, "  {violation}"))?;
        if !self.violations.is_empty() {
            writeln!(
                f,
                "  replay: cargo run --release -p althing-sim -- --seed {:#x} --trace",
                self.seed
            )?;
        }
        Ok(())
    }
}

/// Runs a seed and judges everything: invariants, liveness, lost writes, linearizability. A failed assertion of
/// production code is a violation like any other.
#[must_use]
pub fn run(run: Run) -> Report {
    let world = catch_unwind(AssertUnwindSafe(|| World::new(run.seed, run.sabotage, run.trace).run()));
    let outcomes = match world {
        Ok(outcomes) => outcomes,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "no message".to_owned());
            return Report {
                seed: run.seed,
                violations: vec![format!("an assertion failed: {text}")],
                counts: Counts::default(),
                trace_hash: 0,
                simulated_ns: 0,
            };
        }
    };
    let mut violations = outcomes.violations;
    let whole = violations.is_empty();
    match lin::check(&outcomes.history, lin::Options::default()) {
        Verdict::Linearizable => {}
        verdict @ (Verdict::Violated(_) | Verdict::Undecided(_)) => violations.push(verdict.to_string()),
    }
    if whole {
        // Only a run that came to its end has a final state to compare with.
        violations.extend(
            lin::lost_writes(&outcomes.history, &outcomes.state)
                .iter()
                .map(ToString::to_string),
        );
    }
    Report {
        seed: run.seed,
        violations,
        counts: outcomes.counts,
        trace_hash: outcomes.trace_hash,
        simulated_ns: outcomes.simulated_ns,
    }
}
