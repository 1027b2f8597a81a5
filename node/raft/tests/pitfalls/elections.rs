//! Elections, terms and transfers: P4, P5, P23.

use crate::help::{lone, message, position};
use crate::kit;
use crate::kit::{ELECTION, Net, id};
use althing_raft::entry::HardState;
use althing_raft::ids::{Index, Now, Term};
use althing_raft::io::{DropReason, Input, RequestId, Role, Start};
use althing_raft::message::Body;

#[test]
fn three_members_elect_a_leader_and_replicate() {
    let mut net = Net::new(3);
    net.run(ELECTION * 3);
    let leader = net.leader().expect("someone leads");
    net.propose(leader, "a");
    net.propose(leader, "b");
    net.run(ELECTION);
    for member in 1..=3 {
        assert_eq!(net.commands(member), ["a", "b"]);
    }
}

#[test]
fn a_single_voter_leads_at_once_and_commits_on_its_own_write() {
    let mut net = Net::new(1);
    net.next_tick();
    assert_eq!(net.leader(), Some(id(1)));
    net.instant_disk = false;
    net.propose(id(1), "a");
    assert_eq!(net.commands(1), Vec::<String>::new(), "not before its write is durable");
    net.persist(id(1), 9);
    assert_eq!(net.commands(1), ["a"]);
}

#[test]
fn a_lone_voter_does_not_lead_on_a_vote_that_a_crash_could_forget() {
    let mut net = Net::new(1);
    net.instant_disk = false;
    net.next_tick();
    assert_eq!(net.raft(1).view().soft.role, Role::Candidate);
    net.persist(id(1), 1);
    assert_eq!(net.raft(1).view().soft.role, Role::Leader);
}

#[test]
fn p4_a_pre_vote_from_a_lower_term_is_answered_with_the_higher_one() {
    let mut raft = lone(
        &[1, 2, 3],
        Start {
            hard_state: HardState {
                term: Term(5),
                ..Default::default()
            },
            ..Default::default()
        },
    );
    let out = raft.step(Now(0), message(2, 1, 3, Body::PreVote { last: position(0, 0) }));
    assert_eq!(out.messages.len(), 1);
    assert_eq!(
        (out.messages[0].term, &out.messages[0].body),
        (Term(5), &Body::PreVoteReply { granted: false })
    );
}

#[test]
fn p4_granting_a_pre_vote_moves_no_deadline() {
    let mut raft = lone(&[1, 2, 3], Start::default());
    let before = raft.next_deadline();
    let out = raft.step(Now(1), message(2, 1, 1, Body::PreVote { last: position(0, 0) }));
    assert_eq!(out.messages[0].body, Body::PreVoteReply { granted: true });
    assert_eq!(out.next_deadline, before);
    assert_eq!(raft.view().soft.term, Term(0));
}

#[test]
fn p4_a_member_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut net = Net::new(3);
    net.elect(1);
    let term = net.raft(1).view().soft.term;
    net.isolate(3);
    net.run(ELECTION * 10);
    net.cut.clear();
    net.run(ELECTION * 3);
    assert_eq!((net.leader(), net.raft(1).view().soft.term), (Some(id(1)), term));
    assert_eq!(net.raft(3).view().soft.leader, Some(id(1)));
}

#[test]
fn p5_a_leader_that_hears_no_majority_steps_down_and_follows_when_it_returns() {
    let mut net = Net::new(3);
    net.elect(1);
    net.isolate(1);
    net.run(ELECTION * 4);
    assert_ne!(net.raft(1).view().soft.role, Role::Leader);
    let successor = net.leader().expect("the others elect one");
    net.cut.clear();
    net.run(ELECTION * 4);
    assert_eq!(net.raft(1).view().soft.leader, net.leader());
    assert!(
        net.raft(1).view().soft.term
            >= net
                .leaders
                .iter()
                .find(|(_, m)| **m == successor)
                .map(|(t, _)| *t)
                .unwrap()
    );
}

#[test]
fn p5_an_append_of_an_old_term_is_answered_with_the_new_one() {
    let mut raft = lone(
        &[1, 2, 3],
        Start {
            hard_state: HardState {
                term: Term(9),
                ..Default::default()
            },
            ..Default::default()
        },
    );
    let out = raft.step(
        Now(0),
        message(
            2,
            1,
            4,
            Body::Append {
                prev: position(0, 0),
                entries: vec![],
                commit: Index(0),
            },
        ),
    );
    assert_eq!(out.messages[0].term, Term(9));
}

#[test]
fn a_transfer_moves_leadership_without_a_timeout_and_refuses_proposals_meanwhile() {
    let mut net = Net::new(3);
    net.elect(1);
    net.propose(id(1), "a");
    net.settle();
    let before = net.now;
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    net.propose(id(1), "b");
    assert_eq!(
        net.nodes[&id(1)].dropped,
        vec![(RequestId(1), DropReason::LeaderChanged)]
    );
    net.settle();
    assert_eq!((net.leader(), net.now), (Some(id(2)), before));
}

#[test]
fn p23_a_transfer_to_a_silent_member_is_given_up_after_an_election_timeout() {
    let mut net = Net::new(3);
    net.elect(1);
    net.isolate(2);
    net.propose(id(1), "a");
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    net.run(ELECTION + kit::HEARTBEAT * 2);
    net.nodes.get_mut(&id(1)).unwrap().dropped.clear();
    net.propose(id(1), "b");
    net.run(ELECTION);
    assert_eq!(net.nodes[&id(1)].dropped, vec![]);
    assert_eq!(net.commands(3), ["a", "b"]);
}
