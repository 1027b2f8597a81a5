//! Read leases: one scenario per rule of the protocol, pitfall (P) and published defect (D) that it must not have.

#![allow(clippy::unwrap_used)]

mod kit;

use althing_raft::entry::ConfigStep;
use althing_raft::ids::{Index, MemberId, Now};
use althing_raft::io::{Input, LeaseView, RequestId};
use althing_raft::message::Body;
use althing_raft::roster::{Footprint, ReadMode, ResponderRange, Responders, Span};
use kit::{ELECTION, HEARTBEAT, Net, command, id};
use std::time::Duration;

/// Length of the leases in these tests.
const LEASE: Duration = Duration::from_millis(1000);
/// What a promise of that length lasts at most, by the kit's drift bound of 2 %.
const PROMISE: Duration = Duration::from_millis(1020);

fn key(name: &str) -> Footprint {
    Footprint::key(command(name))
}

fn lease(net: &Net, member: u64) -> LeaseView {
    net.raft(member).view().lease
}

/// As of the member's last step.
fn open(net: &Net, member: u64) -> bool {
    lease(net, member).open
}

/// As of now.
fn open_now(net: &mut Net, member: u64) -> bool {
    net.step(id(member), Input::Tick);
    open(net, member)
}

/// Members `1..=n` under leader 1, reads answered in this mode, everything settled.
fn cluster(n: u64, mode: ReadMode) -> Net {
    cluster_with(n, mode, LEASE)
}

fn cluster_with(n: u64, mode: ReadMode, lease: Duration) -> Net {
    let mut net = Net::new(n);
    net.elect(1);
    net.set_reads(mode, Responders::All, lease);
    net.settle();
    net.run(HEARTBEAT * 10);
    net
}

/// Cuts one direction.
fn cut(net: &mut Net, from: u64, to: u64) {
    net.cut.insert((id(from), id(to)));
}

fn write(net: &mut Net, text: &str) {
    let leader = net.leader().unwrap();
    net.propose(leader, text);
    net.settle();
}

fn committed(net: &Net, text: &str) -> bool {
    (1..=net.nodes.len() as u64).any(|member| net.commands(member).iter().any(|seen| seen == text))
}

/// Lets time pass in steps until the condition holds; how long it took.
fn time_until(net: &mut Net, most: Duration, holds: impl Fn(&Net) -> bool) -> Duration {
    let start = net.now;
    while !holds(net) {
        assert!(net.now.since(start) < most, "not within {most:?}");
        net.run(Duration::from_millis(5));
    }
    net.now.since(start)
}

#[test]
fn without_leases_nobody_reads_locally_and_nothing_is_promised() {
    let mut net = Net::new(3);
    net.elect(1);
    write(&mut net, "a=1");
    assert!(!net.reads_locally(1, key("a")) && !net.reads_locally(2, key("a")));
    let view = lease(&net, 2);
    assert_eq!((view.adopted.term.0, view.promises.len(), view.roster), (0, 0, None));
}

#[test]
fn under_a_leader_lease_the_leader_reads_without_a_message_and_a_follower_asks_it_once() {
    let mut net = cluster(3, ReadMode::LeaderLease);
    write(&mut net, "a=1");
    // Everybody has heard of it.
    net.run(kit::NEWS_DELAY);
    assert!(net.reads_locally(1, key("a")));
    assert!(!open(&net, 2));
    let before = net.mail.len();
    let request = net.read(2, key("a"));
    assert_eq!(net.mail.len(), before + 1, "one question");
    net.half_round();
    assert_eq!(
        net.mail.len(),
        1,
        "one answer, and no round of heartbeats: the lease stands for it"
    );
    net.settle();
    assert!(net.answered(2, request));
}

#[test]
fn under_a_roster_every_responder_reads_without_a_message() {
    let mut net = cluster(3, ReadMode::RosterLease);
    write(&mut net, "a=1");
    for member in 1..=3 {
        assert!(net.reads_locally(member, key("a")), "member {member}");
        assert!(net.reads_locally(member, Footprint::All), "member {member}, all keys");
    }
    assert_eq!(lease(&net, 3).counts.local, 2);
}

