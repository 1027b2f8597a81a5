//! `cargo run --release -p althing-slots --example keys_per_second`: batches by vectors against one key at a time.
//!
//! Both sides run over the same keys in turns, and the fastest turn of each counts: the machine may be busy, the code is not.

#![expect(clippy::disallowed_methods, reason = "it measures its own speed")]

use althing_slots::{kernel, slot, slots_of, slots_of_scalar};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Keys of a batch: more than a branch predictor learns by heart, few enough for the cache.
const KEYS: usize = 16_384;
const TURNS: usize = 400;

type Kernel = fn(&[&[u8]], u32, &mut Vec<u32>);

fn turn(kernel: Kernel, keys: &[&[u8]], out: &mut Vec<u32>) -> Duration {
    let start = Instant::now();
    kernel(black_box(keys), 16_384, out);
    black_box(&out);
    start.elapsed()
}

fn measure(name: &str, lengths: impl Fn(usize) -> usize) {
    let keys: Vec<Vec<u8>> = (0..KEYS)
        .map(|n| {
            let mut key = format!("/registry/pods/team-{}/web-{n}/", n % 97).into_bytes();
            key.resize(lengths(n), b'x');
            key
        })
        .collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let mut out = Vec::with_capacity(KEYS);
    let (mut scalar, mut vectors) = (Duration::MAX, Duration::MAX);
    for _ in 0..TURNS {
        scalar = scalar.min(turn(slots_of_scalar, &keys, &mut out));
        vectors = vectors.min(turn(slots_of, &keys, &mut out));
    }
    let rate = |time: Duration| KEYS as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{name:>16}: scalar {:7.1} M keys/s, {} {:7.1} M keys/s, ratio {:.2}",
        rate(scalar),
        kernel(),
        rate(vectors),
        scalar.as_secs_f64() / vectors.as_secs_f64()
    );
}

fn main() {
    for bytes in [8, 12, 16, 24, 32, 48, 64] {
        measure(&format!("{bytes} bytes"), |_| bytes);
    }
    // Drawn, so that no two neighbours are alike and no branch predictor sees the next one coming.
    let drawn = |n: usize, below: usize| slot(&(n as u64).to_le_bytes(), below as u32) as usize;
    measure("8 to 64 bytes", move |n| 8 + drawn(n, 57));
    measure("14 to 30 bytes", move |n| 14 + drawn(n, 17));
}
