//! `cargo run --release -p althing-raft --example long_log`: does a step cost more when the log is long?
//!
//! One leader of three members; its followers answer at once, or not at all. Prints nanoseconds per step for a short and for a
//! long log, and their ratio. A ratio near 1 means that no step walks the log.

#![expect(
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "it measures its own speed, and answers the few messages that matter here"
)]

use althing_raft::Raft;
use althing_raft::entry::{ConfigState, Entry, HardState, Payload, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{Config, Input, Output, RequestId, Role, Start};
use althing_raft::message::{Body, Message};
use althing_raft::roster::Footprint;
use bytes::Bytes;
use std::time::{Duration, Instant};

const SHORT: u64 = 1_000;
const LONG: u64 = 1_000_000;
/// Steps that are measured.
const STEPS: u64 = 20_000;

fn config() -> Config {
    Config {
        group: GroupId::FIRST_SHARD,
        id: MemberId(1),
        election_timeout: Duration::from_secs(1),
        heartbeat_interval: Duration::from_millis(100),
        seed: 1,
        append_bytes_max: 1 << 20,
        inflight_appends_max: 128,
        inflight_bytes_max: 16 << 20,
        uncommitted_bytes_max: usize::MAX,
        drift_ppm: 10_000,
        demote_after: Duration::from_millis(400),
        hibernate_after: None,
        footprint: Footprint::unknown,
    }
}

fn entries(count: u64) -> Vec<Entry> {
    let entry = |index| Entry {
        term: Term(1),
        index: Index(index),
        payload: Payload::Command(Bytes::from_static(&[7; 64])),
    };
    (1..=count).map(entry).collect()
}

struct Lead {
    raft: Raft,
    now: Now,
    /// Whether follower 2 answers appends.
    answers: bool,
}

impl Lead {
    /// Leads three members with a log of `count` entries, all applied.
    fn new(count: u64, answers: bool) -> Self {
        let voters = [1, 2, 3].map(MemberId).into();
        let last = LogPosition {
            term: Term(1),
            index: Index(count),
        };
        let start = Start {
            hard_state: HardState {
                term: Term(1),
                vote: None,
                commit: last.index,
                ..HardState::default()
            },
            applied: SnapshotMeta {
                position: last,
                config: ConfigState {
                    voters,
                    ..ConfigState::default()
                },
                ..SnapshotMeta::default()
            },
            log_start: LogPosition::default(),
            entries: entries(count),
        };
        let (raft, _) = Raft::new(config(), start, Now(0));
        let mut lead = Self {
            raft,
            now: Now(0).after(Duration::from_secs(3)),
            answers: true,
        };
        lead.step(Input::Tick);
        assert_eq!(lead.raft.view().soft.role, Role::Leader, "2 votes for it");
        lead.answers = answers;
        lead
    }

    /// One step, its write, and follower 2's answers.
    fn step(&mut self, input: Input) {
        let output = self.raft.step(self.now, input);
        self.follow(output);
    }

    fn follow(&mut self, output: Output) {
        let mut inputs = Vec::new();
        if let Some(persist) = output.persist {
            inputs.push(Input::Persisted(persist.seq));
        }
        if let Some(last) = output.apply.last() {
            inputs.push(Input::Applied(last.index));
        }
        let mine = output.messages.into_iter().filter(|message| message.to == MemberId(2));
        for message in mine {
            let body = match message.body {
                Body::PreVote { .. } => Body::PreVoteReply { granted: true },
                Body::Vote { .. } => Body::VoteReply { granted: true },
                Body::Append { prev, entries, .. } if self.answers => Body::AppendAccepted {
                    last: entries.last().map_or(prev.index, |entry| entry.index),
                    stamp: None,
                },
                _ => continue,
            };
            inputs.push(Input::Message(Message {
                from: MemberId(2),
                to: MemberId(1),
                body,
                ..message
            }));
        }
        for input in inputs {
            self.step(input);
        }
    }

    /// Nanoseconds of a proposal with all that follows from it.
    fn measure(&mut self) -> f64 {
        let command = Bytes::from_static(&[7; 64]);
        let started = Instant::now();
        for request in 0..STEPS {
            self.step(Input::Propose(vec![(RequestId(request), command.clone())]));
        }
        started.elapsed().as_nanos() as f64 / STEPS as f64
    }
}

fn main() {
    // Every entry of the log is committed and applied, none compacted.
    let committed = |count| Lead::new(count, true).measure();
    // The whole tail is uncommitted: no follower answers.
    let open = |count| {
        let mut lead = Lead::new(1, false);
        let batch = entries(count).into_iter().filter_map(|entry| match entry.payload {
            Payload::Command(command) => Some((RequestId(0), command)),
            Payload::Noop | Payload::Config(_) | Payload::Reads(_) => None,
        });
        lead.step(Input::Propose(batch.collect()));
        lead.measure()
    };
    for (what, measure) in [("committed", &committed as &dyn Fn(u64) -> f64), ("uncommitted", &open)] {
        let (short, long) = (measure(SHORT), measure(LONG));
        println!(
            "{what:>12}: {short:7.0} ns a proposal with {SHORT} entries, {long:7.0} ns with {LONG}: {:.2} times",
            long / short
        );
    }
}
