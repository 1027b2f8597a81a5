//! Several members at once, by joint consensus (Raft thesis, section 4.3): P8 and P10 to P13 where two majorities count.

use crate::kit::{Disk, ELECTION, HEARTBEAT, NEWS_DELAY, Net, id};
use althing_raft::PROMOTE_LAG_MAX;
use althing_raft::entry::{ConfigState, ConfigStep, Entry, JointTarget};
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_raft::io::{DropReason, Input, RequestId, Role};
use althing_raft::message::{Body, Message};
use std::collections::BTreeSet;

fn set(members: &[u64]) -> BTreeSet<MemberId> {
    members.iter().copied().map(id).collect()
}

fn target(voters: &[u64], learners: &[u64]) -> ConfigStep {
    ConfigStep::EnterJoint(JointTarget {
        voters: set(voters),
        learners: set(learners),
    })
}

fn config(net: &Net, member: u64) -> ConfigState {
    net.raft(member).view().soft.config
}

/// Three voters, led by 1, and learners that have caught up.
fn with_learners(learners: &[u64]) -> Net {
    let mut net = Net::new(3);
    net.elect(1);
    for &learner in learners {
        net.add(learner, Disk::default());
        net.change(id(1), ConfigStep::AddLearner(id(learner)));
        net.run(HEARTBEAT * 2);
    }
    net
}

/// A joint configuration of 1, 2, 3 and of learners that get votes, which holds at everybody who is reached, and whose end was
/// lost on the way. Learners that stay are cut off before.
fn stuck_in_joint(voters: &[u64], learners: &[u64]) -> Net {
    let mut net = with_learners(&[voters, learners].concat());
    learners.iter().for_each(|learner| net.isolate(*learner));
    net.change(id(1), target(voters, learners));
    let reached: Vec<u64> = [&[1, 2, 3], voters].concat();
    for _ in 0..1_000 {
        let joint = config(&net, 1);
        net.mail.retain(|message| {
            let beyond = |entry: &Entry| joint.is_joint() && entry.index > joint.index;
            !matches!(&message.body, Body::Append { entries, .. } if entries.iter().any(beyond))
        });
        if reached.iter().all(|member| config(&net, *member).is_joint()) {
            net.mail.clear();
            return net;
        }
        if net.mail.is_empty() {
            net.now = net.now.after(HEARTBEAT);
            net.step(id(1), Input::Tick);
        } else {
            net.deliver_one(0);
        }
    }
    panic!("the joint configuration does not spread");
}

#[test]
fn all_voters_are_exchanged_at_once_and_the_group_goes_on() {
    let mut net = with_learners(&[4, 5, 6]);
    net.propose(id(1), "before");
    net.settle();
    net.change(id(1), target(&[4, 5, 6], &[]));
    net.run(ELECTION);
    let leader = net.leader().unwrap();
    assert!(set(&[4, 5, 6]).contains(&leader), "{leader} leads");
    net.propose(leader, "after");
    net.run(ELECTION);
    for member in [4, 5, 6] {
        assert_eq!(net.commands(member), ["before", "after"]);
        assert_eq!(
            (config(&net, member).voters, config(&net, member).outgoing),
            (set(&[4, 5, 6]), set(&[]))
        );
    }
    for member in [1, 2, 3] {
        assert_eq!(
            net.raft(member).view().soft.role,
            Role::Learner,
            "{member} hears that it left"
        );
    }
    net.run(ELECTION * 5);
    assert_eq!(net.leader(), Some(leader), "and those who left disturb nobody");
}

#[test]
fn a_voter_can_become_a_learner_and_still_gets_the_log() {
    let mut net = with_learners(&[4]);
    net.change(id(1), target(&[1, 2, 4], &[3]));
    net.run(ELECTION);
    assert_eq!(net.leader(), Some(id(1)), "a leader that stays leads on");
    assert_eq!(net.raft(3).view().soft.role, Role::Learner);
    net.propose(id(1), "x");
    net.run(ELECTION);
    assert_eq!(net.commands(3), ["x"]);
    // Its vote does not count any more.
    net.isolate(2);
    net.isolate(4);
    net.propose(id(1), "y");
    net.settle();
    assert_eq!(net.commands(1), ["x"]);
}

