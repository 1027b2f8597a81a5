//! Violations, printed for a person.

use crate::history::{Event, Expect, Op, Outcome, Reply, Seen};
use std::fmt;

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// No order of one key's operations explains every answer.
    Order,
    /// Two acknowledged writes have one revision.
    RevisionUnique,
    /// A write that began after another operation had returned has no higher revision.
    RevisionRises,
    /// A read that began after another operation had returned sees an older revision.
    StaleRead,
    /// One revision is shown with two contents.
    RevisionContent,
    /// An acknowledged write is missing at the end.
    LostWrite,
    /// An event returned before it was invoked: the recorder is broken, nothing can be judged.
    Recorder,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Order => "no order of these operations explains every answer",
            Self::RevisionUnique => "two acknowledged writes share a revision",
            Self::RevisionRises => "a later write did not get a higher revision",
            Self::StaleRead => "a later read saw an older revision",
            Self::RevisionContent => "one revision was shown with two contents",
            Self::LostWrite => "an acknowledged write is missing at the end",
            Self::Recorder => "an operation returned before it was invoked",
        })
    }
}

/// One broken promise with the operations that prove it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The promise.
    pub rule: Rule,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// What else there is to say, for example what was found at the end.
    pub detail: String,
    /// The smallest set of operations that shows it, by invocation time.
    pub window: Vec<Event>,
    /// The operation, in `window`, whose answer is the first that cannot be explained.
    pub culprit: Option<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "violation")?;
        if let Some(key) = &self.key {
            write!(f, " at key {key:?}")?;
        }
        writeln!(f, ": {}", self.rule)?;
        if !self.detail.is_empty() {
            writeln!(f, "  {}", self.detail)?;
        }
        let rows: Vec<[String; 5]> = self.window.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..4).map(width).collect();
        for (index, [from, to, client, op, answer]) in rows.iter().enumerate() {
            let mark = if self.culprit == Some(index) { '>' } else { ' ' };
            writeln!(
                f,
                "{mark} {from:>w0$} .. {to:>w1$}  {client:<w2$}  {op:<w3$}  {answer}",
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2],
                w3 = widths[3],
            )?;
        }
        Ok(())
    }
}

fn row(event: &Event) -> [String; 5] {
    let returned = match event.outcome {
        Outcome::Ok { .. } | Outcome::Failed { .. } => micros(event.returned_ns),
        Outcome::Unknown { .. } => "?".to_owned(),
    };
    [
        micros(event.invoked_ns),
        returned,
        event.client.to_string(),
        op(&event.op),
        answer(&event.outcome),
    ]
}

/// Milliseconds with three decimals.
fn micros(ns: u64) -> String {
    format!("{}.{:03}ms", ns / 1_000_000, ns / 1000 % 1000)
}

fn op(op: &Op) -> String {
    match op {
        Op::Put { key, value } => format!("put {key} = {value:?}"),
        Op::Get { key } => format!("get {key}"),
        Op::Delete { key } => format!("delete {key}"),
        Op::CompareAndSwap { key, expect, value } => {
            let expect = match expect {
                Expect::Absent => "is absent".to_owned(),
                Expect::ModRevision(revision) => format!("has mod revision {revision}"),
                Expect::Value(value) => format!("is {value:?}"),
            };
            format!("if {key} {expect} put {value:?}")
        }
    }
}

fn answer(outcome: &Outcome) -> String {
    let seen = |seen: &Option<Seen>| match seen {
        None => "absent".to_owned(),
        Some(Seen {
            value,
            mod_revision,
            version,
        }) => {
            format!("{value:?} (mod revision {mod_revision}, version {version})")
        }
    };
    match outcome {
        Outcome::Ok { reply } => match reply {
            Reply::Put { revision } => format!("done at {revision}"),
            Reply::Get { revision, seen: kv } => format!("{} at {revision}", seen(kv)),
            Reply::Delete {
                revision,
                deleted: true,
            } => format!("deleted at {revision}"),
            Reply::Delete {
                revision,
                deleted: false,
            } => format!("nothing to delete at {revision}"),
            Reply::Swapped { revision } => format!("swapped at {revision}"),
            Reply::NotSwapped { revision, seen: kv } => {
                format!("not swapped: {} at {revision}", seen(kv))
            }
        },
        Outcome::Failed { error } => format!("failed: {error}"),
        Outcome::Unknown { error } => format!("unknown: {error}"),
    }
}
