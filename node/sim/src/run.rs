//! One seed, judged.

use crate::history::Op;
use crate::lin::{self, Verdict};
use crate::mutant::{Broken, Mutant};
use crate::profile::Profile;
use crate::shards;
use crate::world::{Case, Counts, Record, World};
use althing_raft::mark::Mark;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Everything follows from it, within what the profile allows.
    pub seed: u64,
    /// The kind of weather.
    pub profile: Profile,
    /// What is broken on purpose.
    pub mutant: Option<Mutant>,
    /// Simulated seconds of chaos; drawn from the seed if `None`.
    pub seconds: Option<u32>,
    /// Whether to print what happens, line by line.
    pub trace: bool,
}

impl Run {
    /// A run of unbroken code.
    #[must_use]
    pub fn of(profile: Profile, seed: u64) -> Self {
        Self {
            seed,
            profile,
            mutant: None,
            seconds: None,
            trace: false,
        }
    }
}

impl fmt::Display for Run {
    /// The arguments that repeat it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--profile {} --seed {:#x}", self.profile, self.seed)?;
        if let Some(mutant) = self.mutant {
            write!(f, " --mutant {mutant}")?;
        }
        if let Some(seconds) = self.seconds {
            write!(f, " --seconds {seconds}")?;
        }
        Ok(())
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub run: Run,
    /// Broken promises, the first one first; empty if the run passed.
    pub violations: Vec<String>,
    /// What it exercised.
    pub counts: Counts,
    /// Rare branches that it took.
    pub marks: Vec<Mark>,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Simulated nanoseconds.
    pub simulated_ns: u64,
    /// Everything that was decided in it, as data.
    pub case: Option<Case>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.violations.is_empty() { "passed" } else { "FAILED" };
        writeln!(
            f,
            "{} seed {:#018x} {verdict} after {} events, trace {:#018x}",
            self.run.profile, self.run.seed, self.counts.events, self.trace_hash
        )?;
        self.violations
            .iter()
            .try_for_each(|violation| writeln!(f, "  {violation}"))?;
        if !self.violations.is_empty() {
            writeln!(
                f,
                "  replay: cargo run --release -p althing-sim -- {} --trace",
                self.run
            )?;
        }
        Ok(())
    }
}

/// Runs a seed and judges everything: invariants, liveness, lost writes, linearizability. A failed assertion of
/// production code is a violation like any other.
#[must_use]
pub fn run(run: Run) -> Report {
    if run.profile == Profile::Shards {
        return run_shards(run);
    }
    judge(run, |record| World::drawn(run, record))
}

/// Runs a seed with many groups, which has judges of its own.
fn run_shards(run: Run) -> Report {
    let now = Rc::new(Cell::new(0));
    let broken = Broken::by(run.mutant);
    let _of_earlier_runs = Mark::take();
    let outcomes = caught(|| shards::run(run, &now));
    drop(broken);
    let marks = Mark::take();
    let report = Report {
        run,
        violations: Vec::new(),
        counts: Counts::default(),
        marks,
        trace_hash: 0,
        simulated_ns: now.get(),
        case: None,
    };
    match outcomes {
        Ok(outcomes) => Report {
            violations: outcomes.violations,
            counts: outcomes.counts,
            trace_hash: outcomes.trace_hash,
            simulated_ns: outcomes.simulated_ns,
            ..report
        },
        Err(panic) => Report {
            violations: vec![format!("an assertion failed: {panic}")],
            ..report
        },
    }
}

/// Runs a case again, with the rule broken that it names, or with none.
#[must_use]
pub fn repeat(case: &Case, mutant: Option<Mutant>, trace: bool) -> Report {
    let run = Run {
        seed: case.seed,
        profile: Profile::default(),
        mutant,
        seconds: None,
        trace,
    };
    judge(run, |record| World::repeated(case, mutant, trace, record))
}

fn judge(run: Run, world: impl FnOnce(Rc<RefCell<Record>>) -> World) -> Report {
    let record = Rc::new(RefCell::new(Record::default()));
    let broken = Broken::by(run.mutant);
    let _of_earlier_runs = Mark::take();
    let outcomes = caught(|| world(Rc::clone(&record)).run());
    drop(broken);
    let marks = Mark::take();
    let record = record.take();
    let case = record.conditions.map(|conditions| Case {
        note: String::new(),
        mutant: run.mutant.map(|mutant| mutant.to_string()),
        seed: run.seed,
        conditions,
        faults: record.faults,
        operations: record.operations,
    });
    let mut outcomes = match outcomes {
        Ok(outcomes) => outcomes,
        Err(panic) => {
            return Report {
                run,
                violations: vec![format!("an assertion failed: {panic}")],
                counts: Counts::default(),
                marks,
                trace_hash: 0,
                simulated_ns: record.now,
                case,
            };
        }
    };
    let mut violations = outcomes.violations;
    let whole = violations.is_empty();
    let options = lin::Options {
        revisions_of_keys: outcomes.revisions_of_keys,
        ..lin::Options::default()
    };
    match lin::check(&outcomes.history, options) {
        Verdict::Linearizable => {}
        Verdict::Violated(_) if outcomes.wild => {
            // Reads under leases may be stale when clocks break their bound. Everything else must still hold.
            outcomes.counts.wild += 1;
            let mut history = outcomes.history.clone();
            history.events.retain(|event| !matches!(event.op, Op::Get { .. }));
            match lin::check(&history, options) {
                Verdict::Linearizable => {}
                verdict @ (Verdict::Violated(_) | Verdict::Undecided(_)) => violations.push(verdict.to_string()),
            }
        }
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
        run,
        violations,
        counts: outcomes.counts,
        marks,
        trace_hash: outcomes.trace_hash,
        simulated_ns: outcomes.simulated_ns,
        case,
    }
}

thread_local! {
    /// What panicked in a run on this thread, and where; `None` outside of runs.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs something and turns a panic into its message and place, without the noise of a backtrace.
fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let in_a_run = PANIC.with_borrow_mut(|text| {
                if let Some(text) = text {
                    let message = info.payload_as_str().unwrap_or("no message");
                    let place = info.location().map(ToString::to_string).unwrap_or_default();
                    *text = format!("{message} ({place})");
                }
                text.is_some()
            });
            if !in_a_run {
                usual(info);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(act));
    let text = PANIC.take().unwrap_or_default();
    outcome.map_err(|_| text)
}
