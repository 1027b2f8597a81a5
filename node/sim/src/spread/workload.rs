//! Workloads with a plot: what their clients ask next, and what must not be in the answers.

use crate::spread::client::{KEYS, Outcome, Record, Request, bytes, put};
use crate::spread::world::World;
use crate::spread::{Violation, Workload};
use althing_store::ops::{Command, Compare, CompareOp, CompareTarget, Delete, KeyRange, Op, OpResult, Range, Txn};
use bytes::Bytes;

impl World {
    /// Two clients count `a` up and then `h`; the others look.
    pub(super) fn long_fork(&mut self, client: usize) -> Request {
        let step = self.clients[client].step;
        if client < 2 {
            let key = [["a", "h"], ["c", "f"]][client][step as usize % 2];
            self.clients[client].step += 1;
            // Only ever up: what an earlier try left under way must not take the count back.
            let value = format!("{:06}", step / 2 + 1);
            let key_is = |target, op| Compare {
                keys: KeyRange::Single(bytes(key)),
                op,
                target,
            };
            let less = Txn {
                compares: vec![key_is(CompareTarget::Value(bytes(&value)), CompareOp::Less)],
                success: vec![Op::Put(put(key, &value))],
                failure: Vec::new(),
            };
            Request::Write(Command::Txn(Txn {
                compares: vec![key_is(CompareTarget::Version(0), CompareOp::Equal)],
                success: vec![Op::Put(put(key, &value))],
                failure: vec![Op::Txn(less)],
            }))
        } else if self.rng.chance(500) {
            Request::Read(Range::of(KeyRange::From(Bytes::new())))
        } else {
            // One key after the other.
            let key = *self.rng.pick(&["h", "a", "f", "c"]).expect("there are keys");
            Request::Read(Range::of(KeyRange::Single(bytes(key))))
        }
    }

    /// A read of everything; then a write where the leader has just died.
    pub(super) fn idle_read(&mut self, client: usize) -> Request {
        let step = self.clients[client].step;
        self.clients[client].step = 0;
        if step == 0 {
            return Request::Read(Range::of(KeyRange::From(Bytes::new())));
        }
        let key = KEYS[(step - 1) as usize % KEYS.len()];
        Request::Write(Command::Put(put(key, &self.records.len().to_string())))
    }

    /// Makes the client's own key, looks whether it is the oldest, and removes it after a while.
    pub(super) fn mutex(&mut self, client: usize) -> Request {
        let number = self.records.len();
        let this = &mut self.clients[client];
        match this.step {
            0 => {
                // A key of its own each time, so that no late removal can mean another one.
                this.lock = format!("{}/{number}", KEYS[client]);
                Request::Write(Command::Put(put(&this.lock, "")))
            }
            1 => Request::Read(Range::of(KeyRange::From(Bytes::new()))),
            _ => {
                // Letting go begins with the request, not with its answer.
                self.holder.take_if(|holder| *holder == client);
                Request::Write(Command::Delete(Delete {
                    keys: KeyRange::Single(bytes(&this.lock)),
                    prev_kv: false,
                }))
            }
        }
    }

    /// What a workload makes of an answer.
    pub(super) fn heard(&mut self, client: usize, record: &Record) {
        match self.run.workload {
            Workload::Mixed => {}
            Workload::LongFork => {
                if let Outcome::Done(_, OpResult::Range(found)) = &record.outcome {
                    let value = |key: &str| {
                        let kv = found.kvs.iter().find(|kv| kv.key == key);
                        kv.map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap_or(0))
                    };
                    let everything =
                        matches!(&record.request, Request::Read(range) if matches!(range.keys, KeyRange::From(_)));
                    let (a, h, c, f): (u64, u64, u64, u64) = (value("a"), value("h"), value("c"), value("f"));
                    if everything && (h > a || f > c) {
                        let text = format!("a read found the effect and not the cause: a {a}, h {h}, c {c}, f {f}");
                        self.violation = Some(Violation(text));
                    }
                }
                // A count that is not known to have been written is written again.
                if client < 2 && !matches!(record.outcome, Outcome::Done(..)) {
                    self.clients[client].step -= 1;
                }
            }
            Workload::IdleRead => {
                if matches!(
                    (&record.request, &record.outcome),
                    (Request::Read(_), Outcome::Done(..))
                ) {
                    let key = self.rng.below(KEYS.len() as u64);
                    self.clients[client].step = key + 1;
                    let group = self.table.shard_of(KEYS[key as usize].as_bytes()).group;
                    self.elect_now(group);
                    if self.rng.chance(300) {
                        self.elect_now(self.sequencer_group());
                    }
                }
            }
            Workload::Mutex => self.mutex_heard(client, record),
        }
    }

    pub(super) fn mutex_heard(&mut self, client: usize, record: &Record) {
        let step = self.clients[client].step;
        self.clients[client].step = match (step, &record.outcome) {
            (0, Outcome::Done(..)) => 1,
            (1, Outcome::Done(_, OpResult::Range(found))) => {
                let oldest = found.kvs.iter().min_by_key(|kv| kv.create_revision);
                let twins = found
                    .kvs
                    .iter()
                    .filter(|kv| Some(kv.create_revision) == oldest.map(|kv| kv.create_revision));
                let twins = twins.count();
                match oldest {
                    Some(kv) if kv.key == self.clients[client].lock => {
                        if let Some(other) = self.holder.filter(|other| *other != client) {
                            let text = format!("clients {other} and {client} both have the lock");
                            self.violation = Some(Violation(text));
                        }
                        if twins > 1 {
                            self.violation = Some(Violation("two keys of one create revision".to_owned()));
                        }
                        self.holder = Some(client);
                        2
                    }
                    Some(_) | None => 1,
                }
            }
            // Whoever does not know whether its key is there removes it.
            (0, Outcome::Unknown) => 2,
            (0, _) => 0,
            (1, _) => 1,
            // Until it is gone.
            (_, Outcome::Done(..)) => 0,
            _ => 2,
        };
    }
}
