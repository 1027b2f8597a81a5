//! Conditions and the shard table, from what the meta group's leader says.

use std::collections::BTreeMap;

use althing_admin::{
    KeyspaceState, KeyspaceStatus, LayoutStatus, OperationKind, OperationStatus, RevisionSource, ShardInfo,
};
use althing_crds::{LayoutOperation, ShardLayoutStatus, ShardState, ValidatedLayout};

use super::{LayoutObserved, LayoutPlan, Obstacle, Seen, keyspace};
use crate::view::CAUGHT_UP_LAG;
use crate::{ConditionKind, ConditionState, ConditionStatus};

/// How a layout is.
#[derive(Clone, PartialEq, Debug)]
pub struct LayoutAssessment {
    /// Ready, Progressing, Degraded.
    pub conditions: Vec<ConditionState>,
    /// What the keyspace is made of; none if nobody could tell: what was known before then stays.
    pub table: Option<Table>,
}

/// What a keyspace is made of.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    /// Shards that exist.
    pub current_shards: u32,
    /// Where revisions come from; none without a keyspace.
    pub revisions: Option<&'static str>,
    /// Bytes of all shards, coarsely.
    pub bytes: Option<i64>,
    /// Shards in order of their ranges, at most [`ShardLayoutStatus::MAX_SHARDS`].
    pub shards: Vec<ShardState>,
    /// Shards that are left out.
    pub not_listed: u32,
    /// Operations, at most [`ShardLayoutStatus::MAX_OPERATIONS`].
    pub operations: Vec<LayoutOperation>,
}

/// Judges what was observed. `refused` is what a node answered to a step of the plan, if it said no.
#[must_use]
pub fn assess(
    desired: &ValidatedLayout,
    observed: &LayoutObserved,
    plan: &LayoutPlan,
    refused: Option<&Obstacle>,
) -> LayoutAssessment {
    let layout = match &observed.layout {
        Seen::Layout(layout) => Some(layout),
        Seen::NoLeader | Seen::NotServed => None,
    };
    let present = layout.and_then(|layout| keyspace(desired, layout));
    // A pause stops nothing that runs: the keyspace is as ready as it is.
    let obstacle = plan.obstacle.as_ref().or(refused);
    let conditions = match obstacle {
        Some(obstacle) if obstacle.reason != "Paused" => hindered(obstacle),
        Some(_) | None => match (layout, present) {
            (Some(layout), Some(present)) => judged(desired, layout, present),
            (Some(_), None) => waiting("Creating", format!("keyspace {} is asked for", desired.keyspace)),
            (None, _) => waiting("NoLeader", "the meta group's leader does not answer".to_owned()),
        },
    };
    // A layout whose keyspace is another's has no shards of its own to show.
    let foreign = obstacle.is_some_and(|obstacle| matches!(obstacle.reason, "KeyspaceTaken" | "ClusterNotFound"));
    LayoutAssessment {
        conditions,
        table: if foreign {
            Some(Table::default())
        } else {
            layout.map(|layout| present.map_or_else(Table::default, |present| table(layout, present)))
        },
    }
}

fn conditions(states: [(ConditionKind, ConditionStatus, &str, String); 3]) -> Vec<ConditionState> {
    states
        .into_iter()
        .map(|(kind, status, reason, message)| ConditionState {
            kind,
            status,
            reason: reason.to_owned(),
            message,
        })
        .collect()
}

fn hindered(obstacle: &Obstacle) -> Vec<ConditionState> {
    let (progressing, degraded) = if obstacle.stuck {
        (ConditionStatus::False, ConditionStatus::True)
    } else {
        (ConditionStatus::True, ConditionStatus::False)
    };
    let (reason, message) = (obstacle.reason, &obstacle.message);
    conditions([
        (ConditionKind::Ready, ConditionStatus::False, reason, message.clone()),
        (ConditionKind::Progressing, progressing, reason, message.clone()),
        (ConditionKind::Degraded, degraded, reason, message.clone()),
    ])
}

fn waiting(reason: &'static str, message: String) -> Vec<ConditionState> {
    hindered(&Obstacle {
        reason,
        message,
        stuck: false,
    })
}

