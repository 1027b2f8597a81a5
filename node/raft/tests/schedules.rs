//! Random schedules: loss, repetition, reordering, crashes that forget unsynced writes, transfers, membership changes.
//! Safety is asserted all along (by the kit), progress after the network heals.

#![allow(clippy::unwrap_used)]

mod kit;

use althing_raft::entry::{ConfigStep, JointTarget};
use althing_raft::ids::MemberId;
use althing_raft::io::Input;
use althing_raft::roster::{Footprint, ReadMode, ResponderRange, Responders, Span};
use kit::{Disk, ELECTION, Net, Rng, command, id};
use std::time::Duration;

/// Runs one schedule; the seed names everything that happens in it. With leases, members read in all modes all along, and the kit
/// checks every answer.
fn run(seed: u64, leases: bool) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut net = Net::new(0);
    // Every other group hibernates as soon as it can. What its members hear of each other's nodes may be wrong: it must not matter.
    net.hibernate_after = seed.is_multiple_of(2).then_some(Duration::ZERO);
    net.born(1 + 2 * rng.below(3));
    net.instant_disk = rng.below(4) == 0;
    net.inflight_max = 1 + usize::try_from(rng.below(8)).unwrap();
    net.inflight_bytes_max = usize::try_from(rng.below(600)).unwrap();
    let mut proposed = 0;
    let mut newest = u64::try_from(net.nodes.len()).unwrap();
    for _ in 0..600 {
        let members: Vec<MemberId> = net.nodes.keys().copied().collect();
        let pick = members[usize::try_from(rng.below(members.len() as u64)).unwrap()];
        match rng.below(if leases { 107 } else { 104 }) {
            0..=54 if !net.mail.is_empty() => {
                // Mostly in order, sometimes not.
                let window = if rng.below(5) == 0 { net.mail.len() } else { 1 };
                let at = usize::try_from(rng.below(window as u64)).unwrap();
                match rng.below(40) {
                    0 => {
                        let lost = net.mail.remove(at);
                        net.lose(&lost);
                    }
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
                let key = if leases {
                    format!("k{}=", rng.below(3))
                } else {
                    String::new()
                };
                net.propose(pick, &format!("{key}c{proposed}"));
            }
            88 | 89 => {
                let keys = if !leases || rng.below(2) == 0 {
                    Footprint::All
                } else {
                    Footprint::key(command(&format!("k{}", rng.below(3))))
                };
                // Each member: a committed write is looked for where it may be missing.
                for member in members {
                    if leases || member == pick {
                        net.read(member.0, keys.clone());
                    }
                }
            }
            90 => {
                net.crash(pick);
                net.boot(pick);
            }
            91 => net.isolate(pick.0),
            92 => net.cut.clear(),
            93 if net.hibernate_after.is_some() => {
                let of = members[usize::try_from(rng.below(members.len() as u64)).unwrap()];
                let silent = rng.below(3) > 0;
                net.step(pick, if silent { Input::Silent(of) } else { Input::Returned(of) });
            }
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
            _ if leases && net.leader().is_some() => {
                let lease = ELECTION * (1 + u32::try_from(rng.below(3)).unwrap()) / 2;
                let mode = match rng.below(6) {
                    0 => ReadMode::ReadIndex,
                    1 => ReadMode::LeaderLease,
                    _ => ReadMode::RosterLease,
                };
                let some = ResponderRange {
                    span: Span::Range {
                        start: command("k1"),
                        end: None,
                    },
                    members: [id(1), id(2)].into(),
                };
                let responders = match rng.below(4) {
                    0 => Responders::Ranges(vec![some]),
                    _ => Responders::All,
                };
                net.set_reads(mode, responders, lease);
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
    // Whoever was away was silent.
    for &member in &members {
        for &of in &members {
            net.step(member, Input::Silent(of));
            net.step(member, Input::Returned(of));
        }
    }
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
    let views = || {
        net.nodes
            .values()
            .filter_map(|node| Some(node.raft.as_ref()?.view()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        expected.last().map(String::as_str),
        Some("last"),
        "seed {seed}: the command did not commit; {:#?}",
        views()
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
    node.disk.snapshot.reads = node
        .raft
        .as_ref()
        .map(|raft| raft.view().lease.reads)
        .unwrap_or_default();
    node.disk.start = position;
    node.disk.entries.retain(|e| e.index > index);
    net.step(member, Input::Compact(index));
}

#[test]
fn no_schedule_breaks_safety_and_all_end_in_agreement() {
    for seed in 0..1_500 {
        let outcome = std::panic::catch_unwind(|| run(seed, false));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn no_schedule_with_leases_lets_a_read_miss_what_was_committed_before_it() {
    for seed in 0..3_000 {
        let outcome = std::panic::catch_unwind(|| run(seed, true));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
