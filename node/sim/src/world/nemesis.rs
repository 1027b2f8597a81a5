//! Bad luck: when what breaks, and for how long.

use super::World;
use super::conditions::{Churn, MACHINES_MAX, MS};
use super::machine::GROUP;
use super::{Todo, Waiter};
use crate::mutant::Sabotage;
use althing_raft::ids::{MemberId, Now};
use althing_shard::Event;
use althing_store::MemStore;
use althing_wal::sim_disk::SimDisk;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash,
    CrashAll,
    Pause,
    Split,
    OneWay,
    IsolateLeader,
    Heal,
    Transfer,
    SyncError,
    Membership,
}

impl World {
    /// One fault, and the next one's time.
    pub(super) fn fault(&mut self) {
        if self.calm_at.is_some() {
            return;
        }
        let wait = self.rng.between(MS, 2 * self.conditions.fault_every);
        self.later(wait, Todo::Fault);
        let weights = self.conditions.faults;
        let kinds = [
            (weights.crash, Fault::Crash),
            (weights.crash_all, Fault::CrashAll),
            (weights.pause, Fault::Pause),
            (weights.split, Fault::Split),
            (weights.one_way, Fault::OneWay),
            (weights.isolate_leader, Fault::IsolateLeader),
            (weights.heal, Fault::Heal),
            (weights.transfer, Fault::Transfer),
            (weights.sync_error, Fault::SyncError),
            (weights.membership, Fault::Membership),
        ];
        let mut choice = self.rng.below(kinds.iter().map(|(weight, _)| weight).sum());
        let mut chosen = Fault::Heal;
        for (weight, kind) in kinds {
            if choice < weight {
                chosen = kind;
                break;
            }
            choice -= weight;
        }
        self.trace
            .note(self.now, 0, "fault", &[chosen as u64], || format!("{chosen:?}"));
        let running: Vec<usize> = (0..MACHINES_MAX)
            .filter(|&machine| self.machines[machine].process.is_some())
            .collect();
        let Some(&one) = self.rng.pick(&running) else {
            return;
        };
        match chosen {
            Fault::Crash => self.crash_for_a_while(one),
            Fault::CrashAll => running.into_iter().for_each(|machine| self.crash_for_a_while(machine)),
            Fault::Pause => {
                self.counts.pauses += 1;
                self.machines[one].paused_until = self.now + self.rng.between(10, 3000) * MS;
            }
            Fault::Split => {
                let side = self.rng.below(1 << MACHINES_MAX);
                self.counts.cuts += 1;
                self.net.split(side);
                self.connections_break();
            }
            Fault::OneWay => {
                let other = self.rng.below(MACHINES_MAX as u64) as usize;
                self.counts.cuts += 1;
                self.net.cut(one, other);
            }
            Fault::IsolateLeader => {
                if let Some(leader) = self.leader() {
                    self.counts.cuts += 1;
                    self.net.split(1 << leader);
                    self.connections_break();
                }
            }
            Fault::Heal => self.net.heal(),
            Fault::Transfer => {
                let members: Vec<MemberId> = self
                    .machines
                    .iter()
                    .filter(|machine| machine.wanted)
                    .map(|machine| machine.member)
                    .collect();
                let to = if self.rng.chance(300) {
                    None
                } else {
                    self.rng.pick(&members).copied()
                };
                let leader = self.leader().unwrap_or(one);
                self.ask(leader, |request, deadline| Event::Transfer {
                    request,
                    group: GROUP,
                    to,
                    deadline,
                });
            }
            Fault::SyncError => {
                if let Some(process) = &mut self.machines[one].process {
                    process.sync_fails = true;
                }
            }
            Fault::Membership => match self.conditions.churn {
                Churn::Fixed => {}
                Churn::Scale => self.scale(),
                Churn::Joint => self.exchange(),
                Churn::Wipe => self.wipe(one),
            },
        }
    }

    fn crash_for_a_while(&mut self, machine: usize) {
        self.crash(machine);
        let wait = self.rng.between(1, 3000) * MS;
        self.later(wait, Todo::Start { machine });
    }

    /// Some machines notice at once that a peer is gone, as a broken connection shows it; others do not.
    fn connections_break(&mut self) {
        for machine in 0..MACHINES_MAX {
            for other in 0..MACHINES_MAX {
                let noticed = !self.net.reaches(machine, other) && self.rng.chance(500);
                if noticed && self.machines[machine].paused_until <= self.now {
                    let peer = self.machines[other].member;
                    self.poll(machine, vec![Event::Unreachable(peer)]);
                }
            }
        }
    }

