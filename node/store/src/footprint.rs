//! Which keys a request touches, for the read gate of consensus (`althing_raft::roster`).

use crate::ops::{Command, KeyRange, Op, Range, ShardCommand, Txn};
use althing_raft::roster::{Footprint, Span};
use bytes::Bytes;

/// Keys of one request that are told apart; a request with more counts as touching all of its keyspace.
const SPANS_MAX: usize = 256;

fn span(keys: &KeyRange) -> Span {
    match keys {
        KeyRange::Single(key) => Span::Key(key.clone()),
        KeyRange::Between(start, end) => Span::Range {
            start: start.clone(),
            end: Some(end.clone()),
        },
        KeyRange::From(start) => Span::Range {
            start: start.clone(),
            end: None,
        },
        KeyRange::Part { start, end, .. } => Span::Range {
            start: start.clone(),
            end: end.clone(),
        },
    }
}

fn footprint(spans: Vec<Span>) -> Footprint {
    if spans.len() > SPANS_MAX {
        Footprint::All
    } else {
        Footprint::Spans(spans)
    }
}

/// The keys that a command may write, in whichever branch of a transaction.
#[must_use]
pub fn written(command: &Command) -> Footprint {
    fn add(ops: &[Op], spans: &mut Vec<Span>) {
        for op in ops {
            match op {
                Op::Range(_) => {}
                Op::Put(put) => spans.push(Span::Key(put.key.clone())),
                Op::Delete(delete) => spans.push(span(&delete.keys)),
                Op::Txn(inner) => {
                    add(&inner.success, spans);
                    add(&inner.failure, spans);
                }
            }
        }
    }
    let of = |txn: &Txn| {
        let mut spans = Vec::new();
        add(&txn.success, &mut spans);
        add(&txn.failure, &mut spans);
        footprint(spans)
    };
    match command {
        Command::Put(put) => Footprint::key(put.key.clone()),
        Command::Delete(delete) => Footprint::Spans(vec![span(&delete.keys)]),
        Command::Txn(txn) => of(txn),
        // From its locks on, which a read must meet: the transaction may be acknowledged before it is finished here.
        Command::Shard(ShardCommand::Prepare { part, .. }) => of(part),
        Command::Shard(ShardCommand::Decide { .. } | ShardCommand::Forget { .. }) => Footprint::Spans(Vec::new()),
        // They change which reads are answered at all, or which keys are written is not told.
        Command::Shard(
            ShardCommand::Settle { .. }
            | ShardCommand::Split { .. }
            | ShardCommand::Seal { .. }
            | ShardCommand::Unseal { .. }
            | ShardCommand::Absorb { .. }
            | ShardCommand::Finish { .. },
        ) => Footprint::All,
        // It changes what a read of any key at an old revision answers.
        Command::Compact(_) => Footprint::All,
    }
}

/// The keys that a range looks at. One at a named revision asks whether the whole keyspace has reached it: somebody has seen that
/// revision, perhaps with another key.
#[must_use]
pub fn read(range: &Range) -> Footprint {
    match range.revision {
        Some(_) => Footprint::All,
        None => Footprint::Spans(vec![span(&range.keys)]),
    }
}

/// The keys that a read-only transaction looks at, in whichever branch.
#[must_use]
pub fn read_txn(txn: &Txn) -> Footprint {
    /// `false`: every key.
    fn add(txn: &Txn, spans: &mut Vec<Span>) -> bool {
        spans.extend(txn.compares.iter().map(|compare| span(&compare.keys)));
        txn.success.iter().chain(&txn.failure).all(|op| {
            match op {
                Op::Range(range) if range.revision.is_some() => return false,
                Op::Range(range) => spans.push(span(&range.keys)),
                Op::Put(put) => spans.push(Span::Key(put.key.clone())),
                Op::Delete(delete) => spans.push(span(&delete.keys)),
                Op::Txn(inner) => return add(inner, spans),
            }
            true
        })
    }
    let mut spans = Vec::new();
    if add(txn, &mut spans) {
        footprint(spans)
    } else {
        Footprint::All
    }
}

/// The keys that an encoded command may write; all of them if it cannot be read.
#[must_use]
pub fn written_by(command: Bytes) -> Footprint {
    crate::codec::decode_command(command).map_or(Footprint::All, |command| written(&command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Delete, Put, Range, Revision};

    fn put(key: &'static str) -> Op {
        Op::Put(Put {
            key: Bytes::from_static(key.as_bytes()),
            value: None,
            lease: None,
            prev_kv: false,
        })
    }

    fn key(key: &'static str) -> Span {
        Span::Key(Bytes::from_static(key.as_bytes()))
    }

    #[test]
    fn a_transaction_writes_what_any_branch_at_any_depth_may_write_and_reads_do_not_count() {
        let all = Range::of(KeyRange::From(Bytes::new()));
        let inner = Txn {
            failure: vec![put("c")],
            ..Txn::default()
        };
        let txn = Txn {
            success: vec![put("a"), Op::Range(all)],
            failure: vec![
                Op::Txn(inner),
                Op::Delete(Delete {
                    keys: KeyRange::From(Bytes::from_static(b"x")),
                    prev_kv: false,
                }),
            ],
            ..Txn::default()
        };
        let from_x = Span::Range {
            start: Bytes::from_static(b"x"),
            end: None,
        };
        assert_eq!(
            written(&Command::Txn(txn)),
            Footprint::Spans(vec![key("a"), key("c"), from_x])
        );
    }

    #[test]
    fn what_is_too_fine_or_cannot_be_told_counts_as_everything() {
        let many = Txn {
            success: vec![put("k"); SPANS_MAX + 1],
            ..Txn::default()
        };
        assert_eq!(written(&Command::Txn(many)), Footprint::All);
        assert_eq!(written(&Command::Compact(Revision(3))), Footprint::All);
        assert_eq!(written_by(Bytes::from_static(b"no command")), Footprint::All);
    }
}
