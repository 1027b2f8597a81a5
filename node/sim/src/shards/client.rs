//! Clients: each does one operation after the other at some node, and writes down what it was told.

use super::call::Failure;
use super::judge::{Ask, End, Told};
use super::task::{promise, within};
use super::{Ground, Node};
use crate::history::{Expect, Op, Reply, Seen};
use crate::rng::Rng;
use crate::world::clients::{command, reply_of, seen};
use crate::world::conditions::MS;
use althing_store::ops::{KeyRange, Revision};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// From a client to its node.
const CLIENT_DELAY: u64 = MS / 20;
/// When a client that finds nobody looks again.
const RETRY: u64 = 100 * MS;
/// How much longer than its node a client waits.
const PATIENCE_MORE: u64 = 1000 * MS;
/// Operations that a client may still do when all is repaired.
const CALM_OPERATIONS: u32 = 10;

struct Client {
    number: u32,
    rng: Rng,
    machine: usize,
    written: u32,
    /// What it saw last of each key, for comparisons.
    known: BTreeMap<String, Seen>,
}

/// A client's whole life.
pub(crate) async fn act(ground: Rc<Ground>, number: usize) {
    let mut client = Client {
        number: u32::try_from(number).expect("invariant: few clients"),
        rng: Rng::split(ground.seed, "client", number as u64),
        machine: 0,
        written: 0,
        known: BTreeMap::new(),
    };
    let (mut left, think_max) = {
        let world = ground.world.borrow();
        (world.weather.conditions.operations, world.weather.conditions.think_max)
    };
    let mut calm = false;
    while left > 0 {
        if !calm && ground.world.borrow().calm_at.is_some() {
            calm = true;
            left = left.min(CALM_OPERATIONS);
        }
        let think = client.rng.below(if calm { MS } else { think_max });
        ground.sleep(None, think).await;
        match client.operation(&ground).await {
            true => left -= 1,
            false => drop(ground.sleep(None, RETRY).await),
        }
    }
    ground.world.borrow_mut().clients_busy -= 1;
}

impl Client {
    /// One operation; `false` if nobody is there to do it.
    async fn operation(&mut self, ground: &Rc<Ground>) -> bool {
        let (running, patience, sticky) = {
            let world = ground.world.borrow();
            let running: Vec<usize> = (0..world.machines.len())
                .filter(|machine| world.machines[*machine].process.is_some())
                .collect();
            (running, world.weather.patience, world.weather.conditions.sticky)
        };
        if !running.contains(&self.machine) || !self.rng.chance(sticky) {
            match self.rng.pick(&running) {
                Some(machine) => self.machine = *machine,
                None => return false,
            }
        }
        let ask = self.next(ground);
        let call = {
            let mut world = ground.world.borrow_mut();
            let (now, number, machine) = (world.now, self.number, self.machine);
            world
                .trace
                .note(now, u64::from(number), "client", &[machine as u64], || {
                    format!("at {machine}: {ask:?}")
                });
            world.judge.begin(number, ask.clone(), now)
        };
        ground.sleep(None, CLIENT_DELAY).await;
        let boot = ground.world.borrow().machines[self.machine].boot;
        let end = match ground.node(self.machine, boot) {
            None => End::Failed("nobody listens".to_owned()),
            Some(node) => {
                let (said, answer) = promise();
                let asked = ask.clone();
                ground
                    .tasks
                    .spawn(Some(self.machine), async move { said.keep(serve(&node, asked).await) });
                match within(answer, ground.sleep(None, patience + PATIENCE_MORE)).await {
                    Some(Some(end)) => end,
                    Some(None) => End::Unknown("the connection broke".to_owned()),
                    None => End::Unknown("the client lost patience".to_owned()),
                }
            }
        };
        self.learn(&ask, &end);
        let mut world = ground.world.borrow_mut();
        let now = world.now;
        let what = match &end {
            End::Ok(_) => "ok",
            End::Failed(_) => "failed",
            End::Unknown(_) => "unknown",
        };
        world
            .trace
            .note(now, u64::from(self.number), what, &[], || format!("{end:?}"));
        world.judge.end(call, end, now);
        true
    }

    fn key(&mut self, keys: u64) -> String {
        format!("k{:02}", self.rng.below(keys))
    }

    fn value(&mut self) -> String {
        self.written += 1;
        format!("{}-{}", self.number, self.written)
    }

