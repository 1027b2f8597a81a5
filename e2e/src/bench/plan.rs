//! What is measured, and how etcd's `benchmark` is called for it. Pure.

/// Connections at most; more clients share them, as the tool's own documentation does it.
const CONNECTIONS_MAX: usize = 100;
/// Bytes of a key that is written.
pub const KEY_BYTES: usize = 32;
/// Bytes of a value: the size that etcd's own performance pages use.
pub const VALUE_BYTES: usize = 256;
/// The most shards that the keys which puts write can be cut into by their first byte, half of whose values there are.
pub const SHARDS_MAX: u32 = 64;
/// Different keys that puts write.
const KEY_SPACE: usize = 100_000;
/// Requests of one run at most, however fast they are: what a run writes and how long it takes stay bounded.
const TOTAL_MAX: u64 = 1_000_000;
/// The key that ranges read.
pub const RANGE_KEY: &str = "althing/bench/range/key-of-32-by";

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Writes one key.
    Put,
    /// Reads one key; sees every acknowledged write.
    RangeLinearizable,
    /// The same, while our shards are read by leader leases: what a linearizable range costs where clocks are trusted. etcd has nothing that
    /// compares, so it answers as ever.
    RangeLeaderLease,
    /// Reads one key of the member that is asked.
    RangeSerializable,
    /// A transaction that writes one key.
    TxnPut,
}

impl Kind {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 5] = [
        Self::Put,
        Self::RangeLinearizable,
        Self::RangeLeaderLease,
        Self::RangeSerializable,
        Self::TxnPut,
    ];

    /// Its name in tables, files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::RangeLinearizable => "range-linearizable",
            Self::RangeLeaderLease => "range-leader-lease",
            Self::RangeSerializable => "range-serializable",
            Self::TxnPut => "txn-put",
        }
    }

    /// Whether design's goals speak of it.
    pub const fn has_goals(self) -> bool {
        match self {
            Self::Put | Self::RangeLinearizable | Self::RangeLeaderLease => true,
            Self::RangeSerializable | Self::TxnPut => false,
        }
    }

    /// How our shards are read meanwhile, as the admin API calls it.
    pub const fn read_mode(self) -> &'static str {
        match self {
            Self::RangeLeaderLease => "LeaderLease",
            Self::Put | Self::RangeLinearizable | Self::RangeSerializable | Self::TxnPut => "ReadIndex",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("there is no case `{text}`; there are {}", names()))
    }
}

/// One line of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Case {
    /// What the requests do.
    pub kind: Kind,
    /// Requests under way at any time.
    pub clients: usize,
}

impl Case {
    /// Requests of the run that finds out how fast the system is: every client some.
    pub fn first_total(self) -> u64 {
        (self.clients as u64 * 5).max(500)
    }

    /// Requests that take about `seconds` at `rate` requests a second, within bounds.
    pub fn total(self, rate: f64, seconds: f64) -> u64 {
        ((rate * seconds) as u64).clamp(self.first_total(), TOTAL_MAX)
    }

    /// The tool's arguments.
    ///
    /// Many clients are spread evenly over all members, as a client with three endpoints is. A single one goes to the leader in
    /// both systems: which member happens to be first in the list must not decide the comparison.
    pub fn arguments(self, endpoints: &[String], total: u64) -> Vec<String> {
        let (key, value, space) = (
            format!("--key-size={KEY_BYTES}"),
            format!("--val-size={VALUE_BYTES}"),
            format!("--key-space-size={KEY_SPACE}"),
        );
        let mut arguments: Vec<String> = match self.kind {
            Kind::Put => vec!["put".to_owned(), "--sequential-keys".to_owned(), key, value, space],
            Kind::TxnPut => vec!["txn-put".to_owned(), "--txn-ops=1".to_owned(), key, value, space],
            Kind::RangeLinearizable | Kind::RangeLeaderLease => {
                vec!["range".to_owned(), RANGE_KEY.to_owned(), "--consistency=l".to_owned()]
            }
            Kind::RangeSerializable => vec!["range".to_owned(), RANGE_KEY.to_owned(), "--consistency=s".to_owned()],
        };
        arguments.extend([
            format!("--endpoints={}", endpoints.join(",")),
            format!("--clients={}", self.clients),
            format!("--conns={}", self.clients.min(CONNECTIONS_MAX)),
            format!("--total={total}"),
            "--precise".to_owned(),
        ]);
        if self.clients == 1 {
            arguments.push("--target-leader".to_owned());
        }
        arguments
    }
}

/// Where shards begin so that puts are spread over them, as the admin API writes keys.
///
/// The tool's sequential keys begin with a number as a zigzag varint: of the first byte the highest bit is set from 64 on, and the others
/// are the number's lowest, so that neighbours among the numbers are far from each other among the keys.
pub fn split_keys(shards: u32) -> Vec<String> {
    (1..shards)
        .map(|shard| format!("\\x{:02x}", 0x80 + 0x80 * shard / shards))
        .collect()
}

/// All cases of these kinds and numbers of clients.
pub fn cases(kinds: &[Kind], clients: &[usize]) -> Vec<Case> {
    kinds
        .iter()
        .flat_map(|&kind| clients.iter().map(move |&clients| Case { kind, clients }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_client_asks_the_leader_and_many_share_connections_to_all_members() {
        let endpoints = ["a:1".to_owned(), "b:2".to_owned()];
        let one = Case {
            kind: Kind::Put,
            clients: 1,
        }
        .arguments(&endpoints, 500);
        assert!(one.contains(&"--target-leader".to_owned()) && one.contains(&"--conns=1".to_owned()));
        let many = Case {
            kind: Kind::RangeLinearizable,
            clients: 1000,
        }
        .arguments(&endpoints, 5000);
        assert!(!many.contains(&"--target-leader".to_owned()));
        for argument in [
            "--conns=100",
            "--clients=1000",
            "--endpoints=a:1,b:2",
            "--consistency=l",
        ] {
            assert!(many.contains(&argument.to_owned()), "{argument} is missing in {many:?}");
        }
    }

    #[test]
    fn totals_follow_the_rate_and_stay_within_bounds() {
        let case = Case {
            kind: Kind::Put,
            clients: 1000,
        };
        assert_eq!(case.total(10_000.0, 3.0), 30_000);
        assert_eq!(case.total(1.0, 3.0), 5_000);
        assert_eq!(case.total(1e12, 3.0), TOTAL_MAX);
    }

    #[test]
    fn shards_begin_in_equal_parts_of_the_keys_that_puts_write() {
        assert_eq!(split_keys(4), ["\\xa0", "\\xc0", "\\xe0"]);
        assert_eq!(split_keys(1), [""; 0]);
    }

    #[test]
    fn the_key_that_ranges_read_is_as_long_as_the_keys_that_puts_write() {
        assert_eq!(RANGE_KEY.len(), KEY_BYTES);
    }

    #[test]
    fn a_wrong_case_is_answered_with_the_right_ones() {
        assert_eq!("put".parse(), Ok(Kind::Put));
        assert!("puts".parse::<Kind>().unwrap_err().contains("range-serializable"));
    }
}
