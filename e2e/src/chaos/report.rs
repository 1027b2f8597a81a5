//! What a run came to: the judge's verdict, what every kind of fault cost in writes, and how to run it again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use althing_sim::History;

use super::fault::Kind;
use super::layouts::Laid;
use super::member::Exit;
use super::nemesis::Struck;
use super::plan::Abilities;
use crate::workload::Summary;

/// After a fault is healed, somebody must be able to write within this: some elections on a machine that builds something beside.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// A gap that begins so soon after the end of a fault is still that fault's; less than the pause before the next one.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Faults that were under way at the same time have a row of their own: whose gap it was cannot be told.
const TWO_AT_ONCE: Kind = Kind("two faults at once");

/// A finished run.
#[derive(Debug)]
pub struct Report {
    /// The seed of the plan, if it was drawn.
    pub seed: Option<u64>,
    /// Members.
    pub members: usize,
    /// How long the clients worked.
    pub length: Duration,
    /// What the machine could do.
    pub abilities: Abilities,
    /// Flags that every member had.
    pub flags: Vec<String>,
    /// The faults.
    pub struck: Vec<Struck>,
    /// The most shards that were asked for, if any were.
    pub shards: Option<u32>,
    /// What became of each wish for shards.
    pub laid: Vec<Laid>,
    /// What clients saw.
    pub summary: Summary,
    /// Whether all members held the same in the end, at which revision.
    pub agreement: Result<i64, String>,
    /// Processes that ended by themselves, by member's name.
    pub exits: Vec<(String, Exit)>,
    /// Panics and broken assertions in the members' logs.
    pub panics: Vec<(String, String)>,
    /// Where the logs are, if something was wrong.
    pub folder: PathBuf,
}

/// What one kind of fault cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// How many there were.
    pub times: usize,
    /// The largest time without an acknowledged write, from the begin of each until a moment after its end: the median of them.
    pub gap_median: Duration,
    /// The largest of them.
    pub gap_max: Duration,
    /// The longest time from a fault's end to the next acknowledged write.
    pub recovery_max: Duration,
}

impl Report {
    /// Everything that is wrong, one entry each; empty if all is well.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let verdict = self.summary.verdict();
        if !verdict.passed() {
            failures.push(verdict.to_string());
        }
        failures.extend(
            self.summary
                .lost_writes()
                .iter()
                .map(|lost| format!("lost write: {lost}")),
        );
        failures.extend(self.agreement.as_ref().err().cloned());
        failures.extend(self.panics.iter().map(|(member, panic)| format!("{member}: {panic}")));
        let ends = self.exits.iter().filter(|(_, exit)| !exit.disk_full);
        failures.extend(ends.map(|(member, exit)| {
            format!(
                "{member} ended by itself at {:.1} s: {}",
                exit.at.as_secs_f64(),
                exit.status
            )
        }));
        if self.summary.counts().writes == 0 {
            failures.push("no write was acknowledged".to_owned());
        }
        let acknowledged = acknowledged(&self.summary.history);
        failures.extend(
            self.struck
                .iter()
                .filter(|struck| recovery(&acknowledged, struck.ended) > RECOVERY_MAX)
                .map(|struck| {
                    format!(
                        "no write for {} s after {} was healed at {:.1} s",
                        RECOVERY_MAX.as_secs(),
                        struck.fault,
                        struck.ended.as_secs_f64()
                    )
                }),
        );
        failures
    }

    /// The table's rows, by kind.
    pub fn rows(&self) -> Vec<Row> {
        rows(&acknowledged(&self.summary.history), &self.struck)
    }

    /// The command that runs the same plan again, if it was drawn.
    pub fn command(&self) -> Option<String> {
        let Abilities { volumes, clocks } = self.abilities;
        let seed = self.seed?;
        let flags = self.flags.iter().map(|flag| format!(" --member-flag={flag}"));
        Some(format!(
            "cargo xtask chaos --nodes {} --seconds {} --seed {seed:#x}{}{}{}{}",
            self.members,
            self.length.as_secs(),
            self.shards
                .map_or_else(String::new, |shards| format!(" --shards {shards}")),
            if volumes { "" } else { " --without-volumes" },
            if clocks { "" } else { " --without-clocks" },
            flags.collect::<String>(),
        ))
    }
}

/// When writes were acknowledged, in order.
fn acknowledged(history: &History) -> Vec<Duration> {
    let wrote = history
        .events
        .iter()
        .filter(|event| event.reply().is_some_and(|reply| reply.wrote()));
    let mut moments: Vec<_> = wrote.map(|event| Duration::from_nanos(event.returned_ns)).collect();
    moments.sort_unstable();
    moments
}

/// From `since` to the next acknowledged write; without end if there is none.
fn recovery(acknowledged: &[Duration], since: Duration) -> Duration {
    let next = acknowledged.partition_point(|moment| *moment < since);
    acknowledged.get(next).map_or(Duration::MAX, |moment| *moment - since)
}

/// The largest time between two acknowledged writes of which some lies between `from` and `to`.
fn largest_gap(acknowledged: &[Duration], from: Duration, to: Duration) -> Duration {
    acknowledged
        .windows(2)
        .filter(|pair| pair[0] < to && from < pair[1])
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or(Duration::MAX)
}

