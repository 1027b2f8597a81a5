//! The host's task, on the first thread that serves sockets: everything that gathered since the last turn goes in, effects go out.

use super::{AbortOnPanic, die};
use crate::inbox::Alarm;
use crate::lifecycle::Lifecycle;
use crate::metrics::Shard;
use crate::peers::Peers;
use crate::shared::Shared;
use crate::snapshot::Outgoing;
use crate::stamps::Stamps;
use crate::threads::apply::{ApplyJob, SnapshotJob};
use crate::threads::machine::Machine;
use crate::threads::wal::WalJob;
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::Soft;
use althing_raft::message::{Body, Message};
use althing_shard::host::GroupView;
use althing_shard::{Effect, Event, GroupStart, Host};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What the host is asked to do.
pub enum Job {
    /// Something happened.
    Event(Event),
    /// Somebody waits to read: ask for everybody who does by now.
    Reads,
    /// Start a group.
    Start(Box<GroupStart>),
    /// Say how the groups are.
    Views(oneshot::Sender<Vec<(GroupId, GroupView)>>),
}

/// Runs until the inbox is closed and empty.
pub async fn run(
    mut host: Host,
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    snapshots: Outgoing,
    machine: Arc<Machine>,
    lifecycle: Arc<Lifecycle>,
    stamps: Stamps,
) {
    let _guard = AbortOnPanic;
    let mut alarm = Alarm::default();
    loop {
        // The host shares its thread with the requests that feed it. More work at once means load: then everybody else who is ready
        // has a turn first, and the host's next one takes in what they bring.
        if !shared.host.is_empty() {
            tokio::task::yield_now().await;
        }
        let until = host.next_deadline().map(|due| shared.clock.instant_of(due));
        let Some(jobs) = shared.host.next_until(until, &mut alarm).await else {
            return;
        };
        let mut events = Vec::with_capacity(jobs.len());
        let mut proposals = Vec::new();
        let mut views = Vec::new();
        // Whoever joined up to here is covered by the read index that is asked for below.
        if jobs.iter().any(|job| matches!(job, Job::Reads)) {
            events.extend(shared.take_reads());
        }
        // After the reads were taken: the core counts on reading the time later than any read came in (`althing_raft::gate`).
        let now = shared.clock.now();
        let started = shared.clock.instant();
        for job in jobs {
            match job {
                Job::Event(event) => {
                    if let Event::Propose { request, .. } = &event {
                        proposals.push(*request);
                    }
                    events.push(event);
                }
                Job::Reads => {}
                Job::Start(start) => host.add_group(now, *start),
                Job::Views(reply) => views.push(reply),
            }
        }
        let effects = match host.poll(now, events) {
            Ok(effects) => effects,
            Err(error) => die("the host cannot go on", &error),
        };
        if !proposals.is_empty() {
            let write = effects.iter().find_map(|effect| match effect {
                Effect::Write { token, .. } => Some(*token),
                Effect::Compact { .. }
                | Effect::Send { .. }
                | Effect::Apply { .. }
                | Effect::Complete { .. }
                | Effect::SendSnapshot { .. }
                | Effect::Install { .. }
                | Effect::Discard { .. }
                | Effect::Stamp { .. }
                | Effect::Retired { .. }
                | Effect::Kept { .. }
                | Effect::Peers(_)
                | Effect::Changed { .. } => None,
            });
            shared.waiters.proposed(&proposals, started, write);
        }
        let news = dispatch(effects, &shared, &peers, &snapshots, &machine, &lifecycle, &stamps);
        if !news.is_empty() {
            // Whoever was answered goes first, down to the socket.
            tokio::task::yield_now().await;
            news.into_iter().for_each(|(to, messages)| peers.send(to, messages));
        }
        for reply in views {
            let all = host
                .groups()
                .filter_map(|group| Some((group, host.view(group)?)))
                .collect();
            // Whoever asked may have given up.
            let _ = reply.send(all);
        }
    }
}

/// Lets effects happen. Says what is still to be told to peers, once those are served whom it answered.
fn dispatch(
    effects: Vec<Effect>,
    shared: &Arc<Shared>,
    peers: &Arc<Peers>,
    snapshots: &Outgoing,
    machine: &Machine,
    lifecycle: &Lifecycle,
    stamps: &Stamps,
) -> Vec<(MemberId, Vec<Message>)> {
    let mut answers = Vec::new();
    let mut news = Vec::new();
    let mut answered_here = false;
    for effect in effects {
        match effect {
            // Peers first: their copies are written while ours is.
            Effect::Send { to, messages } if messages.iter().any(|message| is_urgent(&message.body)) => {
                peers.send(to, messages);
            }
            Effect::Send { to, messages } => news.push((to, messages)),
            Effect::Write { token, writes } => shared.wal.push(WalJob::Write { token, writes }),
            Effect::Compact { group, up_to } => shared.wal.push(WalJob::Compact { group, up_to }),
            Effect::Apply { group, items } => answered_here |= machine.take(group, items),
            Effect::Complete { request, result } => answers.push((request, result)),
            Effect::SendSnapshot { group, to, term } => snapshots.send(group, to, term),
            Effect::Install { group, meta } => shared
                .apply
                .push(ApplyJob::Snapshot(SnapshotJob::Install { group, meta })),
            Effect::Discard { group, meta } => shared
                .apply
                .push(ApplyJob::Snapshot(SnapshotJob::Discard { group, meta })),
            Effect::Stamp { group, ticket, count } => stamps.ask(group, ticket, count),
            Effect::Retired { group, hard_state } => lifecycle.left(group, Some(hard_state)),
            Effect::Kept { group } => lifecycle.left(group, None),
            Effect::Peers(book) => peers.update(book),
            Effect::Changed { group, soft } => changed(group, soft, shared),
        }
    }
    if !answers.is_empty() {
        shared.waiters.complete(answers);
    }
    if !answered_here {
        news.drain(..).for_each(|(to, messages)| peers.send(to, messages));
    }
    news
}

/// Whether somebody waits for a message. What is committed is news, and interests a follower later than the client.
fn is_urgent(body: &Body) -> bool {
    match body {
        Body::Committed { .. }
        | Body::Heartbeat { .. }
        | Body::Hibernate { .. }
        | Body::Hibernating { .. }
        | Body::Alive { .. } => false,
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::Append { .. }
        | Body::AppendAccepted { .. }
        | Body::AppendRejected { .. }
        | Body::HeartbeatReply { .. }
        | Body::Snapshot { .. }
        | Body::TimeoutNow
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Forward { .. }
        | Body::Roster { .. }
        | Body::LeaseRequest { .. }
        | Body::LeaseGrant { .. }
        | Body::Revoke { .. }
        | Body::Revoked { .. } => true,
    }
}

fn changed(group: GroupId, soft: Soft, shared: &Shared) {
    let labels = Shard { shard: group.0 };
    let before = shared.set_soft(group, soft.clone());
    let metrics = &shared.metrics;
    metrics.name_shard(group.0);
    let leader_before = before.as_ref().and_then(|before| before.leader);
    if soft.leader.is_some() && soft.leader != leader_before {
        metrics.raft_leader_changes.get_or_create(&labels).inc();
    }
    if soft.config.contains(shared.me) {
        shared.removed.store(false, std::sync::atomic::Ordering::Release);
    }
    let leader = soft.leader.map(|leader| leader.to_string()).unwrap_or_default();
    tracing::info!(%group, role = ?soft.role, term = %soft.term, leader, voters = soft.config.voters.len(), learners = soft.config.learners.len(), "state changed");
}