fn judged(desired: &ValidatedLayout, layout: &LayoutStatus, present: &KeyspaceStatus) -> Vec<ConditionState> {
    use ConditionStatus::{False, True};
    let operations: Vec<&OperationStatus> = of(layout, present).collect();
    let under_way = progress(present, &operations);
    let leaderless = present.shards.iter().find(|shard| leaderless(shard));
    let shards = |number: u32| format!("{number} shard{}", if number == 1 { "" } else { "s" });
    let serves = format!(
        "keyspace {} serves from {}",
        present.name,
        shards(present.current_shards)
    );
    let reshaping = operations.iter().find(|operation| reshapes(operation.kind));
    let ready = match (present.state, leaderless, reshaping) {
        (KeyspaceState::Dropping, _, _) => (False, "Dropping", format!("keyspace {} is being dropped", present.name)),
        (KeyspaceState::Creating, _, _) => (
            False,
            "Creating",
            format!("the first shard of keyspace {} is being made", present.name),
        ),
        (KeyspaceState::Active, Some(shard), _) => (
            False,
            "NoLeader",
            format!("shard {} {} has no leader", shard.id, range(shard)),
        ),
        (KeyspaceState::Active, None, Some(operation)) => (
            False,
            doing(operation.kind),
            format!("{} of {}; {under_way}", present.current_shards, shards(desired.shards)),
        ),
        (KeyspaceState::Active, None, None) if present.current_shards != desired.shards => (
            False,
            "Resharding",
            if present.message.is_empty() {
                format!("{} of {}", present.current_shards, shards(desired.shards))
            } else {
                format!(
                    "{} of {}: {}",
                    present.current_shards,
                    shards(desired.shards),
                    present.message
                )
            },
        ),
        (KeyspaceState::Active, None, None) if !present.message.is_empty() => {
            (False, "NotAsDeclared", present.message.clone())
        }
        (KeyspaceState::Active, None, None) => (True, "AsDeclared", serves.clone()),
    };
    let progressing = match operations.first() {
        Some(operation) => (True, doing(operation.kind), under_way),
        None if ready.0 == False => (True, ready.1, ready.2.clone()),
        None => (False, "AsDeclared", "nothing is left to do".to_owned()),
    };
    // Of a shard that was cut off a moment ago nobody may have told yet; if nobody can, the cluster misses members.
    let headless = leaderless.filter(|shard| !shard.voters.is_empty());
    let degraded = match headless {
        Some(_) if present.state == KeyspaceState::Active => (True, ready.1, ready.2.clone()),
        Some(_) | None => (
            False,
            "NoDamage",
            "every shard that was heard of has a leader".to_owned(),
        ),
    };
    conditions([
        (ConditionKind::Ready, ready.0, ready.1, ready.2),
        (ConditionKind::Progressing, progressing.0, progressing.1, progressing.2),
        (ConditionKind::Degraded, degraded.0, degraded.1, degraded.2),
    ])
}

/// Operations that are about this keyspace, oldest first.
fn of<'a>(layout: &'a LayoutStatus, present: &KeyspaceStatus) -> impl Iterator<Item = &'a OperationStatus> {
    let name = present.name.clone();
    layout
        .operations
        .iter()
        .filter(move |operation| operation.keyspace == name)
}

/// Whether it changes what shards there are. A move changes only where they are, and they serve meanwhile.
fn reshapes(kind: OperationKind) -> bool {
    match kind {
        OperationKind::Split
        | OperationKind::Merge
        | OperationKind::Create
        | OperationKind::Sequence
        | OperationKind::Drop => true,
        OperationKind::Move => false,
    }
}

fn doing(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Split => "Splitting",
        OperationKind::Merge => "Merging",
        OperationKind::Move => "Moving",
        OperationKind::Create => "Creating",
        OperationKind::Sequence => "Sequencing",
        OperationKind::Drop => "Dropping",
    }
}

/// "Split of shard 1 (Cut): the desired number of shards is 8; and 2 more".
fn progress(present: &KeyspaceStatus, operations: &[&OperationStatus]) -> String {
    let Some((first, rest)) = operations.split_first() else {
        return String::new();
    };
    let about = match first.shards.as_slice() {
        [] => format!("keyspace {}", present.name),
        [shard, ..] => format!("shard {shard}"),
    };
    let more = match rest.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "{} of {about} ({}): {}{more}",
        first.kind.word(),
        first.phase,
        first.reason
    )
}

