//! Eight keys at once with AVX2, one in each 32-bit lane.
//!
//! Keys are read in blocks of four words: first the whole blocks, in which a lane whose key has none left keeps its state, then what
//! is left of every key, at most 15 bytes with zeros behind them. Those are read together with bytes before them where the key has
//! any, and moved into place, so that nothing outside of a key is ever loaded.

use crate::LANES;
use crate::murmur::{ADD, C1, C2, F1, F2, few, length};
use std::arch::x86_64::{
    __m128i, __m256i, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_loadu_si128, _mm_shuffle_epi8, _mm_unpacklo_epi32,
    _mm_unpacklo_epi64, _mm256_add_epi32, _mm256_and_si256, _mm256_blend_epi32, _mm256_blendv_epi8, _mm256_cmpeq_epi32,
    _mm256_cmpgt_epi32, _mm256_mul_epu32, _mm256_mullo_epi32, _mm256_or_si256, _mm256_set_epi32, _mm256_set_m128i,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};
use std::hint::select_unpredictable;

/// Words of a block.
const WORDS: usize = 4;
/// Bytes of a block.
const BLOCK: usize = 4 * WORDS;
/// Makes a shuffle set a byte to 0.
const ZERO: u8 = 0x80;

/// How to move the last `n` bytes of a block to its front, at `16 - n`: sixteen numbers from there.
static LAST: [u8; 2 * BLOCK] = {
    let mut moves = [ZERO; 2 * BLOCK];
    let mut at = 0;
    while at < BLOCK {
        moves[at] = at as u8;
        at += 1;
    }
    moves
};

/// For a key of `n` bytes, at `n`: how to put its first 8 and its last 8 bytes together, or for less than 8 its first 4 and its last 4.
static BOTH: [[u8; BLOCK]; BLOCK] = {
    let mut moves = [[ZERO; BLOCK]; BLOCK];
    let mut length = 4;
    while length < BLOCK {
        let half = if length < 8 { 4 } else { 8 };
        let mut at = 0;
        while at < length {
            moves[length][at] = (if at < half { at } else { 2 * half + at - length }) as u8;
            at += 1;
        }
        length += 1;
    }
    moves
};

/// Appends the slots of the keys.
#[target_feature(enable = "avx2")]
pub(crate) fn slots(keys: &[[&[u8]; LANES]], slots: u32, out: &mut Vec<u32>) {
    for keys in keys {
        out.extend_from_slice(&store(parts(hash(keys), slots)));
    }
}

#[target_feature(enable = "avx2")]
fn hash(keys: &[&[u8]; LANES]) -> __m256i {
    let lengths = lanes(keys.each_ref().map(|key| length(key)));
    let all_have = keys.iter().map(|key| key.len()).min().unwrap_or(0) / BLOCK;
    let some_have = keys.iter().map(|key| key.len()).max().unwrap_or(0) / BLOCK;
    let mut state = _mm256_setzero_si256();
    for block in 0..all_have {
        for words in transposed(keys.each_ref().map(|key| load(&key.as_chunks().0[block]))) {
            state = stepped(state, words);
        }
    }
    for block in all_have..some_have {
        let before = state;
        for words in transposed(keys.each_ref().map(|key| whole_or_zeros(key, block))) {
            state = stepped(state, words);
        }
        let has = lanes(keys.each_ref().map(|key| u32::from(key.len() / BLOCK > block)));
        state = _mm256_blendv_epi8(state, before, _mm256_cmpeq_epi32(has, _mm256_setzero_si256()));
    }
    if keys.iter().any(|key| key.len() % BLOCK != 0) {
        let [first, second, third, fourth] = transposed(keys.each_ref().map(|key| rest(key)));
        let whole_words = _mm256_and_si256(_mm256_srli_epi32::<2>(lengths), all(WORDS as u32 - 1));
        // What follows the whole words of a lane is a word that takes no full step, and only that may be the fourth.
        let mut tails = _mm256_and_si256(fourth, _mm256_cmpeq_epi32(whole_words, all(3)));
        for (word, words) in (0u32..).zip([first, second, third]) {
            let is_tail = _mm256_cmpeq_epi32(whole_words, all(word));
            tails = _mm256_or_si256(tails, _mm256_and_si256(words, is_tail));
            let is_whole = _mm256_cmpgt_epi32(whole_words, all(word));
            state = _mm256_blendv_epi8(state, stepped(state, words), is_whole);
        }
        state = _mm256_xor_si256(state, mixed(tails));
    }
    finish(_mm256_xor_si256(state, lengths))
}

