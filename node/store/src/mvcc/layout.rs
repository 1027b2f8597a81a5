//! Where a group's state lies in the engine.
//!
//! ```text
//! group u64 | 'S'                             -> slot u32             the slot in use
//! group u64 | 'D' | slot u32 | 'A'            -> applied record
//! group u64 | 'D' | slot u32 | 'M' | member   -> the member's context
//! group u64 | 'D' | slot u32 | 'R' | main u64 | sub u32 -> revision row
//! group u64 | 'D' | slot u32 | 'L' | main u64 | sub u32 -> late row: of a revision below some that
//!                                                           were there already, behind the index of its entry
//! group u64 | 'D' | slot u32 | 'P' | transaction -> what of it is prepared here
//! group u64 | 'D' | slot u32 | 'T' | transaction -> what was decided about it here
//! ```
//!
//! Big-endian in keys, so that byte order is number order; little-endian in values. Revision-major rows are written in order,
//! which is cheap for the engine, and are a watch's history as they stand. A snapshot is installed into a new slot; one
//! put of the slot record makes it the state.

use crate::codec::{
    CodecError, Reader, decode_reads, decode_snapshot_meta, encode_reads, encode_snapshot_meta, put_bytes,
};
use crate::mvcc::shard::Shard;
use crate::mvcc::txns::Table;
use crate::ops::{KeyValue, Revision, TxnId};
use crate::state::KeySpan;
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_raft::roster::ReadsState;
use bytes::{BufMut, Bytes};

/// Version of rows and of the applied record. N-1 must stay readable.
const ROW_VERSION: u8 = 1;

/// A revision and the change's number inside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RowId {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

/// Largest number of a change inside its revision: the index needs a bit of it.
pub(crate) const SUB_MAX: u32 = u32::MAX >> 1;

/// Where a row lies: in which of the group's sources, among which of its rows, under which number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    /// Which slot, by its number in the group's list of them (`crate::mvcc::sources`).
    pub(crate) source: u8,
    /// Whether it is a late row: one of a revision below some that were there before it.
    pub(crate) late: bool,
    pub(crate) id: RowId,
}

/// Bytes of a revision row's key, for size estimates.
pub(crate) const ROW_KEY_BYTES: u64 = 8 + 1 + 4 + 1 + 8 + 4;

/// A group's slot: the prefix of its keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Slot {
    pub(crate) group: GroupId,
    pub(crate) number: u32,
}

pub(crate) fn slot_key(group: GroupId) -> Vec<u8> {
    let mut key = group.0.to_be_bytes().to_vec();
    key.push(b'S');
    key
}

pub(crate) fn data_prefix(group: GroupId) -> Vec<u8> {
    // Room for the longest key that begins like this: one allocation instead of one per part.
    let mut key = Vec::with_capacity(ROW_KEY_BYTES as usize);
    key.put_u64(group.0);
    key.push(b'D');
    key
}

fn txn_kind(table: Table) -> u8 {
    match table {
        Table::Prepared => b'P',
        Table::Decided => b'T',
    }
}

impl Slot {
    pub(crate) fn prefix(self) -> Vec<u8> {
        let mut key = data_prefix(self.group);
        key.put_u32(self.number);
        key
    }

    fn kind(self, kind: u8) -> Vec<u8> {
        let mut key = self.prefix();
        key.push(kind);
        key
    }

    pub(crate) fn applied_key(self) -> Vec<u8> {
        self.kind(b'A')
    }

    pub(crate) fn member_key(self, member: MemberId) -> Vec<u8> {
        let mut key = self.kind(b'M');
        key.put_u64(member.0);
        key
    }

    pub(crate) fn members_span(self) -> KeySpan {
        KeySpan::prefix(&self.kind(b'M'))
    }

    pub(crate) fn row_key(self, id: RowId) -> Vec<u8> {
        let mut key = self.kind(b'R');
        key.put_i64(id.main);
        key.put_u32(id.sub);
        key
    }

