//! Changes of the configuration: P8 to P12.

use crate::help::{lone, message, position};
use crate::kit::{Disk, ELECTION, HEARTBEAT, Net, id};
use althing_raft::entry::{ConfigChange, ConfigStep, Entry, Payload};
use althing_raft::ids::{Index, MemberId, Now, Term};
use althing_raft::io::{DropReason, Input, PersistSeq, RequestId, Role, Start};
use althing_raft::message::Body;
use althing_raft::{PROMOTE_LAG_MAX, Raft};
use bytes::Bytes;

/// A change of the members as the first entry of a log.
fn first_entry(step: ConfigStep) -> Entry {
    let change = ConfigChange {
        request: 0,
        step,
        context: Bytes::new(),
    };
    Entry {
        term: Term(1),
        index: Index(1),
        payload: Payload::Config(change),
    }
}

#[test]
fn p8_a_member_does_not_campaign_while_a_committed_change_is_not_handed_out() {
    let config = first_entry(ConfigStep::Remove(id(3)));
    let mut raft = lone(&[1, 2, 3], Start::default());
    let append = Body::Append {
        prev: position(0, 0),
        entries: vec![config],
        commit: Index(1),
    };
    // Committed, but this member's own write is still under way, so it is not handed out.
    let out = raft.step(Now(0), message(2, 1, 1, append));
    let write = out.persist.unwrap();
    let late = Now(0).after(ELECTION * 5);
    let out = raft.step(late, Input::Tick);
    assert_eq!(out.messages, vec![]);
    let _ = raft.step(late, Input::Persisted(write.seq));
    let out = raft.step(late.after(ELECTION * 5), Input::Tick);
    assert!(
        out.messages
            .iter()
            .all(|m| m.to == id(2) && matches!(m.body, Body::PreVote { .. }))
            && !out.messages.is_empty()
    );
}

/// Member 1 of three stands in term 2 and hears from member 2 that a change is committed, which it has and had not known of.
fn hears_of_a_change_while_standing(step: ConfigStep) -> (Raft, Now, Option<PersistSeq>) {
    let config = first_entry(step);
    let mut raft = lone(&[1, 2, 3], Start::default());
    let append = Body::Append {
        prev: position(0, 0),
        entries: vec![config],
        commit: Index(0),
    };
    let out = raft.step(Now(0), message(2, 1, 1, append));
    let _ = raft.step(Now(0), Input::Persisted(out.persist.unwrap().seq));
    let late = Now(0).after(ELECTION * 3);
    let _ = raft.step(late, Input::Tick);
    assert_eq!(raft.view().soft.role, Role::PreCandidate);
    let committed = Body::Committed {
        position: position(1, 1),
    };
    let out = raft.step(late, message(2, 1, 1, committed));
    (raft, late, out.persist.map(|write| write.seq))
}

#[test]
fn p8_a_candidate_that_hears_of_a_committed_change_does_not_go_on_with_the_voters_before_it() {
    let (mut raft, now, write) = hears_of_a_change_while_standing(ConfigStep::AddLearner(id(4)));
    assert_eq!(raft.view().soft.role, Role::Follower);
    // Enough of the voters before the change, before the change is handed out.
    let out = raft.step(now, message(3, 1, 2, Body::PreVoteReply { granted: true }));
    assert_eq!((raft.view().soft.term, out.messages), (Term(1), vec![]));
    let _ = raft.step(now, Input::Persisted(write.unwrap()));
    let _ = raft.step(now.after(ELECTION * 3), Input::Tick);
    assert_eq!(
        raft.view().soft.role,
        Role::PreCandidate,
        "it stands again, knowing of the change"
    );
}

#[test]
fn p8_a_candidate_whose_vote_ends_while_it_stands_does_not_lead() {
    // Found by the simulator: two machines that started late gave it their votes, and it led as a learner whom nobody could remove.
    let (mut raft, now, write) = hears_of_a_change_while_standing(ConfigStep::Remove(id(1)));
    let _ = raft.step(now, Input::Persisted(write.unwrap()));
    assert_eq!(raft.view().soft.role, Role::Learner);
    for voter in [2, 3] {
        let out = raft.step(now, message(voter, 1, 2, Body::PreVoteReply { granted: true }));
        assert_eq!((raft.view().soft.term, out.messages), (Term(1), vec![]));
    }
}

