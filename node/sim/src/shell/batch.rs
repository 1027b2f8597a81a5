//! Many runs at a time: each is single-threaded and pure, so any number of them may share a machine.

use althing_sim::{Counts, Mark, Mutant, Report, Run, run};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often the progress bar moves.
const REDRAW: Duration = Duration::from_millis(200);
/// Its width in characters.
const BAR: usize = 40;

/// What many runs came to.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) seeds: u64,
    pub(crate) failed: u64,
    pub(crate) simulated_seconds: f64,
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
    /// The first run that failed.
    pub(crate) failure: Option<Report>,
    /// Of each mark, the number of seeds that hit it.
    pub(crate) marks: BTreeMap<Mark, u64>,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failed += u64::from(!report.violations.is_empty());
        self.simulated_seconds += report.simulated_ns as f64 / 1e9;
        self.counts.add(report.counts);
        for mark in &report.marks {
            *self.marks.entry(*mark).or_default() += 1;
        }
    }
}

/// Does `work` for every item on `threads` threads, and takes the results as they come until `done` says so.
fn spread<T: Send, R: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> R + Sync,
    mut done: impl FnMut(Option<R>) -> bool,
) {
    let items = Mutex::new(items);
    let enough = AtomicBool::new(false);
    let (results, taken) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let results = results.clone();
            let (items, enough, work) = (&items, &enough, &work);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let item = items.lock().expect("invariant: no panic while items are taken").next();
                    let Some(item) = item else { break };
                    if results.send(work(item)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        loop {
            let result = match taken.recv_timeout(REDRAW) {
                Ok(result) => Some(result),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            if done(result) {
                enough.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// Runs them all, or until one fails; prints every failing report.
pub(crate) fn batch(runs: Vec<Run>, threads: usize, keep_going: bool, verbose: bool) -> Totals {
    let total = runs.len() as u64;
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut bar = Bar::new();
    spread(threads, runs.into_iter(), run, |report| {
        if let Some(report) = report {
            totals.add(&report);
            if verbose || !report.violations.is_empty() {
                bar.clear();
                print!("{report}");
            }
            if !report.violations.is_empty() {
                totals.failure.get_or_insert(report);
            }
        }
        let rate = totals.seeds as f64 / started.elapsed().as_secs_f64();
        bar.draw(totals.seeds, total, &format!("{rate:.1} seeds/s"));
        totals.failed > 0 && !keep_going
    });
    bar.clear();
    totals.seconds = started.elapsed().as_secs_f64();
    totals
}

/// How one mutant fared.
pub(crate) struct Killed {
    pub(crate) mutant: Mutant,
    /// Seeds that it took, and what was noticed; `None` if it survived them all.
    pub(crate) by: Option<(u64, String)>,
}

/// Breaks each rule in turn until a seed notices.
pub(crate) fn mutants(runs: &[Run], threads: usize) -> Vec<Killed> {
    let all: Vec<Mutant> = Mutant::all().collect();
    let mut killed = Vec::new();
    let mut bar = Bar::new();
    let hunt = |mutant: Mutant| {
        let by = runs.iter().zip(1..).find_map(|(template, count)| {
            let report = run(Run {
                mutant: Some(mutant),
                ..*template
            });
            let violation = report.violations.first()?.lines().next()?.to_owned();
            Some((count, violation))
        });
        Killed { mutant, by }
    };
    let total = all.len() as u64;
    spread(threads, all.into_iter(), hunt, |result| {
        killed.extend(result);
        bar.draw(killed.len() as u64, total, "mutants");
        false
    });
    bar.clear();
    killed.sort_by_key(|killed| Mutant::all().position(|mutant| mutant == killed.mutant));
    killed
}

/// A progress bar on the terminal, if there is one.
struct Bar {
    shown: bool,
    drawn: Option<Instant>,
}

impl Bar {
    fn new() -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
            drawn: None,
        }
    }

    fn draw(&mut self, done: u64, total: u64, text: &str) {
        if !self.shown || self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        let full = usize::try_from(done * BAR as u64 / total.max(1))
            .unwrap_or(BAR)
            .min(BAR);
        eprint!(
            "\r[{}{}] {done}/{total}  {text} ",
            "#".repeat(full),
            ".".repeat(BAR - full)
        );
        // A bar that cannot be drawn is no reason to stop.
        let _ = std::io::stderr().flush();
        self.drawn = Some(Instant::now());
    }

    fn clear(&mut self) {
        if self.drawn.take().is_some() {
            eprint!("\r{}\r", " ".repeat(BAR + 50));
        }
    }
}
