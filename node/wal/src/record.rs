//! The bytes of a segment: its header and its records.
//!
//! ```text
//! segment := header(32) record* zeros
//! header  := magic "ALTHWAL\n" | version u32 | crc32c u32 | number u64 | first_seq u64
//! record  := len u32 | crc32c u32 | seq u64 | group u64 | kind u8 | zero[7] | body[len] | zero padding to 8
//! ```
//!
//! Little-endian. `seq` counts records of the whole log from 1 without gaps. A batch is some records and a `BatchEnd`; it counts
//! as a whole or not at all. A record's CRC starts from the segment's number, so that what an earlier life of a recycled
//! file left behind never validates: CRCs of equal bytes from different starts always differ.

use crate::codec::{
    self, CodecError, decode_entry, decode_hard_state, decode_position, encode_entry, encode_hard_state,
    encode_position,
};
use althing_raft::entry::{Entry, HardState};
use althing_raft::ids::{GroupId, LogPosition};
use bytes::{Buf, BufMut, Bytes};

/// Version of the segment format that this build writes. N-1 must stay readable.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"ALTHWAL\n";

/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;
/// Bytes of a record around its body.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Bytes of a `BatchEnd`.
pub(crate) const BATCH_END_BYTES: usize = RECORD_HEADER_BYTES + 8;

const SEQ_OFFSET: usize = 8;

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    pub(crate) first_seq: u64,
}

/// What is wrong with a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderError {
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..].copy_from_slice(&self.first_seq.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut header: [u8; SEGMENT_HEADER_BYTES] = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .and_then(|head| head.try_into().ok())
            .ok_or(HeaderError::Damaged)?;
        let mut fields = Bytes::copy_from_slice(&header[8..]);
        let version = fields.get_u32_le();
        let crc = fields.get_u32_le();
        header[12..16].fill(0);
        if &header[..8] != MAGIC || crc32c::crc32c(&header) != crc {
            return Err(HeaderError::Damaged);
        }
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        Ok(Self {
            number: fields.get_u64_le(),
            first_seq: fields.get_u64_le(),
        })
    }
}

/// One record's meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    HardState(HardState),
    Entry(Entry),
    /// A live entry again, copied out of a segment that is to die. It replaces nothing.
    Rewrite(Entry),
    /// The group's log is replaced by this position.
    Reset(LogPosition),
    /// Entries up to here are no longer needed.
    Compact(LogPosition),
    /// The records since the last one belong together. `durable` is the last seq that was known to be synced when this was
    /// written: a hole at or below it is damage, not a torn tail (pitfall P18).
    BatchEnd {
        durable: u64,
    },
}

const HARD_STATE: u8 = 1;
const ENTRY: u8 = 2;
const RESET: u8 = 3;
const COMPACT: u8 = 4;
const BATCH_END: u8 = 5;
const REWRITE: u8 = 6;

fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Bytes that a record with a body of `len` bytes takes.
pub(crate) fn record_len(body_len: usize) -> usize {
    RECORD_HEADER_BYTES + padded(body_len)
}

/// Bytes that this entry takes as a record.
pub(crate) fn entry_record_len(entry: &Entry) -> usize {
    record_len(codec::entry_len(entry))
}

/// A segment's number as the start of its records' CRCs.
fn salt(segment: u64) -> u32 {
    // 2^32 segments of 64 MiB lie between two equal salts.
    (segment & u64::from(u32::MAX)) as u32
}

/// Appends a record to `out`, which holds a multiple of 8 bytes before and after.
pub(crate) fn encode_record(segment: u64, seq: u64, group: GroupId, record: &Record, out: &mut Vec<u8>) {
    let at = out.len();
    out.put_u64_le(0);
    out.put_u64_le(seq);
    out.put_u64_le(group.0);
    let kind = match record {
        Record::HardState(_) => HARD_STATE,
        Record::Entry(_) => ENTRY,
        Record::Rewrite(_) => REWRITE,
        Record::Reset(_) => RESET,
        Record::Compact(_) => COMPACT,
        Record::BatchEnd { .. } => BATCH_END,
    };
    out.put_u64_le(u64::from(kind));
    match record {
        Record::HardState(state) => encode_hard_state(state, out),
        Record::Entry(entry) | Record::Rewrite(entry) => encode_entry(entry, out),
        Record::Reset(position) | Record::Compact(position) => encode_position(*position, out),
        Record::BatchEnd { durable } => out.put_u64_le(*durable),
    }
    let len = u32::try_from(out.len() - at - RECORD_HEADER_BYTES).expect("invariant: records fit into a segment");
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(segment, &out[at..]);
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(at + record_len(len as usize), 0);
}

/// CRC of a record without its padding: length first, then everything after the CRC's own place.
fn checksum(segment: u64, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt(segment), &record[..4]), &record[8..])
}

