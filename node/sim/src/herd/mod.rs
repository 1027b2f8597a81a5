//! Many groups on few nodes: production hosts in a world that is quiet but for what a test does to it.
//!
//! The other world (`world`) looks for what breaks one group under every kind of bad luck. This one looks at what thousands of
//! groups do together: what they say when nobody wants anything of them, and how they come back when a node does not. The network is
//! even and loses only what the test cuts, disks are quick and keep what they said they kept.
//!
//! All along it checks that no term of a group has two leaders, that members apply the same, and that no read misses a write which was
//! acknowledged before the read came.

mod node;
mod scenes;

pub use scenes::{SCENES, Scene, judge};

use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{RequestId, Role, Soft};
use althing_raft::message::{Body, Message};
use althing_raft::roster::Footprint;
use althing_shard::frame::messages_to_frames;
use althing_shard::{Done, Effect, Event, Item, Refusal, Work, WriteToken};
use althing_wal::GroupWrite;
use bytes::Bytes;
use node::{Node, born};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// The election timeout.
pub const ELECTION: Duration = Duration::from_millis(1_000);
/// Idleness after which a group hibernates.
pub const HIBERNATE_AFTER: Duration = Duration::from_millis(2_000);
/// From one node to another.
const LINK: Duration = Duration::from_micros(500);
/// A write of the log.
const SYNC: Duration = Duration::from_millis(1);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was sent in a span of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Pieces: all that one turn of a node says to one other.
    pub sends: u64,
    /// Messages in them.
    pub messages: u64,
    /// Of these, signs of life of nodes.
    pub alive: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sends,
            messages,
            alive,
            bytes,
        } = self;
        write!(
            f,
            "{messages} messages ({alive} signs of life) in {sends} pieces, {bytes} bytes"
        )
    }
}

/// What a request came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A write was applied, or a read may be served: what the state holds.
    Value(u64),
    /// Why not.
    Refused(Refusal),
}

enum Job {
    Deliver {
        to: MemberId,
        messages: Vec<Message>,
    },
    Written {
        at: MemberId,
        boot: u64,
        token: WriteToken,
        writes: Vec<GroupWrite>,
    },
    Wake {
        at: MemberId,
        boot: u64,
    },
}

impl Job {
    fn node(&self) -> MemberId {
        match self {
            Self::Deliver { to, .. } => *to,
            Self::Written { at, .. } | Self::Wake { at, .. } => *at,
        }
    }
}

/// Whether a message is lost.
type Loses = fn(&Message) -> bool;

/// A few nodes with a replica of every group each.
pub struct Herd {
    now: Now,
    sequence: u64,
    jobs: BTreeMap<(Now, u64), Job>,
    nodes: BTreeMap<MemberId, Node>,
    groups: u64,
    boots: u64,
    requests: u64,
    cut: BTreeSet<(MemberId, MemberId)>,
    loses: Option<Loses>,
    sent: Sent,
    leaders: BTreeMap<(GroupId, Term), MemberId>,
    truth: BTreeMap<(GroupId, Index), u64>,
    /// The newest value of each group that somebody was told of.
    acknowledged: BTreeMap<GroupId, u64>,
    violations: Vec<String>,
}

impl Herd {
    /// So many nodes and groups, all born and nobody elected.
    #[must_use]
    pub fn new(members: u64, groups: u64) -> Self {
        let mut herd = Self {
            now: Now(1),
            sequence: 0,
            jobs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            groups,
            boots: 0,
            requests: 0,
            cut: BTreeSet::new(),
            loses: None,
            sent: Sent::default(),
            leaders: BTreeMap::new(),
            truth: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            violations: Vec::new(),
        };
        let voters: Vec<_> = (1..=members).map(MemberId).collect();
        for member in &voters {
            let disk = herd.group_ids().map(|group| (group, born(&voters))).collect();
            herd.nodes.insert(*member, Node::new(disk));
        }
        for member in voters {
            herd.start(member);
        }
        herd
    }

    /// All groups.
    pub fn group_ids(&self) -> impl Iterator<Item = GroupId> + use<> {
        (1..=self.groups).map(GroupId)
    }

