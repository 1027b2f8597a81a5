//! The log, its writes and its limits: P6, P7, P14, P16, P17, P27, P28, P29.

use crate::help::{entry, lone, message, position};
use crate::kit;
use crate::kit::{Disk, ELECTION, Net, id};
use althing_raft::entry::{ConfigStep, Entry, HardState};
use althing_raft::ids::{Index, Now, Term};
use althing_raft::io::{DropReason, Input, RequestId, Start};
use althing_raft::message::Body;
use althing_raft::roster::Footprint;
use bytes::Bytes;

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
        Body::AppendAccepted {
            last: Index(2),
            stamp: None
        }
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
    assert_eq!(
        out.messages[0].body,
        Body::AppendAccepted {
            last: Index(1),
            stamp: None
        }
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
            ..Default::default()
        },
        ..Default::default()
    };
    let mut raft = lone(&[1, 2, 3], start);
    let _ = raft.step(Now(0), Input::Applied(Index(2)));
    let _ = raft.step(Now(0), Input::Compact(Index(9)));
    assert_eq!(raft.view().first, Index(3));
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
        ..Default::default()
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
        ..Default::default()
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
fn p28_a_learner_without_what_an_earlier_replica_of_it_acknowledged_is_sent_all_of_it() {
    let mut net = Net::new(2);
    net.elect(1);
    for n in 0..5 {
        net.propose(id(1), &format!("{n}"));
    }
    net.settle();
    let term = net.raft(1).view().soft.term.0;
    net.change(id(1), ConfigStep::AddLearner(id(3)));
    net.settle();
    // The replica that was there before says once more what it had; the new one knows nothing.
    let last = Index(4);
    net.step(id(1), message(3, 1, term, Body::AppendAccepted { last, stamp: None }));
    net.mail.clear();
    net.add(3, Disk::default());
    net.propose(id(1), "more");
    net.run(ELECTION);
    assert_eq!(net.commands(3), net.commands(1));
}

#[test]
fn p29_a_replica_that_came_again_is_not_told_what_is_committed_by_what_was_meant_for_the_one_before() {
    let mut raft = lone(&[], Start::default());
    for body in [
        Body::Heartbeat {
            commit: Index(5),
            round: 0,
        },
        Body::Hibernate {
            commit: Index(5),
            spell: 1,
        },
    ] {
        let _ = raft.step(Now(0), message(2, 1, 1, body));
        assert_eq!(raft.view().commit, Index::ZERO);
    }
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
fn p27_bytes_under_way_to_a_silent_follower_are_bounded() {
    const BYTES_MAX: usize = 500;
    let mut net = Net::new(3);
    net.inflight_bytes_max = BYTES_MAX;
    for member in 1..=3 {
        net.crash(id(member));
        net.boot(id(member));
    }
    net.elect(1);
    net.cut.insert((id(3), id(1)));
    for n in 0..100 {
        net.propose(id(1), &format!("a command of some thirty bytes {n}"));
    }
    let under_way = |net: &Net| -> usize {
        let to_three = net.mail.iter().filter(|message| message.to == id(3));
        let mut bytes = 0;
        for message in to_three {
            if let Body::Append { entries, .. } = &message.body {
                bytes += entries.iter().map(Entry::size_bytes).sum::<usize>();
            }
        }
        bytes
    };
    // The last append may be one entry over what was left.
    let entry = 24 + "a command of some thirty bytes 99".len();
    assert!(
        (BYTES_MAX / 2..BYTES_MAX + entry).contains(&under_way(&net)),
        "{} bytes are under way",
        under_way(&net)
    );
    net.settle();
    net.run(kit::NEWS_DELAY);
    assert_eq!(net.commands(2).len(), 100, "the other one is not held up");
    net.cut.clear();
    net.run(ELECTION);
    assert_eq!(net.commands(3).len(), 100);
}

#[test]
fn p27_a_learner_catches_up_under_a_load_that_never_pauses() {
    let mut net = Net::new(3);
    net.inflight_max = 2;
    for member in 1..=3 {
        net.crash(id(member));
        net.boot(id(member));
    }
    net.elect(1);
    for n in 0..300 {
        net.propose(id(1), &format!("before {n}"));
        net.settle();
    }
    net.add(4, Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(4)));
    let lag = |net: &Net| {
        let view = net.raft(1).view();
        let learner = view.progress.iter().find(|progress| progress.member == id(4));
        learner.map_or(u64::MAX, |learner| view.last.index.0 - learner.matched.0)
    };
    let mut smallest = u64::MAX;
    for n in 0..300 {
        net.propose(id(1), &format!("load {n}"));
        // A network that is just busy: what a proposal causes takes about as many messages.
        for _ in 0..20 {
            if !net.mail.is_empty() {
                net.deliver_one(0);
            }
        }
        smallest = smallest.min(lag(&net));
    }
    assert!(smallest < 10, "the learner never came closer than {smallest} entries");
    assert_eq!(net.leader(), Some(id(1)));
}

#[test]
fn the_news_of_a_commit_travels_with_the_next_append_or_soon_by_itself_and_nobody_answers_it() {
    let mut net = Net::new(3);
    net.elect(1);
    net.run(kit::HEARTBEAT);
    let commits = |net: &Net| [2, 3].map(|follower| net.raft(follower).view().commit);
    for command in ["first", "second", "third"] {
        let before = net.raft(1).view().commit;
        net.propose(id(1), command);
        assert_eq!(net.settle(), 4, "the entry and its acknowledgement, for two followers");
        assert_eq!(commits(&net), [before; 2], "as far as the entry before it");
    }
    net.now = net.now.after(kit::NEWS_DELAY);
    net.step(id(1), Input::Tick);
    assert_eq!(net.settle(), 2);
    assert_eq!(commits(&net), [net.raft(1).view().commit; 2]);
    // Whose clients wait is told at once.
    net.propose(id(2), "forwarded");
    assert_eq!(net.settle(), 1 + 4 + 2);
    assert_eq!(commits(&net), [net.raft(1).view().commit; 2]);
}

#[test]
fn a_follower_whose_reads_wait_for_a_commit_hears_of_it_at_once() {
    let mut net = Net::new(3);
    net.elect(1);
    net.run(kit::HEARTBEAT);
    net.propose(id(1), "news");
    net.settle();
    let commit = net.raft(1).view().commit;
    assert!(net.raft(2).view().commit < commit);
    net.step(id(2), Input::Read(vec![(RequestId(1), Footprint::All)]));
    net.settle();
    assert_eq!(net.nodes[&id(2)].reads, vec![(RequestId(1), commit)]);
    assert_eq!(
        [2, 3].map(|follower| net.raft(follower).view().commit),
        [commit, commit.prev()]
    );
}
