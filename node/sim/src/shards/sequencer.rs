//! Sequencers that a node leads, and revisions for the groups that it leads: the steps of `node/src/sequencers.rs` and
//! `node/src/stamps.rs`.

use super::Node;
use super::call::{Ask, Failure, Reply};
use super::local::encoded;
use super::machine::Store;
use super::task::{Promise, promise};
use crate::mutant::Sabotage;
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, Term};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_shard::{Event, Ticket};
use althing_store::ops::{
    Command, Compare, CompareOp, CompareTarget, KeyRange, Op, OpResult, Put, Range, Revision, Txn,
};
use bytes::Bytes;

/// The key of a sequencer's state machine that says up to where its leader may hand out.
const CEILING_KEY: &[u8] = b"ceiling";
/// Longest time that a sequencer may take; the host asks again.
const STAMP_TIMEOUT: u64 = 2000 * MS;

/// What a leader remembers.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The term that the rest belongs to.
    term: Term,
    /// The last revision handed out, or the ceiling that was found.
    last: i64,
    /// Nothing above this is handed out.
    ceiling: i64,
}

/// What is asked.
#[derive(Clone, Copy)]
enum What {
    /// So many revisions.
    Stamps(u32),
    /// Nothing up to here.
    Above(Revision),
}

/// A sequencer that may be led here.
#[derive(Default)]
pub(crate) struct Seat {
    known: Known,
    asked: Vec<(What, Promise<Result<Revision, Failure>>)>,
    serving: bool,
}

/// Up to where a sequencer may have handed out; `None` if it was not started, or is none.
pub(crate) fn ceiling(store: &Store) -> Option<Revision> {
    let key = Range::of(KeyRange::Single(Bytes::from_static(CEILING_KEY)));
    let (_, found) = store.range(&key).ok()?.ok()?;
    let text = found.kvs.first()?.value.clone();
    Some(Revision(std::str::from_utf8(&text).ok()?.parse().ok()?))
}

impl Node {
    /// Asks for revisions on the host's behalf, and tells it.
    pub(crate) async fn stamp(&self, group: GroupId, ticket: Ticket, count: u32) {
        let sequencer = self.chart().and_then(|state| {
            let keyspace = state.shards.get(&group)?.keyspace;
            let sequencer = state.keyspaces.get(&keyspace)?.sequencer?;
            Some((sequencer, state.shards.get(&sequencer)?.replicas.clone()))
        });
        let first = match sequencer {
            None => None,
            Some((sequencer, replicas)) => {
                let ask = Ask::Stamp {
                    group: sequencer,
                    count,
                };
                match self.reach(sequencer, &replicas, &ask, STAMP_TIMEOUT).await {
                    Ok(Reply::Stamp(first)) => Some(first),
                    Ok(_) | Err(_) => None,
                }
            }
        };
        self.tell(Event::Stamped { group, ticket, first });
    }

    /// Hands out so many revisions and says the first; of 0, the last one handed out so far.
    pub(crate) async fn hand_out(&self, group: GroupId, count: u32) -> Result<Revision, Failure> {
        self.ask_seat(group, What::Stamps(count)).await
    }

    /// Lets a sequencer begin, or go on, above a revision. Of several, the largest counts.
    pub(crate) async fn start_sequencer(&self, group: GroupId, above: Revision) -> Result<(), Failure> {
        self.ask_seat(group, What::Above(above)).await.map(|_| ())
    }

    async fn ask_seat(&self, group: GroupId, what: What) -> Result<Revision, Failure> {
        self.led_term(group)?;
        let (said, answer) = promise();
        let idle = self.with(|process| {
            let seat = process.seats.entry(group).or_default();
            seat.asked.push((what, said));
            !std::mem::replace(&mut seat.serving, true)
        });
        if idle == Some(true) {
            let node = self.clone();
            self.ground
                .tasks
                .spawn(Some(self.number), async move { node.serve_seat(group).await });
        }
        answer.await.unwrap_or(Err(Failure::Stopped))
    }

