//! Linearizable reads: P1 to P3.

use crate::help::message;
use crate::kit;
use crate::kit::{ELECTION, Net, ROUND_GAP, id};
use althing_raft::entry::ConfigStep;
use althing_raft::ids::Index;
use althing_raft::io::{DropReason, Input, RequestId, Role};
use althing_raft::message::Body;
use althing_raft::roster::Footprint;

#[test]
fn p1_a_new_leader_answers_no_read_before_it_commits_in_its_term() {
    let mut net = Net::new(3);
    net.elect(1);
    net.instant_disk = false;
    let next = net.nodes[&id(2)].deadline.unwrap().after(ELECTION * 2);
    net.now = next;
    net.step(id(2), Input::Tick);
    // Elect 2 but keep its no-op from committing.
    for _ in 0..50 {
        for member in 1..=3 {
            net.persist(id(member), 1);
        }
        if net.raft(2).view().soft.role == Role::Leader {
            break;
        }
        if !net.mail.is_empty() {
            net.deliver_one(0);
        }
    }
    assert_eq!(net.raft(2).view().soft.role, Role::Leader);
    net.mail.clear();
    net.step(id(2), Input::Read(vec![(RequestId(5), Footprint::All)]));
    net.settle();
    assert_eq!(net.nodes[&id(2)].reads, vec![]);
    net.instant_disk = true;
    for _ in 0..4 {
        for member in 1..=3 {
            net.persist(id(member), 99);
        }
        net.settle();
        net.run(kit::HEARTBEAT * 2);
    }
    let reads = &net.nodes[&id(2)].reads;
    assert_eq!(reads.len(), 1);
    assert!(reads[0].1 >= net.raft(2).view().commit.prev());
}

/// The newest question on its way.
fn asked(net: &Net) -> Option<u64> {
    net.mail.iter().rev().find_map(|m| {
        if let Body::ReadIndex { request } = m.body {
            Some(request)
        } else {
            None
        }
    })
}

fn answer(net: &mut Net, request: u64, index: u64) {
    let term = net.raft(2).view().soft.term.0;
    let index = Some(Index(index));
    net.step(id(2), message(1, 2, term, Body::ReadIndexReply { request, index }));
}

#[test]
fn p2_an_answer_that_comes_twice_is_not_taken_for_an_answer_to_later_reads() {
    let mut net = Net::new(3);
    net.elect(1);
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    let first = asked(&net).expect("the follower asks");
    answer(&mut net, first, 1);
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), Index(1))]);
    net.step(id(2), Input::Read(vec![(RequestId(2), Footprint::All)]));
    let second = asked(&net).expect("the follower asks");
    assert_ne!(first, second);
    answer(&mut net, first, 1);
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), Index(1))]);
}

#[test]
fn p2_an_answer_to_an_earlier_question_counts_for_the_reads_before_it_and_for_no_later_ones() {
    let mut net = Net::new(3);
    net.elect(1);
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    let first = asked(&net).expect("the follower asks");
    net.mail.clear();
    net.now = net.now.after(ELECTION / 2);
    net.step(id(2), Input::Tick);
    let again = asked(&net).expect("the follower asks again");
    assert_ne!(first, again, "a token is used once");
    net.step(id(2), Input::Read(vec![(RequestId(2), Footprint::All)]));
    answer(&mut net, first, 1);
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), Index(1))]);
    answer(&mut net, again, 1);
    assert_eq!(
        net.nodes[&id(2)].reads.len(),
        1,
        "the second read came after both questions"
    );
}

#[test]
fn p2_a_follower_is_served_over_a_network_that_is_slower_than_its_questions() {
    let mut net = Net::new(3);
    net.elect(1);
    net.mail.clear();
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    // Every answer takes longer than the follower waits before it asks again.
    let mut questions: Vec<u64> = Vec::new();
    for _ in 0..4 {
        questions.extend(asked(&net));
        net.mail.clear();
        net.now = net.now.after(ELECTION / 2);
        // The leader is heard all the while.
        let term = net.raft(2).view().soft.term.0;
        let commit = Index(0);
        net.step(id(2), message(1, 2, term, Body::Heartbeat { commit, round: 0 }));
        net.step(id(2), Input::Tick);
    }
    assert!(questions.len() >= 3, "it asks again and again: {questions:?}");
    let late = questions[questions.len() - 2];
    answer(&mut net, late, 1);
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), Index(1))]);
}