    /// Asks a host for something that nobody waits for.
    pub(super) fn ask(&mut self, number: usize, event: impl FnOnce(althing_raft::io::RequestId, Now) -> Event) {
        let machine = &mut self.machines[number];
        if machine.paused_until > self.now {
            return;
        }
        let deadline = Now(machine.clock.local(self.now).0 + 2000 * MS);
        let Some(process) = &mut machine.process else {
            return;
        };
        let request = process.request(Waiter::Nobody);
        self.poll(number, vec![event(request, deadline)]);
    }

    /// One member more or one less is wanted, once the last change is done.
    fn scale(&mut self) {
        if !self.settled() {
            return;
        }
        let all = 0..MACHINES_MAX;
        let wanted: Vec<usize> = all.clone().filter(|&machine| self.machines[machine].wanted).collect();
        let free: Vec<usize> = all.filter(|&machine| self.machines[machine].gone).collect();
        let grow = wanted.len() <= 1 || (wanted.len() < MACHINES_MAX - 1 && self.rng.chance(500));
        let choices = if grow { &free } else { &wanted };
        let Some(&chosen) = self.rng.pick(choices) else {
            return;
        };
        self.trace
            .note(self.now, chosen as u64, "scale", &[u64::from(grow)], || {
                format!("{grow}")
            });
        self.machines[chosen].wanted = grow;
        self.machines[chosen].gone = false;
        if grow {
            // A member id is used once: whoever comes back comes as somebody else (pitfall P30).
            self.new_volume(chosen, false);
            self.later(0, Todo::Start { machine: chosen });
        }
    }

    /// Another set of members is wanted, once the last change is done: some go, some come, perhaps all.
    fn exchange(&mut self) {
        if !self.settled() {
            return;
        }
        let all: Vec<usize> = (0..MACHINES_MAX).collect();
        let here: Vec<bool> = self.machines.iter().map(|machine| machine.wanted).collect();
        let next: Vec<bool> = all
            .iter()
            .map(|&machine| {
                let known = here[machine] || self.machines[machine].gone;
                known && here[machine] != self.rng.chance(500)
            })
            .collect();
        let count = next.iter().filter(|wanted| **wanted).count();
        if next == here || count == 0 || count == MACHINES_MAX {
            return;
        }
        self.trace
            .note(self.now, count as u64, "exchange", &[], || format!("{next:?}"));
        for machine in all {
            let comes = next[machine] && !here[machine];
            self.machines[machine].wanted = next[machine];
            if comes {
                self.machines[machine].gone = false;
                // A member id is used once: whoever comes back comes as somebody else (pitfall P30).
                self.new_volume(machine, false);
                self.later(0, Todo::Start { machine });
            }
        }
    }

    /// A disk is lost, if the cluster can bear it: everybody else must be there and whole.
    fn wipe(&mut self, chosen: usize) {
        let config = self.watch.config();
        let settled =
            self.settled() && config.voters.len() >= 3 && config.voters.contains(&self.machines[chosen].member);
        if !settled || !self.config_is_known() {
            return;
        }
        self.counts.wipes += 1;
        self.crash(chosen);
        self.trace.note(self.now, chosen as u64, "wipe", &[], || {
            format!("{}", self.machines[chosen].member)
        });
        self.new_volume(chosen, self.breaks(Sabotage::SameIdAfterWipe));
        let wait = self.rng.between(1, 2000) * MS;
        self.later(wait, Todo::Start { machine: chosen });
    }

    fn new_volume(&mut self, number: usize, same_id: bool) {
        let machine = &mut self.machines[number];
        let old = machine.member;
        assert!(machine.process.is_none(), "invariant: a running machine keeps its disk");
        machine.disk = SimDisk::new(machine.rng.next_u64());
        machine.checkpoint = MemStore::default();
        if !same_id {
            machine.member = MemberId(machine.rng.next_u64() | 1);
        }
        self.watch.wiped(old);
    }

    /// Whether the configuration is the wanted one, as far as anybody knows.
    fn settled(&self) -> bool {
        let config = self.watch.config();
        let wanted = self
            .machines
            .iter()
            .filter(|machine| machine.wanted)
            .map(|machine| machine.member)
            .collect();
        config.voters == wanted && config.learners.is_empty() && !config.is_joint()
    }
}
