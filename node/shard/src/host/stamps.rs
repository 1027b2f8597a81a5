//! Revisions from a sequencer: a leader holds its group's commands until each has one.
//!
//! Commands gather while a few questions are under way (a ticket each, for as many revisions as there are commands), and take the
//! answers in the order of the tickets, so that stamps rise along the log. A command takes only what a ticket brings that was asked
//! after the command came: an earlier revision might lie before something that had been answered elsewhere by then.
//!
//! What is asked for and not used is a hole for ever. Above all at the end of a leadership: a later leader asks later, so its stamps are
//! above all that this one may have put into a log.

use super::{GROUP_TURN_BYTES_MAX, HELD_BYTES_MAX, Host, REQUESTS_MAX};
use crate::effect::{Done, Effect, Refusal, Ticket};
use crate::envelope::Envelope;
use crate::pending::Stage;
use althing_raft::ids::{GroupId, Index, Now};
use althing_raft::io::{Input, RequestId, Role};
use althing_raft::mark::Mark;
use althing_raft::message::{Body, Message};
use althing_raft::mutant::Mutant;
use althing_raft::roster::Footprint;
use althing_store::ops::Revision;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Tickets of one group under way. Two would keep the sequencer busy within a site; between sites a few more overlap the round trips.
pub const TICKETS_MAX: usize = 4;
/// Revisions that one ticket asks for: the requests of a whole node.
pub const STAMPS_PER_TICKET_MAX: u32 = 16_384;
/// Commands of one group that wait for revisions: all that this node's clients may have under way, and as many of other nodes'.
pub const STAMPS_WAITING_MAX: usize = 2 * REQUESTS_MAX;
const _: () = assert!(STAMPS_PER_TICKET_MAX as usize >= REQUESTS_MAX);

/// A command that waits for its revision.
struct Waiting {
    /// Of a client of this node; `None`: a follower sent it.
    request: Option<RequestId>,
    /// Without a stamp.
    envelope: Bytes,
    /// The last ticket before it came.
    since: Ticket,
}

/// A ticket under way.
struct Asked {
    count: u32,
    /// Its answer, while an earlier ticket has none.
    first: Option<Revision>,
}

/// Somebody who waits until everything stamped before is applied.
struct Resolve {
    request: RequestId,
    /// Tickets up to here count.
    upto: Ticket,
    /// That this member led after the request came, and what was committed then.
    led: Option<Index>,
    /// End of the log when the last of these tickets was used.
    end: Option<Index>,
}

/// What a leader of a sequenced group remembers.
#[derive(Default)]
pub(super) struct Stamps {
    on: bool,
    /// In the order in which they came, so `since` rises.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    tickets: BTreeMap<Ticket, Asked>,
    /// The newest revision used under this leadership.
    newest: Option<Revision>,
    /// Not before this moment, after a sequencer did not answer.
    ask_at: Now,
    resolves: Vec<Resolve>,
}

/// Commands that take their revisions now.
struct Batch {
    own: Vec<(RequestId, Bytes)>,
    forwarded: Vec<Bytes>,
    first: Revision,
}

