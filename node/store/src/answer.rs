//! Answers of a state machine as bytes, for members that ask on behalf of their clients.
//!
//! ```text
//! answer := version u8 | revision i64 | 0 u8 | result
//!                                     | 1 u8 | error
//! result := Range (0)  : range answer
//!           Put (1)    : optional key
//!           Delete (2) : count i64 | keys
//!           Txn (3)    : succeeded u8 | count u32 | (revision i64 | result) ...
//!           Compact (4): nothing
//!           Shard (5)  : kind u8 | what it says
//! ```
//!
//! Little-endian. Lengths are checked against the bytes that are there before anything is sliced or reserved.

use crate::codec::shard::{decode_decision, decode_txn_id, encode_decision, encode_txn_id};
use crate::codec::{CodecError, Reader, TXN_DEPTH_MAX, put_bytes, put_len};
use crate::mvcc::CommandResult;
use crate::ops::{KeyValue, OpError, OpResult, RangeResult, Revision, ShardResult, Verdict};
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use bytes::{BufMut, Bytes, BytesMut};

/// Version of an answer's form.
const ANSWER_VERSION: u8 = 1;

/// As bytes.
#[must_use]
pub fn encode_answer(answer: &CommandResult) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(ANSWER_VERSION);
    out.put_i64_le(answer.revision.0);
    match &answer.result {
        Ok(result) => {
            out.put_u8(0);
            put_result(result, &mut out);
        }
        Err(error) => {
            out.put_u8(1);
            put_error(*error, &mut out);
        }
    }
    out.freeze()
}

/// Reads an answer that fills `bytes` exactly. Keys and values share its memory.
///
/// # Errors
/// If the bytes are anything else.
pub fn decode_answer(bytes: Bytes) -> Result<CommandResult, CodecError> {
    let mut reader = Reader(bytes);
    match reader.u8("answer")? {
        ANSWER_VERSION => {}
        tag => {
            return Err(CodecError::Tag {
                what: "answer version",
                tag,
            });
        }
    }
    let revision = Revision(reader.i64("revision")?);
    let result = match reader.u8("answer")? {
        0 => Ok(take_result(&mut reader, 1)?),
        1 => Err(take_error(&mut reader)?),
        tag => return Err(CodecError::Tag { what: "answer", tag }),
    };
    reader.finish("answer")?;
    Ok(CommandResult { revision, result })
}

fn put_key_value(kv: &KeyValue, out: &mut BytesMut) {
    put_bytes(&kv.key, out);
    out.put_i64_le(kv.create_revision.0);
    out.put_i64_le(kv.mod_revision.0);
    out.put_i64_le(kv.version);
    put_bytes(&kv.value, out);
    out.put_i64_le(kv.lease);
}

fn take_key_value(reader: &mut Reader) -> Result<KeyValue, CodecError> {
    Ok(KeyValue {
        key: reader.bytes("key")?,
        create_revision: Revision(reader.i64("create revision")?),
        mod_revision: Revision(reader.i64("mod revision")?),
        version: reader.i64("version")?,
        value: reader.bytes("value")?,
        lease: reader.i64("lease")?,
    })
}

fn put_key_values(kvs: &[KeyValue], out: &mut BytesMut) {
    put_len(kvs.len(), out);
    kvs.iter().for_each(|kv| put_key_value(kv, out));
}

fn take_key_values(reader: &mut Reader) -> Result<Vec<KeyValue>, CodecError> {
    let count = reader.u32("keys")?;
    // Grows with what is there, whatever the count says.
    (0..count).map(|_| take_key_value(reader)).collect()
}

fn put_result(result: &OpResult, out: &mut BytesMut) {
    match result {
        OpResult::Range(RangeResult { kvs, more, count }) => {
            out.put_u8(0);
            put_key_values(kvs, out);
            out.put_u8(u8::from(*more));
            out.put_i64_le(*count);
        }
        OpResult::Put { prev } => {
            out.put_u8(1);
            put_key_values(prev.as_slice(), out);
        }
        OpResult::Delete { deleted, prev } => {
            out.put_u8(2);
            out.put_i64_le(*deleted);
            put_key_values(prev, out);
        }
        OpResult::Txn { succeeded, results } => {
            out.put_u8(3);
            out.put_u8(u8::from(*succeeded));
            put_len(results.len(), out);
            for (revision, result) in results {
                out.put_i64_le(revision.0);
                put_result(result, out);
            }
        }
        OpResult::Compact => out.put_u8(4),
        OpResult::Shard(result) => {
            out.put_u8(5);
            put_shard(result, out);
        }
    }
}