#[test]
fn p8_a_removal_that_held_is_not_forgotten_in_a_crash() {
    // Found by the simulator: the removed member is switched off, and the other one would need its vote for ever.
    let mut net = Net::new(2);
    net.elect(1);
    net.change(id(1), ConfigStep::Remove(id(2)));
    net.settle();
    assert_eq!(net.raft(1).view().soft.config.voters.len(), 1);
    net.crash(id(2));
    net.crash(id(1));
    net.boot(id(1));
    net.run(ELECTION);
    assert_eq!(net.leader(), Some(id(1)), "it leads alone");
}

#[test]
fn p8_the_leader_remembers_a_removal_before_the_removed_hears_of_it() {
    // Found by the simulator: the removed member knew of its removal and had the longer log, the leader had forgotten it.
    // Neither could lead.
    let mut net = Net::new(2);
    net.elect(1);
    net.instant_disk = false;
    net.change(id(1), ConfigStep::Remove(id(2)));
    // Entries of the leader that only the other one writes.
    net.persist(id(1), 9);
    net.propose(id(1), "x");
    for _ in 0..20 {
        net.persist(id(2), 9);
        net.settle();
    }
    net.crash(id(1));
    net.boot(id(1));
    net.instant_disk = true;
    net.run(ELECTION * 8);
    assert!(net.leader().is_some(), "somebody leads");
}

#[test]
fn p8_a_change_waits_until_its_commit_is_durable() {
    let mut net = Net::new(1);
    net.next_tick();
    net.instant_disk = false;
    net.change(id(1), ConfigStep::AddLearner(id(2)));
    net.propose(id(1), "behind it");
    let config = |net: &Net| net.raft(1).view().soft.config;
    // First the entries, which commits them; then the commit index, with which they are handed out.
    while net.raft(1).view().commit < net.raft(1).view().last.index {
        net.persist(id(1), 1);
    }
    assert!(!config(&net).learners.contains(&id(2)));
    assert_eq!(net.commands(1), Vec::<String>::new());
    net.persist(id(1), 9);
    assert!(config(&net).learners.contains(&id(2)));
    assert_eq!(net.commands(1), ["behind it"]);
}

#[test]
fn p8_only_one_change_is_under_way() {
    let mut net = Net::new(3);
    net.elect(1);
    net.instant_disk = false;
    net.change(id(1), ConfigStep::AddLearner(id(4)));
    net.change(id(1), ConfigStep::AddLearner(id(5)));
    assert_eq!(
        net.nodes[&id(1)].dropped,
        vec![(RequestId(9), DropReason::ConfigInFlight)]
    );
}

#[test]
fn a_leader_takes_no_change_before_it_has_committed_in_its_term() {
    let mut net = Net::new(1);
    net.instant_disk = false;
    net.next_tick();
    net.persist(id(1), 1);
    net.change(id(1), ConfigStep::AddLearner(id(2)));
    assert_eq!(
        net.nodes[&id(1)].dropped,
        vec![(RequestId(9), DropReason::ConfigInFlight)]
    );
}

#[test]
fn p9_a_learner_that_does_not_know_of_its_promotion_votes() {
    let mut raft = lone(&[2, 3], Start::default());
    assert_eq!(raft.view().soft.role, Role::Learner);
    let out = raft.step(
        Now(0),
        message(
            2,
            1,
            1,
            Body::Vote {
                last: position(0, 0),
                transfer: false,
            },
        ),
    );
    let out = raft.step(Now(0), Input::Persisted(out.persist.unwrap().seq));
    assert_eq!(out.messages[0].body, Body::VoteReply { granted: true });
}

