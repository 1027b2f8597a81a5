//! Batches against single keys, and how evenly slots fill.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use althing_slots::{kernel, prefix, prefix_of_range, slot, slots_of, slots_of_scalar};
use proptest::prelude::*;

fn batch(keys: &[&[u8]], slots: u32) -> Vec<u32> {
    let mut out = vec![u32::MAX; 3];
    slots_of(keys, slots, &mut out);
    out
}

fn one_by_one(keys: &[&[u8]], slots: u32) -> Vec<u32> {
    keys.iter().map(|key| slot(key, slots)).collect()
}

/// Keys as long as names usually are, with some empty ones and some of a kilobyte between them.
fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let length = prop_oneof![8 => 0..70usize, 1 => Just(0usize), 1 => 0..1100usize];
    let key = length.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length));
    proptest::collection::vec(key, 0..40)
}

fn slot_counts() -> impl Strategy<Value = u32> {
    prop_oneof![Just(16_384), Just(0), Just(1), Just(u32::MAX), any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_says_what_single_keys_say(keys in keys(), slots in slot_counts()) {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let expected = one_by_one(&keys, slots);
        prop_assert_eq!(batch(&keys, slots), &expected[..], "by {}", kernel());
        let mut out = Vec::new();
        slots_of_scalar(&keys, slots, &mut out);
        prop_assert_eq!(out, expected);
    }

    /// Keys that begin anywhere, so that no load is aligned by accident.
    #[test]
    fn where_a_key_lies_does_not_matter(bytes in proptest::collection::vec(any::<u8>(), 600), cuts in proptest::collection::vec((0..500usize, 0..100usize), 8..24)) {
        let keys: Vec<&[u8]> = cuts.iter().map(|(from, length)| &bytes[*from..from + length]).collect();
        prop_assert_eq!(batch(&keys, 16_384), one_by_one(&keys, 16_384));
    }

    #[test]
    fn slots_are_in_range_and_halve_when_they_double(key in proptest::collection::vec(any::<u8>(), 0..80), slots in 1..=u32::MAX / 2) {
        prop_assert!(slot(&key, slots) < slots);
        prop_assert_eq!(slot(&key, 2 * slots) / 2, slot(&key, slots));
    }

    /// Over an alphabet in which `/` has close neighbours.
    #[test]
    fn every_key_of_a_range_with_a_common_prefix_has_it(start in "[a/0.]{0,7}", end in "[a/0.]{0,7}", key in "[a/0.]{0,9}", segments in 0..4u8) {
        if let Some(common) = prefix_of_range(start.as_bytes(), end.as_bytes(), Some(segments))
            && start <= key && key < end
        {
            prop_assert_eq!(prefix(key.as_bytes(), Some(segments)), common);
        }
    }
}

/// Every length of a key up to three blocks beside seven of another length, so that each lane ends first and last.
#[test]
fn every_lane_may_end_anywhere() {
    let bytes: Vec<u8> = (0..=255u8)
        .map(|byte| byte.wrapping_mul(167).wrapping_add(13))
        .collect();
    for odd in 0..=48 {
        for other in 0..=48 {
            for lane in 0..8 {
                let keys: Vec<&[u8]> = (0..8)
                    .map(|at| &bytes[at * 7..][..if at == lane { odd } else { other }])
                    .collect();
                assert_eq!(
                    batch(&keys, u32::MAX),
                    one_by_one(&keys, u32::MAX),
                    "lane {lane}: {odd}, others {other}"
                );
            }
        }
    }
}

/// A kernel that read one byte behind a key would end this process.
#[cfg(unix)]
#[test]
#[allow(unsafe_code, reason = "only a page that may not be read shows that it is not read")]
fn nothing_is_read_behind_a_key() {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
    // A multiple of every page size in use.
    let page = 64 << 10;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping that nothing else knows.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * page, both, MapFlags::PRIVATE) }.unwrap();
    // SAFETY: the first half of that mapping, filled by the system with zeros, and written by nobody while the slice lives.
    let readable = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), page) };
    for (at, byte) in readable.iter_mut().enumerate() {
        *byte = at as u8;
    }
    // SAFETY: the second half of that mapping, in which no reference points.
    unsafe {
        mprotect(
            start.cast::<u8>().wrapping_add(page).cast(),
            page,
            MprotectFlags::empty(),
        )
    }
    .unwrap();
    for length in 0..70 {
        for others in 0..70 {
            let mut keys = [&readable[page - others..]; 8];
            keys[length % 8] = &readable[page - length..];
            assert_eq!(batch(&keys, 16_384), one_by_one(&keys, 16_384));
        }
    }
    // SAFETY: all of that mapping; the slice is not used any more.
    unsafe { munmap(start, 2 * page) }.unwrap();
}

/// The statistic for `slots` equal parts; it has `slots - 1` degrees of freedom.
fn chi_square(keys: &[String], slots: u32) -> f64 {
    let prefixes: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let mut counts = vec![0f64; slots as usize];
    batch(&prefixes, slots)
        .iter()
        .for_each(|slot| counts[*slot as usize] += 1.0);
    let expected = keys.len() as f64 / f64::from(slots);
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

/// Names as clients make them differ in few places: numbers, groups of a resource, namespaces, random suffixes of few letters.
#[test]
fn realistic_keys_fill_slots_evenly() {
    let families: [(&str, Vec<String>); 6] = [
        ("counted", (0..200_000).map(|n| format!("/orders/{n}")).collect()),
        ("padded", (0..200_000).map(|n| format!("/orders/{n:012}")).collect()),
        (
            "namespaces",
            (0..200_000)
                .map(|n| format!("/registry/pods/team-{}/web-{}", n % 500, n / 500))
                .collect(),
        ),
        ("tenants", (0..200_000).map(|n| format!("tenant-{n:x}/locks")).collect()),
        (
            "leases",
            (0..200_000u64)
                .map(|n| format!("lock/{:016x}", 0x694d_77aa_9e38_0000 + n * 2))
                .collect(),
        ),
        ("short", (0..200_000).map(|n| format!("{n:x}")).collect()),
    ];
    for (family, keys) in &families {
        for slots in [16, 1000, 16_384] {
            let freedom = f64::from(slots) - 1.0;
            let deviations = (chi_square(keys, slots) - freedom) / (2.0 * freedom).sqrt();
            println!("{family:>10} keys over {slots:>5} slots: {deviations:+.2} deviations from even chance");
            // Too uneven is a bad hash. Too even is harmless, but what counts up in hex comes close to that.
            assert!(deviations < 4.0, "{family} over {slots} slots: {deviations}");
        }
    }
}