#[test]
fn a_write_waits_for_every_responder_of_its_keys_and_not_for_those_of_others() {
    let mut net = Net::new(3);
    net.elect(1);
    let range = |start: &str, end: &str, member| ResponderRange {
        span: Span::Range {
            start: command(start),
            end: Some(command(end)),
        },
        members: [id(member)].into(),
    };
    let ranges = vec![range("a", "b", 2), range("b", "c", 3)];
    net.set_reads(ReadMode::RosterLease, Responders::Ranges(ranges), LEASE);
    net.settle();
    net.run(HEARTBEAT * 10);
    assert!(net.reads_locally(2, key("a1")) && net.reads_locally(3, key("b1")));
    assert!(!net.reads_locally(2, key("b1")), "another's range");
    assert!(!net.reads_locally(2, Footprint::All), "more than its range");
    net.settle();
    cut(&mut net, 1, 3);
    write(&mut net, "a1=x");
    assert!(committed(&net, "a1=x"), "its responder has it, and so has a majority");
    write(&mut net, "b1=x");
    assert!(!committed(&net, "b1=x"), "its responder lacks it");
    net.cut.clear();
    net.run(HEARTBEAT * 4);
    assert!(committed(&net, "b1=x"));
}

#[test]
fn d1_a_held_read_waits_until_the_leader_has_committed_not_for_a_majority_of_copies() {
    let mut net = cluster(5, ReadMode::RosterLease);
    write(&mut net, "a=1");
    cut(&mut net, 1, 5);
    write(&mut net, "a=2");
    // 1 to 4 have it: a majority and more. 5 does not, and still answers the old value.
    assert!(!committed(&net, "a=2"));
    let early = net.read(2, key("a"));
    assert!(!net.answered(2, early), "held: 5 could answer the old value after it");
    assert!(net.reads_locally(5, key("a")));
    assert!(net.reads_locally(2, key("b")), "other keys are not disturbed");
    net.cut.clear();
    time_until(&mut net, ELECTION / 2, |net| net.answered(2, early));
    assert_eq!(lease(&net, 2).counts.held, 1);
}

#[test]
fn a_held_read_asks_the_leader_when_its_write_does_not_commit_in_time() {
    let mut net = cluster(5, ReadMode::RosterLease);
    cut(&mut net, 1, 5);
    cut(&mut net, 1, 2);
    net.now = net.now.after(Duration::from_millis(1));
    net.propose(id(1), "a=2");
    net.cut.remove(&(id(1), id(2)));
    net.run(HEARTBEAT);
    let request = net.read(2, key("a"));
    let took = time_until(&mut net, ELECTION * 3, |net| net.answered(2, request));
    assert!(took <= ELECTION, "{took:?}");
}

#[test]
fn d2_a_promise_outlives_the_news_of_a_newer_roster() {
    // 3 is cut off from 2 first and from 1 later, so 1's promise outlives 2's. A newer roster must wait for both.
    let mut net = cluster(3, ReadMode::RosterLease);
    for (from, to) in [(2, 3), (3, 2)] {
        cut(&mut net, from, to);
    }
    net.run(HEARTBEAT * 5);
    assert!(open(&net, 3), "two of three promises will do");
    net.isolate(3);
    let demoted = time_until(&mut net, LEASE, |net| {
        lease(net, 1).minted > Some(lease(net, 3).adopted)
    });
    write(&mut net, "a=1");
    assert!(
        open(&net, 3) && !committed(&net, "a=1"),
        "3 may still answer, so nothing commits"
    );
    let took = time_until(&mut net, LEASE * 2, |net| committed(net, "a=1"));
    assert!(!open_now(&mut net, 3));
    assert!(demoted + took <= PROMISE + HEARTBEAT * 2, "{demoted:?} {took:?}");
}

#[test]
fn d3_a_higher_term_alone_adopts_nothing_and_the_roster_of_its_leader_does() {
    let mut net = cluster(3, ReadMode::RosterLease);
    let before = lease(&net, 3).adopted;
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    // Up to the vote, and no further.
    net.half_round();
    net.half_round();
    let term = net.raft(3).view().soft.term;
    assert!(term > before.term);
    assert_eq!(lease(&net, 3).adopted, before);
    assert!(!open(&net, 3), "of another term than the roster: no local reads");
    net.settle();
    assert_eq!(lease(&net, 3).adopted.term, term);
    net.run(HEARTBEAT * 10);
    assert!(open(&net, 3) && open(&net, 2));
}

