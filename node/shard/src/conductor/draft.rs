//! A plan in the making.

use crate::conductor::view::View;
use crate::conductor::{Action, Limits, Observed, Pending, Plan, Step, Subject};
use crate::map::{KeyspaceId, KeyspaceRecord, Operation, OperationId, ShardRecord, Work};
use crate::meta::{Counters, MetaChange, MetaState};
use crate::placement::{Placement, Site};
use althing_raft::ids::{GroupId, MemberId, Now};
use std::collections::{BTreeMap, BTreeSet};

/// Rows that one change of the map may write: it is one entry of the meta group's log.
const CHANGE_ROWS_MAX: usize = 256;
/// Reasons that the one change of a plan repeats in its own.
const REASONS_MAX: usize = 3;

/// What is known, and what the plan says so far.
pub(super) struct Draft<'a> {
    pub(super) state: &'a MetaState,
    pub(super) view: View<'a>,
    pub(super) limits: &'a Limits,
    pub(super) placement: Placement,
    /// The shards of each keyspace that hold keys, by span.
    shards: BTreeMap<KeyspaceId, Vec<(GroupId, &'a ShardRecord)>>,
    plan: Plan,
    change: MetaChange,
    change_reasons: Vec<String>,
    counters: Counters,
    /// Groups with an operation, those that begin with this plan too.
    busy: BTreeSet<GroupId>,
    /// Operations under way and beginning.
    operations: usize,
    /// Copies under way to each member, and from each leader.
    copies: BTreeMap<MemberId, usize>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a MetaState, seen: &'a Observed, now: Now, limits: &'a Limits) -> Self {
        let view = View::new(seen, now, limits);
        let mut sites = BTreeMap::new();
        for (member, record) in &state.members {
            let mut site = Site::of(record);
            site.active = record.state == crate::map::MemberState::Active && seen.members.contains_key(member);
            site.reachable = view.reachable(*member);
            site.dead = view.dead(*member);
            sites.insert(*member, site);
        }
        for shard in state.shards.values() {
            for member in &shard.replicas {
                if let Some(site) = sites.get_mut(member) {
                    site.load += 1;
                }
            }
        }
        let mut shards: BTreeMap<KeyspaceId, Vec<(GroupId, &ShardRecord)>> = BTreeMap::new();
        for (group, shard) in state.shards.iter().filter(|(_, shard)| !shard.sequencer) {
            shards.entry(shard.keyspace).or_default().push((*group, shard));
        }
        for shards in shards.values_mut() {
            shards.sort_by(|(_, a), (_, b)| a.span.start.cmp(&b.span.start));
        }
        let mut draft = Self {
            shards,
            state,
            view,
            limits,
            placement: Placement::new(sites),
            plan: Plan::default(),
            change: MetaChange::default(),
            change_reasons: Vec::new(),
            counters: state.counters,
            busy: BTreeSet::new(),
            operations: 0,
            copies: BTreeMap::new(),
        };
        for operation in state.operations.values() {
            draft.count(&operation.work);
        }
        draft
    }

    pub(super) fn finish(mut self) -> Plan {
        if self.counters != self.state.counters {
            self.change.counters = Some(self.counters);
        }
        if !self.change.is_empty() {
            let more = self.change_reasons.len().saturating_sub(REASONS_MAX);
            self.change_reasons.truncate(REASONS_MAX);
            let mut reason = self.change_reasons.join("; ");
            if more > 0 {
                reason.push_str(&format!("; and {more} more"));
            }
            let action = Action::Change(self.change);
            self.plan.steps.insert(0, Step { action, reason });
        }
        self.plan
    }

    pub(super) fn act(&mut self, action: Action, reason: impl Into<String>) {
        let reason = reason.into();
        self.plan.steps.push(Step { action, reason });
    }

    pub(super) fn wait(&mut self, subject: Subject, reason: impl Into<String>) {
        let reason = reason.into();
        self.plan.pending.push(Pending { subject, reason });
    }

    pub(super) fn because(&mut self, reason: impl Into<String>) {
        self.change_reasons.push(reason.into());
    }

    /// Whether the change of this plan may still grow by a few rows.
    pub(super) fn has_room(&self) -> bool {
        self.change.rows() + 4 <= CHANGE_ROWS_MAX
    }

    pub(super) fn put_shard(&mut self, group: GroupId, shard: Option<ShardRecord>) {
        self.change.shards.insert(group, shard);
    }

    pub(super) fn put_keyspace(&mut self, id: KeyspaceId, keyspace: Option<KeyspaceRecord>) {
        self.change.keyspaces.insert(id, keyspace);
    }

    /// Whether this plan changes a keyspace's row already.
    pub(super) fn changes_keyspace(&self, id: KeyspaceId) -> bool {
        self.change.keyspaces.contains_key(&id)
    }

    pub(super) fn put_member(&mut self, id: MemberId, member: Option<crate::map::MemberRecord>, reason: String) {
        self.change.members.insert(id, member);
        self.because(reason);
    }

    /// An operation is over.
    pub(super) fn end(&mut self, id: OperationId, reason: impl Into<String>) {
        self.change.operations.insert(id, None);
        self.because(reason);
    }

    /// An operation goes on with this.
    pub(super) fn advance(&mut self, id: OperationId, operation: &Operation, work: Work, reason: impl Into<String>) {
        let phase_since = self.view.wall_seconds();
        let next = Operation {
            work,
            phase_since,
            ..operation.clone()
        };
        self.change.operations.insert(id, Some(next));
        self.because(reason);
    }

    /// An operation begins; its first step comes with the next plan, when it is recorded.
    pub(super) fn begin(&mut self, keyspace: KeyspaceId, work: Work, reason: String) {
        let id = OperationId(self.counters.next_operation);
        self.counters.next_operation += 1;
        self.count(&work);
        let since = self.view.wall_seconds();
        let operation = Operation {
            keyspace,
            work,
            since,
            phase_since: since,
            reason: reason.clone(),
        };
        self.change.operations.insert(id, Some(operation));
        self.because(reason);
    }

    pub(super) fn shards_of(&self, keyspace: KeyspaceId) -> &[(GroupId, &'a ShardRecord)] {
        self.shards.get(&keyspace).map_or(&[], Vec::as_slice)
    }

    /// The number that the next new group gets.
    pub(super) fn next_group_number(&self) -> u64 {
        self.counters.next_group
    }

    pub(super) fn next_group(&mut self) -> GroupId {
        let group = GroupId(self.counters.next_group);
        self.counters.next_group += 1;
        group
    }

    /// Whether another operation may begin.
    pub(super) fn may_begin(&self) -> bool {
        self.operations < self.limits.operations && self.has_room()
    }

    pub(super) fn is_busy(&self, group: GroupId) -> bool {
        self.busy.contains(&group)
    }

    /// Operations that may still begin.
    pub(super) fn operations_left(&self) -> usize {
        self.limits.operations.saturating_sub(self.operations)
    }

    /// How many more copies a member may get or give.
    pub(super) fn copies_left(&self, member: MemberId) -> usize {
        let under_way = self.copies.get(&member).copied().unwrap_or_default();
        self.limits.copies_per_member.saturating_sub(under_way)
    }

    /// Whether replicas may go from here to there now, as far as copies are limited.
    pub(super) fn may_copy(&self, group: GroupId, from: &BTreeSet<MemberId>, to: &BTreeSet<MemberId>) -> bool {
        let mut newcomers = to.difference(from).peekable();
        if newcomers.peek().is_none() {
            return true;
        }
        let giver = self.view.leader(group).map(|leader| leader.member);
        newcomers
            .chain(giver.as_ref())
            .all(|member| self.copies_left(*member) > 0)
    }

    /// Remembers what an operation keeps busy.
    fn count(&mut self, work: &Work) {
        self.operations += 1;
        self.busy.extend(work.groups());
        let (group, to) = match work {
            Work::Move { group, to } | Work::Create { group, to, .. } => (*group, to),
            Work::Sequence { sequencer, to, .. } => (*sequencer, to),
            Work::Merge { left, right, .. } => match self.state.shards.get(left) {
                Some(left) => (*right, &left.replicas),
                None => return,
            },
            Work::Split { .. } => return,
        };
        let from = self.state.shards.get(&group).map(|shard| &shard.replicas);
        let from: BTreeSet<MemberId> = from.into_iter().flatten().copied().collect();
        let to: BTreeSet<MemberId> = to.iter().copied().collect();
        self.placement.shift(&from, &to);
        let newcomers: Vec<MemberId> = to.difference(&from).copied().collect();
        if newcomers.is_empty() {
            return;
        }
        let giver = self.view.leader(group).map(|leader| leader.member);
        for member in newcomers.into_iter().chain(giver) {
            *self.copies.entry(member).or_default() += 1;
        }
    }
}
