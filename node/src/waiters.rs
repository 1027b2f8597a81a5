//! Clients that wait for an answer, and when what happened to their requests.

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
    answer: oneshot::Sender<Answer>,
    timeline: Timeline,
}

/// All waiters of a node.
#[derive(Default)]
pub struct Waiters {
    next: AtomicU64,
    all: Mutex<BTreeMap<RequestId, Waiter>>,
    syncs: Mutex<VecDeque<(WriteToken, Instant, Instant)>>,
}

impl Waiters {
    /// Adds one.
    #[expect(clippy::disallowed_methods, reason = "measured, not decided on")]
    pub fn add(&self) -> (RequestId, oneshot::Receiver<Answer>) {
        let request = RequestId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let (answer, receiver) = oneshot::channel();
        let timeline = Timeline {
            submitted: Instant::now(),
            proposed: None,
            write: None,
            committed: None,
            applied: None,
        };
        self.lock().insert(request, Waiter { answer, timeline });
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
        let mut all = self.lock();
        for (request, result) in answers {
            if let Some(waiter) = all.remove(&request) {
                // Whoever stopped listening does not want it.
                let _ = waiter.answer.send(Answer::Host(result));
            }
        }
    }

    /// Answers from the state machine. Says how long each took from propose to commit.
    pub fn applied(
        &self,
        results: impl IntoIterator<Item = (RequestId, CommandResult)>,
        committed: Instant,
        applied: Instant,
        mut observe: impl FnMut(std::time::Duration),
    ) {
        let mut all = self.lock();
        for (request, result) in results {
            if let Some(Waiter { answer, timeline }) = all.remove(&request) {
                if let Some(proposed) = timeline.proposed {
                    observe(committed.saturating_duration_since(proposed));
                }
                let timeline = Timeline {
                    committed: Some(committed),
                    applied: Some(applied),
                    ..timeline
                };
                let _ = answer.send(Answer::Applied(result, timeline));
            }
        }
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RequestId, Waiter>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
