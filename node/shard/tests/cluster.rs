//! Groups of several members, end to end: who is answered, when, and with what.

mod kit;

use althing_raft::entry::{ConfigStep, HardState, JointTarget, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Now, Term};
use althing_raft::io::{RequestId, Role, Start};
use althing_raft::message::{Body, Message};
use althing_raft::roster::Footprint;
use althing_shard::{Done, Effect, Event, GroupStart, Refusal, Work};
use bytes::Bytes;
use kit::{Cluster, ELECTION, GROUP, HEARTBEAT, PATIENCE, core_config, host};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_born_member_leads_alone_at_once_and_answers_writes_and_reads() {
    let mut cluster = Cluster::born(7);
    let me = MemberId(7);
    cluster.run(Duration::from_millis(1));
    assert_eq!(cluster.role(me), Role::Leader);
    let put = cluster.propose(me, "a");
    assert!(cluster.applied_at(me, put));
    let read = cluster.read(me);
    assert!(matches!(cluster.answer(me, read), Ok(Done::Read { .. })));
}

#[test]
fn three_members_agree_and_each_completes_its_own_clients() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let members: Vec<_> = cluster.nodes.keys().copied().collect();
    for member in members.clone() {
        let put = cluster.propose(member, "x");
        assert!(
            cluster.applied_at(member, put),
            "the member that took a request answers it"
        );
        for other in members.iter().filter(|other| **other != member) {
            assert!(!cluster.nodes[other].results.contains(&put));
        }
        let read = cluster.read(member);
        assert!(
            matches!(cluster.answer(member, read), Ok(Done::Read { .. })),
            "a follower reads too"
        );
    }
    cluster.run(HEARTBEAT * 2);
    let states: BTreeSet<_> = cluster.nodes.values().map(|node| node.state.clone()).collect();
    assert_eq!(states.len(), 1);
}

#[test]
fn a_forwarded_write_is_answered_without_waiting_for_a_heartbeat() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let follower = cluster.follower();
    let put = cluster.propose(follower, "x");
    cluster.deliver();
    assert!(cluster.nodes[&follower].results.contains(&put), "no time has passed");
}

#[test]
fn all_requests_of_a_turn_share_one_write_and_one_message_per_peer() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.run(HEARTBEAT * 2);
    let before = cluster.nodes[&leader].writes;
    let deadline = cluster.now.after(PATIENCE);
    let events = (1000..1100).flat_map(|id| {
        let propose = Event::Propose {
            request: RequestId(id),
            group: GROUP,
            command: Bytes::from_static(b"x"),
            deadline,
        };
        [
            propose,
            Event::Read {
                request: RequestId(id + 1000),
                group: GROUP,
                footprint: Footprint::All,
                deadline,
            },
        ]
    });
    cluster.turn(leader, events.collect());
    assert_eq!(cluster.nodes[&leader].writes, before + 1);
    assert_eq!(cluster.wire.len(), 2);
    let heartbeats = cluster.wire.iter().flat_map(|(_, _, event)| {
        let Event::Messages(messages) = event else {
            panic!("{event:?}")
        };
        messages.clone()
    });
    let heartbeats = heartbeats
        .filter(|message| matches!(message.body, Body::Heartbeat { .. }))
        .count();
    assert_eq!(
        heartbeats, 1,
        "a hundred reads take one round, and that takes one of two followers"
    );
    cluster.deliver();
    assert_eq!(cluster.nodes[&leader].results.len(), 100);
    assert_eq!(
        cluster.nodes[&leader]
            .answers
            .values()
            .filter(|answer| answer.is_ok())
            .count(),
        100 + 2 * 2
    );
}

#[test]
fn nothing_is_answered_while_a_majority_has_not_written() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    for node in cluster.nodes.values_mut() {
        node.slow_disk = true;
    }
    let put = cluster.propose(leader, "x");
    cluster.run(HEARTBEAT);
    assert!(!cluster.applied_at(leader, put));
    let followers: Vec<_> = cluster.nodes.keys().copied().filter(|me| *me != leader).collect();
    let durable = std::mem::take(&mut cluster.nodes.get_mut(&followers[0]).unwrap().waiting_writes);
    cluster.turn(followers[0], durable);
    cluster.run(HEARTBEAT);
    assert!(!cluster.applied_at(leader, put), "the leader's own copy is not durable");
    let durable = std::mem::take(&mut cluster.nodes.get_mut(&leader).unwrap().waiting_writes);
    cluster.turn(leader, durable);
    assert!(cluster.applied_at(leader, put));
}

