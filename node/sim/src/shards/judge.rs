//! What a run came to: strict serializability of everything that clients were told, and nothing lost.
//!
//! The truth is what state machines did: for each revision the keys that it changed, looked up in the first state that has applied it.
//! Every answer must agree with it, and with when it was asked and told: a write that was acknowledged before another began has
//! the smaller revision; a range as of a revision shows what all writes up to there made of its keys, and no later one had been
//! acknowledged when it began; a transaction's keys change together. Besides, the history of each key must be linearizable, as judged
//! by the same search as elsewhere (`crate::lin`).

use super::machine::Store;
use crate::history::{ClientId, Event, Expect, History, Op, Outcome, Reply, Seen};
use crate::lin;
use crate::world::Counts;
use althing_raft::ids::GroupId;
use althing_store::ops::{Command, Decision, KeyRange, OpResult, Range, Revision, ShardCommand, ShardResult};
use althing_store::{ApplyItem, CommandResult, Locks};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// What a client asks of the keyspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// Of one key.
    One(Op),
    /// Writes several keys at once, if the comparison holds.
    Txn {
        puts: BTreeMap<String, String>,
        expect: Option<(String, Expect)>,
    },
    /// All keys at one moment.
    Range,
}

/// What it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    One(Reply),
    /// The transaction ran, at this revision.
    Done {
        revision: i64,
    },
    /// The comparison did not hold.
    NotDone,
    /// The keys at a revision.
    Keys {
        revision: i64,
        kvs: BTreeMap<String, Seen>,
    },
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Ok(Told),
    /// It had no effect and never will.
    Failed(String),
    /// It may have taken effect, or may yet.
    Unknown(String),
}

struct Call {
    client: u32,
    ask: Ask,
    invoked: u64,
    end: Option<(u64, End)>,
}

/// The keys that a revision changed, and to what.
type Effects = BTreeMap<String, Option<String>>;

/// Gathers while a run goes on, and judges at its end.
#[derive(Default)]
pub(crate) struct Judge {
    calls: Vec<Call>,
    truth: BTreeMap<i64, Effects>,
    looked_at: BTreeSet<(GroupId, i64)>,
    /// All keys as the groups have them at the end of a whole run.
    pub(crate) final_keys: BTreeMap<String, Seen>,
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All keys of a group as of a revision.
pub(crate) fn keys_of(store: &Store, revision: Option<i64>) -> Option<BTreeMap<String, Seen>> {
    let keys = KeyRange::Part {
        start: Bytes::new(),
        end: None,
        span: store.territory().span,
    };
    let range = Range {
        revision: revision.map(Revision),
        ..Range::of(keys)
    };
    let (_, found) = store.range_with(&range, Locks::Ignore).ok()?.ok()?;
    let keys = found.kvs.iter().map(|kv| {
        let seen = Seen {
            value: text(&kv.value),
            mod_revision: kv.mod_revision.0,
            version: kv.version,
        };
        (text(&kv.key), seen)
    });
    Some(keys.collect())
}

/// The revision that a command has made, if it has made any.
pub(crate) fn written(item: &ApplyItem, result: &CommandResult) -> Option<Revision> {
    match (item, result.result.as_ref().ok()?) {
        (
            ApplyItem::Command {
                command:
                    Command::Shard(ShardCommand::Finish {
                        decision: Decision::Commit { revision, .. },
                        ..
                    }),
                ..
            },
            OpResult::Shard(ShardResult::Finished(Some(_))),
        ) => Some(*revision),
        (_, OpResult::Put { .. } | OpResult::Delete { .. } | OpResult::Txn { .. }) => Some(result.revision),
        (_, OpResult::Range(_) | OpResult::Compact | OpResult::Shard(_)) => None,
    }
}

/// Whether a key's state is as expected.
fn holds(expect: &Expect, state: Option<&(i64, String)>) -> bool {
    match (expect, state) {
        (Expect::Absent, state) => state.is_none(),
        (Expect::ModRevision(_) | Expect::Value(_), None) => false,
        (Expect::ModRevision(revision), Some((at, _))) => revision == at,
        (Expect::Value(value), Some((_, present))) => value == present,
    }
}

impl Judge {
    pub(crate) fn begin(&mut self, client: u32, ask: Ask, now: u64) -> usize {
        self.calls.push(Call {
            client,
            ask,
            invoked: now,
            end: None,
        });
        self.calls.len() - 1
    }

