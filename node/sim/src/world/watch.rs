//! Invariants over the whole world, checked as it moves: what no single member can see.
//!
//! Names and numbers of the safety properties are those of the Raft paper, figure 3. Members are watched
//! from outside, by what they write, send and apply, so production code needs no hooks.

use super::rounds::Rounds;
use crate::rng::mix;
use althing_raft::entry::{ConfigState, ConfigStep, Entry, HardState, Payload};
use althing_raft::ids::{Index, LogPosition, MemberId, Term};
use althing_raft::io::{Role, Soft, View};
use althing_raft::message::{Body, Message};
use althing_shard::{Item, Work};
use althing_wal::GroupWrite;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A member's log as an onlooker knows it.
#[derive(Clone, Debug, Default)]
struct Mirror {
    start: LogPosition,
    terms: BTreeMap<Index, Term>,
}

impl Mirror {
    fn last(&self) -> LogPosition {
        self.terms
            .last_key_value()
            .map_or(self.start, |(&index, &term)| LogPosition { term, index })
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            Some(self.start.term)
        } else {
            self.terms.get(&index).copied()
        }
    }

    fn write(&mut self, write: &GroupWrite) {
        if let Some(position) = write.reset_to {
            self.start = position;
            self.terms.clear();
        }
        if let Some(first) = write.entries.first() {
            self.terms.split_off(&first.index);
        }
        self.terms
            .extend(write.entries.iter().map(|entry| (entry.index, entry.term)));
    }
}

/// What the world knows of an entry that some member has applied.
#[derive(Clone, Copy, Debug)]
struct Committed {
    term: Term,
    /// Term of the member that first handed it out: it was committed in that term or before.
    by: Term,
    work: u64,
    /// Hash of what applying it answered, once known.
    answer: Option<u64>,
}

/// The onlooker.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    leaders: BTreeMap<Term, MemberId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// Each entry ever written: its content and the term before it.
    entries: BTreeMap<(Index, Term), (u64, Term)>,
    logs: BTreeMap<MemberId, Mirror>,
    /// Term and vote that each member has durably.
    states: BTreeMap<MemberId, (Term, Option<MemberId>)>,
    /// Every configuration change ever written.
    changes: BTreeSet<(Index, Term)>,
    durable: BTreeMap<MemberId, Mirror>,
    committed: BTreeMap<Index, Committed>,
    configs: BTreeMap<Index, ConfigState>,
    commits: BTreeMap<MemberId, Index>,
    /// Of each member that leads or led: the term, and its commit index when last looked at.
    leading: BTreeMap<MemberId, (Term, Index)>,
    /// The newest configuration that each member has acted on, in any of its lives.
    held: BTreeMap<MemberId, Index>,
    rounds: Rounds,
    /// Whether copies may vanish: then a durable majority cannot be counted any more.
    copies_vanish: bool,
    violations: Vec<String>,
    pub(crate) elections: u64,
    pub(crate) truncations: u64,
}

impl Watch {
    pub(crate) fn new(copies_vanish: bool) -> Self {
        Self {
            copies_vanish,
            ..Self::default()
        }
    }

