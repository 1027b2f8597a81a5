//! What a herd must stand, one scene for each rule of hibernation. With a rule broken, some scene must fail.

use super::{Answer, ELECTION, HEARTBEAT, HIBERNATE_AFTER, Herd};
use crate::mutant::{Broken, Mutant};
use althing_raft::ids::{GroupId, MemberId};
use althing_raft::message::Body;
use std::time::Duration;

/// Something that happens to a herd; says what is wrong afterwards.
pub type Scene = fn(groups: u64) -> Result<(), String>;

/// All scenes, with the rules that they hold.
pub const SCENES: [(&str, Scene); 10] = [
    ("idle groups say nothing, and their nodes little", idle),
    ("writes wake the groups that they are for, and no others", writes),
    ("when a node dies, all its groups are led again soon", node_dies),
    (
        "a node that comes back is told who leads, and brought up to date",
        node_returns,
    ),
    (
        "a node that was cut off is brought up to date as soon as it is heard again",
        cut_and_back,
    ),
    (
        "a node that restarts at once leads nothing that its followers still believe in",
        quick_restart,
    ),
    (
        "a leader that is cut off in its sleep answers no read from the past",
        cut_off,
    ),
    (
        "a follower that lacks something keeps its group awake until it has it",
        laggard,
    ),
    ("a leader does not sleep before everybody has agreed", unheard_offer),
    ("a node that is held up wakes nobody when it goes on", held_up),
];

