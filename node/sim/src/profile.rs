//! Kinds of weather. What each means in numbers is drawn in `world/conditions.rs`.

use std::fmt;
use std::str::FromStr;

/// What a run's weather is like.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Profile {
    /// Everything works: many operations, members that come and go, leadership that moves. What breaks here breaks without
    /// any bad luck.
    Calm,
    /// Each seed tries another mixture of faults (Groce et al., "Swarm testing", ISSTA 2012).
    #[default]
    Swarm,
    /// The same with read leases: mostly reads, at every member, in modes that change, on clocks that run fast and slow within
    /// the bound.
    LeaseHeavy,
    /// The same on clocks beyond the bound. Reads under leases may be stale then, which is expected and counted; nothing else
    /// may break.
    WildClocks,
    /// Many groups: shards that are cut, joined and moved while clients write, read ranges and transactions over several of them.
    Shards,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Calm,
        Self::Swarm,
        Self::LeaseHeavy,
        Self::WildClocks,
        Self::Shards,
    ];

    /// Whether its runs can be told as lists of decisions ([`crate::Case`]), and not only by their seed.
    #[must_use]
    pub const fn has_cases(self) -> bool {
        match self {
            Self::Calm | Self::Swarm | Self::LeaseHeavy | Self::WildClocks => true,
            Self::Shards => false,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Calm => "calm",
            Self::Swarm => "swarm",
            Self::LeaseHeavy => "lease-heavy",
            Self::WildClocks => "wild-clocks",
            Self::Shards => "shards",
        })
    }
}

/// No profile has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no profile {name:?}; use one of {}", Profile::ALL.map(|profile| profile.to_string()).join(", "))]
pub struct UnknownProfile {
    name: String,
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.to_string() == name)
            .ok_or_else(|| UnknownProfile { name: name.to_owned() })
    }
}