fn take_result(reader: &mut Reader, depth: usize) -> Result<OpResult, CodecError> {
    if depth > TXN_DEPTH_MAX {
        return Err(CodecError::TooDeep);
    }
    match reader.u8("result")? {
        0 => Ok(OpResult::Range(RangeResult {
            kvs: take_key_values(reader)?,
            more: reader.bool("more")?,
            count: reader.i64("count")?,
        })),
        1 => Ok(OpResult::Put {
            prev: take_key_values(reader)?.pop(),
        }),
        2 => Ok(OpResult::Delete {
            deleted: reader.i64("deleted")?,
            prev: take_key_values(reader)?,
        }),
        3 => {
            let succeeded = reader.bool("succeeded")?;
            let count = reader.u32("results")?;
            let results = (0..count).map(|_| {
                let revision = Revision(reader.i64("revision")?);
                Ok((revision, take_result(reader, depth + 1)?))
            });
            Ok(OpResult::Txn {
                succeeded,
                results: results.collect::<Result<_, CodecError>>()?,
            })
        }
        4 => Ok(OpResult::Compact),
        5 => Ok(OpResult::Shard(take_shard(reader, depth)?)),
        tag => Err(CodecError::Tag { what: "result", tag }),
    }
}

fn put_shard(result: &ShardResult, out: &mut BytesMut) {
    match result {
        ShardResult::Settled { current } => {
            out.put_u8(0);
            out.put_i64_le(current.0);
        }
        ShardResult::Split => out.put_u8(1),
        ShardResult::Sealed { at } => {
            out.put_u8(2);
            out.put_u64_le(at.term.0);
            out.put_u64_le(at.index.0);
        }
        ShardResult::Unsealed => out.put_u8(3),
        ShardResult::Absorbed => out.put_u8(4),
        ShardResult::Prepared { verdicts, errors } => {
            out.put_u8(5);
            put_len(verdicts.len(), out);
            for (verdicts, errors) in verdicts.iter().zip(errors) {
                put_len(verdicts.len(), out);
                verdicts.iter().for_each(|verdict| {
                    out.put_u8(match verdict {
                        Verdict::Holds => 0,
                        Verdict::Fails => 1,
                        Verdict::Empty(false) => 2,
                        Verdict::Empty(true) => 3,
                    });
                });
                for error in errors {
                    out.put_u8(u8::from(error.is_some()));
                    if let Some(error) = error {
                        put_error(*error, out);
                    }
                }
            }
        }
        ShardResult::Decided(decision) => {
            out.put_u8(6);
            encode_decision(decision, out);
        }
        ShardResult::Finished(result) => {
            out.put_u8(7);
            out.put_u8(u8::from(result.is_some()));
            if let Some(result) = result {
                put_result(result, out);
            }
        }
        ShardResult::Forgotten => out.put_u8(8),
    }
}

fn take_shard(reader: &mut Reader, depth: usize) -> Result<ShardResult, CodecError> {
    match reader.u8("shard result")? {
        0 => Ok(ShardResult::Settled {
            current: Revision(reader.i64("revision")?),
        }),
        1 => Ok(ShardResult::Split),
        2 => Ok(ShardResult::Sealed {
            at: LogPosition {
                term: Term(reader.u64("position")?),
                index: Index(reader.u64("position")?),
            },
        }),
        3 => Ok(ShardResult::Unsealed),
        4 => Ok(ShardResult::Absorbed),
        5 => {
            let count = reader.u32("transactions")?;
            let (mut verdicts, mut errors) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let compares = reader.u32("verdicts")?;
                let verdict = |reader: &mut Reader| match reader.u8("verdict")? {
                    0 => Ok(Verdict::Holds),
                    1 => Ok(Verdict::Fails),
                    2 => Ok(Verdict::Empty(false)),
                    3 => Ok(Verdict::Empty(true)),
                    tag => Err(CodecError::Tag { what: "verdict", tag }),
                };
                verdicts.push((0..compares).map(|_| verdict(reader)).collect::<Result<_, _>>()?);
                let mut of = [None; 2];
                for error in &mut of {
                    *error = reader.bool("error")?.then(|| take_error(reader)).transpose()?;
                }
                errors.push(of);
            }
            Ok(ShardResult::Prepared { verdicts, errors })
        }
        6 => Ok(ShardResult::Decided(decode_decision(reader)?)),
        7 => {
            let result = reader
                .bool("result")?
                .then(|| take_result(reader, depth + 1))
                .transpose()?;
            Ok(ShardResult::Finished(result.map(Box::new)))
        }
        8 => Ok(ShardResult::Forgotten),
        tag => Err(CodecError::Tag {
            what: "shard result",
            tag,
        }),
    }
}

fn put_error(error: OpError, out: &mut BytesMut) {
    match error {
        OpError::Compacted => out.put_u8(0),
        OpError::FutureRevision => out.put_u8(1),
        OpError::KeyNotFound => out.put_u8(2),
        OpError::LeaseNotFound => out.put_u8(3),
        OpError::NoSpace => out.put_u8(4),
        OpError::WrongShard => out.put_u8(5),
        OpError::Sealed => out.put_u8(6),
        OpError::Locked { txn, coordinator } => {
            out.put_u8(7);
            encode_txn_id(txn, out);
            out.put_u64_le(coordinator.0);
        }
        OpError::Unstamped => out.put_u8(8),
        OpError::Stale => out.put_u8(9),
    }
}

