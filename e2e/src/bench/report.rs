//! From runs to a comparison: medians over rounds, ratios, goals. Pure.

use serde::Serialize;

use super::plan::{Case, Kind};
use super::tool::Run;

/// Whose members were measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum System {
    /// The one to compare with.
    Etcd,
    /// Ours.
    Althing,
}

impl System {
    /// Both, in the order in which they take turns.
    pub const BOTH: [Self; 2] = [Self::Etcd, Self::Althing];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Althing => "Althing",
        }
    }
}

/// One run against one system, with what its members used meanwhile.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// What ran.
    pub case: Case,
    /// Against whom.
    pub system: System,
    /// What the tool saw.
    pub run: Run,
    /// Requests of the run.
    pub requests: u64,
    /// Processor seconds of all members together.
    pub cpu: f64,
    /// Resident bytes of each member after the run.
    pub rss: Vec<u64>,
}

/// Medians of one system in one case.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Requests a second.
    pub requests_per_second: f64,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
    /// Microseconds of processor time of all members together, for one request.
    pub server_cpu_us_per_request: f64,
    /// Resident MiB of each member, the largest first.
    pub rss_mib: Vec<f64>,
    /// Requests a second of every round, in order: how much the machine wavered.
    pub rounds: Vec<f64>,
}

/// Both systems in one case.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// [`Kind::name`].
    pub case: &'static str,
    /// Requests under way.
    pub clients: usize,
    /// etcd's figures.
    pub etcd: Figures,
    /// Ours.
    pub althing: Figures,
    /// Ours by etcd's: larger is better.
    pub throughput_ratio: f64,
    /// Ours by etcd's: smaller is better.
    pub p50_ratio: f64,
    /// Ours by etcd's: smaller is better.
    pub cpu_ratio: f64,
    /// Goals and whether they are reached; none for cases without.
    pub goals: Vec<Goal>,
}

/// A goal of the design.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Goal {
    /// What is asked.
    pub what: &'static str,
    /// Whether it is so.
    pub reached: bool,
}

/// Where and how it was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Processors, shared by all members and the load generator.
    pub cores: usize,
    /// Type of the filesystem that all members' data lie on.
    pub filesystem: String,
    /// Members of each system.
    pub members: usize,
    /// Shards of our keyspace; etcd has one.
    pub shards: u32,
    /// Rounds; in each, every case ran against both systems.
    pub rounds: usize,
    /// Seconds that a run was planned for.
    pub seconds: f64,
    /// Bytes of keys.
    pub key_bytes: usize,
    /// Bytes of values.
    pub value_bytes: usize,
    /// etcd's version.
    pub etcd: &'static str,
    /// Ours.
    pub althing: &'static str,
}

/// Everything.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Where and how.
    pub setting: Setting,
    /// One per case.
    pub lines: Vec<Line>,
}

impl Report {
    /// Puts the samples together; cases without samples of both systems are left out.
    pub fn new(setting: Setting, cases: &[Case], samples: &[Sample]) -> Self {
        let lines = cases.iter().filter_map(|&case| line(case, samples)).collect();
        Self { setting, lines }
    }
}

fn line(case: Case, samples: &[Sample]) -> Option<Line> {
    let of = |system| {
        figures(
            samples
                .iter()
                .filter(|sample| sample.case == case && sample.system == system),
        )
    };
    let (etcd, althing) = (of(System::Etcd)?, of(System::Althing)?);
    let throughput_ratio = althing.requests_per_second / etcd.requests_per_second;
    let p50_ratio = althing.p50_ms / etcd.p50_ms;
    let cpu_ratio = althing.server_cpu_us_per_request / etcd.server_cpu_us_per_request;
    Some(Line {
        goals: goals(case, throughput_ratio, p50_ratio, cpu_ratio),
        case: case.kind.name(),
        clients: case.clients,
        etcd,
        althing,
        throughput_ratio,
        p50_ratio,
        cpu_ratio,
    })
}

/// One client: half the latency. Many: twice the throughput at half the processor time.
fn goals(case: Case, throughput: f64, p50: f64, cpu: f64) -> Vec<Goal> {
    let goal = |what, reached| Goal { what, reached };
    match (Kind::has_goals(case.kind), case.clients) {
        (false, _) => Vec::new(),
        (true, 1) => vec![goal("p50 at most 0.5x", p50 <= 0.5)],
        (true, _) => vec![
            goal("throughput at least 2x", throughput >= 2.0),
            goal("server CPU per request at most 0.5x", cpu <= 0.5),
        ],
    }
}

fn figures<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Option<Figures> {
    let middle = |of: fn(&Sample) -> f64| median(samples.clone().map(of).collect());
    let last = samples.clone().last()?;
    let mut rss_mib: Vec<f64> = last
        .rss
        .iter()
        .map(|&bytes| bytes as f64 / f64::from(1 << 20))
        .collect();
    rss_mib.sort_by(|left, right| right.total_cmp(left));
    Some(Figures {
        requests_per_second: middle(|sample| sample.run.rate)?,
        p50_ms: middle(|sample| sample.run.p50 * 1e3)?,
        p99_ms: middle(|sample| sample.run.p99 * 1e3)?,
        server_cpu_us_per_request: middle(|sample| sample.cpu * 1e6 / sample.requests as f64)?,
        rss_mib,
        rounds: samples.map(|sample| sample.run.rate).collect(),
    })
}

/// The middle value; of an even number the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values[values.len() / 2 - 1] + upper) / 2.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const CASE: Case = Case {
        kind: Kind::Put,
        clients: 1000,
    };

    pub(crate) fn setting() -> Setting {
        Setting {
            cores: 2,
            filesystem: "ext4".to_owned(),
            members: 3,
            shards: 1,
            rounds: 3,
            seconds: 3.0,
            key_bytes: 32,
            value_bytes: 256,
            etcd: "3.7.3",
            althing: "0.1.0",
        }
    }

    pub(crate) fn sample(system: System, rate: f64, cpu: f64) -> Sample {
        Sample {
            case: CASE,
            system,
            run: Run {
                rate,
                p50: 1.0 / rate,
                p99: 3.0 / rate,
            },
            requests: 1000,
            cpu,
            rss: vec![1 << 20, 3 << 20, 2 << 20],
        }
    }

    #[test]
    fn one_wild_round_does_not_move_the_median() {
        assert_eq!(median(vec![3.0, 1.0, 1000.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn ratios_are_ours_by_etcds_and_goals_follow_from_them() {
        let samples = [
            sample(System::Etcd, 1000.0, 0.4),
            sample(System::Althing, 2500.0, 0.3),
            sample(System::Etcd, 1000.0, 0.4),
            sample(System::Althing, 2500.0, 0.3),
        ];
        let report = Report::new(setting(), &[CASE], &samples);
        let line = &report.lines[0];
        assert!((line.throughput_ratio - 2.5).abs() < 1e-9);
        assert!((line.p50_ratio - 0.4).abs() < 1e-9);
        assert!((line.cpu_ratio - 0.75).abs() < 1e-9);
        assert!((line.etcd.server_cpu_us_per_request - 400.0).abs() < 1e-9);
        assert_eq!(line.althing.rss_mib, [3.0, 2.0, 1.0]);
        let reached: Vec<bool> = line.goals.iter().map(|goal| goal.reached).collect();
        assert_eq!(reached, [true, false]);
    }

    #[test]
    fn a_case_that_only_one_system_ran_is_left_out() {
        let report = Report::new(setting(), &[CASE], &[sample(System::Etcd, 1000.0, 0.4)]);
        assert!(report.lines.is_empty());
    }
}