    /// Answers everything that has come together, and then what came meanwhile.
    async fn serve_seat(&self, group: GroupId) {
        loop {
            let taken = self.with(|process| {
                let seat = process.seats.entry(group).or_default();
                let batch = std::mem::take(&mut seat.asked);
                seat.serving = !batch.is_empty();
                (seat.known, batch)
            });
            let Some((mut known, batch)) = taken.filter(|(_, batch)| !batch.is_empty()) else {
                return;
            };
            let total = batch.iter().map(|(what, _)| match what {
                What::Stamps(count) => i64::from(*count),
                What::Above(_) => 0,
            });
            let total = total.sum();
            let above = batch.iter().filter_map(|(what, _)| match what {
                What::Stamps(_) => None,
                What::Above(above) => Some(above.0),
            });
            let ready = match above.max() {
                None => self.confirm_seat(group, &mut known, total).await,
                Some(above) => match self.lift(group, &mut known, above).await {
                    Ok(()) => self.confirm_seat(group, &mut known, total).await,
                    Err(error) => Err(error),
                },
            };
            if ready.is_err() {
                // What is true now is in the state machine.
                known = Known::default();
            }
            for (what, said) in batch {
                let answer = ready.clone().map(|()| match what {
                    What::Stamps(0) | What::Above(_) => Revision(known.last),
                    What::Stamps(count) => {
                        let first = known.last + 1;
                        known.last += i64::from(count);
                        Revision(first)
                    }
                });
                said.keep(answer);
            }
            self.with(|process| process.seats.entry(group).or_default().known = known);
        }
    }

    /// Has the ceiling be at least this, and forgets what was known of it.
    async fn lift(&self, group: GroupId, known: &mut Known, above: i64) -> Result<(), Failure> {
        self.catch_up(group, Footprint::All).await?;
        *known = Known::default();
        let lifted = match ceiling(&*self.store(group)?) {
            Some(found) if found.0 >= above => true,
            Some(found) => {
                let target = CompareTarget::Value(Bytes::from(found.0.to_string()));
                self.swap(group, target, above).await?
            }
            None => self.swap(group, CompareTarget::Version(0), above).await?,
        };
        if lifted { Ok(()) } else { Err(Failure::LeaderChanged) }
    }

    /// Makes sure that this member leads, later than now, and may hand out so many.
    async fn confirm_seat(&self, group: GroupId, known: &mut Known, count: i64) -> Result<(), Failure> {
        // Read before the confirmation: if the term is another one afterwards, so may be what was handed out.
        let term = self.led_term(group)?;
        let (careless, step) = {
            let world = self.ground.world.borrow();
            (world.breaks(Sabotage::SequencerUnconfirmed), world.weather.ceiling_step)
        };
        if !careless {
            self.catch_up(group, Footprint::All).await?;
        }
        if self.led_term(group)? != term {
            return Err(Failure::LeaderChanged);
        }
        if known.term != term || known.last == 0 {
            let found = ceiling(&*self.store(group)?).ok_or(Failure::NoLeader)?;
            *known = Known {
                term,
                last: found.0,
                ceiling: found.0,
            };
            if self.ground.world.borrow().breaks(Sabotage::SequencerBelowCeiling) {
                known.last -= step.min(known.last) / 2;
            }
        }
        if known.ceiling - known.last < count + step / 4 {
            let next = known.last + count + step;
            let target = CompareTarget::Value(Bytes::from(known.ceiling.to_string()));
            if !self.swap(group, target, next).await? {
                return Err(Failure::LeaderChanged);
            }
            if self.led_term(group)? != term {
                return Err(Failure::LeaderChanged);
            }
            known.ceiling = next;
        }
        Ok(())
    }

    fn led_term(&self, group: GroupId) -> Result<Term, Failure> {
        let soft = self.with(|process| process.soft.get(&group).cloned()).flatten();
        let soft = soft.ok_or(Failure::Stopped)?;
        match soft.role {
            Role::Leader => Ok(soft.term),
            Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate => Err(Failure::NotLeader),
        }
    }

    async fn swap(&self, group: GroupId, target: CompareTarget, to: i64) -> Result<bool, Failure> {
        let key = Bytes::from_static(CEILING_KEY);
        let txn = Txn {
            compares: vec![Compare {
                keys: KeyRange::Single(key.clone()),
                op: CompareOp::Equal,
                target,
            }],
            success: vec![Op::Put(Put {
                key,
                value: Some(Bytes::from(to.to_string())),
                lease: Some(0),
                prev_kv: false,
            })],
            failure: Vec::new(),
        };
        match self.execute(group, encoded(&Command::Txn(txn))).await?.result {
            Ok(OpResult::Txn { succeeded, .. }) => Ok(succeeded),
            Ok(_) => unreachable!("invariant: a transaction is answered as one"),
            Err(error) => Err(Failure::Op(error)),
        }
    }
}
