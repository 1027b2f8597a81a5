//! From a failing case to a small one that fails in the same way: delta debugging (Zeller, Hildebrandt: "Simplifying and
//! isolating failure-inducing input", 2002).

use crate::mutant::Mutant;
use crate::rng::mix;
use crate::run::{Report, repeat};
use crate::world::Case;

/// What is not a decision shifts when decisions go: so many other seeds are tried before a decision counts as needed.
const SEEDS: u64 = 4;
/// Whole passes over the case. Two are nearly always enough: the second finds nothing more.
const PASSES_MAX: usize = 4;

/// A violation without what differs from run to run: numbers and names of members.
fn signature(report: &Report) -> Option<String> {
    let line = report.violations.first()?.lines().next()?;
    let words = line.split_whitespace().map(|word| {
        if word.contains(|letter: char| letter.is_ascii_digit()) {
            "#"
        } else {
            word
        }
    });
    Some(words.collect::<Vec<_>>().join(" "))
}

/// The search and what it may still spend.
struct Search {
    wanted: String,
    mutant: Option<Mutant>,
    runs_left: u64,
    best: Case,
}

impl Search {
    /// Whether this case fails in the wanted way, with its seed or another one. Keeps it if so.
    fn try_case(&mut self, candidate: &Case) -> bool {
        for attempt in 0..SEEDS {
            if self.runs_left == 0 {
                return false;
            }
            self.runs_left -= 1;
            let seed = if attempt == 0 {
                candidate.seed
            } else {
                mix(candidate.seed.wrapping_add(attempt))
            };
            let candidate = Case {
                seed,
                ..candidate.clone()
            };
            if signature(&repeat(&candidate, self.mutant, false)).as_ref() == Some(&self.wanted) {
                self.best = candidate;
                return true;
            }
        }
        false
    }

    fn try_change(&mut self, change: impl FnOnce(&mut Case)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        candidate != self.best && self.try_case(&candidate)
    }

    /// Drops as many elements of a list as it can, large pieces first.
    fn thin<T: Clone>(&mut self, list: impl Fn(&mut Case) -> &mut Vec<T>) {
        let mut piece = list(&mut self.best).len().div_ceil(2).max(1);
        loop {
            let mut from = 0;
            while from < list(&mut self.best).len() {
                let dropped = self.try_change(|case| {
                    let list = list(case);
                    let to = (from + piece).min(list.len());
                    list.drain(from..to);
                });
                if !dropped {
                    from += piece;
                }
            }
            if piece == 1 {
                return;
            }
            piece = piece.div_ceil(2);
        }
    }
}

/// The smallest case found that fails as this one does, within so many runs. The case itself if it does not fail.
#[must_use]
pub fn shrink(case: &Case, mutant: Option<Mutant>, runs_max: u64) -> Case {
    let report = repeat(case, mutant, false);
    let Some(wanted) = signature(&report) else {
        return case.clone();
    };
    let mut search = Search {
        wanted,
        mutant,
        runs_left: runs_max,
        best: case.clone(),
    };
    let end = report.simulated_ns;
    search.try_change(|case| {
        case.faults.retain(|fault| fault.at_ns <= end);
        case.operations.retain(|operation| operation.at_ns <= end);
    });
    for _ in 0..PASSES_MAX {
        let before = search.best.clone();
        search.thin(|case| &mut case.faults);
        search.thin(|case| &mut case.operations);
        for simpler in Case::SIMPLER {
            search.try_change(simpler);
        }
        if search.best == before {
            break;
        }
    }
    search.best
}
