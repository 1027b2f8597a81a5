//! Where the asks of other members, and of this one, are answered.

use crate::ask::{Ask, ReadTerms, Reply};
use crate::calls::Answerer;
use crate::control::{Control, Said, StepForm, source, spec_of};
use crate::lifecycle::Lifecycle;
use crate::local::Local;
use crate::observe::Observer;
use crate::sequencers::Sequencers;
use crate::shared::Shared;
use crate::spread::Spread;
use crate::threads::host::Job;
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId};
use althing_shard::Event;
use althing_store::ops::{Txn, TxnId};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Answers asks.
pub struct Desk {
    inner: Arc<Inner>,
    /// Where things are done that may wait for the disk; asks come in on a thread that serves sockets.
    runtime: Handle,
}

struct Inner {
    shared: Arc<Shared>,
    local: Local,
    lifecycle: Arc<Lifecycle>,
    observer: Observer,
    sequencers: Arc<Sequencers>,
    spread: Arc<Spread>,
}

#[async_trait]
impl Answerer for Desk {
    async fn answer(&self, from: MemberId, body: Bytes) -> Bytes {
        let reply = match Ask::decode(body) {
            Ok(Ask::Control(json)) => {
                let inner = Arc::clone(&self.inner);
                let said = self.runtime.spawn(async move { inner.said(&json).await });
                said.await.unwrap_or(Reply::Failure(KeyspaceError::Stopped))
            }
            Ok(Ask::Execute { group, command }) => self.inner.execute(group, command).await,
            Ok(Ask::Read { group, terms, txn }) => self.inner.read(group, terms, txn).await,
            Ok(Ask::Stamp { group, count }) => match self.inner.sequencers.stamp(group, count).await {
                Ok(first) => Reply::Stamp(first),
                Err(failure) => Reply::Failure(failure),
            },
            Err(error) => {
                tracing::warn!(%from, %error, "an ask that makes no sense; is it a newer version's?");
                Reply::Failure(KeyspaceError::Stopped)
            }
        };
        reply.encode()
    }
}

impl Desk {
    /// Of a node.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        local: Local,
        lifecycle: Arc<Lifecycle>,
        sequencers: Arc<Sequencers>,
        spread: Arc<Spread>,
        runtime: Handle,
    ) -> Self {
        let observer = Observer::new(Arc::clone(&shared), Arc::clone(&lifecycle));
        let inner = Arc::new(Inner {
            shared,
            local,
            lifecycle,
            observer,
            sequencers,
            spread,
        });
        Self { inner, runtime }
    }
}

impl Inner {
    async fn execute(&self, group: GroupId, command: Bytes) -> Reply {
        match self.local.execute(group, command).await {
            Ok((answer, _)) => Reply::Answer(answer),
            Err(failure) => Reply::Failure(failure),
        }
    }

    async fn read(&self, group: GroupId, terms: ReadTerms, txn: Txn) -> Reply {
        match self.local.read(group, terms, txn).await {
            Ok(answer) => Reply::Answer(answer),
            Err(failure) => Reply::Failure(failure),
        }
    }

    async fn said(&self, json: &Bytes) -> Reply {
        let said = match serde_json::from_slice(json) {
            Ok(control) => self.control(control).await.unwrap_or_else(Said::No),
            Err(error) => Said::No(format!("not understood: {error}")),
        };
        let json = serde_json::to_vec(&said).expect("invariant: numbers, strings and lists always serialise");
        Reply::Control(json.into())
    }

    async fn control(&self, control: Control) -> Result<Said, String> {
        let shared = &self.shared;
        let deadline = shared.deadline();
        match control {
            Control::Observe { known } => return Ok(Said::View(Box::new(self.observer.view(&known).await))),
            Control::Open { group } => self
                .lifecycle
                .open(GroupId(group))
                .await
                .map_err(|error| error.to_string())?,
            Control::Create {
                group,
                territory,
                sequenced,
            } => self
                .lifecycle
                .create(GroupId(group), territory.into(), source(sequenced))
                .await
                .map_err(|error| error.to_string())?,
            Control::Close { group, life, last } => {
                self.lifecycle
                    .close(GroupId(group), life, last.map(LogPosition::from))
                    .await
                    .map_err(|error| error.to_string())?;
            }
            Control::Configure {
                group,
                step,
                expected,
                context,
            } => {
                if matches!(step, StepForm::AddLearner(_)) {
                    // The log may have to be cut first: it must not hold what a newcomer cannot apply.
                    let store = self.local.store(GroupId(group)).map_err(|error| error.to_string())?;
                    let meta = tokio::task::block_in_place(|| store.checkpoint()).map_err(|error| error.to_string())?;
                    shared.host.push(Job::Event(Event::Checkpointed {
                        group: GroupId(group),
                        position: meta.position,
                    }));
                }
                let asked = shared.ask_host(|request| Event::Configure {
                    request,
                    group: GroupId(group),
                    step: step.into(),
                    context: context.into(),
                    expected: Some(Index(expected)),
                    deadline,
                });
                asked.await.map_err(|error| error.to_string())?;
            }
            Control::Transfer { group, to } => {
                let asked = shared.ask_host(|request| Event::Transfer {
                    request,
                    group: GroupId(group),
                    to: Some(MemberId(to)),
                    deadline,
                });
                asked.await.map_err(|error| error.to_string())?;
            }
            Control::Reads { group, spec } => {
                let asked = shared.ask_host(|request| Event::SetReads {
                    request,
                    group: GroupId(group),
                    spec: spec_of(spec),
                    deadline,
                });
                asked.await.map_err(|error| error.to_string())?;
            }
            Control::IsOver { nonce, number } => {
                let txn = TxnId {
                    member: shared.me,
                    nonce,
                    number,
                };
                if self.spread.runs(txn) {
                    return Err("it is under way".to_owned());
                }
            }
            Control::ConfirmSealed { group, at } => self.confirm(GroupId(group), at.into())?,
            Control::StartSequencer { group, above } => self
                .sequencers
                .start(GroupId(group), althing_store::ops::Revision(above))
                .await
                .map_err(|error| error.to_string())?,
        }
        Ok(Said::Done)
    }

    /// Makes a group durable, if it is there already. The conductor asks again, and sees the result.
    fn confirm(&self, group: GroupId, at: LogPosition) -> Result<(), String> {
        let store = self.local.store(group).map_err(|error| error.to_string())?;
        if store.applied().position.index < at.index {
            return Err(format!("group {group} has not come to entry {} yet", at.index));
        }
        let meta = tokio::task::block_in_place(|| store.checkpoint()).map_err(|error| error.to_string())?;
        self.shared.set_durable(group, meta.position);
        Ok(())
    }
}
