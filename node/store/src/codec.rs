//! Commands and metadata as bytes.
//!
//! `command := version u8 | body`, little-endian, byte strings as `len u32 | bytes`, options as `0` or `1 | value`. A command
//! stands in the log for as long as anybody may replay it, so a version is never reused and N-1 stays readable. Decoding takes
//! nothing on trust: lengths are checked against what is there, lists grow by what was really read, nesting is bounded,
//! and keys and values are slices of the input.

pub(crate) mod shard;

use crate::ops::{
    Command, Compare, CompareOp, CompareTarget, Delete, Descending, KeyRange, Op, Put, Range, Revision, SortTarget,
    Span, Txn,
};
use althing_raft::entry::{ConfigState, SnapshotMeta};
use althing_raft::ids::{Index, LogPosition, MemberId, Term};
use althing_raft::roster::ReadsState;
use althing_raft::spec_codec;
use bytes::{Buf, BufMut, Bytes};
use std::collections::BTreeSet;

/// Version of the command format that this build writes.
pub const COMMAND_VERSION: u8 = 1;
/// Deepest nesting of transactions: etcd's default operation limit, which bounds its nesting too. Keeps recursion finite.
pub const TXN_DEPTH_MAX: usize = 128;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes end inside a value.
    #[error("{what} needs {needed} bytes and {left} are left")]
    Short {
        /// What was being read.
        what: &'static str,
        /// Bytes that it takes.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// A tag that this version does not know.
    #[error("{what} has the unknown tag {tag}; it may come from a newer version")]
    Tag {
        /// What was being read.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// Transactions nested deeper than [`TXN_DEPTH_MAX`].
    #[error("transactions are nested deeper than {TXN_DEPTH_MAX}")]
    TooDeep,
    /// Keys are to be hashed to none.
    #[error("a hashed keyspace has no slots")]
    NoSlots,
    /// A read specification does not parse.
    #[error(transparent)]
    Spec(#[from] spec_codec::SpecCodecError),
    /// Bytes are left over where a value should end.
    #[error("{left} bytes follow the end of {what}")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many.
        left: usize,
    },
}

/// Appends a command.
pub fn encode_command(command: &Command, out: &mut impl BufMut) {
    out.put_u8(COMMAND_VERSION);
    match command {
        Command::Put(put) => {
            out.put_u8(0);
            encode_put(put, out);
        }
        Command::Delete(delete) => {
            out.put_u8(1);
            encode_delete(delete, out);
        }
        Command::Txn(txn) => {
            out.put_u8(2);
            encode_txn(txn, out);
        }
        Command::Compact(revision) => {
            out.put_u8(3);
            out.put_i64_le(revision.0);
        }
        Command::Shard(command) => {
            out.put_u8(4);
            shard::encode(command, out);
        }
    }
}

/// Whether an encoded command takes a revision of its own in a sequenced shard: writes do, compactions and commands about the shard do
/// not. Looks at its tag only, and says no of what is no command.
#[must_use]
pub fn needs_stamp(command: &Bytes) -> bool {
    matches!(command[..], [COMMAND_VERSION, 0..=2, ..])
}

/// Whether an encoded command must be the last of the batch that it is applied with; see [`crate::ApplyItem::ends_batch`]. Looks at
/// its tags only.
#[must_use]
pub fn ends_batch(command: &Bytes) -> bool {
    matches!(command[..], [COMMAND_VERSION, 4, tag, ..] if shard::ends_batch(tag))
}

/// Reads a command that fills `bytes` exactly. Keys and values share its memory.
///
/// # Errors
/// If the bytes are anything else; nothing of them is then used.
pub fn decode_command(bytes: Bytes) -> Result<Command, CodecError> {
    let mut reader = Reader(bytes);
    match reader.u8("command")? {
        COMMAND_VERSION => {}
        tag => {
            return Err(CodecError::Tag {
                what: "command version",
                tag,
            });
        }
    }
    let command = match reader.u8("command")? {
        0 => Command::Put(decode_put(&mut reader)?),
        1 => Command::Delete(decode_delete(&mut reader)?),
        2 => Command::Txn(decode_txn(&mut reader, 1)?),
        3 => Command::Compact(Revision(reader.i64("compact revision")?)),
        4 => Command::Shard(shard::decode(&mut reader)?),
        tag => {
            return Err(CodecError::Tag { what: "command", tag });
        }
    };
    reader.finish("command")?;
    Ok(command)
}

/// The top bit of the voters' count: the configuration is joint, and the outgoing voters follow the learners. Written only then,
/// so that an earlier version reads everything else, and refuses a joint configuration instead of taking half of it for the
/// whole.
pub const JOINT_FLAG: u32 = 1 << 31;

/// Appends a snapshot's metadata, but for how reads are answered ([`encode_reads`]):
/// `term | index | config index | voters | learners | outgoing if joint`, the lists as `count u32 | id u64 ...`.
pub fn encode_snapshot_meta(meta: &SnapshotMeta, out: &mut impl BufMut) {
    let config = &meta.config;
    out.put_u64_le(meta.position.term.0);
    out.put_u64_le(meta.position.index.0);
    out.put_u64_le(config.index.0);
    let mut put_members = |members: &BTreeSet<MemberId>, flag: u32| {
        let count = u32::try_from(members.len()).expect("invariant: a group has a handful of members");
        out.put_u32_le(count | flag);
        members.iter().for_each(|member| out.put_u64_le(member.0));
    };
    put_members(&config.voters, if config.is_joint() { JOINT_FLAG } else { 0 });
    put_members(&config.learners, 0);
    if config.is_joint() {
        put_members(&config.outgoing, 0);
    }
}

/// Appends how reads are answered: `index u64 | read specification` (`althing_raft::spec_codec`).
pub fn encode_reads(reads: &ReadsState, out: &mut impl BufMut) {
    out.put_u64_le(reads.index.0);
    spec_codec::encode_spec(&reads.spec, out);
}

/// Takes how reads are answered off the front of `buf`.
///
/// # Errors
/// If the bytes end early or hold an unknown tag; `buf` is then left somewhere inside.
pub fn decode_reads(buf: &mut Bytes) -> Result<ReadsState, CodecError> {
    let mut reader = Reader(buf.clone());
    let index = Index(reader.u64("read specification")?);
    let spec = spec_codec::decode_spec(&mut reader.0)?;
    *buf = reader.0;
    Ok(ReadsState { spec, index })
}

/// Takes a snapshot's metadata off the front of `buf`; how reads are answered is left at its default.
///
/// # Errors
/// If the bytes end early; `buf` is then left as it was.
pub fn decode_snapshot_meta(buf: &mut Bytes) -> Result<SnapshotMeta, CodecError> {
    let mut reader = Reader(buf.clone());
    let position = LogPosition {
        term: Term(reader.u64("snapshot position")?),
        index: Index(reader.u64("snapshot position")?),
    };
    let index = Index(reader.u64("configuration")?);
    let members = |count: u32, reader: &mut Reader| -> Result<BTreeSet<MemberId>, CodecError> {
        (0..count).map(|_| reader.u64("member").map(MemberId)).collect()
    };
    let count = reader.u32("voters")?;
    let voters = members(count & !JOINT_FLAG, &mut reader)?;
    let learners = reader.u32("learners")?;
    let learners = members(learners, &mut reader)?;
    let outgoing = if count & JOINT_FLAG == 0 {
        BTreeSet::new()
    } else {
        let outgoing = reader.u32("outgoing voters")?;
        members(outgoing, &mut reader)?
    };
    let config = ConfigState {
        voters,
        outgoing,
        learners,
        index,
    };
    *buf = reader.0;
    Ok(SnapshotMeta {
        position,
        config,
        ..SnapshotMeta::default()
    })
}

pub(crate) fn put_len(len: usize, out: &mut impl BufMut) {
    out.put_u32_le(u32::try_from(len).expect("invariant: requests are far below 4 GiB (request size limit)"));
}

pub(crate) fn put_bytes(bytes: &[u8], out: &mut impl BufMut) {
    put_len(bytes.len(), out);
    out.put_slice(bytes);
}

fn encode_keys(keys: &KeyRange, out: &mut impl BufMut) {
    match keys {
        KeyRange::Single(key) => {
            out.put_u8(0);
            put_bytes(key, out);
        }
        KeyRange::Between(start, end) => {
            out.put_u8(1);
            put_bytes(start, out);
            put_bytes(end, out);
        }
        KeyRange::From(start) => {
            out.put_u8(2);
            put_bytes(start, out);
        }
        KeyRange::Part { start, end, span } => {
            out.put_u8(3);
            let keys = Span {
                start: start.clone(),
                end: end.clone(),
            };
            shard::encode_span(&keys, out);
            shard::encode_span(span, out);
        }
    }
}

fn encode_put(put: &Put, out: &mut impl BufMut) {
    put_bytes(&put.key, out);
    match &put.value {
        None => out.put_u8(0),
        Some(value) => {
            out.put_u8(1);
            put_bytes(value, out);
        }
    }
    put_i64_option(put.lease, out);
    out.put_u8(u8::from(put.prev_kv));
}

fn put_i64_option(value: Option<i64>, out: &mut impl BufMut) {
    match value {
        None => out.put_u8(0),
        Some(value) => {
            out.put_u8(1);
            out.put_i64_le(value);
        }
    }
}

fn encode_delete(delete: &Delete, out: &mut impl BufMut) {
    encode_keys(&delete.keys, out);
    out.put_u8(u8::from(delete.prev_kv));
}

fn encode_range(range: &Range, out: &mut impl BufMut) {
    encode_keys(&range.keys, out);
    put_i64_option(range.revision.map(|revision| revision.0), out);
    match range.limit {
        None => out.put_u8(0),
        Some(limit) => {
            out.put_u8(1);
            out.put_u64_le(limit);
        }
    }
    match range.sort {
        None => out.put_u8(0),
        Some((target, Descending(descending))) => {
            out.put_u8(match target {
                SortTarget::Key => 1,
                SortTarget::Version => 2,
                SortTarget::Create => 3,
                SortTarget::Mod => 4,
                SortTarget::Value => 5,
            });
            out.put_u8(u8::from(descending));
        }
    }
    out.put_u8(u8::from(range.keys_only));
    out.put_u8(u8::from(range.count_only));
    for bound in [
        range.mod_revision.0,
        range.mod_revision.1,
        range.create_revision.0,
        range.create_revision.1,
    ] {
        out.put_i64_le(bound);
    }
}

fn encode_compare(compare: &Compare, out: &mut impl BufMut) {
    encode_keys(&compare.keys, out);
    out.put_u8(match compare.op {
        CompareOp::Equal => 0,
        CompareOp::Greater => 1,
        CompareOp::Less => 2,
        CompareOp::NotEqual => 3,
    });
    let (tag, number) = match &compare.target {
        CompareTarget::Version(number) => (0, *number),
        CompareTarget::Create(number) => (1, *number),
        CompareTarget::Mod(number) => (2, *number),
        CompareTarget::Lease(number) => (3, *number),
        CompareTarget::Value(value) => {
            out.put_u8(4);
            put_bytes(value, out);
            return;
        }
    };
    out.put_u8(tag);
    out.put_i64_le(number);
}

fn encode_txn(txn: &Txn, out: &mut impl BufMut) {
    put_len(txn.compares.len(), out);
    for compare in &txn.compares {
        encode_compare(compare, out);
    }
    for branch in [&txn.success, &txn.failure] {
        put_len(branch.len(), out);
        for op in branch {
            match op {
                Op::Range(range) => {
                    out.put_u8(0);
                    encode_range(range, out);
                }
                Op::Put(put) => {
                    out.put_u8(1);
                    encode_put(put, out);
                }
                Op::Delete(delete) => {
                    out.put_u8(2);
                    encode_delete(delete, out);
                }
                Op::Txn(inner) => {
                    out.put_u8(3);
                    encode_txn(inner, out);
                }
            }
        }
    }
}

/// Checked reading: every method names what it reads, for the error.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    fn need(&self, what: &'static str, needed: usize) -> Result<(), CodecError> {
        if self.0.len() < needed {
            Err(CodecError::Short {
                what,
                needed,
                left: self.0.len(),
            })
        } else {
            Ok(())
        }
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        self.need(what, 1)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        self.need(what, 4)?;
        Ok(self.0.get_u32_le())
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        self.need(what, 8)?;
        Ok(self.0.get_u64_le())
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, CodecError> {
        self.need(what, 8)?;
        Ok(self.0.get_i64_le())
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Bytes, CodecError> {
        let len = self.u32(what)? as usize;
        self.need(what, len)?;
        Ok(self.0.split_to(len))
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(CodecError::Tag { what, tag }),
        }
    }

    pub(crate) fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.bool(what)? {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }

    pub(crate) fn finish(&self, what: &'static str) -> Result<(), CodecError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing {
                what,
                left: self.0.len(),
            })
        }
    }
}