    /// All nodes that run.
    #[must_use]
    pub fn running(&self) -> Vec<MemberId> {
        let runs = |(member, node): (&MemberId, &Node)| node.host.is_some().then_some(*member);
        self.nodes.iter().filter_map(runs).collect()
    }

    /// What broke.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The time, for spans of it.
    #[must_use]
    pub fn now(&self) -> Now {
        self.now
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, member: MemberId) {
        self.boots += 1;
        let (now, boot) = (self.now, self.boots);
        let node = self
            .nodes
            .get_mut(&member)
            .expect("invariant: nodes are named by the herd");
        node.start(now, member, boot);
        self.turn(member, Vec::new());
    }

    /// Kills a node. What it had not written is lost.
    pub fn kill(&mut self, member: MemberId) {
        if let Some(node) = self.nodes.get_mut(&member) {
            node.host = None;
        }
    }

    /// From now on nothing gets from the one to the other.
    pub fn cut(&mut self, from: MemberId, to: MemberId) {
        self.cut.insert((from, to));
    }

    /// Stops a node for a while. What comes meanwhile lies before its door.
    pub fn hold_up(&mut self, member: MemberId, time: Duration) {
        let until = self.now.after(time);
        if let Some(node) = self.nodes.get_mut(&member) {
            node.held_until = until;
        }
    }

    /// From now on messages of this kind are lost.
    pub fn lose(&mut self, loses: Loses) {
        self.loses = Some(loses);
    }