#[test]
fn a_write_waits_for_a_new_leader_and_is_not_lost() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let survivor = cluster.follower();
    cluster.cut.insert(leader);
    cluster.run(ELECTION * 2);
    let put = cluster.propose(survivor, "x");
    let read = cluster.read(survivor);
    cluster.leader();
    cluster.run(ELECTION);
    assert!(cluster.applied_at(survivor, put));
    assert!(matches!(cluster.answer(survivor, read), Ok(Done::Read { .. })));
}

#[test]
fn a_committed_request_is_answered_by_the_state_machine_alone_however_late() {
    let me = MemberId(1);
    let start = Start::birth(me, Bytes::new());
    let config = core_config(me, 7);
    let mut host = host(me, 1);
    host.add_group(Now(1), GroupStart { config, start });
    let (request, deadline) = (RequestId(1), Now(1).after(PATIENCE));
    let command = Bytes::from_static(b"x");
    let mut events = vec![Event::Propose {
        request,
        group: GROUP,
        command,
        deadline,
    }];
    // The log is quick, the state machine is not.
    let (mut waiters, mut applied) = (Vec::new(), LogPosition::default());
    for _ in 0..8 {
        for effect in host.poll(Now(2), std::mem::take(&mut events)).unwrap() {
            match effect {
                Effect::Write { token, .. } => events.push(Event::Written(token)),
                Effect::Apply { items, .. } => {
                    for item in items {
                        applied = item.position;
                        if let Work::Command { waiter, .. } = item.work {
                            waiters.extend(waiter);
                        }
                    }
                }
                Effect::Compact { .. }
                | Effect::Send { .. }
                | Effect::Complete { .. }
                | Effect::SendSnapshot { .. }
                | Effect::Install { .. }
                | Effect::Discard { .. }
                | Effect::Stamp { .. }
                | Effect::Retired { .. }
                | Effect::Kept { .. }
                | Effect::Peers(_)
                | Effect::Changed { .. } => {}
            }
        }
    }
    assert_eq!(waiters, [request]);
    let completed = |effects: Vec<Effect>| {
        let complete = |effect: &Effect| matches!(effect, Effect::Complete { .. });
        effects.iter().any(complete)
    };
    let late = deadline.after(PATIENCE);
    assert!(
        !completed(host.poll(late, []).unwrap()),
        "it was promised an answer by the state machine"
    );
    let event = Event::Applied {
        group: GROUP,
        position: applied,
    };
    assert!(!completed(host.poll(late, [event]).unwrap()));
    assert_eq!(host.view(GROUP).unwrap().pending, 0);
}

#[test]
fn without_a_quorum_requests_end_at_their_deadline_and_say_why() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let survivor = cluster.follower();
    cluster.cut = cluster.nodes.keys().copied().filter(|me| *me != survivor).collect();
    let early = cluster.propose(survivor, "sent to the lost leader");
    cluster.run(ELECTION * 3);
    let put = cluster.propose(survivor, "x");
    let read = cluster.read(survivor);
    let change = cluster.configure(survivor, ConfigStep::Remove(leader), None);
    assert_eq!(
        cluster.answer(survivor, early),
        Err(Refusal::Timeout),
        "it may have taken effect"
    );
    assert_eq!(
        cluster.answer(survivor, put),
        Err(Refusal::NoLeader),
        "it certainly has not"
    );
    assert_eq!(cluster.answer(survivor, read), Err(Refusal::NoLeader));
    assert_eq!(
        cluster.answer(survivor, change),
        Err(Refusal::NotLeader { leader: None })
    );
}

#[test]
fn a_forwarded_write_is_not_repeated_and_its_client_hears_of_the_change() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let survivor = cluster.follower();
    cluster.cut.insert(leader);
    let put = cluster.propose(survivor, "once");
    assert_eq!(cluster.answer(survivor, put), Err(Refusal::LeaderChanged));
    cluster.cut.clear();
    cluster.run(ELECTION * 3);
    assert!(
        cluster.nodes.values().all(|node| node.state.is_empty()),
        "a retry could have applied it twice"
    );
}