fn decode_keys(reader: &mut Reader) -> Result<KeyRange, CodecError> {
    Ok(match reader.u8("key range")? {
        0 => KeyRange::Single(reader.bytes("key")?),
        1 => KeyRange::Between(reader.bytes("range start")?, reader.bytes("range end")?),
        2 => KeyRange::From(reader.bytes("range start")?),
        3 => {
            let Span { start, end } = shard::decode_span(reader)?;
            let span = shard::decode_span(reader)?;
            KeyRange::Part { start, end, span }
        }
        tag => {
            return Err(CodecError::Tag { what: "key range", tag });
        }
    })
}

fn decode_put(reader: &mut Reader) -> Result<Put, CodecError> {
    Ok(Put {
        key: reader.bytes("key")?,
        value: reader.option("value", |reader| reader.bytes("value"))?,
        lease: reader.option("lease", |reader| reader.i64("lease"))?,
        prev_kv: reader.bool("prev_kv")?,
    })
}

fn decode_delete(reader: &mut Reader) -> Result<Delete, CodecError> {
    Ok(Delete {
        keys: decode_keys(reader)?,
        prev_kv: reader.bool("prev_kv")?,
    })
}

fn decode_range(reader: &mut Reader) -> Result<Range, CodecError> {
    let keys = decode_keys(reader)?;
    let revision = reader
        .option("revision", |reader| reader.i64("revision"))?
        .map(Revision);
    let limit = reader.option("limit", |reader| reader.u64("limit"))?;
    let target = match reader.u8("sort target")? {
        0 => None,
        1 => Some(SortTarget::Key),
        2 => Some(SortTarget::Version),
        3 => Some(SortTarget::Create),
        4 => Some(SortTarget::Mod),
        5 => Some(SortTarget::Value),
        tag => {
            return Err(CodecError::Tag {
                what: "sort target",
                tag,
            });
        }
    };
    let sort = match target {
        None => None,
        Some(target) => Some((target, Descending(reader.bool("sort order")?))),
    };
    Ok(Range {
        keys,
        revision,
        limit,
        sort,
        keys_only: reader.bool("keys_only")?,
        count_only: reader.bool("count_only")?,
        mod_revision: (reader.i64("revision filter")?, reader.i64("revision filter")?),
        create_revision: (reader.i64("revision filter")?, reader.i64("revision filter")?),
    })
}

