//! What nodes do with what they are asked, and what becomes of their logs.

use crate::spread::Rule;
use crate::spread::Violation;
use crate::spread::event::{Asker, Body, Event, Reply, Round};
use crate::spread::group::{Entry, Waiter};
use crate::spread::leader::{Held, Leader, Question, Resolve, Stamped};
use crate::spread::world::{NODES, SEQUENCER, World};
use althing_raft::ids::{GroupId, Term};
use althing_shard::sequencer;
use althing_store::Locks;
use althing_store::ops::{Command, Decision, OpError, OpResult, Revision, ShardCommand, ShardResult};

impl World {
    pub(super) fn arrive(&mut self, node: usize, group: GroupId, from: (usize, u64, u64), record: usize, body: Body) {
        let (client, life, call) = from;
        let Some(term) = self.groups[&group].believes[node] else {
            return self.reply(client, call, life, Reply::NotLeader);
        };
        match body {
            Body::Write(command) => {
                let held = Held {
                    client,
                    call,
                    record,
                    command,
                };
                let leader = self.leaders.get_mut(&(group, node)).expect("a leader has a state");
                let question = leader.hold(held);
                self.ask(group, node, term, question);
            }
            Body::Propose(command) => {
                let command = Command::Shard(command);
                let waiter = Waiter::Call { client, call };
                self.propose(group, node, command, None, waiter);
            }
            Body::Read(ranges) => {
                let confirmed = self.broken(Rule::ReadsConfirm);
                let waits = !self.broken(Rule::ReadsWaitForTickets);
                let leader = self.leaders.get_mut(&(group, node)).expect("a leader has a state");
                let number = leader.number();
                let read = Resolve {
                    client,
                    call,
                    ranges,
                    confirmed,
                    waits_for: if waits { leader.under_way() } else { Default::default() },
                };
                leader.reads.insert(number, read);
                let delay = self.delay();
                let round = Round::Read(number);
                self.at(delay, Event::Check { group, node, round });
                self.read(group, node);
            }
            Body::Revisions(count) => {
                let asker = Asker::Client { client, life, call };
                self.at(0, Event::Ask { node, asker, count });
            }
        }
    }

    /// A leader asks the sequencer.
    pub(super) fn ask(
        &mut self,
        group: GroupId,
        node: usize,
        term: u64,
        questions: impl IntoIterator<Item = Question>,
    ) {
        for Question { number, count } in questions {
            // Whoever is asked in vain does not answer; some of the next questions go elsewhere.
            let sequencer = self.groups[&SEQUENCER].leader.unwrap_or(0);
            let to = if self.chaos && self.rng.chance(200) {
                self.rng.below(NODES as u64) as usize
            } else {
                sequencer
            };
            let question = number;
            let asker = Asker::Leader {
                group,
                node,
                term,
                question,
            };
            self.send(Event::Ask { node: to, asker, count }, true);
        }
    }

    pub(super) fn told(&mut self, group: GroupId, node: usize, term: u64, question: u64, first: Option<Revision>) {
        let Some(leader) = self.leaders.get_mut(&(group, node)) else {
            return;
        };
        if leader.term != term && self.run.broken != Some(Rule::StampsDieWithLeadership) {
            return;
        }
        let ready = leader.stamped(question, first);
        if self.broken(Rule::StampsDieWithLeadership) && !self.groups[&group].leads(node) {
            return self.stash.entry((group, node)).or_default().extend(ready);
        }
        self.propose_stamped(group, node, ready);
        let leader = self.leaders.get_mut(&(group, node)).expect("it was there just now");
        let questions = leader.again_if_room();
        self.ask(group, node, term, questions);
    }

    pub(super) fn propose_stamped(&mut self, group: GroupId, node: usize, ready: Stamped) {
        for (ticket, held, stamp) in ready {
            let waiter = Waiter::Stamped {
                client: held.client,
                call: held.call,
                ticket,
                record: held.record,
            };
            self.propose(group, node, held.command, Some(stamp), waiter);
        }
    }