    /// The key of a row that lies in it.
    pub(crate) fn key_of(self, place: Place) -> Vec<u8> {
        if place.late {
            self.late_key(place.id)
        } else {
            self.row_key(place.id)
        }
    }

    pub(crate) fn late_key(self, id: RowId) -> Vec<u8> {
        let mut key = self.kind(b'L');
        key.put_i64(id.main);
        key.put_u32(id.sub);
        key
    }

    pub(crate) fn late_span(self) -> KeySpan {
        KeySpan::prefix(&self.kind(b'L'))
    }

    /// Rows up to and with revision `to`.
    pub(crate) fn rows_span(self, to: i64) -> KeySpan {
        let end = RowId {
            main: to.saturating_add(1),
            sub: 0,
        };
        KeySpan {
            start: self.kind(b'R').into(),
            end: Some(self.row_key(end).into()),
        }
    }

    pub(crate) fn all_rows_span(self) -> KeySpan {
        KeySpan::prefix(&self.kind(b'R'))
    }

    /// What a row's key says; `None` if it is not one of this slot.
    pub(crate) fn parse_row_key(self, key: &[u8]) -> Option<RowId> {
        self.parse_id(b'R', key)
    }

    pub(crate) fn parse_late_key(self, key: &[u8]) -> Option<RowId> {
        self.parse_id(b'L', key)
    }

    fn parse_id(self, kind: u8, key: &[u8]) -> Option<RowId> {
        let rest = key.strip_prefix(&self.kind(kind)[..])?;
        let (main, sub) = rest.split_at_checked(8)?;
        let sub = u32::from_be_bytes(sub.try_into().ok()?);
        (sub <= SUB_MAX).then_some(RowId {
            main: i64::from_be_bytes(main.try_into().ok()?),
            sub,
        })
    }

    /// Rows of transactions: what is prepared, or what was decided.
    pub(crate) fn txns_span(self, table: Table) -> KeySpan {
        KeySpan::prefix(&self.kind(txn_kind(table)))
    }

    pub(crate) fn txn_key(self, table: Table, txn: TxnId) -> Vec<u8> {
        let mut key = self.kind(txn_kind(table));
        for part in [txn.member.0, txn.nonce, txn.number] {
            key.put_u64(part);
        }
        key
    }

    pub(crate) fn parse_txn_key(self, table: Table, key: &[u8]) -> Option<TxnId> {
        let rest = key.strip_prefix(&self.kind(txn_kind(table))[..])?;
        let mut parts = rest.chunks(8).map(|part| part.try_into().map(u64::from_be_bytes));
        let mut part = || parts.next()?.ok();
        let txn = TxnId {
            member: MemberId(part()?),
            nonce: part()?,
            number: part()?,
        };
        (rest.len() == 24).then_some(txn)
    }

    pub(crate) fn parse_member_key(self, key: &[u8]) -> Option<MemberId> {
        let rest = key.strip_prefix(&self.kind(b'M')[..])?;
        Some(MemberId(u64::from_be_bytes(rest.try_into().ok()?)))
    }
}

/// Bytes that a late row has before it.
const LATE_HEADER_BYTES: usize = 8;

/// One change of one key, as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) key: Bytes,
    /// `None` for a removal.
    pub(crate) live: Option<Live>,
}

/// What a put stores beside the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Live {
    pub(crate) create: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) value: Bytes,
}

