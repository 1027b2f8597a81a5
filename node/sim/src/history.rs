//! What clients did and what they were told: the input of every consistency check.
//!
//! One [`Event`] is one operation with the moment it was sent and the moment its answer came, both in
//! nanoseconds of one clock of the recorder. Histories are stored as JSON lines, so that a failing run of
//! real processes can be kept and judged again.

use crate::SimError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Write};

/// One sequential client: it has at most one request under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u32);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// What a client asks for. Every operation touches one key; a request for several keys is one operation for each, all of one client and
/// invoked at the same time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Op {
    /// Writes a value. Values should be unique within a history: the checker then needs no search to know
    /// whose write a read saw.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Linearizable read of the latest value.
    Get {
        /// The key.
        key: String,
    },
    /// Removes the key.
    Delete {
        /// The key.
        key: String,
    },
    /// A transaction: if `expect` holds, put `value`; else read the key.
    CompareAndSwap {
        /// The key.
        key: String,
        /// The comparison.
        expect: Expect,
        /// The new value.
        value: String,
    },
}

impl Op {
    /// The key that it touches.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Get { key } | Self::Delete { key } | Self::CompareAndSwap { key, .. } => key,
        }
    }
}

/// What a compare-and-swap compares with.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// The key does not exist (etcd: `mod_revision == 0`).
    Absent,
    /// The key's mod revision equals this one; never 0.
    ModRevision(i64),
    /// The key exists and has this value.
    Value(String),
}

/// A key as an answer shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Its value.
    pub value: String,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Changes since its creation, from 1.
    pub version: i64,
}

/// The content of a successful answer. `revision` is always the one in the response header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reply {
    /// The put is done at this revision.
    Put {
        /// Header revision: the put's own.
        revision: i64,
    },
    /// The key was read.
    Get {
        /// Header revision: the newest at the read.
        revision: i64,
        /// The key, `None` if it does not exist.
        seen: Option<Seen>,
    },
    /// The delete is done.
    Delete {
        /// Header revision: the delete's own if it removed something, else the newest.
        revision: i64,
        /// Whether the key existed.
        deleted: bool,
    },
    /// The comparison held and the value is written.
    Swapped {
        /// Header revision: the put's own.
        revision: i64,
    },
    /// The comparison did not hold.
    NotSwapped {
        /// Header revision: the newest.
        revision: i64,
        /// The key, as the transaction's else branch read it.
        seen: Option<Seen>,
    },
}

impl Reply {
    /// The revision in the response header.
    #[must_use]
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put { revision }
            | Self::Get { revision, .. }
            | Self::Delete { revision, .. }
            | Self::Swapped { revision }
            | Self::NotSwapped { revision, .. } => *revision,
        }
    }

    /// Puts a higher revision in the response header's place.
    pub(crate) fn raise(&mut self, to: i64) {
        let (Self::Put { revision }
        | Self::Get { revision, .. }
        | Self::Delete { revision, .. }
        | Self::Swapped { revision }
        | Self::NotSwapped { revision, .. }) = self;
        *revision = to.max(*revision);
    }

    /// Whether the operation made that revision (and did not merely see it).
    #[must_use]
    pub fn wrote(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Swapped { .. } => true,
            Self::Delete { deleted, .. } => *deleted,
            Self::Get { .. } | Self::NotSwapped { .. } => false,
        }
    }
}

/// How an operation ended, as far as its client knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect between its two times.
    Ok {
        /// The answer.
        reply: Reply,
    },
    /// It certainly had no effect and never will (for example: refused before it was proposed).
    Failed {
        /// What the client was told.
        error: String,
    },
    /// It may have taken effect, or may yet, at any time after it was sent (timeout, broken connection).
    Unknown {
        /// What the client was told.
        error: String,
    },
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Who asked.
    pub client: ClientId,
    /// For what.
    pub op: Op,
    /// When it was sent.
    pub invoked_ns: u64,
    /// When the client stopped waiting. For `Unknown` the effect may come later still.
    pub returned_ns: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Event {
    /// The answer, if there was one.
    #[must_use]
    pub fn reply(&self) -> Option<&Reply> {
        match &self.outcome {
            Outcome::Ok { reply } => Some(reply),
            Outcome::Failed { .. } | Outcome::Unknown { .. } => None,
        }
    }
}

/// All operations of one run. Keys must be absent when the run starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// In any order: times say what happened before what.
    pub events: Vec<Event>,
}

