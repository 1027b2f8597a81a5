//! Rules over a whole history that need no search: cheap, and across keys.

use super::report::{Rule, Violation};
use super::transactions;
use crate::history::{Event, History, Op, Outcome, Reply, Seen};
use std::collections::BTreeMap;

/// Everything that [`super::check`] reports besides orders of single keys. At most one violation a rule:
/// one bug breaks a rule many times, and the first time is the one to read.
pub(crate) fn violations(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    found.extend(unique(history));
    found.extend(real_time(history));
    found.extend(content(history));
    found
}

fn violation(rule: Rule, detail: String, mut window: Vec<Event>) -> Violation {
    window.sort_by_key(|event| (event.invoked_ns, event.returned_ns));
    let culprit = window.len().checked_sub(1);
    Violation {
        rule,
        key: None,
        detail,
        window,
        culprit,
    }
}

/// Times that make no sense: nothing can be judged by them.
pub(crate) fn recorder(history: &History) -> Option<Violation> {
    let event = history
        .events
        .iter()
        .find(|event| event.returned_ns < event.invoked_ns)?;
    Some(violation(Rule::Recorder, String::new(), vec![event.clone()]))
}

fn unique(history: &History) -> Option<Violation> {
    let mut writers: BTreeMap<i64, &Event> = BTreeMap::new();
    for event in &history.events {
        let Some(reply) = event.reply().filter(|reply| reply.wrote()) else {
            continue;
        };
        let other = writers.insert(reply.revision(), event);
        if let Some(other) = other.filter(|other| !transactions::are_one(other, event)) {
            let detail = format!("revision {}", reply.revision());
            return Some(violation(
                Rule::RevisionUnique,
                detail,
                vec![other.clone(), event.clone()],
            ));
        }
    }
    None
}

/// If A returned before B was invoked, then B's revision is not lower, and higher if B wrote.
fn real_time(history: &History) -> Vec<Violation> {
    let answered = || {
        history
            .events
            .iter()
            .filter_map(|event| event.reply().map(|reply| (event, reply)))
    };
    let mut by_return: Vec<_> = answered().collect();
    by_return.sort_by_key(|(event, _)| event.returned_ns);
    let mut by_invocation: Vec<_> = answered().collect();
    by_invocation.sort_by_key(|(event, _)| event.invoked_ns);

    let mut found: BTreeMap<Rule, Violation> = BTreeMap::new();
    let mut returned = by_return.into_iter().peekable();
    let mut highest: Option<(&Event, i64)> = None;
    for (event, reply) in by_invocation {
        while let Some((earlier, reply)) = returned.next_if(|(other, _)| other.returned_ns < event.invoked_ns) {
            if highest.is_none_or(|(_, revision)| revision < reply.revision()) {
                highest = Some((earlier, reply.revision()));
            }
        }
        let Some((earlier, revision)) = highest else {
            continue;
        };
        let (rule, broken) = if reply.wrote() {
            (Rule::RevisionRises, reply.revision() <= revision)
        } else {
            (Rule::StaleRead, reply.revision() < revision)
        };
        if broken {
            found.entry(rule).or_insert_with(|| {
                let detail = format!("{} after {revision}", reply.revision());
                violation(rule, detail, vec![earlier.clone(), event.clone()])
            });
        }
    }
    found.into_values().collect()
}

/// The same history with every read at the newest revision that was seen before it began, if it says an older one. Nothing is
/// lost by that: a read owes all writes of its keys that were committed before it, as if it had been answered there. `counts` says
/// which answers are reads.
pub(crate) fn lifted(history: &History, counts: impl Fn(&Reply) -> bool) -> History {
    let mut lifted = history.clone();
    let mut by_return: Vec<(u64, i64)> = history
        .events
        .iter()
        .filter_map(|event| Some((event.returned_ns, event.reply()?.revision())))
        .collect();
    by_return.sort_unstable();
    let mut returned = by_return.into_iter().peekable();
    let mut highest = 0;
    lifted.events.sort_by_key(|event| event.invoked_ns);
    for event in &mut lifted.events {
        while let Some((_, revision)) = returned.next_if(|(at, _)| *at < event.invoked_ns) {
            highest = revision.max(highest);
        }
        match &mut event.outcome {
            Outcome::Ok { reply } if counts(reply) => reply.raise(highest),
            Outcome::Ok { .. } | Outcome::Failed { .. } | Outcome::Unknown { .. } => {}
        }
    }
    lifted
}

