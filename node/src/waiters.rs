//! Clients that wait for an answer, and when what happened to their requests.
//!
//! A client's task lives on one of the threads that serve sockets. Answers found elsewhere go there in batches, so that a
//! thousand of them cost one wake-up.

use crate::inbox::Inbox;
use crate::threads::net::Home;
use althing_raft::io::RequestId;
use althing_shard::{Done, Refusal, WriteToken};
use althing_store::CommandResult;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// Syncs of the log whose times are remembered for traces: some seconds' worth.
const SYNCS_MAX: usize = 4_096;

/// The moments of one request; filled in as it moves on.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    /// The client's request was handed to the host.
    pub submitted: Instant,
    /// The host proposed it.
    pub proposed: Option<Instant>,
    /// The write that carries it, if this member leads.
    pub write: Option<WriteToken>,
    /// It was committed.
    pub committed: Option<Instant>,
    /// It was applied.
    pub applied: Option<Instant>,
}

/// What a waiter hears.
#[derive(Debug)]
pub enum Answer {
    /// The state machine's result of a command.
    Applied(CommandResult, Timeline),
    /// The host's own answer.
    Host(Result<Done, Refusal>),
}

struct Waiter {
    home: Home,
    answer: oneshot::Sender<Answer>,
    timeline: Timeline,
}

/// A reader that shares a request with others.
#[derive(Debug)]
pub struct Reader {
    home: Home,
    answer: oneshot::Sender<Result<Done, Refusal>>,
}

impl Reader {
    /// One of the thread that asks, and where it hears.
    #[must_use]
    pub fn new() -> (Self, oneshot::Receiver<Result<Done, Refusal>>) {
        let (answer, receiver) = oneshot::channel();
        let home = Home::here().unwrap_or_default();
        (Self { home, answer }, receiver)
    }
}

/// An answer on its way to its task.
enum Delivery {
    Request(oneshot::Sender<Answer>, Answer),
    Read(oneshot::Sender<Result<Done, Refusal>>, Result<Done, Refusal>),
}

impl Delivery {
    fn deliver(self) {
        // Whoever stopped listening does not want it.
        match self {
            Self::Request(to, answer) => drop(to.send(answer)),
            Self::Read(to, answer) => drop(to.send(answer)),
        }
    }
}

/// Answers of one batch by where they go.
#[derive(Default)]
struct Deliveries(BTreeMap<Home, Vec<Delivery>>);

impl Deliveries {
    fn add(&mut self, home: Home, delivery: Delivery) {
        self.0.entry(home).or_default().push(delivery);
    }
}

/// All waiters of a node.
#[derive(Default)]
pub struct Waiters {
    next: AtomicU64,
    /// One per thread that serves sockets; without any, answers are delivered where they are found.
    homes: Vec<Inbox<Vec<Delivery>>>,
    readers: Mutex<BTreeMap<RequestId, Vec<Reader>>>,
    all: Mutex<BTreeMap<RequestId, Waiter>>,
    syncs: Mutex<VecDeque<(WriteToken, Instant, Instant)>>,
}

impl Waiters {
    /// For a node with so many threads that serve sockets; each must run `deliver`.
    #[must_use]
    pub fn new(homes: usize) -> Self {
        Self {
            homes: (0..homes).map(|_| Inbox::default()).collect(),
            ..Self::default()
        }
    }

    /// Hands answers to the tasks of a thread, on that thread. Runs until `close`.
    pub async fn deliver(&self, home: Home) {
        while let Some(batches) = self.homes[home.0].next().await {
            batches.into_iter().flatten().for_each(Delivery::deliver);
            // The tasks that were answered go first.
            tokio::task::yield_now().await;
        }
    }

    /// Ends `deliver`.
    pub fn close(&self) {
        self.homes.iter().for_each(Inbox::close);
    }

    fn dispatch(&self, deliveries: Deliveries) {
        for (home, batch) in deliveries.0 {
            match self.homes.get(home.0).filter(|_| Home::here() != Some(home)) {
                Some(inbox) => inbox.push(batch),
                None => batch.into_iter().for_each(Delivery::deliver),
            }
        }
    }

    /// Adds readers that share one answer of the host.
    pub fn add_readers(&self, readers: Vec<Reader>) -> RequestId {
        let request = self.next_request();
        self.readers().insert(request, readers);
        request
    }

    fn next_request(&self) -> RequestId {
        RequestId(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Adds one.
    #[expect(clippy::disallowed_methods, reason = "measured, not decided on")]
    pub fn add(&self) -> (RequestId, oneshot::Receiver<Answer>) {
        let request = self.next_request();
        let (answer, receiver) = oneshot::channel();
        let timeline = Timeline {
            submitted: Instant::now(),
            proposed: None,
            write: None,
            committed: None,
            applied: None,
        };
        let home = Home::here().unwrap_or_default();
        self.lock().insert(request, Waiter { home, answer, timeline });
        (request, receiver)
    }

    /// Removes one whose request never got to the host.
    pub fn forget(&self, request: RequestId) {
        self.lock().remove(&request);
    }

    /// Notes that these were proposed now, in the turn that made this write.
    pub fn proposed(&self, requests: &[RequestId], now: Instant, write: Option<WriteToken>) {
        let mut all = self.lock();
        for request in requests {
            if let Some(waiter) = all.get_mut(request) {
                waiter.timeline.proposed = Some(now);
                waiter.timeline.write = write;
            }
        }
    }

    /// Answers from the host.
    pub fn complete(&self, answers: impl IntoIterator<Item = (RequestId, Result<Done, Refusal>)>) {
        let mut deliveries = Deliveries::default();
        for (request, result) in answers {
            if let Some(readers) = self.readers().remove(&request) {
                for Reader { home, answer } in readers {
                    deliveries.add(home, Delivery::Read(answer, result));
                }
            } else if let Some(Waiter { home, answer, .. }) = self.lock().remove(&request) {
                deliveries.add(home, Delivery::Request(answer, Answer::Host(result)));
            }
        }
        self.dispatch(deliveries);
    }

    /// Answers from the state machine. Says how long each took from propose to commit.
    pub fn applied(
        &self,
        results: impl IntoIterator<Item = (RequestId, CommandResult)>,
        committed: Instant,
        applied: Instant,
        mut observe: impl FnMut(std::time::Duration),
    ) {
        let mut deliveries = Deliveries::default();
        let mut all = self.lock();
        for (request, result) in results {
            if let Some(Waiter { home, answer, timeline }) = all.remove(&request) {
                if let Some(proposed) = timeline.proposed {
                    observe(committed.saturating_duration_since(proposed));
                }
                let timeline = Timeline {
                    committed: Some(committed),
                    applied: Some(applied),
                    ..timeline
                };
                deliveries.add(home, Delivery::Request(answer, Answer::Applied(result, timeline)));
            }
        }
        drop(all);
        self.dispatch(deliveries);
    }

    /// Remembers when a write was synced.
    pub fn synced(&self, token: WriteToken, started: Instant, ended: Instant) {
        let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        if syncs.len() >= SYNCS_MAX {
            syncs.pop_front();
        }
        syncs.push_back((token, started, ended));
    }

    /// When the sync that covered this write began and ended, if it is remembered.
    pub fn sync_of(&self, write: WriteToken) -> Option<(Instant, Instant)> {
        let syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        let at = syncs.partition_point(|(token, ..)| *token < write);
        syncs.get(at).map(|(_, started, ended)| (*started, *ended))
    }

    fn readers(&self) -> MutexGuard<'_, BTreeMap<RequestId, Vec<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RequestId, Waiter>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
