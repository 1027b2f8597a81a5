//! The `default` keyspace: one Raft group behind the gRPC services' seam.

use crate::members::MemberInfo;
use crate::metrics::{Outcome, Proposal};
use crate::shared::{Failed, Shared, Store};
use crate::telemetry::Tracer;
use crate::waiters::Answer;
use althing_api::keyspace::{Alarm, Consistency, Header, Keyspace, KeyspaceError, MemberEntry, Status};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::Role;
use althing_raft::roster::Footprint;
use althing_shard::{Done, Event, Refusal};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, KeyRange, Op, OpError, OpResult, Range, RangeResult, Revision, Txn};
use althing_store::{SledOptions, StoreError, footprint};
use async_trait::async_trait;
use bytes::BytesMut;
use std::sync::Arc;

/// The group that holds the keyspace.
const GROUP: GroupId = GroupId::FIRST_SHARD;
/// Bytes of an encoded command; above the API's own limit, so that this is a backstop.
const COMMAND_BYTES_MAX: usize = 3 << 20;

/// The keyspace as this member serves it.
pub struct DefaultKeyspace {
    shared: Arc<Shared>,
    tracer: Tracer,
}

impl DefaultKeyspace {
    /// Over a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, tracer: Tracer) -> Self {
        Self { shared, tracer }
    }

    fn store(&self) -> Result<Arc<Store>, KeyspaceError> {
        self.shared.groups.get(GROUP).ok_or(KeyspaceError::Stopped)
    }

    fn header_at(&self, revision: Revision) -> Header {
        Header {
            cluster_id: self.shared.cluster().unwrap_or_default(),
            member_id: self.shared.me.0,
            revision,
            raft_term: self.shared.term(GROUP),
        }
    }

    /// Waits until the state machine has everything of these keys that was committed when this was called: by the read gate,
    /// which needs no message where this member holds a lease.
    async fn catch_up(&self, footprint: Footprint, consistency: Consistency) -> Result<(), KeyspaceError> {
        match consistency {
            // The cluster is named first: a node outside of every cluster has nothing to serve.
            Consistency::Serializable => self.shared.cluster().map(|_| ()).ok_or(KeyspaceError::Stopped),
            Consistency::Linearizable => self.shared.catch_up(footprint).await.map_err(failed),
        }
    }

    fn count(&self, outcome: Outcome) {
        self.shared
            .metrics
            .proposals
            .get_or_create(&Proposal {
                shard: GROUP.0,
                outcome,
            })
            .inc();
    }
}

fn failed(failed: Failed) -> KeyspaceError {
    let refusal = match failed {
        Failed::Stopped => return KeyspaceError::Stopped,
        Failed::Refused(refusal) => refusal,
    };
    match refusal {
        Refusal::NoLeader => KeyspaceError::NoLeader,
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
fn broken(error: &StoreError) -> KeyspaceError {
    tracing::error!(%error, "the state store failed a read");
    KeyspaceError::Stopped
}

/// Does what may read much of the disk on another thread: this one has other requests to serve meanwhile.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, KeyspaceError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a read ended early");
        KeyspaceError::Stopped
    })
}

/// Whether a command may need space: deletions and compaction are how space is made.
fn grows(command: &Command) -> bool {
    fn puts(ops: &[Op]) -> bool {
        ops.iter().any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(inner) => puts(&inner.success) || puts(&inner.failure),
            Op::Range(_) | Op::Delete(_) => false,
        })
    }
    match command {
        Command::Put(_) => true,
        Command::Txn(txn) => puts(&txn.success) || puts(&txn.failure),
        Command::Delete(_) | Command::Compact(_) => false,
    }
}

#[async_trait]
impl Keyspace for DefaultKeyspace {
    async fn range(&self, range: Range, consistency: Consistency) -> Result<(Header, RangeResult), KeyspaceError> {
        self.catch_up(footprint::read(&range), consistency).await?;
        let store = self.store()?;
        let found = match &range.keys {
            KeyRange::Single(_) => store.try_range(&range),
            KeyRange::Between(..) | KeyRange::From(_) => Ok(None),
        };
        let found = match found.transpose() {
            Some(found) => found,
            None => elsewhere(move || store.range(&range)).await?,
        };
        let (revision, result) = found.map_err(|error| broken(&error))??;
        Ok((self.header_at(revision), result))
    }

    async fn read_txn(&self, txn: Txn, consistency: Consistency) -> Result<(Header, OpResult), KeyspaceError> {
        self.catch_up(footprint::read_txn(&txn), consistency).await?;
        let store = self.store()?;
        let read = elsewhere(move || store.read_txn(&txn)).await?;
        let (revision, result) = read.map_err(|error| broken(&error))??;
        Ok((self.header_at(revision), result))
    }

