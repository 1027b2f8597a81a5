//! Which hash slot a key belongs to.
//!
//! The slot of a key decides which shard has it, on every member and for as long as the keyspace lives: the function never changes.

/// Multipliers and shifts of a 32-bit mixing step (those of murmur3's finaliser).
fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// The slot of a hashed prefix, below `slots`.
///
/// # Panics
/// If there are no slots.
#[must_use]
pub fn slot(prefix: &[u8], slots: u32) -> u32 {
    assert!(slots > 0, "invariant: a hashed keyspace has slots");
    let mut hash = 0x9e37_79b9_u32;
    for chunk in prefix.chunks(4) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u32::from_le_bytes(word))
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    // The low bits of the length tell apart what the zeros of a short last word make equal.
    let hash = mix(hash ^ prefix.len() as u32);
    ((u64::from(hash) * u64::from(slots)) >> 32) as u32
}

/// The part of a key that is hashed: its first `segments` segments without the slash behind them, or all of it. Segments are separated
/// by `/`; one at the very beginning belongs to the first segment.
#[must_use]
pub fn prefix(key: &[u8], segments: Option<u8>) -> &[u8] {
    let Some(segments) = segments else { return key };
    let mut left = segments;
    if left == 0 {
        return &[];
    }
    for (at, byte) in key.iter().enumerate() {
        if *byte == b'/' && at > 0 {
            left -= 1;
            if left == 0 {
                return &key[..at];
            }
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_so_many_segments_and_a_leading_slash_is_none() {
        assert_eq!(prefix(b"/registry/pods/a/b", Some(2)), b"/registry/pods");
        assert_eq!(prefix(b"registry/pods/a", Some(2)), b"registry/pods");
        assert_eq!(prefix(b"/registry", Some(2)), b"/registry");
        assert_eq!(prefix(b"/registry/pods", None), b"/registry/pods");
        assert_eq!(prefix(b"", Some(1)), b"");
    }

    #[test]
    fn slots_are_used_evenly_and_lengths_differ() {
        let mut counts = [0; 16];
        for number in 0..16_000 {
            counts[slot(format!("/registry/pods/{number}").as_bytes(), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        let zeros = [0; 8];
        let all: std::collections::BTreeSet<_> = (0..8).map(|len| slot(&zeros[..len], 1 << 20)).collect();
        assert_eq!(all.len(), 8);
    }
}
