//! Between nodes: frames of messages in production's wire format, snapshots, and calls with their answers.

use super::machine::Store;
use super::task::{Promise, promise, within};
use super::{Errand, Node, Todo, World};
use crate::mutant::Sabotage;
use crate::world::conditions::MS;
use crate::world::machine::Parcel;
use crate::world::trace::describe;
use althing_raft::entry::ConfigStep;
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::message::{Body, Message};
use althing_shard::Event;
use althing_shard::conductor::{CloseGuard, GroupSeen};
use althing_shard::frame::{Frame, HEADER_BYTES, Header, messages_to_frames};
use althing_store::CommandResult;
use althing_store::ops::{OpError, Revision, RevisionSource, Territory, Txn};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// How soon a caller notices that a connection broke.
const BREAK_MAX: u64 = 200 * MS;

/// Why a request came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The state machine refuses; nothing happened.
    Op(OpError),
    /// Nothing happened.
    NoLeader,
    NotLeader,
    Learner,
    Stopped,
    TooManyRequests,
    /// It may have happened.
    LeaderChanged,
    Timeout,
    /// Something about groups that is not so, or not yet.
    No(String),
}

/// How a read is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ReadTerms {
    /// After everything that was given to the shard before is settled in it.
    pub(crate) settled: bool,
}

/// What a node asks of another one: as `node/src/ask.rs` and `node/src/control.rs` have it.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Execute {
        group: GroupId,
        command: Bytes,
    },
    Read {
        group: GroupId,
        terms: ReadTerms,
        txn: Txn,
    },
    Stamp {
        group: GroupId,
        count: u32,
    },
    Observe,
    /// Whether nobody drives a transaction of this member any more.
    IsOver {
        nonce: u64,
        number: u64,
    },
    Open {
        group: GroupId,
    },
    Create {
        group: GroupId,
        territory: Territory,
        source: RevisionSource,
    },
    Close {
        group: GroupId,
        guard: CloseGuard,
    },
    Configure {
        group: GroupId,
        step: ConfigStep,
        expected: Index,
        context: Bytes,
    },
    Transfer {
        group: GroupId,
        to: MemberId,
    },
    ConfirmSealed {
        group: GroupId,
        at: LogPosition,
    },
    StartSequencer {
        group: GroupId,
        above: Revision,
    },
}

impl Ask {
    /// Whether asking twice does no harm.
    fn idempotent(&self) -> bool {
        match self {
            Self::Execute { .. } => false,
            Self::Read { .. }
            | Self::Stamp { .. }
            | Self::Observe
            | Self::IsOver { .. }
            | Self::Open { .. }
            | Self::Create { .. }
            | Self::Close { .. }
            | Self::Configure { .. }
            | Self::Transfer { .. }
            | Self::ConfirmSealed { .. }
            | Self::StartSequencer { .. } => true,
        }
    }
}

/// What is said to it.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Answer(CommandResult),
    Failure(Failure),
    Stamp(Revision),
    Done,
    View(BTreeMap<GroupId, GroupSeen>),
}

/// Why a call has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallError {
    /// Nothing of it was sent.
    Unreachable,
    /// It may have happened, or still happen.
    Broken,
    Timeout,
}

impl CallError {
    pub(crate) fn may_have_happened(self) -> bool {
        match self {
            Self::Unreachable => false,
            Self::Broken | Self::Timeout => true,
        }
    }
}

impl World {
    pub(super) fn send(&mut self, number: usize, to: MemberId, messages: &[Message]) {
        let now = self.now;
        for message in messages {
            self.watch(message.group).sent(now, message, false);
            self.trace.note(
                now,
                number as u64,
                "send",
                &[message.group.0, to.0, message.term.0],
                || format!("group {}: {}", message.group, describe(message)),
            );
        }
        let Some(target) = self.machine_of(to) else {
            return;
        };
        let (frames, too_long) = messages_to_frames(messages);
        if too_long > 0 {
            self.violation(format!("{too_long} messages do not fit into a frame"));
        }
        let forwards = messages
            .iter()
            .filter(|message| matches!(message.body, Body::Forward { .. }))
            .count() as u64;
        self.counts.forwards += forwards;
        let twice = forwards > 0 && self.breaks(Sabotage::DuplicateForward);
        for frame in frames {
            for delay in self.net.send(number, target, forwards > 0) {
                let frame = frame.clone();
                self.later(delay, Todo::Arrive { to: target, frame });
            }
            if twice {
                self.later(30 * MS, Todo::Arrive { to: target, frame });
            }
        }
    }

