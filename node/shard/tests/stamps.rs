//! Commands of a sequenced group and their revisions. Scripts drive the host of a group of one member; what involves several members
//! is below.
//!
//! A script's lines: `put a b` (this node's clients), `forward a b` (a follower's), `stamp 1 100` or `stamp 1 none` (the sequencer answers
//! ticket 1), `resolve r`, `pass 100` (milliseconds), `disk slow`, `disk quick`. Answered are: tickets that are asked for, commands that are
//! applied with their revisions, and requests that the host completes.

mod kit;

use althing_raft::ids::{LogPosition, MemberId, Now};
use althing_raft::io::{RequestId, Start};
use althing_raft::message::{Body, Message};
use althing_shard::envelope::{BootNonce, Envelope};
use althing_shard::host::TICKETS_MAX;
use althing_shard::{Done, Effect, Event, GroupStart, Host, Refusal, Ticket, Work};
use althing_store::ops::Revision;
use bytes::Bytes;
use expect_test::{Expect, expect};
use kit::{Cluster, ELECTION, GROUP, HEARTBEAT, PATIENCE, core_config, host};
use std::collections::BTreeMap;
use std::time::Duration;

/// A follower that is not there.
const OTHER: MemberId = MemberId(2);

struct Script {
    host: Host,
    now: Now,
    names: BTreeMap<RequestId, String>,
    slow: bool,
    written: Vec<Event>,
    out: String,
}

impl Script {
    fn new() -> Self {
        let me = MemberId(1);
        let mut host = host(me, 1);
        let start = Start::birth(me, Bytes::new());
        let config = core_config(me, 7);
        host.add_group(Now(1), GroupStart { config, start });
        let mut script = Self {
            host,
            now: Now(1),
            names: BTreeMap::new(),
            slow: false,
            written: Vec::new(),
            out: String::new(),
        };
        script.poll(vec![Event::Sequenced { group: GROUP, on: true }]);
        script
    }

