//! Read rounds as an onlooker sees them. A stale read needs a write elsewhere at the right moment to be seen in a history; that
//! its leader was not sure of itself shows every time.

use althing_raft::entry::ConfigState;
use althing_raft::ids::{MemberId, Term};
use althing_raft::message::{Body, Message};
use std::collections::{BTreeMap, BTreeSet};

/// What leaders were asked, and what their peers confirmed. Holds for reads by read index; a leader that answers under a lease
/// has other reasons to be sure.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// When a question reached a leader, and in which term it was asked: by leader, asker and token.
    asked: BTreeMap<(MemberId, MemberId, u64), (u64, Term)>,
    /// When a round was first sent: by leader, term and round.
    sent: BTreeMap<(MemberId, Term, u64), u64>,
    /// The newest round that a peer's answer to this leader confirms.
    confirmed: BTreeMap<(MemberId, Term, MemberId), u64>,
}

impl Rounds {
    pub(crate) fn received(&mut self, now: u64, message: &Message) {
        let (from, to) = (message.from, message.to);
        if let Body::ReadIndex { request } = message.body {
            self.asked.entry((to, from, request)).or_insert((now, message.term));
        }
        if let Body::HeartbeatReply { round, .. } = message.body {
            let newest = self.confirmed.entry((to, message.term, from)).or_default();
            *newest = round.max(*newest);
        }
    }

    /// Whether a message may leave under one of these configurations. A leader answers a question only when a majority has
    /// confirmed a round that began after it was asked (Raft thesis, section 6.4). By asking in the leader's term, the asker has.
    pub(crate) fn may_send<'a>(
        &mut self,
        now: u64,
        message: &Message,
        mut configs: impl Iterator<Item = &'a ConfigState>,
    ) -> bool {
        let (from, term) = (message.from, message.term);
        if let Body::Heartbeat { round, .. } = message.body {
            self.sent.entry((from, term, round)).or_insert(now);
        }
        let Body::ReadIndexReply {
            request,
            index: Some(_),
        } = message.body
        else {
            return true;
        };
        let Some(&(asked, asked_in)) = self.asked.get(&(from, message.to, request)) else {
            return false;
        };
        let confirms = |voter: MemberId| {
            let round = self.confirmed.get(&(from, term, voter)).copied().unwrap_or_default();
            let witness = voter == message.to && asked_in == term;
            voter == from || witness || self.sent.get(&(from, term, round)).is_some_and(|began| *began >= asked)
        };
        let majority =
            |voters: &BTreeSet<MemberId>| 2 * voters.iter().filter(|voter| confirms(**voter)).count() > voters.len();
        configs.any(|config| majority(&config.voters) && (config.outgoing.is_empty() || majority(&config.outgoing)))
    }
}
