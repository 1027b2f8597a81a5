//! Bad luck: when what breaks, and for how long. Drawn first, as a [`Fault`] with everything that was chosen; then done. A
//! repeated run does without drawing.

use super::conditions::{Churn, MACHINES_MAX, MS};
use super::decision::{Decision, Fault};
use super::machine::GROUP;
use super::wishes::{Wish, draw_drift};
use super::{Todo, Waiter, World};
use crate::mutant::Sabotage;
use althing_raft::ids::{Index, MemberId, Now};
use althing_raft::io::RequestId;
use althing_shard::Event;
use althing_store::MemStore;
use althing_wal::sim_disk::SimDisk;

/// How long a process is down in a storm of restarts: as long as a supervisor that does not wait.
const STORM_DOWN: u64 = 20 * MS;

/// The kinds of fault, for the dice.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Crash,
    CrashAll,
    InstallCrash,
    StraySnapshot,
    Storm,
    Pause,
    Split,
    OneWay,
    IsolateLeader,
    Flap,
    Heal,
    Transfer,
    SyncError,
    SlowSync,
    DiskFull,
    ClockJump,
    Membership,
    Reads,
    Drift,
}

impl World {
    /// Some bad luck, and the next one's time.
    pub(super) fn fault(&mut self) {
        if self.calm_at.is_some() {
            return;
        }
        let wait = self.rng.between(MS, 2 * self.conditions.fault_every);
        self.later(wait, Todo::Fault);
        for fault in self.draw_faults() {
            self.strike(fault);
        }
    }

