//! Commands about the shard itself, and what they are about.

use super::{CodecError, Reader, decode_txn, encode_txn, put_bytes, put_len};
use crate::ops::{Decision, Partitioning, Revision, RevisionSource, ShardCommand, Span, Territory, TxnId};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use bytes::{BufMut, Bytes};

const SETTLE: u8 = 0;
const SPLIT: u8 = 1;
const SEAL: u8 = 2;
const UNSEAL: u8 = 3;
const ABSORB: u8 = 4;
const PREPARE: u8 = 5;
const DECIDE: u8 = 6;
const FINISH: u8 = 7;
const FORGET: u8 = 8;

/// Whether the command of this tag must stand last in its batch, see `ApplyItem::ends_batch`.
pub(super) fn ends_batch(tag: u8) -> bool {
    matches!(tag, SPLIT | SEAL | ABSORB)
}

pub(super) fn encode(command: &ShardCommand, out: &mut impl BufMut) {
    match command {
        ShardCommand::Settle { territory, source } => {
            out.put_u8(SETTLE);
            encode_territory(territory, out);
            encode_source(*source, out);
        }
        ShardCommand::Split { epoch, at, child } => {
            out.put_u8(SPLIT);
            out.put_u64_le(*epoch);
            put_bytes(at, out);
            out.put_u64_le(child.0);
        }
        ShardCommand::Seal { operation } => {
            out.put_u8(SEAL);
            out.put_u64_le(*operation);
        }
        ShardCommand::Unseal { operation } => {
            out.put_u8(UNSEAL);
            out.put_u64_le(*operation);
        }
        ShardCommand::Absorb {
            operation,
            from,
            position,
            territory,
        } => {
            out.put_u8(ABSORB);
            out.put_u64_le(*operation);
            out.put_u64_le(from.0);
            out.put_u64_le(position.term.0);
            out.put_u64_le(position.index.0);
            encode_territory(territory, out);
        }
        ShardCommand::Prepare { txn, coordinator, part } => {
            out.put_u8(PREPARE);
            encode_txn_id(*txn, out);
            out.put_u64_le(coordinator.0);
            encode_txn(part, out);
        }
        ShardCommand::Decide { txn, decision } => {
            out.put_u8(DECIDE);
            encode_txn_id(*txn, out);
            encode_decision(decision, out);
        }
        ShardCommand::Finish { txn, decision } => {
            out.put_u8(FINISH);
            encode_txn_id(*txn, out);
            encode_decision(decision, out);
        }
        ShardCommand::Forget { txn } => {
            out.put_u8(FORGET);
            encode_txn_id(*txn, out);
        }
    }
}

pub(super) fn decode(reader: &mut Reader) -> Result<ShardCommand, CodecError> {
    Ok(match reader.u8("shard command")? {
        SETTLE => ShardCommand::Settle {
            territory: decode_territory(reader)?,
            source: decode_source(reader)?,
        },
        SPLIT => ShardCommand::Split {
            epoch: reader.u64("epoch")?,
            at: reader.bytes("split key")?,
            child: GroupId(reader.u64("group")?),
        },
        SEAL => ShardCommand::Seal {
            operation: reader.u64("operation")?,
        },
        UNSEAL => ShardCommand::Unseal {
            operation: reader.u64("operation")?,
        },
        ABSORB => ShardCommand::Absorb {
            operation: reader.u64("operation")?,
            from: GroupId(reader.u64("group")?),
            position: LogPosition {
                term: Term(reader.u64("log position")?),
                index: Index(reader.u64("log position")?),
            },
            territory: decode_territory(reader)?,
        },
        PREPARE => ShardCommand::Prepare {
            txn: decode_txn_id(reader)?,
            coordinator: GroupId(reader.u64("group")?),
            part: decode_txn(reader, 1)?,
        },
        DECIDE => ShardCommand::Decide {
            txn: decode_txn_id(reader)?,
            decision: decode_decision(reader)?,
        },
        FINISH => ShardCommand::Finish {
            txn: decode_txn_id(reader)?,
            decision: decode_decision(reader)?,
        },
        FORGET => ShardCommand::Forget {
            txn: decode_txn_id(reader)?,
        },
        tag => {
            return Err(CodecError::Tag {
                what: "shard command",
                tag,
            });
        }
    })
}

pub(crate) fn encode_span(span: &Span, out: &mut impl BufMut) {
    put_bytes(&span.start, out);
    match &span.end {
        None => out.put_u8(0),
        Some(end) => {
            out.put_u8(1);
            put_bytes(end, out);
        }
    }
}

