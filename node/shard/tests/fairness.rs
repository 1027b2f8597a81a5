//! Many groups on one node: a busy one does not keep the others from their turn, and idle ones cost nothing.

mod kit;

use althing_raft::ids::{GroupId, MemberId, Now};
use althing_raft::io::{Config, RequestId, Start};
use althing_shard::host::{
    GROUP_REQUESTS_RESERVED, GROUP_TURN_BYTES_MAX, PROPOSE_BYTES_MAX, REQUEST_BYTES_MAX, REQUESTS_MAX,
    TICKS_PER_TURN_MAX,
};
use althing_shard::{Effect, Event, GroupStart, Host, Refusal};
use althing_wal::GroupWrite;
use bytes::Bytes;
use kit::{HEARTBEAT, PATIENCE, core_config, host};

const BUSY: GroupId = GroupId(1);
const QUIET: GroupId = GroupId(2);
const ME: MemberId = MemberId(1);

/// A node that leads so many groups of its own.
fn node(groups: u64) -> (Host, Now) {
    let mut host = host(ME, 1);
    let mut now = Now(1);
    for group in 1..=groups {
        let config = Config {
            group: GroupId(group),
            uncommitted_bytes_max: 1 << 30,
            ..core_config(ME, group)
        };
        let start = Start::birth(ME, Bytes::new());
        host.add_group(now, GroupStart { config, start });
    }
    now = now.after(HEARTBEAT);
    settle(&mut host, now, Vec::new());
    (host, now)
}

/// Turns until nothing is written any more; the first turn's writes, and what was refused in it.
fn settle(host: &mut Host, now: Now, mut events: Vec<Event>) -> (Vec<GroupWrite>, Vec<(RequestId, Refusal)>) {
    let mut first = None;
    for _ in 0..1_000 {
        let (mut written, mut refused, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for effect in host.poll(now, std::mem::take(&mut events)).expect("no fatal error") {
            match effect {
                Effect::Write { token, writes } => {
                    again.push(Event::Written(token));
                    written = writes;
                }
                Effect::Apply { group, items } => {
                    let position = items.last().expect("never empty").position;
                    again.push(Event::Applied { group, position });
                }
                Effect::Complete { request, result } => refused.extend(result.err().map(|refusal| (request, refusal))),
                Effect::Send { .. }
                | Effect::Compact { .. }
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
        first.get_or_insert((written, refused));
        events = again;
        if events.is_empty() && host.next_deadline().is_none_or(|due| due > now) {
            break;
        }
    }
    first.expect("at least one turn")
}

fn proposals(group: GroupId, first: u64, count: usize, bytes: usize, now: Now) -> Vec<Event> {
    let deadline = now.after(PATIENCE);
    let command = Bytes::from(vec![7; bytes]);
    (first..)
        .take(count)
        .map(|request| Event::Propose {
            request: RequestId(request),
            group,
            command: command.clone(),
            deadline,
        })
        .collect()
}

fn bytes_of(writes: &[GroupWrite], group: GroupId) -> usize {
    let of_group = writes.iter().filter(|write| write.group == group);
    of_group
        .flat_map(|write| &write.entries)
        .map(|entry| entry.size_bytes())
        .sum()
}

#[test]
fn a_group_with_much_to_write_shares_each_write_of_the_log_with_the_others() {
    let (mut host, now) = node(2);
    let mut events = proposals(BUSY, 1, 1_000, 50_000, now);
    events.extend(proposals(QUIET, 5_000, 1, 100, now));
    let (writes, refused) = settle(&mut host, now, events);
    assert_eq!(refused, []);
    let busy = bytes_of(&writes, BUSY);
    assert!(busy >= GROUP_TURN_BYTES_MAX, "{busy}");
    assert!(busy <= GROUP_TURN_BYTES_MAX + PROPOSE_BYTES_MAX + 100_000, "{busy}");
    assert!(bytes_of(&writes, QUIET) > 100, "in the very first write");
    for group in [BUSY, QUIET] {
        assert_eq!(
            host.view(group).expect("the group").pending,
            0,
            "and all are written in the end"
        );
    }
}

#[test]
fn a_group_that_takes_all_places_leaves_some_to_the_others() {
    let (mut host, now) = node(2);
    // The log is slow: nothing of this is answered.
    host.poll(now, proposals(BUSY, 1, 1, 10, now)).expect("no fatal error");
    let mut events = proposals(BUSY, 10, REQUESTS_MAX + 5, 10, now);
    events.extend(proposals(QUIET, 100_000, GROUP_REQUESTS_RESERVED + 5, 10, now));
    let effects = host.poll(now, events).expect("no fatal error");
    let refused = effects.iter().filter_map(|effect| {
        let Effect::Complete { request, result } = effect else {
            return None;
        };
        assert_eq!(*result, Err(Refusal::TooManyRequests));
        Some(request.0)
    });
    let (quiet, busy): (Vec<_>, Vec<_>) = refused.partition(|request| *request >= 100_000);
    assert_eq!((busy.len(), quiet.len()), (6, 5));
    assert_eq!(host.view(QUIET).expect("the group").pending, GROUP_REQUESTS_RESERVED);
}

#[test]
fn groups_that_take_all_memory_leave_some_to_the_others() {
    let (mut host, now) = node(20);
    host.poll(now, proposals(BUSY, 1, 1, 10, now)).expect("no fatal error");
    let large = 1 << 20;
    let mut events = Vec::new();
    for group in 3..=20 {
        let some = REQUEST_BYTES_MAX / large / 16;
        events.extend(proposals(GroupId(group), group * 1_000, some, large, now));
    }
    events.extend(proposals(QUIET, 100_000, 10, 1_000, now));
    let effects = host.poll(now, events).expect("no fatal error");
    let refused = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Complete {
                result: Err(Refusal::TooManyRequests),
                ..
            }
        )
    };
    let refused = effects.iter().filter(refused).count();
    // Of eighteen sixteenths sixteen fit, and each group has something whatever the others have.
    assert!((16..=33).contains(&refused), "{refused}");
    assert_eq!(host.view(QUIET).expect("the group").pending, 10);
}

#[test]
fn timers_of_thousands_of_groups_leave_room_for_requests_between_them() {
    let groups = 3 * TICKS_PER_TURN_MAX as u64;
    let (mut host, now) = node(groups);
    let later = now.after(HEARTBEAT * 5);
    let request = proposals(QUIET, 1, 1, 10, later);
    let effects = host.poll(later, request).expect("no fatal error");
    let writes = |effect: &Effect| matches!(effect, Effect::Write { .. });
    assert!(effects.iter().any(writes), "the request does not wait for all timers");
    let mut turns = 1;
    while host.next_deadline().is_some_and(|due| due <= later) {
        host.poll(later, []).expect("no fatal error");
        turns += 1;
        assert!(turns < 10);
    }
    assert!(turns >= 3, "{turns}");
}
