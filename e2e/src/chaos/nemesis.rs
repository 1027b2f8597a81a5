//! Carries a plan out: begins and heals faults at their times, and starts again what ends by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;

use super::cluster::Cluster;
use super::fault::{Cut, Fault, MemberIndex, Planned, Victims, Way, minority};
use super::member::{Member, copy_folder};
use super::plan::FaultPlan;
use super::proxy::Path;
use crate::command::wait_until;
use crate::error::{Error, Result};
use crate::workload::Workload;

/// How exactly times are kept.
const TICK: Duration = Duration::from_millis(20);
/// How long a process that ended by itself stays down: what a supervisor waits.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// How long connections that flap stay up and stay down.
const FLAP: Duration = Duration::from_millis(250);
/// For so long after a volume has space again, a process may still end of it.
const DISK_GRACE: Duration = Duration::from_secs(3);
/// How long the rolled-back majority has to elect somebody.
const ROLL_BACK_LIMIT: Duration = Duration::from_secs(30);

/// A fault that was carried out.
#[derive(Debug, Clone)]
pub struct Struck {
    /// What.
    pub fault: Fault,
    /// Whom it hit.
    pub whom: Vec<MemberIndex>,
    /// When it had begun.
    pub begun: Duration,
    /// When it was healed.
    pub ended: Duration,
}

/// A fault under way.
struct Active {
    planned: Planned,
    whom: Vec<MemberIndex>,
    begun: Duration,
}