/// A whole block of a key, or zeros if it has no such block.
#[target_feature(enable = "avx2")]
fn whole_or_zeros(key: &[u8], block: usize) -> __m128i {
    let (blocks, _) = key.as_chunks::<BLOCK>();
    // Which of the keys has the block cannot be foreseen, so it is not branched on.
    let has = block < blocks.len();
    let from = select_unpredictable(has, blocks, &[[0; BLOCK]]);
    load(&from[select_unpredictable(has, block, 0)])
}

/// What follows the whole blocks of a key, with zeros behind it.
#[target_feature(enable = "avx2")]
fn rest(key: &[u8]) -> __m128i {
    let bytes = key.len() % BLOCK;
    if let Some(last) = key.last_chunk() {
        let moves = LAST[BLOCK - bytes..].first_chunk();
        return _mm_shuffle_epi8(load(last), load(moves.expect("invariant: 16 numbers from there")));
    }
    let both = if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
        _mm_unpacklo_epi64(load8(first), load8(last))
    } else if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
        _mm_unpacklo_epi32(load4(first), load4(last))
    } else {
        return _mm_cvtsi32_si128(few(key).cast_signed());
    };
    _mm_shuffle_epi8(both, load(&BOTH[bytes]))
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; BLOCK]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are loaded; the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load8(bytes: &[u8; 8]) -> __m128i {
    // SAFETY: the array has the 8 bytes that are loaded; the load asks for no alignment.
    unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load4(bytes: &[u8; 4]) -> __m128i {
    _mm_cvtsi32_si128(i32::from_le_bytes(*bytes))
}

/// From four words of each key to four vectors with one word of every key.
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m128i; LANES]) -> [__m256i; WORDS] {
    // Lanes 0 to 3 below, 4 to 7 above; the instructions below work in each half alone.
    let a = _mm256_set_m128i(rows[4], rows[0]);
    let b = _mm256_set_m128i(rows[5], rows[1]);
    let c = _mm256_set_m128i(rows[6], rows[2]);
    let d = _mm256_set_m128i(rows[7], rows[3]);
    let ab = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let cd = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab.0, cd.0),
        _mm256_unpackhi_epi64(ab.0, cd.0),
        _mm256_unpacklo_epi64(ab.1, cd.1),
        _mm256_unpackhi_epi64(ab.1, cd.1),
    ]
}

#[target_feature(enable = "avx2")]
fn all(number: u32) -> __m256i {
    _mm256_set1_epi32(number.cast_signed())
}

#[target_feature(enable = "avx2")]
fn lanes(numbers: [u32; LANES]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = numbers.map(u32::cast_signed);
    _mm256_set_epi32(h, g, f, e, d, c, b, a)
}

#[target_feature(enable = "avx2")]
fn mixed(words: __m256i) -> __m256i {
    let words = _mm256_mullo_epi32(words, all(C1));
    let words = _mm256_or_si256(_mm256_slli_epi32::<15>(words), _mm256_srli_epi32::<17>(words));
    _mm256_mullo_epi32(words, all(C2))
}

#[target_feature(enable = "avx2")]
fn stepped(state: __m256i, words: __m256i) -> __m256i {
    let state = _mm256_xor_si256(state, mixed(words));
    let state = _mm256_or_si256(_mm256_slli_epi32::<13>(state), _mm256_srli_epi32::<19>(state));
    // Five times, by shift and add: a multiplication takes longer, and the next step waits for this one.
    let five = _mm256_add_epi32(_mm256_slli_epi32::<2>(state), state);
    _mm256_add_epi32(five, all(ADD))
}

#[target_feature(enable = "avx2")]
fn finish(state: __m256i) -> __m256i {
    let state = _mm256_xor_si256(state, _mm256_srli_epi32::<16>(state));
    let state = _mm256_mullo_epi32(state, all(F1));
    let state = _mm256_xor_si256(state, _mm256_srli_epi32::<13>(state));
    let state = _mm256_mullo_epi32(state, all(F2));
    _mm256_xor_si256(state, _mm256_srli_epi32::<16>(state))
}

/// The high half of each lane times `slots`.
#[target_feature(enable = "avx2")]
fn parts(hashes: __m256i, slots: u32) -> __m256i {
    let even = _mm256_mul_epu32(hashes, all(slots));
    let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(hashes), all(slots));
    _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd)
}

#[target_feature(enable = "avx2")]
fn store(numbers: __m256i) -> [u32; LANES] {
    let mut out = [0; LANES];
    // SAFETY: the array has the 32 bytes that are stored; the store asks for no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), numbers) };
    out
}