    pub(super) fn arrive(&mut self, number: usize, frame: Bytes) {
        if self.machines[number].process.is_none() {
            return;
        }
        let (head, body) = frame.split_at(HEADER_BYTES);
        let decoded = Header::decode(head.try_into().expect("invariant: split there"))
            .and_then(|header| header.decode_body(Bytes::copy_from_slice(body)));
        match decoded {
            Ok(Frame::Messages(messages)) => {
                let now = self.now;
                for message in &messages {
                    self.watch(message.group).received(now, message);
                }
                self.poll(number, vec![Event::Messages(messages)]);
            }
            Ok(other) => self.violation(format!("messages came out of their frame as {other:?}")),
            Err(error) => self.violation(format!("a frame does not survive its codec: {error}")),
        }
    }

    pub(super) fn send_snapshot(&mut self, number: usize, group: GroupId, to: MemberId, term: Term) {
        let machine = &self.machines[number];
        let (from_boot, member) = (machine.boot, machine.member);
        let store = machine.process.as_ref().and_then(|process| process.groups.get(&group));
        let (Some(store), Some(target)) = (store.map(Rc::clone), self.machine_of(to)) else {
            return;
        };
        let parcel = match parcel(&store) {
            Ok(parcel) => parcel,
            Err(error) => {
                return self.violation(format!("{member} cannot export a snapshot of group {group}: {error}"));
            }
        };
        let at = parcel.meta.position;
        self.trace.note(
            self.now,
            number as u64,
            "snapshot",
            &[group.0, to.0, at.index.0],
            || format!("group {group}: {at:?} to {to}"),
        );
        let delay = 10 * self.net.draw_delay();
        let lost = self.net.send(number, target, true).is_empty();
        let todo = Todo::Snapshot {
            from: number,
            from_boot,
            to: target,
            group,
            term,
            parcel,
            lost,
        };
        self.later(delay, todo);
    }

    pub(super) fn take_parcel(
        &mut self,
        number: usize,
        from: usize,
        group: GroupId,
        term: Term,
        parcel: &Parcel,
    ) -> bool {
        let sender = self.machines[from].member;
        let machine = &mut self.machines[number];
        let member = machine.member;
        let Some(process) = &mut machine.process else {
            return false;
        };
        let Some(store) = process.groups.get(&group) else {
            return false;
        };
        // One at a time, and none for a replica that is about to leave.
        if process.imports.contains_key(&group) || process.host.view(group).is_none() {
            return false;
        }
        let mut import = store.import();
        for chunk in &parcel.chunks {
            if let Err(error) = import.chunk(chunk) {
                self.violation(format!("{member} refuses a chunk of a good snapshot: {error}"));
                return false;
            }
        }
        process.imports.insert(group, import);
        let meta = parcel.meta.clone();
        let event = Event::SnapshotReceived {
            group,
            from: sender,
            term,
            meta,
        };
        self.poll(number, vec![event]);
        true
    }

    /// A call sets out.
    fn send_call(&mut self, from: usize, to: usize, ask: Ask, reply: Promise<Result<Reply, CallError>>) {
        if !self.net.reaches(from, to) || !self.net.reaches(to, from) {
            let wait = self.net.draw_delay();
            return self.reply_later(wait, from, Err(CallError::Unreachable), reply);
        }
        match self.net.send(from, to, true).first().copied() {
            Some(delay) => self.later(delay, Todo::Call { from, to, ask, reply }),
            // A stream does not lose a piece: it breaks.
            None => self.break_off(from, reply),
        }
    }

    fn break_off(&mut self, from: usize, reply: Promise<Result<Reply, CallError>>) {
        let wait = self.rng.below(BREAK_MAX);
        self.reply_later(wait, from, Err(CallError::Broken), reply);
    }