    pub(super) fn propose(
        &mut self,
        group: GroupId,
        node: usize,
        command: Command,
        stamp: Option<Revision>,
        waiter: Waiter,
    ) {
        let delay = self.rng.between(100, 1500);
        let of = self.groups.get_mut(&group).expect("groups stay");
        // What a replaced leader proposes never commits, and nobody hears of it.
        if of.leads(node) {
            let term = of.term;
            of.log.push_back(Entry { command, stamp, waiter });
            self.at(delay, Event::Commit { group, term });
        }
    }

    pub(super) fn commit(&mut self, group: GroupId, term: u64) {
        let of = self.groups.get_mut(&group).expect("groups stay");
        if of.term != term {
            return;
        }
        if let (Some(node), Some(entry)) = (of.leader, of.log.pop_front()) {
            self.apply(group, entry, Some(node));
        }
    }

    /// Applies an entry, and tells who waits at the node that leads.
    pub(super) fn apply(&mut self, group: GroupId, entry: Entry, node: Option<usize>) {
        let result = self.groups[&group].apply(entry.command.clone(), entry.stamp);
        self.watch(&entry, &result.result);
        match entry.waiter {
            Waiter::Raise { attempt } => {
                let done = matches!(result.result, Ok(OpResult::Txn { succeeded: true, .. }));
                if let Some(node) = node {
                    self.at(0, Event::Raised { node, attempt, done });
                }
            }
            Waiter::Call { client, call } | Waiter::Stamped { client, call, .. } => {
                let Some(node) = node else { return };
                if let Waiter::Stamped { ticket, .. } = entry.waiter
                    && let Some(leader) = self.leaders.get_mut(&(group, node))
                {
                    leader.applied(ticket);
                    self.read(group, node);
                }
                let life = self.clients[client].life;
                self.reply(client, call, life, Reply::Applied(result.revision, result.result));
            }
        }
    }

    /// Writes down what takes effect.
    pub(super) fn watch(&mut self, entry: &Entry, result: &Result<OpResult, OpError>) {
        let effect = match (&entry.waiter, &entry.command, result) {
            (Waiter::Stamped { record, .. }, _, Ok(_)) => entry.stamp.map(|revision| (revision, *record)),
            (
                _,
                Command::Shard(ShardCommand::Finish { txn, decision }),
                Ok(OpResult::Shard(ShardResult::Finished(Some(_)))),
            ) => match decision {
                Decision::Commit { revision, .. } => Some((*revision, self.txns[txn])),
                Decision::Abort => None,
            },
            _ => None,
        };
        let Some((revision, record)) = effect else { return };
        match self.effects.insert(revision, record) {
            None => {
                if matches!(entry.command, Command::Shard(_)) {
                    self.counts.spread += 1;
                }
            }
            // The same transaction on another shard.
            Some(before) if before == record && entry.stamp.is_none() => {}
            Some(before) => {
                let text = format!("requests {before} and {record} both have revision {revision}");
                self.violation = Some(Violation(text));
            }
        }
    }

    pub(super) fn checked(&mut self, group: GroupId, node: usize, round: Round, led: Option<u64>) {
        match round {
            Round::Sequencer(round) => {
                let term = led.map(Term);
                self.sequence(node, sequencer::Input::Confirmed { round, term });
            }
            Round::Read(number) => {
                let Some(leader) = self.leaders.get_mut(&(group, node)) else {
                    return;
                };
                match led {
                    Some(term) if term == leader.term => {
                        if let Some(read) = leader.reads.get_mut(&number) {
                            read.confirmed = true;
                        }
                        self.read(group, node);
                    }
                    Some(_) | None => drop(leader.reads.remove(&number)),
                }
            }
        }
    }

    /// Answers the reads that have waited for everything.
    pub(super) fn read(&mut self, group: GroupId, node: usize) {
        let ready = self.leaders.get_mut(&(group, node)).map(Leader::ready);
        let locks = if self.broken(Rule::ReadsHeedLocks) {
            Locks::Ignore
        } else {
            Locks::Heed
        };
        for read in ready.unwrap_or_default() {
            let mvcc = self.groups[&group].state_of(node);
            let found = read.ranges.iter().map(|range| {
                let answer = mvcc.range_with(range, locks).expect("memory reads");
                answer.map(|(_, result)| result)
            });
            let found = found.collect::<Result<Vec<_>, _>>();
            let life = self.clients[read.client].life;
            self.reply(read.client, read.call, life, Reply::Read(found));
        }
    }
}