    pub(crate) fn end(&mut self, call: usize, end: End, now: u64) {
        self.calls[call].end = Some((now, end));
    }

    /// A state machine has applied something that may have made this revision: the truth grows. Says what is wrong with it.
    pub(crate) fn applied(
        &mut self,
        group: GroupId,
        stores: &[&Store],
        Revision(revision): Revision,
    ) -> Option<String> {
        if revision < 2 || self.looked_at.contains(&(group, revision)) {
            return None;
        }
        for store in stores {
            let (Some(before), Some(after)) = (keys_of(store, Some(revision - 1)), keys_of(store, Some(revision)))
            else {
                continue;
            };
            let changed = after.iter().filter(|(key, seen)| before.get(*key) != Some(seen));
            let mut effects: Effects = changed
                .map(|(key, seen)| (key.clone(), Some(seen.value.clone())))
                .collect();
            let gone = before.keys().filter(|key| !after.contains_key(*key));
            effects.extend(gone.map(|key| (key.clone(), None)));
            effects.retain(|key, _| key.starts_with('k'));
            if effects.is_empty() {
                continue;
            }
            self.looked_at.insert((group, revision));
            let known = self.truth.entry(revision).or_default();
            for (key, value) in effects {
                let first = known.entry(key.clone()).or_insert_with(|| value.clone());
                if *first != value {
                    return Some(format!(
                        "revision {revision} of key {key} is {value:?} in group {group} and {first:?} elsewhere"
                    ));
                }
            }
        }
        None
    }

    /// Everything that is wrong. Of a run that did not come to its end, only what would be wrong whatever followed.
    pub(crate) fn verdict(&self, whole: bool, now: u64, counts: &mut Counts) -> Vec<String> {
        let mut broken = Vec::new();
        for call in &self.calls {
            match &call.end {
                Some((_, End::Ok(_))) => counts.ok += 1,
                Some((_, End::Failed(_))) => counts.failed += 1,
                Some((_, End::Unknown(_))) | None => counts.unknown += 1,
            }
        }
        let writes = self.writes(whole, &mut broken);
        self.real_time(&writes, &mut broken);
        self.ranges(whole, &writes, &mut broken);
        if whole {
            self.comparisons(&writes, &mut broken);
            self.nothing_lost(&mut broken);
        }
        broken.extend(self.each_key(now));
        broken
    }

    /// The revision that each call wrote, as far as is known.
    fn writes(&self, whole: bool, broken: &mut Vec<String>) -> BTreeMap<usize, i64> {
        // Every value is written once.
        let by_value: BTreeMap<&String, i64> = self
            .truth
            .iter()
            .flat_map(|(revision, effects)| effects.values().flatten().map(|value| (value, *revision)))
            .collect();
        let mut writes: BTreeMap<usize, i64> = BTreeMap::new();
        let mut writers: BTreeMap<i64, usize> = BTreeMap::new();
        for (number, call) in self.calls.iter().enumerate() {
            let effects = call.ask.effects();
            let told = match &call.end {
                Some((_, End::Ok(told))) => told.wrote(),
                Some((_, End::Failed(_) | End::Unknown(_))) | None => None,
            };
            let happened = effects
                .values()
                .flatten()
                .find_map(|value| by_value.get(value).copied());
            if let (Some((_, End::Failed(why))), Some(revision)) = (&call.end, happened) {
                broken.push(format!(
                    "{:?} certainly failed ({why}) and happened at revision {revision}",
                    call.ask
                ));
            }
            if let (Some((_, End::Ok(Told::NotDone | Told::One(Reply::NotSwapped { .. })))), Some(revision)) =
                (&call.end, happened)
            {
                broken.push(format!(
                    "{:?} did nothing and happened at revision {revision}",
                    call.ask
                ));
            }
            let Some(revision) = told.or(happened) else { continue };
            writes.insert(number, revision);
            if let Some(other) = writers.insert(revision, number) {
                broken.push(format!(
                    "revision {revision} is of {:?} and of {:?}",
                    self.calls[other].ask, call.ask
                ));
            }
            // What nobody has applied yet cannot have been acknowledged; what is under way may be half done.
            let found = self.truth.get(&revision);
            if (told.is_some() || whole) && found != Some(&effects) {
                broken.push(format!(
                    "{:?} is revision {revision}, which changed {found:?}",
                    call.ask
                ));
            }
        }
        writes
    }

