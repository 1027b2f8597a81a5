//! Hosts that talk to each other in memory, under a clock that the test moves. No IO, no threads.

#![allow(dead_code, reason = "each test crate uses a part")]

use althing_raft::entry::{ConfigChange, ConfigStep, Entry, HardState, Payload, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{Config, RequestId, Role, Start};
use althing_raft::roster::Footprint;
use althing_shard::envelope::BootNonce;
use althing_shard::policy::CutPolicy;
use althing_shard::{Done, Effect, Event, GroupStart, Host, HostConfig, Refusal, Ticket, Work};
use althing_store::ops::Revision;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(crate) const GROUP: GroupId = GroupId::FIRST_SHARD;
pub(crate) const ELECTION: Duration = Duration::from_millis(1000);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A host with what survives its restarts (log, state) and what does not.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) log: Vec<Entry>,
    pub(crate) hard_state: HardState,
    pub(crate) applied: SnapshotMeta,
    pub(crate) state: Vec<Bytes>,
    pub(crate) answers: BTreeMap<RequestId, Result<Done, Refusal>>,
    /// Requests whose command this node has applied.
    pub(crate) results: BTreeSet<RequestId>,
    /// Writes are held back while this is set.
    pub(crate) slow_disk: bool,
    pub(crate) waiting_writes: Vec<Event>,
    pub(crate) received: Option<(SnapshotMeta, Vec<Bytes>)>,
    pub(crate) compacted: LogPosition,
    pub(crate) writes: usize,
    /// The revision of each command that this node has applied and that had one.
    pub(crate) revisions: Vec<(Bytes, Revision)>,
    /// Questions to the sequencer that nobody has answered.
    pub(crate) tickets: Vec<(Ticket, u32)>,
    pub(crate) retired: Option<HardState>,
    /// Times that the group did not leave, because its log had gone on.
    pub(crate) kept: usize,
}

pub(crate) struct Cluster {
    pub(crate) now: Now,
    pub(crate) nodes: BTreeMap<MemberId, Node>,
    pub(crate) wire: VecDeque<(MemberId, MemberId, Event)>,
    pub(crate) cut: BTreeSet<MemberId>,
    pub(crate) next_request: u64,
    pub(crate) boots: u64,
}

/// Commands that begin with `!` are for the shard itself.
pub(crate) fn needs_stamp(command: &Bytes) -> bool {
    !command.starts_with(b"!")
}

pub(crate) fn host(me: MemberId, boot: u64) -> Host {
    Host::new(HostConfig {
        me,
        nonce: BootNonce(me.0 << 32 | boot),
        heartbeat_interval: HEARTBEAT,
        silence: Some(ELECTION),
        cut: CutPolicy::PRODUCTION,
        needs_stamp,
    })
}

pub(crate) fn core_config(id: MemberId, seed: u64) -> Config {
    Config {
        group: GROUP,
        id,
        election_timeout: ELECTION,
        heartbeat_interval: HEARTBEAT,
        seed,
        append_bytes_max: 1 << 20,
        inflight_appends_max: 16,
        inflight_bytes_max: 1 << 20,
        uncommitted_bytes_max: 1 << 20,
        drift_ppm: 10_000,
        demote_after: HEARTBEAT * 4,
        hibernate_after: None,
        footprint: althing_shard::envelope::footprint,
    }
}

pub(crate) fn config_entry(index: u64, step: ConfigStep) -> Entry {
    let change = ConfigChange {
        request: 0,
        step,
        context: Bytes::new(),
    };
    Entry {
        term: Term(1),
        index: Index(index),
        payload: Payload::Config(change),
    }
}

