//! Who leads: accidents, elections, and the sequencer that moves with the leader of its group.

use crate::spread::event::{Asker, Event, Reply, Round};
use crate::spread::group::Waiter;
use crate::spread::leader::Leader;
use crate::spread::world::{CLIENTS, MS, NODES, SEQUENCER, World};
use crate::spread::{Rule, Workload};
use althing_raft::ids::{GroupId, Term};
use althing_shard::sequencer::{self, CEILING_KEY, CEILING_STEP};
use althing_store::ops::{Command, KeyRange, Range, Revision};
use bytes::Bytes;

impl World {
    pub(super) fn nemesis(&mut self) {
        if !self.chaos {
            return;
        }
        let groups: Vec<_> = self.groups.keys().copied().collect();
        match self.rng.below(10) {
            0..5 => {
                let group = *self.rng.pick(&groups).expect("there are groups");
                self.at(0, Event::Elect { group });
            }
            5 | 6 => self.at(0, Event::Elect { group: SEQUENCER }),
            7 => {
                let client = self.rng.below(CLIENTS as u64) as usize;
                self.crash(client);
            }
            _ => {}
        }
        let pause = self.rng.between(2 * MS, self.weather.pause);
        self.at(pause, Event::Nemesis);
    }

    /// A client dies, with all that it was doing, and comes back with nothing.
    pub(super) fn crash(&mut self, client: usize) {
        let this = &mut self.clients[client];
        if !this.alive || !self.chaos {
            return;
        }
        this.alive = false;
        if this.current.take().is_some() && self.run.workload == Workload::LongFork && client < 2 {
            // It counts to there again.
            this.step -= 1;
        }
        this.tasks.clear();
        this.calls.clear();
        this.met.clear();
        self.counts.crashes += 1;
        let pause = self.rng.between(MS, 20 * MS);
        self.at(pause, Event::Reborn { client });
    }

    /// A group gets another leader, or the same one again, after a while without any.
    pub(super) fn elect(&mut self, group: GroupId) {
        self.counts.elections.0 += 1;
        self.counts.elections.1 += u64::from(group == SEQUENCER);
        let keep = {
            let of = self.groups.get_mut(&group).expect("groups stay");
            of.term += 1;
            of.leader = None;
            of.log.len() as u64
        };
        // Who is elected has some of what was not committed yet.
        let keep = self.rng.below(keep + 1) as usize;
        let of = self.groups.get_mut(&group).expect("groups stay");
        let before: Vec<_> = (0..NODES)
            .filter_map(|node| of.believes[node].map(|term| (node, term)))
            .collect();
        for (node, _) in &before {
            if !of.stale.contains_key(node) {
                of.freeze(*node);
            }
        }
        let entries: Vec<_> = of.log.drain(..).take(keep).collect();
        let term = of.term;
        for entry in entries {
            self.apply(group, entry, None);
        }
        for (node, term) in before {
            let late = self.rng.between(MS, 30 * MS);
            self.at(late, Event::Learns { group, node, term });
        }
        let node = self.rng.below(NODES as u64) as usize;
        let pause = self.rng.between(200, 5 * MS);
        self.at(pause, Event::Elected { group, term, node });
    }

    pub(super) fn elected(&mut self, group: GroupId, term: u64, node: usize) {
        let of = self.groups.get_mut(&group).expect("groups stay");
        if of.term != term {
            return;
        }
        of.stale.remove(&node);
        of.leader = Some(node);
        let again = of.believes[node].replace(term).is_some();
        if group == SEQUENCER {
            if again {
                self.sequence(node, sequencer::Input::Deposed);
            }
            return self.counts_up(node);
        }
        let key = (group, node);
        match self.leaders.get_mut(&key) {
            Some(leader) if self.run.broken == Some(Rule::StampsDieWithLeadership) => leader.term = term,
            Some(_) | None => drop(self.leaders.insert(key, Leader::new(term))),
        }
        self.at(5 * MS, Event::LeaderTick { group, node, term });
        let ready = self.stash.remove(&key).unwrap_or_default();
        self.propose_stamped(group, node, ready);
    }

    pub(super) fn learns(&mut self, group: GroupId, node: usize, term: u64) {
        let of = self.groups.get_mut(&group).expect("groups stay");
        if of.believes[node] != Some(term) {
            return;
        }
        of.believes[node] = None;
        of.stale.remove(&node);
        if group == SEQUENCER {
            self.sequence(node, sequencer::Input::Deposed);
        } else if !self.broken(Rule::StampsDieWithLeadership) {
            self.leaders.remove(&(group, node));
        }
    }

    /// A sequencer begins to count from what its group has agreed on.
    pub(super) fn counts_up(&mut self, node: usize) {
        let of = &self.groups[&SEQUENCER];
        let range = Range::of(KeyRange::Single(Bytes::from_static(CEILING_KEY)));
        let (_, row) = of
            .mvcc
            .range(&range)
            .expect("memory reads")
            .expect("nothing is compacted");
        let ceiling = row.kvs.first().and_then(|kv| sequencer::parse_ceiling(&kv.value));
        let ceiling = ceiling
            .filter(|_| self.broken(Rule::StartsAboveCeiling))
            .map_or(ceiling, |ceiling| Some(Revision((ceiling.0 - CEILING_STEP).max(1))));
        let term = Term(of.term);
        self.sequence(node, sequencer::Input::Elected { term, ceiling });
    }

    pub(super) fn sequence(&mut self, node: usize, input: sequencer::Input) {
        let mut out = Vec::new();
        self.sequencers[node].turn([input], &mut out);
        for output in out {
            match output {
                sequencer::Output::Confirm { round } => {
                    let (group, round) = (SEQUENCER, Round::Sequencer(round));
                    if self.broken(Rule::SequencerConfirms) {
                        let led = self.groups[&group].believes[node];
                        self.at(
                            0,
                            Event::Checked {
                                group,
                                node,
                                round,
                                led,
                            },
                        );
                    } else {
                        let delay = self.delay();
                        self.at(delay, Event::Check { group, node, round });
                    }
                }
                sequencer::Output::Raise { attempt, from, to } => {
                    let mut raise = sequencer::raise(from, to);
                    if self.broken(Rule::StartsAboveCeiling) {
                        raise.compares.clear();
                    }
                    self.propose(SEQUENCER, node, Command::Txn(raise), None, Waiter::Raise { attempt });
                    // What nobody answers has failed after a while.
                    let done = false;
                    self.at(30 * MS, Event::Raised { node, attempt, done });
                }
                sequencer::Output::Restart => {
                    self.at(3 * MS, Event::Restart { node });
                }
                sequencer::Output::Answer { request, first } => match self.askers.remove(&request) {
                    Some(Asker::Client { client, life, call }) => {
                        self.reply(client, call, life, Reply::Revision(first));
                    }
                    Some(Asker::Leader {
                        group,
                        node,
                        term,
                        question,
                    }) if first.is_some() => {
                        let told = Event::Told {
                            group,
                            node,
                            term,
                            question,
                            first,
                        };
                        self.send(told, true);
                    }
                    // It asks again by itself.
                    Some(Asker::Leader { .. }) | None => {}
                },
            }
        }
    }
}
