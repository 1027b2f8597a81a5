//! What `up` shows while it works: a spinner for each member on a terminal, plain lines otherwise.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::view::paint::{Paint, Tone};

/// Where `up` prints. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Ui {
    paint: Paint,
    own_name: String,
    /// None: not a terminal.
    progress: Option<MultiProgress>,
    spinners: Mutex<BTreeMap<String, ProgressBar>>,
}

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(100);

impl Ui {
    pub(crate) fn new(paint: Paint, terminal: bool, own_name: String) -> Ui {
        Ui {
            paint,
            own_name,
            progress: terminal.then(MultiProgress::new),
            spinners: Mutex::default(),
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, tone: Tone, text: &str) {
        let text = self.paint.text(tone, text);
        match &self.progress {
            // Above the spinners, which stay at the bottom. A terminal that went away is no reason to stop the nodes.
            Some(progress) => drop(progress.println(text)),
            None => self.print(&text),
        }
    }

    /// Text that stays, as it is.
    pub(crate) fn block(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.suspend(|| self.print(text.trim_end_matches('\n'))),
            None => self.print(text.trim_end_matches('\n')),
        }
    }

    fn print(&self, text: &str) {
        use std::io::Write;
        // Not `println!`: it panics when the reader of a pipe has gone, and the supervisor must outlive its audience.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Shows where each of these members is; the lines of others of this cluster go away.
    pub(crate) fn members(&self, cluster: &str, members: &[(String, Tone, String)]) {
        let Some(progress) = &self.progress else {
            return;
        };
        let mut spinners = self.spinners.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!("{cluster}:");
        let gone: Vec<String> = spinners
            .keys()
            .filter(|key| {
                key.strip_prefix(&prefix)
                    .is_some_and(|name| members.iter().all(|(one, _, _)| one != name))
            })
            .cloned()
            .collect();
        for key in gone {
            if let Some(bar) = spinners.remove(&key) {
                bar.finish_and_clear();
                progress.remove(&bar);
            }
        }
        for (name, tone, text) in members {
            let bar = spinners.entry(format!("{prefix}{name}")).or_insert_with(|| {
                let bar = progress.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix:<14} {msg}") {
                    bar.set_style(style);
                }
                bar.set_prefix(name.clone());
                bar.enable_steady_tick(TURN);
                bar
            });
            bar.set_message(self.paint.text(*tone, text));
        }
    }

    /// What a person types to run this program: hints can be copied.
    pub(crate) fn own_name(&self) -> &str {
        &self.own_name
    }

    /// The colour to render with.
    pub(crate) fn paint(&self) -> Paint {
        self.paint
    }
}