/// The largest time between two acknowledged writes before the first fault; none if there were not two.
fn calm_gap(acknowledged: &[Duration], first: Duration) -> Duration {
    acknowledged
        .windows(2)
        .filter(|pair| pair[1] < first)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}

fn rows(acknowledged: &[Duration], struck: &[Struck]) -> Vec<Row> {
    let mut kinds: BTreeMap<Kind, Vec<(Duration, Duration)>> = BTreeMap::new();
    for (number, one) in struck.iter().enumerate() {
        let alone = struck
            .iter()
            .enumerate()
            .all(|(at, other)| at == number || other.begun >= one.ended || one.begun >= other.ended);
        let gap = largest_gap(acknowledged, one.begun, one.ended + AFTERMATH);
        kinds
            .entry(if alone { one.fault.kind() } else { TWO_AT_ONCE })
            .or_default()
            .push((gap, recovery(acknowledged, one.ended)));
    }
    kinds
        .into_iter()
        .map(|(kind, mut seen)| {
            seen.sort_unstable();
            Row {
                kind,
                times: seen.len(),
                gap_median: seen[seen.len() / 2].0,
                gap_max: seen[seen.len() - 1].0,
                recovery_max: seen.iter().map(|(_, recovery)| *recovery).max().unwrap_or_default(),
            }
        })
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} members, {} s, {}: {} faults; {}",
            self.members,
            self.length.as_secs(),
            self.seed
                .map_or_else(|| "a plan made by hand".to_owned(), |seed| format!("seed {seed:#x}")),
            self.struck.len(),
            self.summary
        )?;
        let first = self
            .struck
            .iter()
            .map(|struck| struck.begun)
            .min()
            .unwrap_or(self.length);
        let calm = calm_gap(&acknowledged(&self.summary.history), first);
        writeln!(
            f,
            "{:<26} {:>5} {:>11} {:>11} {:>11}",
            "fault", "times", "gap median", "gap max", "recovery"
        )?;
        writeln!(
            f,
            "{:<26} {:>5} {:>11} {:>11} {:>11}",
            "none (the first seconds)",
            "",
            "",
            seconds(calm),
            ""
        )?;
        for row in self.rows() {
            writeln!(
                f,
                "{:<26} {:>5} {:>11} {:>11} {:>11}",
                row.kind.0,
                row.times,
                seconds(row.gap_median),
                seconds(row.gap_max),
                seconds(row.recovery_max)
            )?;
        }
        for laid in &self.laid {
            writeln!(f, "{laid}")?;
        }
        if self.shards.is_some() {
            writeln!(f, "largest write gap of each key:")?;
            for (number, gap) in self.summary.write_gaps() {
                writeln!(f, "  key {number:>2}  {gap}")?;
            }
        }
        let full = self.exits.iter().filter(|(_, exit)| exit.disk_full).count();
        if full > 0 {
            writeln!(f, "{full} times a member ended on a full volume and was started again")?;
        }
        match &self.agreement {
            Ok(revision) => writeln!(f, "all members hold the same at revision {revision}")?,
            Err(difference) => writeln!(f, "{difference}")?,
        }
        let failures = self.failures();
        if failures.is_empty() {
            return writeln!(f, "linearizable; no acknowledged write is lost");
        }
        for failure in failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        writeln!(f, "history and logs: {}", self.folder.display())?;
        match self.command() {
            Some(command) => writeln!(f, "the same faults again: {command}"),
            None => Ok(()),
        }
    }
}

fn seconds(duration: Duration) -> String {
    if duration == Duration::MAX {
        return "for ever".to_owned();
    }
    format!("{:.2} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::fault::{Fault, Victims, Who};
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn kill(begun: u64, ended: u64) -> Struck {
        Struck {
            fault: Fault::Kill(Victims::One(Who::Leader)),
            whom: Vec::new(),
            begun: at(begun),
            ended: at(ended),
        }
    }

    #[test]
    fn a_fault_is_charged_with_the_largest_gap_around_it_and_with_no_other() {
        let acknowledged = [1, 5, 10, 12, 16, 17, 30].map(at);
        // From 10 to 12 and from 12 to 16 lie within; from 17 to 30 does not.
        let rows = rows(&acknowledged, &[kill(11, 13)]);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].gap_max, rows[0].recovery_max), (at(4), at(3)));
    }

    #[test]
    fn faults_at_one_time_are_charged_together() {
        let acknowledged = [0, 1, 2, 9].map(at);
        let rows = rows(&acknowledged, &[kill(1, 3), kill(2, 4), kill(6, 7)]);
        let kinds: Vec<_> = rows.iter().map(|row| (row.kind.0, row.times)).collect();
        assert_eq!(kinds, [("kill -9 the leader", 1), ("two faults at once", 2)]);
    }

    #[test]
    fn a_gap_that_a_fault_made_is_not_called_calm() {
        let acknowledged = [0, 1, 3, 9].map(at);
        assert_eq!(calm_gap(&acknowledged, at(4)), at(2));
        assert_eq!(calm_gap(&acknowledged, at(1)), Duration::ZERO);
    }

    #[test]
    fn a_gap_that_never_ends_is_for_ever() {
        let acknowledged = [0, 1].map(at);
        assert_eq!(recovery(&acknowledged, at(2)), Duration::MAX);
        assert_eq!(seconds(largest_gap(&acknowledged, at(2), at(3))), "for ever");
    }
}
