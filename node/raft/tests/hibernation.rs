//! Hibernation of one group, with the signs of life of its members' nodes said by hand.

#![allow(clippy::unwrap_used)]

mod kit;

use althing_raft::ids::{Index, MemberId};
use althing_raft::io::{Input, RequestId, Role};
use althing_raft::message::Body;
use althing_raft::roster::{Footprint, ReadMode, Responders};
use kit::{Disk, ELECTION, HEARTBEAT, Net, command, id};
use std::time::Duration;

const IDLE: Duration = Duration::from_millis(500);

/// Members 1..=n, all of which agree to hibernate.
fn net(n: u64) -> Net {
    let mut net = Net::new(0);
    net.hibernate_after = Some(IDLE);
    net.born(n);
    net.run(ELECTION * 3);
    net
}

fn asleep(net: &Net) -> Vec<u64> {
    let sleeps = |(member, node): (&MemberId, &kit::Node)| node.raft.as_ref()?.hibernates().then_some(member.0);
    net.nodes.iter().filter_map(sleeps).collect()
}

/// A sleeping group of three: leader, another, the third.
fn sleeping() -> (Net, MemberId, MemberId, MemberId) {
    let mut net = net(3);
    let leader = net.leader().unwrap();
    net.propose(leader, "k=1");
    net.run(ELECTION * 3);
    assert_eq!(asleep(&net), [1, 2, 3]);
    let mut others = net.nodes.keys().copied().filter(|member| *member != leader);
    let (one, other) = (others.next().unwrap(), others.next().unwrap());
    (net, leader, one, other)
}

#[test]
fn an_idle_group_sends_nothing_and_has_no_timer() {
    let (mut net, leader, ..) = sleeping();
    let start = net.now;
    assert!(net.nodes.values().all(|node| node.deadline.is_none()));
    net.run(ELECTION * 100);
    assert!(net.now > start && net.mail.is_empty());
    assert_eq!((asleep(&net), net.leader()), (vec![1, 2, 3], Some(leader)));
}

#[test]
fn a_lone_member_hibernates_too() {
    let net = net(1);
    assert_eq!(asleep(&net), [1]);
    assert!(net.nodes[&id(1)].deadline.is_none());
}

#[test]
fn a_write_at_any_member_wakes_the_group_and_takes_effect_without_a_heartbeat() {
    for at in 1..=3 {
        let (mut net, ..) = sleeping();
        net.propose(id(at), "k=2");
        net.settle();
        assert_eq!(
            net.commands(at).last().map(String::as_str),
            Some("k=2"),
            "where a client waits, at once"
        );
        net.run(kit::NEWS_DELAY);
        for member in 1..=3 {
            assert_eq!(
                net.commands(member).last().map(String::as_str),
                Some("k=2"),
                "from {at}"
            );
        }
        assert_eq!(asleep(&net), [0; 0]);
        net.run(IDLE + HEARTBEAT * 3);
        assert_eq!(asleep(&net), [1, 2, 3], "and it goes back to sleep");
    }
}

#[test]
fn a_read_at_any_member_wakes_the_group_and_is_confirmed_by_a_round() {
    for at in 1..=3 {
        let (mut net, leader, ..) = sleeping();
        let request = net.read(at, Footprint::All);
        assert!(
            net.nodes[&id(at)].reads.is_empty(),
            "not without a word of anybody else"
        );
        net.settle();
        assert!(net.nodes[&id(at)].reads.iter().any(|(read, _)| *read == request));
        assert!(!net.raft(leader.0).hibernates());
    }
}

#[test]
fn a_leader_that_hibernates_cut_off_serves_no_stale_read() {
    let (mut net, leader, one, other) = sleeping();
    net.isolate(leader.0);
    for member in [one, other] {
        net.step(member, Input::Silent(leader));
    }
    net.run(ELECTION * 3);
    let next = net.leader().filter(|next| *next != leader).unwrap();
    net.propose(next, "k=2");
    net.settle();
    assert_eq!(net.raft(leader.0).view().soft.role, Role::Leader, "it knows nothing");
    assert!(net.raft(leader.0).hibernates());
    let request = net.read(leader.0, Footprint::key(command("k")));
    net.run(HEARTBEAT * 2);
    let answered = |net: &Net| net.nodes[&leader].reads.iter().any(|(read, _)| *read == request);
    assert!(!answered(&net));
    net.run(ELECTION * 2);
    assert_ne!(net.raft(leader.0).view().soft.role, Role::Leader, "nobody confirms it");
    net.cut.clear();
    net.run(ELECTION * 3);
    assert!(
        answered(&net),
        "the next leader's answer has the write (the kit checks it)"
    );
    assert!(net.raft(one.0).view().soft.leader.is_some());
}

