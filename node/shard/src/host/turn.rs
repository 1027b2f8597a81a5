//! What gathers during a turn, and how a core's output gets in there.

use super::Host;
use super::group::removes;
use crate::HostError;
use crate::effect::{Done, Effect, Item, Refusal, Work};
use crate::envelope::Envelope;
use crate::pending::Stage;
use althing_raft::entry::{Entry, Payload};
use althing_raft::ids::{GroupId, Index, MemberId, Now};
use althing_raft::io::{DropReason, Input, Output, PersistSeq, RequestId, Role, Soft};
use althing_raft::mark::Mark;
use althing_raft::message::Message;
use althing_raft::mutant::Mutant;
use althing_raft::roster::{Footprint, ReadsState};
use althing_store::codec::ends_batch;
use althing_wal::GroupWrite;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Turn {
    pub(super) effects: Vec<Effect>,
    pub(super) writes: Vec<GroupWrite>,
    pub(super) persists: Vec<(GroupId, PersistSeq)>,
    pub(super) sends: BTreeMap<MemberId, Vec<Message>>,
    /// Groups with something to flush or to schedule.
    pub(super) touched: BTreeSet<GroupId>,
    pub(super) peers: bool,
    pub(super) fatal: Option<HostError>,
    /// Whether the step under way proposes commands.
    pub(super) proposing: bool,
    /// Proposals that the core certainly did not take, to be held again.
    pub(super) refused: BTreeSet<RequestId>,
}

impl Turn {
    pub(super) fn complete(&mut self, request: RequestId, result: Result<Done, Refusal>) {
        self.effects.push(Effect::Complete { request, result });
    }
}

