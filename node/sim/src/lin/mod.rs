//! The judge: is this history what one etcd at one place would have answered?
//!
//! [`check`] combines rules over the whole history (revisions unique and in real-time order, one content
//! per revision) with a search, key by key, for an order that explains every answer. A history passes only
//! with [`Verdict::Linearizable`]; a search that runs out of budget says [`Verdict::Undecided`], and that
//! is no pass. [`lost_writes`] compares the history with the state found at the end.
//!
//! Soundness: every rule follows from linearizability of one keyspace with one revision sequence, so a
//! violation is a bug of the server or of the recorder. Per-key search plus ordered revisions decides
//! strict serializability of single-key operations but for reads of different keys at equal revisions,
//! which commute.
//!
//! A transaction over several keys is several events of one client at one time of invocation, each of one key and with one answered
//! revision; all that it writes is one value. Its reads are events too. As every write has one revision over all keys, and every
//! read must show of its key all that was written up to its own, the order of revisions is the order of everything, and a
//! read of several keys at one revision is a snapshot. What a transaction without an answer did is learned from whoever saw its value.

mod minimise;
mod register;
mod report;
mod rules;
mod search;
mod transactions;

#[cfg(test)]
mod random;
#[cfg(test)]
mod second_opinion;
#[cfg(test)]
mod tests;

pub use report::{Rule, Violation};
pub use rules::lost_writes;

use crate::history::{Event, History, Reply};
use search::Found;
use std::collections::BTreeMap;

/// Bounds of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// States that the search may visit for one key before it gives up. One costs about 100 bytes.
    pub states_max: usize,
    /// Whether the revision of a read may be older than one that was seen before it, as long as its keys are right
    /// (`althing_raft::roster::Revisions::OfKeys`).
    pub revisions_of_keys: bool,
    /// The same for whatever changed nothing: in a keyspace of several shards each tells its own newest revision.
    pub revisions_of_shards: bool,
}

impl Default for Options {
    /// A million states: 100 MB at worst, and 1000 times what histories of healthy runs need.
    fn default() -> Self {
        Self {
            states_max: 1_000_000,
            revisions_of_keys: false,
            revisions_of_shards: false,
        }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// Every answer is explained.
    Linearizable,
    /// At least one answer cannot be explained. Print the violations: each shows its smallest window.
    Violated(Vec<Violation>),
    /// No violation found, but the search gave up on these keys. Not a pass: run fewer clients per key.
    Undecided(Vec<String>),
}

impl Verdict {
    /// Whether every answer is explained.
    #[must_use]
    pub fn passed(&self) -> bool {
        match self {
            Self::Linearizable => true,
            Self::Violated(_) | Self::Undecided(_) => false,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Linearizable => writeln!(f, "linearizable"),
            Self::Violated(violations) => violations.iter().try_for_each(|violation| write!(f, "{violation}")),
            Self::Undecided(keys) => writeln!(f, "undecided: the search gave up on keys {}", keys.join(", ")),
        }
    }
}

/// Judges a history. Keys must have been absent when it began.
pub fn check(history: &History, options: Options) -> Verdict {
    if let Some(violation) = rules::recorder(history) {
        return Verdict::Violated(vec![violation]);
    }
    let learned = transactions::learned(history);
    let history = learned.as_ref().unwrap_or(history);
    let lifted = if options.revisions_of_shards {
        Some(rules::lifted(history, |reply| !reply.wrote()))
    } else if options.revisions_of_keys {
        Some(rules::lifted(history, |reply| matches!(reply, Reply::Get { .. })))
    } else {
        None
    };
    let history = lifted.as_ref().unwrap_or(history);
    let mut violations = rules::violations(history);
    let mut undecided = Vec::new();
    for (key, events) in by_key(history) {
        match decide(&events, options.states_max) {
            Found::Order => {}
            Found::NoOrder => violations.push(minimise::explain(key, &events)),
            Found::GaveUp => undecided.push(key.to_owned()),
        }
    }
    if !violations.is_empty() {
        Verdict::Violated(violations)
    } else if !undecided.is_empty() {
        Verdict::Undecided(undecided)
    } else {
        Verdict::Linearizable
    }
}

fn by_key(history: &History) -> BTreeMap<&str, Vec<&Event>> {
    let mut keys: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &history.events {
        keys.entry(event.op.key()).or_default().push(event);
    }
    keys
}

/// Searches an order for the events of one key.
fn decide(events: &[&Event], states_max: usize) -> Found {
    search::search(
        &register::Register,
        &register::State::default(),
        &register::calls(events),
        states_max,
    )
}
