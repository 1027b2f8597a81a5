//! One scenario per pitfall of the study (P-numbers), each a sentence about what must not go wrong.

#![allow(clippy::unwrap_used)]

mod kit;

use althing_raft::entry::{ConfigChange, ConfigState, ConfigStep, Entry, HardState, Payload, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{Config, DropReason, Input, RequestId, Role, Start};
use althing_raft::message::{Body, Message};
use althing_raft::{PROMOTE_LAG_MAX, Raft};
use bytes::Bytes;
use kit::{Disk, ELECTION, Net, command, id};

fn message(from: u64, to: u64, term: u64, body: Body) -> Input {
    let (group, term) = (GroupId::FIRST_SHARD, Term(term));
    Input::Message(Message {
        group,
        from: id(from),
        to: id(to),
        term,
        body,
    })
}

fn lone(voters: &[u64], start: Start) -> Raft {
    let config = Config {
        group: GroupId::FIRST_SHARD,
        id: id(1),
        election_timeout: ELECTION,
        heartbeat_interval: kit::HEARTBEAT,
        seed: 7,
        append_bytes_max: 1000,
        inflight_appends_max: 8,
        uncommitted_bytes_max: 1000,
    };
    let voters = voters.iter().copied().map(id).collect();
    let applied = SnapshotMeta {
        config: ConfigState {
            voters,
            ..Default::default()
        },
        ..start.applied.clone()
    };
    Raft::new(config, Start { applied, ..start }, Now(0)).0
}

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        payload: Payload::Command(command("x")),
    }
}

fn position(term: u64, index: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: Index(index),
    }
}

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
fn a_follower_forwards_a_command_once() {
    let mut net = Net::new(3);
    net.elect(1);
    net.propose(id(2), "from a follower");
    net.settle();
    net.run(ELECTION);
    assert_eq!(net.commands(3), ["from a follower"]);
}

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
fn p6_the_write_of_a_replaced_tail_does_not_count_for_its_successor() {
    let mut raft = lone(&[1, 2, 3], Start::default());
    let append = |from, term, entries, prev| {
        message(
            from,
            1,
            term,
            Body::Append {
                prev,
                entries,
                commit: Index(0),
            },
        )
    };
    let old = raft.step(
        Now(0),
        append(2, 1, vec![entry(1, 1), entry(1, 2), entry(1, 3)], position(0, 0)),
    );
    let new = raft.step(Now(0), append(3, 2, vec![entry(2, 1), entry(2, 2)], position(0, 0)));
    let out = raft.step(Now(0), Input::Persisted(old.persist.unwrap().seq));
    assert_eq!(
        out.messages,
        vec![],
        "the old leader's promise is void and the new tail is not durable"
    );
    let out = raft.step(Now(0), Input::Persisted(new.persist.unwrap().seq));
    assert_eq!(
        out.messages.last().unwrap().body,
        Body::AppendAccepted { last: Index(2) }
    );
}

#[test]
fn p7_votes_and_acknowledgements_wait_for_their_write() {
    let mut raft = lone(&[1, 2, 3], Start::default());
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
    assert_eq!(out.messages, vec![]);
    let out = raft.step(Now(0), Input::Persisted(out.persist.unwrap().seq));
    assert_eq!(out.messages[0].body, Body::VoteReply { granted: true });
    let out = raft.step(
        Now(0),
        message(
            2,
            1,
            1,
            Body::Append {
                prev: position(0, 0),
                entries: vec![entry(1, 1)],
                commit: Index(0),
            },
        ),
    );
    assert_eq!(out.messages, vec![]);
    let out = raft.step(Now(0), Input::Persisted(out.persist.unwrap().seq));
    assert_eq!(out.messages[0].body, Body::AppendAccepted { last: Index(1) });
}

