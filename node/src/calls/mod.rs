//! Requests of one node to another, beside the stream of messages: what needs an answer, and comes from no Raft core.
//!
//! Contract: [`Calls::call`] brings bytes to the [`Answerer`] of another node and its answer back, or says whether the call may have
//! happened. There is one connection per peer, opened by the first call and again after it broke; calls and answers travel on it in
//! any order. Everything under way is bounded per peer, and beyond that a call is refused at once.
//!
//! What it is not: it repeats nothing and routes nothing; it does not know what a call says.

mod link;
mod parcels;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use serve::serve;

use crate::metrics::{Call, CallOutcome};
use crate::peers::Peers;
use crate::shared::Shared;
use althing_raft::ids::MemberId;
use async_trait::async_trait;
use bytes::Bytes;
use link::Link;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Calls under way to one peer: what a node's clients may ask of another node's shards at one time, with as many again to spare.
pub const CALLS_MAX: usize = 8_192;
/// Bytes of calls under way to one peer. They wait in memory, here and there.
pub const CALL_BYTES_MAX: usize = 64 << 20;
/// Bytes of one answer: a range over a large shard, which etcd would answer too.
pub const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Longest time that a call may take: longer than any request of a client. A connection on which nothing comes for longer although
/// something is awaited is dead.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// What a node does with the calls of others.
#[async_trait]
pub trait Answerer: Send + Sync + 'static {
    /// Answers one call. Dropped half-way if the connection breaks: what must go on regardless belongs into a task of its own.
    async fn answer(&self, from: MemberId, body: Bytes) -> Bytes;
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody knows where the member lives.
    #[error("member {0} has no known address; it is not in the cluster, or this node has not heard of it yet")]
    NoAddress(MemberId),
    /// As much as may be is under way.
    #[error("too many calls to member {0} are under way; ask again later")]
    Busy(MemberId),
    /// The call has too many bytes.
    #[error("a call of {0} bytes is over the limit of {CALL_BYTES_MAX}")]
    TooLong(usize),
    /// There is no connection; nothing of the call was sent.
    #[error("member {peer} cannot be reached: {reason}")]
    Unreachable {
        /// The member.
        peer: MemberId,
        /// Why not.
        reason: String,
    },
    /// The connection broke. The call may have happened.
    #[error("the connection to member {0} broke before it answered")]
    Broken(MemberId),
    /// It took too long. The call may have happened, or still happen.
    #[error("member {0} did not answer in time")]
    Timeout(MemberId),
    /// The other node says that there is no answer. The call may have happened.
    #[error("member {peer} gives no answer: {reason}")]
    NoAnswer {
        /// The member.
        peer: MemberId,
        /// Its reason.
        reason: String,
    },
    /// This node is going down. The call may have happened.
    #[error("the node is going down")]
    Stopped,
}

impl CallError {
    /// Whether the other node may have done what the call asked for.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::NoAddress(_) | Self::Busy(_) | Self::TooLong(_) | Self::Unreachable { .. } => false,
            Self::Broken(_) | Self::Timeout(_) | Self::NoAnswer { .. } | Self::Stopped => true,
        }
    }
}

/// A node's calls, out and in.
pub struct Calls {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    /// Where connections are served.
    runtime: Handle,
    /// Weak, because who answers may well call others.
    answerer: OnceLock<Weak<dyn Answerer>>,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    closed: bool,
    all: BTreeMap<MemberId, Arc<Link>>,
}

impl Calls {
    /// Without connections, and answering nothing yet. Connections are served by tasks of `runtime`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, peers: Arc<Peers>, runtime: Handle) -> Self {
        Self {
            shared,
            peers,
            runtime,
            answerer: OnceLock::new(),
            links: Mutex::default(),
        }
    }

    /// From now on calls are answered, for as long as somebody keeps the answerer. The first one stays.
    pub fn answer_by(&self, answerer: &Arc<impl Answerer>) {
        let weak: Weak<dyn Answerer> = Arc::downgrade(answerer) as Weak<dyn Answerer>;
        if self.answerer.set(weak).is_err() {
            tracing::error!("a node's calls are answered by one answerer; the second one is ignored");
        }
    }

    /// Who answers, if anybody does.
    pub(crate) fn answerer(&self) -> Option<Arc<dyn Answerer>> {
        self.answerer.get().and_then(Weak::upgrade)
    }

    /// Asks another node, or this one.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::may_have_happened`] tells the two kinds apart.
    pub async fn call(&self, to: MemberId, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let timeout = timeout.min(CALL_TIMEOUT_MAX);
        if body.len() > CALL_BYTES_MAX {
            return Err(CallError::TooLong(body.len()));
        }
        let answer = async {
            if to == self.shared.me {
                let answerer = self.answerer().ok_or(CallError::Stopped)?;
                return Ok(answerer.answer(to, body).await);
            }
            self.link(to)?.call(body).await
        };
        let started = self.shared.clock.instant();
        let result = tokio::time::timeout(timeout, answer)
            .await
            .unwrap_or(Err(CallError::Timeout(to)));
        if to != self.shared.me {
            self.count(&result, started);
        }
        result
    }

    fn count(&self, result: &Result<Bytes, CallError>, started: Instant) {
        let metrics = &self.shared.metrics;
        let outcome = match result {
            Ok(_) => {
                let took = self.shared.clock.instant().duration_since(started);
                metrics.call_duration.observe(took.as_secs_f64());
                CallOutcome::answered
            }
            Err(error) if error.may_have_happened() => CallOutcome::unknown,
            Err(_) => CallOutcome::refused,
        };
        metrics.calls.get_or_create(&Call { outcome }).inc();
    }

    fn link(&self, to: MemberId) -> Result<Arc<Link>, CallError> {
        let known = self.peers.address(to).is_some();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.closed {
            return Err(CallError::Stopped);
        }
        if !known {
            links.all.remove(&to);
            return Err(CallError::NoAddress(to));
        }
        if let Some(link) = links.all.get(&to) {
            return Ok(Arc::clone(link));
        }
        // A new peer is a good time to forget those that left.
        links.all.retain(|peer, _| self.peers.address(*peer).is_some());
        let link = Arc::new(Link::open(
            Arc::clone(&self.shared),
            Arc::clone(&self.peers),
            &self.runtime,
            to,
            CALL_TIMEOUT_MAX,
        ));
        links.all.insert(to, Arc::clone(&link));
        Ok(link)
    }

    /// Ends all connections; calls under way fail, and so does every later one.
    pub fn close(&self) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.closed = true;
        links.all.clear();
    }
}
