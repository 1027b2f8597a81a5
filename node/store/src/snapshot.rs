//! A group's state as a stream of chunks, and back.
//!
//! ```text
//! chunk  := version u8 | kind u8 | seq u32 | crc32c u32 | body          crc over all but itself
//! header := applied record (len u32 | bytes) | members u32 | (id u64 | context)* | transactions of a shard
//! transactions := count u32 | (table u8 | id | row (len u32 | bytes))*      if the applied record says what shard it is
//! rows   := (main i64 | sub u32 | row (len u32 | bytes))*               in revision order
//! end    := rows u64
//! ```
//!
//! A stream is one header, any number of row chunks, one end. Chunks are bounded, so that a transport can frame them and a receiver
//! can refuse larger ones unread. The receiver builds the new state beside the old one and switches by one atomic batch,
//! so a crash at any moment leaves the old state or the new one.
//!
//! A stream that breaks can be carried on: the receiver says how far its import has come, and the same export (not another one of
//! the same position, which may lack rows that were swept since) goes on from there.

mod rows;

use crate::codec::shard::{decode_txn_id, encode_txn_id};
use crate::codec::{CodecError, Reader, put_bytes, put_len};
use crate::error::StoreError;
use crate::mvcc::layout::{AppliedRecord, Place, Row, RowId, SUB_MAX, Slot};
use crate::mvcc::shard::Shard;
use crate::mvcc::txns::{Table, TxnChanges};
use crate::mvcc::{Index, State};
use crate::state::{Batch, PageLimit, StateStore};
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, MemberId};
use bytes::{BufMut, Bytes, BytesMut};
use rows::Rows;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of rows that an exporter puts into one chunk, unless a single row is larger: a few network round trips' worth.
pub const CHUNK_BYTES_TARGET: usize = 512 << 10;
/// Largest chunk that an importer accepts: a row of the largest request (1.5 MiB by etcd's default) with much to spare.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Weight of the batches in which an importer writes: well below what the engine makes durable at once.
const IMPORT_BATCH_WEIGHT: usize = 64 << 10;

const CHUNK_VERSION: u8 = 1;
const CHUNK_HEADER_BYTES: usize = 10;
const ROW_OVERHEAD_BYTES: usize = 16;

const HEADER: u8 = 1;
const ROWS: u8 = 2;
const END: u8 = 3;

fn chunk(kind: u8, seq: u32, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(CHUNK_HEADER_BYTES + body.len());
    out.put_u8(CHUNK_VERSION);
    out.put_u8(kind);
    out.put_u32_le(seq);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), body);
    out.put_u32_le(crc);
    out.put_slice(body);
    out.freeze()
}

/// Where an export or an import stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Header,
    Rows,
    Done,
}

/// How far an import has come, for the export to go on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    stage: Stage,
    chunks: u32,
    rows: u64,
    last: Option<RowId>,
}

impl Progress {
    /// Chunks taken in.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// As bytes: `stage u8 | chunks u32 | rows u64 | (main i64 | sub u32, if there are rows)`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(match self.stage {
            Stage::Header => 0,
            Stage::Rows => 1,
            Stage::Done => 2,
        });
        out.put_u32_le(self.chunks);
        out.put_u64_le(self.rows);
        if let Some(last) = self.last {
            out.put_i64_le(last.main);
            out.put_u32_le(last.sub);
        }
        out.freeze()
    }

    /// From bytes.
    ///
    /// # Errors
    /// If they are too short, too long, or of a later version.
    pub fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader(bytes);
        let stage = match reader.u8("stage of an import")? {
            0 => Stage::Header,
            1 => Stage::Rows,
            2 => Stage::Done,
            tag => {
                return Err(CodecError::Tag {
                    what: "stage of an import",
                    tag,
                });
            }
        };
        let chunks = reader.u32("chunks of an import")?;
        let rows = reader.u64("rows of an import")?;
        let last = if reader.0.is_empty() {
            None
        } else {
            Some(RowId {
                main: reader.i64("last row of an import")?,
                sub: reader.u32("last row of an import")?,
            })
        };
        reader.finish("progress of an import")?;
        Ok(Self {
            stage,
            chunks,
            rows,
            last,
        })
    }
}

/// A consistent state of one group, chunk by chunk. While it lives, nothing that it still has to read is deleted: drop it soon.
pub struct Export<S> {
    store: S,
    group: GroupId,
    record: AppliedRecord,
    members: BTreeMap<MemberId, Bytes>,
    txns: TxnChanges,
    stream: Rows,
    stage: Stage,
    seq: u32,
    rows: u64,
    /// The last row that went out.
    last: Option<RowId>,
    _pin: Arc<()>,
}