#[test]
fn p8_a_member_does_not_campaign_while_a_committed_change_is_not_handed_out() {
    let change = ConfigChange {
        request: 0,
        step: ConfigStep::Remove(id(3)),
        context: Bytes::new(),
    };
    let config = Entry {
        term: Term(1),
        index: Index(1),
        payload: Payload::Config(change),
    };
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
fn p13_a_snapshot_resets_log_membership_and_commit_in_one_step() {
    let mut net = Net::new(3);
    net.elect(1);
    net.isolate(3);
    for n in 0..30 {
        net.propose(id(1), &format!("{n}"));
    }
    net.run(ELECTION / 2);
    let applied = net.raft(1).view().commit;
    net.step(id(1), Input::Compact(applied));
    net.cut.clear();
    net.run(ELECTION * 4);
    assert_eq!(net.commands(3).len(), 30);
    assert_eq!(net.raft(3).view().first, applied.next());
    let leader = net.leader().unwrap();
    net.propose(leader, "after");
    net.run(ELECTION);
    assert_eq!(net.commands(3).last().unwrap(), "after");
}

#[test]
fn p13_a_snapshot_that_is_older_than_the_commit_index_is_only_acknowledged() {
    let start = Start {
        entries: vec![entry(1, 1), entry(1, 2)],
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(2),
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let meta = SnapshotMeta {
        position: position(1, 1),
        ..Default::default()
    };
    let out = raft.step(Now(0), message(2, 1, 1, Body::Snapshot { meta }));
    assert_eq!(out.install, None);
    assert_eq!(out.messages[0].body, Body::AppendAccepted { last: Index(2) });
}

#[test]
fn p13_a_snapshot_of_what_the_log_holds_drops_no_acknowledged_entry_behind_it() {
    let start = Start {
        entries: (1..=7).map(|index| entry(1, index)).collect(),
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(2),
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let meta = SnapshotMeta {
        position: position(1, 6),
        ..Default::default()
    };
    let out = raft.step(Now(0), message(2, 1, 1, Body::Snapshot { meta }));
    assert_eq!(
        (out.install, raft.view().commit, raft.view().last),
        (None, Index(6), position(1, 7))
    );
}

#[test]
fn p14_compaction_stops_at_the_applied_index() {
    let start = Start {
        entries: (1..=5).map(|index| entry(1, index)).collect(),
        hard_state: HardState {
            term: Term(1),
            vote: None,
            commit: Index(4),
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let _ = raft.step(Now(0), Input::Applied(Index(2)));
    let _ = raft.step(Now(0), Input::Compact(Index(9)));
    assert_eq!(raft.view().first, Index(3));
}

#[test]
fn p15_a_state_machine_ahead_of_its_log_resets_the_log() {
    for (term_in_log, entries_in_log) in [(1, 2), (1, 7)] {
        let mut start = Start {
            entries: (1..=entries_in_log).map(|index| entry(term_in_log, index)).collect(),
            ..Default::default()
        };
        start.applied.position = position(3, 5);
        let mut raft = lone(&[1, 2, 3], start);
        assert_eq!(
            (raft.view().first, raft.view().last, raft.view().commit),
            (Index(6), position(3, 5), Index(5))
        );
        assert!(raft.view().soft.term >= Term(3));
        let _ = raft.step(Now(0), Input::Tick);
    }
}

#[test]
fn p16_what_was_applied_counts_as_committed_after_a_restart() {
    let mut start = Start {
        entries: (1..=3).map(|index| entry(1, index)).collect(),
        ..Default::default()
    };
    start.applied.position = position(1, 2);
    start.hard_state = HardState {
        term: Term(1),
        vote: None,
        commit: Index(1),
    };
    let raft = lone(&[1, 2, 3], start);
    assert_eq!(raft.view().commit, Index(2));
}

#[test]
fn p17_a_leader_that_contradicts_a_committed_entry_changes_nothing() {
    let hard_state = HardState {
        term: Term(1),
        vote: None,
        commit: Index(1),
    };
    let mut raft = lone(
        &[1, 2, 3],
        Start {
            entries: vec![entry(1, 1)],
            hard_state,
            ..Default::default()
        },
    );
    let lie = Body::Append {
        prev: position(0, 0),
        entries: vec![entry(2, 1)],
        commit: Index(0),
    };
    let out = raft.step(Now(0), message(3, 1, 2, lie));
    assert!(out.persist.unwrap().entries.is_empty(), "only the new term is written");
    assert_eq!(raft.entry(Index(1)), Some(&entry(1, 1)));
}

#[test]
fn p28_a_refusal_older_than_what_matches_is_ignored() {
    let mut net = Net::new(3);
    net.elect(1);
    for n in 0..5 {
        net.propose(id(1), &format!("{n}"));
    }
    net.settle();
    let term = net.raft(1).view().soft.term.0;
    let matched = |net: &Net| {
        net.raft(1)
            .view()
            .progress
            .iter()
            .find(|p| p.member == id(2))
            .unwrap()
            .matched
    };
    let before = matched(&net);
    net.step(
        id(1),
        message(
            2,
            1,
            term,
            Body::AppendRejected {
                rejected: Index(2),
                hint: position(1, 1),
            },
        ),
    );
    assert_eq!(net.mail, vec![]);
    assert_eq!(matched(&net), before);
}

#[test]
fn p29_a_heartbeat_never_commits_beyond_what_the_follower_has() {
    let mut net = Net::new(3);
    net.elect(1);
    net.isolate(3);
    for n in 0..5 {
        net.propose(id(1), &format!("{n}"));
    }
    net.settle();
    net.now = net.now.after(kit::HEARTBEAT);
    net.step(id(1), Input::Tick);
    let commit = |to: u64| {
        net.mail.iter().find_map(|m| match (&m.body, m.to == id(to)) {
            (Body::Heartbeat { commit, .. }, true) => Some(*commit),
            _ => None,
        })
    };
    assert_eq!(commit(2), Some(net.raft(1).view().commit));
    assert!(commit(3).unwrap() < net.raft(1).view().commit);
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

#[test]
fn p27_proposals_beyond_the_uncommitted_limit_are_refused() {
    let mut raft = lone(&[1], Start::default());
    let out = raft.step(Now(0), Input::Tick);
    let _ = raft.step(Now(0), Input::Persisted(out.persist.unwrap().seq));
    let big = Bytes::from(vec![0; 600]);
    let out = raft.step(
        Now(0),
        Input::Propose(vec![(RequestId(1), big.clone()), (RequestId(2), big)]),
    );
    assert_eq!(out.dropped, vec![(RequestId(2), DropReason::Overloaded)]);
}

#[test]
fn a_lost_last_append_is_noticed_without_new_proposals() {
    let mut net = Net::new(3);
    net.elect(1);
    net.propose(id(1), "a");
    net.settle();
    net.propose(id(1), "lost");
    net.mail.clear();
    net.run(ELECTION);
    for member in 1..=3 {
        assert_eq!(net.commands(member), ["a", "lost"], "member {member}");
    }
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