#[test]
fn d4_p24_a_voter_that_restarts_stays_bound_by_the_promises_it_forgot() {
    // Longer than an election, so that only the quarantine can hold the new leader back.
    let long = LEASE * 4;
    let mut net = cluster_with(3, ReadMode::RosterLease, long);
    net.isolate(3);
    for member in [1, 2] {
        net.crash(id(member));
        net.boot(id(member));
    }
    let start = net.now;
    assert!(lease(&net, 2).quarantine.is_some());
    net.elect_within(&[1, 2]);
    write(&mut net, "a=1");
    while !committed(&net, "a=1") {
        net.run(Duration::from_millis(5));
        assert!(
            !(open_now(&mut net, 3) && committed(&net, "a=1")),
            "a write committed while 3 could answer without it"
        );
        assert!(net.now.since(start) < long * 2);
    }
    assert!(net.now.since(start) >= PROMISE * 4, "after {:?}", net.now.since(start));
}

#[test]
fn a_restart_while_everybody_is_there_is_let_go_by_them_and_waits_for_nothing() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.crash(id(1));
    net.boot(id(1));
    net.crash(id(2));
    net.boot(id(2));
    let start = net.now;
    net.elect_within(&[1, 2, 3]);
    write(&mut net, "a=1");
    net.settle();
    // The clock of the kit stood still but for the election itself.
    let took = time_until(&mut net, LEASE, |net| committed(net, "a=1"));
    assert!(took <= HEARTBEAT * 3, "{took:?} after {:?}", net.now.since(start));
}

#[test]
fn after_a_restart_nobody_is_let_go_early_if_members_of_an_earlier_configuration_may_hold_promises() {
    let mut net = cluster(3, ReadMode::RosterLease);
    // The roster was made for another configuration than the one that the state machine shows.
    net.crash(id(2));
    net.nodes.get_mut(&id(2)).unwrap().config.index = Index(1);
    net.boot(id(2));
    let until = lease(&net, 2).quarantine.unwrap();
    net.set_reads(ReadMode::LeaderLease, Responders::None, LEASE);
    net.run(HEARTBEAT * 5);
    assert_eq!(lease(&net, 2).quarantine, Some(until));
    net.run(PROMISE);
    assert_eq!((lease(&net, 2).quarantine, lease(&net, 2).pending), (None, None));
}

#[test]
fn a_restart_does_not_take_a_member_back_to_an_older_roster() {
    let mut net = cluster(3, ReadMode::RosterLease);
    let old = lease(&net, 2).roster.unwrap();
    net.set_reads(ReadMode::LeaderLease, Responders::None, LEASE);
    net.settle();
    net.run(HEARTBEAT * 3);
    let new = lease(&net, 2).adopted;
    assert!(new > old.ballot);
    net.crash(id(2));
    net.boot(id(2));
    net.mail.clear();
    net.run(PROMISE + HEARTBEAT);
    let term = net.raft(2).view().soft.term;
    net.step(
        id(2),
        Input::Message(althing_raft::message::Message {
            group: althing_raft::ids::GroupId::FIRST_SHARD,
            from: old.leader,
            to: id(2),
            term,
            body: Body::Roster { roster: old },
        }),
    );
    assert!(lease(&net, 2).adopted >= new && lease(&net, 2).pending.is_none());
}

#[test]
fn d5_p21_p22_expiry_needs_no_timer_and_counts_from_when_the_lease_was_asked_for() {
    let mut net = cluster(3, ReadMode::RosterLease);
    assert!(open(&net, 3));
    net.isolate(3);
    net.run(HEARTBEAT);
    let until = lease(&net, 3).grants.iter().map(|grant| grant.until).max().unwrap();
    // No tick comes; the process was stopped. The next thing it hears is a read.
    net.now = Now(until.0 - 1);
    let request = net.read(3, key("a"));
    assert!(net.answered(3, request));
    net.now = until;
    let request = net.read(3, key("a"));
    assert!(!net.answered(3, request));
}