    fn say(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn poll(&mut self, events: Vec<Event>) {
        let mut again = Vec::new();
        for effect in self.host.poll(self.now, events).expect("no fatal error") {
            match effect {
                Effect::Write { token, .. } if self.slow => self.written.push(Event::Written(token)),
                Effect::Write { token, .. } => again.push(Event::Written(token)),
                Effect::Apply { group, items } => {
                    let mut position = LogPosition::default();
                    for item in items {
                        position = item.position;
                        if let Work::Command { command, stamp, .. } = item.work {
                            let command = String::from_utf8_lossy(&command).into_owned();
                            let stamp = stamp.map_or("no revision".to_owned(), |stamp| stamp.to_string());
                            self.say(&format!("  applied {command} at {stamp}"));
                        }
                    }
                    again.push(Event::Applied { group, position });
                }
                Effect::Complete { request, result } => {
                    let name = self.names[&request].clone();
                    let result = match result {
                        Ok(Done::Read { .. }) => "settled".to_owned(),
                        Ok(done) => format!("{done:?}"),
                        Err(refusal) => refusal.to_string(),
                    };
                    self.say(&format!("  {name}: {result}"));
                }
                Effect::Stamp { ticket, count, .. } => {
                    self.say(&format!("  asked for {count} by ticket {}", ticket.0));
                }
                Effect::Send { .. }
                | Effect::Compact { .. }
                | Effect::SendSnapshot { .. }
                | Effect::Install { .. }
                | Effect::Discard { .. }
                | Effect::Retired { .. }
                | Effect::Kept { .. }
                | Effect::Peers(_)
                | Effect::Changed { .. } => {}
            }
        }
        if !again.is_empty() {
            self.poll(again);
        }
    }

    fn request(&mut self, name: &str) -> RequestId {
        let request = RequestId(self.names.len() as u64 + 1);
        self.names.insert(request, name.to_owned());
        request
    }

    fn line(&mut self, line: &str) {
        self.say(line);
        let words: Vec<_> = line.split_whitespace().collect();
        let deadline = self.now.after(PATIENCE);
        match &words[..] {
            ["put", commands @ ..] => {
                let events = commands.iter().map(|name| Event::Propose {
                    request: self.request(name),
                    group: GROUP,
                    command: Bytes::copy_from_slice(name.as_bytes()),
                    deadline,
                });
                let events = events.collect();
                self.poll(events);
            }
            ["forward", commands @ ..] => {
                let commands = commands.iter().map(|name| enveloped(name, None)).collect();
                let message = self.forward(commands);
                self.poll(vec![message]);
            }
            ["stamp", ticket, first] => {
                let event = Event::Stamped {
                    group: GROUP,
                    ticket: Ticket(ticket.parse().expect("a number")),
                    first: first.parse().ok().map(Revision),
                };
                self.poll(vec![event]);
            }
            ["resolve", name] => {
                let request = self.request(name);
                self.poll(vec![Event::Resolve {
                    request,
                    group: GROUP,
                    deadline,
                }]);
            }
            ["pass", millis] => {
                let end = self.now.after(Duration::from_millis(millis.parse().expect("a number")));
                while let Some(due) = self.host.next_deadline().filter(|due| *due <= end) {
                    self.now = self.now.max(due);
                    self.poll(vec![]);
                }
                self.now = end;
            }
            ["disk", "slow"] => self.slow = true,
            ["disk", "quick"] => {
                self.slow = false;
                let written = std::mem::take(&mut self.written);
                self.poll(written);
            }
            other => panic!("unknown line {other:?}"),
        }
    }

    fn forward(&self, commands: Vec<Bytes>) -> Event {
        let term = self.host.view(GROUP).expect("the group").raft.soft.term;
        Event::Messages(vec![Message {
            group: GROUP,
            from: OTHER,
            to: MemberId(1),
            term,
            body: Body::Forward { commands },
        }])
    }
}

fn enveloped(command: &str, stamp: Option<i64>) -> Bytes {
    Envelope {
        proposer: OTHER,
        nonce: BootNonce(9),
        sequence: 1,
        stamp: stamp.map(Revision),
        command: Bytes::copy_from_slice(command.as_bytes()),
    }
    .encode()
}

fn check(script: &str, expected: &Expect) {
    let mut run = Script::new();
    script.lines().map(str::trim).for_each(|line| run.line(line));
    expected.assert_eq(&run.out);
}

#[test]
fn commands_wait_for_their_revisions_and_take_them_in_order() {
    check(
        "put a b
         stamp 1 10
         put c
         stamp 2 20",
        &expect![[r#"
            put a b
              asked for 2 by ticket 1
            stamp 1 10
              applied a at 10
              applied b at 11
            put c
              asked for 1 by ticket 2
            stamp 2 20
              applied c at 20
        "#]],
    );
}

#[test]
fn what_a_later_ticket_brings_waits_for_the_earlier_ones() {
    check(
        "put a
         put b
         put c
         stamp 3 12
         stamp 2 11
         stamp 1 10",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            put b
              asked for 1 by ticket 2
            put c
              asked for 1 by ticket 3
            stamp 3 12
            stamp 2 11
            stamp 1 10
              applied a at 10
              applied b at 11
              applied c at 12
        "#]],
    );
}

#[test]
fn revisions_below_those_in_the_log_are_not_used_and_others_are_asked_for() {
    check(
        "put a
         put b
         stamp 1 50
         stamp 2 10
         stamp 3 51",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            put b
              asked for 1 by ticket 2
            stamp 1 50
              applied a at 50
            stamp 2 10
              asked for 1 by ticket 3
            stamp 3 51
              applied b at 51
        "#]],
    );
}

#[test]
fn a_ticket_that_failed_is_asked_for_again_after_a_heartbeat_and_its_late_answer_is_ignored() {
    check(
        "put a
         stamp 1 none
         pass 99
         pass 2
         stamp 1 10
         stamp 2 20",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            stamp 1 none
            pass 99
            pass 2
              asked for 1 by ticket 2
            stamp 1 10
            stamp 2 20
              applied a at 20
        "#]],
    );
}

#[test]
fn the_commands_of_a_failed_ticket_take_what_later_tickets_bring() {
    check(
        "put a
         put b c
         stamp 1 none
         stamp 2 20
         pass 101
         stamp 3 30",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            put b c
              asked for 2 by ticket 2
            stamp 1 none
            stamp 2 20
              applied a at 20
              applied b at 21
            pass 101
              asked for 1 by ticket 3
            stamp 3 30
              applied c at 30
        "#]],
    );
}

#[test]
fn a_command_takes_no_revision_that_was_asked_for_before_it_came() {
    // The client of `a` gives up, so that ticket 1 brings more than is needed; `b` came later.
    check(
        "put a
         pass 5001
         put b
         stamp 1 10
         stamp 2 20",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            pass 5001
              a: the sequencer of this keyspace did not answer in time
            put b
              asked for 1 by ticket 2
            stamp 1 10
            stamp 2 20
              applied b at 20
        "#]],
    );
}

#[test]
fn commands_of_the_shard_itself_need_no_revision_and_wait_for_nobody() {
    check(
        "put a !seal
         forward b !prepare
         stamp 1 10
         stamp 2 11",
        &expect![[r#"
            put a !seal
              asked for 1 by ticket 1
              applied !seal at no revision
            forward b !prepare
              asked for 1 by ticket 2
              applied !prepare at no revision
            stamp 1 10
              applied a at 10
            stamp 2 11
              applied b at 11
        "#]],
    );
}

#[test]
fn forwarded_commands_are_stamped_by_the_leader() {
    check(
        "forward x y
         put a
         stamp 1 10
         stamp 2 12",
        &expect![[r#"
            forward x y
              asked for 2 by ticket 1
            put a
              asked for 1 by ticket 2
            stamp 1 10
              applied x at 10
              applied y at 11
            stamp 2 12
              applied a at 12
        "#]],
    );
}

#[test]
fn only_so_many_tickets_are_under_way_and_commands_gather_meanwhile() {
    assert_eq!(TICKETS_MAX, 4, "as the script has it");
    check(
        "put a
         put b
         put c
         put d
         put e
         put f
         stamp 1 10
         stamp 5 30",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            put b
              asked for 1 by ticket 2
            put c
              asked for 1 by ticket 3
            put d
              asked for 1 by ticket 4
            put e
            put f
            stamp 1 10
              asked for 2 by ticket 5
              applied a at 10
            stamp 5 30
        "#]],
    );
}

#[test]
fn a_resolve_waits_for_tickets_under_way_and_for_no_later_one() {
    check(
        "resolve nothing
         put a
         resolve r
         put b
         stamp 2 20
         stamp 1 10
         put c
         resolve s
         stamp 3 none",
        &expect![[r#"
            resolve nothing
              nothing: settled
            put a
              asked for 1 by ticket 1
            resolve r
            put b
              asked for 1 by ticket 2
            stamp 2 20
            stamp 1 10
              applied a at 10
              applied b at 20
              r: settled
            put c
              asked for 1 by ticket 3
            resolve s
            stamp 3 none
              s: settled
        "#]],
    );
}

#[test]
fn a_resolve_waits_until_what_is_stamped_is_applied() {
    check(
        "disk slow
         put a
         stamp 1 10
         resolve r
         disk quick",
        &expect![[r#"
            disk slow
            put a
              asked for 1 by ticket 1
            stamp 1 10
            resolve r
            disk quick
              applied a at 10
              r: settled
        "#]],
    );
}

#[test]
fn a_resolve_that_takes_too_long_says_so() {
    check(
        "put a
         resolve r
         pass 5001",
        &expect![[r#"
            put a
              asked for 1 by ticket 1
            resolve r
            pass 5001
              a: the sequencer of this keyspace did not answer in time
              r: no answer in time; the request may or may not have taken effect
        "#]],
    );
}

#[test]
fn a_stamp_that_a_follower_made_up_does_not_enter_the_log() {
    let mut run = Script::new();
    let message = run.forward(vec![enveloped("x", Some(99))]);
    run.poll(vec![message]);
    assert_eq!(run.out, "");
}

/// Three members of a sequenced group.
fn sequenced() -> Cluster {
    let mut cluster = Cluster::of(&[1, 2, 3]);
    for me in cluster.nodes.keys().copied().collect::<Vec<_>>() {
        cluster.turn(me, vec![Event::Sequenced { group: GROUP, on: true }]);
    }
    cluster
}

fn stamp(cluster: &mut Cluster, at: MemberId, first: i64) {
    let tickets = std::mem::take(&mut cluster.nodes.get_mut(&at).expect("a node of this id").tickets);
    let (ticket, _) = tickets[0];
    let first = Some(Revision(first));
    cluster.turn(
        at,
        vec![Event::Stamped {
            group: GROUP,
            ticket,
            first,
        }],
    );
}

#[test]
fn a_follower_asks_for_no_revision_and_its_client_is_answered() {
    let mut cluster = sequenced();
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let put = cluster.propose(follower, "x");
    cluster.deliver();
    assert!(cluster.nodes[&follower].tickets.is_empty());
    stamp(&mut cluster, leader, 40);
    assert!(cluster.applied_at(follower, put));
    let expected = [(Bytes::from_static(b"x"), Revision(40))];
    assert!(cluster.nodes.values().all(|node| node.revisions == expected));
}

#[test]
fn a_leader_that_falls_uses_no_stamp_and_its_own_commands_go_to_the_next_one() {
    let mut cluster = sequenced();
    let (old, follower) = (cluster.leader(), cluster.follower());
    let own = cluster.propose(old, "own");
    let other = cluster.propose(follower, "other");
    cluster.deliver();
    let (request, deadline) = cluster.request();
    cluster.turn(
        old,
        vec![Event::Resolve {
            request,
            group: GROUP,
            deadline,
        }],
    );
    cluster.cut.insert(old);
    cluster.run(ELECTION * 3);
    let new = cluster.leader();
    assert_ne!(new, old);
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    // The answer to the first leader's question is late; the next one's is asked for what came from there.
    stamp(&mut cluster, old, 10);
    stamp(&mut cluster, new, 20);
    assert!(cluster.applied_at(old, own));
    assert_eq!(
        cluster.answer(follower, other),
        Err(Refusal::LeaderChanged),
        "it cannot know"
    );
    assert!(matches!(cluster.answer(old, request), Err(Refusal::NotLeader { .. })));
    let expected = [(Bytes::from_static(b"own"), Revision(20))];
    assert!(cluster.nodes.values().all(|node| node.revisions == expected));
}

#[test]
fn only_a_leader_resolves() {
    let mut cluster = sequenced();
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (request, deadline) = cluster.request();
    let event = Event::Resolve {
        request,
        group: GROUP,
        deadline,
    };
    cluster.turn(follower, vec![event]);
    let leader = Some(leader);
    assert_eq!(cluster.answer(follower, request), Err(Refusal::NotLeader { leader }));
}

#[test]
fn a_leader_without_a_majority_resolves_nothing() {
    let mut cluster = sequenced();
    let leader = cluster.leader();
    cluster.cut.insert(leader);
    let (request, deadline) = cluster.request();
    let event = Event::Resolve {
        request,
        group: GROUP,
        deadline,
    };
    cluster.turn(leader, vec![event]);
    cluster.run(HEARTBEAT * 5);
    assert!(!cluster.nodes[&leader].answers.contains_key(&request));
    cluster.run(ELECTION * 2);
    assert!(matches!(
        cluster.answer(leader, request),
        Err(Refusal::NotLeader { .. })
    ));
}