impl<S: StateStore> Export<S> {
    pub(crate) fn new(store: S, state: &State, pin: Arc<()>) -> Result<Self, StoreError> {
        Ok(Self {
            group: state.group,
            record: state.record.clone(),
            members: state.members.clone(),
            txns: state.txns.rows(),
            stream: Rows::new(&store, state)?,
            store,
            stage: Stage::Header,
            seq: 0,
            rows: 0,
            last: None,
            _pin: pin,
        })
    }

    /// What it covers.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.record.meta
    }

    /// Goes on where the import of this very export stands, which may be some chunks back: what was sent last need not have come.
    pub fn resume(&mut self, from: Progress) {
        self.stage = from.stage;
        self.seq = from.chunks;
        self.rows = from.rows;
        self.last = from.last;
        self.stream.seek(from.last);
    }

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut body = Vec::new();
        let kind = match self.stage {
            Stage::Header => {
                put_bytes(&self.record.encode(), &mut body);
                put_len(self.members.len(), &mut body);
                for (member, context) in &self.members {
                    body.put_u64_le(member.0);
                    put_bytes(context, &mut body);
                }
                if self.record.shard != Shard::default() {
                    put_len(self.txns.len(), &mut body);
                    for ((table, txn), row) in &self.txns {
                        body.put_u8(match table {
                            Table::Prepared => 0,
                            Table::Decided => 1,
                        });
                        encode_txn_id(*txn, &mut body);
                        put_bytes(row.as_deref().unwrap_or_default(), &mut body);
                    }
                }
                self.stage = Stage::Rows;
                HEADER
            }
            Stage::Rows => {
                let limit = PageLimit {
                    rows: PageLimit::WALK.rows,
                    bytes: CHUNK_BYTES_TARGET,
                };
                let page = self.stream.next_page(&self.store, self.last, limit)?;
                match page.last() {
                    Some((last, _)) => {
                        self.last = Some(*last);
                        for (id, row) in page {
                            body.put_i64_le(id.main);
                            body.put_u32_le(id.sub);
                            put_bytes(&row, &mut body);
                            self.rows += 1;
                        }
                        ROWS
                    }
                    None => {
                        body.put_u64_le(self.rows);
                        self.stage = Stage::Done;
                        END
                    }
                }
            }
            Stage::Done => return Ok(None),
        };
        let chunk = chunk(kind, self.seq, &body);
        if chunk.len() > CHUNK_BYTES_MAX {
            let what = format!("a chunk of {} bytes is larger than {CHUNK_BYTES_MAX}", chunk.len());
            return Err(StoreError::Snapshot {
                group: self.group,
                what,
            });
        }
        self.seq += 1;
        Ok(Some(chunk))
    }
}

impl<S: StateStore> Iterator for Export<S> {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk().transpose()
    }
}

/// A state being built beside the present one. Dropping it leaves the present one; what it wrote is cleared later.
pub struct Import<S> {
    store: S,
    /// The state to be, index and all.
    pub(crate) state: State,
    /// Whether the header has come.
    started: bool,
    complete: bool,
    seq: u32,
    last: Option<RowId>,
}

impl<S: StateStore> Import<S> {
    pub(crate) fn new(store: S, slot: Slot) -> Self {
        Self {
            store,
            state: State::fresh(slot),
            started: false,
            complete: false,
            seq: 0,
            last: None,
        }
    }

    /// What it covers; `None` before the first chunk.
    #[must_use]
    pub fn meta(&self) -> Option<&SnapshotMeta> {
        self.started.then_some(&self.state.record.meta)
    }

