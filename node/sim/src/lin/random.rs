//! Random histories: those of a correct store are accepted, those with one lie are not.

use super::{Event, History, Options, Verdict, check, lost_writes};
use crate::history::{ClientId, Expect, Op, Outcome, Reply, Seen};
use crate::rng::Rng;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A random history of a correct store: operations take effect one by one at `tick`, and are seen from
/// some time before to some time after.
fn random_history(seed: u64, keys: u64, operations: u64, overlap: u64) -> (History, BTreeMap<String, Seen>) {
    let mut rng = Rng::new(seed);
    let mut state: BTreeMap<String, Seen> = BTreeMap::new();
    let mut revision = 1;
    let mut events = Vec::new();
    for number in 0..operations {
        let moment = (number + 1) * 10 + overlap;
        let key = format!("k{}", rng.below(keys));
        let now = state.get(&key).cloned();
        let value = format!("v{number}");
        let op = match rng.below(10) {
            0..4 => Op::Put {
                key: key.clone(),
                value: value.clone(),
            },
            4..8 => Op::Get { key: key.clone() },
            8 => Op::Delete { key: key.clone() },
            _ => {
                let right = rng.chance(600);
                let expect = match &now {
                    Some(now) if right && rng.chance(500) => Expect::Value(now.value.clone()),
                    Some(now) if right => Expect::ModRevision(now.mod_revision),
                    Some(_) | None => Expect::Absent,
                };
                Op::CompareAndSwap {
                    key: key.clone(),
                    expect,
                    value: value.clone(),
                }
            }
        };
        let fate = rng.below(10);
        let refused = fate == 0;
        let forgotten = fate == 1 && rng.chance(500);
        let applied = !refused && !forgotten;
        let reply = if applied {
            apply(&mut state, &mut revision, &op)
        } else {
            Reply::Put { revision: 0 }
        };
        let outcome = match fate {
            0 => Outcome::Failed {
                error: "refused".to_owned(),
            },
            1 => Outcome::Unknown {
                error: "timeout".to_owned(),
            },
            _ => Outcome::Ok { reply },
        };
        events.push(Event {
            client: ClientId(u32::try_from(number).unwrap()),
            op,
            invoked_ns: moment - rng.below(overlap),
            // A timed-out operation may take effect after its client left.
            returned_ns: moment + if fate == 1 { 0 } else { rng.below(overlap) },
            outcome,
        });
    }
    (History { events }, state)
}

pub(super) fn apply(state: &mut BTreeMap<String, Seen>, revision: &mut i64, op: &Op) -> Reply {
    let now = state.get(op.key()).cloned();
    let mut write = |value: &str| {
        *revision += 1;
        let version = now.as_ref().map_or(1, |now| now.version + 1);
        let seen = Seen {
            value: value.to_owned(),
            mod_revision: *revision,
            version,
        };
        state.insert(op.key().to_owned(), seen);
        *revision
    };
    match op {
        Op::Put { value, .. } => Reply::Put { revision: write(value) },
        Op::Get { .. } => Reply::Get {
            revision: *revision,
            seen: now,
        },
        Op::Delete { key } => {
            let deleted = state.remove(key).is_some();
            *revision += i64::from(deleted);
            Reply::Delete {
                revision: *revision,
                deleted,
            }
        }
        Op::CompareAndSwap { expect, value, .. } => {
            let holds = match (expect, &now) {
                (Expect::Absent, now) => now.is_none(),
                (Expect::ModRevision(wanted), Some(now)) => now.mod_revision == *wanted,
                (Expect::Value(wanted), Some(now)) => now.value == *wanted,
                (Expect::ModRevision(_) | Expect::Value(_), None) => false,
            };
            if holds {
                Reply::Swapped { revision: write(value) }
            } else {
                Reply::NotSwapped {
                    revision: *revision,
                    seen: now,
                }
            }
        }
    }
}

/// An answered get, and a state of its key before the last acknowledged write that it had to see. A key that nobody had seen
/// before was absent then; but if somebody may have deleted it unseen, "absent" is no lie.
fn stale_candidates(history: &History) -> Vec<(usize, Option<Seen>)> {
    let mut found = Vec::new();
    let open_delete = history.events.iter().any(|event| {
        matches!(
            (&event.op, &event.outcome),
            (Op::Delete { .. }, Outcome::Unknown { .. })
        )
    });
    for (index, get) in history.events.iter().enumerate() {
        let (Op::Get { key }, Some(Reply::Get { seen: Some(now), .. })) = (&get.op, get.reply()) else {
            continue;
        };
        let writer = history.events.iter().find(|event| {
            event.op.key() == key
                && event
                    .reply()
                    .is_some_and(|reply| reply.wrote() && reply.revision() == now.mod_revision)
                && event.returned_ns < get.invoked_ns
        });
        let mut older = history
            .events
            .iter()
            .filter_map(|event| match (&event.op, event.reply()) {
                (Op::Get { key: other }, Some(Reply::Get { seen: Some(seen), .. }))
                    if other == key && seen.mod_revision < now.mod_revision =>
                {
                    Some(seen.clone())
                }
                _ => None,
            });
        let older = older.next_back();
        if writer.is_some() && (older.is_some() || !open_delete) {
            found.push((index, older));
        }
    }
    found
}

proptest! {
    // Each rejected history is also minimised: dozens of them are enough.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_a_correct_store_answers_is_accepted(seed: u64, keys in 1..4_u64, operations in 0..120_u64, overlap in 1..200_u64) {
        let (history, state) = random_history(seed, keys, operations, overlap);
        let verdict = check(&history, Options::default());
        prop_assert!(verdict.passed(), "{verdict}");
        prop_assert_eq!(lost_writes(&history, &state), []);
    }

    #[test]
    fn one_stale_read_is_rejected(seed: u64, keys in 1..3_u64, overlap in 1..100_u64, choice: prop::sample::Index) {
        let (mut history, _) = random_history(seed, keys, 80, overlap);
        let candidates = stale_candidates(&history);
        prop_assume!(!candidates.is_empty());
        let (index, older) = choice.get(&candidates).clone();
        if let Outcome::Ok { reply: Reply::Get { seen, .. } } = &mut history.events[index].outcome {
            *seen = older;
        }
        prop_assert!(matches!(check(&history, Options::default()), Verdict::Violated(_)));
    }

    #[test]
    fn one_lost_write_is_rejected(seed: u64, keys in 1..3_u64, overlap in 1..100_u64) {
        let (mut history, mut state) = random_history(seed, keys, 80, overlap);
        // The store forgets the newest value of one key, if an acknowledged write made it.
        let acked = |seen: &Seen| history.events.iter().any(|event| {
            event.reply().is_some_and(|reply| reply.wrote() && reply.revision() == seen.mod_revision)
        });
        let open_delete = history.events.iter().any(|event| {
            matches!((&event.op, &event.outcome), (Op::Delete { .. }, Outcome::Unknown { .. }))
        });
        let victim = state.iter().find(|(_, seen)| acked(seen)).map(|(key, _)| key.clone());
        prop_assume!(victim.is_some() && !open_delete);
        let victim = victim.unwrap();
        state.remove(&victim);
        prop_assert_eq!(lost_writes(&history, &state).len(), 1);
        let end = 1_000_000;
        history.events.push(Event {
            client: ClientId(0),
            op: Op::Get { key: victim },
            invoked_ns: end,
            returned_ns: end,
            outcome: Outcome::Ok { reply: Reply::Get { revision: end as i64, seen: None } },
        });
        prop_assert!(matches!(check(&history, Options::default()), Verdict::Violated(_)));
    }
}