#[test]
fn with_leases_a_sleeping_leader_reads_by_a_round_and_then_locally_again() {
    let mut net = net(3);
    let lease = ELECTION;
    net.set_reads(ReadMode::RosterLease, Responders::All, lease);
    net.run(ELECTION * 4);
    assert_eq!(asleep(&net), [1, 2, 3]);
    let leader = net.leader().unwrap();
    for member in 1..=3 {
        assert!(
            !net.raft(member).view().lease.open,
            "whoever sleeps asks for no promises"
        );
    }
    let epoch = net.raft(leader.0).view().lease.minted;
    net.read(leader.0, Footprint::All);
    net.settle();
    net.run(HEARTBEAT * 2);
    for member in 1..=3 {
        assert!(net.raft(member).view().lease.open);
    }
    assert_eq!(
        net.raft(leader.0).view().lease.minted,
        epoch,
        "nobody was left out for being asleep"
    );
}

#[test]
fn local_reads_at_a_follower_keep_the_group_awake() {
    let mut net = net(3);
    net.set_reads(ReadMode::RosterLease, Responders::All, ELECTION);
    for _ in 0..40 {
        net.run(HEARTBEAT);
        let follower = net.nodes.keys().find(|member| Some(**member) != net.leader()).copied();
        net.read(follower.unwrap().0, Footprint::All);
    }
    let leader = net.leader().unwrap();
    assert!(!net.raft(leader.0).hibernates());
    let local: u64 = (1..=3).map(|member| net.raft(member).view().lease.counts.local).sum();
    assert!(local > 25, "{local}");
}

#[test]
fn a_follower_that_lags_keeps_the_group_awake() {
    let (mut net, leader, one, other) = sleeping();
    net.cut.insert((leader, other));
    net.propose(leader, "k=2");
    net.run(ELECTION * 5);
    assert!(!net.raft(leader.0).hibernates());
    assert_eq!(net.commands(one.0).last().map(String::as_str), Some("k=2"));
    net.cut.clear();
    net.run(ELECTION * 3);
    assert_eq!(asleep(&net), [1, 2, 3]);
    assert_eq!(net.commands(other.0), net.commands(leader.0));
}

#[test]
fn a_follower_that_does_not_answer_keeps_the_group_awake_while_its_node_is_there() {
    let (mut net, leader, _, other) = sleeping();
    net.cut.insert((other, leader));
    net.propose(leader, "k=2");
    net.run(ELECTION * 5);
    assert!(!net.raft(leader.0).hibernates());
    assert_eq!(net.leader(), Some(leader), "a majority confirms it all the while");
}

/// A group that sleeps without one whose node is silent; that one lacks an entry.
fn sleeping_without() -> (Net, MemberId, MemberId, MemberId) {
    let (mut net, leader, one, other) = sleeping();
    net.crash(other);
    net.step(leader, Input::Silent(other));
    assert!(!net.raft(leader.0).hibernates(), "it looks who is left");
    net.propose(leader, "k=2");
    net.run(ELECTION * 3);
    assert_eq!(asleep(&net), sorted([leader.0, one.0]));
    assert_eq!(net.raft(leader.0).view().absent, [other].into());
    (net, leader, one, other)
}

fn sorted<const N: usize>(mut members: [u64; N]) -> [u64; N] {
    members.sort_unstable();
    members
}

#[test]
fn a_majority_hibernates_without_one_whose_node_is_silent_and_wakes_when_it_is_back() {
    let (mut net, leader, one, other) = sleeping_without();
    net.run(ELECTION * 10);
    assert_eq!(asleep(&net), sorted([leader.0, one.0]), "nobody minds");
    net.boot(other);
    net.step(leader, Input::Returned(other));
    net.run(HEARTBEAT * 3);
    assert_eq!(
        net.commands(other.0),
        net.commands(leader.0),
        "before its own timer ends"
    );
    net.run(ELECTION * 3);
    assert_eq!((asleep(&net), net.leader()), (vec![1, 2, 3], Some(leader)));
}