impl Stamps {
    /// Bytes of commands that wait here.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&mut self, request: RequestId) {
        self.resolves.retain(|resolve| resolve.request != request);
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.request != Some(request));
        if self.waiting.len() < before {
            self.bytes = self.waiting.iter().map(|waiting| waiting.envelope.len()).sum();
        }
    }

    fn push(&mut self, request: Option<RequestId>, envelope: Bytes, since: Ticket) {
        self.bytes += envelope.len();
        self.waiting.push_back(Waiting {
            request,
            envelope,
            since,
        });
    }

    /// Commands that no ticket under way brings a revision for.
    fn uncovered(&self) -> usize {
        let Some((newest, _)) = self.tickets.last_key_value() else {
            return self.waiting.len();
        };
        let covered: usize = self.tickets.values().map(|asked| asked.count as usize).sum();
        let earlier = self.waiting.partition_point(|waiting| waiting.since < *newest);
        self.waiting.len() - earlier + earlier.saturating_sub(covered)
    }

    /// For how many commands the next ticket asks: they enter the log in one turn.
    fn next_count(&self) -> u32 {
        let first = self.waiting.len() - self.uncovered();
        let mut bytes = 0;
        let fits = |waiting: &&Waiting| {
            let fits = bytes < GROUP_TURN_BYTES_MAX;
            bytes += waiting.envelope.len();
            fits
        };
        let count = self.waiting.range(first..).take_while(fits).count();
        u32::try_from(count).map_or(STAMPS_PER_TICKET_MAX, |count| count.min(STAMPS_PER_TICKET_MAX))
    }

    fn may_ask(&self) -> bool {
        self.tickets.len() < TICKETS_MAX && self.uncovered() > 0
    }

    /// When commands that wait must be asked for again.
    pub(super) fn ask_deadline(&self) -> Option<Now> {
        self.may_ask().then_some(self.ask_at)
    }

    /// The next ticket and how many revisions to ask for.
    fn ask(&mut self, now: Now, last: &mut Ticket) -> Option<(Ticket, u32)> {
        if now < self.ask_at || !self.may_ask() {
            return None;
        }
        let count = self.next_count();
        last.0 += 1;
        self.tickets.insert(*last, Asked { count, first: None });
        Some((*last, count))
    }

    /// An answer came: gives out what can be used now, in order.
    fn answered(&mut self, ticket: Ticket, first: Option<Revision>, retry_at: Now) -> Vec<Batch> {
        let Some(asked) = self.tickets.get_mut(&ticket) else {
            // Of a leadership that is over.
            return Vec::new();
        };
        if first.is_some() {
            asked.first = first;
        } else {
            self.tickets.remove(&ticket);
            self.ask_at = retry_at;
        }
        let mut batches = Vec::new();
        while let Some(entry) = self.tickets.first_entry()
            && let Some(first) = entry.get().first
        {
            let (ticket, asked) = entry.remove_entry();
            batches.extend(self.take(ticket, first, asked.count));
        }
        batches
    }

    /// The commands that revisions of this ticket are for. Own ones come first, because each kind enters the log as one.
    fn take(&mut self, ticket: Ticket, first: Revision, count: u32) -> Option<Batch> {
        if self.newest.is_some_and(|newest| first <= newest) {
            // A later ticket was answered before an earlier one. Stamps rise along the log, so these are of no use.
            return None;
        }
        let (mut own, mut forwarded) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let earlier = |waiting: &Waiting| waiting.since < ticket || Mutant::EarlierTicketServes.active();
            if !self.waiting.front().is_some_and(earlier) {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.bytes -= waiting.envelope.len();
            match waiting.request {
                Some(request) => own.push((request, waiting.envelope)),
                None => forwarded.push(waiting.envelope),
            }
        }
        let used = i64::try_from(own.len() + forwarded.len()).expect("invariant: at most STAMPS_WAITING_MAX wait");
        if used > 0 {
            self.newest = Some(Revision(first.0 + used - 1));
        }
        Some(Batch { own, forwarded, first })
    }

    fn under_way(&self, upto: Ticket) -> bool {
        let oldest = self.tickets.first_key_value();
        oldest.is_some_and(|(oldest, _)| *oldest <= upto) && !Mutant::ResolveForgetsTickets.active()
    }
}

/// The command with its revision. Only what can be read gets this far.
fn stamp(envelope: &Bytes, stamp: Revision) -> Bytes {
    let envelope = Envelope::decode(envelope.clone()).expect("invariant: read before it was held");
    let stamp = Some(stamp);
    Envelope { stamp, ..envelope }.encode()
}

impl Host {
    pub(super) fn sequenced(&mut self, id: GroupId, on: bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = std::mem::replace(&mut group.stamps.on, on);
        self.turn.touched.insert(id);
        if before && !on {
            self.abandon_stamps(id);
        }
    }

    /// Whether commands of a group wait for revisions at this member now.
    fn stamps_here(&self, id: GroupId) -> bool {
        self.groups
            .get(&id)
            .is_some_and(|group| group.stamps.on && group.soft.role == Role::Leader)
    }

    fn needs_stamp(&self, envelope: &Bytes) -> bool {
        Envelope::decode(envelope.clone()).is_ok_and(|envelope| (self.config.needs_stamp)(&envelope.command))
    }

    /// Takes the commands out of a follower's message that must wait for revisions. `None` if nothing is left of it.
    pub(super) fn keep_for_stamps(&mut self, message: Message) -> Option<Message> {
        let Body::Forward { commands } = &message.body else {
            return Some(message);
        };
        let term = self.groups.get(&message.group).map(|group| group.soft.term);
        if !self.stamps_here(message.group) || term != Some(message.term) {
            // Of another term: the core's business.
            return Some(message);
        }
        let commands = commands.iter().cloned();
        let (kept, others): (Vec<_>, Vec<_>) = commands.partition(|command| self.needs_stamp(command));
        let since = self.ticket;
        self.turn.touched.insert(message.group);
        if let Some(group) = self.groups.get_mut(&message.group) {
            let stamps = &mut group.stamps;
            for command in kept {
                if stamps.waiting.len() >= STAMPS_WAITING_MAX || stamps.bytes + command.len() > HELD_BYTES_MAX {
                    // As the core does with what it cannot take: its client hears at its deadline that the outcome is unknown.
                    Mark::ForwardDropped.hit();
                } else {
                    stamps.push(None, command, since);
                }
            }
        }
        let body = Body::Forward { commands: others };
        let rest = matches!(&body, Body::Forward { commands } if !commands.is_empty());
        rest.then_some(Message { body, ..message })
    }