#[test]
fn reads_that_were_asked_about_are_given_up_in_the_end() {
    let mut net = Net::new(3);
    net.elect(1);
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    for _ in 0..12 {
        net.mail.clear();
        net.now = net.now.after(ELECTION / 2);
        let term = net.raft(2).view().soft.term.0;
        let commit = Index(0);
        net.step(id(2), message(1, 2, term, Body::Heartbeat { commit, round: 0 }));
        net.step(id(2), Input::Tick);
    }
    assert_eq!(net.nodes[&id(2)].dropped, vec![(RequestId(1), DropReason::NoLeader)]);
    assert_eq!(net.nodes[&id(2)].reads, vec![]);
}

#[test]
fn p3_reads_of_a_lost_leadership_are_asked_of_the_next_leader() {
    let mut net = Net::new(3);
    net.elect(1);
    net.mail.clear();
    net.step(id(1), Input::Read(vec![(RequestId(1), Footprint::All)]));
    // Its round is lost, and once more when it is put to everybody.
    net.mail.clear();
    net.now = net.now.after(ROUND_GAP);
    net.step(id(1), Input::Tick);
    net.mail.clear();
    net.elect(2);
    net.propose(id(2), "newer");
    net.run(ELECTION);
    let committed = net.raft(2).view().commit;
    let reads = &net.nodes[&id(1)].reads;
    assert_eq!(reads.len(), 1);
    assert!(reads[0].1 >= committed.prev(), "the index is the new leader's");
}

/// Messages until a follower's read is answered, in a settled group of `members`.
fn messages_of_a_followers_read(members: u64) -> usize {
    let mut net = Net::new(members);
    net.elect(1);
    net.propose(id(1), "known");
    net.run(kit::HEARTBEAT * 2);
    net.mail.clear();
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    let mut delivered = 0;
    while net.nodes[&id(2)].reads.is_empty() {
        net.deliver_one(0);
        delivered += 1;
    }
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), net.raft(1).view().commit)]);
    delivered
}

#[test]
fn the_follower_that_asks_is_itself_the_second_of_three() {
    assert_eq!(messages_of_a_followers_read(3), 2);
    // Of five the leader needs one more: a round.
    assert!(messages_of_a_followers_read(5) > 4);
}

#[test]
fn a_leader_that_was_replaced_answers_no_follower_of_the_new_term_and_no_learner_alone() {
    let mut net = Net::new(3);
    net.elect(1);
    // 1 is cut off and does not know that 2 leads.
    net.cut = [(1, 2), (2, 1), (1, 3), (3, 1)].map(|(a, b)| (id(a), id(b))).into();
    net.elect(2);
    net.propose(id(2), "newer");
    net.run(kit::HEARTBEAT * 2);
    let newer = net.raft(2).view();
    assert!(newer.commit > net.raft(1).view().commit);
    net.mail.clear();
    // Whoever follows 2 carries its term: the question itself tells 1 that it leads no more.
    net.step(id(1), message(3, 1, newer.soft.term.0, Body::ReadIndex { request: 1 }));
    let told = |net: &Net| {
        let answers = net.mail.iter().filter(|m| m.from == id(1));
        answers
            .filter(|m| matches!(m.body, Body::ReadIndexReply { index: Some(_), .. }))
            .count()
    };
    assert_eq!(told(&net), 0);

    // A learner has no vote that could count beside the leader's own.
    let mut net = Net::new(3);
    net.elect(1);
    net.mail.clear();
    let term = net.raft(1).view().soft.term.0;
    net.step(id(1), message(9, 1, term, Body::ReadIndex { request: 1 }));
    assert_eq!(told(&net), 0);
}

