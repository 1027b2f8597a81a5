//! Requests that somebody waits for, and when the waiting ends.

use althing_raft::ids::{GroupId, MemberId, Now};
use althing_raft::io::RequestId;
use std::collections::{BTreeMap, BTreeSet};

/// How far a request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// A proposal that has not left the host: certainly without effect.
    Held,
    /// A proposal that waits for its revision at this leader: certainly without effect.
    Stamping,
    /// A proposal or change that this leader has; somebody else's rise ends it.
    Sent(MemberId),
    /// Committed; the state machine will answer.
    Committed,
    /// A read.
    Read,
    /// A transfer.
    Transfer,
    /// Somebody waits until everything is settled that was stamped before.
    Resolve,
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) group: GroupId,
    pub(crate) stage: Stage,
    deadline: Now,
    bytes: usize,
}

/// What one group has under way.
#[derive(Debug, Default)]
struct OfGroup {
    requests: BTreeSet<RequestId>,
    bytes: usize,
}

/// All requests of a host.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    all: BTreeMap<RequestId, Pending>,
    deadlines: BTreeSet<(Now, RequestId)>,
    groups: BTreeMap<GroupId, OfGroup>,
    bytes: usize,
}

impl Requests {
    /// `bytes` is what it holds in memory.
    pub(crate) fn insert(&mut self, request: RequestId, group: GroupId, stage: Stage, deadline: Now, bytes: usize) {
        let pending = Pending {
            group,
            stage,
            deadline,
            bytes,
        };
        let before = self.all.insert(request, pending);
        assert!(before.is_none(), "invariant: request ids are unique within a boot");
        self.deadlines.insert((deadline, request));
        let of_group = self.groups.entry(group).or_default();
        of_group.requests.insert(request);
        of_group.bytes += bytes;
        self.bytes += bytes;
    }

    /// Takes a request off the list; `None` if it was answered before.
    pub(crate) fn remove(&mut self, request: RequestId) -> Option<Pending> {
        let pending = self.all.remove(&request)?;
        self.deadlines.remove(&(pending.deadline, request));
        self.bytes -= pending.bytes;
        if let Some(of_group) = self.groups.get_mut(&pending.group) {
            of_group.requests.remove(&request);
            of_group.bytes -= pending.bytes;
            if of_group.requests.is_empty() {
                self.groups.remove(&pending.group);
            }
        }
        Some(pending)
    }

    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.all.contains_key(&request)
    }

    /// Moves a request on; `false` if it was answered before. What is committed has no deadline any more: the state machine
    /// answers it, and nobody may have answered before.
    pub(crate) fn stage(&mut self, request: RequestId, stage: Stage) -> bool {
        let Some(pending) = self.all.get_mut(&request) else {
            return false;
        };
        pending.stage = stage;
        if stage == Stage::Committed {
            self.deadlines.remove(&(pending.deadline, request));
        }
        true
    }

    pub(crate) fn is(&self, request: RequestId, stage: Stage) -> bool {
        self.all.get(&request).is_some_and(|pending| pending.stage == stage)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of one group, and their bytes.
    pub(crate) fn size_of(&self, group: GroupId) -> (usize, usize) {
        let of_group = self.groups.get(&group);
        of_group.map_or((0, 0), |of_group| (of_group.requests.len(), of_group.bytes))
    }

    /// Everything of one group.
    pub(crate) fn of_group(&self, group: GroupId) -> impl Iterator<Item = (RequestId, Stage)> {
        let requests = self
            .groups
            .get(&group)
            .into_iter()
            .flat_map(|of_group| &of_group.requests);
        requests.filter_map(|request| Some((*request, self.all.get(request)?.stage)))
    }

    pub(crate) fn next_deadline(&self) -> Option<Now> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes off one whose time is over.
    pub(crate) fn pop_expired(&mut self, now: Now) -> Option<(RequestId, Pending)> {
        let (deadline, request) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        let pending = self.remove(request).expect("invariant: every deadline has its request");
        Some((request, pending))
    }
}