#[test]
fn p22_a_grant_that_was_long_under_way_is_worth_what_is_left_of_it() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.mail.clear();
    // 3 asks; the answers take three quarters of a lease.
    net.run_without_delivery(HEARTBEAT);
    let mut asked = Now(0);
    let mut requests = Vec::new();
    for message in net.mail.drain(..) {
        if let (3, Body::LeaseRequest { sent, .. }) = (message.from.0, &message.body) {
            asked = *sent;
            requests.push(message);
        }
    }
    assert_eq!(requests.len(), 2);
    for request in requests {
        net.step(request.to, Input::Message(request.clone()));
    }
    let mut grants: Vec<_> = net.mail.drain(..).collect();
    grants.retain(|message| matches!(message.body, Body::LeaseGrant { .. }));
    net.now = asked.after(LEASE * 3 / 4);
    for grant in grants {
        net.step(id(3), Input::Message(grant));
    }
    let until = lease(&net, 3).grants.iter().map(|grant| grant.until).max();
    assert_eq!(until, Some(asked.after(LEASE * 98 / 100)));
}

#[test]
fn a_grant_under_way_while_its_giver_revokes_it_does_not_count_any_more() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.mail.clear();
    let view = lease(&net, 2);
    let (ballot, boot) = (view.adopted, 1);
    let grant = |sent| {
        let body = Body::LeaseGrant {
            ballot,
            sent,
            asker: boot,
            incarnation: boot,
        };
        (id(2), id(3), body)
    };
    let late = grant(net.now);
    let mut below = ballot;
    below.epoch = below.epoch.next();
    let incarnation = boot;
    net.say(id(2), id(3), Body::Revoke { below, incarnation });
    assert!(lease(&net, 3).grants.iter().all(|grant| grant.peer != id(2)));
    net.say(late.0, late.1, late.2);
    assert!(
        lease(&net, 3).grants.iter().all(|grant| grant.peer != id(2)),
        "2 already counts it as dead"
    );
}

#[test]
fn d6_a_stamp_waits_until_the_roster_is_durable() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.instant_disk = false;
    net.set_reads(ReadMode::LeaderLease, Responders::None, LEASE);
    for _ in 0..12 {
        net.persist(id(1), 9);
        net.persist(id(3), 9);
        net.half_round();
    }
    let minted = lease(&net, 1).minted.unwrap();
    assert_eq!(lease(&net, 2).adopted, minted, "adopted in memory");
    let stamped = |net: &Net| {
        net.mail.iter().any(|message| {
            message.from == id(2)
                && matches!(message.body, Body::AppendAccepted { stamp: Some(stamp), .. } if stamp == minted.epoch)
        })
    };
    assert!(!stamped(&net));
    net.persist(id(2), 9);
    assert!(stamped(&net), "said as soon as it is durable");
}

#[test]
fn d7_of_four_voters_three_must_promise() {
    let mut net = cluster(4, ReadMode::RosterLease);
    assert!(open(&net, 4));
    for other in [1, 2] {
        cut(&mut net, other, 4);
    }
    // It hears 3 only: two of four.
    net.run(LEASE);
    assert!(!open(&net, 4));
}

#[test]
fn d8_a_key_that_no_entry_in_the_log_names_is_read_from_the_state_machine() {
    let mut net = cluster(3, ReadMode::RosterLease);
    write(&mut net, "a=1");
    write(&mut net, "b=1");
    let reached = net.nodes[&id(2)].reached;
    net.step(id(2), Input::Compact(reached));
    net.run(HEARTBEAT);
    // The kit checks that the answer is at or behind the entry that wrote it.
    assert!(net.reads_locally(2, key("a")) && net.reads_locally(2, key("never written")));
}

#[test]
fn p1_a_new_leader_answers_nothing_locally_before_its_no_op_commits() {
    let mut net = cluster(3, ReadMode::LeaderLease);
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    for _ in 0..40 {
        net.half_round();
        let view = net.raft(2).view();
        let leads = view.soft.role == althing_raft::io::Role::Leader;
        let in_term = net
            .raft(2)
            .entry(view.commit)
            .is_some_and(|entry| entry.term == view.soft.term);
        assert!(!(view.lease.open && leads && !in_term));
    }
    assert!(open(&net, 2));
}

