//! A plan of faults from a seed. Pure: the same seed, members, length and abilities give the same plan.
//!
//! Bounds that hold for every plan: at any time at most a minority is impaired, unless the fault is one of all members at once;
//! two faults at one time are of different classes; every fault is healed before the end, with time left to see that
//! everybody has caught up.

use std::time::Duration;

use althing_sim::rng::Rng;

use super::fault::{Cut, Fault, Fill, MemberIndex, Planned, Victims, Way, Who, minority};

/// The clients' first seconds without any fault: what the table's gaps are to be compared with.
const CALM: Duration = Duration::from_secs(3);
/// From one fault's end to the next one's begin: some election timeouts, so that a gap is one fault's and not two's.
const PAUSE_MS: (u64, u64) = (1500, 3000);
/// Time at the end without faults.
pub const TAIL: Duration = Duration::from_secs(4);
/// From one wish for shards to the next: some are reached before, some are not.
const LAYOUT_MS: (u64, u64) = (8000, 25_000);
/// Time for the last of them.
const LAYOUT_TAIL: Duration = Duration::from_secs(8);
/// In a thousand faults so many have a second one within.
const OVERLAP_PER_MILLE: u64 = 400;

/// What this machine can do; without it faults are left out, and the plan is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// A file system for each member, which can be filled.
    pub volumes: bool,
    /// Clocks with another rate.
    pub clocks: bool,
}

/// Everything that will happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// In the order of their begin.
    pub faults: Vec<Planned>,
    /// How many shards the keyspace shall have, from when on; in order. Empty: nobody asks for any.
    pub layouts: Vec<Layout>,
    /// When the clients stop.
    pub end: Duration,
}

/// A wish for shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// When it is made known.
    pub at: Duration,
    /// How many.
    pub shards: u32,
    /// Replicas of each; `None`: every member has one.
    pub replicas: Option<u32>,
}

/// The faults of `length` for so many members.
///
/// # Panics
/// With fewer than three members, of which none may be impaired.
pub fn draw(seed: u64, members: usize, length: Duration, abilities: Abilities) -> FaultPlan {
    assert!(minority(members) > 0, "{members} members survive no fault");
    let mut rng = Rng::split(seed, "faults", u64::try_from(members).unwrap_or(u64::MAX));
    let mut faults = Vec::new();
    let mut deck = Vec::new();
    let mut at = CALM;
    loop {
        // Every kind comes once before any comes twice, in an order of the seed: a short run is not one kind five times.
        if deck.is_empty() {
            deck = shuffled(KINDS.to_vec(), &mut rng);
        }
        let card = deck.pop().expect("invariant: filled above");
        let Some(fault) = fault(card, members, abilities, &mut rng) else {
            continue;
        };
        let until = at + lasting(&fault, &mut rng);
        if until + TAIL > length {
            break;
        }
        let second = rng
            .chance(OVERLAP_PER_MILLE)
            .then(|| second(&fault, at, until, members, abilities, &mut rng))
            .flatten();
        faults.push(Planned { at, until, fault });
        faults.extend(second);
        at = until + ms(rng.between(PAUSE_MS.0, PAUSE_MS.1));
    }
    FaultPlan {
        faults,
        layouts: Vec::new(),
        end: length,
    }
}

/// Wishes for at most so many shards: first for all of them, then for other numbers, faults or not. Of more than three members some hold
/// none of a shard now and then, so that shards move.
pub fn draw_layouts(seed: u64, shards: u32, members: usize, length: Duration) -> Vec<Layout> {
    let mut rng = Rng::split(seed, "layouts", u64::from(shards));
    let mut layouts = Vec::new();
    let (mut at, mut now) = (CALM, shards);
    while at + LAYOUT_TAIL <= length {
        let few = members > 3 && rng.chance(700);
        layouts.push(Layout {
            at,
            shards: now,
            replicas: few.then_some(3),
        });
        at += ms(rng.between(LAYOUT_MS.0, LAYOUT_MS.1));
        // Another one than the present; where there is only one, it is asked for again.
        let others = u64::from(shards.saturating_sub(1)).max(1);
        let other = 1 + u32::try_from(rng.below(others)).unwrap_or(0);
        now = if other >= now && shards > 1 { other + 1 } else { other };
    }
    layouts
}

