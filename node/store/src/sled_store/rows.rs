//! How what the state machine writes lies in sled's tree: large values in chunks, small rows in packs.

use super::CHUNK_BYTES;
use crate::pack;
use bytes::{BufMut, Bytes};

/// Row prefixes inside sled's tree.
pub(super) const DATA: u8 = b'd';
const CHUNK: u8 = b'c';

/// Value tags.
pub(super) const INLINE: u8 = 0;
pub(super) const CHUNKED: u8 = 1;

pub(super) fn chunk_count(len: usize) -> u32 {
    u32::try_from(len.div_ceil(CHUNK_BYTES)).expect("invariant: values are far below 2^32 chunks")
}

pub(super) fn data_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(DATA);
    out.extend_from_slice(key);
    out
}

/// Keys of equal length differ before the number, keys of different lengths give different lengths: no two collide.
pub(super) fn chunk_key(key: &[u8], number: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + key.len());
    out.push(CHUNK);
    out.extend_from_slice(key);
    out.put_u32(number);
    out
}

pub(super) fn put(key: &[u8], value: &[u8], rows: &mut sled::Batch) {
    if value.len() <= CHUNK_BYTES {
        let mut row = Vec::with_capacity(1 + value.len());
        row.push(INLINE);
        row.extend_from_slice(value);
        rows.insert(data_key(key), row);
        return;
    }
    let mut row = vec![CHUNKED];
    row.put_u32_le(u32::try_from(value.len()).expect("invariant: values are far below 4 GiB"));
    rows.insert(data_key(key), row);
    for (number, chunk) in (0..).zip(value.chunks(CHUNK_BYTES)) {
        rows.insert(chunk_key(key, number), chunk);
    }
}

/// Rows that belong together in packs of up to [`CHUNK_BYTES`]; a row that is alone, or too large, as itself.
pub(super) fn put_run(run: &[(Bytes, Bytes)], rows: &mut sled::Batch) {
    let mut pack: Vec<(&[u8], &[u8])> = Vec::new();
    let mut bytes = 0;
    let mut close = |pack: &mut Vec<(&[u8], &[u8])>| {
        match &pack[..] {
            [] => {}
            [(key, value)] => put(key, value, rows),
            [(first, _), ..] => rows.insert(data_key(first), pack::encode(pack.iter().copied())),
        }
        pack.clear();
    };
    for (key, value) in run {
        let fits = pack::fits(key, value);
        if !fits || bytes + pack::entry_bytes(key, value) > CHUNK_BYTES - 1 {
            close(&mut pack);
            bytes = 0;
        }
        bytes += pack::entry_bytes(key, value);
        pack.push((key, value));
        if !fits {
            close(&mut pack);
            bytes = 0;
        }
    }
    close(&mut pack);
}
