//! Groups that leave a node, and come back.

mod kit;

use althing_raft::entry::{HardState, SnapshotMeta};
use althing_raft::ids::{Index, LogPosition, MemberId, Term};
use althing_raft::message::{Body, Message};
use althing_shard::{Event, Refusal};
use kit::{Cluster, GROUP, HEARTBEAT};

/// What a replica starts from that has a vote: one that knows nothing has none.
fn something() -> SnapshotMeta {
    SnapshotMeta {
        position: LogPosition {
            term: Term(1),
            index: Index(1),
        },
        ..SnapshotMeta::default()
    }
}

/// Member 9 hears of a group and is asked for its vote.
fn vote(cluster: &mut Cluster, candidate: u64, term: u64) -> bool {
    let me = MemberId(9);
    let position = LogPosition {
        term: Term(term - 1),
        index: Index(50),
    };
    let message = Message {
        group: GROUP,
        from: MemberId(candidate),
        to: me,
        term: Term(term),
        body: Body::Vote {
            last: position,
            transfer: false,
        },
    };
    cluster.wire.clear();
    cluster.turn(me, vec![Event::Messages(vec![message])]);
    let granted = |message: &Message| message.body == Body::VoteReply { granted: true };
    let mut replies = cluster.wire.drain(..);
    replies.any(|(_, _, event)| matches!(&event, Event::Messages(messages) if messages.iter().any(granted)))
}

#[test]
fn a_member_that_comes_back_does_not_vote_twice_in_a_term() {
    let mut cluster = Cluster::born(1);
    let me = MemberId(9);
    let start = |cluster: &mut Cluster, hard_state| {
        cluster.start(me, Vec::new(), hard_state, something(), Vec::new());
    };
    start(&mut cluster, HardState::default());
    assert!(vote(&mut cluster, 2, 7));
    cluster.turn(
        me,
        vec![Event::Retire {
            group: GROUP,
            ends_at: None,
        }],
    );
    let kept = cluster.nodes[&me].retired.expect("what must not be forgotten");
    assert_eq!(
        (kept.term, kept.vote, kept.commit),
        (Term(7), Some(MemberId(2)), Index(0))
    );
    assert!(cluster.nodes[&me].host.view(GROUP).is_none());
    start(&mut cluster, kept);
    assert!(!vote(&mut cluster, 3, 7), "the vote of term 7 is given");
    assert!(vote(&mut cluster, 2, 7), "and may be said again");
    assert!(vote(&mut cluster, 3, 8));
}

#[test]
fn a_vote_that_is_being_written_is_kept_as_well() {
    let mut cluster = Cluster::born(1);
    let me = MemberId(9);
    cluster.start(me, Vec::new(), HardState::default(), something(), Vec::new());
    cluster.nodes.get_mut(&me).unwrap().slow_disk = true;
    assert!(!vote(&mut cluster, 2, 7), "not durable yet");
    cluster.turn(
        me,
        vec![Event::Retire {
            group: GROUP,
            ends_at: None,
        }],
    );
    assert_eq!(cluster.nodes[&me].retired.unwrap().vote, Some(MemberId(2)));
    // The write ends after the group has gone, and concerns nobody.
    let written = std::mem::take(&mut cluster.nodes.get_mut(&me).unwrap().waiting_writes);
    assert!(!written.is_empty());
    cluster.turn(me, written);
}

#[test]
fn requests_of_a_group_that_goes_are_answered_as_far_as_their_outcome_is_known() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|me| *me != leader).collect();
    cluster.cut.extend(others);
    let sent = cluster.propose(leader, "sent");
    let read = cluster.read(leader);
    cluster.turn(
        leader,
        vec![Event::Retire {
            group: GROUP,
            ends_at: None,
        }],
    );
    assert_eq!(
        cluster.answer(leader, sent),
        Err(Refusal::LeaderChanged),
        "its copies are on their way"
    );
    assert_eq!(cluster.answer(leader, read), Err(Refusal::NoGroup));
    let late = cluster.propose(leader, "late");
    assert_eq!(cluster.answer(leader, late), Err(Refusal::NoGroup));
    // A message for a group that is not here is for nobody.
    let message = Message {
        group: GROUP,
        from: follower,
        to: leader,
        term: Term(99),
        body: Body::Heartbeat {
            commit: Index(0),
            round: 0,
        },
    };
    cluster.turn(leader, vec![Event::Messages(vec![message])]);
    cluster.run(HEARTBEAT);
}

#[test]
fn a_group_that_goes_in_the_turn_in_which_it_writes_writes_nothing_behind_its_reset() {
    let mut cluster = Cluster::of(&[1]);
    let me = cluster.leader();
    let (request, deadline) = cluster.request();
    let propose = Event::Propose {
        request,
        group: GROUP,
        command: "x".into(),
        deadline,
    };
    cluster.turn(
        me,
        vec![
            propose,
            Event::Retire {
                group: GROUP,
                ends_at: None,
            },
        ],
    );
    let node = &cluster.nodes[&me];
    assert!(node.log.is_empty() && node.retired.is_some());
    assert_eq!(cluster.answer(me, request), Err(Refusal::NoGroup), "it never left");
    assert_eq!(cluster.nodes[&me].host.groups().count(), 0);
}

#[test]
fn a_group_whose_log_has_gone_on_since_stays() {
    let mut cluster = Cluster::of(&[1]);
    let me = cluster.leader();
    let end = cluster.nodes[&me].host.view(GROUP).unwrap().raft.last;
    let request = cluster.propose(me, "later");
    assert!(cluster.applied_at(me, request));
    let retire = |ends_at| {
        vec![Event::Retire {
            group: GROUP,
            ends_at: Some(ends_at),
        }]
    };
    cluster.turn(me, retire(end));
    assert_eq!((cluster.nodes[&me].kept, cluster.nodes[&me].retired), (1, None));
    let end = cluster.nodes[&me].host.view(GROUP).unwrap().raft.last;
    cluster.turn(me, retire(end));
    assert!(cluster.nodes[&me].retired.is_some());
}