    /// Who was acknowledged before another began has the smaller revision.
    fn real_time(&self, writes: &BTreeMap<usize, i64>, broken: &mut Vec<String>) {
        let mut acknowledged: Vec<(u64, i64, usize)> = writes
            .iter()
            .filter_map(|(number, revision)| match &self.calls[*number].end {
                Some((at, End::Ok(_))) => Some((*at, *revision, *number)),
                Some((_, End::Failed(_) | End::Unknown(_))) | None => None,
            })
            .collect();
        acknowledged.sort_unstable();
        let mut by_start: Vec<(u64, i64, usize)> = writes
            .iter()
            .map(|(number, revision)| (self.calls[*number].invoked, *revision, *number))
            .collect();
        by_start.sort_unstable();
        let mut earlier = acknowledged.into_iter().peekable();
        let mut highest: Option<(i64, usize)> = None;
        for (invoked, revision, number) in by_start {
            while let Some((_, revision, number)) = earlier.next_if(|(at, _, _)| *at < invoked) {
                highest = highest.max(Some((revision, number)));
            }
            if let Some((before, other)) = highest.filter(|(before, _)| *before >= revision) {
                return broken.push(format!(
                    "{:?} has revision {revision} and began after {:?} of revision {before} was acknowledged",
                    self.calls[number].ask, self.calls[other].ask
                ));
            }
        }
    }

    /// What all writes up to a revision made of the keys.
    fn replay(&self, upto: i64) -> BTreeMap<&String, (i64, String)> {
        let mut state = BTreeMap::new();
        for (revision, effects) in self.truth.range(..=upto) {
            for (key, value) in effects {
                match value {
                    Some(value) => drop(state.insert(key, (*revision, value.clone()))),
                    None => drop(state.remove(key)),
                }
            }
        }
        state
    }

    fn ranges(&self, whole: bool, writes: &BTreeMap<usize, i64>, broken: &mut Vec<String>) {
        for call in &self.calls {
            let Some((returned, End::Ok(Told::Keys { revision, kvs }))) = &call.end else {
                continue;
            };
            for (number, at) in writes {
                let write = &self.calls[*number];
                if let Some((done, End::Ok(_))) = &write.end
                    && *done < call.invoked
                    && at > revision
                {
                    broken.push(format!(
                        "a range as of revision {revision} began after {:?} of revision {at} was acknowledged",
                        write.ask
                    ));
                }
                if write.invoked > *returned && at <= revision {
                    broken.push(format!(
                        "a range as of revision {revision} ended before {:?} of revision {at} began",
                        write.ask
                    ));
                }
            }
            let replayed = self.replay(*revision);
            let shown: BTreeMap<&String, (i64, String)> = kvs
                .iter()
                .map(|(key, seen)| (key, (seen.mod_revision, seen.value.clone())))
                .collect();
            // A state that shows something has applied it.
            if replayed != shown && whole {
                broken.push(format!(
                    "a range as of revision {revision} shows {shown:?}, and all writes up to there make {replayed:?}"
                ));
            }
        }
    }

    /// Comparisons held where something was done, at the revision before it.
    fn comparisons(&self, writes: &BTreeMap<usize, i64>, broken: &mut Vec<String>) {
        for (number, revision) in writes {
            let call = &self.calls[*number];
            let (key, expect) = match &call.ask {
                Ask::One(Op::CompareAndSwap { key, expect, .. }) => (key, expect),
                Ask::Txn {
                    expect: Some((key, expect)),
                    ..
                } => (key, expect),
                Ask::One(Op::Put { .. } | Op::Get { .. } | Op::Delete { .. })
                | Ask::Txn { expect: None, .. }
                | Ask::Range => continue,
            };
            let state = self.replay(revision - 1);
            if !holds(expect, state.get(key)) {
                broken.push(format!(
                    "{:?} happened at revision {revision}, before which key {key} was {:?}",
                    call.ask,
                    state.get(key)
                ));
            }
        }
    }

