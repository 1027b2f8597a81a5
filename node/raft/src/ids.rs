//! The words of consensus as types, so that no bare `u64` crosses a module line.

use crate::mutant::Mutant;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        id!($(#[$doc])* $name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl $name {
            /// The value before every real one.
            pub const ZERO: Self = Self(0);

            /// The following value. Panics on overflow: 2^64 steps are not reachable.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("invariant: counters never reach 2^64"))
            }
        }
    };
}

counter!(
    /// A Raft term (Raft paper, section 5.1).
    Term
);
counter!(
    /// A position in one group's log. The first entry has index 1.
    Index
);
counter!(
    /// Numbers the rosters of one term, from 0 (`crate::roster`).
    Epoch
);
id!(
    /// One Raft group. Group 0 is kept for the meta group; shards start at 1.
    GroupId
);
id!(
    /// One member: drawn at random at a volume's first boot, never used again (pitfall P30).
    /// Printed as sixteen hex digits, as etcd prints member ids.
    MemberId
);

impl GroupId {
    /// The meta group (shard map, members, placement).
    pub const META: Self = Self(0);
    /// The first shard of the default keyspace.
    pub const FIRST_SHARD: Self = Self(1);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for MemberId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Index {
    /// The preceding index; zero stays zero.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Nanoseconds on one machine's monotonic clock; never compared across machines.
/// Passed in by the shell: nothing pure reads a clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Now(pub u64);

impl Now {
    /// This moment plus a duration.
    #[must_use]
    pub fn after(self, wait: std::time::Duration) -> Self {
        let nanos = u64::try_from(wait.as_nanos()).expect("invariant: waits are under 584 years");
        Self(self.0.saturating_add(nanos))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The position of one entry: an index means nothing without its term (pitfall P6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct LogPosition {
    /// Term of the entry.
    pub term: Term,
    /// Index of the entry.
    pub index: Index,
}

impl LogPosition {
    /// Whether a log that ends here is at least as up to date as one that ends at `other`
    /// (Raft paper, section 5.4.1).
    #[must_use]
    pub fn up_to_date_with(self, other: Self) -> bool {
        (self.term, self.index) >= (other.term, other.index) || Mutant::VoteForShorterLog.active()
    }
}