#[test]
fn leadership_moves_when_asked_and_only_to_voters() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let target = cluster.follower();
    let ask = |cluster: &mut Cluster, to| {
        let (request, deadline) = cluster.request();
        cluster.turn(
            leader,
            vec![Event::Transfer {
                request,
                group: GROUP,
                to,
                deadline,
            }],
        );
        cluster.answer(leader, request)
    };
    assert_eq!(ask(&mut cluster, Some(MemberId(99))), Err(Refusal::BadTransferee));
    assert_eq!(ask(&mut cluster, Some(leader)), Ok(Done::Transferred { leader }));
    assert_eq!(
        ask(&mut cluster, Some(target)),
        Ok(Done::Transferred { leader: target })
    );
    assert_eq!(
        ask(&mut cluster, None),
        Err(Refusal::NotLeader { leader: Some(target) })
    );
}

#[test]
fn a_change_on_an_old_view_is_refused_with_the_present_guard() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let current = cluster.nodes[&leader].applied.config.index;
    let stale = cluster.configure(leader, ConfigStep::Remove(MemberId(99)), Some(Index(2)));
    assert_eq!(cluster.answer(leader, stale), Err(Refusal::Conflict { current }));
    let invalid = cluster.configure(leader, ConfigStep::Remove(MemberId(99)), Some(current));
    assert_eq!(cluster.answer(leader, invalid), Err(Refusal::ChangeInvalid));
    let victim = cluster.follower();
    let removed = cluster.configure(leader, ConfigStep::Remove(victim), Some(current));
    assert!(matches!(cluster.answer(leader, removed), Ok(Done::Configured { index }) if index > current));
    cluster.run(ELECTION);
    let put = cluster.propose(victim, "x");
    assert_eq!(cluster.answer(victim, put), Err(Refusal::NotMember));
}

#[test]
fn several_members_are_exchanged_by_one_change_and_the_state_machine_hears_of_each_configuration() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let target = [4, 5].map(MemberId);
    for newcomer in target {
        cluster.start(
            newcomer,
            Vec::new(),
            HardState::default(),
            SnapshotMeta::default(),
            Vec::new(),
        );
        let added = cluster.configure(leader, ConfigStep::AddLearner(newcomer), None);
        assert!(cluster.answer(leader, added).is_ok());
        cluster.run(HEARTBEAT * 2);
    }
    let step = ConfigStep::EnterJoint(JointTarget {
        voters: target.into(),
        learners: [leader].into(),
    });
    let changed = cluster.configure(leader, step, None);
    assert!(matches!(cluster.answer(leader, changed), Ok(Done::Configured { .. })));
    cluster.run(ELECTION * 2);
    let next = cluster.leader();
    assert!(target.contains(&next), "the leader that lost its vote handed over");
    for member in [target[0], target[1], leader] {
        let node = &cluster.nodes[&member];
        let config = &node.applied.config;
        assert_eq!((&config.voters, config.is_joint()), (&BTreeSet::from(target), false));
        assert_eq!(config.learners, BTreeSet::from([leader]));
        let core = node.host.view(GROUP).unwrap().raft.soft.config;
        assert_eq!(*config, core, "host and core went the same way");
    }
    let put = cluster.propose(target[0], "x");
    assert!(cluster.applied_at(target[0], put));
}

#[test]
fn a_learner_takes_no_requests() {
    let mut cluster = Cluster::of(&[1]);
    let (leader, learner) = (MemberId(1), MemberId(2));
    cluster.start(
        learner,
        Vec::new(),
        HardState::default(),
        SnapshotMeta::default(),
        Vec::new(),
    );
    let early = cluster.read(learner);
    assert_eq!(cluster.answer(learner, early), Err(Refusal::NotMember));
    let added = cluster.configure(leader, ConfigStep::AddLearner(learner), None);
    assert!(cluster.answer(leader, added).is_ok());
    cluster.run(HEARTBEAT * 3);
    let read = cluster.read(learner);
    assert_eq!(cluster.answer(learner, read), Err(Refusal::Learner));
}

#[test]
fn an_entry_of_an_earlier_boot_answers_nobody() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let member = cluster.follower();
    let put = cluster.propose(member, "from the first life");
    // It is on its way when its proposer restarts, and the next life uses the same request id.
    let wire = std::mem::take(&mut cluster.wire);
    cluster.restart(member);
    cluster.run(HEARTBEAT);
    let deadline = cluster.now.after(PATIENCE);
    cluster.cut.insert(leader);
    cluster.turn(
        member,
        vec![Event::Read {
            request: put,
            group: GROUP,
            footprint: Footprint::All,
            deadline,
        }],
    );
    cluster.cut.clear();
    cluster.wire.extend(wire);
    cluster.run(HEARTBEAT * 2);
    assert!(
        cluster.nodes[&member]
            .state
            .contains(&Bytes::from_static(b"from the first life"))
    );
    assert!(!cluster.nodes[&member].results.contains(&put));
}