    fn expect(&mut self, key: &str) -> Expect {
        match self.known.get(key) {
            Some(seen) if self.rng.chance(500) => Expect::Value(seen.value.clone()),
            Some(seen) => Expect::ModRevision(seen.mod_revision),
            None => Expect::Absent,
        }
    }

    fn next(&mut self, ground: &Ground) -> Ask {
        let (keys, transactions) = {
            let world = ground.world.borrow();
            (world.weather.conditions.keys, world.weather.transactions)
        };
        let key = self.key(keys);
        match self.rng.below(20) {
            0..6 => Ask::One(Op::Put {
                value: self.value(),
                key,
            }),
            6..10 => Ask::One(Op::Get { key }),
            10..12 => Ask::One(Op::Delete { key }),
            12..14 => Ask::One(Op::CompareAndSwap {
                expect: self.expect(&key),
                value: self.value(),
                key,
            }),
            14..17 if transactions => {
                let mut puts = BTreeMap::from([(key.clone(), self.value())]);
                for _ in 0..self.rng.between(1, 2) {
                    let key = self.key(keys);
                    puts.entry(key).or_insert_with(|| self.value());
                }
                let expect = self.rng.chance(400).then(|| {
                    let key = self.key(keys);
                    let expect = self.expect(&key);
                    (key, expect)
                });
                Ask::Txn { puts, expect }
            }
            _ => Ask::Range,
        }
    }

    fn learn(&mut self, ask: &Ask, end: &End) {
        let End::Ok(told) = end else { return };
        match (ask, told) {
            (Ask::One(op), Told::One(reply)) => {
                let seen = match (op, reply) {
                    (_, Reply::Get { seen, .. } | Reply::NotSwapped { seen, .. }) => seen.clone(),
                    (
                        Op::Put { value, .. } | Op::CompareAndSwap { value, .. },
                        Reply::Put { revision } | Reply::Swapped { revision },
                    ) => Some(wrote(value, *revision)),
                    (Op::Get { .. } | Op::Delete { .. } | Op::Put { .. } | Op::CompareAndSwap { .. }, _) => None,
                };
                match seen {
                    Some(seen) => self.known.insert(op.key().to_owned(), seen),
                    None => self.known.remove(op.key()),
                };
            }
            (Ask::Txn { puts, .. }, Told::Done { revision }) => {
                let seen = puts.iter().map(|(key, value)| (key.clone(), wrote(value, *revision)));
                self.known.extend(seen);
            }
            (Ask::Range, Told::Keys { kvs, .. }) => self.known.clone_from(kvs),
            (Ask::One(_) | Ask::Txn { .. } | Ask::Range, _) => {}
        }
    }
}

fn wrote(value: &str, revision: i64) -> Seen {
    Seen {
        value: value.to_owned(),
        mod_revision: revision,
        version: 0,
    }
}

/// What a node does for its client.
async fn serve(node: &Node, ask: Ask) -> End {
    let done = match &ask {
        Ask::One(op) => match command(op) {
            Some(command) => node
                .run_command(&command)
                .await
                .map(|answer| reply_of(&answer).map(Told::One)),
            None => node
                .range(KeyRange::Single(op.key().to_owned().into()))
                .await
                .map(|(Revision(revision), kvs)| {
                    Some(Told::One(Reply::Get {
                        revision,
                        seen: kvs.first().map(seen),
                    }))
                }),
        },
        Ask::Range => node
            .range(KeyRange::From(Bytes::new()))
            .await
            .map(|(Revision(revision), kvs)| {
                let kvs = kvs
                    .iter()
                    .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), seen(kv)));
                Some(Told::Keys {
                    revision,
                    kvs: kvs.collect(),
                })
            }),
        Ask::Txn { puts, expect } => node.transact(puts, expect.as_ref()).await.map(Some),
    };
    let writes = match &ask {
        Ask::One(op) => command(op).is_some(),
        Ask::Txn { .. } => true,
        Ask::Range => false,
    };
    match done {
        Ok(Some(told)) => End::Ok(told),
        Ok(None) => End::Unknown("another kind of answer".to_owned()),
        Err(failure) => match failure {
            Failure::LeaderChanged | Failure::Timeout if writes => End::Unknown(format!("{failure:?}")),
            Failure::LeaderChanged
            | Failure::Timeout
            | Failure::Op(_)
            | Failure::NoLeader
            | Failure::NotLeader
            | Failure::Learner
            | Failure::Stopped
            | Failure::TooManyRequests
            | Failure::No(_) => End::Failed(format!("{failure:?}")),
        },
    }
}