    async fn execute(&self, command: Command) -> Result<(Header, OpResult), KeyspaceError> {
        if (grows(&command) && self.shared.short_of_space()) || self.shared.out_of_space() {
            self.count(Outcome::refused);
            return Err(OpError::NoSpace.into());
        }
        let mut bytes = BytesMut::new();
        encode_command(&command, &mut bytes);
        if bytes.len() > COMMAND_BYTES_MAX {
            self.count(Outcome::refused);
            return Err(KeyspaceError::TooLarge);
        }
        let _counted = self.shared.metrics.pending(GROUP.0);
        let (command, deadline) = (bytes.freeze(), self.shared.deadline());
        let answer = self
            .shared
            .ask(|request| Event::Propose {
                request,
                group: GROUP,
                command,
                deadline,
            })
            .await;
        match answer {
            Ok(Answer::Applied(result, timeline)) => {
                self.count(Outcome::applied);
                self.tracer.follow(&self.shared, &timeline);
                Ok((self.header_at(result.revision), result.result?))
            }
            Ok(Answer::Host(Err(refusal))) => {
                self.count(match refusal {
                    Refusal::LeaderChanged | Refusal::Timeout => Outcome::unknown,
                    Refusal::NoLeader
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
                });
                Err(failed(Failed::Refused(refusal)))
            }
            Ok(Answer::Host(Ok(
                Done::Read { .. } | Done::Configured { .. } | Done::ReadsSet { .. } | Done::Transferred { .. },
            ))) => {
                unreachable!("invariant: commands are answered by the state machine")
            }
            Err(error) => {
                self.count(Outcome::unknown);
                Err(failed(error))
            }
        }
    }

    fn header(&self) -> Header {
        let revision = self
            .shared
            .groups
            .get(GROUP)
            .map_or(Revision(0), |store| store.current_revision());
        self.header_at(revision)
    }

    async fn status(&self) -> Result<(Header, Status), KeyspaceError> {
        let store = self.store()?;
        let size = elsewhere(move || store.size()).await?.map_err(|error| broken(&error))?;
        let views = self.shared.views().await;
        let (_, view) = views
            .into_iter()
            .find(|(group, _)| *group == GROUP)
            .ok_or(KeyspaceError::Stopped)?;
        let soft = &view.raft.soft;
        let mut errors = Vec::new();
        if soft.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        if self.shared.short_of_space() {
            errors.push("etcdserver: mvcc: database space exceeded".to_owned());
        }
        let status = Status {
            db_size: i64::try_from(size.on_disk).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(size.in_use).unwrap_or(i64::MAX),
            leader: soft.leader.map(|leader| leader.0).unwrap_or_default(),
            raft_index: view.raft.commit.0,
            raft_term: soft.term.0,
            raft_applied_index: view.applied.index.0,
            errors,
            is_learner: soft.config.learners.contains(&self.shared.me),
        };
        Ok((self.header(), status))
    }

    async fn members(&self, consistency: Consistency) -> Result<(Header, Vec<MemberEntry>), KeyspaceError> {
        // Members are not keys: only a responder of everything, or the leader, may answer for itself.
        self.catch_up(Footprint::All, consistency).await?;
        let store = self.store()?;
        let config = store.applied().config;
        let entry = |(member, context): (&MemberId, &bytes::Bytes)| {
            let info = MemberInfo::decode(context);
            MemberEntry {
                id: member.0,
                name: info.name,
                peer_urls: vec![format!("http://{}", info.peer_address)],
                client_urls: info.client_urls,
                is_learner: config.learners.contains(member),
            }
        };
        Ok((self.header(), store.members().iter().map(entry).collect()))
    }

    async fn move_leader(&self, target: u64) -> Result<Header, KeyspaceError> {
        let (to, deadline) = (Some(MemberId(target)), self.shared.deadline());
        let asked = self
            .shared
            .ask_host(|request| Event::Transfer {
                request,
                group: GROUP,
                to,
                deadline,
            })
            .await;
        match asked.map_err(failed)? {
            Done::Transferred { leader } if leader.0 == target => Ok(self.header()),
            Done::Transferred { .. } => Err(KeyspaceError::LeaderChanged),
            Done::Read { .. } | Done::Configured { .. } | Done::ReadsSet { .. } => {
                unreachable!("invariant: a transfer is answered as one")
            }
        }
    }

    async fn defragment(&self) -> Result<Header, KeyspaceError> {
        let store = self.store()?;
        let (engine, room) = (store.engine().clone(), self.shared.room.clone());
        let options = SledOptions {
            cache_bytes: self.shared.config.store_cache_bytes,
        };
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || {
            let size = store.size()?;
            // The copy takes about what is in use; without that much to spare it is not begun.
            if !room.takes(size.in_use / 2) {
                return Ok(None);
            }
            let go_on = || room.takes(0) && !shared.stopping.load(std::sync::atomic::Ordering::Acquire);
            engine.defragment(options, go_on).map(Some)
        });
        match done.await {
            Ok(Ok(Some(done))) => {
                tracing::info!(
                    before = done.before,
                    after = done.after,
                    rows = done.rows,
                    "defragmented the state store"
                );
                Ok(self.header())
            }
            Ok(Ok(None)) => Err(OpError::NoSpace.into()),
            Ok(Err(error @ StoreError::Defragment { .. })) => {
                tracing::warn!(%error, "not defragmented");
                Err(KeyspaceError::TooManyRequests)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the state store cannot be defragmented; it is what it was");
                Err(KeyspaceError::Stopped)
            }
            Err(error) => {
                tracing::error!(%error, "the defragmentation ended in a panic");
                Err(KeyspaceError::Stopped)
            }
        }
    }

    fn serving(&self) -> bool {
        self.shared.readiness().ready
    }

    fn has_leader(&self) -> bool {
        self.shared
            .soft(GROUP)
            .is_some_and(|soft| soft.role == Role::Leader || soft.leader.is_some())
    }

    fn alarms(&self) -> Vec<Alarm> {
        if self.shared.short_of_space() {
            vec![Alarm::NoSpace]
        } else {
            Vec::new()
        }
    }
}
