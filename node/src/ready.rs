//! Whether this member serves linearizable requests, found out by doing one.

use crate::keyspace::DefaultKeyspace;
use crate::shared::Shared;
use althing_api::health::HealthSwitch;
use althing_raft::ids::GroupId;
use althing_raft::io::Role;
use althing_raft::roster::{Footprint, ReadMode};
use althing_shard::Event;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time between two looks while ready; a probe is one read round.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// The same while not ready: rolling updates wait for this.
const PROBE_INTERVAL_UNREADY: Duration = Duration::from_millis(100);
/// Longest time that a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Probes that must fail one after the other before a ready member counts as not ready: one is an election.
const FAILURES_MAX: u32 = 2;

/// Ready or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// Whether it serves.
    pub ready: bool,
    /// Why not, for a person; empty when ready.
    pub reason: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            ready: false,
            reason: "the node is starting".to_owned(),
        }
    }
}

/// What stands against serving, without asking anybody.
fn obstacle(shared: &Shared) -> Option<String> {
    if shared.draining.load(Ordering::Acquire) {
        return Some("the node is shutting down".to_owned());
    }
    if shared.cluster().is_none() {
        return Some("not in a cluster yet: waits for a bootstrap, or for a leader that adds this member".to_owned());
    }
    let Some(soft) = shared.soft(GroupId::META) else {
        return Some("shard 1 is being started".to_owned());
    };
    let removed = soft.config.index.0 > 0 && !soft.config.contains(shared.me);
    if removed || shared.removed.load(Ordering::Acquire) {
        return Some("this member was removed from its cluster; its volume can be deleted".to_owned());
    }
    if !soft.config.contains(shared.me) {
        return Some("waits for the leader's log".to_owned());
    }
    if soft.config.learners.contains(&shared.me) {
        return Some("a learner; waits for its promotion".to_owned());
    }
    None
}

/// The first answer, before anybody can ask.
pub fn start(shared: &Shared) {
    if let Some(reason) = obstacle(shared) {
        shared.set_readiness(Readiness { ready: false, reason });
    }
}

/// A new cluster's leader asks for the way to answer reads that its settings name. Once somebody has asked for any way, settings
/// say nothing more.
async fn wish_reads(shared: &Shared) {
    let group = GroupId::META;
    let leads = shared.soft(group).is_some_and(|soft| soft.role == Role::Leader);
    if !leads || shared.config.reads.mode == ReadMode::ReadIndex {
        return;
    }
    let views = shared.views().await;
    let unset = views
        .iter()
        .any(|(id, view)| *id == group && view.raft.lease.reads.index.0 == 0);
    if unset {
        let (spec, deadline) = (shared.config.reads.clone(), shared.clock.now().after(PROBE_TIMEOUT));
        let asked = shared.ask_host(|request| Event::SetReads {
            request,
            group,
            spec,
            deadline,
        });
        if let Err(error) = asked.await {
            tracing::warn!(%error, "the wanted way to answer reads is not set yet");
        }
    }
}

/// Looks until the task is aborted.
pub async fn run(shared: Arc<Shared>, keyspace: Arc<DefaultKeyspace>, health: HealthSwitch) {
    let mut failures = 0;
    loop {
        let readiness = match obstacle(&shared) {
            Some(reason) => Readiness { ready: false, reason },
            None => {
                let deadline = shared.clock.now().after(PROBE_TIMEOUT);
                // Also shows that the commit index of this boot is known: a read index is one.
                match shared
                    .ask_host(|request| Event::Read {
                        request,
                        group: GroupId::META,
                        footprint: Footprint::All,
                        deadline,
                    })
                    .await
                {
                    Ok(_) => {
                        failures = 0;
                        wish_reads(&shared).await;
                        Readiness {
                            ready: true,
                            reason: String::new(),
                        }
                    }
                    Err(error) => {
                        failures += 1;
                        let reason = format!("a linearizable read is not answered: {error}");
                        Readiness {
                            ready: shared.readiness().ready && failures < FAILURES_MAX,
                            reason,
                        }
                    }
                }
            }
        };
        let before = shared.set_readiness(readiness.clone());
        if before.ready != readiness.ready {
            tracing::info!(ready = readiness.ready, reason = readiness.reason, "readiness changed");
            health.refresh(&*keyspace).await;
        }
        tokio::time::sleep(if readiness.ready {
            PROBE_INTERVAL
        } else {
            PROBE_INTERVAL_UNREADY
        })
        .await;
    }
}
