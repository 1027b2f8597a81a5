//! Which entry last wrote a key, among those that the state machine may not have applied yet.
//!
//! A responder waits for the newest entry *anywhere in its log* that writes a key, committed or not: an uncommitted one may
//! already be committed, and acknowledged to a client, at the leader. Entries at or below the applied index need no memory: the
//! state machine knows them, also that a key is absent (defect D8 of the published code).

use crate::entry::Payload;
use crate::ids::{Index, LogPosition};
use crate::io::Config;
use crate::log::Log;
use crate::roster::{Footprint, Span};
use std::collections::{BTreeMap, VecDeque};

/// Keys and spans that may be remembered. A state machine that is further behind serves no local reads: whoever asks the
/// leader waits for it just the same.
const TOUCHED_MAX: usize = 65_536;

/// The map, filled from the log when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// The last entry that is in here.
    upto: LogPosition,
    keys: BTreeMap<bytes::Bytes, Index>,
    /// The same in the order of the log, to forget what is applied.
    order: VecDeque<(Index, bytes::Bytes)>,
    spans: VecDeque<(Index, Span)>,
    /// The newest entry that may write any key.
    everything: Index,
}

impl Touched {
    /// Brings the map up to the end of the log and down to the applied index. `false`: more than it may hold.
    pub(crate) fn follow(&mut self, log: &Log, applied: Index, config: &Config) -> bool {
        let kept = self.upto.index >= applied && log.contains(self.upto);
        if !kept {
            // Behind the applied index there is nothing to remember; and a replaced tail is gone with all its writes.
            *self = Self {
                upto: LogPosition {
                    term: log.term_at(applied).unwrap_or_default(),
                    index: applied,
                },
                ..Self::default()
            };
        }
        self.forget(applied);
        for entry in log.range(self.upto.index.next(), log.last_index()) {
            if self.order.len() + self.spans.len() >= TOUCHED_MAX {
                return false;
            }
            self.upto = entry.position();
            match &entry.payload {
                Payload::Noop | Payload::Config(_) | Payload::Reads(_) => {}
                Payload::Command(command) => self.add(entry.index, (config.footprint)(command)),
            }
        }
        true
    }

    fn add(&mut self, index: Index, footprint: Footprint) {
        match footprint {
            Footprint::All => self.everything = index,
            Footprint::Spans(spans) => {
                for span in spans {
                    match span {
                        Span::Key(key) => {
                            self.keys.insert(key.clone(), index);
                            self.order.push_back((index, key));
                        }
                        Span::Range { .. } => self.spans.push_back((index, span)),
                    }
                }
            }
        }
    }

    fn forget(&mut self, applied: Index) {
        while self.order.front().is_some_and(|(index, _)| *index <= applied) {
            let (index, key) = self.order.pop_front().expect("invariant: just looked at");
            if self.keys.get(&key) == Some(&index) {
                self.keys.remove(&key);
            }
        }
        while self.spans.front().is_some_and(|(index, _)| *index <= applied) {
            self.spans.pop_front();
        }
    }

    /// The newest remembered entry that writes one of these keys; zero if there is none.
    pub(crate) fn newest(&self, footprint: &Footprint) -> Index {
        match footprint {
            Footprint::All => {
                let key = self.order.back().map_or(Index::ZERO, |(index, _)| *index);
                let span = self.spans.back().map_or(Index::ZERO, |(index, _)| *index);
                self.everything.max(key).max(span)
            }
            Footprint::Spans(spans) => spans
                .iter()
                .map(|span| self.newest_in(span))
                .fold(self.everything, Index::max),
        }
    }

