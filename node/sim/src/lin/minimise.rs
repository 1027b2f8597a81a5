//! Cuts a history without an order down to the few operations that prove it.
//!
//! Only relaxations are tried: an operation that returned later than some moment becomes one whose fate is
//! unknown, a read is dropped. What has no order after a relaxation had none before, so every window is a
//! proof by itself, together with writes that may or may not have happened.

use super::register::sight;
use super::report::{Rule, Violation};
use super::search::Found;
use crate::history::{Event, Expect, Op, Outcome};
use std::collections::BTreeSet;

/// States for each prefix tried: a dozen prefixes are, so this may be large.
const PREFIX_STATES_MAX: usize = 100_000;
/// States per attempt to relax: small, because an attempt that is hard to decide explains little.
const ATTEMPT_STATES_MAX: usize = 2_000;
/// Attempts in total: a second at worst, and enough for windows of dozens in histories of thousands.
const ATTEMPTS_MAX: usize = 400;

/// The violation of one key whose events have no order.
pub(crate) fn explain(key: &str, events: &[&Event]) -> Violation {
    let mut events: Vec<Event> = events.iter().map(|&event| event.clone()).collect();
    events.sort_by_key(|event| (event.invoked_ns, event.returned_ns));
    let until = shortest_prefix(&events);
    let mut relaxed = prefix(&events, until);
    let culprit = relaxed
        .iter()
        .rposition(|event| answered(event) && event.returned_ns == until);
    relax(&mut relaxed, culprit);

    // What is shown is shown as it happened, with the answers that the proof does not need.
    let values: BTreeSet<String> = relaxed
        .iter()
        .filter(|event| answered(event))
        .flat_map(values_of)
        .collect();
    let shown = |index: usize| answered(&relaxed[index]) || writes_one_of(&relaxed[index], &values);
    let window: Vec<usize> = (0..relaxed.len()).filter(|&index| shown(index)).collect();
    let culprit = culprit.and_then(|culprit| window.iter().position(|&index| index == culprit));
    let window = window.into_iter().map(|index| events[index].clone()).collect();
    Violation {
        rule: Rule::Order,
        key: Some(key.to_owned()),
        detail: String::new(),
        window,
        culprit,
    }
}

fn answered(event: &Event) -> bool {
    event.reply().is_some()
}

fn impossible(events: &[Event], states_max: usize) -> bool {
    let events: Vec<&Event> = events.iter().collect();
    super::decide(&events, states_max) == Found::NoOrder
}

/// What was known at `until`. Events are sorted by invocation, so indices stay.
fn prefix(events: &[Event], until: u64) -> Vec<Event> {
    let mut known: Vec<Event> = events
        .iter()
        .filter(|event| event.invoked_ns <= until)
        .cloned()
        .collect();
    for event in &mut known {
        if event.returned_ns > until {
            forget(event);
        }
    }
    known
}

/// The earliest return at which no order is left. Having an order is closed under prefixes, so halving works.
fn shortest_prefix(events: &[Event]) -> u64 {
    let mut returns: Vec<u64> = events
        .iter()
        .filter(|event| answered(event))
        .map(|event| event.returned_ns)
        .collect();
    returns.sort_unstable();
    returns.dedup();
    let index = returns.partition_point(|&until| !impossible(&prefix(events, until), PREFIX_STATES_MAX));
    // If the small budget could not decide any prefix, the whole history is what we have.
    returns.get(index).or(returns.last()).copied().unwrap_or(0)
}

/// Forgets answers, the oldest first and in ever smaller pieces, as long as no order appears.
fn relax(events: &mut Vec<Event>, culprit: Option<usize>) {
    if !impossible(events, ATTEMPT_STATES_MAX) {
        return;
    }
    let mut attempts = 0;
    let mut size = events.len().div_ceil(2);
    loop {
        let mut start = 0;
        let mut progress = false;
        while start < events.len() && attempts < ATTEMPTS_MAX {
            let end = events.len().min(start + size);
            let mut relaxed = events.clone();
            let mut changed = false;
            for (index, event) in relaxed.iter_mut().enumerate().take(end).skip(start) {
                if Some(index) != culprit && answered(event) {
                    forget(event);
                    changed = true;
                }
            }
            if changed {
                attempts += 1;
                if impossible(&relaxed, ATTEMPT_STATES_MAX) {
                    *events = relaxed;
                    progress = true;
                }
            }
            start = end;
        }
        if attempts >= ATTEMPTS_MAX || (size == 1 && !progress) {
            return;
        }
        size = size.div_ceil(2).max(1);
    }
}

fn forget(event: &mut Event) {
    if answered(event) {
        event.outcome = Outcome::Unknown {
            error: "left open".to_owned(),
        };
    }
}

/// The values that an answered event speaks of.
fn values_of(event: &Event) -> Vec<String> {
    let mut values: Vec<String> = event
        .reply()
        .and_then(sight)
        .map(|seen| seen.value.clone())
        .into_iter()
        .collect();
    match &event.op {
        Op::CompareAndSwap {
            expect: Expect::Value(value),
            ..
        } => values.push(value.clone()),
        Op::CompareAndSwap {
            expect: Expect::Absent | Expect::ModRevision(_),
            ..
        }
        | Op::Put { .. }
        | Op::Get { .. }
        | Op::Delete { .. } => {}
    }
    values
}

fn writes_one_of(event: &Event, values: &BTreeSet<String>) -> bool {
    match (&event.op, &event.outcome) {
        (_, Outcome::Failed { .. }) | (Op::Get { .. } | Op::Delete { .. }, _) => false,
        (Op::Put { value, .. } | Op::CompareAndSwap { value, .. }, Outcome::Ok { .. } | Outcome::Unknown { .. }) => {
            values.contains(value)
        }
    }
}
