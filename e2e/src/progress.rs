//! One line per thing that takes time: a spinner for a person, plain lines for a log.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Something under way; dropped without [`Step::done`], it counts as failed.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    title: String,
    begun: Instant,
    finished: bool,
}

impl Step {
    /// Says that `title` has begun.
    pub fn begin(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}")
            .expect("invariant: the template is a constant that parses");
        bar.set_style(style);
        bar.set_prefix(title.clone());
        bar.enable_steady_tick(TICK);
        if bar.is_hidden() {
            eprintln!("  … {title}");
        }
        Self {
            bar,
            title,
            begun: Instant::now(),
            finished: false,
        }
    }

    /// What it is busy with right now; shown only where lines can be rewritten.
    pub fn note(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Says that it succeeded and returns how long it took.
    pub fn done(mut self) -> Duration {
        self.close("✓");
        self.begun.elapsed()
    }

    fn close(&mut self, mark: &str) {
        self.finished = true;
        self.bar.finish_and_clear();
        eprintln!("  {mark} {} ({:.1} s)", self.title, self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.close("✗");
        }
    }
}
