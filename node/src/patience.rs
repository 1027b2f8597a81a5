//! How a request that met a moving shard tries again.

use crate::atlas::Atlas;
use crate::clock::Clock;
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, Now};
use althing_shard::txn::{Order, RECOVER_AFTER};
use althing_store::ops::{OpError, TxnId};
use std::time::Duration;

/// First wait before another try, doubled up to the largest: a lock is held for two commits, a seal for some more.
const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_millis(20);

/// What to do about a failed try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Try again.
    Again,
    /// Ask what becomes of this transaction, then try again.
    Recover(TxnId, GroupId),
    /// Give up, with this.
    Fail(KeyspaceError),
}

/// One request's patience.
pub struct Patience {
    clock: Clock,
    end: Now,
    wait: Duration,
    /// When it first met a lock that is still there, and whose.
    locked: Option<(Now, TxnId)>,
    /// Where it was last refused.
    met_at: Option<GroupId>,
    /// How its next transaction over several shards goes about them.
    order: Order,
}

impl Patience {
    /// Until a deadline.
    #[must_use]
    pub fn until(clock: Clock, end: Now) -> Self {
        Self {
            clock,
            end,
            wait: WAIT_MIN,
            locked: None,
            met_at: None,
            order: Order::Together,
        }
    }

    /// When it ends.
    #[must_use]
    pub fn end(&self) -> Now {
        self.end
    }

    /// A shard refused it.
    pub fn met(&mut self, group: GroupId) {
        self.met_at = Some(group);
    }

    /// The shard that refused it last.
    #[must_use]
    pub fn met_at(&self) -> Option<GroupId> {
        self.met_at
    }

    /// It was in conflict with another transaction: the next time it asks one shard after another, so that one of the two goes on.
    pub fn take_turns(&mut self) {
        self.order = Order::InTurn;
    }

    /// How to go about shards.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    /// What is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.end.since(self.clock.now())
    }

    /// After a failure that certainly had no effect: waits and says to go on, or what to tell the client.
    pub async fn after(&mut self, failure: KeyspaceError, atlas: &Atlas) -> Next {
        let error = match &failure {
            KeyspaceError::Op(error) => *error,
            // Nobody took it, so somebody else may, or the same one a little later.
            KeyspaceError::NoLeader | KeyspaceError::NotLeader => {
                if self.left() <= self.wait {
                    return Next::Fail(failure);
                }
                self.pause().await;
                return Next::Again;
            }
            KeyspaceError::LeaderChanged
            | KeyspaceError::Timeout
            | KeyspaceError::TooManyRequests
            | KeyspaceError::TooLarge
            | KeyspaceError::Stopped
            | KeyspaceError::Learner
            | KeyspaceError::BadTransferee => return Next::Fail(failure),
        };
        match error {
            OpError::Compacted
            | OpError::FutureRevision
            | OpError::KeyNotFound
            | OpError::LeaseNotFound
            | OpError::NoSpace
            | OpError::Stale => return Next::Fail(failure),
            OpError::WrongShard | OpError::Sealed | OpError::Locked { .. } | OpError::Unstamped => {}
        }
        if self.left() <= self.wait {
            return Next::Fail(KeyspaceError::Timeout);
        }
        let mut next = Next::Again;
        if let OpError::Locked { txn, coordinator } = error {
            let now = self.clock.now();
            match self.locked {
                Some((since, by)) if by == txn => {
                    if now.since(since) >= RECOVER_AFTER {
                        self.locked = Some((now, txn));
                        next = Next::Recover(txn, coordinator);
                    }
                }
                Some(_) | None => self.locked = Some((now, txn)),
            }
        }
        self.pause().await;
        if matches!(error, OpError::WrongShard | OpError::Sealed) {
            let _ = atlas.fresh().await;
        }
        next
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
    }
}