/// A shard that is being made has none yet, and one that sleeps may have forgotten it.
fn leaderless(shard: &ShardInfo) -> bool {
    shard.leader.is_none() && !shard.hibernating && shard.operation.is_none()
}

fn table(layout: &LayoutStatus, present: &KeyspaceStatus) -> Table {
    let names: BTreeMap<&str, &str> = layout
        .members
        .iter()
        .map(|member| (member.id.as_str(), member.name.as_str()))
        .collect();
    let kinds: BTreeMap<u64, OperationKind> = layout
        .operations
        .iter()
        .map(|operation| (operation.id, operation.kind))
        .collect();
    let mut rows: Vec<(usize, ShardState)> = present
        .shards
        .iter()
        .map(|shard| row(shard, &names, &kinds))
        .enumerate()
        .collect();
    let all = rows.len();
    rows.sort_by_key(|(order, row)| (row.state == SERVING, *order));
    rows.truncate(ShardLayoutStatus::MAX_SHARDS);
    rows.sort_by_key(|(order, _)| *order);
    let bytes: u64 = present.shards.iter().map(|shard| shard.bytes).sum();
    Table {
        current_shards: present.current_shards,
        revisions: Some(match present.source {
            RevisionSource::Dense => "Dense",
            RevisionSource::Sequenced => "Sequenced",
        }),
        bytes: Some(coarse(bytes)),
        not_listed: u32::try_from(all - rows.len()).unwrap_or(u32::MAX),
        shards: rows.into_iter().map(|(_, row)| row).collect(),
        operations: of(layout, present)
            .take(ShardLayoutStatus::MAX_OPERATIONS)
            .map(|operation| LayoutOperation {
                id: number(operation.id),
                kind: operation.kind.word().to_owned(),
                shards: operation.shards.iter().copied().map(number).collect(),
                phase: operation.phase.clone(),
                reason: operation.reason.clone(),
            })
            .collect(),
    }
}

const SERVING: &str = "Serving";

fn row(shard: &ShardInfo, names: &BTreeMap<&str, &str>, kinds: &BTreeMap<u64, OperationKind>) -> ShardState {
    let name = |id: &String| {
        names
            .get(id.as_str())
            .map_or_else(|| id.clone(), |name| (*name).to_owned())
    };
    let operation = shard.operation.and_then(|operation| kinds.get(&operation));
    let mut voters: Vec<String> = shard.voters.iter().map(name).collect();
    voters.sort_unstable();
    ShardState {
        id: number(shard.id),
        range: range(shard),
        state: match operation {
            Some(kind) => doing(*kind),
            None if leaderless(shard) && shard.voters.is_empty() => "Starting",
            None if leaderless(shard) => "NoLeader",
            None if shard.lag.is_some_and(|lag| lag > CAUGHT_UP_LAG) => "Behind",
            None => SERVING,
        }
        .to_owned(),
        leader: shard.leader.as_ref().map(name),
        voters,
        bytes: Some(coarse(shard.bytes)),
        lag: shard.lag.map(|lag| if lag < 1024 { 0 } else { coarse(lag) }),
        hibernating: shard.hibernating,
    }
}

/// `[/a, /m)`, with two dots for the beginning and the end of all keys.
fn range(shard: &ShardInfo) -> String {
    let bound = |text: &str| {
        if text.is_empty() {
            "..".to_owned()
        } else {
            text.to_owned()
        }
    };
    format!("[{}, {})", bound(&shard.start), bound(&shard.end))
}

fn number(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

/// Three binary digits of a number that changes with every write: each change of the status is a write to the API server.
fn coarse(number: u64) -> i64 {
    let kept = number.checked_ilog2().map_or(0, |digits| {
        let dropped = digits.saturating_sub(2);
        (number >> dropped) << dropped
    });
    i64::try_from(kept).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::coarse;

    #[test]
    fn a_number_that_is_noise_keeps_its_size() {
        assert_eq!(
            [0, 1, 7, 9, 1023, 1_000_000, u64::MAX].map(coarse),
            [0, 1, 7, 8, 896, 917_504, i64::MAX]
        );
    }
}
