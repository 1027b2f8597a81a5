//! Putting shards' answers together.

use crate::route::{Mismatch, Prepared};
use althing_raft::ids::GroupId;
use althing_store::finish_range;
use althing_store::ops::{Op, OpError, OpResult, Range, RangeResult, Revision, Txn, Verdict};
use std::collections::BTreeMap;

fn mismatch<T>(wanted: &'static str, found: &'static str) -> Result<T, Mismatch> {
    Err(Mismatch { wanted, found })
}

fn kind(result: &OpResult) -> &'static str {
    match result {
        OpResult::Range(_) => "a range",
        OpResult::Put { .. } => "a put",
        OpResult::Delete { .. } => "a delete",
        OpResult::Txn { .. } => "a transaction",
        OpResult::Compact => "a compaction",
        OpResult::Shard(_) => "a shard's matter",
    }
}

/// One answer from those of several shards, of which each has some of the keys.
fn merge_ranges(range: &Range, answers: &[&RangeResult]) -> RangeResult {
    if let [only] = answers {
        return (*only).clone();
    }
    let (mut kvs, mut more, mut count) = (Vec::new(), false, 0);
    for answer in answers {
        kvs.extend_from_slice(&answer.kvs);
        more |= answer.more;
        count += answer.count;
    }
    kvs.sort_by(|left, right| left.key.cmp(&right.key));
    let mut merged = finish_range(range, kvs, count);
    merged.more |= more;
    merged
}

/// The answer to a transaction from those to its parts.
pub(super) fn merge(whole: &Txn, parts: Vec<&OpResult>) -> Result<OpResult, Mismatch> {
    if let [only] = &parts[..] {
        return Ok((*only).clone());
    }
    let mut taken = None;
    let mut rows = Vec::with_capacity(parts.len());
    for part in parts {
        let OpResult::Txn { succeeded, results } = part else {
            return mismatch("a transaction", kind(part));
        };
        if *taken.get_or_insert(*succeeded) != *succeeded {
            return mismatch("the same branch from all", "different ones");
        }
        rows.push(results);
    }
    let Some(succeeded) = taken else {
        return mismatch("a transaction", "nothing");
    };
    let branch = if succeeded { &whole.success } else { &whole.failure };
    if rows.iter().any(|results| results.len() != branch.len()) {
        return mismatch("an answer to every operation", "another number");
    }
    let merged = branch.iter().enumerate().map(|(at, op)| {
        let column: Vec<_> = rows.iter().map(|results| &results[at]).collect();
        // Each shard says whether it has changed anything so far; the transaction has if one of them has.
        let revision = column.iter().map(|(revision, _)| *revision).max();
        let result = merge_op(op, column.into_iter().map(|(_, result)| result).collect())?;
        Ok((revision.unwrap_or_default(), result))
    });
    Ok(OpResult::Txn {
        succeeded,
        results: merged.collect::<Result<_, _>>()?,
    })
}

fn merge_op(op: &Op, answers: Vec<&OpResult>) -> Result<OpResult, Mismatch> {
    match op {
        Op::Txn(inner) => merge(inner, answers),
        Op::Range(range) => {
            let ranges = answers.into_iter().map(|answer| {
                let OpResult::Range(result) = answer else {
                    return mismatch("a range", kind(answer));
                };
                Ok(result)
            });
            let ranges: Vec<_> = ranges.collect::<Result<_, _>>()?;
            Ok(OpResult::Range(merge_ranges(range, &ranges)))
        }
        // Shards without a part in them answer with a range that found nothing.
        Op::Put(_) => {
            let put = answers
                .into_iter()
                .find(|answer| matches!(answer, OpResult::Put { .. }));
            put.cloned().map_or_else(|| mismatch("a put", "none"), Ok)
        }
        Op::Delete(_) => {
            let (mut all, mut kvs) = (0, Vec::new());
            for answer in answers {
                if let OpResult::Delete { deleted, prev } = answer {
                    all += deleted;
                    kvs.extend_from_slice(prev);
                }
            }
            kvs.sort_by(|left, right| left.key.cmp(&right.key));
            Ok(OpResult::Delete {
                deleted: all,
                prev: kvs,
            })
        }
    }
}

/// Whether anything was changed at this revision.
pub(super) fn changed(result: &OpResult, at: Revision) -> bool {
    match result {
        OpResult::Txn { results, .. } => results
            .iter()
            .any(|(revision, result)| *revision == at || changed(result, at)),
        OpResult::Range(_)
        | OpResult::Put { .. }
        | OpResult::Delete { .. }
        | OpResult::Compact
        | OpResult::Shard(_) => false,
    }
}

/// Visits the transactions that are run when these branches are taken, each with its branch and its number in depth-first order.
fn run<'t>(
    txn: &'t Txn,
    branches: &mut impl Iterator<Item = bool>,
    taken: bool,
    visit: &mut impl FnMut(&'t Txn, bool, usize),
    number: &mut usize,
) {
    let here = *number;
    *number += 1;
    let succeeded = branches.next().unwrap_or_default();
    if taken {
        visit(txn, succeeded, here);
    }
    for (chosen, branch) in [(succeeded, &txn.success), (!succeeded, &txn.failure)] {
        for op in branch {
            if let Op::Txn(inner) = op {
                run(inner, branches, taken && chosen, visit, number);
            }
        }
    }
}

/// Transactions of a transaction, itself included.
fn transactions(txn: &Txn) -> usize {
    let inner = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Txn(inner) => transactions(inner),
        Op::Range(_) | Op::Put(_) | Op::Delete(_) => 0,
    });
    1 + inner.sum::<usize>()
}

pub(super) fn choose(
    whole: &Txn,
    prepared: &BTreeMap<GroupId, Prepared>,
    revision: Revision,
) -> Result<Result<Vec<bool>, OpError>, Mismatch> {
    let count = transactions(whole);
    if prepared.is_empty()
        || prepared
            .values()
            .any(|said| said.verdicts.len() != count || said.errors.len() != count)
    {
        return mismatch("verdicts on every transaction", "another number");
    }
    let mut path = Vec::with_capacity(count);
    for number in 0..count {
        let compares = prepared.values().map(|said| said.verdicts[number].len());
        let compares = compares.max().unwrap_or(0);
        let mut holds = true;
        for at in 0..compares {
            let verdicts = prepared.values().map(|said| said.verdicts[number].get(at).copied());
            match verdicts.collect::<Option<Vec<_>>>() {
                Some(verdicts) => holds &= Verdict::all(verdicts),
                None => return mismatch("verdicts on every comparison", "another number"),
            }
        }
        path.push(holds);
    }
    let mut refused = None;
    let mut refuse = |txn: &Txn, succeeded: bool, number: usize| {
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let by_shards = || {
            prepared
                .values()
                .find_map(|said| said.errors[number][usize::from(!succeeded)])
        };
        let future = || {
            let asks = branch.iter().any(|op| match op {
                Op::Range(range) => range.revision.is_some_and(|asked| asked >= revision),
                Op::Put(_) | Op::Delete(_) | Op::Txn(_) => false,
            });
            asks.then_some(OpError::FutureRevision)
        };
        refused = refused.or_else(by_shards).or_else(future);
    };
    run(whole, &mut path.iter().copied(), true, &mut refuse, &mut 0);
    Ok(refused.map_or(Ok(path), Err))
}
