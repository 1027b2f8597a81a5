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
use althing_raft::io::{RequestId, Role};
use althing_raft::roster::Footprint;
use althing_shard::sequencer::{self, CEILING_KEY, CEILING_STEP, Input, Output, Sequencer, parse_ceiling};
use althing_shard::{Event, Ticket};
use althing_store::ops::{Command, KeyRange, OpResult, Range, Revision, Txn};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Longest time that a sequencer may take; the host asks again.
const STAMP_TIMEOUT: u64 = 2000 * MS;

type Told = Promise<Result<Revision, Failure>>;

/// What is asked.
enum What {
    /// So many revisions; of 0, the last one.
    Stamps(u32, Told),
    /// Nothing up to here is to be given out.
    Above(Revision, Told),
}

/// A sequencer that may be led here.
#[derive(Default)]
pub(crate) struct Seat {
    asked: Vec<What>,
    serving: bool,
    /// While nobody serves.
    core: Counter,
}

/// What is kept between two turns.
#[derive(Default)]
struct Counter {
    core: Sequencer,
    /// The term in which it counts.
    term: Option<Term>,
    last_request: u64,
}

/// Up to where a sequencer may have given out; `None` if it was not started, or is none.
pub(crate) fn ceiling(store: &Store) -> Option<Revision> {
    let key = Range::of(KeyRange::Single(Bytes::from_static(CEILING_KEY)));
    let (_, found) = store.range(&key).ok()?.ok()?;
    parse_ceiling(&found.kvs.first()?.value)
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

    /// Gives out so many revisions and says the first; of 0, the last one given out so far.
    pub(crate) async fn hand_out(&self, group: GroupId, count: u32) -> Result<Revision, Failure> {
        self.ask_seat(group, |told| What::Stamps(count, told)).await
    }

    /// Lets a sequencer begin, or go on, above a revision. Of several, the largest counts.
    pub(crate) async fn start_sequencer(&self, group: GroupId, above: Revision) -> Result<(), Failure> {
        self.ask_seat(group, |told| What::Above(above, told)).await.map(|_| ())
    }

    async fn ask_seat(&self, group: GroupId, make: impl FnOnce(Told) -> What) -> Result<Revision, Failure> {
        self.led_term(group)?;
        let (told, answer) = promise();
        let idle = self.with(|process| {
            let seat = process.seats.entry(group).or_default();
            seat.asked.push(make(told));
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
        let taken = self.with(|process| std::mem::take(&mut process.seats.entry(group).or_default().core));
        let Some(mut counter) = taken else { return };
        loop {
            let batch = self.with(|process| std::mem::take(&mut process.seats.entry(group).or_default().asked));
            let Some(batch) = batch.filter(|batch| !batch.is_empty()) else {
                break;
            };
            let (mut inputs, mut waiting) = (Vec::new(), BTreeMap::new());
            for what in batch {
                match what {
                    What::Stamps(count, told) => {
                        counter.last_request += 1;
                        let request = RequestId(counter.last_request);
                        waiting.insert(request, told);
                        inputs.push(Input::Request { request, count });
                    }
                    What::Above(above, told) => {
                        let lifted = self.lift(group, above).await;
                        // What it knew of the ceiling may be too old.
                        counter.term = None;
                        told.keep(lifted.map(|()| above));
                    }
                }
            }
            // Who is left hears that it went wrong.
            self.seat_turn(group, &mut counter, inputs, waiting).await;
        }
        self.with(|process| {
            let seat = process.seats.entry(group).or_default();
            seat.core = counter;
            seat.serving = false;
        });
    }

    /// One turn of the core, with all that follows from it.
    async fn seat_turn(
        &self,
        group: GroupId,
        counter: &mut Counter,
        inputs: Vec<Input>,
        mut waiting: BTreeMap<RequestId, Told>,
    ) {
        let elected = match self.led_term(group) {
            Err(_) => Some(Input::Deposed),
            Ok(term) if counter.term == Some(term) && counter.core.is_counting() => None,
            Ok(term) => Some(self.elected(group, counter, term).await),
        };
        let mut out = Vec::new();
        counter.core.turn(elected.into_iter().chain(inputs), &mut out);
        let mut todo = VecDeque::from(out);
        while let Some(output) = todo.pop_front() {
            let input = match output {
                Output::Answer { request, first } => {
                    if let Some(told) = waiting.remove(&request) {
                        told.keep(first.ok_or(Failure::NotLeader));
                    }
                    continue;
                }
                Output::Confirm { round } => Input::Confirmed {
                    round,
                    term: self.confirmed(group).await,
                },
                Output::Raise { attempt, from, to } => Input::Raised {
                    attempt,
                    done: self.run_in(group, sequencer::raise(from, to)).await == Ok(true),
                },
                Output::Restart => match self.led_term(group) {
                    Ok(term) => self.elected(group, counter, term).await,
                    Err(_) => Input::Deposed,
                },
            };
            let mut out = Vec::new();
            counter.core.turn([input], &mut out);
            todo.extend(out);
        }
    }

    /// What the row says, once everything of earlier terms is applied.
    async fn elected(&self, group: GroupId, counter: &mut Counter, term: Term) -> Input {
        counter.term = None;
        if self.confirmed(group).await != Some(term) {
            return Input::Deposed;
        }
        let Ok(store) = self.store(group) else {
            return Input::Deposed;
        };
        counter.term = Some(term);
        let lowered = if self.ground.world.borrow().breaks(Sabotage::SequencerBelowCeiling) {
            CEILING_STEP
        } else {
            0
        };
        Input::Elected {
            term,
            ceiling: ceiling(&store).map(|Revision(ceiling)| Revision((ceiling - lowered).max(1))),
        }
    }

    /// The term in which this member leads, as a majority says later than now.
    async fn confirmed(&self, group: GroupId) -> Option<Term> {
        let before = self.led_term(group).ok()?;
        if !self.ground.world.borrow().breaks(Sabotage::SequencerUnconfirmed) {
            self.catch_up(group, Footprint::All).await.ok()?;
        }
        self.led_term(group).ok().filter(|after| *after == before)
    }

    /// Has the ceiling be at least this.
    async fn lift(&self, group: GroupId, above: Revision) -> Result<(), Failure> {
        self.catch_up(group, Footprint::All).await?;
        let lifted = match ceiling(&*self.store(group)?) {
            Some(found) if found >= above => true,
            Some(found) => self.run_in(group, sequencer::raise(found, above)).await?,
            None => self.run_in(group, sequencer::start(above)).await?,
        };
        if lifted { Ok(()) } else { Err(Failure::LeaderChanged) }
    }

    fn led_term(&self, group: GroupId) -> Result<Term, Failure> {
        let soft = self.with(|process| process.soft.get(&group).cloned()).flatten();
        let soft = soft.ok_or(Failure::Stopped)?;
        match soft.role {
            Role::Leader => Ok(soft.term),
            Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate => Err(Failure::NotLeader),
        }
    }

    /// Says whether its comparison held.
    async fn run_in(&self, group: GroupId, txn: Txn) -> Result<bool, Failure> {
        match self.execute(group, encoded(&Command::Txn(txn))).await?.result {
            Ok(OpResult::Txn { succeeded, .. }) => Ok(succeeded),
            Ok(_) => unreachable!("invariant: a transaction is answered as one"),
            Err(error) => Err(Failure::Op(error)),
        }
    }
}