fn decode_compare(reader: &mut Reader) -> Result<Compare, CodecError> {
    let keys = decode_keys(reader)?;
    let op = match reader.u8("comparison")? {
        0 => CompareOp::Equal,
        1 => CompareOp::Greater,
        2 => CompareOp::Less,
        3 => CompareOp::NotEqual,
        tag => {
            return Err(CodecError::Tag {
                what: "comparison",
                tag,
            });
        }
    };
    let target = match reader.u8("comparison target")? {
        0 => CompareTarget::Version(reader.i64("version")?),
        1 => CompareTarget::Create(reader.i64("create revision")?),
        2 => CompareTarget::Mod(reader.i64("mod revision")?),
        3 => CompareTarget::Lease(reader.i64("lease")?),
        4 => CompareTarget::Value(reader.bytes("value")?),
        tag => {
            return Err(CodecError::Tag {
                what: "comparison target",
                tag,
            });
        }
    };
    Ok(Compare { keys, op, target })
}

fn decode_txn(reader: &mut Reader, depth: usize) -> Result<Txn, CodecError> {
    if depth > TXN_DEPTH_MAX {
        return Err(CodecError::TooDeep);
    }
    let mut txn = Txn::default();
    for _ in 0..reader.u32("comparisons")? {
        txn.compares.push(decode_compare(reader)?);
    }
    for branch in [&mut txn.success, &mut txn.failure] {
        for _ in 0..reader.u32("operations")? {
            branch.push(match reader.u8("operation")? {
                0 => Op::Range(decode_range(reader)?),
                1 => Op::Put(decode_put(reader)?),
                2 => Op::Delete(decode_delete(reader)?),
                3 => Op::Txn(decode_txn(reader, depth + 1)?),
                tag => {
                    return Err(CodecError::Tag { what: "operation", tag });
                }
            });
        }
    }
    Ok(txn)
}