/// A fault within another, if chance finds one that fits.
fn second(
    first: &Fault,
    at: Duration,
    until: Duration,
    members: usize,
    abilities: Abilities,
    rng: &mut Rng,
) -> Option<Planned> {
    let free = minority(members).saturating_sub(first.impaired(members));
    let cards = shuffled(KINDS.to_vec(), rng);
    let fault = cards.into_iter().find_map(|card| {
        fault(card, members, abilities, rng)
            .filter(|fault| fault.class() != first.class() && fault.impaired(members) <= free)
    })?;
    let length = until - at;
    let from = at + length.mul_f64(0.2);
    Some(Planned {
        at: from,
        until: from + lasting(&fault, rng).min(length.mul_f64(0.6)),
        fault,
    })
}

/// Kinds of faults before chance has decided the rest.
#[derive(Debug, Clone, Copy)]
enum Card {
    KillLeader,
    KillFollower,
    KillMinority,
    KillAll,
    PauseLeader,
    PauseFollower,
    PauseMinority,
    PauseAll,
    IsolateLeader,
    IsolateFollower,
    Deaf,
    Mute,
    Bridge,
    Split,
    Flap,
    Slow,
    BelowReserve,
    DiskFull,
    ClockWithin,
    ClockBeyond,
}

const KINDS: [Card; 20] = [
    Card::KillLeader,
    Card::KillFollower,
    Card::KillMinority,
    Card::KillAll,
    Card::PauseLeader,
    Card::PauseFollower,
    Card::PauseMinority,
    Card::PauseAll,
    Card::IsolateLeader,
    Card::IsolateFollower,
    Card::Deaf,
    Card::Mute,
    Card::Bridge,
    Card::Split,
    Card::Flap,
    Card::Slow,
    Card::BelowReserve,
    Card::DiskFull,
    Card::ClockWithin,
    Card::ClockBeyond,
];

/// `None` if it makes no sense here.
fn fault(card: Card, members: usize, abilities: Abilities, rng: &mut Rng) -> Option<Fault> {
    let followers = u64::try_from(members - 1).unwrap_or(u64::MAX);
    let follower = Who::Follower(below(followers, rng));
    let anybody = if rng.chance(500) { Who::Leader } else { follower };
    let cut = *rng
        .pick(&[Cut::Hold, Cut::Swallow, Cut::Refuse])
        .expect("invariant: three of them");
    let sign = if rng.chance(500) { 1 } else { -1 };
    let fault = match card {
        Card::KillLeader => Fault::Kill(Victims::One(Who::Leader)),
        Card::KillFollower => Fault::Kill(Victims::One(follower)),
        // Of three members the minority is one, which is the leader, and that is another card.
        Card::KillMinority => (minority(members) > 1).then_some(Fault::Kill(Victims::Minority))?,
        Card::KillAll => Fault::Kill(Victims::All),
        Card::PauseLeader => Fault::Pause(Victims::One(Who::Leader)),
        Card::PauseFollower => Fault::Pause(Victims::One(follower)),
        Card::PauseMinority => (minority(members) > 1).then_some(Fault::Pause(Victims::Minority))?,
        Card::PauseAll => Fault::Pause(Victims::All),
        Card::IsolateLeader => Fault::Isolate { who: Who::Leader, cut },
        Card::IsolateFollower => Fault::Isolate { who: follower, cut },
        Card::Deaf => Fault::OneWay {
            who: anybody,
            way: Way::Deaf,
            cut,
        },
        Card::Mute => Fault::OneWay {
            who: anybody,
            way: Way::Mute,
            cut,
        },
        Card::Bridge => Fault::Bridge { middle: anybody, cut },
        Card::Split => {
            let all = shuffled((0..members).map(MemberIndex).collect(), rng);
            let most = u64::try_from(minority(members)).unwrap_or(u64::MAX);
            let count = 1 + below(most, rng);
            let mut minority: Vec<_> = all.into_iter().take(count).collect();
            minority.sort_unstable();
            Fault::Split { minority, cut }
        }
        Card::Flap => Fault::Flap(anybody),
        Card::Slow => Fault::Slow {
            who: anybody,
            delay_ms: rng.between(20, 300),
        },
        Card::BelowReserve => abilities.volumes.then_some(Fault::DiskFull {
            who: anybody,
            fill: Fill::BelowReserve,
        })?,
        Card::DiskFull => abilities.volumes.then_some(Fault::DiskFull {
            who: anybody,
            fill: Fill::Full,
        })?,
        Card::ClockWithin => abilities.clocks.then_some(Fault::Clock {
            who: anybody,
            ppm: sign * 10_000,
        })?,
        Card::ClockBeyond => abilities.clocks.then_some(Fault::Clock {
            who: anybody,
            ppm: sign * 100_000,
        })?,
    };
    Some(fault)
}

