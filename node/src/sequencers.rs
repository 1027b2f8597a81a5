//! Sequencers that this member leads: they hand out revisions of their keyspaces.
//!
//! What was handed out is never handed out again: a leader hands out only what lies below a ceiling that its group has agreed on, begins
//! above the ceiling that it found, and confirms for every batch of asks, after they came, that it still leads. So whoever asks later,
//! of whichever leader, gets larger revisions.

use crate::local::{Local, failed};
use crate::shared::{Shared, Store};
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, Term};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_store::codec::encode_command;
use althing_store::ops::{Command, Compare, CompareOp, CompareTarget, KeyRange, Op, OpResult, Put, Range, Revision, Txn};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// The key of a sequencer's state machine that says up to where its leader may hand out; a decimal number.
const CEILING_KEY: &[u8] = b"ceiling";
/// Revisions that one ceiling is above the last: a second of more writes than a keyspace takes, so that ceilings are no load. A new
/// leader leaves at most so many unused.
const CEILING_STEP: i64 = 1 << 20;
/// Below so many revisions to spare the next ceiling is asked for, while there still are some.
const CEILING_SPARE: i64 = CEILING_STEP / 4;
/// Asks that wait for one sequencer: a few for each shard of a large keyspace.
const ASKS_MAX: usize = 8_192;

struct Asked {
    what: What,
    reply: oneshot::Sender<Result<Revision, KeyspaceError>>,
}

enum What {
    /// So many revisions.
    Stamps(u32),
    /// Nothing up to here.
    Above(Revision),
}

/// All sequencers of a node.
pub struct Sequencers {
    shared: Arc<Shared>,
    local: Local,
    seats: Mutex<BTreeMap<GroupId, mpsc::Sender<Asked>>>,
}

/// What a leader remembers.
#[derive(Default)]
struct Seat {
    /// The term that the rest belongs to.
    term: Term,
    /// The last revision handed out, or the ceiling that was found.
    last: i64,
    /// Nothing above this is handed out.
    ceiling: i64,
}