    /// Notes a broken promise. The first one is what matters; later ones are often its echo.
    pub(crate) fn violation(&mut self, text: String) {
        /// Enough to see an echo's shape.
        const VIOLATIONS_MAX: usize = 20;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The newest configuration that anybody has applied.
    pub(crate) fn config(&self) -> ConfigState {
        self.configs
            .last_key_value()
            .map(|(_, config)| config.clone())
            .unwrap_or_default()
    }

    pub(crate) fn born(&mut self, config: ConfigState) {
        self.configs.insert(config.index, config);
    }

    /// A member starts with this log, all of it durable. Checks that nothing durable was lost, and that nothing else was made up
    /// of it.
    pub(crate) fn booted(&mut self, member: MemberId, state: HardState, start: LogPosition, entries: &[Entry]) {
        self.compare_with_durable(member, state, start, entries);
        self.states.insert(member, (state.term, state.vote));
        self.changes.extend(entries.iter().filter_map(change_at));
        let terms = entries.iter().map(|entry| (entry.index, entry.term)).collect();
        let mirror = Mirror { start, terms };
        self.logs.insert(member, mirror.clone());
        self.durable.insert(member, mirror);
        self.commits.remove(&member);
    }

    fn compare_with_durable(&mut self, member: MemberId, state: HardState, start: LogPosition, entries: &[Entry]) {
        let (term, vote) = self.states.get(&member).copied().unwrap_or_default();
        if state.term < term || (state.term == term && vote.is_some() && state.vote != vote) {
            self.violation(format!(
                "{member} starts in term {} with vote {:?}, and had made term {term} with vote {vote:?} durable",
                state.term, state.vote
            ));
        }
        for entry in entries {
            let known = self.entries.get(&(entry.index, entry.term));
            if known.is_some_and(|(content, _)| *content != content_hash(&entry.payload)) {
                self.violation(format!(
                    "{member} reads entry {} of term {} back with another content",
                    entry.index, entry.term
                ));
            }
        }
        let (Some(durable), Some(written)) = (self.durable.get(&member), self.logs.get(&member)) else {
            return;
        };
        let recovered = |index: Index| {
            let first = entries.first().map_or(Index::ZERO, |entry| entry.index);
            let at = index.0.checked_sub(first.0).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| entries.get(at)).map(|entry| entry.term)
        };
        // A tail that was replaced since may be lost or kept: its replacement was not durable yet.
        let lost = durable
            .terms
            .range(start.index.next()..)
            .take_while(|(index, term)| written.terms.get(index) == Some(term))
            .find(|(index, term)| recovered(**index) != Some(**term));
        if let Some((index, term)) = lost {
            let text = format!("{member} starts without entry {index} of term {term}, which was durable");
            self.violation(text);
        }
    }

    /// A member's disk is gone for good.
    pub(crate) fn wiped(&mut self, member: MemberId) {
        self.logs.remove(&member);
        self.durable.remove(&member);
        self.held.remove(&member);
        self.states.remove(&member);
    }

    /// A member has given its copy up, but for its vote. If the group has gone for good, everybody will, and copies of what is committed
    /// cannot be counted any more.
    pub(crate) fn left(&mut self, member: MemberId, for_good: bool) {
        self.logs.remove(&member);
        self.durable.remove(&member);
        self.held.remove(&member);
        self.commits.remove(&member);
        self.copies_vanish |= for_good;
    }

    /// A member acts on a configuration, and its state machine has applied so much. No crash may take it back to an older
    /// configuration: it could count votes of members that have been switched off since. And it may not miss one (pitfall P13).
    pub(crate) fn holds(&mut self, member: MemberId, config: &ConfigState, applied: Index) {
        let index = config.index;
        let before = self.held.insert(member, index).unwrap_or_default();
        if index < before {
            self.violation(format!(
                "{member} goes back from the configuration of entry {before} to that of {index}"
            ));
        }
        let newest = self.configs.range(..=applied).next_back().map(|(&index, _)| index);
        if newest.is_some_and(|newest| newest > index) {
            self.violation(format!(
                "{member} has applied entry {applied} and acts on the configuration of entry {index}, which is older"
            ));
        }
        let known = self.configs.get(&index).filter(|_| index > Index::ZERO);
        if known.is_some_and(|known| known != config) {
            self.violation(format!(
                "{member} makes {config:?} of entry {index}, others make {known:?}"
            ));
        }
    }

    /// A leader writes configuration changes: one at a time (pitfall P8), none before it has committed in its term, and no
    /// vote for a learner that has nothing.
    pub(crate) fn changes(&mut self, leader: MemberId, soft: &Soft, write: &GroupWrite) {
        let mirror = self.logs.entry(leader).or_default().clone();
        for entry in write.entries.iter().filter(|entry| entry.term == soft.term) {
            let Payload::Config(change) = &entry.payload else {
                continue;
            };
            let commit = self.leading.get(&leader).map_or(Index::ZERO, |(_, commit)| *commit);
            let in_term = mirror
                .terms
                .iter()
                .any(|(&index, &term)| term == soft.term && index <= commit);
            if !in_term {
                self.violation(format!(
                    "{leader} changes its configuration before it has committed anything in term {}",
                    soft.term
                ));
            }
            let under_way = self
                .changes
                .range((soft.config.index.next(), Term::ZERO)..(entry.index, Term::ZERO))
                .find(|(index, term)| mirror.term_at(*index) == Some(*term));
            if let Some((other, _)) = under_way.copied() {
                self.violation(format!(
                    "{leader} changes its configuration by entry {} while the change of entry {other} is under way",
                    entry.index
                ));
            }
            if let ConfigStep::Promote(member) = change.step
                && self.durable.get(&member).map(Mirror::last).unwrap_or_default() == LogPosition::default()
            {
                self.violation(format!("{leader} promotes {member}, which has nothing"));
            }
        }
    }

