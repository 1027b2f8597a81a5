//! The host: one turn in, one list of effects out.

mod ask;
mod coalesce;
mod group;
mod neighbours;
mod retire;
mod stamps;
mod turn;

use crate::HostError;
use crate::book::AddressBook;
use crate::effect::{Effect, Event, Refusal, Ticket, WriteToken};
use crate::envelope::{BootNonce, Envelope};
use crate::pending::{Requests, Stage};
use crate::policy::CutPolicy;
use althing_raft::Raft;
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, LogPosition, MemberId, Now};
use althing_raft::io::{Config, Input, PersistSeq, RequestId, Role, Start, View};
use althing_raft::mark::Mark;
use althing_raft::message::{Body, Message};
use bytes::Bytes;
use coalesce::coalesce;
use group::Group;
use neighbours::Neighbours;
pub use neighbours::WAKES_PER_TURN_MAX;
pub use stamps::{STAMPS_PER_TICKET_MAX, STAMPS_WAITING_MAX, TICKETS_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use turn::Turn;

/// Requests under way at one node; beyond it clients are told to come back. Twice the clients of the largest load test.
pub const REQUESTS_MAX: usize = 16_384;
/// Bytes of the commands in them: what a node can lose to clients, beside its logs.
pub const REQUEST_BYTES_MAX: usize = 256 << 20;
/// Requests that a group may always have under way, and their bytes, whatever other groups have: enough for a group that is not busy
/// to be served beside one that is.
pub const GROUP_REQUESTS_RESERVED: usize = 64;
/// See [`GROUP_REQUESTS_RESERVED`].
pub const GROUP_BYTES_RESERVED: usize = 1 << 20;
/// Bytes of commands of one group that enter its log in one turn, or are sent on in one. The others wait for the next turn, behind a write
/// that is then short for all groups: a disk writes so much in some milliseconds.
pub const GROUP_TURN_BYTES_MAX: usize = 4 << 20;
/// Groups whose timers one turn serves, those that wait longest first: some milliseconds' work, then everybody else has a turn.
pub const TICKS_PER_TURN_MAX: usize = 1_024;
/// Bytes of commands of one group that wait for a leader. An election takes about a second; this is a second of heavy load.
pub const HELD_BYTES_MAX: usize = 64 << 20;
/// Bytes of committed commands that the state machine has not applied yet; beyond it new ones are refused.
pub const APPLY_BACKLOG_BYTES_MAX: usize = 64 << 20;
/// Bytes of commands in one proposal: a forward of it fits into one frame.
pub const PROPOSE_BYTES_MAX: usize = 1 << 20;
/// Bytes of forwarded commands that wait for a write of the log under way to end (see `Host::gated`); more go on at once, and the
/// core's own limit holds.
pub const FORWARDED_BYTES_MAX: usize = 16 << 20;

/// What a host is born with.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// This member.
    pub me: MemberId,
    /// Of this boot.
    pub nonce: BootNonce,
    /// How long to wait before trying again what a leader did not take.
    pub heartbeat_interval: Duration,
    /// A node that says nothing for so long is taken for dead by groups that hibernate: the election timeout. Signs of life are then
    /// exchanged once per heartbeat and pair of nodes. `None`: none are, so that no group may hibernate
    /// ([`Config::hibernate_after`]).
    pub silence: Option<Duration>,
    /// When a group's log is cut.
    pub cut: CutPolicy,
    /// Whether a command takes a revision from the sequencer of its group, if the group has one. Pure, and the same at every
    /// member.
    pub needs_stamp: fn(&Bytes) -> bool,
}

/// What a group starts from.
#[derive(Clone, Debug)]
pub struct GroupStart {
    /// For the core.
    pub config: Config,
    /// Durable log and applied state.
    pub start: Start,
}

/// A group as status pages see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupView {
    /// The core's part.
    pub raft: View,
    /// What the state machine has applied.
    pub applied: LogPosition,
    /// Requests of the group under way at this member.
    pub pending: usize,
}

/// All groups of one node.
pub struct Host {
    config: HostConfig,
    groups: BTreeMap<GroupId, Group>,
    requests: Requests,
    book: AddressBook,
    /// When each group wants to be woken.
    due: BTreeSet<(Now, GroupId)>,
    /// What each write under way makes durable.
    writes: BTreeMap<WriteToken, Vec<(GroupId, PersistSeq)>>,
    token: WriteToken,
    neighbours: Neighbours,
    /// The last question to a sequencer.
    ticket: Ticket,
    /// Groups whose commands wait for a write under way to end.
    waiting: BTreeSet<GroupId>,
    turn: Turn,
}