pub(crate) fn decode_span(reader: &mut Reader) -> Result<Span, CodecError> {
    Ok(Span {
        start: reader.bytes("span start")?,
        end: reader.option("span end", |reader| reader.bytes("span end"))?,
    })
}

/// `0 | span | epoch`, or `1 | slots u32 | segments option | span | epoch`.
pub(crate) fn encode_territory(territory: &Territory, out: &mut impl BufMut) {
    match territory.partitioning {
        Partitioning::Range => out.put_u8(0),
        Partitioning::Hash { slots, prefix_segments } => {
            out.put_u8(1);
            out.put_u32_le(slots);
            match prefix_segments {
                None => out.put_u8(0),
                Some(segments) => {
                    out.put_u8(1);
                    out.put_u8(segments);
                }
            }
        }
    }
    encode_span(&territory.span, out);
    out.put_u64_le(territory.epoch);
}

pub(crate) fn decode_territory(reader: &mut Reader) -> Result<Territory, CodecError> {
    let partitioning = match reader.u8("partitioning")? {
        0 => Partitioning::Range,
        1 => Partitioning::Hash {
            slots: match reader.u32("slots")? {
                0 => return Err(CodecError::NoSlots),
                slots => slots,
            },
            prefix_segments: reader.option("prefix segments", |reader| reader.u8("prefix segments"))?,
        },
        tag => {
            return Err(CodecError::Tag {
                what: "partitioning",
                tag,
            });
        }
    };
    Ok(Territory {
        partitioning,
        span: decode_span(reader)?,
        epoch: reader.u64("epoch")?,
    })
}

pub(crate) fn encode_source(source: RevisionSource, out: &mut impl BufMut) {
    out.put_u8(match source {
        RevisionSource::Dense => 0,
        RevisionSource::Sequenced => 1,
    });
}

pub(crate) fn decode_source(reader: &mut Reader) -> Result<RevisionSource, CodecError> {
    match reader.u8("source of revisions")? {
        0 => Ok(RevisionSource::Dense),
        1 => Ok(RevisionSource::Sequenced),
        tag => Err(CodecError::Tag {
            what: "source of revisions",
            tag,
        }),
    }
}

pub(crate) fn encode_txn_id(txn: TxnId, out: &mut impl BufMut) {
    for part in [txn.member.0, txn.nonce, txn.number] {
        out.put_u64_le(part);
    }
}

pub(crate) fn decode_txn_id(reader: &mut Reader) -> Result<TxnId, CodecError> {
    Ok(TxnId {
        member: MemberId(reader.u64("transaction")?),
        nonce: reader.u64("transaction")?,
        number: reader.u64("transaction")?,
    })
}

/// `0` for an abort, or `1 | revision | branches u32 | branch bool ...`.
pub(crate) fn encode_decision(decision: &Decision, out: &mut impl BufMut) {
    match decision {
        Decision::Abort => out.put_u8(0),
        Decision::Commit { revision, path } => {
            out.put_u8(1);
            out.put_i64_le(revision.0);
            put_len(path.len(), out);
            path.iter().for_each(|branch| out.put_u8(u8::from(*branch)));
        }
    }
}

pub(crate) fn decode_decision(reader: &mut Reader) -> Result<Decision, CodecError> {
    Ok(match reader.u8("decision")? {
        0 => Decision::Abort,
        1 => {
            let revision = Revision(reader.i64("revision")?);
            let mut path = Vec::new();
            for _ in 0..reader.u32("branches")? {
                path.push(reader.bool("branch")?);
            }
            Decision::Commit { revision, path }
        }
        tag => {
            return Err(CodecError::Tag { what: "decision", tag });
        }
    })
}

/// A prepared transaction's own words: `coordinator u64 | floor i64 | part`.
pub(crate) fn encode_prepared(coordinator: GroupId, floor: i64, part: &crate::ops::Txn) -> Bytes {
    let mut out = Vec::new();
    out.put_u64_le(coordinator.0);
    out.put_i64_le(floor);
    encode_txn(part, &mut out);
    out.into()
}

pub(crate) fn decode_prepared(reader: &mut Reader) -> Result<(GroupId, i64, crate::ops::Txn), CodecError> {
    Ok((
        GroupId(reader.u64("group")?),
        reader.i64("revision")?,
        decode_txn(reader, 1)?,
    ))
}
