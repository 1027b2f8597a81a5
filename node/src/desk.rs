//! Where the asks of other members, and of this one, are answered.

use crate::ask::{Ask, ReadTerms, Reply};
use crate::calls::Answerer;
use crate::control::{Control, Said, source, spec_of};
use crate::lifecycle::Lifecycle;
use crate::local::{Local, failed};
use crate::observe::Observer;
use crate::sequencers::Sequencers;
use crate::shared::Shared;
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId};
use althing_shard::Event;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// Answers asks.
pub struct Desk {
    shared: Arc<Shared>,
    local: Local,
    lifecycle: Arc<Lifecycle>,
    observer: Observer,
    sequencers: Arc<Sequencers>,
}

#[async_trait]
impl Answerer for Desk {
    async fn answer(&self, from: MemberId, body: Bytes) -> Bytes {
        let reply = match Ask::decode(body) {
            Ok(ask) => self.reply(ask).await,
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
    pub fn new(shared: Arc<Shared>, local: Local, lifecycle: Arc<Lifecycle>, sequencers: Arc<Sequencers>) -> Self {
        let observer = Observer::new(Arc::clone(&shared), Arc::clone(&lifecycle));
        Self {
            shared,
            local,
            lifecycle,
            observer,
            sequencers,
        }
    }

    async fn reply(&self, ask: Ask) -> Reply {
        let done = match ask {
            Ask::Execute { group, command } => {
                self.local.execute(group, command).await.map(|(answer, _)| Reply::Answer(answer))
            }
            Ask::Read { group, terms, txn } => self.local.read(group, terms, txn).await.map(Reply::Answer),
            Ask::Stamp { group, count } => self.sequencers.stamp(group, count).await.map(Reply::Stamp),
            Ask::Control(json) => {
                let said = match serde_json::from_slice(&json) {
                    Ok(control) => self.control(control).await.unwrap_or_else(Said::No),
                    Err(error) => Said::No(format!("not understood: {error}")),
                };
                let json = serde_json::to_vec(&said).expect("invariant: numbers, strings and lists always serialise");
                Ok(Reply::Control(json.into()))
            }
        };
        done.unwrap_or_else(Reply::Failure)
    }

    async fn control(&self, control: Control) -> Result<Said, String> {
        let shared = &self.shared;
        let deadline = shared.deadline();
        match control {
            Control::Observe { known } => return Ok(Said::View(Box::new(self.observer.view(&known).await))),
            Control::Open { group } => self.lifecycle.open(GroupId(group)).await.map_err(|error| error.to_string())?,
            Control::Create {
                group,
                territory,
                sequenced,
            } => self
                .lifecycle
                .create(GroupId(group), territory.into(), source(sequenced))
                .await
                .map_err(|error| error.to_string())?,
            Control::Close { group, unchanged } => {
                let unchanged = unchanged.map(|(life, last)| (life, LogPosition::from(last)));
                self.lifecycle
                    .close(GroupId(group), unchanged)
                    .await
                    .map_err(|error| error.to_string())?;
            }
            Control::Configure {
                group,
                step,
                expected,
                context,
            } => {
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