#[test]
fn p3_p23_a_leader_that_has_told_its_successor_reads_nothing_locally_even_with_fresh_promises() {
    let mut net = cluster(3, ReadMode::LeaderLease);
    assert!(net.reads_locally(1, key("a")));
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    assert!(net.mail.iter().any(|message| message.body == Body::TimeoutNow));
    assert!(!open(&net, 1));
    let now = net.now;
    for voter in [2, 3] {
        let ballot = lease(&net, 1).adopted;
        let body = Body::LeaseGrant {
            ballot,
            sent: now,
            asker: 1,
            incarnation: 1,
        };
        net.say(id(voter), id(1), body);
    }
    assert!(!net.reads_locally(1, key("a")));
}

#[test]
fn a_transfer_between_living_members_waits_for_no_lease_to_run_out() {
    let mut net = cluster(3, ReadMode::RosterLease);
    let start = net.now;
    net.step(id(1), Input::TransferLeader(Some(id(2))));
    net.settle();
    write(&mut net, "a=1");
    assert!(committed(&net, "a=1"));
    assert_eq!(net.now, start, "by messages alone");
}

#[test]
fn p25_a_dead_responder_stops_writes_for_about_a_lease_and_needs_no_commit_to_be_left_out() {
    let mut net = Net::new(3);
    net.heartbeat = Duration::from_millis(50);
    net.demote_after = Duration::from_millis(200);
    for member in 1..=3 {
        net.crash(id(member));
        net.boot(id(member));
    }
    net.elect(1);
    net.set_reads(ReadMode::RosterLease, Responders::All, LEASE);
    net.settle();
    net.run(LEASE);
    write(&mut net, "a=1");
    assert!(committed(&net, "a=1") && open(&net, 3));
    net.crash(id(3));
    write(&mut net, "a=2");
    assert!(!committed(&net, "a=2"));
    let gap = time_until(&mut net, LEASE * 3, |net| committed(net, "a=2"));
    println!("write gap after a responder died: {gap:?} (lease 1 s, heartbeat 50 ms, demoted after 200 ms)");
    assert!(gap <= Duration::from_millis(1500), "{gap:?}");
    net.run(HEARTBEAT);
    assert!(open_now(&mut net, 2), "the others read on");
    // And it can be removed: nothing waits for it.
    net.change(id(1), ConfigStep::Remove(id(3)));
    net.settle();
    net.run(HEARTBEAT * 2);
    assert!(!net.raft(1).view().soft.config.contains(id(3)));
}

#[test]
fn i15_a_planned_change_among_healthy_members_takes_two_and_a_half_round_trips_at_most() {
    let mut net = cluster(5, ReadMode::RosterLease);
    let before = lease(&net, 1).minted;
    let some = Responders::Ranges(vec![ResponderRange {
        span: Span::all(),
        members: [id(2), id(3)].into(),
    }]);
    net.set_reads(ReadMode::RosterLease, some, LEASE);
    let mut rounds = 0;
    let mut proposed = false;
    let mut open_after = None;
    for half in 0..40 {
        if lease(&net, 1).minted != before {
            rounds += 1;
            if !proposed {
                net.propose(id(1), "a=1");
                proposed = true;
            }
        }
        net.half_round();
        let now_open = lease(&net, 1).minted != before && open(&net, 2) && open(&net, 3) && !open(&net, 4);
        if now_open && open_after.is_none() {
            open_after = Some(rounds);
        }
        if proposed && net.commands(1).contains(&"a=1".to_owned()) && open_after.is_some() {
            break;
        }
        assert!(half < 39, "never");
    }
    println!("planned change: a write that came with it committed after {rounds} half round trips");
    assert!(rounds <= 5, "{rounds} half round trips");
}

