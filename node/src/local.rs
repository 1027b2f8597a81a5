//! One group of this node, asked: commands through its log, reads through its gate. Knows nothing of keyspaces.

use crate::ask::ReadTerms;
use crate::metrics::{Outcome, Proposal};
use crate::shared::{Failed, Shared, Store};
use crate::waiters::{Answer, Timeline};
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::GroupId;
use althing_raft::roster::{Footprint, ReadMode, Revisions};
use althing_shard::{Done, Event, Refusal};
use althing_store::codec::needs_stamp;
use althing_store::ops::{KeyRange, OpError, Range, RangeResult, Revision, Txn};
use althing_store::{CommandResult, Locks, StoreError, footprint};
use bytes::Bytes;
use std::sync::Arc;

/// The groups of this node.
#[derive(Clone)]
pub struct Local {
    shared: Arc<Shared>,
}

/// Why the host refused, in a client's words.
pub fn failed(failed: Failed) -> KeyspaceError {
    let refusal = match failed {
        Failed::Stopped => return KeyspaceError::Stopped,
        Failed::Refused(refusal) => refusal,
    };
    match refusal {
        Refusal::NoLeader | Refusal::NoStamp => KeyspaceError::NoLeader,
        Refusal::NotLeader { .. } => KeyspaceError::NotLeader,
        Refusal::LeaderChanged => KeyspaceError::LeaderChanged,
        Refusal::Timeout => KeyspaceError::Timeout,
        Refusal::TooManyRequests | Refusal::ChangeInFlight => KeyspaceError::TooManyRequests,
        Refusal::BadTransferee
        | Refusal::SpecInvalid(_)
        | Refusal::ChangeInvalid
        | Refusal::Conflict { .. }
        | Refusal::LearnerBehind => KeyspaceError::BadTransferee,
        Refusal::Learner => KeyspaceError::Learner,
        Refusal::NotMember | Refusal::NoGroup => KeyspaceError::Stopped,
    }
}

/// A store that fails cannot answer; the details are for the log, not for clients.
pub fn broken(error: &StoreError) -> KeyspaceError {
    tracing::error!(%error, "the state store failed a read");
    KeyspaceError::Stopped
}

/// Does what may read much of the disk on another thread: this one has other requests to serve meanwhile.
pub async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, KeyspaceError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a read ended early");
        KeyspaceError::Stopped
    })
}

impl Local {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The node.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether a group has a replica here.
    #[must_use]
    pub fn has(&self, group: GroupId) -> bool {
        self.shared.groups.get(group).is_some()
    }

    /// The state of a group.
    ///
    /// # Errors
    /// If it has no replica here.
    pub fn store(&self, group: GroupId) -> Result<Arc<Store>, KeyspaceError> {
        self.shared.groups.get(group).ok_or(KeyspaceError::Stopped)
    }

    /// Whether reads of a group answer for their own keys only, by leases, as it was last asked to.
    #[must_use]
    pub fn reads_own_keys(&self, group: GroupId) -> bool {
        let spec = self.shared.groups.get(group).map(|store| store.applied().reads.spec);
        spec.is_some_and(|spec| match (spec.mode, spec.revisions) {
            (ReadMode::ReadIndex, _) | (_, Revisions::Current) => false,
            (ReadMode::LeaderLease | ReadMode::RosterLease, Revisions::OfKeys) => true,
        })
    }

    fn count(&self, group: GroupId, outcome: Outcome) {
        self.shared
            .metrics
            .proposals
            .get_or_create(&Proposal {
                shard: group.0,
                outcome,
            })
            .inc();
    }