pub(super) struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    workload: &'a Workload,
    say: &'a dyn Fn(&str),
    active: Vec<Active>,
    struck: Vec<Struck>,
    /// Members that are down because a fault says so.
    held: BTreeSet<MemberIndex>,
    restarts: BTreeMap<MemberIndex, Duration>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(cluster: &'a mut Cluster, workload: &'a Workload, say: &'a dyn Fn(&str)) -> Self {
        Self {
            cluster,
            workload,
            say,
            active: Vec::new(),
            struck: Vec::new(),
            held: BTreeSet::new(),
            restarts: BTreeMap::new(),
        }
    }

    /// Returns at the plan's end, with all that was done.
    pub(super) fn run(mut self, plan: &FaultPlan) -> Result<Vec<Struck>> {
        let mut waiting = plan.faults.iter().peekable();
        loop {
            let now = self.workload.elapsed();
            self.supervise(now)?;
            while let Some(over) = self.active.iter().position(|active| active.planned.until <= now) {
                let active = self.active.remove(over);
                self.heal(active)?;
            }
            if let Some(planned) = waiting.next_if(|planned| planned.at <= now) {
                self.begin(planned.clone())?;
            }
            self.flap(now);
            if now >= plan.end && self.active.is_empty() && waiting.peek().is_none() {
                return Ok(self.struck);
            }
            std::thread::sleep(TICK);
        }
    }

    /// What a supervisor does, be it Kubernetes or `althing up`.
    fn supervise(&mut self, now: Duration) -> Result<()> {
        for member in self.cluster.all() {
            if self.cluster.members[member.0].has_ended(now)? {
                (self.say)(&format!(
                    "{:6.1} s  {} ended by itself",
                    now.as_secs_f64(),
                    self.name(member)
                ));
                self.restarts.insert(member, now + RESTART_PAUSE);
            }
        }
        let due: Vec<_> = self
            .restarts
            .iter()
            .filter(|(member, at)| **at <= now && !self.held.contains(member))
            .map(|(member, _)| *member)
            .collect();
        for member in due {
            self.restarts.remove(&member);
            self.start(member)?;
        }
        Ok(())
    }

    fn start(&mut self, member: MemberIndex) -> Result<()> {
        if self.cluster.members[member.0].is_running() {
            return Ok(());
        }
        self.cluster.start_member(member)
    }

    fn name(&self, member: MemberIndex) -> String {
        self.cluster.members[member.0].name.clone()
    }

    fn begin(&mut self, planned: Planned) -> Result<()> {
        let whom = self.whom(&planned.fault);
        match &planned.fault {
            Fault::Kill(_) => {
                for member in &whom {
                    self.held.insert(*member);
                    self.cluster.members[member.0].kill()?;
                }
            }
            Fault::Pause(_) => {
                for member in &whom {
                    self.cluster.members[member.0].signal(Signal::STOP)?;
                }
            }
            Fault::Isolate { cut, .. } => self.between(&whom, |_| true, Path::Cut(*cut)),
            Fault::OneWay { way, cut, .. } => {
                for other in self.others(&whom) {
                    for member in &whom {
                        let (from, to) = match way {
                            Way::Deaf => (other, *member),
                            Way::Mute => (*member, other),
                        };
                        self.cluster.network.set(from, to, Path::Cut(*cut));
                    }
                }
            }
            Fault::Bridge { cut, .. } => {
                let others = self.others(&whom);
                let (one, _) = others.split_at(others.len() / 2);
                let middle = whom.clone();
                self.between(one, |other| !middle.contains(&other), Path::Cut(*cut));
            }
            Fault::Split { cut, .. } => self.between(&whom, |_| true, Path::Cut(*cut)),
            Fault::Flap(_) => {}
            Fault::Slow { delay_ms, .. } => {
                self.between(&whom, |_| true, Path::Slow(Duration::from_millis(*delay_ms)));
            }
            Fault::DiskFull { fill, .. } => {
                for member in &whom {
                    let member = &mut self.cluster.members[member.0];
                    member.disk_full_until = Duration::MAX;
                    let volumes = self.cluster.common.volumes.as_ref();
                    let volumes = volumes.ok_or_else(|| needs("disk full", "volumes"))?;
                    volumes.fill(&member.volume(), *fill)?;
                }
            }
            Fault::Clock { ppm, .. } => {
                if self.cluster.common.clock.is_none() {
                    return Err(needs("a clock's rate", "clocks"));
                }
                for member in &whom {
                    self.restart_at_rate(*member, *ppm)?;
                }
            }
            Fault::RollBack => self.remember_volumes()?,
        }
        let begun = self.workload.elapsed();
        let names: Vec<_> = whom.iter().map(|member| self.name(*member)).collect();
        (self.say)(&format!(
            "{:6.1} s  {}: {}",
            begun.as_secs_f64(),
            planned.fault,
            names.join(", ")
        ));
        self.active.push(Active { planned, whom, begun });
        Ok(())
    }

    fn heal(&mut self, active: Active) -> Result<()> {
        let Active { planned, whom, begun } = active;
        match &planned.fault {
            Fault::Kill(_) => {
                for member in &whom {
                    self.held.remove(member);
                    self.start(*member)?;
                }
            }
            Fault::Pause(_) => {
                for member in &whom {
                    self.cluster.members[member.0].signal(Signal::CONT)?;
                }
            }
            // Two faults of the paths are never under way at one time.
            Fault::Isolate { .. }
            | Fault::OneWay { .. }
            | Fault::Bridge { .. }
            | Fault::Split { .. }
            | Fault::Flap(_)
            | Fault::Slow { .. } => self.cluster.network.heal(),
            Fault::DiskFull { .. } => {
                for member in &whom {
                    let member = &mut self.cluster.members[member.0];
                    member.disk_full_until = self.workload.elapsed() + DISK_GRACE;
                    if let Some(volumes) = &self.cluster.common.volumes {
                        volumes.free(&member.volume())?;
                    }
                }
            }
            Fault::Clock { .. } => {
                for member in &whom {
                    self.restart_at_rate(*member, 0)?;
                }
            }
            Fault::RollBack => self.roll_back()?,
        }
        let ended = self.workload.elapsed();
        self.struck.push(Struck {
            fault: planned.fault,
            whom,
            begun,
            ended,
        });
        Ok(())
    }

    /// Whom a fault means, now.
    fn whom(&self, fault: &Fault) -> Vec<MemberIndex> {
        let count = self.cluster.members.len();
        let of = |victims: &Victims| match victims {
            Victims::One(who) => vec![self.cluster.resolve(*who)],
            Victims::Minority => {
                let leader = self.cluster.leader().unwrap_or(MemberIndex(0));
                (0..minority(count))
                    .map(|number| MemberIndex((leader.0 + number) % count))
                    .collect()
            }
            Victims::All => self.cluster.all().collect(),
        };
        match fault {
            Fault::Kill(victims) | Fault::Pause(victims) => of(victims),
            Fault::Isolate { who, .. }
            | Fault::OneWay { who, .. }
            | Fault::Bridge { middle: who, .. }
            | Fault::Flap(who)
            | Fault::Slow { who, .. }
            | Fault::DiskFull { who, .. }
            | Fault::Clock { who, .. } => vec![self.cluster.resolve(*who)],
            Fault::Split { minority, .. } => minority.clone(),
            Fault::RollBack => self.cluster.all().collect(),
        }
    }

    fn others(&self, whom: &[MemberIndex]) -> Vec<MemberIndex> {
        self.cluster.all().filter(|member| !whom.contains(member)).collect()
    }

    /// Both ways between these and those of the others that count.
    fn between(&self, whom: &[MemberIndex], counts: impl Fn(MemberIndex) -> bool, path: Path) {
        for other in self.others(whom).into_iter().filter(|other| counts(*other)) {
            for member in whom {
                self.cluster.network.set(*member, other, path);
                self.cluster.network.set(other, *member, path);
            }
        }
    }

    fn flap(&self, now: Duration) {
        for active in &self.active {
            if let Fault::Flap(_) = active.planned.fault {
                let phase = (now.saturating_sub(active.begun)).as_millis() / FLAP.as_millis();
                let path = if phase.is_multiple_of(2) {
                    Path::Cut(Cut::Refuse)
                } else {
                    Path::Open
                };
                self.between(&active.whom, |_| true, path);
            }
        }
    }

    fn restart_at_rate(&mut self, member: MemberIndex, ppm: i32) -> Result<()> {
        let state = &mut self.cluster.members[member.0];
        state.ppm = ppm;
        state.kill()?;
        self.restarts.remove(&member);
        self.start(member)
    }

    fn majority(&self) -> Vec<MemberIndex> {
        let count = self.cluster.members.len();
        self.cluster.all().take(count - minority(count)).collect()
    }

    fn kill_all(&mut self) -> Result<()> {
        self.cluster.members.iter_mut().try_for_each(Member::kill)
    }

    fn remember_volumes(&mut self) -> Result<()> {
        self.kill_all()?;
        for member in self.majority() {
            let volume = self.cluster.members[member.0].volume();
            copy_folder(&volume, &volume.with_file_name("copy"))?;
        }
        let all: Vec<_> = self.cluster.all().collect();
        all.into_iter().try_for_each(|member| self.start(member))
    }

    /// The majority first, and alone until it has a leader: the others, who know better, would save what is lost.
    fn roll_back(&mut self) -> Result<()> {
        self.kill_all()?;
        let majority = self.majority();
        for member in &majority {
            let volume = self.cluster.members[member.0].volume();
            let copy = volume.with_file_name("copy");
            std::fs::remove_dir_all(&volume).map_err(Error::io("remove", &volume))?;
            std::fs::rename(&copy, &volume).map_err(Error::io("rename", &copy))?;
            self.start(*member)?;
        }
        wait_until("the rolled-back majority has a leader", ROLL_BACK_LIMIT, || {
            self.cluster.leader().ok_or_else(|| "nobody".to_owned()).map(drop)
        })?;
        self.workload.wait_for_writes(20, ROLL_BACK_LIMIT)?;
        for member in self.others(&majority) {
            self.start(member)?;
        }
        Ok(())
    }
}

fn needs(what: &str, ability: &str) -> Error {
    Error::refused(
        format!("the plan has {what}, and the cluster was started without {ability}"),
        "start it with all that the plan needs",
    )
}