    fn reply_later(
        &mut self,
        wait: u64,
        from: usize,
        answer: Result<Reply, CallError>,
        reply: Promise<Result<Reply, CallError>>,
    ) {
        let boot = self.machines[from].boot;
        let todo = Todo::Reply {
            from,
            boot,
            answer,
            reply,
        };
        self.later(wait, todo);
    }

    pub(super) fn called(&mut self, from: usize, to: usize, ask: Ask, reply: Promise<Result<Reply, CallError>>) {
        if self.machines[to].process.is_none() {
            // Nobody listens; or the connection broke under way, which a caller cannot tell apart.
            return self.break_off(from, reply);
        }
        self.counts.calls += 1;
        self.errands.push(Errand::Answer { from, to, ask, reply });
    }

    pub(super) fn send_reply(
        &mut self,
        to: usize,
        from: usize,
        answer: Result<Reply, CallError>,
        reply: Promise<Result<Reply, CallError>>,
    ) {
        match self.net.send(to, from, true).first().copied() {
            Some(delay) => self.reply_later(delay, from, answer, reply),
            None => self.break_off(from, reply),
        }
    }
}

fn parcel(store: &Store) -> Result<Parcel, althing_store::StoreError> {
    let mut export = store.export()?;
    let meta = export.meta().clone();
    let mut chunks = Vec::new();
    while let Some(chunk) = export.next_chunk()? {
        chunks.push(chunk);
    }
    Ok(Parcel { chunks, meta })
}

impl Node {
    /// Asks another node, or this one.
    pub(crate) async fn call(&self, member: MemberId, ask: Ask, timeout: u64) -> Result<Reply, CallError> {
        let target = self.ground.world.borrow().machine_of(member);
        let Some(target) = target else {
            return Err(CallError::Unreachable);
        };
        if target == self.number {
            // What is asked goes on although nobody waits for it any more, as with others.
            let (said, reply) = promise();
            let node = self.clone();
            self.ground
                .tasks
                .spawn(Some(self.number), async move { said.keep(node.answer(ask).await) });
            return match within(reply, self.sleep(timeout)).await {
                Some(Some(reply)) => Ok(reply),
                Some(None) => Err(CallError::Broken),
                None => Err(CallError::Timeout),
            };
        }
        let (said, reply) = promise();
        self.ground.world.borrow_mut().send_call(self.number, target, ask, said);
        match within(reply, self.sleep(timeout)).await {
            Some(Some(answer)) => answer,
            Some(None) => Err(CallError::Broken),
            None => Err(CallError::Timeout),
        }
    }

    /// Asks one replica after another until one does it. Goes on only where nothing can have happened.
    pub(crate) async fn reach(
        &self,
        group: GroupId,
        replicas: &[MemberId],
        ask: &Ask,
        timeout: u64,
    ) -> Result<Reply, Failure> {
        let mut last = Failure::NoLeader;
        for member in self.order(group, replicas) {
            match self.call(member, ask.clone(), timeout).await {
                Ok(Reply::Failure(failure)) => match failure {
                    Failure::NotLeader | Failure::Stopped | Failure::Learner | Failure::NoLeader => last = failure,
                    Failure::Op(_)
                    | Failure::LeaderChanged
                    | Failure::Timeout
                    | Failure::TooManyRequests
                    | Failure::No(_) => return Err(failure),
                },
                Ok(reply) => {
                    self.with(|process| process.guides.insert(group, member));
                    return Ok(reply);
                }
                Err(error) if error.may_have_happened() && !ask.idempotent() => return Err(Failure::Timeout),
                Err(_) => {
                    self.with(|process| process.guides.remove(&group));
                    last = Failure::NoLeader;
                }
            }
        }
        Err(last)
    }

    /// Who might know, the likeliest first.
    fn order(&self, group: GroupId, replicas: &[MemberId]) -> Vec<MemberId> {
        let known = self.with(|process| {
            let leader = process.soft.get(&group).and_then(|soft| soft.leader);
            [leader, process.guides.get(&group).copied()]
        });
        let mut order: Vec<MemberId> = known
            .into_iter()
            .flatten()
            .flatten()
            .filter(|member| replicas.contains(member))
            .collect();
        order.extend(replicas);
        let mut seen = std::collections::BTreeSet::new();
        order.retain(|member| seen.insert(*member));
        order
    }
}