#[test]
fn one_that_comes_back_unnoticed_makes_itself_heard() {
    let (mut net, leader, _, other) = sleeping_without();
    net.boot(other);
    net.run(ELECTION * 3);
    assert_eq!(net.commands(other.0), net.commands(leader.0));
    assert_eq!(net.leader(), Some(leader));
}

#[test]
fn any_word_of_one_that_was_away_wakes_its_leader() {
    let (mut net, leader, _, other) = sleeping_without();
    // Late, and in itself without meaning.
    let term = net.raft(leader.0).view().soft.term;
    let (round, stamp) = (0, None);
    net.say_in(other, leader, term, Body::HeartbeatReply { round, stamp });
    assert!(!net.raft(leader.0).hibernates());
    assert!(net.raft(leader.0).view().absent.is_empty());
}

#[test]
fn a_group_without_a_majority_does_not_hibernate_and_its_leader_steps_down() {
    let (mut net, leader, one, other) = sleeping();
    net.crash(one);
    net.crash(other);
    net.step(leader, Input::Silent(one));
    net.step(leader, Input::Silent(other));
    net.run(ELECTION * 3);
    assert!(!net.raft(leader.0).hibernates());
    assert_ne!(net.raft(leader.0).view().soft.role, Role::Leader);
}

#[test]
fn a_responder_whose_node_is_silent_is_left_out_before_the_others_hibernate() {
    let mut net = net(3);
    net.set_reads(ReadMode::RosterLease, Responders::All, ELECTION);
    net.run(ELECTION * 4);
    assert_eq!(asleep(&net), [1, 2, 3]);
    let leader = net.leader().unwrap();
    let other = *net.nodes.keys().find(|member| **member != leader).unwrap();
    net.crash(other);
    net.step(leader, Input::Silent(other));
    net.run(ELECTION * 6);
    assert!(net.raft(leader.0).hibernates());
    let roster = net.raft(leader.0).view().lease.roster.unwrap();
    assert!(!roster.responders().contains(&other), "no write will wait for it");
}

#[test]
fn a_lost_word_is_made_good_by_the_next_offer() {
    let mut net = net(3);
    let leader = net.leader().unwrap();
    net.propose(leader, "k=1");
    net.settle();
    let deadline = net.now.after(ELECTION * 3);
    let mut lost = 0;
    while net.now < deadline {
        net.next_tick();
        // Every other agreement is lost, and so is every third offer.
        let mut seen = 0;
        net.mail.retain(|message| {
            let matters = matches!(message.body, Body::Hibernate { .. } | Body::Hibernating { .. });
            seen += usize::from(matters);
            let lose = matters && seen % 2 == 0 && lost < 6;
            lost += usize::from(lose);
            !lose
        });
        net.settle();
        if asleep(&net).len() == 3 {
            break;
        }
    }
    assert!(lost > 0);
    assert_eq!(asleep(&net), [1, 2, 3]);
    assert_eq!(net.leader(), Some(leader));
}

#[test]
fn when_the_leaders_node_falls_silent_its_followers_elect_another_within_an_election_timeout() {
    let (mut net, leader, one, other) = sleeping();
    net.crash(leader);
    for member in [one, other] {
        net.step(member, Input::Silent(leader));
    }
    net.run(ELECTION);
    assert!(net.leader().is_some_and(|next| next != leader));
}

#[test]
fn silence_of_another_than_the_leader_wakes_no_follower() {
    let (mut net, leader, one, other) = sleeping();
    net.step(one, Input::Silent(other));
    assert!(net.raft(one.0).hibernates());
    net.step(leader, Input::Silent(other));
    assert!(!net.raft(leader.0).hibernates(), "the leader looks after its majority");
}

#[test]
fn a_leader_that_hibernates_without_its_majority_steps_down_once_it_is_told() {
    let (mut net, leader, one, other) = sleeping();
    net.isolate(leader.0);
    net.step(leader, Input::Silent(one));
    net.step(leader, Input::Silent(other));
    net.run(ELECTION * 2);
    assert_ne!(net.raft(leader.0).view().soft.role, Role::Leader);
}