impl Row {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let value_len = self.live.as_ref().map_or(0, |live| 24 + live.value.len());
        let mut out = Vec::with_capacity(6 + self.key.len() + value_len);
        out.push(ROW_VERSION);
        out.push(u8::from(self.live.is_some()));
        put_bytes(&self.key, &mut out);
        if let Some(live) = &self.live {
            out.put_i64_le(live.create);
            out.put_i64_le(live.version);
            out.put_i64_le(live.lease);
            out.put_slice(&live.value);
        }
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader(bytes);
        match reader.u8("row version")? {
            ROW_VERSION => {}
            tag => {
                return Err(CodecError::Tag {
                    what: "row version",
                    tag,
                });
            }
        }
        let live = reader.u8("row kind")?;
        let key = reader.bytes("row key")?;
        let live = match live {
            0 => {
                reader.finish("removal row")?;
                None
            }
            1 => Some(Live {
                create: reader.i64("create revision")?,
                version: reader.i64("version")?,
                lease: reader.i64("lease")?,
                value: reader.0,
            }),
            tag => {
                return Err(CodecError::Tag { what: "row kind", tag });
            }
        };
        Ok(Self { key, live })
    }

    /// A late row's value, which says up to where entries were applied when it was written: `index u64 | row`.
    pub(crate) fn into_late(row: &[u8], at: Index) -> Vec<u8> {
        let mut out = Vec::with_capacity(LATE_HEADER_BYTES + row.len());
        out.put_u64_le(at.0);
        out.put_slice(row);
        out
    }

    pub(crate) fn split_late(value: Bytes) -> Result<(Index, Bytes), CodecError> {
        let mut reader = Reader(value);
        let at = Index(reader.u64("a late row's entry")?);
        Ok((at, reader.0))
    }

    /// The row as clients see it; `None` for a removal.
    pub(crate) fn into_key_value(self, main: i64) -> Option<KeyValue> {
        let live = self.live?;
        Some(KeyValue {
            key: self.key,
            create_revision: Revision(live.create),
            mod_revision: Revision(main),
            version: live.version,
            value: live.value,
            lease: live.lease,
        })
    }
}

/// Version of an applied record that also says how reads are answered.
const APPLIED_WITH_READS: u8 = 2;
/// ... and what the group is as a shard.
const APPLIED_WITH_SHARD: u8 = 3;

/// The applied record: what a slot's rows are the state of. Written in the same batch as they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AppliedRecord {
    pub(crate) meta: SnapshotMeta,
    /// Current revision.
    pub(crate) current: i64,
    /// History before this is gone for clients; -1 if never compacted.
    pub(crate) compacted: i64,
    /// ... and before this also on disk.
    pub(crate) swept: i64,
    /// What it is as a shard.
    pub(crate) shard: Shard,
}

impl AppliedRecord {
    /// A keyspace nobody has written to (etcd-api.md, 2.1).
    pub(crate) fn fresh() -> Self {
        Self {
            meta: SnapshotMeta::default(),
            current: 1,
            compacted: -1,
            swept: -1,
            shard: Shard::default(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // A group that never asked for another way to read, or that is all of its keyspace, is written as earlier versions wrote it.
        let with_shard = self.shard != Shard::default();
        let with_reads = with_shard || self.meta.reads != ReadsState::default();
        let mut out = vec![match (with_reads, with_shard) {
            (_, true) => APPLIED_WITH_SHARD,
            (true, false) => APPLIED_WITH_READS,
            (false, false) => ROW_VERSION,
        }];
        out.put_i64_le(self.current);
        out.put_i64_le(self.compacted);
        out.put_i64_le(self.swept);
        encode_snapshot_meta(&self.meta, &mut out);
        if with_reads {
            encode_reads(&self.meta.reads, &mut out);
        }
        if with_shard {
            self.shard.encode(&mut out);
        }
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader(bytes);
        let (with_reads, with_shard) = match reader.u8("applied record")? {
            ROW_VERSION => (false, false),
            APPLIED_WITH_READS => (true, false),
            APPLIED_WITH_SHARD => (true, true),
            tag => {
                return Err(CodecError::Tag {
                    what: "applied record version",
                    tag,
                });
            }
        };
        let current = reader.i64("current revision")?;
        let compacted = reader.i64("compacted revision")?;
        let swept = reader.i64("swept revision")?;
        let mut meta = decode_snapshot_meta(&mut reader.0)?;
        if with_reads {
            meta.reads = decode_reads(&mut reader.0)?;
        }
        let shard = if with_shard {
            Shard::decode(&mut reader)?
        } else {
            Shard::default()
        };
        reader.finish("applied record")?;
        Ok(Self {
            meta,
            current,
            compacted,
            swept,
            shard,
        })
    }
}