impl Cluster {
    /// One member, born as the shell does it: its own admission stands in its log.
    pub(crate) fn born(first: u64) -> Self {
        let me = MemberId(first);
        let mut cluster = Self {
            now: Now(1),
            nodes: BTreeMap::new(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            next_request: 1,
            boots: 0,
        };
        let log = vec![
            config_entry(1, ConfigStep::AddLearner(me)),
            config_entry(2, ConfigStep::Promote(me)),
        ];
        let hard_state = HardState {
            term: Term(1),
            vote: None,
            commit: Index(2),
            ..HardState::default()
        };
        cluster.start(me, log, hard_state, SnapshotMeta::default(), Vec::new());
        cluster
    }

    pub(crate) fn of(members: &[u64]) -> Self {
        let mut cluster = Self::born(members[0]);
        cluster.run(Duration::from_millis(10));
        for member in &members[1..] {
            cluster.add(*member);
        }
        cluster
    }

    pub(crate) fn start(
        &mut self,
        me: MemberId,
        log: Vec<Entry>,
        hard_state: HardState,
        applied: SnapshotMeta,
        state: Vec<Bytes>,
    ) {
        self.boots += 1;
        let mut node = Node {
            host: host(me, self.boots),
            log,
            hard_state,
            applied,
            state,
            answers: BTreeMap::new(),
            results: BTreeSet::new(),
            slow_disk: false,
            waiting_writes: Vec::new(),
            received: None,
            compacted: LogPosition::default(),
            writes: 0,
            revisions: Vec::new(),
            tickets: Vec::new(),
            retired: None,
            kept: 0,
        };
        let start = Start {
            hard_state: node.hard_state,
            applied: node.applied.clone(),
            log_start: LogPosition::default(),
            entries: node.log.clone(),
        };
        node.host.add_group(
            self.now,
            GroupStart {
                config: core_config(me, self.boots),
                start,
            },
        );
        self.nodes.insert(me, node);
        self.turn(me, vec![]);
    }

    /// Joins a fresh member as a learner and promotes it when it has caught up.
    pub(crate) fn add(&mut self, member: u64) {
        let member = MemberId(member);
        self.start(
            member,
            Vec::new(),
            HardState::default(),
            SnapshotMeta::default(),
            Vec::new(),
        );
        let leader = self.leader();
        let added = self.configure(leader, ConfigStep::AddLearner(member), None);
        assert!(matches!(self.answer(leader, added), Ok(Done::Configured { .. })));
        for _ in 0..50 {
            let promoted = self.configure(leader, ConfigStep::Promote(member), None);
            match self.answer(leader, promoted) {
                // The others hear of it with the next heartbeat.
                Ok(_) => return self.run(HEARTBEAT * 2),
                Err(Refusal::LearnerBehind) => self.run(HEARTBEAT),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("{member} never caught up");
    }

    pub(crate) fn turn(&mut self, me: MemberId, events: Vec<Event>) {
        let node = self.nodes.get_mut(&me).expect("a node of this id");
        let effects = node.host.poll(self.now, events).expect("no fatal error");
        let mut again = Vec::new();
        for effect in effects {
            match effect {
                Effect::Write { token, writes } => {
                    node.writes += 1;
                    for write in writes {
                        node.hard_state = write.hard_state.unwrap_or(node.hard_state);
                        if write.reset_to.is_some() {
                            node.log.clear();
                        }
                        if let Some(first) = write.entries.first() {
                            node.log.retain(|entry| entry.index < first.index);
                        }
                        node.log.extend(write.entries);
                    }
                    let written = Event::Written(token);
                    if node.slow_disk {
                        node.waiting_writes.push(written)
                    } else {
                        again.push(written)
                    }
                }
                Effect::Compact { up_to, .. } => node.compacted = up_to,
                Effect::Send { to, messages } => self.wire.push_back((me, to, Event::Messages(messages))),
                Effect::Apply { group, items } => {
                    let mut position = node.applied.position;
                    for item in items {
                        assert_eq!(
                            item.position.index,
                            position.index.next(),
                            "entries are applied without gaps"
                        );
                        position = item.position;
                        match item.work {
                            Work::Noop => {}
                            Work::Command { command, stamp, waiter } => {
                                node.revisions.extend(stamp.map(|stamp| (command.clone(), stamp)));
                                node.state.push(command);
                                node.results.extend(waiter);
                            }
                            Work::Configure { state, .. } => node.applied.config = state,
                            Work::Reads { state } => node.applied.reads = state,
                        }
                    }
                    node.applied.position = position;
                    again.push(Event::Applied { group, position });
                }
                Effect::Complete { request, result } => {
                    assert!(node.answers.insert(request, result).is_none(), "one answer per request");
                }
                Effect::SendSnapshot { group, to, term } => {
                    let meta = node.applied.clone();
                    let covered = Some(meta.position.index);
                    let state = node.state.clone();
                    self.wire.push_back((
                        me,
                        to,
                        Event::SnapshotReceived {
                            group,
                            from: me,
                            term,
                            meta: meta.clone(),
                        },
                    ));
                    again.push(Event::SnapshotSent { group, to, covered });
                    if let Some(peer) = self.nodes.get_mut(&to).filter(|_| !self.cut.contains(&me)) {
                        peer.received = Some((meta, state));
                    }
                    return self.turn(me, again);
                }
                Effect::Install { group, meta } => {
                    let (received, state) = node.received.take().expect("the bytes came first");
                    assert_eq!(received, meta);
                    node.state = state;
                    node.applied = meta.clone();
                    again.push(Event::Installed { group, meta });
                }
                Effect::Discard { .. } => node.received = None,
                Effect::Stamp { ticket, count, .. } => node.tickets.push((ticket, count)),
                Effect::Retired { hard_state, .. } => {
                    node.hard_state = hard_state;
                    node.log.clear();
                    node.applied = SnapshotMeta::default();
                    node.state.clear();
                    node.retired = Some(hard_state);
                }
                Effect::Kept { .. } => node.kept += 1,
                Effect::Peers(_) | Effect::Changed { .. } => {}
            }
        }
        if !again.is_empty() {
            self.turn(me, again);
        }
    }

    pub(crate) fn deliver(&mut self) {
        while let Some((from, to, event)) = self.wire.pop_front() {
            if !self.cut.contains(&from) && !self.cut.contains(&to) && self.nodes.contains_key(&to) {
                self.turn(to, vec![event]);
            }
        }
    }

    /// Lets time pass, from deadline to deadline.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        loop {
            self.deliver();
            let due = self
                .nodes
                .iter()
                .filter_map(|(me, node)| Some((node.host.next_deadline()?, *me)))
                .min();
            let Some((at, me)) = due.filter(|(at, _)| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.turn(me, vec![]);
        }
        self.now = end;
    }

    pub(crate) fn role(&self, me: MemberId) -> Role {
        self.nodes[&me].host.view(GROUP).expect("the group").raft.soft.role
    }

    pub(crate) fn leader(&mut self) -> MemberId {
        for _ in 0..100 {
            let cut = self.cut.clone();
            let leads = |(me, node): (&MemberId, &Node)| {
                let soft = node.host.view(GROUP).expect("the group").raft.soft;
                (soft.role == Role::Leader && !cut.contains(me)).then_some((soft.term, *me))
            };
            if let Some((_, leader)) = self.nodes.iter().filter_map(leads).max() {
                return leader;
            }
            self.run(HEARTBEAT);
        }
        panic!("no leader came up");
    }

    pub(crate) fn follower(&mut self) -> MemberId {
        let leader = self.leader();
        *self
            .nodes
            .keys()
            .find(|me| **me != leader && !self.cut.contains(me))
            .expect("a follower")
    }

    pub(crate) fn request(&mut self) -> (RequestId, Now) {
        self.next_request += 1;
        (RequestId(self.next_request), self.now.after(PATIENCE))
    }

    pub(crate) fn propose(&mut self, at: MemberId, command: &'static str) -> RequestId {
        let (request, deadline) = self.request();
        self.turn(
            at,
            vec![Event::Propose {
                request,
                group: GROUP,
                command: command.into(),
                deadline,
            }],
        );
        request
    }

    pub(crate) fn read(&mut self, at: MemberId) -> RequestId {
        let (request, deadline) = self.request();
        self.turn(
            at,
            vec![Event::Read {
                request,
                group: GROUP,
                footprint: Footprint::All,
                deadline,
            }],
        );
        request
    }

    pub(crate) fn configure(&mut self, at: MemberId, step: ConfigStep, expected: Option<Index>) -> RequestId {
        let (request, deadline) = self.request();
        let event = Event::Configure {
            request,
            group: GROUP,
            step,
            context: Bytes::new(),
            expected,
            deadline,
        };
        self.turn(at, vec![event]);
        request
    }

    pub(crate) fn answer(&mut self, at: MemberId, request: RequestId) -> Result<Done, Refusal> {
        for _ in 0..200 {
            self.deliver();
            if let Some(answer) = self.nodes[&at].answers.get(&request) {
                return *answer;
            }
            self.run(HEARTBEAT);
        }
        panic!("{request:?} was never answered");
    }

    pub(crate) fn applied_at(&mut self, at: MemberId, request: RequestId) -> bool {
        // A follower hears of the commit with the next heartbeat at the latest.
        self.run(HEARTBEAT);
        self.nodes[&at].results.contains(&request)
    }

    pub(crate) fn restart(&mut self, me: MemberId) {
        let node = self.nodes.remove(&me).expect("a node of this id");
        self.start(me, node.log, node.hard_state, node.applied, node.state);
    }
}
