//! The faults, as values: what is done to whom, with everything that chance decides already decided.

use std::fmt;
use std::time::Duration;

/// A member of a cluster, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(pub usize);

/// Who is meant. Only when a fault begins is it known who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The member that leads then; the first one if nobody does.
    Leader,
    /// One that does not lead, counted from the leader and around.
    Follower(usize),
}

/// Several members, all in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// One.
    One(Who),
    /// As many as a cluster must survive, the leader among them.
    Minority,
    /// All: nobody serves, and nothing may be lost.
    All,
}

/// How a path is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrives, nothing is lost: all of it comes late, when the cut is healed, as after a long retransmission.
    Hold,
    /// The sender believes that it was sent, and it never arrives: a half-open connection.
    Swallow,
    /// Connections break, and new ones are refused.
    Refuse,
}

/// One of a member's two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It hears nothing, and is heard.
    Deaf,
    /// It hears, and is not heard.
    Mute,
}

/// How full a volume gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Below the reserve at which the member refuses writes.
    BelowReserve,
    /// Not a byte is free.
    Full,
}

/// One fault; what heals it is its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and a start at the end.
    Kill(Victims),
    /// SIGSTOP, and SIGCONT at the end.
    Pause(Victims),
    /// One member is cut off from all others.
    Isolate {
        /// Whom.
        who: Who,
        /// How.
        cut: Cut,
    },
    /// One member is cut off in one direction.
    OneWay {
        /// Whom.
        who: Who,
        /// Which.
        way: Way,
        /// How.
        cut: Cut,
    },
    /// Two halves that cannot reach each other, and one member that reaches both.
    Bridge {
        /// The one.
        middle: Who,
        /// How the halves are cut.
        cut: Cut,
    },
    /// A minority and the rest, drawn at random.
    Split {
        /// The minority.
        minority: Vec<MemberIndex>,
        /// How the cut between them is made.
        cut: Cut,
    },
    /// All of a member's connections break again and again.
    Flap(Who),
    /// Everything to and from a member comes late.
    Slow {
        /// Whose.
        who: Who,
        /// How late, in milliseconds, in each direction.
        delay_ms: u64,
    },
    /// A member's volume is full, and has space again at the end.
    DiskFull {
        /// Whose.
        who: Who,
        /// How full.
        fill: Fill,
    },
    /// A member is started anew with a clock that runs at another rate, and again with a good one at the end.
    Clock {
        /// Whose.
        who: Who,
        /// Parts per million too fast (or, negative, too slow).
        ppm: i32,
    },
    /// Not a fault that a cluster must survive, and never part of a drawn plan: a majority of volumes goes back to what they were
    /// when it began, fsync or not. It shows that the judge sees lost writes.
    RollBack,
}

/// What a fault needs for itself; two faults of one class would heal each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A process.
    Process,
    /// The paths between members.
    Paths,
    /// A volume.
    Volume,
}

/// A row of the table: faults that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub &'static str);

impl Fault {
    /// Which row it belongs to.
    pub fn kind(&self) -> Kind {
        Kind(match self {
            Self::Kill(Victims::One(Who::Leader)) => "kill -9 the leader",
            Self::Kill(Victims::One(Who::Follower(_))) => "kill -9 a follower",
            Self::Kill(Victims::Minority) => "kill -9 a minority",
            Self::Kill(Victims::All) => "kill -9 all",
            Self::Pause(Victims::One(Who::Leader)) => "stop the leader",
            Self::Pause(Victims::One(Who::Follower(_))) => "stop a follower",
            Self::Pause(Victims::Minority) => "stop a minority",
            Self::Pause(Victims::All) => "stop all",
            Self::Isolate { who: Who::Leader, .. } => "isolate the leader",
            Self::Isolate { .. } => "isolate a follower",
            Self::OneWay { way: Way::Deaf, .. } => "one way: deaf",
            Self::OneWay { way: Way::Mute, .. } => "one way: mute",
            Self::Bridge { .. } => "bridge",
            Self::Split { .. } => "random split",
            Self::Flap(_) => "flapping connections",
            Self::Slow { .. } => "slow links",
            Self::DiskFull {
                fill: Fill::BelowReserve,
                ..
            } => "disk below its reserve",
            Self::DiskFull { fill: Fill::Full, .. } => "disk full",
            Self::Clock { ppm, .. } if ppm.abs() <= 10_000 => "clock rate within 1 %",
            Self::Clock { .. } => "clock rate off by 10 %",
            Self::RollBack => "volumes rolled back",
        })
    }

    /// What it takes hold of.
    pub fn class(&self) -> Class {
        match self {
            Self::Kill(_) | Self::Pause(_) | Self::Clock { .. } | Self::RollBack => Class::Process,
            Self::Isolate { .. }
            | Self::OneWay { .. }
            | Self::Bridge { .. }
            | Self::Split { .. }
            | Self::Flap(_)
            | Self::Slow { .. } => Class::Paths,
            Self::DiskFull { .. } => Class::Volume,
        }
    }

    /// How many of `members` it may keep from serving.
    pub fn impaired(&self, members: usize) -> usize {
        let of = |victims: &Victims| match victims {
            Victims::One(_) => 1,
            Victims::Minority => minority(members),
            Victims::All => members,
        };
        match self {
            Self::Kill(victims) | Self::Pause(victims) => of(victims),
            Self::Isolate { .. } | Self::OneWay { .. } | Self::Flap(_) | Self::DiskFull { .. } | Self::Clock { .. } => {
                1
            }
            // With the one in the middle each half is a majority, and may stay one only if nothing else happens.
            Self::Bridge { .. } => minority(members),
            Self::Split { minority, .. } => minority.len(),
            Self::Slow { .. } => 0,
            Self::RollBack => members,
        }
    }
}

/// How many of so many members may be down while the others serve.
pub fn minority(members: usize) -> usize {
    members.saturating_sub(1) / 2
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("the leader"),
            Self::Follower(number) => write!(f, "follower {number}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(_) | Self::Pause(_) | Self::RollBack => f.write_str(self.kind().0),
            Self::Isolate { who, cut } => write!(f, "isolate {who} ({cut:?})"),
            Self::OneWay { who, way, cut } => write!(f, "{who} is {way:?} ({cut:?})"),
            Self::Bridge { middle, cut } => write!(f, "{middle} is the bridge between two halves ({cut:?})"),
            Self::Split { minority, cut } => {
                let members: Vec<_> = minority.iter().map(|member| member.0.to_string()).collect();
                write!(f, "members {} on one side ({cut:?})", members.join(", "))
            }
            Self::Flap(who) => write!(f, "connections of {who} break again and again"),
            Self::Slow { who, delay_ms } => write!(f, "{who} is {delay_ms} ms away"),
            Self::DiskFull { who, fill } => write!(f, "volume of {who}: {fill:?}"),
            Self::Clock { who, ppm } => write!(f, "clock of {who} off by {ppm} ppm"),
        }
    }
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, from the start of the clients.
    pub at: Duration,
    /// When it is healed.
    pub until: Duration,
    /// What.
    pub fault: Fault,
}
