//! What a workload came to: counts, the largest gap between writes, and the judge's verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use althing_sim::lin::{self, Options, Verdict, Violation};
use althing_sim::{History, Outcome, Seen};

use super::operation;

/// A finished workload.
#[derive(Debug)]
pub struct Summary {
    /// All that was asked and answered.
    pub history: History,
    /// Every key at the end, read after the last operation had returned; `None` if nobody could be asked any more.
    pub last_seen: Option<BTreeMap<String, Seen>>,
    /// What the judge allows.
    pub judge: Options,
}

/// The longest time without an acknowledged write, while clients kept asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteGap {
    /// From one acknowledgement to the next.
    pub length: Duration,
    /// When it began, from the start of the run.
    pub begun: Duration,
}

impl Summary {
    /// Operations by how they ended.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for event in &self.history.events {
            match &event.outcome {
                Outcome::Ok { reply } if reply.wrote() => counts.writes += 1,
                Outcome::Ok { .. } => counts.reads += 1,
                Outcome::Failed { .. } => counts.failed += 1,
                Outcome::Unknown { .. } => counts.unknown += 1,
            }
        }
        counts
    }

    /// The largest write gap. The run's end counts as an acknowledgement: a gap that was never closed must not be
    /// forgotten. `None` if no write was acknowledged at all.
    pub fn largest_write_gap(&self) -> Option<WriteGap> {
        self.gap_among(|_| true)
    }

    /// The largest write gap of each key, by its number; so of each shard's keys, wherever they lie at the time.
    pub fn write_gaps(&self) -> BTreeMap<u32, WriteGap> {
        let keys = self.history.events.iter().map(|event| event.op.key());
        let numbers: BTreeSet<u32> = keys.filter_map(operation::number_of).collect();
        let gap = |number| self.gap_among(|key| operation::number_of(key) == Some(number));
        numbers
            .into_iter()
            .filter_map(|number| Some((number, gap(number)?)))
            .collect()
    }

    fn gap_among(&self, counts: impl Fn(&str) -> bool) -> Option<WriteGap> {
        let wrote = self
            .history
            .events
            .iter()
            .filter(|event| event.reply().is_some_and(|reply| reply.wrote()) && counts(event.op.key()));
        let mut moments: Vec<u64> = wrote.map(|event| event.returned_ns).collect();
        if moments.is_empty() {
            return None;
        }
        moments.extend(self.history.events.iter().map(|event| event.returned_ns).max());
        moments.sort_unstable();
        let gap = moments
            .windows(2)
            .map(|pair| (pair[1] - pair[0], pair[0]))
            .max()
            .unwrap_or((0, moments[0]));
        Some(WriteGap {
            length: Duration::from_nanos(gap.0),
            begun: Duration::from_nanos(gap.1),
        })
    }

    /// Whether one etcd at one place could have given all these answers.
    pub fn verdict(&self) -> Verdict {
        lin::check(&self.history, self.judge)
    }

    /// Acknowledged writes that are neither there at the end nor superseded; none if nobody looked.
    pub fn lost_writes(&self) -> Vec<Violation> {
        let last_seen = self.last_seen.as_ref();
        last_seen.map_or_else(Vec::new, |last_seen| lin::lost_writes(&self.history, last_seen))
    }

    /// Panics with everything a person needs unless all is well: for the end of a test.
    ///
    /// # Panics
    /// If the history is not linearizable, an acknowledged write is lost, or none was acknowledged.
    pub fn assert_sound(&self) {
        let (verdict, lost) = (self.verdict(), self.lost_writes());
        assert!(verdict.passed(), "{verdict}");
        assert!(
            lost.is_empty(),
            "lost writes: {}",
            lost.iter().map(ToString::to_string).collect::<String>()
        );
        assert!(self.counts().writes > 0, "no write was acknowledged: {self}");
    }
}

/// Operations by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Acknowledged writes.
    pub writes: usize,
    /// Answered reads.
    pub reads: usize,
    /// Certainly without effect.
    pub failed: usize,
    /// Perhaps done, perhaps not.
    pub unknown: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            writes,
            reads,
            failed,
            unknown,
        } = self.counts();
        write!(
            f,
            "{writes} writes, {reads} reads, {failed} refused, {unknown} unknown; "
        )?;
        match self.largest_write_gap() {
            Some(gap) => write!(f, "largest write gap {gap}"),
            None => write!(f, "no write was acknowledged"),
        }
    }
}

impl fmt::Display for WriteGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s at {:.1} s",
            self.length.as_secs_f64(),
            self.begun.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use althing_sim::{ClientId, Event, Op, Reply};

    use super::*;

    fn put(invoked_ns: u64, returned_ns: u64, revision: Option<i64>) -> Event {
        let outcome = match revision {
            Some(revision) => Outcome::Ok {
                reply: Reply::Put { revision },
            },
            None => Outcome::Unknown {
                error: "timeout".to_owned(),
            },
        };
        let op = Op::Put {
            key: "k".to_owned(),
            value: format!("v{invoked_ns}"),
        };
        Event {
            client: ClientId(0),
            op,
            invoked_ns,
            returned_ns,
            outcome,
        }
    }

    fn summary(events: Vec<Event>) -> Summary {
        Summary {
            history: History { events },
            last_seen: Some(BTreeMap::new()),
            judge: Options::default(),
        }
    }

    #[test]
    fn the_gap_lies_between_acknowledgements_whatever_their_order_in_the_history() {
        let summary = summary(vec![put(8, 9, Some(4)), put(0, 1, Some(2)), put(2, 3, Some(3))]);
        let gap = summary.largest_write_gap().unwrap();
        assert_eq!(
            (gap.length, gap.begun),
            (Duration::from_nanos(6), Duration::from_nanos(3))
        );
    }

    #[test]
    fn a_gap_that_never_ended_counts_up_to_the_end_of_the_run() {
        let summary = summary(vec![put(0, 1, Some(2)), put(2, 102, None)]);
        assert_eq!(summary.largest_write_gap().unwrap().length, Duration::from_nanos(101));
    }

    #[test]
    fn a_run_without_an_acknowledged_write_has_no_gap_and_is_not_sound() {
        let summary = summary(vec![put(0, 100, None)]);
        assert_eq!(summary.largest_write_gap(), None);
        assert!(std::panic::catch_unwind(|| summary.assert_sound()).is_err());
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_at_the_end_is_not_sound() {
        let summary = summary(vec![put(0, 1, Some(2))]);
        assert!(std::panic::catch_unwind(|| summary.assert_sound()).is_err());
    }
}
