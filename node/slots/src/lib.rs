//! Hash slots: which of a keyspace's equal parts a key belongs to, one key at a time or eight at once.
//!
//! Contract: [`slot`] is a fixed function. Every member, every version and every processor gives the same slot for the same
//! bytes, since shards are cut between slots and a key that changed its slot would be lost. [`slots_of`] gives exactly what
//! [`slot`] gives, in batches, by AVX2 or NEON where the processor has them. [`prefix`] says which part of a key is hashed, so that keys
//! that belong together stay together.
//!
//! What it is not: it knows no shards, no routes and no store.
//!
//! The hash is MurmurHash3's `x86_32` (Austin Appleby, public domain) with seed 0: its four-byte steps run in the lanes of a
//! vector, its finish spreads every input bit over the high bits that [`slot`] takes, and its published vectors pin it. Nothing
//! defends against clients who search for keys of one slot: they can also write to one key.
//!
//! This is the one crate with `unsafe` code: loads of vectors through pointers, in `avx2` and `neon`.

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector loads go through pointers; each block says why it stays inside its key"
)]
mod avx2;
mod murmur;
#[cfg(target_arch = "aarch64")]
#[allow(
    unsafe_code,
    reason = "vector loads go through pointers; each block says why it stays inside its key"
)]
mod neon;
mod prefix;

pub use prefix::{prefix, prefix_of_range};

/// Keys that one step of a vector takes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const LANES: usize = 8;

/// The slot of a prefix, in `0..slots`. Slots are equal parts of the hash's values in order, so twice as many slots halve each.
///
/// No slots count as one.
#[must_use]
pub fn slot(prefix: &[u8], slots: u32) -> u32 {
    part(murmur::hash(prefix), slots)
}

/// The slots of many prefixes, in their order: what [`slot`] says of each. `out` is cleared first.
pub fn slots_of(prefixes: &[&[u8]], slots: u32, out: &mut Vec<u32>) {
    out.clear();
    out.reserve(prefixes.len());
    let rest = vectors(prefixes, slots, out);
    scalar(rest, slots, out);
}

/// As [`slots_of`] without any vectors: what it is tested and measured against.
pub fn slots_of_scalar(prefixes: &[&[u8]], slots: u32, out: &mut Vec<u32>) {
    out.clear();
    out.reserve(prefixes.len());
    scalar(prefixes, slots, out);
}

/// What [`slots_of`] runs on here, for people: `avx2`, `neon` or `scalar`.
#[must_use]
pub fn kernel() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "avx2";
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        return "neon";
    }
    "scalar"
}

fn scalar(prefixes: &[&[u8]], slots: u32, out: &mut Vec<u32>) {
    out.extend(prefixes.iter().map(|prefix| slot(prefix, slots)));
}

/// Appends the slots of as many prefixes as fill whole vectors; answers with those left over.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[allow(unsafe_code, reason = "a kernel may only be called where its instructions are")]
fn vectors<'k, 'b>(prefixes: &'k [&'b [u8]], slots: u32, out: &mut Vec<u32>) -> &'k [&'b [u8]] {
    if kernel() == "scalar" {
        return prefixes;
    }
    let (eights, rest) = prefixes.as_chunks::<LANES>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `kernel` has asked the processor, and it has AVX2; the function has no other condition.
    unsafe {
        avx2::slots(eights, slots, out);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: `kernel` has asked the processor, and it has NEON; the function has no other condition.
    unsafe {
        neon::slots(eights, slots, out);
    }
    rest
}

/// No vectors here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn vectors<'k, 'b>(prefixes: &'k [&'b [u8]], _slots: u32, _out: &mut Vec<u32>) -> &'k [&'b [u8]] {
    prefixes
}

/// Which of `slots` equal parts of the 32-bit numbers a hash lies in.
fn part(hash: u32, slots: u32) -> u32 {
    let product = u64::from(hash) * u64::from(slots);
    u32::try_from(product >> 32).expect("invariant: a product of two 32-bit numbers has 64 bits")
}