fn take_error(reader: &mut Reader) -> Result<OpError, CodecError> {
    match reader.u8("error")? {
        0 => Ok(OpError::Compacted),
        1 => Ok(OpError::FutureRevision),
        2 => Ok(OpError::KeyNotFound),
        3 => Ok(OpError::LeaseNotFound),
        4 => Ok(OpError::NoSpace),
        5 => Ok(OpError::WrongShard),
        6 => Ok(OpError::Sealed),
        7 => Ok(OpError::Locked {
            txn: decode_txn_id(reader)?,
            coordinator: GroupId(reader.u64("coordinator")?),
        }),
        8 => Ok(OpError::Unstamped),
        9 => Ok(OpError::Stale),
        tag => Err(CodecError::Tag { what: "error", tag }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Decision, TxnId};
    use althing_raft::ids::MemberId;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn key_value() -> impl Strategy<Value = KeyValue> {
        (bytes(), any::<i64>(), any::<i64>(), any::<i64>(), bytes(), any::<i64>()).prop_map(
            |(key, create, modified, version, value, lease)| KeyValue {
                key,
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                version,
                value,
                lease,
            },
        )
    }

    fn error() -> impl Strategy<Value = OpError> {
        let txn = TxnId {
            member: MemberId(7),
            nonce: 8,
            number: 9,
        };
        let coordinator = GroupId(3);
        prop_oneof![
            Just(OpError::Compacted),
            Just(OpError::FutureRevision),
            Just(OpError::KeyNotFound),
            Just(OpError::LeaseNotFound),
            Just(OpError::NoSpace),
            Just(OpError::WrongShard),
            Just(OpError::Sealed),
            Just(OpError::Locked { txn, coordinator }),
            Just(OpError::Unstamped),
            Just(OpError::Stale),
        ]
    }

    fn shard() -> impl Strategy<Value = ShardResult> {
        let verdict = prop_oneof![
            Just(Verdict::Holds),
            Just(Verdict::Fails),
            any::<bool>().prop_map(Verdict::Empty)
        ];
        let verdicts = proptest::collection::vec(verdict, 0..3);
        let errors = [proptest::option::of(error()), proptest::option::of(error())];
        let decision = prop_oneof![
            Just(Decision::Abort),
            (any::<i64>(), proptest::collection::vec(any::<bool>(), 0..4)).prop_map(|(revision, path)| {
                Decision::Commit {
                    revision: Revision(revision),
                    path,
                }
            }),
        ];
        prop_oneof![
            any::<i64>().prop_map(|current| ShardResult::Settled {
                current: Revision(current)
            }),
            Just(ShardResult::Split),
            (any::<u64>(), any::<u64>()).prop_map(|(term, index)| ShardResult::Sealed {
                at: LogPosition {
                    term: Term(term),
                    index: Index(index),
                }
            }),
            Just(ShardResult::Unsealed),
            Just(ShardResult::Absorbed),
            proptest::collection::vec((verdicts, errors), 0..3).prop_map(|all| {
                let (verdicts, errors) = all.into_iter().unzip();
                ShardResult::Prepared { verdicts, errors }
            }),
            decision.prop_map(ShardResult::Decided),
            Just(ShardResult::Finished(None)),
            Just(ShardResult::Forgotten),
        ]
    }

    fn result() -> impl Strategy<Value = OpResult> {
        let kvs = || proptest::collection::vec(key_value(), 0..3);
        let leaf = prop_oneof![
            (kvs(), any::<bool>(), any::<i64>()).prop_map(|(kvs, more, count)| OpResult::Range(RangeResult {
                kvs,
                more,
                count
            })),
            proptest::option::of(key_value()).prop_map(|prev| OpResult::Put { prev }),
            (any::<i64>(), kvs()).prop_map(|(deleted, prev)| OpResult::Delete { deleted, prev }),
            Just(OpResult::Compact),
            shard().prop_map(OpResult::Shard),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let results = proptest::collection::vec((any::<i64>().prop_map(Revision), inner.clone()), 0..3);
            prop_oneof![
                (any::<bool>(), results).prop_map(|(succeeded, results)| OpResult::Txn { succeeded, results }),
                inner.prop_map(|result| OpResult::Shard(ShardResult::Finished(Some(Box::new(result))))),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_answer_comes_back(revision: i64, result in prop_oneof![result().prop_map(Ok), error().prop_map(Err)]) {
            let answer = CommandResult { revision: Revision(revision), result };
            prop_assert_eq!(decode_answer(encode_answer(&answer)), Ok(answer));
        }

        #[test]
        fn what_is_cut_short_or_longer_is_refused(result in result(), cut: usize) {
            let bytes = encode_answer(&CommandResult { revision: Revision(1), result: Ok(result) });
            let short = bytes.slice(..cut % bytes.len());
            prop_assert!(decode_answer(short).is_err());
            let mut longer = bytes.to_vec();
            longer.push(0);
            prop_assert!(decode_answer(longer.into()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            let _ = decode_answer(bytes.clone().into());
            bytes.insert(0, ANSWER_VERSION);
            let _ = decode_answer(bytes.into());
        }
    }
}