    /// Replicates a command and applies it here.
    ///
    /// # Errors
    /// If the host refuses; what the state machine refuses is in the result.
    pub async fn execute(&self, group: GroupId, command: Bytes) -> Result<(CommandResult, Timeline), KeyspaceError> {
        if needs_stamp(&command) && self.store(group)?.sealed().is_some() {
            // It would be refused when it is applied; and whoever waits for the end of a sealed shard's log would never see it.
            return Err(OpError::Sealed.into());
        }
        let _counted = self.shared.metrics.pending(group.0);
        let deadline = self.shared.deadline();
        let answer = self
            .shared
            .ask(|request| Event::Propose {
                request,
                group,
                command,
                deadline,
            })
            .await;
        match answer {
            Ok(Answer::Applied(result, timeline)) => {
                self.count(group, Outcome::applied);
                Ok((result, timeline))
            }
            Ok(Answer::Host(Err(refusal))) => {
                self.count(
                    group,
                    match refusal {
                        Refusal::LeaderChanged | Refusal::Timeout => Outcome::unknown,
                        Refusal::NoLeader
                        | Refusal::NoStamp
                        | Refusal::NotLeader { .. }
                        | Refusal::TooManyRequests
                        | Refusal::Conflict { .. }
                        | Refusal::ChangeInFlight
                        | Refusal::ChangeInvalid
                        | Refusal::LearnerBehind
                        | Refusal::BadTransferee
                        | Refusal::SpecInvalid(_)
                        | Refusal::Learner
                        | Refusal::NotMember
                        | Refusal::NoGroup => Outcome::refused,
                    },
                );
                Err(failed(Failed::Refused(refusal)))
            }
            Ok(Answer::Host(Ok(
                Done::Read { .. } | Done::Configured { .. } | Done::ReadsSet { .. } | Done::Transferred { .. },
            ))) => {
                unreachable!("invariant: commands are answered by the state machine")
            }
            Err(error) => {
                self.count(group, Outcome::unknown);
                Err(failed(error))
            }
        }
    }

    /// Reads in a group, in the way that is asked for; settled reads are answered by its leader only.
    ///
    /// # Errors
    /// If the host refuses; what the state machine refuses is in the result.
    pub async fn read(&self, group: GroupId, terms: ReadTerms, txn: Txn) -> Result<CommandResult, KeyspaceError> {
        let store = self.store(group)?;
        let locks = if terms.serializable { Locks::Ignore } else { Locks::Heed };
        if terms.settled {
            self.resolve(group).await?;
        } else {
            self.catch_up(group, footprint::read_txn(&txn), terms.serializable)
                .await?;
        }
        let read = elsewhere(move || store.read_txn_with(&txn, locks)).await?;
        Ok(match read.map_err(|error| broken(&error))? {
            Ok((revision, result)) => CommandResult {
                revision,
                result: Ok(result),
            },
            Err(error) => CommandResult {
                revision: Revision(0),
                result: Err(error),
            },
        })
    }

    /// Reads one range; a single key on this thread, if nobody holds it up.
    ///
    /// # Errors
    /// As of [`Local::read`].
    pub async fn range(
        &self,
        group: GroupId,
        range: Range,
        serializable: bool,
    ) -> Result<Result<(Revision, RangeResult), OpError>, KeyspaceError> {
        self.catch_up(group, footprint::read(&range), serializable).await?;
        let store = self.store(group)?;
        let locks = if serializable { Locks::Ignore } else { Locks::Heed };
        let found = match &range.keys {
            KeyRange::Single(_) => store.try_range_with(&range, locks),
            KeyRange::Between(..) | KeyRange::From(_) | KeyRange::Part { .. } => Ok(None),
        };
        let found = match found.transpose() {
            Some(found) => found,
            None => elsewhere(move || store.range_with(&range, locks)).await?,
        };
        found.map_err(|error| broken(&error))
    }

    /// Waits until the state machine has everything of these keys that was committed when this was called: by the read gate,
    /// which needs no message where this member holds a lease.
    async fn catch_up(&self, group: GroupId, footprint: Footprint, serializable: bool) -> Result<(), KeyspaceError> {
        if serializable {
            // The cluster is named first: a node outside of every cluster has nothing to serve.
            return self.shared.cluster().map(|_| ()).ok_or(KeyspaceError::Stopped);
        }
        self.shared.catch_up(group, footprint).await.map_err(failed)
    }

    /// Waits until every revision that the sequencer gave to this group before now is applied here, or never will be.
    async fn resolve(&self, group: GroupId) -> Result<(), KeyspaceError> {
        let deadline = self.shared.deadline();
        let asked = self.shared.ask_host(|request| Event::Resolve {
            request,
            group,
            deadline,
        });
        asked.await.map(|_| ()).map_err(failed)
    }
}