#[test]
fn a_restarted_follower_learns_its_leader_from_the_one_that_it_wakes() {
    let (mut net, leader, one, _) = sleeping();
    net.crash(one);
    net.boot(one);
    net.run(ELECTION * 2 + HEARTBEAT);
    assert_eq!(net.raft(one.0).view().soft.leader, Some(leader));
    assert_eq!(net.leader(), Some(leader), "it disturbed nobody");
    net.run(ELECTION * 2);
    assert_eq!(asleep(&net), [1, 2, 3]);
}

#[test]
fn a_restarted_leader_is_let_go_when_it_stands_again() {
    let (mut net, leader, one, other) = sleeping();
    net.crash(leader);
    net.boot(leader);
    // Its node was never silent for long. It stands before its followers know anything.
    net.run(ELECTION * 3);
    assert!(net.leader().is_some());
    for member in [leader, one, other] {
        assert!(net.raft(member.0).view().soft.leader.is_some());
    }
}

#[test]
fn one_that_cannot_hear_its_leader_does_not_win_over_sleepers() {
    let (mut net, leader, one, other) = sleeping();
    // `one` hears nothing of the leader, and says so to everybody.
    net.cut.insert((leader, one));
    net.cut.insert((one, leader));
    net.step(one, Input::Silent(leader));
    net.run(ELECTION * 5);
    assert_eq!(net.leader(), Some(leader));
    assert!(net.raft(other.0).view().soft.leader == Some(leader));
    assert_ne!(net.raft(one.0).view().soft.role, Role::Leader);
}

#[test]
fn a_change_of_the_members_wakes_the_group_and_the_newcomer_must_agree_as_well() {
    let (mut net, leader, ..) = sleeping();
    net.add(4, Disk::default());
    net.change(leader, althing_raft::entry::ConfigStep::AddLearner(id(4)));
    net.run(ELECTION * 3);
    assert_eq!(asleep(&net), [1, 2, 3, 4]);
    net.crash(id(4));
    net.propose(leader, "k=2");
    net.run(ELECTION * 3);
    assert!(!net.raft(leader.0).hibernates(), "nobody says that its node is silent");
}

#[test]
fn a_vote_with_a_leaders_blessing_wakes_everybody() {
    let (mut net, leader, one, _) = sleeping();
    net.step(leader, Input::TransferLeader(Some(one)));
    net.settle();
    assert_eq!(net.leader(), Some(one));
    net.run(ELECTION * 2);
    assert_eq!((asleep(&net), net.leader()), (vec![1, 2, 3], Some(one)));
}

#[test]
fn one_member_that_never_agrees_keeps_the_others_awake() {
    let mut net = Net::new(0);
    net.hibernate_after = Some(IDLE);
    net.born(2);
    net.hibernate_after = None;
    net.crash(id(2));
    net.boot(id(2));
    net.run(ELECTION * 6);
    let leader = net.leader().unwrap();
    assert!(!net.raft(leader.0).hibernates());
}

#[test]
fn a_write_that_was_lost_on_its_way_to_a_leader_that_is_gone_leaves_the_follower_awake() {
    let (mut net, leader, one, other) = sleeping();
    // The leader's node is there, and knows nothing of this group any more.
    net.crash(leader);
    net.propose(one, "k=2");
    net.settle();
    assert_eq!(asleep(&net), [other.0], "its own timer runs");
    net.step(other, Input::Silent(leader));
    net.run(ELECTION * 4);
    assert!(net.leader().is_some_and(|next| next != leader));
}

#[test]
fn reads_that_a_sleeping_follower_asks_about_are_asked_again_when_the_question_is_lost() {
    let (mut net, leader, one, _) = sleeping();
    net.cut.insert((one, leader));
    let request = RequestId(net.last_request + 1);
    assert_eq!(net.read(one.0, Footprint::All), request);
    net.settle();
    net.cut.clear();
    net.run(ELECTION);
    assert!(net.nodes[&one].reads.iter().any(|(read, _)| *read == request));
    assert!(net.raft(leader.0).view().commit > Index::ZERO);
}
