//! A second opinion: the same object written down independently for `stateright`'s tester.

use super::random::apply;
use super::search::Found;
use super::{Event, History, decide};
use crate::history::{ClientId, Op, Outcome, Reply, Seen};
use crate::rng::Rng;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::collections::BTreeMap;

#[derive(Clone)]
struct Spec {
    /// Value, version, and the mod revision if anybody knows it.
    live: Option<(String, i64, Option<i64>)>,
    revision: i64,
}

impl SequentialSpec for Spec {
    type Op = Op;
    type Ret = Reply;

    /// Of operations without an answer only: the revision is then open.
    fn invoke(&mut self, op: &Op) -> Reply {
        let version = self.live.as_ref().map_or(1, |live| live.1 + 1);
        match op {
            Op::Put { value, .. } => {
                self.revision += 1;
                self.live = Some((value.clone(), version, None));
            }
            Op::Delete { .. } => {
                self.revision += i64::from(self.live.take().is_some());
            }
            Op::Get { .. } => {}
            Op::CompareAndSwap { .. } => panic!("not used here"),
        }
        Reply::Put {
            revision: self.revision,
        }
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Reply) -> bool {
        let newer = ret.revision() > self.revision;
        let not_older = ret.revision() >= self.revision;
        let version = self.live.as_ref().map_or(1, |live| live.1 + 1);
        self.revision = ret.revision();
        match (op, ret) {
            (Op::Put { value, .. }, Reply::Put { revision }) => {
                self.live = Some((value.clone(), version, Some(*revision)));
                newer
            }
            (Op::Delete { .. }, Reply::Delete { deleted, .. }) => {
                let was = self.live.take().is_some();
                was == *deleted && if was { newer } else { not_older }
            }
            (Op::Get { .. }, Reply::Get { revision, seen }) => {
                let same = match (&mut self.live, seen) {
                    (None, None) => true,
                    (Some((value, version, modified)), Some(seen)) => {
                        let known = *modified.get_or_insert(seen.mod_revision);
                        *value == seen.value
                            && *version == seen.version
                            && known == seen.mod_revision
                            && known <= *revision
                    }
                    (None, Some(_)) | (Some(_), None) => false,
                };
                same && not_older
            }
            _ => false,
        }
    }
}

/// Few clients, each sequential, and answers that are often wrong.
fn small_history(rng: &mut Rng) -> History {
    let mut state = BTreeMap::new();
    let mut revision = 1;
    let mut free_at = [0_u64; 3];
    let mut gone = [false; 3];
    let mut events = Vec::new();
    for number in 0..rng.between(3, 8) {
        let moment = (number + 1) * 10;
        let client = usize::try_from(rng.below(3)).unwrap();
        if gone[client] || free_at[client] >= moment {
            continue;
        }
        let key = "k".to_owned();
        let op = match rng.below(5) {
            0 | 1 => Op::Put {
                key,
                value: format!("v{}", rng.below(3)),
            },
            2 => Op::Delete { key },
            _ => Op::Get { key },
        };
        let invoked_ns = rng.between((free_at[client] + 1).max(moment.saturating_sub(15)), moment);
        let returned_ns = moment + rng.below(25);
        let unknown = rng.chance(150);
        let mut reply = Reply::Put { revision: 0 };
        if !unknown || rng.chance(500) {
            reply = apply(&mut state, &mut revision, &op);
        }
        if rng.chance(120) {
            corrupt(&mut reply, rng);
        }
        gone[client] = unknown;
        free_at[client] = returned_ns;
        let outcome = if unknown {
            Outcome::Unknown { error: String::new() }
        } else {
            Outcome::Ok { reply }
        };
        events.push(Event {
            client: ClientId(client as u32),
            op,
            invoked_ns,
            returned_ns,
            outcome,
        });
    }
    History { events }
}

fn corrupt(reply: &mut Reply, rng: &mut Rng) {
    match reply {
        Reply::Get { seen, .. } => match seen {
            Some(now) if rng.chance(500) => now.value = format!("v{}", rng.below(3)),
            Some(now) if rng.chance(500) => now.version += 1,
            Some(_) => *seen = None,
            None => {
                *seen = Some(Seen {
                    value: "v0".to_owned(),
                    mod_revision: 2,
                    version: 1,
                })
            }
        },
        Reply::Delete { deleted, .. } => *deleted = !*deleted,
        Reply::Put { revision } => *revision -= 1,
        Reply::Swapped { .. } | Reply::NotSwapped { .. } => {}
    }
}

fn stateright_accepts(history: &History) -> bool {
    enum Edge<'a> {
        Invoke(&'a Event),
        Return(&'a Event, &'a Reply),
    }
    let mut edges = Vec::new();
    for event in &history.events {
        // At equal times the invocation comes first: touching intervals overlap.
        edges.push(((event.invoked_ns, 0), Edge::Invoke(event)));
        if let Some(reply) = event.reply() {
            edges.push(((event.returned_ns, 1), Edge::Return(event, reply)));
        }
    }
    edges.sort_by_key(|(moment, _)| *moment);
    let mut tester = LinearizabilityTester::new(Spec {
        live: None,
        revision: 0,
    });
    for (_, edge) in edges {
        match edge {
            Edge::Invoke(event) => tester.on_invoke(event.client.0, event.op.clone()).unwrap(),
            Edge::Return(event, reply) => tester.on_return(event.client.0, reply.clone()).unwrap(),
        };
    }
    tester.is_consistent()
}

#[test]
fn stateright_agrees_on_small_random_histories() {
    let mut rng = Rng::new(0x0a17_4149);
    let (mut accepted, mut rejected) = (0, 0);
    for _ in 0..4000 {
        let history = small_history(&mut rng);
        let events: Vec<&Event> = history.events.iter().collect();
        let ours = decide(&events, 100_000);
        let theirs = if stateright_accepts(&history) {
            Found::Order
        } else {
            Found::NoOrder
        };
        assert_eq!(ours, theirs, "{history:#?}");
        match ours {
            Found::Order => accepted += 1,
            Found::NoOrder => rejected += 1,
            Found::GaveUp => unreachable!("compared above"),
        }
    }
    // Both answers must have been put to the test.
    assert!(
        accepted > 500 && rejected > 500,
        "{accepted} accepted, {rejected} rejected"
    );
}
