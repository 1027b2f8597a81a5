//! The verdict on a run: a replay of everything that took effect, in the order of revisions, on one state machine with all the keys.

use crate::spread::Violation;
use crate::spread::client::{Outcome, Request};
use crate::spread::group::Group;
use crate::spread::world::World;
use althing_raft::ids::GroupId;
use althing_store::ops::{
    Command, KeyRange, KeyValue, OpResult, Range, Revision, RevisionSource, ShardCommand, Territory,
};
use bytes::Bytes;

fn violation<T>(text: String) -> Result<T, Violation> {
    Err(Violation(text))
}

/// Judges a world that has come to rest.
pub(super) fn check(world: &World) -> Result<(), Violation> {
    let flat = replay(world)?;
    states(world, &flat)?;
    reads(world, &flat)?;
    real_time(world)
}

/// Runs what took effect, and compares each answer.
fn replay(world: &World) -> Result<Group, Violation> {
    let flat = Group::new(GroupId(999));
    let territory = Territory {
        partitioning: world.table.partitioning,
        epoch: 1,
        ..Territory::default()
    };
    let source = RevisionSource::Sequenced;
    flat.apply(Command::Shard(ShardCommand::Settle { territory, source }), None);
    for (revision, number) in &world.effects {
        let record = &world.records[*number];
        let Request::Write(command) = &record.request else {
            return violation(format!(
                "request {number} only read and changed something at {revision}"
            ));
        };
        let expected = flat.apply(command.clone(), Some(*revision));
        match &record.outcome {
            Outcome::Unknown => {}
            Outcome::Nothing | Outcome::Refused(_) => {
                return violation(format!(
                    "request {number} was said to have done nothing, and took effect at {revision}: {command:?}"
                ));
            }
            Outcome::Happened(told) if told == revision => {}
            Outcome::Done(told, result) if (*told, Ok(result)) == (expected.revision, expected.result.as_ref()) => {}
            Outcome::Happened(_) | Outcome::Done(..) => {
                return violation(format!(
                    "request {number} took effect at {revision}, where one shard would say {expected:?}; the client was told {:?}: \
                     {command:?}",
                    record.outcome
                ));
            }
        }
    }
    for (number, record) in world.records.iter().enumerate() {
        let told = matches!(record.outcome, Outcome::Done(..) | Outcome::Happened(_));
        if told && matches!(record.request, Request::Write(_)) && !world.effects.values().any(|of| *of == number) {
            return violation(format!(
                "request {number} was said to have happened and did not: {:?}",
                record.outcome
            ));
        }
    }
    Ok(flat)
}

fn everything(group: &Group, at: Revision) -> Vec<KeyValue> {
    let span = group.mvcc.territory().span;
    let keys = if span.is_whole() {
        KeyRange::From(Bytes::new())
    } else {
        KeyRange::Part {
            start: Bytes::new(),
            end: None,
            span,
        }
    };
    let range = Range {
        revision: Some(at),
        ..Range::of(keys)
    };
    let answer = group.mvcc.range(&range).expect("memory reads");
    answer.expect("nothing is locked or compacted").1.kvs
}

/// At every revision, all shards together must be what one would be.
fn states(world: &World, flat: &Group) -> Result<(), Violation> {
    for revision in world.effects.keys() {
        let mut kvs: Vec<_> = world.shards().flat_map(|group| everything(group, *revision)).collect();
        kvs.sort_by(|left, right| left.key.cmp(&right.key));
        let expected = everything(flat, *revision);
        if kvs != expected {
            return violation(format!(
                "at revision {revision} the shards have {kvs:?}, and should have {expected:?}"
            ));
        }
    }
    Ok(())
}

/// Every read must be what was there at its revision.
fn reads(world: &World, flat: &Group) -> Result<(), Violation> {
    for (number, record) in world.records.iter().enumerate() {
        let (Request::Read(range), Outcome::Done(revision, result)) = (&record.request, &record.outcome) else {
            continue;
        };
        let range = Range {
            revision: Some(*revision),
            ..range.clone()
        };
        let answer = flat.mvcc.range(&range).expect("memory reads");
        let expected = OpResult::Range(answer.expect("nothing is compacted").1);
        if *result != expected {
            return violation(format!(
                "read {number} at {revision} found {result:?}, and should have found {expected:?}: {:?}",
                range.keys
            ));
        }
    }
    Ok(())
}

/// What ended before something began has the smaller revision: a write's own, and a read's the one that it read at.
fn real_time(world: &World) -> Result<(), Violation> {
    let effect = |number: usize| {
        world
            .effects
            .iter()
            .find_map(|(revision, of)| (*of == number).then_some(*revision))
    };
    // In the order in which things happened: what began, and what ended with which revision.
    let mut moments = Vec::new();
    for (number, record) in world.records.iter().enumerate() {
        let (revision, writes) = match (&record.request, &record.outcome) {
            (Request::Write(_), _) => (effect(number), true),
            (Request::Read(_), Outcome::Done(revision, _)) => (Some(*revision), false),
            (Request::Read(_), _) => (None, false),
        };
        let Some(revision) = revision else { continue };
        moments.push((record.invoked, false, revision, writes, number));
        let told = matches!(record.outcome, Outcome::Done(..) | Outcome::Happened(_));
        if let Some(ended) = record.ended.filter(|_| told) {
            moments.push((ended, true, revision, writes, number));
        }
    }
    moments.sort_unstable_by_key(|(moment, ..)| *moment);
    let mut newest = (Revision(0), usize::MAX);
    for (_, ends, revision, writes, number) in moments {
        if ends {
            newest = newest.max((revision, number));
        } else if revision < newest.0 || writes && revision == newest.0 {
            return violation(format!(
                "request {number} has revision {revision}, and began after request {} had ended with {}",
                newest.1, newest.0
            ));
        }
    }
    Ok(())
}
