//! Many groups on three nodes: quiet when nobody wants anything of them, and back soon when a node goes.

use althing_raft::ids::{GroupId, MemberId};
use althing_raft::io::RequestId;
use althing_sim::Mutant;
use althing_sim::herd::{Answer, ELECTION, HEARTBEAT, HIBERNATE_AFTER, Herd, SCENES, judge};
use althing_sim::rng::Rng;
use std::time::Duration;

/// Groups of a scene: enough that every node leads several.
const GROUPS: u64 = 12;

#[test]
fn every_scene_holds() {
    for (name, scene) in SCENES {
        if let Err(wrong) = scene(GROUPS) {
            panic!("{name}: {wrong}");
        }
    }
}

/// Writes values into random groups at random nodes; how many were answered in time.
fn write_some(herd: &mut Herd, rng: &mut Rng, groups: u64, count: u64, value: u64) -> usize {
    let nodes = herd.running();
    let mut asked: Vec<(GroupId, MemberId, RequestId)> = Vec::new();
    for _ in 0..count {
        let group = GroupId(1 + rng.below(groups));
        let at = *rng.pick(&nodes).expect("some node runs");
        if asked.iter().all(|(other, ..)| *other != group) {
            asked.push((group, at, herd.write(at, group, value)));
        }
    }
    herd.run(HEARTBEAT);
    let answered =
        |(_, at, request): &&(GroupId, MemberId, _)| herd.answer(*at, *request) == Some(Answer::Value(value));
    let late = asked.iter().filter(|asked| !answered(asked)).count();
    assert_eq!(late, 0, "{late} of {} writes are late", asked.len());
    asked.len()
}

#[test]
fn ten_thousand_groups_sleep_and_wake_as_they_are_wanted_and_survive_a_node() {
    const GROUPS: u64 = 10_000;
    let mut rng = Rng::split(7, "herd", 0);
    let mut herd = Herd::new(3, GROUPS);
    let within = |herd: &mut Herd, what, limit, holds: fn(&Herd) -> bool| {
        let took = herd.until(what, limit, holds).unwrap_or_else(|wrong| panic!("{wrong}"));
        println!("{what:<40} {:>6} ms, {}", took.as_millis(), herd.take_sent());
    };
    within(&mut herd, "every group has a leader", ELECTION * 10, |herd| {
        herd.leaderless() == 0
    });
    within(&mut herd, "everybody sleeps", HIBERNATE_AFTER * 5, Herd::all_asleep);

    let seconds = 10;
    herd.run(Duration::from_secs(seconds));
    let sent = herd.take_sent();
    println!(
        "asleep: {} messages a second, {sent} in {seconds} s",
        sent.messages / seconds
    );
    assert_eq!(sent.messages, sent.alive, "groups say nothing");
    assert!(
        sent.messages / seconds <= 60,
        "three nodes, two neighbours each, ten heartbeats a second"
    );

    let written = write_some(&mut herd, &mut rng, GROUPS, 100, 1);
    println!("{written} groups written to: {}", herd.take_sent());
    for (member, asleep) in herd.asleep() {
        assert_eq!(
            asleep as u64,
            GROUPS - written as u64,
            "{member} wakes what is wanted and no other"
        );
    }
    assert_eq!(herd.behind(), 0);
    within(&mut herd, "they sleep again", HIBERNATE_AFTER * 2, Herd::all_asleep);

    let lost = herd
        .group_ids()
        .filter(|group| herd.leader(*group) == Some(MemberId(1)));
    let lost = lost.count();
    herd.kill(MemberId(1));
    let died = herd.now();
    let mut led_after = Vec::new();
    while led_after.len() < lost {
        herd.run(HEARTBEAT);
        let led = lost - herd.leaderless();
        led_after.resize(led.max(led_after.len()), herd.now().since(died));
        assert!(
            herd.now().since(died) < ELECTION * 6,
            "{led} of {lost} groups are led again"
        );
    }
    let share = |percent: usize| led_after[(lost - 1) * percent / 100].as_millis();
    let (half, most, nearly, all) = (share(50), share(90), share(99), share(100));
    println!(
        "the leader of {lost} groups dies: led again after {half} ms (half), {most} (90 %), {nearly} (99 %), {all} (all)"
    );
    println!("meanwhile {}", herd.take_sent());
    write_some(&mut herd, &mut rng, GROUPS, 100, 2);
    herd.take_sent();
    herd.run(Duration::from_secs(1));
    println!("awake, a node is down: {} in 1 s", herd.take_sent());
    within(
        &mut herd,
        "the others sleep without it",
        HIBERNATE_AFTER * 5,
        Herd::all_asleep,
    );
    herd.run(Duration::from_secs(1));
    println!("asleep, a node is down: {} in 1 s", herd.take_sent());

    herd.start(MemberId(1));
    within(&mut herd, "it comes back: it knows all leaders", ELECTION * 3, |herd| {
        herd.leaderless() == 0
    });
    within(&mut herd, "it has everything", ELECTION * 3, |herd| herd.behind() == 0);
    within(&mut herd, "everybody sleeps", HIBERNATE_AFTER * 5, Herd::all_asleep);
    write_some(&mut herd, &mut rng, GROUPS, 100, 3);
    assert!(herd.violations().is_empty(), "{:?}", herd.violations());
}

#[test]
fn every_broken_rule_of_hibernation_fails_a_scene() {
    for mutant in Mutant::all().filter(|mutant| mutant.of_hibernation()) {
        let failed = judge(Some(mutant), GROUPS);
        let (scene, wrong) = failed.first().unwrap_or_else(|| panic!("no scene minds {mutant}"));
        println!("{mutant:<28} {scene}: {wrong}");
    }
}