/// Long enough for an election (1 to 2 s) to be won and lost, short enough for many faults in a minute.
fn lasting(fault: &Fault, rng: &mut Rng) -> Duration {
    let (least, most) = match fault {
        // From a crash loop's restart to longer than an election.
        Fault::Kill(_) => (100, 4000),
        // Below one election timeout nobody notices; above, the world has moved on when the process wakes up.
        Fault::Pause(_) => (300, 4000),
        Fault::Isolate { .. } | Fault::OneWay { .. } | Fault::Bridge { .. } | Fault::Split { .. } => (1500, 5000),
        Fault::Flap(_) | Fault::Slow { .. } => (2000, 5000),
        Fault::DiskFull { .. } => (3000, 6000),
        // At 1 % it takes a while until a clock is off by anything.
        Fault::Clock { .. } => (5000, 9000),
        Fault::RollBack => (3000, 3000),
    };
    ms(rng.between(least, most))
}

fn shuffled<T>(mut items: Vec<T>, rng: &mut Rng) -> Vec<T> {
    for last in (1..items.len()).rev() {
        items.swap(last, below(u64::try_from(last + 1).unwrap_or(u64::MAX), rng));
    }
    items
}

fn below(bound: u64, rng: &mut Rng) -> usize {
    usize::try_from(rng.below(bound)).expect("invariant: below a usize")
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Abilities = Abilities {
        volumes: true,
        clocks: true,
    };

    fn plans() -> impl Iterator<Item = (usize, FaultPlan)> {
        (0..200).map(|seed| {
            let members = if seed % 2 == 0 { 3 } else { 5 };
            (members, draw(seed, members, Duration::from_secs(300), EVERYTHING))
        })
    }

    #[test]
    fn a_seed_is_one_plan_and_another_seed_another() {
        let plan = |seed| draw(seed, 3, Duration::from_secs(60), EVERYTHING);
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_fault_is_healed_before_the_end_with_time_to_catch_up() {
        for (_, plan) in plans() {
            for planned in &plan.faults {
                assert!(
                    planned.at < planned.until && planned.until + TAIL <= plan.end,
                    "{planned:?}"
                );
            }
        }
    }

    #[test]
    fn never_is_more_than_a_minority_impaired_unless_the_fault_is_of_all() {
        for (members, plan) in plans() {
            for planned in &plan.faults {
                let same_time = |other: &&Planned| other.at < planned.until && planned.at < other.until;
                let together: Vec<_> = plan.faults.iter().filter(same_time).collect();
                let impaired: usize = together.iter().map(|other| other.fault.impaired(members)).sum();
                let of_all = together
                    .iter()
                    .any(|other| matches!(other.fault, Fault::Kill(Victims::All) | Fault::Pause(Victims::All)));
                assert!(
                    impaired <= minority(members) || of_all,
                    "{members} members: {together:?}"
                );
                for other in together.into_iter().filter(|other| *other != planned) {
                    assert_ne!(other.fault.class(), planned.fault.class(), "{other:?} and {planned:?}");
                }
            }
        }
    }

    #[test]
    fn some_minutes_have_every_kind_and_some_faults_within_others() {
        let (_, plan) = plans().nth(1).unwrap();
        let kinds: std::collections::BTreeSet<_> = plan.faults.iter().map(|planned| planned.fault.kind()).collect();
        assert!(kinds.len() >= 19, "{kinds:?}");
        let within = plan.faults.windows(2).filter(|pair| pair[1].at < pair[0].until).count();
        assert!(within > 3, "{within}");
    }

    #[test]
    fn wishes_for_shards_begin_with_all_and_differ_from_one_to_the_next() {
        for seed in 0..100 {
            let layouts = draw_layouts(seed, 8, 5, Duration::from_secs(120));
            assert_eq!(layouts[0].shards, 8);
            assert!(layouts.len() >= 4, "{layouts:?}");
            assert!(
                layouts.iter().all(|layout| (1..=8).contains(&layout.shards)),
                "{layouts:?}"
            );
            assert!(
                layouts.windows(2).all(|pair| pair[0].shards != pair[1].shards),
                "{layouts:?}"
            );
        }
        let one = draw_layouts(1, 1, 3, Duration::from_secs(60));
        assert!(
            one.iter().all(|layout| (layout.shards, layout.replicas) == (1, None)),
            "{one:?}"
        );
    }

    #[test]
    fn what_the_machine_cannot_do_is_not_planned() {
        for seed in 0..50 {
            let plan = draw(seed, 3, Duration::from_secs(120), Abilities::default());
            assert!(
                plan.faults
                    .iter()
                    .all(|planned| !matches!(planned.fault, Fault::DiskFull { .. } | Fault::Clock { .. })),
                "{plan:?}"
            );
            assert!(!plan.faults.is_empty());
        }
    }
}