impl History {
    /// Writes one event a line.
    ///
    /// # Errors
    /// If the writer fails.
    pub fn write_json_lines(&self, mut out: impl Write) -> Result<(), SimError> {
        for event in &self.events {
            let line = serde_json::to_string(event).map_err(std::io::Error::from)?;
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    /// Reads what [`Self::write_json_lines`] wrote; empty lines are skipped.
    ///
    /// # Errors
    /// If reading fails or a line is not an event; the error names the line.
    pub fn read_json_lines(input: impl BufRead) -> Result<Self, SimError> {
        let mut events = Vec::new();
        for (number, line) in input.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let event = serde_json::from_str(&line).map_err(|source| SimError::HistoryLine {
                line: number + 1,
                source,
            })?;
            events.push(event);
        }
        Ok(Self { events })
    }
}

/// A call under way in a [`Recorder`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(u64);

/// Builds a [`History`] while it happens. The caller brings the clock.
#[derive(Debug, Default)]
pub struct Recorder {
    next: u64,
    open: BTreeMap<CallId, (ClientId, Op, u64)>,
    events: Vec<Event>,
}

impl Recorder {
    /// A client sends an operation. Call this just before the bytes leave.
    pub fn invoke(&mut self, client: ClientId, op: Op, now_ns: u64) -> CallId {
        let id = CallId(self.next);
        self.next += 1;
        self.open.insert(id, (client, op, now_ns));
        id
    }

    /// What a call under way turned out to be: a transaction that did not do what it would have done has only read.
    pub fn was(&mut self, id: CallId, op: Op) {
        if let Some((_, asked, _)) = self.open.get_mut(&id) {
            *asked = op;
        }
    }

    /// Its answer came, or the client gave up. Call this just after the answer is complete.
    /// A call is answered once: later answers are ignored, as a client that gave up ignores them.
    pub fn complete(&mut self, id: CallId, outcome: Outcome, now_ns: u64) {
        if let Some((client, op, invoked_ns)) = self.open.remove(&id) {
            self.events.push(Event {
                client,
                op,
                invoked_ns,
                returned_ns: now_ns,
                outcome,
            });
        }
    }

    /// Operations answered so far.
    #[must_use]
    pub fn completed(&self) -> &[Event] {
        &self.events
    }

    /// Ends the run: calls still under way become `Unknown`.
    #[must_use]
    pub fn finish(mut self, now_ns: u64) -> History {
        for (client, op, invoked_ns) in std::mem::take(&mut self.open).into_values() {
            let outcome = Outcome::Unknown {
                error: "the run ended first".to_owned(),
            };
            self.events.push(Event {
                client,
                op,
                invoked_ns,
                returned_ns: now_ns,
                outcome,
            });
        }
        History { events: self.events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Op {
        Op::Put {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn a_history_survives_json_lines_and_a_bad_line_is_named() {
        let mut recorder = Recorder::default();
        let first = recorder.invoke(ClientId(1), put("a", "x"), 5);
        let second = recorder.invoke(ClientId(2), Op::Get { key: "a".to_owned() }, 6);
        recorder.complete(
            first,
            Outcome::Ok {
                reply: Reply::Put { revision: 2 },
            },
            9,
        );
        let seen = Some(Seen {
            value: "x".to_owned(),
            mod_revision: 2,
            version: 1,
        });
        recorder.complete(
            second,
            Outcome::Ok {
                reply: Reply::Get { revision: 2, seen },
            },
            10,
        );
        let swap = Op::CompareAndSwap {
            key: "a".to_owned(),
            expect: Expect::ModRevision(2),
            value: "y".to_owned(),
        };
        recorder.invoke(ClientId(1), swap, 11);
        let history = recorder.finish(20);

        let mut text = Vec::new();
        history.write_json_lines(&mut text).unwrap();
        assert_eq!(History::read_json_lines(&text[..]).unwrap(), history);
        let text = String::from_utf8(text).unwrap();
        expect_test::expect![[r#"
            {"client":1,"op":{"kind":"put","key":"a","value":"x"},"invoked_ns":5,"returned_ns":9,"outcome":"ok","reply":{"kind":"put","revision":2}}
            {"client":2,"op":{"kind":"get","key":"a"},"invoked_ns":6,"returned_ns":10,"outcome":"ok","reply":{"kind":"get","revision":2,"seen":{"value":"x","mod_revision":2,"version":1}}}
            {"client":1,"op":{"kind":"compare_and_swap","key":"a","expect":{"mod_revision":2},"value":"y"},"invoked_ns":11,"returned_ns":20,"outcome":"unknown","error":"the run ended first"}
        "#]]
        .assert_eq(&text);

        let error = History::read_json_lines("\n{\"client\":1}\n".as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("history line 2: "), "{error}");
    }

    #[test]
    fn an_answer_after_the_client_gave_up_is_ignored() {
        let mut recorder = Recorder::default();
        let call = recorder.invoke(ClientId(1), put("a", "x"), 1);
        recorder.complete(
            call,
            Outcome::Unknown {
                error: "timeout".to_owned(),
            },
            2,
        );
        recorder.complete(
            call,
            Outcome::Ok {
                reply: Reply::Put { revision: 2 },
            },
            3,
        );
        let history = recorder.finish(4);
        assert_eq!(history.events.len(), 1);
        assert!(matches!(history.events[0].outcome, Outcome::Unknown { .. }));
    }
}