#[test]
fn a_member_that_fell_behind_the_log_gets_a_snapshot_and_catches_up() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let behind = cluster.follower();
    cluster.cut.insert(behind);
    for _ in 0..8 {
        let deadline = cluster.now.after(PATIENCE);
        let proposals = (0..1000).map(|_| {
            cluster.next_request += 1;
            let request = RequestId(cluster.next_request);
            Event::Propose {
                request,
                group: GROUP,
                command: Bytes::from_static(b"x"),
                deadline,
            }
        });
        let proposals = proposals.collect();
        cluster.turn(leader, proposals);
        cluster.run(HEARTBEAT * 15);
    }
    let position = cluster.nodes[&leader].applied.position;
    cluster.turn(leader, vec![Event::Checkpointed { group: GROUP, position }]);
    let compacted = cluster.nodes[&leader].compacted;
    assert!(
        compacted.index > Index(1000) && compacted.index.0 + 5000 <= position.index.0,
        "{compacted:?}"
    );
    cluster.cut.clear();
    cluster.run(ELECTION * 3);
    assert_eq!(cluster.nodes[&behind].state, cluster.nodes[&leader].state);
    let put = cluster.propose(behind, "after");
    assert!(cluster.applied_at(behind, put));
}

#[test]
fn a_restarted_cluster_has_everything() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let put = cluster.propose(leader, "x");
    assert!(cluster.applied_at(leader, put));
    for member in [1, 2, 3] {
        cluster.restart(MemberId(member));
    }
    cluster.wire.clear();
    let leader = cluster.leader();
    let read = cluster.read(leader);
    assert!(matches!(cluster.answer(leader, read), Ok(Done::Read { .. })));
    assert_eq!(cluster.nodes[&leader].state, [Bytes::from_static(b"x")]);
}

#[test]
fn commands_that_nobody_could_read_do_not_enter_the_log() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    let leader = cluster.leader();
    let from = cluster.follower();
    let term = cluster.nodes[&leader].hard_state.term;
    let commands = vec![Bytes::from_static(b"no envelope")];
    let before = cluster.nodes[&leader].log.len();
    let message = Message {
        group: GROUP,
        from,
        to: leader,
        term,
        body: Body::Forward { commands },
    };
    cluster.turn(leader, vec![Event::Messages(vec![message])]);
    assert_eq!(cluster.nodes[&leader].log.len(), before);
}

#[test]
fn a_member_without_a_leader_answers_signs_of_life_of_nodes_that_it_knows_nothing_of() {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    cluster.run(HEARTBEAT);
    let (member, stranger) = (cluster.follower(), MemberId(9));
    let sign = |from, to| Message {
        group: GroupId::META,
        from,
        to,
        term: Term::ZERO,
        body: Body::Alive { boot: 1 },
    };
    let answers = |cluster: &mut Cluster, pass: Duration| {
        cluster.wire.clear();
        cluster.now = cluster.now.after(pass);
        cluster.turn(member, vec![Event::Messages(vec![sign(stranger, member)])]);
        cluster.wire.iter().filter(|(_, to, _)| *to == stranger).count()
    };
    assert_eq!(
        answers(&mut cluster, HEARTBEAT),
        0,
        "it has a leader, and need not be found"
    );
    // The others exchange it for somebody, say, and it cannot hear of that.
    cluster.cut = [1, 2, 3].map(MemberId).into();
    cluster.run(ELECTION * 3);
    assert_eq!(cluster.nodes[&member].host.view(GROUP).unwrap().raft.soft.leader, None);
    assert_eq!(answers(&mut cluster, HEARTBEAT), 1);
    // Found by the simulator: two nodes that answered each other's answers at once did nothing else any more.
    let soon: usize = (0..9).map(|_| answers(&mut cluster, Duration::ZERO)).sum();
    assert_eq!(soon, 0, "never more than one for each beat");
    assert_eq!(answers(&mut cluster, HEARTBEAT), 1);
}
