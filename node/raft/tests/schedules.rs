//! Random schedules: loss, repetition, reordering, crashes that forget unsynced writes, transfers, membership changes.
//! Safety is asserted all along (by the kit), progress after the network heals.

#![allow(clippy::unwrap_used)]

mod kit;

use althing_raft::entry::{ConfigStep, JointTarget};
use althing_raft::ids::MemberId;
use althing_raft::io::{Input, RequestId};
use kit::{Disk, ELECTION, Net, Rng, id};

/// Runs one schedule; the seed names everything that happens in it.
fn run(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut net = Net::new(1 + 2 * rng.below(3));
    net.instant_disk = rng.below(4) == 0;
    net.inflight_max = 1 + usize::try_from(rng.below(8)).unwrap();
    net.inflight_bytes_max = usize::try_from(rng.below(600)).unwrap();
    let mut proposed = 0;
    let mut newest = u64::try_from(net.nodes.len()).unwrap();
    for _ in 0..600 {
        let members: Vec<MemberId> = net.nodes.keys().copied().collect();
        let pick = members[usize::try_from(rng.below(members.len() as u64)).unwrap()];
        match rng.below(104) {
            0..=54 if !net.mail.is_empty() => {
                // Mostly in order, sometimes not.
                let window = if rng.below(5) == 0 { net.mail.len() } else { 1 };
                let at = usize::try_from(rng.below(window as u64)).unwrap();
                match rng.below(40) {
                    0 => drop(net.mail.remove(at)),
                    1 => {
                        let again = net.mail[at].clone();
                        net.mail.push(again);
                    }
                    _ => net.deliver_one(at),
                }
            }
            0..=64 => net.next_tick(),
            65..=77 => net.persist(pick, 1),
            78..=87 => {
                proposed += 1;
                net.propose(pick, &format!("c{proposed}"));
            }
            88 | 89 => net.step(pick, Input::ReadIndex(RequestId(proposed))),
            90 => {
                net.crash(pick);
                net.boot(pick);
            }
            91 => net.isolate(pick.0),
            92 | 93 => net.cut.clear(),
            94 => net.step(pick, Input::TransferLeader(None)),
            95 => {
                let reached = net.nodes[&pick].reached;
                if rng.below(3) == 0 {
                    // The kit's state machine is durable up to what it applied.
                    compact(&mut net, pick, reached);
                }
            }
            96 if newest < 7 => {
                newest += 1;
                net.add(newest, Disk::default());
                net.change(pick, ConfigStep::AddLearner(id(newest)));
            }
            97 => net.change(pick, ConfigStep::AddLearner(id(1 + rng.below(newest)))),
            98 => net.change(pick, ConfigStep::Promote(id(1 + rng.below(newest)))),
            99 => net.change(pick, ConfigStep::Remove(id(1 + rng.below(newest)))),
            100..=103 => {
                // Each member present gets a vote, or none, or leaves.
                let present = net.nodes[&pick].config.members();
                let mut target = JointTarget::default();
                for member in present {
                    match rng.below(5) {
                        0..=2 => drop(target.voters.insert(member)),
                        3 => drop(target.learners.insert(member)),
                        _ => {}
                    }
                }
                net.change(pick, ConfigStep::EnterJoint(target));
            }
            _ => {}
        }
    }
    // Liveness: everything heals, and a command gets through everywhere.
    net.cut.clear();
    net.instant_disk = true;
    let members: Vec<MemberId> = net.nodes.keys().copied().collect();
    for &member in &members {
        net.persist(member, usize::MAX);
    }
    net.settle();
    net.run(ELECTION * 12);
    let leader = net
        .leader()
        .unwrap_or_else(|| panic!("seed {seed}: nobody leads after healing"));
    net.propose(leader, "last");
    net.run(ELECTION * 6);
    let leader = net
        .leader()
        .unwrap_or_else(|| panic!("seed {seed}: the leader is gone"));
    let config = net.raft(leader.0).view().soft.config;
    assert!(!config.is_joint(), "seed {seed}: a joint configuration was not left");
    let voters = config.voters;
    let expected = net.commands(leader.0);
    assert_eq!(
        expected.last().map(String::as_str),
        Some("last"),
        "seed {seed}: the command did not commit"
    );
    for voter in voters {
        assert_eq!(
            net.commands(voter.0),
            expected,
            "seed {seed}: member {voter} lacks commands"
        );
    }
}

fn compact(net: &mut Net, member: MemberId, index: althing_raft::ids::Index) {
    let node = net.nodes.get_mut(&member).unwrap();
    // Nothing may be forgotten that is not durable: the snapshot on disk comes first.
    let Some(entry) = node.applied.get(&index) else {
        return;
    };
    let position = entry.position();
    let durable = node.disk.entries.iter().any(|e| e.position() == position);
    if !durable || position.index <= node.disk.start.index {
        return;
    }
    node.disk.snapshot.position = position;
    node.disk.snapshot.config = node.config.clone();
    node.disk.start = position;
    node.disk.entries.retain(|e| e.index > index);
    net.step(member, Input::Compact(index));
}

#[test]
fn no_schedule_breaks_safety_and_all_end_in_agreement() {
    for seed in 0..1_500 {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
