//! A network of cores with a manual clock and disks that forget what was not yet persisted.
#![allow(dead_code, clippy::wildcard_enum_match_arm, clippy::unwrap_used)]

use althing_raft::Raft;
use althing_raft::entry::{
    ConfigChange, ConfigState, ConfigStep, Entry, HardState, Payload, ReadsChange, SnapshotMeta,
};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{Config, DropReason, Input, Output, Persist, RequestId, Role, Start};
use althing_raft::message::{Body, Message};
use althing_raft::roster::{Footprint, ReadMode, ReadSpec, Responders, Revisions};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(crate) const ELECTION: Duration = Duration::from_millis(1000);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long reads gather, and how long the leader believes that those whom it asked are quick; as in the core.
pub(crate) const ROUND_GAP: Duration = Duration::from_millis(1);
/// How long the news of a commit waits for an append; as in the core.
pub(crate) const NEWS_DELAY: Duration = Duration::from_millis(1);

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Default, Clone)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) start: LogPosition,
    pub(crate) entries: Vec<Entry>,
    pub(crate) snapshot: SnapshotMeta,
}

impl Disk {
    fn write(&mut self, persist: &Persist) {
        if let Some(state) = persist.hard_state {
            self.hard_state = state;
        }
        if let Some(position) = persist.reset_to {
            self.start = position;
            self.entries.clear();
        }
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(persist.entries.iter().cloned());
        }
    }
}

pub(crate) struct Node {
    pub(crate) raft: Option<Raft>,
    pub(crate) disk: Disk,
    pub(crate) unwritten: VecDeque<Persist>,
    /// Everything ever applied by this member, by index.
    pub(crate) applied: BTreeMap<Index, Entry>,
    /// How far it has applied in this life; `config` is as of this entry.
    pub(crate) reached: Index,
    pub(crate) config: ConfigState,
    pub(crate) deadline: Option<Now>,
    pub(crate) reads: Vec<(RequestId, Index)>,
    pub(crate) dropped: Vec<(RequestId, DropReason)>,
}

pub(crate) struct Net {
    pub(crate) now: Now,
    pub(crate) nodes: BTreeMap<MemberId, Node>,
    pub(crate) mail: Vec<Message>,
    pub(crate) cut: BTreeSet<(MemberId, MemberId)>,
    /// Writes become durable as soon as they are asked for.
    pub(crate) instant_disk: bool,
    pub(crate) boots: u64,
    /// (term -> leader), for election safety.
    pub(crate) leaders: BTreeMap<Term, MemberId>,
    /// Every entry seen applied by anyone, for state machine safety.
    pub(crate) truth: BTreeMap<Index, Entry>,
    pub(crate) inflight_max: usize,
    pub(crate) inflight_bytes_max: usize,
    pub(crate) heartbeat: Duration,
    pub(crate) demote_after: Duration,
    pub(crate) hibernate_after: Option<Duration>,
    /// What the revisions of local reads tell.
    pub(crate) revisions: Revisions,
    /// Of each read under way: the last entry that wrote its keys and was applied by anybody when the read was invoked.
    pub(crate) floors: BTreeMap<(MemberId, RequestId), Index>,
    pub(crate) last_request: u64,
}

pub(crate) fn id(n: u64) -> MemberId {
    MemberId(n)
}

/// A command `k=v` writes the key `k`; any other writes nobody knows what.
pub(crate) fn footprint(command: &Bytes) -> Footprint {
    match command.iter().position(|byte| *byte == b'=') {
        Some(at) => Footprint::key(command.slice(..at)),
        None => Footprint::All,
    }
}