impl Host {
    /// A host without groups.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self {
            book: AddressBook::new(config.me),
            turn: Turn::default(),
            config,
            groups: BTreeMap::new(),
            requests: Requests::default(),
            due: BTreeSet::new(),
            writes: BTreeMap::new(),
            token: WriteToken::default(),
            neighbours: Neighbours::new(),
            ticket: Ticket::default(),
            waiting: BTreeSet::new(),
        }
    }

    /// Starts a group; the next `poll` brings its first effects.
    ///
    /// # Panics
    /// If there is one of this id, or the start contradicts itself, or the group may hibernate where no signs of life are exchanged.
    pub fn add_group(&mut self, now: Now, start: GroupStart) {
        assert!(
            start.config.hibernate_after.is_none() || self.config.silence.is_some(),
            "a group that hibernates needs signs of life"
        );
        let id = start.config.group;
        let (applied, entries) = (start.start.applied.clone(), start.start.entries.clone());
        let (raft, output) = Raft::new(start.config, start.start, now);
        let mut group = Group::new(raft, applied);
        group.look_for_reshaping(&entries, self.config.cut.behind_removals && id != GroupId::META);
        self.neighbours_change(now, &ConfigState::default(), &group.soft.config);
        let before = self.groups.insert(id, group);
        assert!(before.is_none(), "invariant: group {id} is started once");
        self.absorb(now, id, output);
    }

    /// One turn: everything that happened, then everything to do.
    ///
    /// # Errors
    /// Fatal ones only: the shell must end the process.
    pub fn poll(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Result<Vec<Effect>, HostError> {
        for event in events {
            self.take(now, event);
        }
        self.look_around(now);
        for _ in 0..TICKS_PER_TURN_MAX {
            let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= now) else {
                break;
            };
            self.due.remove(&(due, id));
            self.turn.touched.insert(id);
            self.step(now, id, Input::Tick);
        }
        while let Some(id) = self.turn.touched.pop_first() {
            self.flush(now, id);
            self.schedule(id);
        }
        while let Some((request, pending)) = self.requests.pop_expired(now) {
            let led = self
                .groups
                .get(&pending.group)
                .is_some_and(|group| group.soft.leader.is_some());
            let refusal = match pending.stage {
                Stage::Held => Refusal::NoLeader,
                Stage::Read if !led => Refusal::NoLeader,
                Stage::Stamping => Refusal::NoStamp,
                Stage::Sent(_) | Stage::Read | Stage::Transfer | Stage::Resolve => Refusal::Timeout,
                Stage::Committed => unreachable!("invariant: what is committed has no deadline"),
            };
            if let Some(group) = self.groups.get_mut(&pending.group) {
                group.forget(request);
            }
            self.turn.complete(request, Err(refusal));
        }
        self.finish()
    }

    /// When `poll` must be called at the latest, even without events.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        let due = self.due.first().map(|(due, _)| *due);
        let look = self.config.silence.and_then(|_| self.neighbours.deadline());
        due.into_iter().chain(look).chain(self.requests.next_deadline()).min()
    }

    /// A look at a group.
    #[must_use]
    pub fn view(&self, id: GroupId) -> Option<GroupView> {
        let group = self.groups.get(&id)?;
        Some(GroupView {
            raft: group.raft.view(),
            applied: group.applied,
            pending: self.requests.size_of(id).0,
        })
    }

    /// The groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    fn take(&mut self, now: Now, event: Event) {
        match event {
            Event::Propose {
                request,
                group,
                command,
                deadline,
            } => self.propose(request, group, command, deadline),
            Event::Read {
                request,
                group,
                footprint,
                deadline,
            } => {
                if let Some(found) = self.admit(request, group, Stage::Read, deadline) {
                    found.reads.push((request, footprint));
                }
            }
            Event::SetReads {
                request,
                group,
                spec,
                deadline,
            } => self.set_reads(now, request, group, spec, deadline),
            Event::Configure {
                request,
                group,
                step,
                context,
                expected,
                deadline,
            } => {
                self.configure(now, request, group, step, context, expected, deadline);
            }
            Event::Transfer {
                request,
                group,
                to,
                deadline,
            } => self.transfer(now, request, group, to, deadline),
            Event::Resolve {
                request,
                group,
                deadline,
            } => self.resolve(now, request, group, deadline),
            Event::Sequenced { group, on } => self.sequenced(group, on),
            Event::Stamped { group, ticket, first } => self.stamped(now, group, ticket, first),
            Event::Campaign { group } => self.step(now, group, Input::Campaign),
            Event::Retire { group, ends_at } => self.retire(now, group, ends_at),
            Event::Messages(messages) => messages.into_iter().for_each(|message| self.receive(now, message)),
            Event::PeerSeen { member, address } => {
                self.turn.peers |= self.book.seen(member, address);
            }
            Event::Unreachable(member) => {
                let of_it = |(_, group): &(&GroupId, &Group)| group.soft.config.contains(member);
                let groups: Vec<_> = self.groups.iter().filter(of_it).map(|(id, _)| *id).collect();
                for id in groups {
                    self.step(now, id, Input::Unreachable(member));
                }
            }
            Event::Written(token) => {
                // A token covers all earlier ones.
                let later = self.writes.split_off(&WriteToken(token.0 + 1));
                for (id, seq) in std::mem::replace(&mut self.writes, later).into_values().flatten() {
                    self.step(now, id, Input::Persisted(seq));
                }
                self.turn.touched.append(&mut self.waiting);
            }
            Event::Applied { group, position } => self.applied(now, group, position),
            Event::Members { group, table } => {
                self.book.applied(group, table);
                self.turn.peers = true;
            }
            Event::Checkpointed { group, position } => self.checkpointed(now, group, position),
            Event::SnapshotSent { group, to, covered } => self.step(now, group, Input::SnapshotSent { to, covered }),
            Event::SnapshotReceived {
                group,
                from,
                term,
                meta,
            } => {
                let message = Message {
                    group,
                    from,
                    to: self.config.me,
                    term,
                    body: Body::Snapshot { meta: meta.clone() },
                };
                let before = self.turn.effects.len();
                self.step(now, group, Input::Message(message));
                let taken = self.turn.effects[before..]
                    .iter()
                    .any(|effect| matches!(effect, Effect::Install { .. }));
                if !taken {
                    Mark::SnapshotDiscarded.hit();
                    self.turn.effects.push(Effect::Discard { group, meta });
                }
            }
            Event::Installed { group, meta } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.installed(&meta);
                    self.step(now, group, Input::Installed(meta.clone()));
                    self.applied(now, group, meta.position);
                }
            }
        }
    }

    fn receive(&mut self, now: Now, message: Message) {
        if message.to == self.config.me && message.from != self.config.me {
            self.hear_node(now, &message);
        }
        let readable = match &message.body {
            // What cannot be read must not get into the log, where every member would have to read it.
            // Only the leader gives stamps.
            Body::Forward { commands } => commands
                .iter()
                .all(|command| Envelope::decode(command.clone()).is_ok_and(|envelope| envelope.stamp.is_none())),
            // Only whole snapshots count, and those come as `SnapshotReceived`. Signs of life are for the host itself.
            Body::Snapshot { .. } | Body::Alive { .. } => false,
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Committed { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Append { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::Hibernate { .. }
            | Body::Hibernating { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Roster { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. }
            | Body::Revoked { .. } => true,
        };
        if !readable || message.to != self.config.me || message.from == self.config.me {
            return;
        }
        let message = match self.keep_for_stamps(message) {
            Some(message) => message,
            None => return,
        };
        if matches!(message.body, Body::Forward { .. })
            && self.gated(message.group)
            && let Some(group) = self.groups.get_mut(&message.group)
        {
            let bytes = forwarded_bytes(&message);
            if group.forwarded_bytes + bytes <= FORWARDED_BYTES_MAX {
                group.forwarded_bytes += bytes;
                group.forwarded.push(message);
                return;
            }
        }
        self.step(now, message.group, Input::Message(message));
    }

    fn applied(&mut self, now: Now, id: GroupId, position: LogPosition) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (answered, ready) = group.applied(position);
        for request in answered {
            self.requests.remove(request);
        }
        for (request, done) in ready {
            if self.requests.remove(request).is_some() {
                self.turn.complete(request, Ok(done));
            }
        }
        self.step(now, id, Input::Applied(position.index));
    }

    fn checkpointed(&mut self, now: Now, id: GroupId, position: LogPosition) {
        let Some(target) = self
            .groups
            .get(&id)
            .and_then(|group| group.cut(self.config.cut, position))
        else {
            return;
        };
        Mark::LogCut.hit();
        self.step(now, id, Input::Compact(target));
        if let Some(group) = self.groups.get(&id) {
            self.turn.effects.push(Effect::Compact {
                group: id,
                up_to: group.raft.log_start(),
            });
        }
    }

    /// Hands the turn's proposals and reads to the core.
    fn flush(&mut self, now: Now, id: GroupId) {
        self.gather_for_stamps(now, id);
        let something = self
            .groups
            .get(&id)
            .is_some_and(|group| !(group.held.is_empty() && group.forwarded.is_empty()));
        if something && !self.gated(id) {
            self.flush_forwarded(now, id);
            self.flush_proposals(now, id);
        }
        self.flush_reads(now, id);
        // What was refused is held again, until the time that `schedule` reads from the group.
        self.turn.touched.remove(&id);
    }

    /// Whether new commands of a group that leads here wait, to share the next turn: one costs the same for one command and for
    /// hundreds, and a group commit is what a disk is good at. They wait for the writes that were under way when the first of them came.
    fn gated(&mut self, id: GroupId) -> bool {
        let oldest = self.writes.first_key_value().map(|(token, _)| *token);
        let Some(group) = self.groups.get_mut(&id) else {
            return false;
        };
        let gate = match oldest {
            Some(oldest) if group.soft.role == Role::Leader => {
                Some(*group.gate.get_or_insert(self.token)).filter(|gate| oldest <= *gate)
            }
            Some(_) | None => None,
        };
        group.gate = gate;
        if gate.is_some() {
            self.waiting.insert(id);
        }
        gate.is_some()
    }

    /// What was kept waiting is as if it had come now; that it finds another leader is as with any late message.
    fn flush_forwarded(&mut self, now: Now, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut forwarded = std::mem::take(&mut group.forwarded);
        let mut bytes = 0;
        let more = forwarded.iter().position(|message| {
            let enough = bytes >= GROUP_TURN_BYTES_MAX;
            bytes += if enough { 0 } else { forwarded_bytes(message) };
            enough
        });
        group.forwarded_bytes -= bytes;
        group.forwarded = more.map_or_else(Vec::new, |more| forwarded.split_off(more));
        for message in forwarded {
            self.step(now, id, Input::Message(message));
        }
    }

    fn flush_proposals(&mut self, now: Now, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(leader) = group.soft.leader else { return };
        if group.hold_until > now {
            return;
        }
        group.held_bytes = 0;
        let mut held = std::mem::take(&mut group.held).into_iter().peekable();
        let mut total = 0;
        while held.peek().is_some() && total < GROUP_TURN_BYTES_MAX {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some((request, command)) =
                held.next_if(|(_, command)| batch.is_empty() || bytes + command.len() <= PROPOSE_BYTES_MAX)
            {
                if self.requests.stage(request, Stage::Sent(leader)) {
                    bytes += command.len();
                    batch.push((request, command));
                }
            }
            total += bytes;
            // The copies share the commands' memory.
            self.propose_batch(now, id, batch.clone(), batch);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        held.for_each(|(request, command)| group.hold(request, command));
    }

    /// Hands commands to the core. What it does not take is held again, as it was.
    fn propose_batch(
        &mut self,
        now: Now,
        id: GroupId,
        batch: Vec<(RequestId, Bytes)>,
        as_it_was: Vec<(RequestId, Bytes)>,
    ) {
        self.turn.proposing = true;
        self.step(now, id, Input::Propose(batch));
        self.turn.proposing = false;
        let refused = std::mem::take(&mut self.turn.refused);
        let Some(group) = self.groups.get_mut(&id).filter(|_| !refused.is_empty()) else {
            return;
        };
        for (request, command) in as_it_was {
            if refused.contains(&request) && self.requests.stage(request, Stage::Held) {
                group.hold(request, command);
            }
        }
    }

    fn flush_reads(&mut self, now: Now, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.soft.leader.is_none() || group.read_hold_until > now {
            return;
        }
        group.reads.retain(|(request, _)| self.requests.contains(*request));
        if !group.reads.is_empty() {
            let reads = std::mem::take(&mut group.reads);
            self.step(now, id, Input::Read(reads));
        }
    }

    fn schedule(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let at = group.wake_at();
        if group.scheduled != at {
            if let Some(before) = group.scheduled {
                self.due.remove(&(before, id));
            }
            if let Some(at) = at {
                self.due.insert((at, id));
            }
            group.scheduled = at;
        }
    }

    /// Turns what gathered into effects.
    fn finish(&mut self) -> Result<Vec<Effect>, HostError> {
        if let Some(error) = self.turn.fatal.take() {
            return Err(error);
        }
        let mut effects = std::mem::take(&mut self.turn.effects);
        for (to, messages) in std::mem::take(&mut self.turn.sends) {
            let messages = coalesce(messages);
            effects.push(Effect::Send { to, messages });
        }
        let writes = std::mem::take(&mut self.turn.writes);
        if !writes.is_empty() {
            self.token.0 += 1;
            self.writes.insert(self.token, std::mem::take(&mut self.turn.persists));
            effects.push(Effect::Write {
                token: self.token,
                writes,
            });
        }
        if std::mem::take(&mut self.turn.peers) {
            effects.push(Effect::Peers(self.book.peers()));
        }
        Ok(effects)
    }
}

fn forwarded_bytes(message: &Message) -> usize {
    match &message.body {
        Body::Forward { commands } => commands.iter().map(Bytes::len).sum(),
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Committed { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::Append { .. }
        | Body::AppendAccepted { .. }
        | Body::AppendRejected { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::Hibernate { .. }
        | Body::Hibernating { .. }
        | Body::Alive { .. }
        | Body::Snapshot { .. }
        | Body::TimeoutNow
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Roster { .. }
        | Body::LeaseRequest { .. }
        | Body::LeaseGrant { .. }
        | Body::Revoke { .. }
        | Body::Revoked { .. } => 0,
    }
}
