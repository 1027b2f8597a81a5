//! Where the members live, and how far that is. Pure.
//!
//! Round trips between five Google Cloud regions as S. Tollman, S. J. Park and J. Ousterhout measured them ("EPaxos Revisited", NSDI
//! 2021, page 7). The evaluation of roster leases that this one follows emulates the same ones (G. Hu and A. Arpaci-Dusseau,
//! "Bodega", OSDI 2026, the set-up "GEO"), and so its figures can be compared with ours.

use std::time::Duration;

use serde::Serialize;

/// How many.
pub const SITES: usize = 5;

/// Their names. The first one's member leads, as in that evaluation.
pub const NAMES: [&str; SITES] = ["Virginia", "Europe", "California", "Oregon", "Japan"];

/// Milliseconds there and back; above the diagonal is all that was measured, the rest follows.
const RTT_MS: [[u64; SITES]; SITES] = [
    [0, 77, 59, 64, 146],
    [77, 0, 129, 137, 221],
    [59, 129, 0, 26, 91],
    [64, 137, 26, 0, 98],
    [146, 221, 91, 98, 0],
];

/// What a table and a chart say about distances.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distances {
    /// The sites, the leader's first.
    pub sites: [&'static str; SITES],
    /// Milliseconds there and back, in this order.
    pub rtt_ms: [[u64; SITES]; SITES],
    /// Who measured them.
    pub source: &'static str,
}

/// All of them.
pub fn distances() -> Distances {
    Distances {
        sites: NAMES,
        rtt_ms: RTT_MS,
        source: "Google Cloud regions, measured by Tollman et al., EPaxos Revisited, NSDI 2021",
    }
}

/// There and back.
pub fn rtt(one: usize, other: usize) -> Duration {
    Duration::from_millis(RTT_MS[one][other])
}

/// One way: what a frame is late by.
pub fn delay(from: usize, to: usize) -> Duration {
    rtt(from, to) / 2
}

/// The longest way there and back between any two. Leases are exchanged between all members, so a change of rosters is counted
/// in these.
pub fn longest_rtt() -> Duration {
    let all = RTT_MS.iter().flatten().max();
    all.map_or(Duration::ZERO, |ms| Duration::from_millis(*ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_there_is_as_long_as_the_way_back_and_nobody_is_away_from_himself() {
        for one in 0..SITES {
            assert_eq!(rtt(one, one), Duration::ZERO);
            for other in 0..SITES {
                assert_eq!(rtt(one, other), rtt(other, one));
                assert_eq!(delay(one, other) + delay(other, one), rtt(one, other));
            }
        }
    }

    #[test]
    fn no_detour_is_much_shorter_than_the_way_itself() {
        // Rounded measurements of a real network: a matrix with a typing error would show here.
        let all = || NAMES.iter().enumerate();
        for (from, here) in all() {
            for (to, there) in all() {
                for (by, between) in all() {
                    let detour = rtt(from, by) + rtt(by, to) + Duration::from_millis(10);
                    assert!(rtt(from, to) <= detour, "{here} to {there} by {between}");
                }
            }
        }
    }

    #[test]
    fn the_longest_way_is_from_europe_to_japan() {
        assert_eq!(longest_rtt(), rtt(1, 4));
        assert_eq!(longest_rtt(), Duration::from_millis(221));
    }
}
