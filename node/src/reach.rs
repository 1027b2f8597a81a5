//! Asking a group, wherever its replicas are.

use crate::ask::{Ask, Reply};
use crate::calls::Calls;
use crate::shared::Shared;
use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::{GroupId, MemberId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Groups whose last helpful member is remembered: more than a node has routes in use. Forgetting one costs a detour.
const GUIDES_MAX: usize = 65_536;

/// Asks groups.
pub struct Reach {
    shared: Arc<Shared>,
    calls: Arc<Calls>,
    /// Who answered last.
    guides: Mutex<BTreeMap<GroupId, MemberId>>,
}

impl Reach {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, calls: Arc<Calls>) -> Self {
        Self {
            shared,
            calls,
            guides: Mutex::default(),
        }
    }

    fn guides(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, MemberId>> {
        self.guides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who might know, the likeliest first.
    fn order(&self, group: GroupId, replicas: &[MemberId]) -> Vec<MemberId> {
        let leader = self.shared.soft(group).and_then(|soft| soft.leader);
        let guide = self.guides().get(&group).copied();
        let mut order: Vec<MemberId> = leader
            .into_iter()
            .chain(guide)
            .filter(|member| replicas.contains(member))
            .collect();
        order.extend(replicas);
        let mut seen = std::collections::BTreeSet::new();
        order.retain(|member| seen.insert(*member));
        order
    }

    /// Asks one replica after another until one does it. Goes on only where nothing can have happened.
    ///
    /// # Errors
    /// The last refusal; `Timeout` if a call broke and may have happened.
    pub async fn ask(
        &self,
        group: GroupId,
        replicas: &[MemberId],
        ask: &Ask,
        timeout: Duration,
    ) -> Result<Reply, KeyspaceError> {
        let body = ask.encode();
        // Asking twice is harmless unless it is about changing something.
        let idempotent = match ask {
            Ask::Execute { .. } => false,
            Ask::Read { .. } | Ask::Stamp { .. } | Ask::Control(_) => true,
        };
        let mut last = KeyspaceError::NoLeader;
        for member in self.order(group, replicas) {
            match self.calls.call(member, body.clone(), timeout).await {
                Ok(reply) => match Reply::decode(reply) {
                    Ok(Reply::Failure(failure)) => match failure {
                        KeyspaceError::NotLeader | KeyspaceError::Stopped | KeyspaceError::Learner => last = failure,
                        // It knows no more than that there is none, which another one may.
                        KeyspaceError::NoLeader => last = failure,
                        KeyspaceError::Op(_)
                        | KeyspaceError::LeaderChanged
                        | KeyspaceError::Timeout
                        | KeyspaceError::TooManyRequests
                        | KeyspaceError::TooLarge
                        | KeyspaceError::BadTransferee => return Err(failure),
                    },
                    Ok(reply) => {
                        let mut guides = self.guides();
                        if guides.len() >= GUIDES_MAX {
                            guides.clear();
                        }
                        guides.insert(group, member);
                        return Ok(reply);
                    }
                    Err(error) => {
                        tracing::warn!(%member, %error, "answers with something that makes no sense; is it a newer version?");
                        last = KeyspaceError::Timeout;
                    }
                },
                Err(error) if error.may_have_happened() && !idempotent => {
                    tracing::debug!(%member, %group, %error, "nobody knows what became of a request");
                    return Err(KeyspaceError::Timeout);
                }
                Err(error) => {
                    tracing::debug!(%member, %group, %error, "cannot be asked");
                    self.guides().remove(&group);
                    last = KeyspaceError::NoLeader;
                }
            }
        }
        Err(last)
    }
}
