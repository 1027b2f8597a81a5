//! Linearizable reads: P1 to P3.

use crate::help::message;
use crate::kit;
use crate::kit::{ELECTION, Net, id};
use althing_raft::ids::Index;
use althing_raft::io::{Input, RequestId, Role};
use althing_raft::message::Body;

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
    net.step(id(2), Input::ReadIndex(RequestId(5)));
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

#[test]
fn p2_a_late_answer_to_an_earlier_question_is_not_taken_for_a_new_one() {
    let mut net = Net::new(3);
    net.elect(1);
    net.step(id(2), Input::ReadIndex(RequestId(1)));
    let asked = |net: &Net| {
        net.mail.iter().find_map(|m| {
            if let Body::ReadIndex { request } = m.body {
                Some(request)
            } else {
                None
            }
        })
    };
    let first = asked(&net).expect("the follower asks");
    net.mail.clear();
    net.now = net.now.after(ELECTION / 2);
    net.step(id(2), Input::Tick);
    let second = asked(&net).expect("the follower asks again");
    assert_ne!(first, second);
    let term = net.raft(2).view().soft.term.0;
    net.step(
        id(2),
        message(
            1,
            2,
            term,
            Body::ReadIndexReply {
                request: first,
                index: Some(Index(0)),
            },
        ),
    );
    assert_eq!(net.nodes[&id(2)].reads, vec![]);
}

#[test]
fn p3_reads_of_a_lost_leadership_are_asked_of_the_next_leader() {
    let mut net = Net::new(3);
    net.elect(1);
    net.mail.clear();
    net.step(id(1), Input::ReadIndex(RequestId(1)));
    net.mail.clear();
    net.elect(2);
    net.propose(id(2), "newer");
    net.run(ELECTION);
    let committed = net.raft(2).view().commit;
    let reads = &net.nodes[&id(1)].reads;
    assert_eq!(reads.len(), 1);
    assert!(reads[0].1 >= committed.prev(), "the index is the new leader's");
}
