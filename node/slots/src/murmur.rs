//! MurmurHash3 `x86_32` with seed 0, one key at a time.

/// Multipliers of a word.
pub(crate) const C1: u32 = 0xcc9e_2d51;
pub(crate) const C2: u32 = 0x1b87_3593;
/// Added to five times the state after each word.
pub(crate) const ADD: u32 = 0xe654_6b64;
/// Multipliers of the finish.
pub(crate) const F1: u32 = 0x85eb_ca6b;
pub(crate) const F2: u32 = 0xc2b2_ae35;

fn mixed(word: u32) -> u32 {
    word.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2)
}

fn finish(mut state: u32) -> u32 {
    state ^= state >> 16;
    state = state.wrapping_mul(F1);
    state ^= state >> 13;
    state = state.wrapping_mul(F2);
    state ^ (state >> 16)
}

/// The length as the hash mixes it in: its low 32 bits.
pub(crate) fn length(key: &[u8]) -> u32 {
    key.len() as u32
}

/// The bytes behind the last whole word, as a word; 0 if there are none.
fn tail(key: &[u8]) -> u32 {
    let bytes = key.len() % 4;
    match key.last_chunk() {
        // They are the top bytes of the last four. No loop, because its end could not be foreseen.
        Some(last) => ((u64::from(u32::from_le_bytes(*last)) << (8 * bytes)) >> 32) as u32,
        None => few(key),
    }
}

/// Up to four bytes as a word, little-endian.
pub(crate) fn few(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

pub(crate) fn hash(key: &[u8]) -> u32 {
    let (words, _) = key.as_chunks::<4>();
    let state = words.iter().fold(0u32, |state, word| {
        let state = state ^ mixed(u32::from_le_bytes(*word));
        state.rotate_left(13).wrapping_mul(5).wrapping_add(ADD)
    });
    finish(state ^ mixed(tail(key)) ^ length(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values for seed 0 that are published with other implementations of the same function.
    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(hash(b""), 0);
        assert_eq!(hash(b"hello"), 0x248b_fa47);
        assert_eq!(hash(b"hello, world"), 0x149b_bb7f);
        assert_eq!(hash(b"The quick brown fox jumps over the lazy dog"), 0x2e4f_f723);
    }
}
