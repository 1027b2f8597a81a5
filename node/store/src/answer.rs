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
//!           Shard (5)  : see `encode_shard_result`
//! ```
//!
//! Little-endian. Lengths are checked against the bytes that are there before anything is sliced or reserved.

use crate::codec::{CodecError, Reader, TXN_DEPTH_MAX, put_bytes, put_len};
use crate::mvcc::CommandResult;
use crate::ops::{KeyValue, OpError, OpResult, RangeResult, Revision};
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
        tag => Err(CodecError::Tag { what: "result", tag }),
    }
}

fn put_error(error: OpError, out: &mut BytesMut) {
    match error {
        OpError::Compacted => out.put_u8(0),
        OpError::FutureRevision => out.put_u8(1),
        OpError::KeyNotFound => out.put_u8(2),
        OpError::LeaseNotFound => out.put_u8(3),
        OpError::NoSpace => out.put_u8(4),
    }
}

fn take_error(reader: &mut Reader) -> Result<OpError, CodecError> {
    match reader.u8("error")? {
        0 => Ok(OpError::Compacted),
        1 => Ok(OpError::FutureRevision),
        2 => Ok(OpError::KeyNotFound),
        3 => Ok(OpError::LeaseNotFound),
        4 => Ok(OpError::NoSpace),
        tag => Err(CodecError::Tag { what: "error", tag }),
    }
}
