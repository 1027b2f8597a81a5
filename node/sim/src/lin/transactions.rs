//! Transactions over several keys in a history of operations on single keys.

use crate::history::{ClientId, Event, History, Op, Outcome, Reply};
use std::collections::{BTreeMap, BTreeSet};

/// Whether two events are parts of one transaction. A client has one request under way at a time.
pub(crate) fn are_one(one: &Event, other: &Event) -> bool {
    one.client == other.client && one.invoked_ns == other.invoked_ns && one.op.key() != other.op.key()
}

/// The value that an operation writes, if it is one that writes one.
fn value(op: &Op) -> Option<&str> {
    match op {
        Op::Put { value, .. } | Op::CompareAndSwap { value, .. } => Some(value),
        Op::Get { .. } | Op::Delete { .. } => None,
    }
}

/// The writing parts of every transaction that writes more than one key, as places in the history.
fn transactions(history: &History) -> Vec<Vec<usize>> {
    let mut by_call: BTreeMap<(ClientId, u64), Vec<usize>> = BTreeMap::new();
    for (at, event) in history.events.iter().enumerate() {
        if value(&event.op).is_some() {
            by_call.entry((event.client, event.invoked_ns)).or_default().push(at);
        }
    }
    by_call.into_values().filter(|parts| parts.len() > 1).collect()
}

/// By the value that transactions write: the keys that they write it to.
pub(crate) fn written_together(history: &History) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut together: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for parts in transactions(history) {
        for event in parts.into_iter().map(|at| &history.events[at]) {
            if let Some(value) = value(&event.op) {
                together.entry(value).or_default().insert(event.op.key());
            }
        }
    }
    together
}

/// The same history with the revisions of transactions that got no answer and whose value somebody saw: all of their parts took effect at
/// that revision, at some time before the end. `None` if there is nothing to learn.
pub(crate) fn learned(history: &History) -> Option<History> {
    let unanswered: Vec<Vec<usize>> = transactions(history)
        .into_iter()
        .filter(|parts| {
            parts.iter().all(|at| match history.events[*at].outcome {
                Outcome::Unknown { .. } => true,
                Outcome::Ok { .. } | Outcome::Failed { .. } => false,
            })
        })
        .collect();
    if unanswered.is_empty() {
        return None;
    }
    let sights: BTreeMap<(&str, &str), i64> = history
        .events
        .iter()
        .filter_map(|event| match event.reply()? {
            Reply::Get { seen, .. } | Reply::NotSwapped { seen, .. } => {
                let seen = seen.as_ref()?;
                Some(((event.op.key(), seen.value.as_str()), seen.mod_revision))
            }
            Reply::Put { .. } | Reply::Delete { .. } | Reply::Swapped { .. } => None,
        })
        .collect();
    let end = history.events.iter().map(|event| event.returned_ns).max()?;
    let mut learned = history.clone();
    for parts in unanswered {
        let seen = parts.iter().find_map(|at| {
            let op = &history.events[*at].op;
            sights.get(&(op.key(), value(op)?)).copied()
        });
        let Some(revision) = seen else { continue };
        for at in parts {
            let event = &mut learned.events[at];
            let reply = match &event.op {
                Op::Put { .. } => Reply::Put { revision },
                Op::CompareAndSwap { .. } => Reply::Swapped { revision },
                Op::Get { .. } | Op::Delete { .. } => unreachable!("invariant: a writing part writes a value"),
            };
            event.outcome = Outcome::Ok { reply };
            event.returned_ns = end;
        }
    }
    Some(learned)
}