#[test]
fn rounds_that_waited_for_members_who_have_left_are_confirmed_by_those_who_stay() {
    let mut net = Net::new(2);
    net.elect(1);
    net.change(id(1), ConfigStep::Remove(id(2)));
    // The change commits while as many rounds are open as may be; then nobody is left to confirm them.
    for request in 1..=6 {
        net.step(id(1), Input::Read(vec![(RequestId(request), Footprint::All)]));
    }
    net.mail
        .retain(|message| !matches!(message.body, Body::Heartbeat { .. }));
    net.settle();
    assert_eq!(net.raft(1).view().soft.config.voters, [id(1)].into());
    net.step(id(1), Input::Read(vec![(RequestId(7), Footprint::All)]));
    assert_eq!(net.nodes[&id(1)].reads.len(), 7);
}

/// Whom the leader asks by heartbeats, of the mail that is under way, which is lost.
fn asked_by_heartbeat(net: &mut Net) -> Vec<u64> {
    let beats = net
        .mail
        .drain(..)
        .filter(|mail| mail.from == id(1) && matches!(mail.body, Body::Heartbeat { .. }));
    beats.map(|mail| mail.to.0).collect()
}

#[test]
fn a_round_asks_as_few_as_it_takes_the_quickest_first_and_everybody_when_they_are_slow() {
    let mut net = Net::new(5);
    net.elect(1);
    net.run(kit::HEARTBEAT);
    net.mail.clear();
    let read = |net: &mut Net, request: u64| {
        net.step(id(1), Input::Read(vec![(RequestId(request), Footprint::All)]));
        asked_by_heartbeat(net)
    };
    let confirm = |net: &mut Net, from: u64, round: u64| {
        let term = net.raft(1).view().soft.term.0;
        let reply = Body::HeartbeatReply { round, stamp: None };
        net.step(id(1), message(from, 1, term, reply));
    };
    assert_eq!(read(&mut net, 1), [2, 3], "nobody is known to be quick");
    // 2 and 3 do not answer in time.
    net.now = net.now.after(ROUND_GAP);
    net.step(id(1), Input::Tick);
    assert_eq!(asked_by_heartbeat(&mut net), [2, 3, 4, 5]);
    confirm(&mut net, 5, 1);
    assert_eq!(net.nodes[&id(1)].reads, vec![]);
    net.now = net.now.after(ROUND_GAP / 4);
    confirm(&mut net, 4, 1);
    assert_eq!(net.nodes[&id(1)].reads.len(), 1);
    net.now = net.now.after(ROUND_GAP / 4);
    confirm(&mut net, 2, 1);
    assert_eq!(read(&mut net, 2), [4, 5], "the quickest of the last round");
    // Further reads wait for company, and find that those who were asked are slow: they ask everybody at once.
    assert_eq!(read(&mut net, 3), [0; 0]);
    net.now = net.now.after(ROUND_GAP);
    net.step(id(1), Input::Tick);
    assert_eq!(asked_by_heartbeat(&mut net), [2, 3, 4, 5]);
    confirm(&mut net, 3, 3);
    confirm(&mut net, 2, 3);
    assert_eq!(
        net.nodes[&id(1)].reads.len(),
        3,
        "a later round confirms the earlier ones"
    );
    // Nothing is left to ask about.
    net.now = net.now.after(ROUND_GAP);
    net.step(id(1), Input::Tick);
    assert_eq!(asked_by_heartbeat(&mut net), [0; 0]);
}

#[test]
fn rounds_do_not_put_off_the_heartbeat_that_asks_stalled_followers_what_they_have() {
    let mut net = Net::new(3);
    net.elect(1);
    net.run(kit::HEARTBEAT);
    let beat = net.nodes[&id(1)].deadline;
    net.step(id(1), Input::Read(vec![(RequestId(1), Footprint::All)]));
    net.settle();
    assert_eq!(net.nodes[&id(1)].reads.len(), 1);
    assert_eq!(net.nodes[&id(1)].deadline, beat);
}
