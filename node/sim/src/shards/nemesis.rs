//! Bad luck among many groups.

use super::{Todo, World};
use crate::world::conditions::MS;
use althing_raft::ids::{GroupId, Now};
use althing_raft::io::{RequestId, Role};
use althing_shard::Event;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Crash,
    CrashAll,
    Pause,
    Split,
    OneWay,
    IsolateLeader,
    Heal,
    Transfer,
    SyncError,
    SlowSync,
    DiskFull,
    ClockJump,
}

impl World {
    /// Some bad luck, and the next one's time.
    pub(super) fn fault(&mut self) {
        if self.calm_at.is_some() {
            return;
        }
        let wait = self.rng.between(MS, 2 * self.weather.conditions.fault_every);
        self.later(wait, Todo::Fault);
        let kind = self.draw_kind();
        self.trace
            .note(self.now, 0, "fault", &[kind as u64], || format!("{kind:?}"));
        self.strike(kind);
    }

    fn draw_kind(&mut self) -> Kind {
        let weights = self.weather.conditions.faults;
        let kinds = [
            (weights.crash, Kind::Crash),
            (weights.crash_all, Kind::CrashAll),
            (weights.pause, Kind::Pause),
            (weights.split, Kind::Split),
            (weights.one_way, Kind::OneWay),
            (weights.isolate_leader, Kind::IsolateLeader),
            (weights.heal, Kind::Heal),
            (weights.transfer, Kind::Transfer),
            (weights.sync_error, Kind::SyncError),
            (weights.slow_sync, Kind::SlowSync),
            (weights.disk_full, Kind::DiskFull),
            (weights.clock_jump, Kind::ClockJump),
        ];
        let mut choice = self.rng.below(kinds.iter().map(|(weight, _)| weight).sum());
        for (weight, kind) in kinds {
            if choice < weight {
                return kind;
            }
            choice -= weight;
        }
        Kind::Heal
    }

    /// A group that somebody has.
    fn draw_group(&mut self) -> GroupId {
        let groups: Vec<GroupId> = self.watches.keys().copied().collect();
        self.rng.pick(&groups).copied().unwrap_or(GroupId::META)
    }

    fn strike(&mut self, kind: Kind) {
        let count = self.machines.len();
        let running: Vec<usize> = (0..count)
            .filter(|machine| self.machines[*machine].process.is_some())
            .collect();
        let Some(machine) = self.rng.pick(&running).copied() else {
            return;
        };
        let other = usize::try_from(self.rng.below(count as u64)).expect("invariant: few machines");
        match kind {
            Kind::Crash => self.crash_for(machine),
            Kind::CrashAll => running.into_iter().for_each(|machine| self.crash_for(machine)),
            Kind::Pause => {
                self.counts.pauses += 1;
                self.machines[machine].paused_until = self.now + self.rng.between(10, 3000) * MS;
            }
            Kind::Split => {
                self.counts.cuts += 1;
                let side = self.rng.below(1 << count);
                self.cut_off(side);
            }
            Kind::OneWay => {
                self.counts.cuts += 1;
                self.net.cut(machine, other);
            }
            Kind::IsolateLeader => {
                let group = self.draw_group();
                if let Some(leader) = self.leader(group) {
                    self.counts.cuts += 1;
                    self.cut_off(1 << leader);
                }
            }
            Kind::Heal => self.net.heal(),
            Kind::Transfer => {
                let group = self.draw_group();
                if let Some(leader) = self.leader(group) {
                    self.counts.transfers += 1;
                    let to = self.machines[other].member;
                    self.ask_host(leader, |request, deadline| Event::Transfer {
                        request,
                        group,
                        to: Some(to),
                        deadline,
                    });
                }
            }
            Kind::SyncError => {
                if let Some(process) = &mut self.machines[machine].process {
                    process.sync_fails = true;
                }
            }
            Kind::SlowSync => {
                let (wait, long) = (self.rng.between(50, 1500) * MS, self.rng.between(100, 5000) * MS);
                self.machines[machine].slow = (self.now + long, wait);
            }
            Kind::DiskFull => {
                self.machines[machine].disk.fill(true);
                let wait = self.rng.between(500, 5000) * MS;
                self.later(wait, Todo::DiskFreed { machine });
            }
            Kind::ClockJump => {
                self.counts.clock_jumps += 1;
                self.machines[machine].clock.offset += self.rng.between(1, 5000) * MS;
                if self.machines[machine].paused_until <= self.now {
                    self.poll(machine, Vec::new());
                }
            }
        }
    }

    fn crash_for(&mut self, machine: usize) {
        self.crash(machine);
        let down = self.rng.between(1, 3000) * MS;
        self.later(down, Todo::Start { machine });
    }

    /// Cuts links, which some machines notice at once, as a broken connection shows it.
    fn cut_off(&mut self, side: u64) {
        self.net.split(side);
        for machine in 0..self.machines.len() {
            for other in 0..self.machines.len() {
                let notices = self.rng.chance(500) && !self.net.reaches(machine, other);
                if notices && self.machines[machine].paused_until <= self.now {
                    let peer = self.machines[other].member;
                    self.poll(machine, vec![Event::Unreachable(peer)]);
                }
            }
        }
    }

    /// Asks a host for something that nobody waits for.
    fn ask_host(&mut self, number: usize, event: impl FnOnce(RequestId, Now) -> Event) {
        let (now, patience) = (self.now, self.weather.patience);
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        let deadline = Now(machine.clock.local(now).0 + patience);
        let Some(process) = &mut machine.process else { return };
        process.next_request += 1;
        let request = RequestId(process.next_request);
        process.open.insert(request, None);
        let event = event(request, deadline);
        let tell = Todo::Tell {
            machine: number,
            boot,
            event,
        };
        self.later(0, tell);
    }

    /// The machine whose process leads a group in the highest term, if any.
    pub(super) fn leader(&self, group: GroupId) -> Option<usize> {
        let leading = |number: usize| {
            let soft = self.view(number, group)?.raft.soft;
            (soft.role == Role::Leader).then_some((soft.term, number))
        };
        (0..self.machines.len())
            .filter_map(leading)
            .max()
            .map(|(_, number)| number)
    }
}