    /// Everything gets through again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.loses = None;
    }

    /// What was sent since this was last asked.
    pub fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// A client writes a value into a group.
    pub fn write(&mut self, at: MemberId, group: GroupId, value: u64) -> RequestId {
        let (request, deadline) = self.request();
        let command = Bytes::copy_from_slice(&value.to_le_bytes());
        self.turn(
            at,
            vec![Event::Propose {
                request,
                group,
                command,
                deadline,
            }],
        );
        request
    }

    /// A client reads a group.
    pub fn read(&mut self, at: MemberId, group: GroupId) -> RequestId {
        let (request, deadline) = self.request();
        let floor = self.acknowledged.get(&group).copied().unwrap_or_default();
        if let Some(node) = self.nodes.get_mut(&at) {
            node.reads.insert(request, (group, floor));
        }
        self.turn(
            at,
            vec![Event::Read {
                request,
                group,
                footprint: Footprint::All,
                deadline,
            }],
        );
        request
    }

    fn request(&mut self) -> (RequestId, Now) {
        self.requests += 1;
        (RequestId(self.requests), self.now.after(PATIENCE))
    }

    /// What a request at a node came to, if anything yet.
    #[must_use]
    pub fn answer(&self, at: MemberId, request: RequestId) -> Option<Answer> {
        self.nodes.get(&at)?.answers.get(&request).copied()
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(entry) = self.jobs.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), job) = entry.remove_entry();
            self.now = at;
            let held_until = self.nodes.get(&job.node()).map(|node| node.held_until);
            if let Some(until) = held_until.filter(|until| *until > at) {
                self.at(until, job);
                continue;
            }
            match job {
                Job::Deliver { to, messages } => self.turn(to, vec![Event::Messages(messages)]),
                Job::Written {
                    at,
                    boot,
                    token,
                    writes,
                } => {
                    let node = self.nodes.get_mut(&at).filter(|node| node.runs(boot));
                    if let Some(node) = node {
                        node.write(writes);
                        self.turn(at, vec![Event::Written(token)]);
                    }
                }
                Job::Wake { at, boot } => {
                    let now = self.now;
                    let due = |node: &&mut Node| node.runs(boot) && node.wake_at.is_some_and(|due| due <= now);
                    if let Some(node) = self.nodes.get_mut(&at).filter(due) {
                        node.wake_at = None;
                        self.turn(at, Vec::new());
                    }
                }
            }
        }
        self.now = end;
    }

    /// Lets time pass until something holds, and says how much did.
    ///
    /// # Errors
    /// If it does not within the limit: with what was waited for.
    pub fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Result<Duration, String> {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) >= limit {
                return Err(format!("after {limit:?} still not: {what}"));
            }
            self.run(HEARTBEAT / 4);
        }
        Ok(self.now.since(start))
    }

    /// Who leads a group, as far as a running node knows it.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<MemberId> {
        let leads = |(member, node): (&MemberId, &Node)| {
            let soft = node.soft.get(&group).filter(|_| node.host.is_some())?;
            (soft.role == Role::Leader).then_some((soft.term, *member))
        };
        self.nodes.iter().filter_map(leads).max().map(|(_, member)| member)
    }

    /// Groups in which some running node knows no leader that runs.
    #[must_use]
    pub fn leaderless(&self) -> usize {
        let known = |group: &GroupId| {
            let runs = |leader: MemberId| self.nodes.get(&leader).is_some_and(|node| node.host.is_some());
            let follows = |node: &Node| node.soft.get(group).and_then(|soft| soft.leader).is_some_and(runs);
            self.nodes.values().filter(|node| node.host.is_some()).all(follows)
        };
        self.group_ids().filter(|group| !known(group)).count()
    }

    /// Whether every group hibernates at every running node.
    #[must_use]
    pub fn all_asleep(&self) -> bool {
        self.asleep()
            .into_iter()
            .all(|(_, asleep)| asleep as u64 == self.groups)
    }

    /// How many groups hibernate, at each running node.
    #[must_use]
    pub fn asleep(&self) -> Vec<(MemberId, usize)> {
        let count = |(member, node): (&MemberId, &Node)| Some((*member, node.host.as_ref()?.hibernating()));
        self.nodes.iter().filter_map(count).collect()
    }

    /// Whether a group hibernates at a node.
    #[must_use]
    pub fn sleeps(&self, at: MemberId, group: GroupId) -> bool {
        let host = self.nodes.get(&at).and_then(|node| node.host.as_ref());
        host.and_then(|host| host.view(group))
            .is_some_and(|view| view.raft.hibernates)
    }

    /// Groups whose newest acknowledged value some running node has not.
    #[must_use]
    pub fn behind(&self) -> usize {
        let has = |group: &GroupId, node: &Node| {
            let newest = self.acknowledged.get(group).copied().unwrap_or_default();
            node.value(*group) >= newest
        };
        let everywhere = |group: &GroupId| {
            let mut running = self.nodes.values().filter(|node| node.host.is_some());
            running.all(|node| has(group, node))
        };
        self.group_ids().filter(|group| !everywhere(group)).count()
    }

    fn later(&mut self, wait: Duration, job: Job) {
        self.at(self.now.after(wait), job);
    }

    fn at(&mut self, at: Now, job: Job) {
        self.sequence += 1;
        self.jobs.insert((at, self.sequence), job);
    }

    /// One turn of a node, and what follows from it at once.
    fn turn(&mut self, at: MemberId, events: Vec<Event>) {
        let mut events = Some(events);
        while let Some(now_due) = events.take() {
            let now = self.now;
            let Some(node) = self.nodes.get_mut(&at) else { return };
            let boot = node.boot;
            let Some(host) = &mut node.host else { return };
            let effects = match host.poll(now, now_due) {
                Ok(effects) => effects,
                Err(error) => return self.violations.push(format!("{at} stops: {error}")),
            };
            let mut again = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Write { token, writes } => self.later(
                        SYNC,
                        Job::Written {
                            at,
                            boot,
                            token,
                            writes,
                        },
                    ),
                    Effect::Send { to, messages } => self.send(at, to, messages),
                    Effect::Apply { group, items } => again.push(self.apply(at, group, items)),
                    Effect::Complete { request, result } => self.complete(at, request, result),
                    Effect::Changed { group, soft } => self.changed(at, group, soft),
                    Effect::Compact { .. } | Effect::Peers(_) => {}
                    Effect::SendSnapshot { .. } | Effect::Install { .. } | Effect::Discard { .. } => {
                        self.violations
                            .push(format!("{at} wants a snapshot, and no log was ever cut"));
                    }
                    Effect::Stamp { .. } => unreachable!("invariant: no group is sequenced here"),
                    Effect::Retired { .. } | Effect::Kept { .. } => {
                        unreachable!("invariant: no group is retired here")
                    }
                }
            }
            events = (!again.is_empty()).then_some(again);
        }
        self.schedule(at);
    }

    fn schedule(&mut self, at: MemberId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let boot = node.boot;
        let due = node.host.as_ref().and_then(|host| host.next_deadline());
        if let Some(due) = due.map(|due| due.max(now))
            && node.wake_at.is_none_or(|before| due < before)
        {
            node.wake_at = Some(due);
            self.at(due, Job::Wake { at, boot });
        }
    }

    fn send(&mut self, from: MemberId, to: MemberId, mut messages: Vec<Message>) {
        let alive = |message: &&Message| matches!(message.body, Body::Alive { .. });
        let (frames, _) = messages_to_frames(&messages);
        self.sent.sends += 1;
        self.sent.messages += messages.len() as u64;
        self.sent.alive += messages.iter().filter(alive).count() as u64;
        self.sent.bytes += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        if let Some(loses) = self.loses {
            messages.retain(|message| !loses(message));
        }
        if !self.cut.contains(&(from, to)) && !messages.is_empty() {
            self.later(LINK, Job::Deliver { to, messages });
        }
    }

    fn apply(&mut self, at: MemberId, group: GroupId, items: Vec<Item>) -> Event {
        let mut position = LogPosition::default();
        for item in items {
            position = item.position;
            let value = match &item.work {
                Work::Command { command, .. } => {
                    let bytes = command.first_chunk().copied();
                    bytes.map(u64::from_le_bytes)
                }
                Work::Noop | Work::Configure { .. } | Work::Reads { .. } => None,
            };
            let Some(value) = value else { continue };
            let known = *self.truth.entry((group, position.index)).or_insert(value);
            if known != value {
                let index = position.index;
                self.violations.push(format!(
                    "{at} applies {value} as entry {index} of group {group}, and somebody applied {known}"
                ));
            }
            if let Work::Command {
                waiter: Some(request), ..
            } = item.work
            {
                self.tell(at, group, value);
                self.answered(at, request, Answer::Value(value));
            }
            if let Some(node) = self.nodes.get_mut(&at) {
                node.values.insert(group, value);
            }
        }
        Event::Applied { group, position }
    }

    /// Somebody heard of this value: no later read may miss it.
    fn tell(&mut self, at: MemberId, group: GroupId, value: u64) {
        let newest = self.acknowledged.entry(group).or_default();
        if value < *newest {
            self.violations
                .push(format!("{at} acknowledges {value} after {newest} in group {group}"));
        }
        *newest = value.max(*newest);
    }

    fn complete(&mut self, at: MemberId, request: RequestId, result: Result<Done, Refusal>) {
        let read = self.nodes.get_mut(&at).and_then(|node| node.reads.remove(&request));
        match (result, read) {
            (Ok(_), Some((group, floor))) => {
                let value = self.nodes.get(&at).map_or(0, |node| node.value(group));
                if value < floor {
                    self.violations.push(format!(
                        "{at} reads {value} in group {group}, and {floor} was acknowledged before"
                    ));
                }
                self.answered(at, request, Answer::Value(value));
            }
            (Ok(_), None) => {}
            (Err(refusal), _) => self.answered(at, request, Answer::Refused(refusal)),
        }
    }

    fn answered(&mut self, at: MemberId, request: RequestId, answer: Answer) {
        if let Some(node) = self.nodes.get_mut(&at) {
            node.answers.insert(request, answer);
        }
    }

    fn changed(&mut self, at: MemberId, group: GroupId, soft: Soft) {
        if soft.role == Role::Leader {
            let first = *self.leaders.entry((group, soft.term)).or_insert(at);
            if first != at {
                self.violations.push(format!(
                    "{first} and {at} both lead term {} of group {group}",
                    soft.term
                ));
            }
        }
        if let Some(node) = self.nodes.get_mut(&at) {
            node.soft.insert(group, soft);
        }
    }
}
