//! Rows of a run, packed into values of some KiB.
//!
//! sled pays for a key by copying its leaf, and for a page of a leaf again when it is written; a value of twenty rows costs about as much
//! as one of a single row. Rows that are only ever added behind each other, read and removed (revision rows) need nothing better.
//!
//! ```text
//! pack:  tag 2 | entry*        in key order, under the first entry's key at birth
//! entry: key length u16 | value length u16 | key | value
//! ```
//!
//! Pure: what a pack says, and what it becomes.

use bytes::{Buf, BufMut, Bytes};

/// Tag of a pack among the values of the engine.
pub(crate) const PACKED: u8 = 2;

/// Largest key and value of an entry; larger rows stand for themselves.
pub(crate) const ENTRY_BYTES_MAX: usize = 2 << 10;

const ENTRY_HEADER_BYTES: usize = 4;

/// Whether a row may go into a pack.
pub(crate) fn fits(key: &[u8], value: &[u8]) -> bool {
    key.len() + value.len() <= ENTRY_BYTES_MAX
}

/// Bytes of a row in a pack.
pub(crate) fn entry_bytes(key: &[u8], value: &[u8]) -> usize {
    ENTRY_HEADER_BYTES + key.len() + value.len()
}

/// A pack of these rows.
pub(crate) fn encode<'a>(rows: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) -> Vec<u8> {
    let bytes: usize = rows.clone().map(|(key, value)| entry_bytes(key, value)).sum();
    let len = |part: &[u8]| u16::try_from(part.len()).expect("invariant: entries are below ENTRY_BYTES_MAX");
    let mut out = Vec::with_capacity(1 + bytes);
    out.push(PACKED);
    for (key, value) in rows {
        out.put_u16_le(len(key));
        out.put_u16_le(len(value));
        out.put_slice(key);
        out.put_slice(value);
    }
    out
}

/// The rows of a pack, in order. `None` stands for what is no row, and is the last.
pub(crate) fn entries(pack: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    let mut rest = pack.strip_prefix(&[PACKED]).unwrap_or(&[0]);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = take(&mut rest);
        if entry.is_none() {
            rest = &[];
        }
        Some(entry)
    })
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    if rest.len() < ENTRY_HEADER_BYTES {
        return None;
    }
    let (key_len, value_len) = (usize::from(rest.get_u16_le()), usize::from(rest.get_u16_le()));
    let (key, behind) = rest.split_at_checked(key_len)?;
    let (value, behind) = behind.split_at_checked(value_len)?;
    *rest = behind;
    Some((key, value))
}

/// Looks a key up. The outer `None`: the pack is damaged.
pub(crate) fn find(pack: &[u8], wanted: &[u8]) -> Option<Option<Bytes>> {
    for entry in entries(pack) {
        let (key, value) = entry?;
        if key == wanted {
            return Some(Some(Bytes::copy_from_slice(value)));
        }
        if key > wanted {
            break;
        }
    }
    Some(None)
}

/// The pack without some of its rows; `None` if that leaves nothing.
pub(crate) fn without(pack: &[u8], gone: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    // What is no row cannot be kept; `open` has looked at all of them.
    let kept = entries(pack)
        .flatten()
        .filter(|(key, _)| !gone(key))
        .collect::<Vec<_>>();
    (!kept.is_empty()).then(|| encode(kept.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pack(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
        encode(rows.iter().map(|(key, value)| (&key[..], &value[..])))
    }

    proptest! {
        #[test]
        fn every_row_is_found_and_nothing_else(
            rows in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..4), proptest::collection::vec(any::<u8>(), 0..9), 1..20),
            other in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let packed = pack(&rows);
            for (key, value) in &rows {
                prop_assert_eq!(find(&packed, key), Some(Some(Bytes::from(value.clone()))));
            }
            prop_assert_eq!(find(&packed, &other).unwrap().is_some(), rows.contains_key(&other));
        }

        #[test]
        fn a_pack_loses_what_is_removed_and_keeps_the_rest(
            rows in proptest::collection::btree_map(any::<[u8; 2]>(), any::<u8>(), 1..20),
            odd: bool,
        ) {
            let rows: BTreeMap<_, _> = rows.into_iter().map(|(key, value)| (key.to_vec(), vec![value])).collect();
            let gone = |key: &[u8]| (key[0] % 2 == 1) == odd;
            let left: BTreeMap<_, _> = rows.clone().into_iter().filter(|(key, _)| !gone(key)).collect();
            prop_assert_eq!(without(&pack(&rows), gone), (!left.is_empty()).then(|| pack(&left)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, key: Vec<u8>) {
            let _ = find(&bytes, &key);
            let _ = without(&bytes, |_| false);
        }
    }

    #[test]
    fn a_damaged_pack_says_so() {
        let mut packed = encode([(&b"k"[..], &b"v"[..])].into_iter());
        packed.pop();
        assert_eq!(find(&packed, b"x"), None);
        assert_eq!(find(&[], b"x"), None);
    }
}
