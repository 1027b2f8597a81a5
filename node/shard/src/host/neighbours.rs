//! The nodes that this one shares groups with, and whether they are there.
//!
//! Groups that hibernate send nothing. In their place each node says to each neighbour, once a heartbeat, that it is there: one
//! small message for a pair of nodes, whatever the number of groups. A neighbour that says nothing for an election timeout is silent, and
//! one that was started anew leads nothing any more; both wake the groups that hibernate and trust in it, a bounded number at a time.
//!
//! Who is whose neighbour is what each knows of its groups' members, and that may be out of date: whoever missed a change of them may know
//! none of those that it left in charge, who hear nothing of it then and sleep without it. So a node with a group that has no leader
//! answers signs of life of nodes that it knows nothing of.

use super::{Group, Host};
use althing_raft::entry::ConfigState;
use althing_raft::ids::{GroupId, MemberId, Now, Term};
use althing_raft::io::{Input, Role};
use althing_raft::mark::Mark;
use althing_raft::message::{Body, Message};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Groups that one turn wakes because of a node: a few milliseconds' work, then everybody else has a turn.
pub const WAKES_PER_TURN_MAX: usize = 1_024;

/// Nodes unknown here that one beat answers: more than a cluster has members who could wait for this node, and who is not answered now
/// is heard of again a beat later.
const STRANGERS_PER_BEAT_MAX: usize = 64;

/// Another node.
struct Neighbour {
    /// Groups here whose configuration it belongs to.
    groups: usize,
    heard: Now,
    /// Its boot, as it last said.
    boot: Option<u64>,
    silent: bool,
}

/// What groups must hear about a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    /// It may have ended before it is a group's turn to hear of it.
    Silent,
    Restarted,
    Returned,
}

/// A group that must hear about a node.
struct Wake {
    peer: MemberId,
    group: GroupId,
    news: News,
}

/// All other nodes that matter here.
pub(super) struct Neighbours {
    all: BTreeMap<MemberId, Neighbour>,
    /// Others who said since the last beat that they are there. Answered with the next one and not at once: two nodes who both
    /// miss a leader, and know nothing of each other, would answer each other's answers as fast as the network carries them.
    strangers: BTreeSet<MemberId>,
    /// When to say again that this node is there.
    beat_at: Now,
    wakes: VecDeque<Wake>,
}

impl Neighbours {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            strangers: BTreeSet::new(),
            beat_at: Now::default(),
            wakes: VecDeque::new(),
        }
    }

    /// When something must be said or looked at.
    pub(super) fn deadline(&self) -> Option<Now> {
        if !self.wakes.is_empty() {
            return Some(Now::default());
        }
        self.beats().then_some(self.beat_at)
    }

    /// Whether there is anybody to speak to.
    fn beats(&self) -> bool {
        !self.all.is_empty() || !self.strangers.is_empty()
    }

    /// Whether nothing had been heard of it for long.
    fn heard(&mut self, now: Now, from: MemberId) -> bool {
        let Some(neighbour) = self.all.get_mut(&from) else {
            return false;
        };
        neighbour.heard = now;
        std::mem::take(&mut neighbour.silent)
    }

    fn is_silent(&self, peer: MemberId) -> bool {
        self.all.get(&peer).is_none_or(|neighbour| neighbour.silent)
    }

    /// Whether it is another boot than the last one heard of.
    fn boots(&mut self, from: MemberId, boot: u64) -> bool {
        let neighbour = self.all.get_mut(&from);
        let before = neighbour.and_then(|neighbour| neighbour.boot.replace(boot));
        before.is_some_and(|before| before != boot)
    }

    /// Neighbours that nothing was heard of for so long, since this was last asked. A host that was held up itself cannot tell: what they
    /// said may still lie before its door.
    fn fall_silent(&mut self, now: Now, silence: Duration) -> Vec<MemberId> {
        let held_up = now.since(self.beat_at) >= silence / 2;
        let mut fell = Vec::new();
        for (peer, neighbour) in &mut self.all {
            if held_up {
                neighbour.heard = now;
            } else if !neighbour.silent && now.since(neighbour.heard) >= silence {
                neighbour.silent = true;
                fell.push(*peer);
            }
        }
        fell
    }
}

