//! What can happen, and what is said.

use althing_raft::ids::GroupId;
use althing_store::ops::{Command, OpError, OpResult, Range, RangeResult, Revision, ShardCommand};

/// What a client asks a node of a group.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Takes a revision.
    Write(Command),
    /// Takes none.
    Propose(ShardCommand),
    Read(Vec<Range>),
    Revisions(u32),
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    NotLeader,
    Applied(Revision, Result<OpResult, OpError>),
    Read(Result<Vec<RangeResult>, OpError>),
    Revision(Option<Revision>),
}

/// Who asked the sequencer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    Client {
        client: usize,
        life: u64,
        call: u64,
    },
    Leader {
        group: GroupId,
        node: usize,
        term: u64,
        question: u64,
    },
}

/// Why leadership is confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Round {
    Read(u64),
    Sequencer(u64),
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    ToNode {
        node: usize,
        group: GroupId,
        client: usize,
        life: u64,
        call: u64,
        record: usize,
        body: Body,
    },
    ToClient {
        client: usize,
        life: u64,
        call: u64,
        reply: Reply,
    },
    Ask {
        node: usize,
        asker: Asker,
        count: u32,
    },
    Told {
        group: GroupId,
        node: usize,
        term: u64,
        question: u64,
        first: Option<Revision>,
    },
    Commit {
        group: GroupId,
        term: u64,
    },
    Check {
        group: GroupId,
        node: usize,
        round: Round,
    },
    Checked {
        group: GroupId,
        node: usize,
        round: Round,
        led: Option<u64>,
    },
    Raised {
        node: usize,
        attempt: u64,
        done: bool,
    },
    Restart {
        node: usize,
    },
    Elect {
        group: GroupId,
    },
    Elected {
        group: GroupId,
        term: u64,
        node: usize,
    },
    Learns {
        group: GroupId,
        node: usize,
        term: u64,
    },
    LeaderTick {
        group: GroupId,
        node: usize,
        term: u64,
    },
    Timeout {
        client: usize,
        life: u64,
        call: u64,
    },
    Deadline {
        client: usize,
        life: u64,
        task: u64,
    },
    Tick {
        client: usize,
        life: u64,
    },
    Next {
        client: usize,
        life: u64,
    },
    Reborn {
        client: usize,
    },
    Nemesis,
}
