//! What happened, as a running hash and, on request, as lines.

use crate::rng::mix;
use althing_raft::message::{Body, Message};

/// A hash of everything that happened, and the lines if somebody wants to read them.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: bool,
}

impl Trace {
    pub(crate) fn new(lines: bool) -> Self {
        Self { hash: 0, lines }
    }

    /// Notes that `what` happened to `who` (a machine, a client) at `now`; `detail` makes it specific.
    /// The text is only built if it is printed.
    pub(crate) fn note(
        &mut self,
        now: u64,
        who: u64,
        what: &'static str,
        detail: &[u64],
        text: impl FnOnce() -> String,
    ) {
        let mut hash = self.hash ^ now;
        for part in what.bytes().map(u64::from).chain([who]).chain(detail.iter().copied()) {
            hash = mix(hash.wrapping_mul(31).wrapping_add(part));
        }
        self.hash = hash;
        if self.lines {
            println!(
                "{:>10}.{:03}ms  {who:>3}  {what:<12} {}",
                now / 1_000_000,
                now / 1000 % 1000,
                text()
            );
        }
    }

    /// The hash so far: equal for equal runs.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

/// A message in one line.
pub(crate) fn describe(message: &Message) -> String {
    let body = match &message.body {
        Body::Append { prev, entries, commit } => {
            format!(
                "Append after {}@{} +{} commit {commit}",
                prev.index,
                prev.term,
                entries.len()
            )
        }
        Body::Forward { commands } => format!("Forward {}", commands.len()),
        Body::Snapshot { meta } => format!("Snapshot {}", meta.position.index),
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Committed { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::AppendAccepted { .. }
        | Body::AppendRejected { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::Hibernate { .. }
        | Body::Hibernating { .. }
        | Body::Alive { .. }
        | Body::TimeoutNow
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Roster { .. }
        | Body::LeaseRequest { .. }
        | Body::LeaseGrant { .. }
        | Body::Revoke { .. }
        | Body::Revoked { .. } => format!("{:?}", message.body),
    };
    format!("{} -> {} term {}: {body}", message.from, message.to, message.term)
}
