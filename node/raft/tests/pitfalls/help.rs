//! Messages and lone members for the scenarios.

use crate::kit;
use crate::kit::{ELECTION, command, id};
use althing_raft::Raft;
use althing_raft::entry::{ConfigState, Entry, Payload, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, Now, Term};
use althing_raft::io::{Config, Input, Start};
use althing_raft::message::{Body, Message};

pub(crate) fn message(from: u64, to: u64, term: u64, body: Body) -> Input {
    let (group, term) = (GroupId::FIRST_SHARD, Term(term));
    Input::Message(Message {
        group,
        from: id(from),
        to: id(to),
        term,
        body,
    })
}

pub(crate) fn lone(voters: &[u64], start: Start) -> Raft {
    let config = Config {
        group: GroupId::FIRST_SHARD,
        id: id(1),
        election_timeout: ELECTION,
        heartbeat_interval: kit::HEARTBEAT,
        seed: 7,
        append_bytes_max: 1000,
        inflight_appends_max: 8,
        inflight_bytes_max: 1 << 20,
        uncommitted_bytes_max: 1000,
        drift_ppm: 20_000,
        demote_after: kit::HEARTBEAT * 4,
        hibernate_after: None,
        footprint: kit::footprint,
    };
    let voters = voters.iter().copied().map(id).collect();
    let applied = SnapshotMeta {
        config: ConfigState {
            voters,
            ..Default::default()
        },
        ..start.applied.clone()
    };
    Raft::new(config, Start { applied, ..start }, Now(0)).0
}

pub(crate) fn entry(term: u64, index: u64) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        payload: Payload::Command(command("x")),
    }
}

pub(crate) fn position(term: u64, index: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: Index(index),
    }
}
