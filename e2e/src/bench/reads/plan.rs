//! What is measured. Pure.

use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

use super::sites::SITES;

/// Clients at each site, each with one request under way at most: as many as in the evaluation that this follows.
pub const CLIENTS_PER_SITE: u32 = 10;
/// From one request of a client to its next, if the answer came by then. A thousand requests a second of all sites: on two cores they
/// leave most of the time to waiting, so that distances are measured and not processors.
pub const PERIOD: Duration = Duration::from_millis(50);
/// Different keys; as in the evaluation that this follows.
pub const KEYS: u32 = 1000;
/// Bytes of a value; likewise.
pub const VALUE_BYTES: usize = 128;
/// After this a request counts as failed: above an election and a lease.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a thousand requests so many are writes while a responder is killed and rosters change: gaps between writes are what is measured.
pub const WRITES_PER_MILLE_IN_GAPS: u16 = 500;
/// A killed responder stays away for so long: more than a lease and some elections.
pub const AWAY: Duration = Duration::from_secs(4);
/// Writes before a fault, to have a rhythm to compare with.
pub const BEFORE: Duration = Duration::from_secs(2);
/// Who is killed: neither the leader nor the member farthest from it, so that the longest way stays.
pub const KILLED: usize = 2;

/// How linearizable reads are answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub enum Mode {
    /// By a round of messages of the leader.
    ReadIndex,
    /// By the leader alone.
    LeaderLease,
    /// By every member alone. Revisions are etcd's: nobody has seen a newer one before. So a read waits for every write that is
    /// under way when it comes, whatever its key.
    RosterLease,
    /// By every member alone. What a read says of its key is linearizable, the revision beside it may be older than one that was seen
    /// elsewhere. So a read waits for writes of its own key only.
    RosterLeaseOfKeys,
}

impl Mode {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::ReadIndex,
        Self::LeaderLease,
        Self::RosterLease,
        Self::RosterLeaseOfKeys,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadIndex => "read index",
            Self::LeaderLease => "leader lease",
            Self::RosterLease => "roster lease",
            Self::RosterLeaseOfKeys => "roster lease, own keys",
        }
    }

    /// The admin API's name of it.
    pub const fn wire(self) -> &'static str {
        match self {
            Self::ReadIndex => "ReadIndex",
            Self::LeaderLease => "LeaderLease",
            Self::RosterLease | Self::RosterLeaseOfKeys => "RosterLease",
        }
    }

    /// Who holds a lease in this mode.
    pub fn holders(self) -> Vec<usize> {
        match self {
            Self::ReadIndex => Vec::new(),
            Self::LeaderLease => vec![0],
            Self::RosterLease | Self::RosterLeaseOfKeys => (0..SITES).collect(),
        }
    }

    /// The request that asks for it.
    pub fn request(self) -> Value {
        match self {
            Self::ReadIndex | Self::LeaderLease => json!({"mode": self.wire()}),
            Self::RosterLease => json!({"mode": self.wire(), "revisions": "Current"}),
            Self::RosterLeaseOfKeys => json!({"mode": self.wire(), "revisions": "OfKeys"}),
        }
    }
}

/// The request for roster leases of which only these members are responders.
pub fn responders_only(members: &[String]) -> Value {
    json!({"mode": Mode::RosterLease.wire(), "ranges": [{"start": "", "members": members}]})
}

/// In which order the modes take their turns: every round begins with another one, so that nobody is always first after a pause.
pub fn turns(rounds: usize) -> Vec<Mode> {
    (0..rounds)
        .flat_map(|round| (0..Mode::ALL.len()).map(move |turn| Mode::ALL[(round + turn) % Mode::ALL.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_takes_a_turn_in_every_round_and_begins_one_of_four() {
        let turns = turns(4);
        for round in turns.chunks(4) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, Mode::ALL);
        }
        let first: Vec<Mode> = turns.chunks(4).map(|round| round[0]).collect();
        assert_eq!(first, Mode::ALL);
    }

    #[test]
    fn requests_are_what_the_admin_api_reads() {
        assert_eq!(Mode::LeaderLease.request(), json!({"mode": "LeaderLease"}));
        assert_eq!(
            Mode::RosterLeaseOfKeys.request(),
            json!({"mode": "RosterLease", "revisions": "OfKeys"})
        );
        assert_eq!(
            responders_only(&["aa".to_owned(), "bb".to_owned()]),
            json!({"mode": "RosterLease", "ranges": [{"start": "", "members": ["aa", "bb"]}]})
        );
    }
}