    /// How far it has come. An import whose last chunk was refused has come nowhere: drop it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            stage: match (self.started, self.complete) {
                (false, _) => Stage::Header,
                (true, false) => Stage::Rows,
                (true, true) => Stage::Done,
            },
            chunks: self.seq,
            rows: self.state.index.sums.rows,
            last: self.last,
        }
    }

    /// Whether the last chunk has come, so that `Mvcc::install` will take it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn group(&self) -> GroupId {
        self.state.group
    }

    fn refuse(&self, what: impl Into<String>) -> StoreError {
        StoreError::Snapshot {
            group: self.group(),
            what: what.into(),
        }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// `Snapshot` if it is damaged, too large, or not the next one: drop the import then. Otherwise the engine failed.
    pub fn chunk(&mut self, chunk: &Bytes) -> Result<(), StoreError> {
        if chunk.len() > CHUNK_BYTES_MAX {
            return Err(self.refuse(format!(
                "a chunk of {} bytes is larger than {CHUNK_BYTES_MAX}",
                chunk.len()
            )));
        }
        if chunk.len() < CHUNK_HEADER_BYTES {
            return Err(self.refuse(format!("a chunk of {} bytes is shorter than its header", chunk.len())));
        }
        let mut reader = Reader(chunk.clone());
        let read = |source| StoreError::Unreadable {
            group: self.state.group,
            what: "a snapshot chunk",
            source,
        };
        let version = reader.u8("chunk version").map_err(read)?;
        let kind = reader.u8("chunk kind").map_err(read)?;
        let seq = reader.u32("chunk number").map_err(read)?;
        let crc = reader.u32("chunk checksum").map_err(read)?;
        if version != CHUNK_VERSION {
            return Err(self.refuse(format!("chunk version {version} and this build reads {CHUNK_VERSION}")));
        }
        if crc32c::crc32c_append(crc32c::crc32c(&chunk[..CHUNK_HEADER_BYTES - 4]), &reader.0) != crc {
            return Err(self.refuse(format!("the checksum of chunk {seq} does not hold")));
        }
        if seq != self.seq || self.complete {
            return Err(self.refuse(format!("chunk {seq} came where chunk {} was expected", self.seq)));
        }
        match (kind, self.started) {
            (HEADER, false) => self.header(reader)?,
            (ROWS, true) => self.rows(reader)?,
            (END, true) => self.end(reader)?,
            (kind, _) => {
                return Err(self.refuse(format!("chunk {seq} has the unexpected kind {kind}")));
            }
        }
        self.seq += 1;
        Ok(())
    }

    fn header(&mut self, mut reader: Reader) -> Result<(), StoreError> {
        let group = self.group();
        let read = |source| StoreError::Unreadable {
            group,
            what: "a snapshot header",
            source,
        };
        let record = reader.bytes("applied record").map_err(read)?;
        let record = AppliedRecord::decode(record).map_err(read)?;
        for _ in 0..reader.u32("members").map_err(read)? {
            let member = MemberId(reader.u64("member").map_err(read)?);
            // Copied: a context lives as long as the member, a chunk should not.
            let context = reader.bytes("member context").map_err(read)?;
            self.state.members.insert(member, Bytes::copy_from_slice(&context));
        }
        if record.shard != Shard::default() {
            for _ in 0..reader.u32("transactions").map_err(read)? {
                let table = match reader.u8("transaction").map_err(read)? {
                    0 => Table::Prepared,
                    1 => Table::Decided,
                    tag => {
                        return Err(read(CodecError::Tag {
                            what: "transaction",
                            tag,
                        }));
                    }
                };
                let txn = decode_txn_id(&mut reader).map_err(read)?;
                let row = reader.bytes("transaction").map_err(read)?;
                // Copied, as contexts are.
                let row = Bytes::copy_from_slice(&row);
                self.state.txns.load(table, txn, row).map_err(read)?;
            }
        }
        reader.finish("snapshot header").map_err(read)?;
        self.state.index = Index::new(record.shard.territory.partitioning);
        self.state.record = record;
        self.started = true;
        Ok(())
    }

    fn rows(&mut self, mut reader: Reader) -> Result<(), StoreError> {
        let group = self.group();
        let read = |source| StoreError::Unreadable {
            group,
            what: "a snapshot row",
            source,
        };
        let mut batch = Batch::default();
        while reader.0.len() >= ROW_OVERHEAD_BYTES {
            let id = RowId {
                main: reader.i64("revision").map_err(read)?,
                sub: reader.u32("revision").map_err(read)?,
            };
            let bytes = reader.bytes("row").map_err(read)?;
            let fits = self.last.is_none_or(|last| id > last)
                && (0..=self.state.record.current).contains(&id.main)
                && id.sub <= SUB_MAX;
            if !fits {
                return Err(self.refuse(format!("the row of revision {}.{} is out of order", id.main, id.sub)));
            }
            self.last = Some(id);
            let row = Row::decode(bytes.clone()).map_err(read)?;
            let place = Place {
                source: self.state.own,
                late: false,
                id,
            };
            self.state.index.load(place, &row, bytes.len());
            batch.put(self.state.slot().row_key(id), bytes);
            // What an import leaves halfway is nobody's state, so its batches can be small ones.
            if batch.weight() >= IMPORT_BATCH_WEIGHT {
                self.store.apply(std::mem::take(&mut batch))?;
            }
        }
        reader.finish("snapshot rows").map_err(read)?;
        self.store.apply(batch)
    }

    fn end(&mut self, mut reader: Reader) -> Result<(), StoreError> {
        let group = self.group();
        let read = |source| StoreError::Unreadable {
            group,
            what: "a snapshot's end",
            source,
        };
        let rows = reader.u64("rows").map_err(read)?;
        reader.finish("snapshot end").map_err(read)?;
        if rows != self.state.index.sums.rows {
            return Err(self.refuse(format!("{} rows came and {rows} were sent", self.state.index.sums.rows)));
        }
        self.complete = true;
        Ok(())
    }
}