#[test]
fn neither_half_of_a_joint_configuration_commits_alone() {
    for half in [[2, 3], [4, 5]] {
        let mut net = stuck_in_joint(&[4, 5, 6], &[]);
        let before = net.commands(1);
        for member in half {
            net.isolate(member);
        }
        net.propose(id(1), "x");
        for _ in 0..3 {
            net.now = net.now.after(HEARTBEAT);
            net.step(id(1), Input::Tick);
            net.settle();
        }
        assert_eq!(net.commands(1), before, "without {half:?}");
        net.cut.clear();
        net.run(ELECTION * 4);
        assert!(net.commands(4).ends_with(&["x".to_owned()]) || net.commands(4) == before);
    }
}

#[test]
fn neither_half_of_a_joint_configuration_elects_alone() {
    for lost in [[1, 2], [4, 5]] {
        let mut net = stuck_in_joint(&[4, 5, 6], &[]);
        net.leaders.clear();
        for member in [1, lost[0], lost[1]] {
            net.isolate(member);
        }
        net.run(ELECTION * 6);
        assert!(
            net.leaders.is_empty(),
            "without {lost:?} somebody was elected: {:?}",
            net.leaders
        );
        net.cut.clear();
        net.run(ELECTION * 8);
        let leader = net.leader().expect("together they elect one");
        assert!(set(&[4, 5, 6]).contains(&leader), "who is of the target");
    }
}

#[test]
fn p8_a_joint_configuration_holds_when_applied_and_one_change_is_under_way() {
    let mut net = with_learners(&[4]);
    net.instant_disk = false;
    net.change(id(1), target(&[1, 2, 4], &[]));
    assert!(!config(&net, 1).is_joint(), "proposed is not applied");
    net.change(id(1), ConfigStep::AddLearner(id(5)));
    assert_eq!(net.nodes[&id(1)].dropped, [(RequestId(9), DropReason::ConfigInFlight)]);
    net.instant_disk = true;
    for member in 1..=4 {
        net.persist(id(member), usize::MAX);
    }
    net.run(ELECTION);
    assert_eq!(
        (config(&net, 1).voters, config(&net, 1).is_joint()),
        (set(&[1, 2, 4]), false)
    );

    let mut net = stuck_in_joint(&[4, 5, 6], &[]);
    net.change(id(1), ConfigStep::Promote(id(4)));
    assert_eq!(net.nodes[&id(1)].dropped, [(RequestId(9), DropReason::ConfigInFlight)]);
}

#[test]
fn p8_a_joint_configuration_that_held_is_not_forgotten_in_a_crash() {
    let mut net = stuck_in_joint(&[4, 5, 6], &[]);
    for member in 1..=6 {
        net.crash(id(member));
        net.boot(id(member));
        assert!(config(&net, member).is_joint(), "{member} went back to one majority");
    }
}

#[test]
fn targets_that_make_no_sense_are_refused() {
    let mut net = with_learners(&[4]);
    net.add(5, Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(5)));
    net.settle();
    net.isolate(5);
    for _ in 0..=PROMOTE_LAG_MAX {
        net.propose(id(1), "x");
    }
    net.settle();
    let table = [
        (target(&[], &[1]), DropReason::ConfigInvalid),
        (target(&[1, 2, 9], &[]), DropReason::ConfigInvalid),
        (target(&[1, 2, 3], &[3]), DropReason::ConfigInvalid),
        (target(&[1, 2, 3], &[4, 5]), DropReason::ConfigInvalid),
        (target(&[1, 2, 5], &[]), DropReason::LearnerBehind),
        (ConfigStep::LeaveJoint, DropReason::ConfigInvalid),
    ];
    for (step, reason) in table {
        net.nodes.get_mut(&id(1)).unwrap().dropped.clear();
        net.change(id(1), step.clone());
        assert_eq!(net.nodes[&id(1)].dropped, [(RequestId(9), reason)], "{step:?}");
    }
}

#[test]
fn p10_a_leader_that_leaves_leads_until_the_leaving_is_committed_and_hands_over() {
    let mut net = with_learners(&[4, 5, 6]);
    let before = net.now;
    net.change(id(1), target(&[4, 5, 6], &[]));
    let mut was_joint = false;
    while !net.mail.is_empty() {
        net.deliver_one(0);
        let view = net.raft(1).view();
        was_joint |= view.soft.config.is_joint();
        if view.soft.role == Role::Leader {
            assert!(view.soft.config.is_voter(id(1)), "it leads a group that it is not in");
        } else {
            // It stepped down because somebody else of the target stood, who has the end of the joint configuration.
            assert!(was_joint);
        }
    }
    let leader = net.leader().unwrap();
    assert!(set(&[4, 5, 6]).contains(&leader));
    assert_eq!(net.now, before, "nobody had to time out");
    assert!(!config(&net, leader.0).is_joint());
    assert_eq!(net.leaders.len(), 2, "one hand-over, no contest: {:?}", net.leaders);
}