#[test]
fn a_read_mode_without_leases_ends_promises_and_a_stopped_responder_then_stops_nobody() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.set_reads(ReadMode::ReadIndex, Responders::None, Duration::ZERO);
    net.settle();
    net.run(PROMISE);
    assert!((1..=3).all(|member| !open(&net, member) && lease(&net, member).promises.is_empty()));
    net.isolate(3);
    write(&mut net, "a=1");
    assert!(committed(&net, "a=1"));
}

#[test]
fn i13_a_learner_reads_if_it_is_named_and_its_promises_count_for_nobody() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.add(4, kit::Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(4)));
    net.settle();
    net.run(HEARTBEAT * 5);
    let responders = Responders::Ranges(vec![ResponderRange {
        span: Span::all(),
        members: [id(3), id(4)].into(),
    }]);
    net.set_reads(ReadMode::RosterLease, responders, LEASE);
    net.settle();
    net.run(HEARTBEAT * 10);
    assert!(net.reads_locally(4, key("a")), "the learner answers");
    let granted: Vec<MemberId> = lease(&net, 3).grants.iter().map(|grant| grant.peer).collect();
    assert!(!granted.contains(&id(4)), "{granted:?}");
    write(&mut net, "a=1");
    assert!(committed(&net, "a=1"));
}

#[test]
fn a_configuration_change_has_no_responders_while_it_is_under_way() {
    let mut net = cluster(3, ReadMode::RosterLease);
    net.add(4, kit::Disk::default());
    net.change(id(1), ConfigStep::AddLearner(id(4)));
    let minted = lease(&net, 1).minted.unwrap();
    assert!(
        minted > lease(&net, 2).adopted,
        "made in the step that appends the change"
    );
    net.settle();
    net.run(HEARTBEAT * 6);
    assert!(open(&net, 2) && open(&net, 3), "and they are back afterwards");
    assert_eq!(
        lease(&net, 2).roster.unwrap().config,
        net.raft(1).view().soft.config.index
    );
}

#[test]
fn p22_a_clock_that_goes_back_voids_leases_until_it_has_caught_up() {
    let mut net = cluster(3, ReadMode::RosterLease);
    assert!(open(&net, 3));
    let now = net.now;
    net.now = Now(now.0 - 1_000_000_000);
    assert!(!net.reads_locally(3, key("a")));
    net.mail.clear();
    net.now = now.after(HEARTBEAT);
    assert!(!open(&net, 3), "what was promised before does not come back");
    net.run(HEARTBEAT * 3);
    assert!(open(&net, 3));
}

#[test]
fn p22_a_clock_that_jumps_ahead_makes_old_promises_last_longer_not_shorter() {
    let mut net = cluster(3, ReadMode::RosterLease);
    let day = Duration::from_secs(86_400);
    let (here, there) = (net.now, net.now.after(day));
    net.now = there;
    net.step(id(2), Input::Tick);
    net.now = here;
    let view = lease(&net, 2);
    assert_eq!(view.quarantine, Some(there.after(PROMISE)));
}

#[test]
fn all_reads_of_a_step_are_answered_in_it() {
    let mut net = cluster(3, ReadMode::RosterLease);
    let reads = (0..10).map(|n| (RequestId(10_000 + n), Footprint::All)).collect();
    net.step(id(2), Input::Read(reads));
    let answered = net.nodes[&id(2)]
        .reads
        .iter()
        .filter(|(request, _)| request.0 >= 10_000);
    assert_eq!(answered.count(), 10);
    assert!(net.nodes[&id(2)].dropped.is_empty());
    assert!(net.raft(2).view().commit > Index::ZERO);
}

#[test]
fn i16_lease_traffic_is_a_question_and_an_answer_for_each_pair_and_heartbeat() {
    let mut net = cluster(5, ReadMode::RosterLease);
    net.mail.clear();
    let beats = 20;
    let mut count = 0;
    let until = net.now.after(HEARTBEAT * beats);
    while net.now < until {
        net.next_tick();
        while !net.mail.is_empty() {
            let body = &net.mail[0].body;
            count += u32::from(matches!(body, Body::LeaseRequest { .. } | Body::LeaseGrant { .. }));
            net.deliver_one(0);
        }
    }
    println!("lease messages among 5 members in {beats} heartbeats: {count}");
    assert!(count <= 2 * 5 * 4 * (beats + 1), "{count}");
}
