//! Sequencers that this member leads: the shell of `althing_shard::sequencer`, which decides.

use crate::local::{Local, failed};
use crate::shared::{Shared, Store};
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, Term};
use althing_raft::io::{RequestId, Role};
use althing_raft::roster::Footprint;
use althing_shard::sequencer::{self, CEILING_KEY, Input, Output, Sequencer, parse_ceiling};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, KeyRange, OpResult, Range, Revision, Txn};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Asks that wait for one sequencer's turn: a few for each shard of a large keyspace.
const ASKS_MAX: usize = 8_192;

type Told = oneshot::Sender<Result<Revision, KeyspaceError>>;

enum Ask {
    /// So many revisions; of 0, the last one.
    Stamps(u32, Told),
    /// Nothing up to here is to be given out.
    Above(Revision, Told),
}

/// All sequencers of a node.
pub struct Sequencers {
    shared: Arc<Shared>,
    local: Local,
    seats: Mutex<BTreeMap<GroupId, mpsc::Sender<Ask>>>,
}

/// One sequencer.
#[derive(Default)]
struct Seat {
    core: Sequencer,
    /// The term in which it counts.
    term: Option<Term>,
    waiting: BTreeMap<RequestId, Told>,
    last_request: u64,
}

/// Up to where a sequencer may have given out; `None` if it was not started, or is none.
#[must_use]
pub fn ceiling(store: &Store) -> Option<Revision> {
    let key = Range::of(KeyRange::Single(Bytes::from_static(CEILING_KEY)));
    let (_, found) = store.range(&key).ok()?.ok()?;
    parse_ceiling(&found.kvs.first()?.value)
}