    /// Moves the turn's own commands to those that wait for revisions, and asks for as many.
    pub(super) fn gather_for_stamps(&mut self, now: Now, id: GroupId) {
        if !self.stamps_here(id) {
            return;
        }
        let since = self.ticket;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.hold_until <= now {
            let held = std::mem::take(&mut group.held);
            group.held_bytes = 0;
            for (request, envelope) in held {
                let needed = self.needs_stamp(&envelope);
                let Some(group) = self.groups.get_mut(&id) else { return };
                if !needed {
                    group.hold(request, envelope);
                } else if self.requests.stage(request, Stage::Stamping) {
                    group.stamps.push(Some(request), envelope, since);
                }
            }
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        while let Some((ticket, count)) = group.stamps.ask(now, &mut self.ticket) {
            self.turn.effects.push(Effect::Stamp {
                group: id,
                ticket,
                count,
            });
        }
    }

    /// A sequencer answered: its revisions enter the log with their commands.
    pub(super) fn stamped(&mut self, now: Now, id: GroupId, ticket: Ticket, first: Option<Revision>) {
        let retry_at = now.after(self.config.heartbeat_interval);
        let Some(group) = self.groups.get_mut(&id) else { return };
        self.turn.touched.insert(id);
        for batch in group.stamps.answered(ticket, first, retry_at) {
            self.propose_stamped(now, id, batch);
        }
        self.tickets_used(id);
    }

    fn propose_stamped(&mut self, now: Now, id: GroupId, batch: Batch) {
        let mut next = batch.first;
        let mut revision = || {
            let revision = next;
            next.0 += 1;
            revision
        };
        let me = self.config.me;
        let (mut plain, mut own) = (Vec::new(), Vec::new());
        for (request, envelope) in batch.own {
            if self.requests.stage(request, Stage::Sent(me)) {
                own.push((request, stamp(&envelope, revision())));
                plain.push((request, envelope));
            }
        }
        let forwarded: Vec<_> = batch
            .forwarded
            .iter()
            .map(|envelope| stamp(envelope, revision()))
            .collect();
        if !own.is_empty() {
            // What the core does not take waits again, and gets another revision.
            self.propose_batch(now, id, own, plain);
        }
        if !forwarded.is_empty() {
            self.step(now, id, Input::Forwarded(forwarded));
        }
    }

    /// Leadership is lost, or the group is sequenced no more: commands of this node wait for whoever leads, those of others are
    /// lost as any message may be, and no revision that was asked for is ever used.
    pub(super) fn abandon_stamps(&mut self, id: GroupId) {
        if Mutant::StampsOutliveLeadership.active() {
            return;
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let leader = group.soft.leader;
        let on = group.stamps.on;
        let before = std::mem::replace(
            &mut group.stamps,
            Stamps {
                on,
                ..Stamps::default()
            },
        );
        for waiting in before.waiting {
            if let Some(request) = waiting.request
                && self.requests.stage(request, Stage::Held)
            {
                group.hold(request, waiting.envelope);
            }
        }
        for resolve in before.resolves {
            if self.requests.remove(resolve.request).is_some() {
                self.turn.complete(resolve.request, Err(Refusal::NotLeader { leader }));
            }
        }
    }

    pub(super) fn resolve(&mut self, now: Now, request: RequestId, id: GroupId, deadline: Now) {
        let Some(group) = self.groups.get(&id) else {
            return self.turn.complete(request, Err(Refusal::NoGroup));
        };
        if group.soft.role != Role::Leader {
            let leader = group.soft.leader;
            return self.turn.complete(request, Err(Refusal::NotLeader { leader }));
        }
        let upto = self.ticket;
        if let Some(group) = self.admit(request, id, Stage::Resolve, deadline) {
            group.stamps.resolves.push(Resolve {
                request,
                upto,
                led: None,
                end: None,
            });
            self.tickets_used(id);
            self.step(now, id, Input::Read(vec![(request, Footprint::All)]));
        }
    }

    /// A round said that this member led after the request came.
    pub(super) fn leads_since_resolve(&mut self, id: GroupId, request: RequestId, index: Index) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut resolves = group.stamps.resolves.iter_mut();
        if let Some(resolve) = resolves.find(|resolve| resolve.request == request) {
            resolve.led = Some(index);
        }
        self.settle_resolves(id);
    }

    /// Whatever tickets brought is in the log by now: whoever waited for these tickets waits for the end of the log.
    fn tickets_used(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut resolves = std::mem::take(&mut group.stamps.resolves);
        for resolve in resolves.iter_mut().filter(|resolve| resolve.end.is_none()) {
            if !group.stamps.under_way(resolve.upto) {
                resolve.end = Some(group.raft.last().index);
            }
        }
        group.stamps.resolves = resolves;
        self.settle_resolves(id);
    }

    /// Hands those on to the state machine's progress who need wait for nothing else.
    fn settle_resolves(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut ready = Vec::new();
        group
            .stamps
            .resolves
            .retain(|resolve| match (resolve.led, resolve.end) {
                (Some(led), Some(end)) => {
                    ready.push((resolve.request, led.max(end)));
                    false
                }
                (Some(_) | None, _) => true,
            });
        for (request, index) in ready {
            if let Some(done) = group.after(index, request, Done::Read { index })
                && self.requests.remove(request).is_some()
            {
                self.turn.complete(request, Ok(done));
            }
        }
    }
}