/// Each scene that a broken rule (or none) fails, and how.
#[must_use]
pub fn judge(mutant: Option<Mutant>, groups: u64) -> Vec<(&'static str, String)> {
    let _broken = Broken::by(mutant);
    let fails = |(name, scene): &(&'static str, Scene)| Some((*name, scene(groups).err()?));
    SCENES.iter().filter_map(fails).collect()
}

/// A herd of three nodes that sleeps.
fn sleeping(groups: u64) -> Result<Herd, String> {
    let mut herd = Herd::new(3, groups);
    herd.until("every group has a leader", ELECTION * 10, |herd| herd.leaderless() == 0)?;
    herd.until("everybody sleeps", HIBERNATE_AFTER * 5, Herd::all_asleep)?;
    Ok(herd)
}

fn done(herd: &Herd) -> Result<(), String> {
    match herd.violations().first() {
        Some(first) => Err(first.clone()),
        None => Ok(()),
    }
}

fn check(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// A write at a node that must be answered in time.
fn write(herd: &mut Herd, at: MemberId, group: GroupId, value: u64, limit: Duration) -> Result<(), String> {
    let request = herd.write(at, group, value);
    let answered = |herd: &Herd| herd.answer(at, request) == Some(Answer::Value(value));
    herd.until("a write is acknowledged", limit, answered)?;
    Ok(())
}

fn idle(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    herd.take_sent();
    herd.run(Duration::from_secs(10));
    let sent = herd.take_sent();
    check(sent.messages == sent.alive, "a group that sleeps sends something")?;
    // Three nodes, two neighbours each, ten times a second.
    check(
        sent.messages <= 3 * 2 * 101,
        "signs of life are one a heartbeat and pair",
    )?;
    check(herd.all_asleep() && herd.leaderless() == 0, "nobody wakes for nothing")?;
    done(&herd)
}

fn writes(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    let wanted = groups.div_ceil(4);
    for number in 0..wanted {
        write(
            &mut herd,
            MemberId(1 + number % 3),
            GroupId(1 + number),
            number + 1,
            HEARTBEAT / 2,
        )?;
    }
    check(herd.behind() == 0, "everybody hears of it without a timer")?;
    for (member, asleep) in herd.asleep() {
        let others = usize::try_from(groups - wanted).unwrap_or(usize::MAX);
        check(asleep >= others, &format!("{member} wakes only what is wanted"))?;
    }
    herd.until("they sleep again", HIBERNATE_AFTER * 2, Herd::all_asleep)?;
    done(&herd)
}

fn node_dies(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    herd.kill(MemberId(1));
    // Silence takes an election timeout to show, and everybody stands within one more. Some stand at the same moment.
    herd.until("every group is led again", ELECTION * 5, |herd| herd.leaderless() == 0)?;
    for group in herd.group_ids() {
        write(&mut herd, MemberId(2 + group.0 % 2), group, 1, ELECTION)?;
    }
    done(&herd)
}

fn node_returns(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    herd.kill(MemberId(3));
    herd.run(ELECTION * 4);
    for group in herd.group_ids() {
        write(&mut herd, MemberId(1), group, 1, ELECTION * 2)?;
    }
    herd.run(HIBERNATE_AFTER * 2);
    check(herd.all_asleep(), "a node that is away keeps nobody awake")?;
    herd.start(MemberId(3));
    herd.until("it knows its leaders", ELECTION * 2, |herd| herd.leaderless() == 0)?;
    herd.until("it has everything", ELECTION * 3, |herd| herd.behind() == 0)?;
    herd.until("they sleep again", HIBERNATE_AFTER * 3, Herd::all_asleep)?;
    done(&herd)
}

fn cut_and_back(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    // It runs all the while, and misses a write in each group.
    let away = MemberId(3);
    for other in [1, 2].map(MemberId) {
        herd.cut(other, away);
        herd.cut(away, other);
    }
    herd.run(ELECTION * 4);
    for group in herd.group_ids() {
        write(&mut herd, MemberId(1), group, 1, ELECTION)?;
    }
    let asleep = |herd: &Herd| {
        herd.asleep()
            .iter()
            .all(|(member, asleep)| *member == away || *asleep as u64 == groups)
    };
    herd.until("the others sleep without it", HIBERNATE_AFTER * 3, asleep)?;
    // Its own wishes to stand are lost: only its node shows that it is back.
    herd.heal();
    herd.lose(|message| message.from == MemberId(3) && matches!(message.body, Body::PreVote { .. }));
    herd.until("it has everything", ELECTION, |herd| herd.behind() == 0)?;
    herd.heal();
    herd.until("everybody agrees", ELECTION * 3, |herd| herd.leaderless() == 0)?;
    herd.until("they sleep again", HIBERNATE_AFTER * 3, Herd::all_asleep)?;
    done(&herd)
}

fn quick_restart(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    // Within less than an election timeout: no silence tells.
    herd.kill(MemberId(1));
    herd.run(HEARTBEAT);
    herd.start(MemberId(1));
    herd.until("every group is led again", ELECTION * 4, |herd| herd.leaderless() == 0)?;
    herd.until("they sleep again", HIBERNATE_AFTER * 3, Herd::all_asleep)?;
    done(&herd)
}

fn cut_off(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    // Nobody hears it, and it hears no more than that the others are there.
    herd.cut(MemberId(1), MemberId(2));
    herd.cut(MemberId(1), MemberId(3));
    herd.lose(|message| message.to == MemberId(1) && !matches!(message.body, Body::Alive { .. }));
    let led: Vec<GroupId> = herd
        .group_ids()
        .filter(|group| herd.leader(*group) == Some(MemberId(1)))
        .collect();
    check(!led.is_empty(), "the node leads some group")?;
    let elsewhere = |herd: &Herd| led.iter().all(|group| herd.leader(*group) != Some(MemberId(1)));
    herd.until("others lead", ELECTION * 4, elsewhere)?;
    for group in &led {
        write(&mut herd, MemberId(2), *group, 7, ELECTION)?;
    }
    let asleep = led.iter().all(|group| herd.sleeps(MemberId(1), *group));
    check(asleep, "the old leader sleeps through it")?;
    let reads: Vec<_> = led.iter().map(|group| herd.read(MemberId(1), *group)).collect();
    herd.run(ELECTION * 2);
    let answered = |read: &&_| matches!(herd.answer(MemberId(1), **read), Some(Answer::Value(_)));
    check(
        !reads.iter().any(|read| answered(&read)),
        "nobody confirms a leader that is alone",
    )?;
    herd.heal();
    herd.until("everybody agrees", ELECTION * 4, |herd| {
        herd.leaderless() == 0 && herd.behind() == 0
    })?;
    done(&herd)
}

fn laggard(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    // Node 3 hears of everything but entries.
    herd.lose(|message| message.to == MemberId(3) && matches!(message.body, Body::Append { .. }));
    for group in herd.group_ids() {
        if herd.leader(group) != Some(MemberId(3)) {
            write(&mut herd, MemberId(1), group, 1, ELECTION)?;
        }
    }
    herd.run(HIBERNATE_AFTER * 3);
    herd.heal();
    herd.until("everybody has everything", ELECTION, |herd| herd.behind() == 0)?;
    herd.until("they sleep again", HIBERNATE_AFTER * 3, Herd::all_asleep)?;
    done(&herd)
}

fn unheard_offer(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    herd.lose(|message| message.to == MemberId(3) && matches!(message.body, Body::Hibernate { .. }));
    for group in herd.group_ids() {
        write(&mut herd, MemberId(1), group, 1, HEARTBEAT)?;
    }
    let end = herd.now().after(HIBERNATE_AFTER * 3);
    while herd.now() < end {
        herd.run(HEARTBEAT / 4);
        let sleeps = |group: &GroupId| {
            let leader = herd.leader(*group);
            leader.is_some_and(|leader| leader != MemberId(3) && herd.sleeps(leader, *group))
        };
        check(
            !herd.group_ids().any(|group| sleeps(&group)),
            "a leader sleeps although somebody has not agreed",
        )?;
    }
    herd.heal();
    herd.until("they sleep", HIBERNATE_AFTER * 3, Herd::all_asleep)?;
    done(&herd)
}

fn held_up(groups: u64) -> Result<(), String> {
    let mut herd = sleeping(groups)?;
    let leaders: Vec<_> = herd.group_ids().map(|group| herd.leader(group)).collect();
    herd.hold_up(MemberId(2), ELECTION * 3 / 2);
    herd.run(ELECTION * 3);
    // The others took it for dead, and elected in its groups. It took nobody for dead.
    for (group, before) in herd.group_ids().zip(leaders) {
        let stays = before == Some(MemberId(2)) || herd.leader(group) == before;
        check(stays, "a node that was held up deposes no leader")?;
    }
    herd.until("everybody agrees", ELECTION * 3, |herd| herd.leaderless() == 0)?;
    done(&herd)
}