    fn newest_in(&self, span: &Span) -> Index {
        let keys = match span {
            Span::Key(key) => self.keys.get(key).copied(),
            Span::Range { start, .. } => self
                .keys
                .range(start.clone()..)
                .take_while(|(key, _)| span.contains(key))
                .map(|(_, index)| *index)
                .max(),
        };
        let spans = self.spans.iter().rev().find(|(_, other)| other.overlaps(span));
        let spans = spans.map_or(Index::ZERO, |(index, _)| *index);
        keys.unwrap_or_default().max(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::ids::{GroupId, MemberId, Term};
    use bytes::Bytes;
    use std::time::Duration;

    /// A command writes the keys that it is made of; `*` writes all, `a-c` a range.
    fn footprint(command: &Bytes) -> Footprint {
        match &command[..] {
            b"*" => Footprint::All,
            [start, b'-', end] => Footprint::Spans(vec![Span::Range {
                start: Bytes::copy_from_slice(&[*start]),
                end: Some(Bytes::copy_from_slice(&[*end])),
            }]),
            keys => Footprint::Spans(
                keys.iter()
                    .map(|key| Span::Key(Bytes::copy_from_slice(&[*key])))
                    .collect(),
            ),
        }
    }

    fn config() -> Config {
        Config {
            group: GroupId(1),
            id: MemberId(1),
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(100),
            seed: 1,
            append_bytes_max: 1,
            inflight_appends_max: 1,
            inflight_bytes_max: 1,
            uncommitted_bytes_max: 1,
            drift_ppm: 10_000,
            demote_after: Duration::from_millis(400),
            hibernate_after: None,
            footprint,
        }
    }

    fn entries(term: u64, from: u64, commands: &[&'static str]) -> Vec<Entry> {
        let entry = |(command, index): (&&'static str, u64)| Entry {
            term: Term(term),
            index: Index(index),
            payload: Payload::Command(Bytes::from_static(command.as_bytes())),
        };
        commands.iter().zip(from..).map(entry).collect()
    }

    fn key(key: &'static str) -> Footprint {
        Footprint::key(Bytes::from_static(key.as_bytes()))
    }

    #[test]
    fn the_newest_write_of_a_key_is_found_by_key_range_and_unknown_footprint() {
        let log = Log::recovered(LogPosition::default(), entries(1, 1, &["a", "b", "ab", "b-d", "c"]));
        let mut touched = Touched::default();
        assert!(touched.follow(&log, Index(0), &config()));
        let newest: Vec<u64> = ["a", "b", "c", "d", "z"].map(|k| touched.newest(&key(k)).0).into();
        assert_eq!(newest, [3, 4, 5, 0, 0]);
        assert_eq!(touched.newest(&Footprint::All), Index(5));
        let range = Footprint::Spans(vec![Span::Range {
            start: Bytes::new(),
            end: Some(Bytes::from_static(b"b")),
        }]);
        assert_eq!(touched.newest(&range), Index(3));
    }

    #[test]
    fn what_is_applied_is_forgotten_and_a_write_of_everything_counts_for_every_key() {
        let log = Log::recovered(LogPosition::default(), entries(1, 1, &["a", "*", "b"]));
        let mut touched = Touched::default();
        assert!(touched.follow(&log, Index(0), &config()));
        assert_eq!(touched.newest(&key("z")), Index(2));
        assert!(touched.follow(&log, Index(1), &config()));
        assert_eq!(touched.newest(&key("a")), Index(2));
        assert!(touched.keys.len() == 1 && touched.order.len() == 1);
    }

    #[test]
    fn writes_of_a_replaced_tail_are_forgotten_and_those_of_the_new_one_known() {
        let mut log = Log::recovered(LogPosition::default(), entries(1, 1, &["a", "b", "b"]));
        let mut touched = Touched::default();
        assert!(touched.follow(&log, Index(0), &config()));
        log.append_after_match(entries(2, 2, &["c"]), Index(1));
        assert!(touched.follow(&log, Index(0), &config()));
        assert_eq!(
            (touched.newest(&key("b")), touched.newest(&key("c"))),
            (Index(0), Index(2))
        );
    }
}