/// A record whose checksum holds; its body is not yet looked at.
pub(crate) struct RawRecord {
    pub(crate) seq: u64,
    pub(crate) group: GroupId,
    /// Offset of the next record.
    pub(crate) next: usize,
    kind: u8,
    body: Bytes,
}

/// Reads the record at `at`, if there is a whole one whose checksum holds.
pub(crate) fn read_record(segment: u64, bytes: &Bytes, at: usize) -> Option<RawRecord> {
    let rest = bytes.get(at..)?;
    let mut head = rest.get(..RECORD_HEADER_BYTES)?;
    let len = head.get_u32_le() as usize;
    let crc = head.get_u32_le();
    let seq = head.get_u64_le();
    let group = GroupId(head.get_u64_le());
    let kind = head.get_u8();
    let record = rest.get(..RECORD_HEADER_BYTES.checked_add(len)?)?;
    if seq == 0 || checksum(segment, record) != crc {
        return None;
    }
    let body_at = at + RECORD_HEADER_BYTES;
    Some(RawRecord {
        seq,
        group,
        next: at + record_len(len),
        kind,
        body: bytes.slice(body_at..body_at + len),
    })
}

/// The `seq` field at `at`, unchecked: a cheap sieve before `read_record` when looking for records after a hole.
pub(crate) fn peek_seq(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at + SEQ_OFFSET..at + SEQ_OFFSET + 8)?;
    Some(u64::from_le_bytes(
        field.try_into().expect("invariant: a slice of eight bytes"),
    ))
}

impl RawRecord {
    /// Parses the body. Entries share the segment's memory.
    pub(crate) fn parse(mut self) -> Result<Record, CodecError> {
        let body = &mut self.body;
        let record = match self.kind {
            HARD_STATE => Record::HardState(decode_hard_state(body)?),
            ENTRY => Record::Entry(decode_entry(body)?),
            REWRITE => Record::Rewrite(decode_entry(body)?),
            RESET => Record::Reset(decode_position(body)?),
            COMPACT => Record::Compact(decode_position(body)?),
            BATCH_END if body.len() >= 8 => Record::BatchEnd {
                durable: body.get_u64_le(),
            },
            BATCH_END => {
                return Err(CodecError::Short {
                    what: "batch end",
                    needed: 8,
                    left: body.len(),
                });
            }
            tag => {
                return Err(CodecError::Tag {
                    what: "log record",
                    tag,
                });
            }
        };
        codec::finish(body, "log record")?;
        Ok(record)
    }
}

/// As `encode_record`, for a record that this build would never write.
#[cfg(test)]
pub(crate) fn forge_record(segment: u64, seq: u64, group: GroupId, kind: u8, body: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.put_u32_le(u32::try_from(body.len()).unwrap());
    out.put_u32_le(0);
    out.put_u64_le(seq);
    out.put_u64_le(group.0);
    out.put_u64_le(u64::from(kind));
    out.put_slice(body);
    let crc = checksum(segment, &out[at..]);
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(at + record_len(body.len()), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::arb_entry;
    use proptest::prelude::*;

    #[test]
    fn a_header_comes_back_and_any_flipped_bit_is_seen() {
        let header = SegmentHeader {
            number: 7,
            first_seq: 99,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), Err(HeaderError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_header_of_another_version_is_told_apart_from_damage() {
        let mut bytes = SegmentHeader {
            number: 7,
            first_seq: 99,
        }
        .encode();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderError::Version(2)));
    }

    proptest! {
        #[test]
        fn records_come_back_aligned(entry in arb_entry(), segment in any::<u64>(), seq in 1..u64::MAX, group in any::<u64>()) {
            let mut out = Vec::new();
            let record = Record::Entry(entry.clone());
            encode_record(segment, seq, GroupId(group), &record, &mut out);
            prop_assert_eq!(out.len() % 8, 0);
            prop_assert_eq!(out.len(), entry_record_len(&entry));
            let bytes = Bytes::from(out);
            let raw = read_record(segment, &bytes, 0).unwrap();
            prop_assert_eq!((raw.seq, raw.group, raw.next), (seq, GroupId(group), bytes.len()));
            prop_assert_eq!(raw.parse().unwrap(), record);
        }

        #[test]
        fn a_record_of_a_recycled_segments_earlier_life_never_validates(entry in arb_entry(), old in any::<u32>(), new in any::<u32>(), seq in 1..u64::MAX) {
            prop_assume!(old != new);
            let mut out = Vec::new();
            encode_record(u64::from(old), seq, GroupId(1), &Record::Entry(entry), &mut out);
            prop_assert!(read_record(u64::from(new), &Bytes::from(out), 0).is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..220usize) {
            let bytes = Bytes::from(bytes);
            if let Some(raw) = read_record(1, &bytes, at) {
                let _ = raw.parse();
            }
        }
    }
}