impl Host {
    /// A configuration of a group here is another one.
    pub(super) fn neighbours_change(&mut self, now: Now, before: &ConfigState, after: &ConfigState) {
        if before == after {
            return;
        }
        let (before, after) = (before.members(), after.members());
        for peer in after.difference(&before).filter(|peer| **peer != self.config.me) {
            let neighbour = self.neighbours.all.entry(*peer).or_insert(Neighbour {
                groups: 0,
                heard: now,
                boot: None,
                silent: false,
            });
            neighbour.groups += 1;
        }
        for peer in before.difference(&after) {
            if let Some(neighbour) = self.neighbours.all.get_mut(peer) {
                neighbour.groups -= 1;
                if neighbour.groups == 0 {
                    self.neighbours.all.remove(peer);
                }
            }
        }
    }

    /// Whatever a node says is a sign of life.
    pub(super) fn hear_node(&mut self, now: Now, message: &Message) {
        if self.config.silence.is_none() {
            return;
        }
        if self.neighbours.heard(now, message.from) {
            Mark::NodeReturned.hit();
            self.tell_groups_of(message.from, News::Returned);
        }
        if let Body::Alive { boot } = message.body {
            if self.neighbours.boots(message.from, boot) {
                Mark::NodeRestarted.hit();
                self.tell_groups_of(message.from, News::Restarted);
            }
            let stranger = !self.neighbours.all.contains_key(&message.from);
            if stranger && self.neighbours.strangers.len() < STRANGERS_PER_BEAT_MAX && self.misses_leader() {
                self.neighbours.strangers.insert(message.from);
            }
        }
    }

    fn misses_leader(&self) -> bool {
        let mut softs = self.groups.values().map(|group| &group.soft);
        softs.any(|soft| soft.role != Role::Leader && soft.leader.is_none())
    }

    fn say_alive(&mut self, to: MemberId) {
        let boot = self.config.nonce.0;
        self.turn.sends.entry(to).or_default().push(Message {
            group: GroupId::META,
            from: self.config.me,
            to,
            term: Term::ZERO,
            body: Body::Alive { boot },
        });
    }

    fn tell_groups_of(&mut self, peer: MemberId, news: News) {
        let matters = |(_, group): &(&GroupId, &Group)| {
            let listens = group.raft.hibernates() || group.soft.role == Role::Leader;
            listens && group.soft.config.contains(peer)
        };
        let groups = self.groups.iter().filter(matters);
        let wakes = groups.map(|(id, _)| Wake { peer, group: *id, news });
        self.neighbours.wakes.extend(wakes);
    }

    /// Tells a group that begins to lead, or whose members are others, which of them are silent.
    pub(super) fn tell_absent(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id).filter(|group| group.soft.role == Role::Leader) else {
            return;
        };
        let silent = self.neighbours.all.iter().filter(|(_, neighbour)| neighbour.silent);
        let absent = silent.filter(|(peer, _)| group.soft.config.contains(**peer));
        let wakes = absent.map(|(peer, _)| Wake {
            peer: *peer,
            group: id,
            news: News::Silent,
        });
        let wakes: Vec<_> = wakes.collect();
        self.neighbours.wakes.extend(wakes);
    }

    /// Says that this node is there, looks who else is, and wakes some groups that trust in one who is not.
    pub(super) fn look_around(&mut self, now: Now) {
        let Some(silence) = self.config.silence else { return };
        if self.neighbours.beats() && self.neighbours.beat_at <= now {
            for peer in self.neighbours.fall_silent(now, silence) {
                Mark::NodeSilent.hit();
                self.tell_groups_of(peer, News::Silent);
            }
            self.neighbours.beat_at = now.after(self.config.heartbeat_interval);
            let neighbours: Vec<_> = self.neighbours.all.keys().copied().collect();
            for peer in neighbours {
                self.say_alive(peer);
            }
            for stranger in std::mem::take(&mut self.neighbours.strangers) {
                if self.neighbours.all.contains_key(&stranger) {
                    continue;
                }
                Mark::StrangerAnswered.hit();
                self.say_alive(stranger);
            }
        }
        for _ in 0..WAKES_PER_TURN_MAX {
            let Some(wake) = self.neighbours.wakes.pop_front() else {
                break;
            };
            let Wake { peer, group, news } = wake;
            match news {
                News::Silent if self.neighbours.is_silent(peer) => self.step(now, group, Input::Silent(peer)),
                News::Silent => {}
                News::Restarted => {
                    // Who follows it lets it go. A leader has heard of it, and only needs to say so.
                    self.step(now, group, Input::Silent(peer));
                    self.step(now, group, Input::Returned(peer));
                }
                News::Returned => self.step(now, group, Input::Returned(peer)),
            }
        }
    }

    /// Groups that hibernate here.
    #[must_use]
    pub fn hibernating(&self) -> usize {
        self.groups.values().filter(|group| group.raft.hibernates()).count()
    }
}