    fn draw_kind(&mut self) -> Kind {
        let weights = self.conditions.faults;
        let kinds = [
            (weights.crash, Kind::Crash),
            (weights.crash_all, Kind::CrashAll),
            (weights.install_crash, Kind::InstallCrash),
            (weights.stray_snapshot, Kind::StraySnapshot),
            (weights.storm, Kind::Storm),
            (weights.pause, Kind::Pause),
            (weights.split, Kind::Split),
            (weights.one_way, Kind::OneWay),
            (weights.isolate_leader, Kind::IsolateLeader),
            (weights.flap, Kind::Flap),
            (weights.heal, Kind::Heal),
            (weights.transfer, Kind::Transfer),
            (weights.sync_error, Kind::SyncError),
            (weights.slow_sync, Kind::SlowSync),
            (weights.disk_full, Kind::DiskFull),
            (weights.clock_jump, Kind::ClockJump),
            (weights.membership, Kind::Membership),
            (weights.reads, Kind::Reads),
            (weights.drift, Kind::Drift),
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

    fn draw_faults(&mut self) -> Vec<Fault> {
        let kind = self.draw_kind();
        let running: Vec<usize> = (0..MACHINES_MAX)
            .filter(|&machine| self.machines[machine].process.is_some())
            .collect();
        let Some(&machine) = self.rng.pick(&running) else {
            return Vec::new();
        };
        let rng = &mut self.rng;
        let other = usize::try_from(rng.below(MACHINES_MAX as u64)).expect("invariant: few machines");
        let fault = match kind {
            Kind::Crash => Fault::Crash {
                machine,
                down_ns: rng.between(1, 3000) * MS,
            },
            Kind::CrashAll => {
                let crash = |machine| Fault::Crash {
                    machine,
                    down_ns: rng.between(1, 3000) * MS,
                };
                return running.into_iter().map(crash).collect();
            }
            Kind::InstallCrash => Fault::CrashAtInstall {
                machine,
                down_ns: rng.between(1, 3000) * MS,
            },
            Kind::StraySnapshot => Fault::StraySnapshot { machine },
            Kind::Storm => Fault::Storm {
                machine,
                times: rng.between(2, 8),
                every_ns: rng.between(30, 600) * MS,
            },
            Kind::Pause => Fault::Pause {
                machine,
                for_ns: rng.between(10, 3000) * MS,
            },
            Kind::Split => Fault::Split {
                side: rng.below(1 << MACHINES_MAX),
                noticed: rng.next_u64(),
            },
            Kind::OneWay => Fault::OneWay {
                from: machine,
                to: other,
            },
            Kind::IsolateLeader => Fault::IsolateLeader {
                noticed: rng.next_u64(),
            },
            Kind::Flap => Fault::Flap {
                one: machine,
                other,
                times: 2 * rng.between(1, 10),
                every_ns: rng.between(5, 500) * MS,
            },
            Kind::Heal => Fault::Heal,
            Kind::Transfer => {
                let members: Vec<usize> = (0..MACHINES_MAX)
                    .filter(|&machine| self.machines[machine].wanted)
                    .collect();
                let to = if rng.chance(300) {
                    None
                } else {
                    rng.pick(&members).copied()
                };
                Fault::Transfer { to, instead: machine }
            }
            Kind::SyncError => Fault::SyncError { machine },
            Kind::SlowSync => Fault::SlowSync {
                machine,
                sync_ns: rng.between(50, 1500) * MS,
                for_ns: rng.between(100, 5000) * MS,
            },
            Kind::DiskFull => Fault::DiskFull {
                machine,
                for_ns: rng.between(500, 5000) * MS,
            },
            Kind::ClockJump => Fault::ClockJump {
                machine,
                by_ns: rng.between(1, 5000) * MS,
            },
            Kind::Reads => Fault::Reads {
                wish: Wish::draw(rng),
                instead: machine,
            },
            Kind::Drift => {
                let most = self.conditions.leases.map_or(0, |leases| leases.drift_ppm);
                let ppm = draw_drift(rng, most);
                Fault::Drift { machine, ppm }
            }
            Kind::Membership => match self.conditions.churn {
                Churn::Fixed => return Vec::new(),
                Churn::Scale => return self.draw_scale().into_iter().collect(),
                Churn::Joint => return self.draw_exchange().into_iter().collect(),
                Churn::Wipe => {
                    let (down_ns, at) = (rng.between(1, 2000) * MS, rng.next_u64());
                    if rng.chance(400) {
                        Fault::FlipBit { machine, at, down_ns }
                    } else {
                        Fault::Wipe { machine, down_ns }
                    }
                }
            },
        };
        vec![fault]
    }

    fn draw_scale(&mut self) -> Option<Fault> {
        let all = 0..MACHINES_MAX;
        let wanted: Vec<usize> = all.clone().filter(|&machine| self.machines[machine].wanted).collect();
        let free: Vec<usize> = all.filter(|&machine| self.machines[machine].gone).collect();
        let join = wanted.len() <= 1 || (wanted.len() < MACHINES_MAX - 1 && self.rng.chance(500));
        let choices = if join { &free } else { &wanted };
        let machine = *self.rng.pick(choices)?;
        Some(Fault::Scale { machine, join })
    }

    /// Another set of members: of those who are there and those who wait, each with an even chance.
    fn draw_exchange(&mut self) -> Option<Fault> {
        let (mut here, mut next) = (0_u64, 0);
        for machine in 0..MACHINES_MAX {
            let wanted = self.machines[machine].wanted;
            here |= u64::from(wanted) << machine;
            let known = wanted || self.machines[machine].gone;
            next |= u64::from(self.rng.chance(500) && known) << machine;
        }
        // One machine stays free, as with single steps.
        let possible = next != here && next != 0 && next.count_ones() < u32::try_from(MACHINES_MAX).unwrap_or(0);
        possible.then_some(Fault::Exchange { next })
    }

    /// Does it. In a repeated run the world may have gone another way since: what makes no sense then does nothing.
    pub(super) fn strike(&mut self, fault: Fault) {
        self.trace.note(self.now, 0, "fault", &[], || format!("{fault:?}"));
        self.record.borrow_mut().faults.push(Decision {
            at_ns: self.now,
            fault: fault.clone(),
        });
        match fault {
            Fault::Crash { machine, down_ns } => {
                self.crash(machine);
                self.later(down_ns, Todo::Start { machine });
            }
            Fault::StraySnapshot { machine } => self.stray_snapshot(machine),
            Fault::CrashAtInstall { machine, down_ns } => self.machines[machine].dies_at_install = Some(down_ns),
            Fault::Storm {
                machine,
                times,
                every_ns,
            } => {
                self.counts.storms += 1;
                self.storm(machine, times, every_ns);
            }
            Fault::Pause { machine, for_ns } => {
                self.counts.pauses += 1;
                self.machines[machine].paused_until = self.now + for_ns;
            }
            Fault::Split { side, noticed } => {
                self.counts.cuts += 1;
                self.net.split(side);
                self.connections_break(noticed);
            }
            Fault::OneWay { from, to } => {
                self.counts.cuts += 1;
                self.net.cut(from, to);
            }
            Fault::IsolateLeader { noticed } => {
                if let Some(leader) = self.leader() {
                    self.counts.cuts += 1;
                    self.net.split(1 << leader);
                    self.connections_break(noticed);
                }
            }
            Fault::Flap {
                one,
                other,
                times,
                every_ns,
            } => {
                self.counts.flaps += 1;
                self.flap(one, other, times, every_ns);
            }
            Fault::Heal => self.net.heal(),
            Fault::Transfer { to, instead } => {
                let to = to.map(|machine| self.machines[machine].member);
                let leader = self.leader().unwrap_or(instead);
                self.ask(leader, |request, deadline| Event::Transfer {
                    request,
                    group: GROUP,
                    to,
                    deadline,
                });
            }
            Fault::SyncError { machine } => {
                if let Some(process) = &mut self.machines[machine].process {
                    process.sync_fails = true;
                }
            }
            Fault::SlowSync {
                machine,
                sync_ns,
                for_ns,
            } => self.machines[machine].slow = (self.now + for_ns, sync_ns),
            Fault::DiskFull { machine, for_ns } => {
                self.machines[machine].disk.fill(true);
                self.later(for_ns, Todo::DiskFreed { machine });
            }
            Fault::ClockJump { machine, by_ns } => {
                self.counts.clock_jumps += 1;
                self.machines[machine].clock.offset += by_ns;
                if self.machines[machine].paused_until <= self.now {
                    self.poll(machine, Vec::new());
                }
            }
            Fault::Scale { machine, join } => self.scale(machine, join),
            Fault::Exchange { next } => self.exchange(next),
            Fault::Wipe { machine, down_ns } => self.wipe(machine, down_ns),
            Fault::FlipBit { machine, at, down_ns } => self.flip_bit(machine, at, down_ns),
            Fault::Reads { wish, instead } => {
                let leader = self.leader().unwrap_or(instead);
                let spec = self.spec(wish);
                self.set_reads(leader, spec);
            }
            Fault::Drift { machine, ppm } => {
                self.counts.drifts += 1;
                let now = self.now;
                self.machines[machine].clock.change(now, ppm);
            }
        }
    }

    /// One more death in a storm of restarts.
    pub(super) fn storm(&mut self, machine: usize, times: u64, every_ns: u64) {
        if times == 0 || self.calm_at.is_some() {
            return;
        }
        self.crash(machine);
        self.later(STORM_DOWN, Todo::Start { machine });
        self.later(
            STORM_DOWN + every_ns,
            Todo::Storm {
                machine,
                times: times - 1,
                every_ns,
            },
        );
    }

    /// A flapping link's next turn; it ends whole.
    pub(super) fn flap(&mut self, one: usize, other: usize, times: u64, every_ns: u64) {
        for (from, to) in [(one, other), (other, one)] {
            if times.is_multiple_of(2) && times > 0 && self.calm_at.is_none() {
                self.net.cut(from, to);
            } else {
                self.net.mend(from, to);
            }
        }
        if times > 0 {
            self.later(
                every_ns,
                Todo::Flap {
                    one,
                    other,
                    times: times - 1,
                    every_ns,
                },
            );
        }
    }

    /// Some machines notice at once that a peer is gone, as a broken connection shows it; others do not.
    fn connections_break(&mut self, noticed: u64) {
        for machine in 0..MACHINES_MAX {
            for other in 0..MACHINES_MAX {
                let notices = (noticed >> (machine * MACHINES_MAX + other)) & 1 == 1;
                let gone = notices && !self.net.reaches(machine, other);
                if gone && self.machines[machine].paused_until <= self.now {
                    let peer = self.machines[other].member;
                    self.poll(machine, vec![Event::Unreachable(peer)]);
                }
            }
        }
    }

    fn stray_snapshot(&mut self, machine: usize) {
        let leader = self.leader().filter(|leader| *leader != machine);
        let process = leader.and_then(|leader| self.machines[leader].process.as_ref());
        let view = process.and_then(|process| process.host.view(GROUP));
        if let (Some(leader), Some(view)) = (leader, view) {
            self.counts.stray_snapshots += 1;
            let to = self.machines[machine].member;
            self.send_snapshot(leader, to, view.raft.soft.term, true);
        }
    }

    /// Asks a host for something that nobody waits for.
    pub(super) fn ask(&mut self, number: usize, event: impl FnOnce(RequestId, Now) -> Event) {
        self.ask_for(Waiter::Nobody, number, event);
    }

    /// Asks a host for something.
    pub(super) fn ask_for(&mut self, waiter: Waiter, number: usize, event: impl FnOnce(RequestId, Now) -> Event) {
        let machine = &mut self.machines[number];
        if machine.paused_until > self.now {
            return;
        }
        let deadline = Now(machine.clock.local(self.now).0 + 2000 * MS);
        let Some(process) = &mut machine.process else {
            return;
        };
        let request = process.request(waiter);
        self.poll(number, vec![event(request, deadline)]);
    }

    /// One member more or one less is wanted, once the last change is done.
    fn scale(&mut self, chosen: usize, join: bool) {
        let possible = if join {
            self.machines[chosen].gone
        } else {
            self.machines[chosen].wanted && self.machines.iter().filter(|machine| machine.wanted).count() > 1
        };
        if !possible || !self.settled() {
            return;
        }
        self.trace
            .note(self.now, chosen as u64, "scale", &[u64::from(join)], || {
                format!("{join}")
            });
        self.machines[chosen].wanted = join;
        self.machines[chosen].gone = false;
        if join {
            // A member id is used once: whoever comes back comes as somebody else (pitfall P30).
            self.new_volume(chosen, false);
            self.later(0, Todo::Start { machine: chosen });
        }
    }

    /// Another set of members (a bit each) is wanted, once the last change is done: some go, some come, perhaps all.
    fn exchange(&mut self, next: u64) {
        let comes_or_stays = |machine: usize| (next >> machine) & 1 == 1;
        let possible = |machine: usize| self.machines[machine].wanted || self.machines[machine].gone;
        let known = (0..MACHINES_MAX).all(|machine| possible(machine) || !comes_or_stays(machine));
        if !known || next.count_ones() == 0 || !self.settled() {
            return;
        }
        self.trace
            .note(self.now, u64::from(next.count_ones()), "exchange", &[], || {
                format!("{next:#b}")
            });
        for machine in 0..MACHINES_MAX {
            let comes = comes_or_stays(machine) && !self.machines[machine].wanted;
            self.machines[machine].wanted = comes_or_stays(machine);
            if comes {
                self.machines[machine].gone = false;
                // A member id is used once: whoever comes back comes as somebody else (pitfall P30).
                self.new_volume(machine, false);
                self.later(0, Todo::Start { machine });
            }
        }
    }

    /// Whether the cluster can bear the loss of this machine's copy: everybody else must be there and whole.
    fn can_lose(&self, chosen: usize) -> bool {
        let config = self.watch.config();
        self.settled()
            && config.voters.len() >= 3
            && config.voters.contains(&self.machines[chosen].member)
            && self.config_is_known()
            && !self.machines.iter().any(|machine| machine.damaged)
    }

    fn wipe(&mut self, chosen: usize, down_ns: u64) {
        if !self.can_lose(chosen) {
            return;
        }
        self.counts.wipes += 1;
        self.crash(chosen);
        self.trace.note(self.now, chosen as u64, "wipe", &[], || {
            format!("{}", self.machines[chosen].member)
        });
        self.new_volume(chosen, self.breaks(Sabotage::SameIdAfterWipe));
        self.later(down_ns, Todo::Start { machine: chosen });
    }

    /// Damage in a segment that was sealed, so that no torn write explains it (pitfall P18).
    fn flip_bit(&mut self, chosen: usize, at: u64, down_ns: u64) {
        if !self.can_lose(chosen) {
            return;
        }
        let machine = &mut self.machines[chosen];
        let mut segments: Vec<_> = machine
            .disk
            .paths()
            .into_iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "wal"))
            .collect();
        segments.sort_unstable();
        let _active = segments.pop();
        let sealed = segments.len() as u64;
        if sealed == 0 {
            return;
        }
        let segment = &segments[usize::try_from(at % sealed).expect("invariant: few segments")];
        self.crash(chosen);
        let machine = &mut self.machines[chosen];
        // The first half of a segment is always in use: it was sealed because it was full.
        let offset = usize::try_from((at >> 8) % (self.conditions.segment_bytes / 2)).expect("invariant: small");
        let bit = u8::try_from((at >> 4) % 8).expect("invariant: below eight");
        if machine.disk.flip_bit(segment, offset, bit) {
            machine.damaged = true;
            self.counts.flips += 1;
        }
        self.trace.note(self.now, chosen as u64, "flip", &[offset as u64], || {
            format!("{} byte {offset} bit {bit}", segment.display())
        });
        self.later(down_ns, Todo::Start { machine: chosen });
    }

    /// A machine found its disk damaged: whoever runs the cluster gives it another one, as the log's error says.
    pub(super) fn replace_damaged(&mut self, number: usize) {
        self.counts.flips_found += 1;
        self.new_volume(number, false);
        self.later(500 * MS, Todo::Start { machine: number });
    }

    fn new_volume(&mut self, number: usize, same_id: bool) {
        let machine = &mut self.machines[number];
        let old = machine.member;
        assert!(machine.process.is_none(), "invariant: a running machine keeps its disk");
        machine.disk = SimDisk::new(machine.rng.next_u64());
        machine.checkpoint = MemStore::default();
        machine.checkpoint_at = Index::ZERO;
        machine.damaged = false;
        machine.quiet_voted = false;
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