#[test]
fn members_grow_by_learner_and_promotion_and_shrink_by_removal() {
    let mut net = Net::new(1);
    net.next_tick();
    for n in 0..20 {
        net.propose(id(1), &format!("before-{n}"));
    }
    for member in [2, 3] {
        net.add(member, Disk::default());
        net.change(id(1), ConfigStep::AddLearner(id(member)));
        net.run(ELECTION);
        assert_eq!(net.raft(member).view().soft.role, Role::Learner);
        net.change(id(1), ConfigStep::Promote(id(member)));
        net.run(ELECTION);
        assert_eq!(net.raft(member).view().soft.role, Role::Follower);
        assert_eq!(net.commands(member).len(), 20);
    }
    net.step(id(1), Input::TransferLeader(Some(id(3))));
    net.run(ELECTION);
    assert_eq!(net.leader(), Some(id(3)));
    net.change(id(3), ConfigStep::Remove(id(1)));
    net.run(ELECTION);
    assert_eq!(net.raft(3).view().soft.config.voters, [id(2), id(3)].into());
    assert_eq!(
        net.raft(1).view().soft.role,
        Role::Learner,
        "the removed member hears of it"
    );
    net.run(ELECTION * 5);
    assert_eq!(net.leader(), Some(id(3)), "and disturbs nobody");
}

#[test]
fn p12_a_leader_does_not_remove_itself_nor_the_last_voter() {
    let mut net = Net::new(2);
    net.elect(1);
    net.change(id(1), ConfigStep::Remove(id(1)));
    assert_eq!(
        net.nodes[&id(1)].dropped,
        vec![(RequestId(9), DropReason::ConfigInvalid)]
    );
    net.change(id(1), ConfigStep::Remove(id(2)));
    net.settle();
    net.run(ELECTION);
    net.change(id(1), ConfigStep::Remove(id(1)));
    assert_eq!(net.nodes[&id(1)].dropped.len(), 2);
}

#[test]
fn a_learner_too_far_behind_is_not_promoted() {
    let mut net = Net::new(1);
    net.next_tick();
    net.add(2, Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(2)));
    net.settle();
    net.isolate(2);
    for _ in 0..=PROMOTE_LAG_MAX {
        net.propose(id(1), "x");
    }
    net.change(id(1), ConfigStep::Promote(id(2)));
    assert_eq!(
        net.nodes[&id(1)].dropped,
        vec![(RequestId(9), DropReason::LearnerBehind)]
    );
}

#[test]
fn a_member_of_no_configuration_keeps_quiet() {
    let mut net = Net::new(1);
    net.add(7, Disk::default());
    net.run(ELECTION * 5);
    assert_eq!(net.raft(7).view().soft.role, Role::Learner);
    assert_eq!(net.raft(7).next_deadline(), None);
    let _: MemberId = id(7);
}

#[test]
fn p9_a_promoted_member_that_does_not_know_and_has_the_longer_log_hears_of_its_vote() {
    let mut net = Net::new(1);
    net.elect(1);
    net.add(2, Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(2)));
    net.run(HEARTBEAT * 3);
    net.instant_disk = false;
    net.change(id(1), ConfigStep::Promote(id(2)));
    net.persist(id(1), 1);
    // The leader alone has committed the promotion, and tells nobody before it will remember that itself.
    net.propose(id(1), "only at the promoted member");
    while !net.mail.is_empty() {
        net.deliver_one(0);
        net.persist(id(2), 99);
    }
    net.persist(id(1), 1);
    net.mail.clear();
    let voters = |net: &Net, member| net.raft(member).view().soft.config.voters.len();
    assert_eq!((voters(&net, 1), voters(&net, 2)), (2, 1));
    // What it had sent before it had written it is lost here, and not there.
    net.crash(id(1));
    net.instant_disk = true;
    net.boot(id(1));
    assert!(net.raft(2).view().last.index > net.raft(1).view().last.index);
    net.run(ELECTION * 6);
    assert_eq!(net.leader(), Some(id(2)));
    assert_eq!((voters(&net, 1), voters(&net, 2)), (2, 2));
    assert_eq!(net.commands(1), ["only at the promoted member"]);
}
