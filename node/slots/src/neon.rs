//! Eight keys at once with NEON, one in each 32-bit lane of two vectors.
//!
//! As `avx2`, but what is left of a key behind its whole blocks is copied into a block of zeros first.

use crate::LANES;
use crate::murmur::{ADD, C1, C2, F1, F2, length};
use std::arch::aarch64::{
    uint32x4_t, vaddq_u32, vandq_u32, vbslq_u32, vceqq_u32, vcgtq_u32, vdupq_n_u32, veorq_u32, vget_high_u32,
    vget_low_u32, vld1q_u8, vld1q_u32, vmull_u32, vmulq_u32, vorrq_u32, vreinterpretq_u32_u8, vreinterpretq_u32_u64,
    vreinterpretq_u64_u32, vshlq_n_u32, vshrq_n_u32, vst1q_u32, vtrn1q_u32, vtrn1q_u64, vtrn2q_u32, vtrn2q_u64,
    vuzp2q_u32,
};

/// Lanes of one vector.
const HALF: usize = LANES / 2;
/// Words of a block.
const WORDS: usize = 4;
/// Bytes of a block.
const BLOCK: usize = 4 * WORDS;

/// Appends the slots of the keys.
#[target_feature(enable = "neon")]
pub(crate) fn slots(keys: &[[&[u8]; LANES]], slots: u32, out: &mut Vec<u32>) {
    for [a, b, c, d, e, f, g, h] in keys {
        // Neither waits for the other, so a processor runs both at once.
        let low = parts(hash([a, b, c, d]), slots);
        let high = parts(hash([e, f, g, h]), slots);
        out.extend_from_slice(&store(low));
        out.extend_from_slice(&store(high));
    }
}

#[target_feature(enable = "neon")]
fn hash(keys: [&[u8]; HALF]) -> uint32x4_t {
    let all_have = keys.iter().map(|key| key.len()).min().unwrap_or(0) / BLOCK;
    let some_have = keys.iter().map(|key| key.len()).max().unwrap_or(0) / BLOCK;
    let mut state = vdupq_n_u32(0);
    for block in 0..some_have {
        let before = state;
        let [a, b, c, d] = keys;
        for words in transposed([whole(a, block), whole(b, block), whole(c, block), whole(d, block)]) {
            state = stepped(state, words);
        }
        if block >= all_have {
            // A lane whose key has no such block keeps its state.
            let has = lanes(keys.map(|key| u32::from(key.len() / BLOCK > block)));
            state = vbslq_u32(vceqq_u32(has, vdupq_n_u32(0)), before, state);
        }
    }
    let [a, b, c, d] = keys;
    let rest = transposed([rest(a), rest(b), rest(c), rest(d)]);
    let lengths = lanes(keys.map(length));
    let whole_words = vandq_u32(vshrq_n_u32::<2>(lengths), vdupq_n_u32(WORDS as u32 - 1));
    let mut tails = vdupq_n_u32(0);
    for (word, words) in (0u32..).zip(rest) {
        // What follows the whole words is a word that takes no full step.
        tails = vorrq_u32(tails, vandq_u32(words, vceqq_u32(whole_words, vdupq_n_u32(word))));
        state = vbslq_u32(vcgtq_u32(whole_words, vdupq_n_u32(word)), stepped(state, words), state);
    }
    finish(veorq_u32(veorq_u32(state, mixed(tails)), lengths))
}

/// A whole block of a key, or zeros if it has no such block.
#[target_feature(enable = "neon")]
fn whole(key: &[u8], block: usize) -> uint32x4_t {
    let (blocks, _) = key.as_chunks::<BLOCK>();
    load(blocks.get(block).unwrap_or(&[0; BLOCK]))
}

/// What follows the whole blocks of a key, with zeros behind it.
#[target_feature(enable = "neon")]
fn rest(key: &[u8]) -> uint32x4_t {
    let (_, rest) = key.as_chunks::<BLOCK>();
    let mut block = [0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    load(&block)
}

#[target_feature(enable = "neon")]
fn load(bytes: &[u8; BLOCK]) -> uint32x4_t {
    // SAFETY: the array has the 16 bytes that are loaded; the load asks for no alignment.
    vreinterpretq_u32_u8(unsafe { vld1q_u8(bytes.as_ptr()) })
}

/// From four words of each key to four vectors with one word of every key.
#[target_feature(enable = "neon")]
fn transposed([a, b, c, d]: [uint32x4_t; HALF]) -> [uint32x4_t; WORDS] {
    // Words 0 and 2 of two keys, then words 1 and 3.
    let (ab02, ab13) = (vtrn1q_u32(a, b), vtrn2q_u32(a, b));
    let (cd02, cd13) = (vtrn1q_u32(c, d), vtrn2q_u32(c, d));
    let pair = |low, high| (vreinterpretq_u64_u32(low), vreinterpretq_u64_u32(high));
    let (even, odd) = (pair(ab02, cd02), pair(ab13, cd13));
    [
        vreinterpretq_u32_u64(vtrn1q_u64(even.0, even.1)),
        vreinterpretq_u32_u64(vtrn1q_u64(odd.0, odd.1)),
        vreinterpretq_u32_u64(vtrn2q_u64(even.0, even.1)),
        vreinterpretq_u32_u64(vtrn2q_u64(odd.0, odd.1)),
    ]
}

#[target_feature(enable = "neon")]
fn lanes(numbers: [u32; HALF]) -> uint32x4_t {
    // SAFETY: the array has the 16 bytes that are loaded.
    unsafe { vld1q_u32(numbers.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn mixed(words: uint32x4_t) -> uint32x4_t {
    let words = vmulq_u32(words, vdupq_n_u32(C1));
    let words = vorrq_u32(vshlq_n_u32::<15>(words), vshrq_n_u32::<17>(words));
    vmulq_u32(words, vdupq_n_u32(C2))
}

#[target_feature(enable = "neon")]
fn stepped(state: uint32x4_t, words: uint32x4_t) -> uint32x4_t {
    let state = veorq_u32(state, mixed(words));
    let state = vorrq_u32(vshlq_n_u32::<13>(state), vshrq_n_u32::<19>(state));
    let five = vaddq_u32(vshlq_n_u32::<2>(state), state);
    vaddq_u32(five, vdupq_n_u32(ADD))
}

#[target_feature(enable = "neon")]
fn finish(state: uint32x4_t) -> uint32x4_t {
    let state = veorq_u32(state, vshrq_n_u32::<16>(state));
    let state = vmulq_u32(state, vdupq_n_u32(F1));
    let state = veorq_u32(state, vshrq_n_u32::<13>(state));
    let state = vmulq_u32(state, vdupq_n_u32(F2));
    veorq_u32(state, vshrq_n_u32::<16>(state))
}

/// The high half of each lane times `slots`.
#[target_feature(enable = "neon")]
fn parts(hashes: uint32x4_t, slots: u32) -> uint32x4_t {
    let slots = vdupq_n_u32(slots);
    let low = vmull_u32(vget_low_u32(hashes), vget_low_u32(slots));
    let high = vmull_u32(vget_high_u32(hashes), vget_high_u32(slots));
    vuzp2q_u32(vreinterpretq_u32_u64(low), vreinterpretq_u32_u64(high))
}

#[target_feature(enable = "neon")]
fn store(numbers: uint32x4_t) -> [u32; HALF] {
    let mut out = [0; HALF];
    // SAFETY: the array has the 16 bytes that are stored.
    unsafe { vst1q_u32(out.as_mut_ptr(), numbers) };
    out
}