impl Host {
    /// One step of one core, and all that follows from it.
    pub(super) fn step(&mut self, now: Now, id: GroupId, input: Input) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let output = group.raft.step(now, input);
        self.absorb(now, id, output);
    }

    pub(super) fn absorb(&mut self, now: Now, id: GroupId, output: Output) {
        let Output {
            persist,
            messages,
            apply,
            reads,
            dropped,
            send_snapshot,
            install,
            changed,
            next_deadline,
        } = output;
        self.turn.touched.insert(id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.deadline = next_deadline;
        }
        if let Some(persist) = persist {
            self.turn.writes.push(GroupWrite {
                group: id,
                hard_state: persist.hard_state,
                reset_to: persist.reset_to,
                entries: persist.entries,
            });
            self.turn.persists.push((id, persist.seq));
        }
        for message in messages {
            self.turn.sends.entry(message.to).or_default().push(message);
        }
        if let Some(soft) = changed {
            self.changed(now, id, soft);
        }
        if !apply.is_empty() {
            self.apply(id, apply);
        }
        for (request, index) in reads {
            self.read_at(id, request, index);
        }
        for (request, reason) in dropped {
            self.dropped(now, id, request, reason);
        }
        let term = self.groups.get(&id).map(|group| group.soft.term).unwrap_or_default();
        for to in send_snapshot {
            self.turn.effects.push(Effect::SendSnapshot { group: id, to, term });
        }
        if let Some(meta) = install {
            self.turn.effects.push(Effect::Install { group: id, meta });
        }
    }

    fn changed(&mut self, now: Now, id: GroupId, soft: Soft) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = std::mem::replace(&mut group.soft, soft.clone());
        self.neighbours_change(now, &before.config, &soft.config);
        self.tell_absent(id);
        let led = (before.role == Role::Leader).then_some(before.term);
        if led.is_some_and(|term| soft.role != Role::Leader || soft.term != term) {
            self.abandon_stamps(id);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(leader) = soft.leader {
            // Whoever asked another leader may wait for ever; only the log knows what became of it.
            let lost: Vec<_> = self
                .requests
                .of_group(id)
                .filter(|(_, stage)| matches!(stage, Stage::Sent(sent) if *sent != leader))
                .map(|(request, _)| request)
                .collect();
            for request in lost {
                Mark::RequestLostWithLeader.hit();
                self.requests.remove(request);
                let refused = Mutant::LostMeansRefused.active();
                let refusal = if refused {
                    Refusal::NoLeader
                } else {
                    Refusal::LeaderChanged
                };
                self.turn.complete(request, Err(refusal));
            }
            if leader != self.config.me {
                for request in std::mem::take(&mut group.transfers) {
                    if self.requests.remove(request).is_some() {
                        self.turn.complete(request, Ok(Done::Transferred { leader }));
                    }
                }
            }
            group.hold_until = Now::default();
            group.read_hold_until = Now::default();
        }
        self.turn.effects.push(Effect::Changed { group: id, soft });
    }

    fn apply(&mut self, id: GroupId, entries: Vec<Entry>) {
        let (me, nonce) = (self.config.me, self.config.nonce);
        let behind_removals = self.config.cut.behind_removals && id != GroupId::META;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut items = Vec::with_capacity(entries.len());
        let mut answers = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let position = entry.position();
            let work = match entry.payload {
                Payload::Noop => Work::Noop,
                Payload::Command(envelope) => match Envelope::decode(envelope) {
                    Ok(envelope) => {
                        let request = RequestId(envelope.sequence);
                        let nonces = envelope.nonce == nonce || Mutant::AnswerOfAnotherBoot.active();
                        let mine = envelope.proposer == me && nonces;
                        let waiter = (mine && self.requests.stage(request, Stage::Committed)).then_some(request);
                        answers.extend(waiter);
                        if ends_batch(&envelope.command) {
                            group.reshaped = position.index;
                        }
                        Work::Command {
                            command: envelope.command,
                            stamp: envelope.stamp,
                            waiter,
                        }
                    }
                    Err(source) => {
                        self.turn.fatal = Some(HostError::Envelope {
                            group: id,
                            index: position.index,
                            source,
                        });
                        return;
                    }
                },
                Payload::Reads(change) => {
                    let index = position.index;
                    let request = RequestId(change.request.wrapping_sub(nonce.0));
                    if self.requests.stage(request, Stage::Committed) {
                        let early = group.after(index, request, Done::ReadsSet { index });
                        assert!(early.is_none(), "invariant: entry {index} is handed out once");
                    }
                    Work::Reads {
                        state: ReadsState {
                            spec: change.spec,
                            index,
                        },
                    }
                }
                Payload::Config(change) => {
                    group.config = group.config.after(&change.step, position.index);
                    if behind_removals && removes(&change.step) {
                        group.reshaped = position.index;
                    }
                    let request = RequestId(change.request.wrapping_sub(nonce.0));
                    if self.requests.stage(request, Stage::Committed) {
                        // Not yet applied, so this always waits.
                        let early = group.after(position.index, request, Done::Configured { index: position.index });
                        assert!(
                            early.is_none(),
                            "invariant: entry {} is handed out once",
                            position.index
                        );
                    }
                    Work::Configure {
                        change,
                        state: group.config.clone(),
                    }
                }
            };
            let item = Item { position, work };
            bytes += item.bytes();
            items.push(item);
        }
        if let Some(last) = items.last() {
            group.handed(last.position, answers, bytes);
            self.turn.effects.push(Effect::Apply { group: id, items });
        }
    }

    fn read_at(&mut self, id: GroupId, request: RequestId, index: Index) {
        if self.requests.is(request, Stage::Resolve) {
            return self.leads_since_resolve(id, request, index);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        if self.requests.contains(request)
            && let Some(done) = group.after(index, request, Done::Read { index })
        {
            self.requests.remove(request);
            self.turn.complete(request, Ok(done));
        }
    }

    fn dropped(&mut self, now: Now, id: GroupId, request: RequestId, reason: DropReason) {
        let retry_at = now.after(self.config.heartbeat_interval);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if self.requests.is(request, Stage::Read) {
            // Reads can always be asked again. Which keys this one looks at is forgotten; the leader need not know.
            group.read_hold_until = retry_at;
            group.reads.push((request, Footprint::All));
            return;
        }
        let refusal = match reason {
            // Nothing of what is refused in the very step that proposes it has entered a log.
            DropReason::NoLeader | DropReason::NotLeader | DropReason::LeaderChanged if self.turn.proposing => {
                Mark::ProposalHeldAgain.hit();
                group.hold_until = retry_at;
                self.turn.refused.insert(request);
                return;
            }
            DropReason::NoLeader => Refusal::NoLeader,
            DropReason::NotLeader => Refusal::NotLeader {
                leader: group.soft.leader,
            },
            DropReason::LeaderChanged => Refusal::LeaderChanged,
            DropReason::Overloaded => Refusal::TooManyRequests,
            DropReason::ConfigInFlight => Refusal::ChangeInFlight,
            DropReason::ConfigInvalid => Refusal::ChangeInvalid,
            DropReason::LearnerBehind => Refusal::LearnerBehind,
        };
        if let Some(pending) = self.requests.remove(request) {
            if pending.stage == Stage::Resolve {
                group.stamps.forget(request);
            }
            self.turn.complete(request, Err(refusal));
        }
    }
}