/// Whoever shows the content of a revision shows the same.
fn content(history: &History) -> Option<Violation> {
    let written_together = transactions::written_together(history);
    let together = |value: Option<&str>, keys: [&str; 2]| {
        value
            .and_then(|value| written_together.get(value))
            .is_some_and(|written| keys.iter().all(|key| written.contains(key)))
    };
    let mut contents: BTreeMap<i64, (Content<'_>, &Event)> = BTreeMap::new();
    for event in &history.events {
        let Some(reply) = event.reply() else { continue };
        let shown = match &event.op {
            Op::Put { key, value } => Some((reply.revision(), (key.as_str(), Some(value.as_str())))),
            Op::CompareAndSwap { key, value, .. } if reply.wrote() => {
                Some((reply.revision(), (key.as_str(), Some(value.as_str()))))
            }
            Op::Delete { key } if reply.wrote() => Some((reply.revision(), (key.as_str(), None))),
            Op::Get { key } | Op::CompareAndSwap { key, .. } | Op::Delete { key } => {
                super::register::sight(reply).map(|seen| (seen.mod_revision, (key.as_str(), Some(seen.value.as_str()))))
            }
        };
        let Some((revision, shown)) = shown else {
            continue;
        };
        let (known, first) = contents.entry(revision).or_insert((shown, event));
        let one_transaction = known.1 == shown.1 && together(shown.1, [known.0, shown.0]);
        if *known != shown && !one_transaction {
            let detail = format!("revision {revision}");
            return Some(violation(
                Rule::RevisionContent,
                detail,
                vec![first.clone(), event.clone()],
            ));
        }
    }
    None
}

/// A key and the value written, `None` for a delete.
type Content<'a> = (&'a str, Option<&'a str>);

/// Acknowledged writes that the state found at the end neither contains nor supersedes.
/// `state` holds every key that exists, read after the last operation returned.
#[must_use]
pub fn lost_writes(history: &History, state: &BTreeMap<String, Seen>) -> Vec<Violation> {
    let mut last: BTreeMap<&str, (i64, &Event)> = BTreeMap::new();
    for event in &history.events {
        let Some(reply) = event.reply().filter(|reply| reply.wrote()) else {
            continue;
        };
        let entry = last.entry(event.op.key()).or_insert((reply.revision(), event));
        if reply.revision() > entry.0 {
            *entry = (reply.revision(), event);
        }
    }
    last.into_iter()
        .filter_map(|(key, (revision, event))| lost(history, state, key, revision, event))
        .collect()
}

fn lost(
    history: &History,
    state: &BTreeMap<String, Seen>,
    key: &str,
    revision: i64,
    event: &Event,
) -> Option<Violation> {
    let written = match &event.op {
        Op::Put { value, .. } | Op::CompareAndSwap { value, .. } => Some(value),
        Op::Delete { .. } => None,
        Op::Get { .. } => unreachable!("invariant: a get never wrote"),
    };
    let detail = match (written, state.get(key)) {
        (_, Some(found)) if found.mod_revision > revision => return None,
        (Some(value), Some(found)) if found.mod_revision == revision && *value == found.value => {
            return None;
        }
        (None, None) => return None,
        // A delete whose client got no answer may have come after the last acknowledged write.
        (Some(_), None) if history.events.iter().any(|event| open_delete(event, key)) => {
            return None;
        }
        (_, Some(found)) => {
            format!("the end has {:?} (mod revision {})", found.value, found.mod_revision)
        }
        (Some(_), None) => "the end has no such key, and nobody may have deleted it".to_owned(),
    };
    let mut violation = violation(Rule::LostWrite, detail, vec![event.clone()]);
    violation.key = Some(key.to_owned());
    Some(violation)
}

fn open_delete(event: &Event, key: &str) -> bool {
    match (&event.op, &event.outcome) {
        (Op::Delete { key: other }, Outcome::Unknown { .. }) => other == key,
        (Op::Delete { .. }, Outcome::Ok { .. } | Outcome::Failed { .. })
        | (Op::Put { .. } | Op::Get { .. } | Op::CompareAndSwap { .. }, _) => false,
    }
}