impl Sequencers {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, local: Local) -> Self {
        Self {
            shared,
            local,
            seats: Mutex::default(),
        }
    }

    /// Gives out so many revisions and says the first; of 0, the last one given out so far.
    ///
    /// # Errors
    /// If this member does not lead the sequencer, or it was not started.
    pub async fn stamp(self: &Arc<Self>, group: GroupId, count: u32) -> Result<Revision, KeyspaceError> {
        self.ask(group, |told| Ask::Stamps(count, told)).await
    }

    /// Lets a sequencer begin, or go on, above a revision. Of several, the largest counts.
    ///
    /// # Errors
    /// If this member does not lead it, or there is no quorum.
    pub async fn start(self: &Arc<Self>, group: GroupId, above: Revision) -> Result<(), KeyspaceError> {
        self.ask(group, |told| Ask::Above(above, told)).await.map(|_| ())
    }

    async fn ask(self: &Arc<Self>, group: GroupId, make: impl FnOnce(Told) -> Ask) -> Result<Revision, KeyspaceError> {
        self.led_term(group)?;
        let (told, answer) = oneshot::channel();
        let seat = self.seat(group);
        seat.try_send(make(told)).map_err(|_| KeyspaceError::TooManyRequests)?;
        answer.await.unwrap_or(Err(KeyspaceError::Stopped))
    }

    fn seat(self: &Arc<Self>, group: GroupId) -> mpsc::Sender<Ask> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|group, _| self.local.has(*group));
        let seat = seats.entry(group).or_insert_with(|| {
            let (asks, asked) = mpsc::channel(ASKS_MAX);
            let this = Arc::clone(self);
            tokio::spawn(async move { this.serve(group, asked).await });
            asks
        });
        seat.clone()
    }

    /// Answers everything that has come together, and then what came meanwhile.
    async fn serve(&self, group: GroupId, mut asked: mpsc::Receiver<Ask>) {
        let mut seat = Seat::default();
        let mut batch = Vec::new();
        while asked.recv_many(&mut batch, ASKS_MAX).await > 0 {
            let mut inputs = Vec::new();
            for ask in batch.drain(..) {
                match ask {
                    Ask::Stamps(count, told) => {
                        seat.last_request += 1;
                        let request = RequestId(seat.last_request);
                        seat.waiting.insert(request, told);
                        inputs.push(Input::Request { request, count });
                    }
                    Ask::Above(above, told) => {
                        let lifted = self.lift(group, above).await;
                        // What it knew of the ceiling may be too old.
                        seat.term = None;
                        // Whoever asked looks at the row in any case.
                        let _ = told.send(lifted.map(|()| above));
                    }
                }
            }
            self.turn(group, &mut seat, inputs).await;
            // A turn answers everybody; were one left, it would hear that it went wrong.
            seat.waiting.clear();
        }
    }

    /// One turn of the core, with all that follows from it.
    async fn turn(&self, group: GroupId, seat: &mut Seat, inputs: Vec<Input>) {
        let elected = match self.led_term(group) {
            Err(_) => Some(Input::Deposed),
            Ok(term) if seat.term == Some(term) && seat.core.is_counting() => None,
            Ok(term) => Some(self.elected(group, seat, term).await),
        };
        let mut out = Vec::new();
        seat.core.turn(elected.into_iter().chain(inputs), &mut out);
        let mut todo = VecDeque::from(out);
        while let Some(output) = todo.pop_front() {
            let input = match output {
                Output::Answer { request, first } => {
                    if let Some(told) = seat.waiting.remove(&request) {
                        // Whoever asked may be gone; what it was given stays unused.
                        let _ = told.send(first.ok_or(KeyspaceError::NotLeader));
                    }
                    continue;
                }
                Output::Confirm { round } => Input::Confirmed {
                    round,
                    term: self.confirmed(group).await,
                },
                Output::Raise { attempt, from, to } => Input::Raised {
                    attempt,
                    done: self.run(group, sequencer::raise(from, to)).await == Ok(true),
                },
                Output::Restart => match self.led_term(group) {
                    Ok(term) => self.elected(group, seat, term).await,
                    Err(_) => Input::Deposed,
                },
            };
            let mut out = Vec::new();
            seat.core.turn([input], &mut out);
            todo.extend(out);
        }
    }

    /// What the row says, once everything of earlier terms is applied.
    async fn elected(&self, group: GroupId, seat: &mut Seat, term: Term) -> Input {
        seat.term = None;
        if self.confirmed(group).await != Some(term) {
            return Input::Deposed;
        }
        let Ok(store) = self.local.store(group) else {
            return Input::Deposed;
        };
        seat.term = Some(term);
        Input::Elected {
            term,
            ceiling: ceiling(&store),
        }
    }

    /// The term in which this member leads, as a majority says later than now.
    async fn confirmed(&self, group: GroupId) -> Option<Term> {
        let before = self.led_term(group).ok()?;
        self.shared.catch_up(group, Footprint::All).await.ok()?;
        self.led_term(group).ok().filter(|after| *after == before)
    }

    /// Has the ceiling be at least this.
    async fn lift(&self, group: GroupId, above: Revision) -> Result<(), KeyspaceError> {
        self.shared.catch_up(group, Footprint::All).await.map_err(failed)?;
        let lifted = match ceiling(&*self.local.store(group)?) {
            Some(found) if found >= above => true,
            Some(found) => self.run(group, sequencer::raise(found, above)).await?,
            None => self.run(group, sequencer::start(above)).await?,
        };
        if lifted {
            Ok(())
        } else {
            Err(KeyspaceError::LeaderChanged)
        }
    }

    fn led_term(&self, group: GroupId) -> Result<Term, KeyspaceError> {
        let soft = self.shared.soft(group).ok_or(KeyspaceError::Stopped)?;
        match soft.role {
            Role::Leader => Ok(soft.term),
            Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate => Err(KeyspaceError::NotLeader),
        }
    }

    /// Says whether its comparison held.
    async fn run(&self, group: GroupId, txn: Txn) -> Result<bool, KeyspaceError> {
        let mut bytes = BytesMut::new();
        encode_command(&Command::Txn(txn), &mut bytes);
        let (answer, _) = self.local.execute(group, bytes.freeze()).await?;
        match answer.result {
            Ok(OpResult::Txn { succeeded, .. }) => Ok(succeeded),
            Ok(_) => unreachable!("invariant: a transaction is answered as one"),
            Err(error) => Err(error.into()),
        }
    }
}