    /// A member wants this written. Checks Log Matching and that nothing committed is cut off (pitfall P17).
    pub(crate) fn wrote(&mut self, member: MemberId, write: &GroupWrite) {
        self.changes.extend(write.entries.iter().filter_map(change_at));
        let mirror = self.logs.entry(member).or_default();
        let behind = write
            .reset_to
            .filter(|position| mirror.term_at(position.index) == Some(position.term))
            .map_or(0, |position| mirror.terms.range(position.index.next()..).count());
        if behind > 0 {
            self.violation(format!(
                "{member} resets its log to {:?}, which it has, and loses {behind} entries behind it",
                write.reset_to
            ));
        }
        let mirror = self.logs.entry(member).or_default();
        let lost = write.reset_to.and_then(|position| {
            let mut behind = mirror.terms.range(position.index.next()..);
            behind.find(|(index, term)| self.committed.get(index).is_some_and(|known| known.term == **term))
        });
        if let Some((index, term)) = lost {
            let text = format!("{member} resets its log and loses entry {index} of term {term}, which is committed");
            self.violation(text);
        }
        let mirror = self.logs.entry(member).or_default();
        if let Some(first) = write.entries.first() {
            let cut: Vec<(Index, Term)> = mirror
                .terms
                .range(first.index..)
                .map(|(&index, &term)| (index, term))
                .collect();
            self.truncations += u64::from(!cut.is_empty());
            for (index, term) in cut {
                let kept = write
                    .entries
                    .iter()
                    .any(|entry| entry.index == index && entry.term == term);
                if !kept
                    && self
                        .committed
                        .get(&index)
                        .is_some_and(|committed| committed.term == term)
                {
                    self.violation(format!(
                        "{member} cuts entry {index} of term {term} off, which is committed"
                    ));
                }
            }
        }
        let mirror = self.logs.entry(member).or_default();
        let mut before = match write.entries.first() {
            Some(first) if write.reset_to.is_none() => mirror.term_at(first.index.prev()),
            Some(_) | None => write.reset_to.map(|position| position.term),
        };
        mirror.write(write);
        for entry in &write.entries {
            let content = content_hash(&entry.payload);
            let term_before = before.unwrap_or_default();
            let known = *self
                .entries
                .entry((entry.index, entry.term))
                .or_insert((content, term_before));
            if known != (content, term_before) {
                self.violation(format!(
                    "log matching: {member} has another entry {} of term {} than others, or another one before it",
                    entry.index, entry.term
                ));
            }
            before = Some(entry.term);
        }
    }

    /// The same is durable now.
    pub(crate) fn synced(&mut self, member: MemberId, write: &GroupWrite) {
        self.durable.entry(member).or_default().write(write);
        if let Some(state) = write.hard_state {
            self.states.insert(member, (state.term, state.vote));
        }
    }