pub(crate) fn command(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Net {
    /// Members 1..=n, all voters from birth.
    pub(crate) fn new(n: u64) -> Self {
        let mut net = Self {
            now: Now(0),
            nodes: BTreeMap::new(),
            mail: Vec::new(),
            cut: BTreeSet::new(),
            instant_disk: true,
            boots: 1,
            leaders: BTreeMap::new(),
            truth: BTreeMap::new(),
            inflight_max: 64,
            inflight_bytes_max: 10_000,
            heartbeat: HEARTBEAT,
            demote_after: HEARTBEAT * 4,
            hibernate_after: None,
            revisions: Revisions::OfKeys,
            floors: BTreeMap::new(),
            last_request: 100,
        };
        net.born(n);
        net
    }

    /// Members 1..=n, in a network that has none yet.
    pub(crate) fn born(&mut self, n: u64) {
        // Born one after the other, as `Start::birth` does for the first.
        let steps = (1..=n).flat_map(|member| [ConfigStep::AddLearner(id(member)), ConfigStep::Promote(id(member))]);
        let entries: Vec<Entry> = steps
            .zip(1..)
            .map(|(step, index)| {
                let payload = Payload::Config(ConfigChange {
                    request: 0,
                    step,
                    context: Bytes::new(),
                });
                Entry {
                    term: Term(1),
                    index: Index(index),
                    payload,
                }
            })
            .collect();
        for member in 1..=n {
            let hard_state = HardState {
                term: Term(1),
                vote: None,
                commit: Index(2 * n),
                ..HardState::default()
            };
            self.add(
                member,
                Disk {
                    hard_state,
                    entries: entries.clone(),
                    ..Disk::default()
                },
            );
        }
    }

    pub(crate) fn add(&mut self, member: u64, disk: Disk) {
        let node = Node {
            raft: None,
            config: disk.snapshot.config.clone(),
            disk,
            unwritten: VecDeque::new(),
            applied: BTreeMap::new(),
            reached: Index::ZERO,
            deadline: None,
            reads: Vec::new(),
            dropped: Vec::new(),
        };
        self.nodes.insert(id(member), node);
        self.boot(id(member));
    }

    pub(crate) fn boot(&mut self, member: MemberId) {
        self.boots += 1;
        let config = Config {
            group: GroupId::FIRST_SHARD,
            id: member,
            election_timeout: ELECTION,
            heartbeat_interval: self.heartbeat,
            seed: member.0.wrapping_mul(0x9e37_79b9).wrapping_add(self.boots),
            append_bytes_max: 200,
            inflight_appends_max: self.inflight_max,
            inflight_bytes_max: self.inflight_bytes_max,
            uncommitted_bytes_max: 100_000,
            drift_ppm: 20_000,
            demote_after: self.demote_after,
            hibernate_after: self.hibernate_after,
            footprint,
        };
        let node = self.nodes.get_mut(&member).unwrap();
        let start = Start {
            hard_state: node.disk.hard_state,
            applied: node.disk.snapshot.clone(),
            log_start: node.disk.start,
            entries: node.disk.entries.clone(),
        };
        node.reached = start.applied.position.index;
        let (raft, out) = Raft::new(config, start, self.now);
        node.raft = Some(raft);
        self.handle(member, out);
    }

    /// Loses whatever was not durable.
    pub(crate) fn crash(&mut self, member: MemberId) {
        let node = self.nodes.get_mut(&member).unwrap();
        node.raft = None;
        node.unwritten.clear();
        node.deadline = None;
    }

    pub(crate) fn step(&mut self, member: MemberId, input: Input) {
        let now = self.now;
        let Some(raft) = self.nodes.get_mut(&member).and_then(|node| node.raft.as_mut()) else {
            return;
        };
        let out = raft.step(now, input);
        self.handle(member, out);
    }

    fn handle(&mut self, member: MemberId, out: Output) {
        self.mail.extend(out.messages);
        let node = self.nodes.get_mut(&member).unwrap();
        node.deadline = out.next_deadline;
        for (request, index) in &out.reads {
            // Linearizability, as far as a core can show it: whatever was committed before the read is in its answer. The state
            // machine is read at the index or behind it, so what it has applied counts as well.
            if let Some(floor) = self.floors.remove(&(member, *request)) {
                assert!(
                    (*index).max(node.reached) >= floor,
                    "{member} answers a read at {index}, but {floor} was committed before it came"
                );
            }
        }
        node.reads.extend(out.reads);
        node.dropped.extend(out.dropped);
        if let Some(soft) = &out.changed {
            if soft.role == Role::Leader {
                let other = self.leaders.insert(soft.term, member);
                assert!(
                    other.is_none_or(|other| other == member),
                    "two leaders in term {}: {other:?} {member}",
                    soft.term
                );
            }
            node.config = soft.config.clone();
        }
        let mut last = None;
        for entry in out.apply {
            let known = self.truth.entry(entry.index).or_insert_with(|| entry.clone());
            assert_eq!(*known, entry, "{member} applied something else at {}", entry.index);
            last = Some(entry.index);
            node.reached = entry.index;
            node.applied.insert(entry.index, entry);
        }
        for to in out.send_snapshot {
            let raft = node.raft.as_ref().unwrap();
            let view = raft.view();
            let index = node.reached;
            let entry = node.applied.get(&index).expect("a snapshot needs something applied");
            let meta = SnapshotMeta {
                position: LogPosition {
                    term: entry.term,
                    index,
                },
                config: node.config.clone(),
                reads: view.lease.reads.clone(),
            };
            let body = Body::Snapshot { meta };
            self.mail.push(Message {
                group: GroupId::FIRST_SHARD,
                from: member,
                to,
                term: view.soft.term,
                body,
            });
        }
        let install = out.install;
        if let Some(persist) = out.persist {
            node.unwritten.push_back(persist);
        }
        if let Some(index) = last {
            self.step(member, Input::Applied(index));
        }
        if let Some(meta) = install {
            let truth: Vec<Entry> = self
                .truth
                .range(..=meta.position.index)
                .map(|(_, entry)| entry.clone())
                .collect();
            let node = self.nodes.get_mut(&member).unwrap();
            node.applied = truth.into_iter().map(|entry| (entry.index, entry)).collect();
            node.disk.snapshot = meta.clone();
            node.reached = meta.position.index;
            self.step(member, Input::Installed(meta));
        }
        if self.instant_disk {
            self.persist(member, usize::MAX);
        }
    }

    /// Makes the oldest writes durable.
    pub(crate) fn persist(&mut self, member: MemberId, count: usize) {
        for _ in 0..count {
            let node = self.nodes.get_mut(&member).unwrap();
            let Some(persist) = node.unwritten.pop_front() else {
                return;
            };
            node.disk.write(&persist);
            self.step(member, Input::Persisted(persist.seq));
        }
    }

    pub(crate) fn deliver_one(&mut self, at: usize) {
        let message = self.mail.remove(at);
        if !self.cut.contains(&(message.from, message.to)) && self.nodes.contains_key(&message.to) {
            if let Body::Snapshot { meta } = &message.body {
                let covered = Some(meta.position.index);
                self.step(
                    message.from,
                    Input::SnapshotSent {
                        to: message.to,
                        covered,
                    },
                );
            }
            self.step(message.to, Input::Message(message));
        } else {
            self.lose(&message);
        }
    }

    /// A message is lost. Of a snapshot the sender's shell knows, and says so.
    pub(crate) fn lose(&mut self, message: &Message) {
        if let Body::Snapshot { .. } = &message.body {
            let (to, covered) = (message.to, None);
            self.step(message.from, Input::SnapshotSent { to, covered });
        }
    }

    /// Delivers until nobody has anything to say; time stands still. Says how many messages that were.
    pub(crate) fn settle(&mut self) -> usize {
        let mut messages = 0;
        while !self.mail.is_empty() {
            self.deliver_one(0);
            messages += 1;
            assert!(messages < 100_000, "the members never stop talking");
        }
        messages
    }

    /// Lets time pass to the next deadline and ticks whoever is due.
    pub(crate) fn next_tick(&mut self) {
        let due = self
            .nodes
            .values()
            .filter(|node| node.raft.is_some())
            .filter_map(|node| node.deadline)
            .min();
        let Some(due) = due else { return };
        self.now = self.now.max(due);
        let members: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.deadline.is_some_and(|d| d <= self.now))
            .map(|(&m, _)| m)
            .collect();
        for member in members {
            self.step(member, Input::Tick);
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now.after(time);
        let mut budget = 20_000;
        while self
            .nodes
            .values()
            .filter(|n| n.raft.is_some())
            .filter_map(|n| n.deadline)
            .min()
            .is_some_and(|due| due <= until)
        {
            self.next_tick();
            self.settle();
            budget -= 1;
            assert!(budget > 0, "deadlines do not move on");
        }
        self.now = until;
    }

    pub(crate) fn leader(&self) -> Option<MemberId> {
        let leads = |node: &Node| {
            node.raft
                .as_ref()
                .map(|raft| raft.view().soft)
                .filter(|soft| soft.role == Role::Leader)
        };
        self.nodes
            .iter()
            .filter_map(|(&m, n)| leads(n).map(|soft| (soft.term, m)))
            .max()
            .map(|(_, m)| m)
    }

    pub(crate) fn elect(&mut self, member: u64) {
        let node = self.nodes.get(&id(member)).unwrap();
        self.now = self.now.max(node.deadline.unwrap()).after(ELECTION * 2);
        self.step(id(member), Input::Tick);
        self.settle();
        assert_eq!(self.leader(), Some(id(member)), "member {member} should lead");
    }

    /// Lets time pass until one of these leads.
    pub(crate) fn elect_within(&mut self, members: &[u64]) {
        let alive = |net: &Self| {
            members
                .iter()
                .find(|member| {
                    let view = net.raft(**member).view();
                    view.soft.role == Role::Leader && view.soft.leader == Some(id(**member))
                })
                .copied()
        };
        for _ in 0..1_000 {
            if alive(self).is_some() {
                return;
            }
            self.run(Duration::from_millis(10));
        }
        panic!("none of {members:?} leads");
    }

    /// Ticks whoever is due, and leaves what they say undelivered.
    pub(crate) fn run_without_delivery(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self
            .nodes
            .values()
            .filter_map(|node| node.deadline)
            .min()
            .is_some_and(|due| due <= until)
        {
            self.next_tick();
        }
        self.now = until;
    }

    /// One member says this to another, in the former's term.
    pub(crate) fn say(&mut self, from: MemberId, to: MemberId, body: Body) {
        let term = self.raft(from.0).view().soft.term;
        self.say_in(from, to, term, body);
    }

    /// The same in another term.
    pub(crate) fn say_in(&mut self, from: MemberId, to: MemberId, term: Term, body: Body) {
        let group = GroupId::FIRST_SHARD;
        self.step(
            to,
            Input::Message(Message {
                group,
                from,
                to,
                term,
                body,
            }),
        );
    }

    pub(crate) fn propose(&mut self, member: MemberId, text: &str) {
        self.step(member, Input::Propose(vec![(RequestId(1), command(text))]));
    }

    /// Asks for a read of some keys; the answer is checked when it comes.
    pub(crate) fn read(&mut self, member: u64, footprint: Footprint) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let touches = |entry: &&Entry| match (&entry.payload, &footprint) {
            (Payload::Command(_), Footprint::All) => true,
            (Payload::Command(command), Footprint::Spans(spans)) => match self::footprint(command) {
                Footprint::All => true,
                Footprint::Spans(written) => written.iter().any(|a| spans.iter().any(|b| a.overlaps(b))),
            },
            _ => false,
        };
        let floor = self.truth.values().filter(touches).map(|entry| entry.index).max();
        self.floors.insert((id(member), request), floor.unwrap_or_default());
        self.step(id(member), Input::Read(vec![(request, footprint)]));
        request
    }

    pub(crate) fn answered(&self, member: u64, request: RequestId) -> bool {
        self.nodes[&id(member)]
            .reads
            .iter()
            .any(|(answered, _)| *answered == request)
    }

    /// Whether the member answers a read of these keys at once and without a message.
    pub(crate) fn reads_locally(&mut self, member: u64, footprint: Footprint) -> bool {
        // What is due anyway is not the read's.
        self.step(id(member), Input::Tick);
        let before = self.mail.len();
        let request = self.read(member, footprint);
        let silent = self.mail.len() == before;
        self.answered(member, request) && silent
    }

    /// Has the leader propose how reads are answered.
    pub(crate) fn set_reads(&mut self, mode: ReadMode, responders: Responders, lease: Duration) {
        let leader = self.leader().expect("somebody leads");
        let spec = ReadSpec {
            mode,
            responders,
            revisions: self.revisions,
            lease,
        };
        let change = ReadsChange { request: 0, spec };
        self.step(leader, Input::ProposeReads(RequestId(8), change));
    }

    /// Delivers what is under way now, and nothing that follows from it: half a round trip.
    pub(crate) fn half_round(&mut self) {
        let count = self.mail.len();
        for _ in 0..count {
            self.deliver_one(0);
        }
    }

    pub(crate) fn change(&mut self, member: MemberId, step: ConfigStep) {
        let change = ConfigChange {
            request: 0,
            step,
            context: Bytes::new(),
        };
        self.step(member, Input::ProposeConfig(RequestId(9), change));
    }

    pub(crate) fn isolate(&mut self, member: u64) {
        for &other in self.nodes.keys() {
            if other != id(member) {
                self.cut.insert((id(member), other));
                self.cut.insert((other, id(member)));
            }
        }
    }

    pub(crate) fn commands(&self, member: u64) -> Vec<String> {
        let text = |entry: &Entry| match &entry.payload {
            Payload::Command(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        self.nodes[&id(member)].applied.values().filter_map(text).collect()
    }

    pub(crate) fn raft(&self, member: u64) -> &Raft {
        self.nodes[&id(member)].raft.as_ref().unwrap()
    }
}
