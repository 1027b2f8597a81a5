//! Messages of one turn to one peer, without those that a later one of the same turn makes pointless.
//!
//! A turn answers everything that came since the last one, so it may acknowledge several appends, or start and confirm several
//! rounds. Of such messages the last says all: within a term, acknowledged indexes, commit indexes and rounds only grow. Leaving the
//! others out is the same as losing them, which Raft stands. What is stamped for another roster says something else and stays.

use althing_raft::ids::{Epoch, GroupId, Index, Term};
use althing_raft::message::{Body, Message};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What a message says that a later one may say too.
#[derive(Clone, Copy, Debug)]
enum Says {
    Committed { index: Index },
    Beat { commit: Index, round: u64 },
    BeatReply { round: u64, stamp: Option<Epoch> },
    Accepted { last: Index, stamp: Option<Epoch> },
}

impl Says {
    fn of(body: &Body) -> Option<Self> {
        match body {
            Body::Committed { position } => Some(Self::Committed { index: position.index }),
            Body::Heartbeat { commit, round } => Some(Self::Beat {
                commit: *commit,
                round: *round,
            }),
            Body::HeartbeatReply { round, stamp } => Some(Self::BeatReply {
                round: *round,
                stamp: *stamp,
            }),
            Body::AppendAccepted { last, stamp } => Some(Self::Accepted {
                last: *last,
                stamp: *stamp,
            }),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Hibernate { .. }
            | Body::Hibernating { .. }
            | Body::Alive { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Append { .. }
            | Body::AppendRejected { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::Roster { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. }
            | Body::Revoked { .. } => None,
        }
    }

    /// Only messages of one kind are compared.
    fn kind(self) -> u8 {
        match self {
            Self::Beat { .. } => 0,
            Self::BeatReply { .. } => 1,
            Self::Accepted { .. } => 2,
            Self::Committed { .. } => 3,
        }
    }

    fn covers(self, earlier: Self) -> bool {
        match (self, earlier) {
            (Self::Committed { index }, Self::Committed { index: i }) => index >= i,
            (Self::Beat { commit, round }, Self::Beat { commit: c, round: r }) => commit >= c && round >= r,
            (Self::BeatReply { round, stamp }, Self::BeatReply { round: r, stamp: s }) => round >= r && stamp == s,
            (Self::Accepted { last, stamp }, Self::Accepted { last: l, stamp: s }) => last >= l && stamp == s,
            (Self::Committed { .. } | Self::Beat { .. } | Self::BeatReply { .. } | Self::Accepted { .. }, _) => false,
        }
    }
}

/// Keeps, of messages that say the same kind of thing, those that no later one covers. The order stays.
pub(super) fn coalesce(messages: Vec<Message>) -> Vec<Message> {
    if messages.len() < 2 {
        return messages;
    }
    let mut kept: Vec<Message> = Vec::with_capacity(messages.len());
    let mut said: BTreeMap<(GroupId, Term, u8), Says> = BTreeMap::new();
    for message in messages.into_iter().rev() {
        if let Some(says) = Says::of(&message.body) {
            match said.entry((message.group, message.term, says.kind())) {
                Entry::Occupied(later) if later.get().covers(says) => continue,
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => {
                    place.insert(says);
                }
            }
        }
        kept.push(message);
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use althing_raft::ids::MemberId;

    fn message(group: u64, term: u64, body: Body) -> Message {
        Message {
            group: GroupId(group),
            from: MemberId(1),
            to: MemberId(2),
            term: Term(term),
            body,
        }
    }

    fn accepted(last: u64) -> Body {
        stamped(last, None)
    }

    fn stamped(last: u64, epoch: Option<u64>) -> Body {
        Body::AppendAccepted {
            last: Index(last),
            stamp: epoch.map(Epoch),
        }
    }

    #[test]
    fn an_acknowledgement_under_another_roster_stays() {
        let all = vec![
            message(1, 5, stamped(7, Some(1))),
            message(1, 5, stamped(7, Some(2))),
            message(1, 5, stamped(8, Some(2))),
        ];
        let expected = vec![all[0].clone(), all[2].clone()];
        assert_eq!(coalesce(all), expected);
    }

    #[test]
    fn the_last_acknowledgement_speaks_for_all_of_its_term_and_group() {
        let all = vec![
            message(1, 5, accepted(7)),
            message(1, 4, accepted(9)),
            message(2, 5, accepted(6)),
            message(1, 5, accepted(8)),
        ];
        let expected = vec![all[1].clone(), all[2].clone(), all[3].clone()];
        assert_eq!(coalesce(all), expected);
    }

    #[test]
    fn a_beat_stays_that_says_more_in_one_way_than_the_later_one() {
        let beat = |commit, round| Body::Heartbeat {
            commit: Index(commit),
            round,
        };
        let all = vec![
            message(1, 5, beat(9, 1)),
            message(1, 5, beat(3, 2)),
            message(1, 5, beat(3, 3)),
        ];
        let expected = vec![all[0].clone(), all[2].clone()];
        assert_eq!(coalesce(all), expected);
    }

    #[test]
    fn what_carries_something_of_its_own_always_stays() {
        let all = vec![
            message(1, 5, Body::ReadIndex { request: 1 }),
            message(1, 5, Body::ReadIndex { request: 2 }),
            message(1, 5, Body::TimeoutNow),
            message(1, 5, Body::TimeoutNow),
        ];
        assert_eq!(coalesce(all.clone()), all);
    }
}