/// Up to where a sequencer may have handed out; `None` if it was not started, or is none.
#[must_use]
pub fn ceiling(store: &Store) -> Option<Revision> {
    let key = Range::of(KeyRange::Single(Bytes::from_static(CEILING_KEY)));
    let (_, found) = store.range(&key).ok()?.ok()?;
    let text = found.kvs.first()?.value.clone();
    Some(Revision(std::str::from_utf8(&text).ok()?.parse().ok()?))
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

    /// Hands out so many revisions and says the first; of 0, the last one handed out so far.
    ///
    /// # Errors
    /// If this member does not lead the sequencer, or it was not started.
    pub async fn stamp(self: &Arc<Self>, group: GroupId, count: u32) -> Result<Revision, KeyspaceError> {
        self.ask(group, What::Stamps(count)).await
    }

    /// Lets a sequencer begin, or go on, above a revision. Of several, the largest counts.
    ///
    /// # Errors
    /// If this member does not lead it, or there is no quorum.
    pub async fn start(self: &Arc<Self>, group: GroupId, above: Revision) -> Result<(), KeyspaceError> {
        self.ask(group, What::Above(above)).await.map(|_| ())
    }

    async fn ask(self: &Arc<Self>, group: GroupId, what: What) -> Result<Revision, KeyspaceError> {
        self.led_term(group)?;
        let (reply, answer) = oneshot::channel();
        let seat = self.seat(group);
        seat.try_send(Asked { what, reply })
            .map_err(|_| KeyspaceError::TooManyRequests)?;
        answer.await.unwrap_or(Err(KeyspaceError::Stopped))
    }

    fn seat(self: &Arc<Self>, group: GroupId) -> mpsc::Sender<Asked> {
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
    async fn serve(&self, group: GroupId, mut asked: mpsc::Receiver<Asked>) {
        let mut seat = Seat::default();
        let mut batch = Vec::new();
        while asked.recv_many(&mut batch, ASKS_MAX).await > 0 {
            let total = batch.iter().map(|ask| match ask.what {
                What::Stamps(count) => i64::from(count),
                What::Above(_) => 0,
            });
            let total = total.sum();
            let above = batch.iter().filter_map(|ask| match ask.what {
                What::Stamps(_) => None,
                What::Above(above) => Some(above.0),
            });
            let ready = match above.max() {
                None => self.confirm(group, &mut seat, total).await,
                Some(above) => match self.lift(group, &mut seat, above).await {
                    Ok(()) => self.confirm(group, &mut seat, total).await,
                    Err(error) => Err(error),
                },
            };
            if ready.is_err() {
                // What is true now is in the state machine.
                seat = Seat::default();
            }
            for Asked { what, reply } in batch.drain(..) {
                let answer = ready.clone().map(|()| match what {
                    What::Stamps(0) | What::Above(_) => Revision(seat.last),
                    What::Stamps(count) => {
                        let first = seat.last + 1;
                        seat.last += i64::from(count);
                        Revision(first)
                    }
                });
                // Whoever asked may be gone; what it was given stays unused.
                let _ = reply.send(answer);
            }
        }
    }

    /// Has the ceiling be at least this, and forgets what was known of it.
    async fn lift(&self, group: GroupId, seat: &mut Seat, above: i64) -> Result<(), KeyspaceError> {
        self.shared.catch_up(group, Footprint::All).await.map_err(failed)?;
        *seat = Seat::default();
        let lifted = match ceiling(&*self.local.store(group)?) {
            Some(found) if found.0 >= above => true,
            Some(found) => self.swap(group, CompareTarget::Value(Bytes::from(found.0.to_string())), above).await?,
            None => self.swap(group, CompareTarget::Version(0), above).await?,
        };
        if lifted { Ok(()) } else { Err(KeyspaceError::LeaderChanged) }
    }

    /// Makes sure that this member leads, later than now, and may hand out so many.
    async fn confirm(&self, group: GroupId, seat: &mut Seat, count: i64) -> Result<(), KeyspaceError> {
        // Read before the confirmation: if the term is another one afterwards, so may be what was handed out.
        let term = self.led_term(group)?;
        self.shared.catch_up(group, Footprint::All).await.map_err(failed)?;
        if self.led_term(group)? != term {
            return Err(KeyspaceError::LeaderChanged);
        }
        if seat.term != term || seat.last == 0 {
            let found = ceiling(&*self.local.store(group)?).ok_or(KeyspaceError::NoLeader)?;
            *seat = Seat {
                term,
                last: found.0,
                ceiling: found.0,
            };
        }
        if seat.ceiling - seat.last < count + CEILING_SPARE {
            let next = seat.last + count + CEILING_STEP;
            self.raise(group, seat.ceiling, next).await?;
            if self.led_term(group)? != term {
                return Err(KeyspaceError::LeaderChanged);
            }
            seat.ceiling = next;
        }
        assert!(
            seat.last + count <= seat.ceiling,
            "invariant: a sequencer hands out nothing above its ceiling"
        );
        Ok(())
    }

    fn led_term(&self, group: GroupId) -> Result<Term, KeyspaceError> {
        let soft = self.shared.soft(group).ok_or(KeyspaceError::Stopped)?;
        match soft.role {
            Role::Leader => Ok(soft.term),
            Role::Learner | Role::Follower | Role::PreCandidate | Role::Candidate => Err(KeyspaceError::NotLeader),
        }
    }

    /// Replicates a new ceiling in place of the one that this leader knows.
    async fn raise(&self, group: GroupId, from: i64, to: i64) -> Result<(), KeyspaceError> {
        let target = CompareTarget::Value(Bytes::from(from.to_string()));
        match self.swap(group, target, to).await? {
            true => Ok(()),
            false => Err(KeyspaceError::LeaderChanged),
        }
    }

    async fn swap(&self, group: GroupId, target: CompareTarget, to: i64) -> Result<bool, KeyspaceError> {
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
