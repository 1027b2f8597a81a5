//! The ways to answer linearizable reads, side by side, on five members whose sites lie far apart.
//!
//! Members are real processes on this machine; what they send to each other passes a proxy that is late by the distance of their
//! sites ([`sites`]), without a limit on how much is on its way. Clients sit at every site and ask the member there. Modes take
//! turns; what clients see from the first request to the last, across switches, kills and changes of rosters, is one history
//! and goes to the judge.
//!
//! [`sites`], [`plan`], [`measure`], [`report`] and [`chart`] are pure; `bed` and this module touch the machine.

mod bed;
pub mod chart;
pub mod measure;
pub mod plan;
pub mod report;
pub mod sites;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use althing_sim::lin;

use super::{Folder, filesystem};
use crate::error::{Error, Result};
use crate::progress::Step;
use crate::workload::{Attach, Mix, Plan, Reads, Workload};
use bed::Bed;
use measure::{Samples, Traffic, Window, change, lifted, write_gap};
use plan::Mode;
use report::{Change, Judged, ModeLine, Report, Setting, Trials};
use sites::SITES;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Times that every mode has its turn.
    pub rounds: usize,
    /// Seconds of each turn.
    pub seconds: u64,
    /// Puts in a thousand requests.
    pub writes_per_mille: u16,
    /// Times that a responder is killed, and that rosters change and change back.
    pub trials: usize,
    /// Our program.
    pub node: PathBuf,
}

/// Nobody asks for so long in each turn, to know what members send anyway; and reads alone are asked for as long.
const TRAFFIC: Duration = Duration::from_secs(3);
/// Requests that are under way when the mix changes are over by then: above the longest way and a held read.
const DRAIN: Duration = Duration::from_millis(800);
/// How long writing every key once may take: some round trips for every client's share of them.
const FILL_LIMIT: Duration = Duration::from_secs(60);
/// Keys are for the whole run: the judge needs not be spared, every key has some hundred requests.
const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Measures.
///
/// # Errors
/// If a member does not start or knows one way to read only, or another one than the first comes to lead.
pub fn reads(options: &Options) -> Result<Report> {
    let folder = Folder::create()?;
    let filesystem = filesystem(&folder.0)?;
    let step = Step::begin(format!(
        "starting {SITES} members on {filesystem}, and moving them apart"
    ));
    let bed = Bed::start(&options.node, &folder.0)?;
    bed.view(0)
        .map_err(|what| Error::refused(what, "give --node a program that has roster leases"))?;
    step.done();
    let step = Step::begin(format!("writing {} keys", plan::KEYS));
    let workload = Workload::start(Plan {
        clients: plan::CLIENTS_PER_SITE * SITES as u32,
        keys: plan::KEYS,
        period: plan::PERIOD,
        request_timeout: plan::REQUEST_TIMEOUT,
        mix: Mix::Fill,
        reads: Reads::Linearizable,
        attach: Attach::Stay,
        key_life: KEY_LIFE,
        value_bytes: plan::VALUE_BYTES,
        ..Plan::new(bed.endpoints())
    })?;
    let mut run = Run { bed, workload };
    run.workload.wait_for_writes(plan::KEYS as usize, FILL_LIMIT)?;
    step.done();

    let mut windows: BTreeMap<Mode, Vec<Window>> = BTreeMap::new();
    // Times in which reads owe the revisions of their keys only.
    let mut of_keys = Vec::new();
    let mut of_keys_since = None;
    let mut traffic: BTreeMap<Mode, (Traffic, Vec<Window>)> = BTreeMap::new();
    for (turn, mode) in plan::turns(options.rounds).into_iter().enumerate() {
        let step = Step::begin(format!("round {}: {}", turn / Mode::ALL.len() + 1, mode.name()));
        let asked = run.workload.elapsed();
        run.bed.switch(mode)?;
        of_keys.extend(of_keys_since.take().map(|from| run.since(from)));
        if mode == Mode::RosterLeaseOfKeys {
            of_keys_since = Some(asked);
        }
        step.note("counting messages");
        let (seen, window) = run.traffic()?;
        let (sum, all) = traffic.entry(mode).or_default();
        *sum = sum.plus(seen);
        all.push(window);
        step.note("measuring");
        let window = run.window(
            Mix::Reads {
                writes_per_mille: options.writes_per_mille,
            },
            Duration::from_secs(options.seconds),
        )?;
        windows.entry(mode).or_default().push(window);
        step.done();
    }

    run.bed.switch(Mode::RosterLease)?;
    of_keys.extend(of_keys_since.take().map(|from| run.since(from)));
    run.workload.ask_for(Mix::Reads {
        writes_per_mille: plan::WRITES_PER_MILLE_IN_GAPS,
    });
    sleep(DRAIN);
    let calm = run.for_a_while(plan::BEFORE);
    let mut killed = Vec::new();
    for trial in 1..=options.trials {
        let step = Step::begin(format!("{} is killed, {trial}", sites::NAMES[plan::KILLED]));
        killed.push(run.kill_responder()?);
        step.done();
    }
    let (mut changes, everybody) = (Vec::new(), (0..SITES).collect::<Vec<_>>());
    let others: Vec<usize> = everybody.iter().copied().filter(|site| *site != plan::KILLED).collect();
    for trial in 1..=options.trials {
        let step = Step::begin(format!("rosters change, {trial}"));
        for responders in [&others, &everybody] {
            changes.push(run.change_roster(responders)?);
        }
        step.done();
    }

    let step = Step::begin("judging what clients saw");
    let summary = run.workload.stop()?;
    let history = &summary.history;
    let verdict = lin::check(&lifted(history, &of_keys), lin::Options::default());
    let lost = summary.lost_writes();
    let judged = Judged {
        requests: history.events.len(),
        linearizable: verdict.passed() && lost.is_empty(),
    };
    if judged.linearizable {
        step.done();
    } else {
        let kept = std::env::temp_dir().join(format!("althing-bench-reads-{}.jsonl", std::process::id()));
        summary.keep(&kept)?;
        eprintln!(
            "{verdict}{} acknowledged writes are lost; history: {}",
            lost.len(),
            kept.display()
        );
    }
    let lines = Mode::ALL.into_iter().filter_map(|mode| {
        let rounds: Vec<Samples> = windows
            .get(&mode)?
            .iter()
            .map(|window| Samples::of(history, *window))
            .collect();
        let (mut traffic, reading) = traffic.get(&mode)?.clone();
        for window in reading {
            let samples = Samples::of(history, window);
            traffic.reads += samples.reads.iter().map(Vec::len).sum::<usize>();
        }
        ModeLine::new(mode, &rounds, traffic)
    });
    let modes: Vec<ModeLine> = lines.collect();
    if modes.len() < Mode::ALL.len() {
        return Err(Error::refused(
            "a site had no answered read or write in a mode",
            "measure for longer, or allow more writes",
        ));
    }
    let trials = Trials {
        killed: killed.iter().map(|window| write_gap(history, *window)).collect(),
        changes: changes
            .iter()
            .map(|(took, window)| Change {
                took: *took,
                write_gap: write_gap(history, *window),
            })
            .collect(),
        calm: write_gap(history, calm),
    };
    let setting = Setting {
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        filesystem,
        distances: sites::distances(),
        clients_per_site: plan::CLIENTS_PER_SITE,
        period_ms: u64::try_from(plan::PERIOD.as_millis()).unwrap_or(u64::MAX),
        writes_per_mille: options.writes_per_mille,
        keys: plan::KEYS,
        value_bytes: plan::VALUE_BYTES,
        rounds: options.rounds,
        seconds: options.seconds,
        althing: env!("CARGO_PKG_VERSION"),
    };
    Ok(Report::new(setting, modes, sites::NAMES[plan::KILLED], &trials, judged))
}