    fn nothing_lost(&self, broken: &mut Vec<String>) {
        let replayed = self.replay(i64::MAX);
        let found: BTreeMap<&String, (i64, String)> = self
            .final_keys
            .iter()
            .map(|(key, seen)| (key, (seen.mod_revision, seen.value.clone())))
            .collect();
        if replayed != found {
            broken.push(format!("the end has {found:?}, and all writes make {replayed:?}"));
        }
    }

    /// The history of each key by itself.
    fn each_key(&self, now: u64) -> Vec<String> {
        let mut histories: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        for call in &self.calls {
            let (returned_ns, outcomes) = match &call.end {
                Some((at, end)) => (*at, call.ask.by_key(end)),
                None => (now, call.ask.by_key(&End::Unknown("the run ended first".to_owned()))),
            };
            for (op, outcome) in outcomes {
                histories.entry(op.key().to_owned()).or_default().push(Event {
                    client: ClientId(call.client),
                    op,
                    invoked_ns: call.invoked,
                    returned_ns,
                    outcome,
                });
            }
        }
        let judged = histories.into_values().map(|events| {
            let history = History { events };
            // A shard's answers say how far that shard is, not the keyspace.
            let options = lin::Options {
                revisions_of_keys: true,
                ..lin::Options::default()
            };
            match lin::check(&history, options) {
                lin::Verdict::Linearizable => None,
                verdict @ (lin::Verdict::Violated(_) | lin::Verdict::Undecided(_)) => Some(verdict.to_string()),
            }
        });
        judged.flatten().collect()
    }
}

impl Told {
    /// The revision that it made.
    fn wrote(&self) -> Option<i64> {
        match self {
            Self::One(reply) => reply.wrote().then(|| reply.revision()),
            Self::Done { revision } => Some(*revision),
            Self::NotDone | Self::Keys { .. } => None,
        }
    }
}

impl Ask {
    /// What it changes if it happens.
    fn effects(&self) -> Effects {
        match self {
            Self::One(Op::Put { key, value } | Op::CompareAndSwap { key, value, .. }) => {
                [(key.clone(), Some(value.clone()))].into()
            }
            Self::One(Op::Delete { key }) => [(key.clone(), None)].into(),
            Self::One(Op::Get { .. }) | Self::Range => Effects::new(),
            Self::Txn { puts, .. } => puts
                .iter()
                .map(|(key, value)| (key.clone(), Some(value.clone())))
                .collect(),
        }
    }

    /// The same as operations of single keys.
    fn by_key(&self, end: &End) -> Vec<(Op, Outcome)> {
        let told = match end {
            End::Ok(told) => told,
            End::Failed(_) => return Vec::new(),
            End::Unknown(error) => {
                let unknown = || Outcome::Unknown { error: error.clone() };
                return match self {
                    Self::One(op) => vec![(op.clone(), unknown())],
                    Self::Txn { puts, .. } => puts.iter().map(|put| (put_of(put), unknown())).collect(),
                    Self::Range => Vec::new(),
                };
            }
        };
        let ok = |reply| Outcome::Ok { reply };
        match (self, told) {
            (Self::One(op), Told::One(reply)) => vec![(op.clone(), ok(reply.clone()))],
            (Self::Txn { puts, .. }, Told::Done { revision }) => {
                let reply = Reply::Put { revision: *revision };
                puts.iter().map(|put| (put_of(put), ok(reply.clone()))).collect()
            }
            (Self::Range, Told::Keys { kvs, .. }) => {
                // The shard that a key is in may not have come to the range's revision, and say an older one later.
                let get = |(key, seen): (&String, &Seen)| {
                    let reply = Reply::Get {
                        revision: seen.mod_revision,
                        seen: Some(seen.clone()),
                    };
                    (Op::Get { key: key.clone() }, ok(reply))
                };
                kvs.iter().map(get).collect()
            }
            (Self::One(_) | Self::Txn { .. } | Self::Range, _) => Vec::new(),
        }
    }
}

fn put_of((key, value): (&String, &String)) -> Op {
    Op::Put {
        key: key.clone(),
        value: value.clone(),
    }
}
