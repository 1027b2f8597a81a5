//! Whether this member serves linearizable requests, found out by doing one.

use crate::atlas::{Atlas, Chart};
use crate::keyspace::RoutedKeyspace;
use crate::shared::{Failed, Shared};
use althing_api::health::HealthSwitch;
use althing_raft::ids::GroupId;
use althing_raft::io::Role;
use althing_raft::roster::{Footprint, ReadMode};
use althing_shard::Event;
use std::collections::BTreeSet;
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
        return Some("group 0 is being started".to_owned());
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

/// What of the shard map stands against it: this member serves what it is listed for.
fn unserved(shared: &Shared, chart: &Chart) -> Option<String> {
    if chart.state.version == 0 {
        return Some("waits for the first shard map, which the leader of group 0 makes".to_owned());
    }
    if !chart.state.members.contains_key(&shared.me) {
        return Some("waits for its place in the shard map".to_owned());
    }
    for group in chart.groups_for(shared.me) {
        match shared.soft(group) {
            None => return Some(format!("waits for a replica of shard {group}")),
            Some(soft) if !soft.config.voters.contains(&shared.me) => {
                return Some(format!("waits for its vote in shard {group}"));
            }
            Some(_) => {}
        }
    }
    None
}

/// A shard that nobody leads, as far as this member knows.
fn leaderless(shared: &Shared, chart: &Chart) -> Option<String> {
    let mut groups = chart.groups_for(shared.me).into_iter();
    let group = groups.find(|group| shared.soft(*group).is_some_and(|soft| soft.leader.is_none()))?;
    Some(format!("shard {group} has no leader"))
}

/// The first answer, before anybody can ask.
pub fn start(shared: &Shared) {
    if let Some(reason) = obstacle(shared) {
        shared.set_readiness(Readiness { ready: false, reason });
    }
}

/// Who leads a new shard asks for the way to answer reads that its settings name. Once somebody has asked for any way, or the
/// keyspace has one, settings say nothing more.
async fn wish_reads(shared: &Shared, chart: &Chart) {
    if shared.config.reads.mode == ReadMode::ReadIndex {
        return;
    }
    let views = shared.views().await;
    let unset = views.iter().filter(|(group, view)| {
        let keyspace = chart
            .state
            .shards
            .get(group)
            .filter(|shard| !shard.sequencer)
            .and_then(|shard| chart.state.keyspaces.get(&shard.keyspace));
        let leads = view.raft.soft.role == Role::Leader;
        leads && view.raft.lease.reads.index.0 == 0 && keyspace.is_some_and(|keyspace| keyspace.reads.is_none())
    });
    for (group, _) in unset {
        let (spec, deadline) = (shared.config.reads.clone(), shared.clock.now().after(PROBE_TIMEOUT));
        let asked = shared.ask_host(|request| Event::SetReads {
            request,
            group: *group,
            spec,
            deadline,
        });
        if let Err(error) = asked.await {
            tracing::warn!(%group, %error, "the wanted way to answer reads is not set yet");
        }
    }
}

/// Reads in group 0, and once in every other group that came here: that also shows that this member has caught up with it. Were they
/// all read each time, none could ever hibernate.
async fn probe(shared: &Shared, chart: &Chart, caught_up: &mut BTreeSet<GroupId>) -> Result<(), Failed> {
    let groups = chart.groups_for(shared.me);
    caught_up.retain(|group| groups.contains(group));
    let new: Vec<GroupId> = groups.difference(caught_up).copied().collect();
    for group in [GroupId::META].into_iter().chain(new) {
        let deadline = shared.clock.now().after(PROBE_TIMEOUT);
        let asked = shared.ask_host(|request| Event::Read {
            request,
            group,
            footprint: Footprint::All,
            deadline,
        });
        asked.await?;
        if group != GroupId::META {
            caught_up.insert(group);
        }
    }
    Ok(())
}

/// Looks until the task is aborted.
pub async fn run(shared: Arc<Shared>, atlas: Arc<Atlas>, keyspace: Arc<RoutedKeyspace>, health: HealthSwitch) {
    let mut failures = 0;
    let mut caught_up = BTreeSet::new();
    loop {
        let chart = atlas.chart();
        let readiness = match obstacle(&shared).or_else(|| unserved(&shared, &chart)) {
            Some(reason) => Readiness { ready: false, reason },
            None => match probe(&shared, &chart, &mut caught_up).await {
                Ok(()) => {
                    wish_reads(&shared, &chart).await;
                    match leaderless(&shared, &chart) {
                        None => {
                            failures = 0;
                            Readiness {
                                ready: true,
                                reason: String::new(),
                            }
                        }
                        Some(reason) => {
                            failures += 1;
                            Readiness {
                                ready: shared.readiness().ready && failures < FAILURES_MAX,
                                reason,
                            }
                        }
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
            },
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