/// Members and their clients.
struct Run {
    bed: Bed,
    workload: Workload,
}

impl Run {
    fn since(&self, from: Duration) -> Window {
        let to = self.workload.elapsed();
        Window { from, to }
    }

    fn for_a_while(&self, length: Duration) -> Window {
        let from = self.workload.elapsed();
        sleep(length);
        self.since(from)
    }

    /// Clients ask for this; what is under way from before does not count.
    fn window(&self, mix: Mix, length: Duration) -> Result<Window> {
        self.workload.ask_for(mix);
        sleep(DRAIN);
        let window = self.for_a_while(length);
        self.bed.still_led()?;
        Ok(window)
    }

    /// What members send while nobody asks, and while everybody reads; how many reads that were is in the history.
    fn traffic(&self) -> Result<(Traffic, Window)> {
        self.workload.ask_for(Mix::Nothing);
        sleep(DRAIN);
        let before = self.bed.counters()?;
        let idle_window = self.for_a_while(TRAFFIC);
        let idle = self.bed.counters()?.since(before);
        self.workload.ask_for(Mix::Reads { writes_per_mille: 0 });
        sleep(DRAIN);
        let before = self.bed.counters()?;
        let window = self.for_a_while(TRAFFIC);
        let reading = self.bed.counters()?.since(before);
        self.bed.still_led()?;
        let traffic = Traffic {
            idle,
            idle_seconds: idle_window.seconds(),
            reading,
            reading_seconds: window.seconds(),
            reads: 0,
        };
        Ok((traffic, window))
    }

    /// The time from the kill until long after writes should go on.
    fn kill_responder(&mut self) -> Result<Window> {
        sleep(plan::BEFORE);
        let from = self.workload.elapsed();
        self.bed.kill(plan::KILLED)?;
        sleep(plan::AWAY);
        let window = self.since(from);
        self.bed.restart(plan::KILLED)?;
        self.bed.settled(Mode::RosterLease, 0)?;
        Ok(window)
    }

    /// How long a change to these responders took, and the time around it.
    fn change_roster(&self, responders: &[usize]) -> Result<(Duration, Window)> {
        sleep(plan::BEFORE);
        let request = plan::responders_only(&self.bed.ids(responders));
        let before = self
            .bed
            .view(0)
            .map_err(|what| Error::refused(what, "see the members' logs"))?;
        let from = self.workload.elapsed();
        let observed = self.bed.watch(
            || self.bed.ask(&request),
            || {
                let leader = self.bed.view(0)?;
                for &site in responders {
                    let view = self.bed.view(site)?;
                    if view.spec <= before.spec || view.roster != leader.roster || !view.local {
                        return Err(format!("{} says {view:?}", sites::NAMES[site]));
                    }
                }
                Ok(())
            },
        )?;
        let window = self.since(from);
        let took = change(&observed, 0, responders, before.spec)
            .map_err(|what| Error::refused(what, "see the members' logs"))?;
        Ok((took, window))
    }
}