    /// A member says something. Checks that promises are durable (pitfall P7) and votes given once a term.
    pub(crate) fn sent(&mut self, now: u64, message: &Message, leases: bool) {
        let (from, term) = (message.from, message.term);
        // What it acted on when last looked at, or the next, on which it acts since this step.
        let held = self.held.get(&from).copied().unwrap_or_default();
        let configs = self.configs.range(held..).take(2).map(|(_, config)| config);
        // Under a lease a leader has other reasons to be sure; what those are worth, `LeaseWatch` sees.
        if !self.rounds.may_send(now, message, configs) && !leases {
            let to = message.to;
            self.violation(format!(
                "{from} answers a read of {to} in term {term}, and no majority has confirmed since that it leads"
            ));
        }
        match &message.body {
            Body::VoteReply { granted: true } => self.voted(from, term, message.to),
            Body::Vote { .. } => self.voted(from, term, from),
            Body::AppendAccepted { last, stamp: _ } => {
                let has = self.durable.get(&from).map(Mirror::last).unwrap_or_default();
                if has.index < *last {
                    self.violation(format!(
                        "{from} acknowledges entry {last} in term {term} and has only {} durably",
                        has.index
                    ));
                }
            }
            Body::VoteReply { granted: false }
            | Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Committed { .. }
            | Body::Append { .. }
            | Body::AppendRejected { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::Hibernate { .. }
            | Body::Hibernating { .. }
            | Body::Alive { .. }
            | Body::Snapshot { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::Roster { .. }
            | Body::LeaseRequest { .. }
            | Body::LeaseGrant { .. }
            | Body::Revoke { .. }
            | Body::Revoked { .. } => {}
        }
    }

    /// A member hears something.
    pub(crate) fn received(&mut self, now: u64, message: &Message) {
        self.rounds.received(now, message);
    }

    fn voted(&mut self, voter: MemberId, term: Term, candidate: MemberId) {
        let durable = self.states.get(&voter).copied().unwrap_or_default();
        if durable != (term, Some(candidate)) {
            self.violation(format!(
                "{voter} votes for {candidate} in term {term} and has {durable:?} durably"
            ));
        }
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        if first != candidate {
            self.violation(format!("{voter} votes for {first} and for {candidate} in term {term}"));
        }
    }

    /// A member leads. Checks Election Safety and Leader Completeness.
    pub(crate) fn leads(&mut self, member: MemberId, term: Term) {
        let first = *self.leaders.entry(term).or_insert_with(|| {
            self.elections += 1;
            member
        });
        let durable = self.states.get(&member).copied().unwrap_or_default();
        if durable != (term, Some(member)) {
            self.violation(format!("{member} leads term {term} and has {durable:?} durably"));
        }
        if first != member {
            self.violation(format!("election safety: {first} and {member} both lead term {term}"));
        }
        let mirror = self.logs.entry(member).or_default();
        let missing = self
            .committed
            .range(mirror.start.index.next()..)
            .find(|(index, committed)| committed.by < term && mirror.term_at(**index) != Some(committed.term));
        if let Some((index, committed)) = missing {
            let text = format!(
                "leader completeness: {member} leads term {term} without committed entry {index} of term {}",
                committed.term
            );
            self.violation(text);
        }
    }

    /// A member's commit index in this life.
    pub(crate) fn commits(&mut self, member: MemberId, commit: Index) {
        let before = self.commits.insert(member, commit).unwrap_or_default();
        if commit < before {
            self.violation(format!(
                "{member} takes its commit index back from {before} to {commit}"
            ));
        }
    }

    /// A leader's commit index. By counting copies it may commit only an entry of its own term (Raft paper, section 5.4.2 and
    /// figure 8). What follows from breaking this needs two more elections to show, so the rule itself is watched.
    pub(crate) fn leader_commits(&mut self, member: MemberId, term: Term, commit: Index) {
        let before = self.leading.insert(member, (term, commit));
        let advances = before.is_some_and(|(led, before)| led == term && before < commit);
        let of = self.logs.get(&member).and_then(|mirror| mirror.term_at(commit));
        if advances && of != Some(term) {
            self.violation(format!(
                "{member} leads term {term} and commits up to entry {commit}, which is of term {}",
                of.unwrap_or_default()
            ));
        }
    }

    /// A member begins to hibernate. If it leads, everybody has everything but those whose nodes were silent: nobody would bring it
    /// otherwise.
    pub(crate) fn falls_asleep(&mut self, member: MemberId, view: &View) {
        let (soft, last) = (&view.soft, view.last);
        if soft.role != Role::Leader || self.copies_vanish {
            return;
        }
        let lacks = |member: &MemberId| {
            let log = self.durable.get(member);
            log.is_none_or(|log| log.last().index < last.index) && !view.absent.contains(member)
        };
        if let Some(behind) = soft.config.members().into_iter().find(lacks) {
            let term = soft.term;
            self.violation(format!(
                "{member} leads term {term} and hibernates, and {behind} does not have its entry {}",
                last.index
            ));
        }
    }

    /// A member hands an entry to its state machine. Checks State Machine Safety, and that a majority has the
    /// entry durably when it is first seen committed.
    pub(crate) fn handed(&mut self, member: MemberId, now: Term, item: &Item) {
        let LogPosition { term, index } = item.position;
        let work = work_hash(&item.work);
        let durable = self
            .durable
            .get(&member)
            .is_some_and(|mirror| mirror.term_at(index) == Some(term));
        if !durable {
            self.violation(format!(
                "{member} applies entry {index} of term {term}, which it does not have durably"
            ));
        }
        if let Some(known) = self.committed.get(&index) {
            if (known.term, known.work) != (term, work) {
                let text = format!(
                    "state machine safety: {member} applies entry {index} of term {term}, others one of term {}{}",
                    known.term,
                    if known.work == work {
                        ""
                    } else {
                        " with another content"
                    }
                );
                self.violation(text);
            }
            return;
        }
        self.committed.insert(
            index,
            Committed {
                term,
                by: now,
                work,
                answer: None,
            },
        );
        // Who counts is who belonged before this entry. A leader may commit it together with the change before
        // it, which then does not hold for it yet: one older configuration is as good.
        let mut configs = self.configs.range(..index).rev().map(|(_, config)| config);
        let enough = |config: &ConfigState| {
            let holds = |voter: MemberId| {
                self.durable
                    .get(&voter)
                    .is_some_and(|mirror| mirror.term_at(index) == Some(term) || mirror.start.index >= index)
            };
            // Counted here and not by the core's own rule, which is what is being watched.
            let majority =
                |voters: &BTreeSet<MemberId>| 2 * voters.iter().filter(|voter| holds(**voter)).count() > voters.len();
            majority(&config.voters) && (config.outgoing.is_empty() || majority(&config.outgoing))
        };
        let known = configs.next();
        if !self.copies_vanish && known.is_some_and(|config| !enough(config)) && !configs.next().is_some_and(enough) {
            self.violation(format!(
                "{member} commits entry {index} of term {term}, which no majority has durably"
            ));
        }
        match &item.work {
            Work::Configure { state, .. } => {
                self.configs.insert(index, state.clone());
            }
            Work::Noop | Work::Command { .. } | Work::Reads { .. } => {}
        }
    }

    /// What applying an entry answered at one member; every member must answer the same.
    pub(crate) fn answered(&mut self, member: MemberId, index: Index, answer: &impl std::fmt::Debug) {
        let hash = text_hash(&format!("{answer:?}"));
        let Some(known) = self.committed.get_mut(&index) else {
            return;
        };
        if *known.answer.get_or_insert(hash) != hash {
            self.violation(format!(
                "{member} got another result of entry {index} than others: {answer:?}"
            ));
        }
    }

    /// Highest entry known to be committed.
    pub(crate) fn last_committed(&self) -> Index {
        self.committed
            .last_key_value()
            .map(|(&index, _)| index)
            .unwrap_or_default()
    }
}

fn change_at(entry: &Entry) -> Option<(Index, Term)> {
    matches!(entry.payload, Payload::Config(_)).then_some((entry.index, entry.term))
}

fn text_hash(text: &str) -> u64 {
    bytes_hash(&Bytes::copy_from_slice(text.as_bytes()))
}

fn bytes_hash(bytes: &Bytes) -> u64 {
    bytes.chunks(8).fold(0, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_le_bytes(word)).wrapping_add(chunk.len() as u64)
    })
}

fn content_hash(payload: &Payload) -> u64 {
    match payload {
        Payload::Noop => 1,
        Payload::Command(bytes) => bytes_hash(bytes).wrapping_mul(3),
        Payload::Config(change) => text_hash(&format!("{change:?}")).wrapping_mul(5),
        Payload::Reads(change) => text_hash(&format!("{change:?}")).wrapping_mul(7),
    }
}

fn work_hash(work: &Work) -> u64 {
    match work {
        Work::Noop => 1,
        Work::Command {
            command,
            stamp,
            waiter: _,
        } => {
            let stamp = stamp.map_or(0, |stamp| stamp.0.cast_unsigned());
            bytes_hash(command).wrapping_mul(3) ^ stamp.wrapping_mul(11)
        }
        Work::Configure { change, state } => text_hash(&format!("{change:?}{state:?}")).wrapping_mul(5),
        Work::Reads { state } => text_hash(&format!("{state:?}")).wrapping_mul(7),
    }
}