#[test]
fn p10_a_leader_elected_with_its_own_removal_in_the_log_hands_over() {
    // 1 proposes to remove 2, tells only 2, and is gone: 2 must lead, commit the removal and make room.
    let mut net = Net::new(4);
    net.elect(1);
    net.isolate(3);
    net.isolate(4);
    net.change(id(1), ConfigStep::Remove(id(2)));
    // 2 has the entry; its answer is lost.
    net.deliver_one(0);
    net.mail.clear();
    net.cut.clear();
    net.isolate(1);
    net.now = net.now.after(ELECTION * 3);
    net.step(id(2), Input::Tick);
    net.run(ELECTION);
    assert!(
        net.leaders.values().any(|leader| *leader == id(2)),
        "2 led for a moment"
    );
    let leader = net.leader().expect("somebody leads what 2 has left");
    assert_ne!(leader, id(2));
    assert_eq!(config(&net, leader.0).voters, set(&[1, 3, 4]));
    net.cut.clear();
    net.run(ELECTION);
    assert_eq!(net.raft(2).view().soft.role, Role::Learner);
    assert_eq!(config(&net, 1).voters, set(&[1, 3, 4]));
}

#[test]
fn p11_a_leader_that_finds_a_joint_configuration_ends_it() {
    let mut net = stuck_in_joint(&[4, 5, 6], &[]);
    // Whoever began it never comes back.
    net.crash(id(1));
    net.run(ELECTION * 6);
    let leader = net.leader().expect("both halves have a majority without 1");
    for member in [4, 5, 6] {
        assert_eq!(
            (config(&net, member).voters, config(&net, member).is_joint()),
            (set(&[4, 5, 6]), false)
        );
    }
    assert!(set(&[4, 5, 6]).contains(&leader));
}

#[test]
fn p11_a_joint_entry_of_a_lost_leader_is_carried_to_its_end() {
    // The joint entry is in the log of one follower, not committed, when its leader is lost.
    let mut net = with_learners(&[4]);
    net.isolate(3);
    net.isolate(4);
    net.change(id(1), target(&[2, 3, 4], &[]));
    net.deliver_one(0);
    net.mail.clear();
    net.crash(id(1));
    net.cut.clear();
    net.elect(2);
    net.run(ELECTION);
    for member in [2, 3, 4] {
        assert_eq!(
            (config(&net, member).voters, config(&net, member).is_joint()),
            (set(&[2, 3, 4]), false)
        );
    }
}

#[test]
fn p12_a_leader_that_left_and_is_switched_off_at_once_leaves_a_group_that_works() {
    // Whoever runs the cluster switches off whom a leader no longer counts, at the first moment.
    let mut net = with_learners(&[4, 5, 6]);
    net.change(id(1), target(&[4, 5, 6], &[]));
    let mut off = BTreeSet::new();
    for _ in 0..400 {
        if net.mail.is_empty() {
            net.next_tick();
        } else {
            net.deliver_one(0);
        }
        let Some(leader) = net.leader() else { continue };
        let says = config(&net, leader.0);
        for member in 1..=6 {
            if !says.contains(id(member)) && off.insert(member) {
                assert_ne!(leader, id(member), "a leader must survive the change that it announces");
                net.crash(id(member));
            }
        }
    }
    assert_eq!(off, BTreeSet::from([1, 2, 3]));
    net.run(ELECTION * 6);
    let leader = net.leader().expect("the target leads itself");
    net.propose(leader, "x");
    net.run(ELECTION);
    assert_eq!(net.commands(leader.0), ["x"]);
}

