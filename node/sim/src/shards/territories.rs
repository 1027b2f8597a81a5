//! Who owns which keys, as the leaders know it.

use super::World;
use althing_raft::ids::{GroupId, MemberId, Term};
use althing_raft::io::Role;
use althing_store::ops::Territory;
use std::collections::BTreeMap;

impl World {
    /// No key is owned by two groups whose leaders know what is committed. Looked at when a group has become another one.
    pub(super) fn look_at_territories(&mut self) {
        let owned = |machine: usize, group: GroupId| {
            let process = self.machines[machine].process.as_ref()?;
            let view = process.host.view(group)?;
            let soft = &view.raft.soft;
            let knows = view.raft.commit == view.applied.index && view.applied.term == soft.term;
            let store = process.groups.get(&group)?;
            let territory = (knows && store.sealed().is_none()).then(|| store.territory());
            (soft.role == Role::Leader).then_some((soft.term, territory))
        };
        // Of several that believe to lead, only the newest can know.
        let mut spans: BTreeMap<GroupId, (Term, MemberId, Option<Territory>)> = BTreeMap::new();
        for machine in 0..self.machines.len() {
            let Some(process) = &self.machines[machine].process else {
                continue;
            };
            for group in process.groups.keys().copied() {
                if group == GroupId::META || self.sequencers.contains(&group) {
                    continue;
                }
                if let Some((term, territory)) = owned(machine, group) {
                    let member = self.machines[machine].member;
                    let newer = spans.get(&group).is_none_or(|(other, _, _)| *other < term);
                    if newer {
                        spans.insert(group, (term, member, territory));
                    }
                }
            }
        }
        let known = |(group, (_, member, territory)): (GroupId, (Term, MemberId, Option<Territory>))| {
            territory.map(|territory| (group, member, territory))
        };
        let all: Vec<_> = spans.into_iter().filter_map(known).collect();
        for (at, (one, member, territory)) in all.iter().enumerate() {
            for (other, their, others) in &all[at + 1..] {
                let both = territory.span.and(&others.span);
                if both.is_some_and(|both| !both.is_empty()) {
                    self.violation(format!(
                        "groups {one} at {member} and {other} at {their} both own {:?} and {:?}",
                        territory.span, others.span
                    ));
                }
            }
        }
    }
}
