//! Rendezvous hashing (Thaler and Ravishankar, 1998): every member draws a number for every shard, the largest wins. Another
//! member changes the order of no two others.

use althing_raft::ids::{GroupId, MemberId};

/// What a member draws for a shard. Fixed: the same on every member and in every version.
#[must_use]
pub fn score(group: GroupId, member: MemberId) -> u64 {
    mix(mix(group.0).wrapping_add(member.0))
}

/// The finish of splitmix64 (Steele, Lea and Flood, 2014), which spreads every bit of its input over all of its output.
fn mix(input: u64) -> u64 {
    let mut bits = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_wins_its_share_and_a_newcomer_takes_only_what_it_wins() {
        let winner = |group, members: u64| {
            (1..=members)
                .map(MemberId)
                .max_by_key(|member| score(GroupId(group), *member))
                .expect("there are members")
        };
        let mut wins = [0usize; 11];
        for group in 0..10_000 {
            let before = winner(group, 10);
            let after = winner(group, 11);
            assert!(after == before || after == MemberId(11));
            wins[usize::try_from(before.0).expect("small")] += 1;
        }
        // A thousand each, give or take four standard deviations of a binomial (30).
        assert!(wins[1..].iter().all(|wins| (880..1_120).contains(wins)), "{wins:?}");
    }
}