#[test]
fn p12_a_newcomer_is_not_locked_out_by_longer_logs_of_those_who_left() {
    let mut net = stuck_in_joint(&[4], &[]);
    let joint = config(&net, 1).index;
    let end = joint.next();
    // The newcomer gets the end of the joint configuration, and its acknowledgement takes a while.
    let mut held = Vec::new();
    for _ in 0..1_000 {
        let acknowledges = |message: &Message| matches!(message.body, Body::AppendAccepted { last, .. } if last >= end);
        let (late, rest) = std::mem::take(&mut net.mail)
            .into_iter()
            .partition::<Vec<_>, _>(|message| message.from == id(4) && acknowledges(message));
        held.extend(late);
        net.mail = rest;
        if net.raft(4).view().last.index == end {
            break;
        }
        if net.mail.is_empty() {
            net.now = net.now.after(HEARTBEAT);
            net.step(id(1), Input::Tick);
        } else {
            net.deliver_one(0);
        }
    }
    net.propose(id(1), "never reaches the newcomer");
    net.mail.extend(held);
    // It gets neither what follows nor that the end is committed.
    for _ in 0..1_000 {
        net.mail.retain(|message| {
            let follows = |entry: &Entry| entry.index > end;
            let reveals = matches!(&message.body, Body::Append { entries, commit, .. } if *commit >= end || entries.iter().any(follows))
                || matches!(message.body, Body::Heartbeat { commit, .. } if commit >= end)
                || message.body == Body::TimeoutNow;
            message.to != id(4) || !reveals
        });
        if [2, 3].iter().all(|member| !config(&net, *member).is_joint()) {
            break;
        }
        if net.mail.is_empty() {
            net.now = net.now.after(HEARTBEAT);
            net.step(id(1), Input::Tick);
        } else {
            net.deliver_one(0);
        }
    }
    net.isolate(4);
    net.run(ELECTION * 3);
    assert!(config(&net, 4).is_joint(), "the newcomer does not know");
    assert!(
        !config(&net, 1).is_joint(),
        "the leader has lost its quorum and has left"
    );
    assert!(net.raft(1).view().last.index > net.raft(4).view().last.index);
    net.cut.clear();
    net.run(ELECTION * 6);
    assert_eq!(net.leader(), Some(id(4)));
    assert_eq!(config(&net, 4).voters, set(&[4]));
    net.propose(id(4), "after");
    net.run(ELECTION);
    assert_eq!(net.commands(4), ["after"]);
}

#[test]
fn p13_a_snapshot_carries_a_joint_configuration_whole() {
    let mut net = stuck_in_joint(&[4, 5], &[6]);
    assert!(!config(&net, 6).is_joint());
    let reached = net.nodes[&id(1)].reached;
    net.step(id(1), Input::Compact(reached));
    net.cut.clear();
    for _ in 0..20 {
        if config(&net, 6).is_joint() {
            break;
        }
        net.now = net.now.after(HEARTBEAT);
        net.step(id(1), Input::Tick);
        while !net.mail.is_empty() && !config(&net, 6).is_joint() {
            net.deliver_one(0);
        }
    }
    let expected = ConfigState {
        voters: set(&[4, 5]),
        outgoing: set(&[1, 2, 3]),
        learners: set(&[6]),
        ..config(&net, 6)
    };
    assert_eq!(config(&net, 6), expected);
    assert_eq!(net.raft(6).view().first, reached.next(), "it came by snapshot");
}

#[test]
fn a_stand_that_the_leader_has_given_up_waiting_for_is_forgotten() {
    // 2 is told to stand while it may not; by the time it may, the moment has passed.
    let mut net = Net::new(3);
    net.elect(1);
    net.instant_disk = false;
    net.change(id(1), ConfigStep::AddLearner(id(4)));
    net.settle();
    net.persist(id(2), usize::MAX);
    // From here on 2 writes nothing, so the commit index that it hears of is not durable.
    for _ in 0..6 {
        net.persist(id(1), usize::MAX);
        net.persist(id(3), usize::MAX);
        net.settle();
    }
    net.run(NEWS_DELAY);
    let term = net.raft(2).view().soft.term;
    let told = Message {
        group: GroupId::FIRST_SHARD,
        from: id(1),
        to: id(2),
        term,
        body: Body::TimeoutNow,
    };
    net.step(id(2), Input::Message(told));
    assert_eq!(
        net.raft(2).view().soft.role,
        Role::Follower,
        "a committed change is not handed out yet"
    );
    net.now = net.now.after(ELECTION);
    // The leader is heard all the while.
    let beat = Message {
        group: GroupId::FIRST_SHARD,
        from: id(1),
        to: id(2),
        term,
        body: Body::Heartbeat {
            commit: Index(0),
            round: 0,
        },
    };
    net.step(id(2), Input::Message(beat));
    net.persist(id(2), usize::MAX);
    assert_eq!(net.raft(2).view().soft.role, Role::Follower);
    assert_eq!(net.raft(2).view().soft.term, term);
}
