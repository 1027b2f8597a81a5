//! Events, on transitions only. An event that cannot be written is logged and nothing more: it must not hold up the work.

use althing_crds::{RaftCluster, ShardLayout};
use althing_plan::model::Step;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};

use crate::context::Context;

/// The longest note that Kubernetes takes (events.k8s.io/v1), in bytes.
const MAX_NOTE: usize = 1024;

/// A step was carried out. The member's pod is named as related: that also keeps events about different members apart,
/// which the recorder would otherwise count as one.
pub(crate) async fn step(context: &Context, cluster: &RaftCluster, step: &Step, member: Option<String>, note: String) {
    let related = member.map(|name| ObjectReference {
        api_version: Some(Pod::api_version(&()).into_owned()),
        kind: Some(Pod::kind(&()).into_owned()),
        namespace: cluster.namespace(),
        name: Some(name),
        ..ObjectReference::default()
    });
    publish(
        context,
        &cluster.object_ref(&()),
        related,
        EventType::Normal,
        step.word(),
        step.word(),
        note,
    )
    .await;
}

/// Something was done for a layout, or has become of its shards.
pub(crate) async fn layout(context: &Context, layout: &ShardLayout, reason: &str, subject: &str, note: String) {
    let action = format!("{reason} of {subject}");
    publish(
        context,
        &layout.object_ref(&()),
        None,
        EventType::Normal,
        reason,
        &action,
        note,
    )
    .await;
}

/// Conditions changed: what got worse is a warning, and Ready is worth a line. The object at the version that was judged is
/// named as related, so that each transition is an event with a note of its own.
pub(crate) async fn conditions<K>(context: &Context, object: &K, old: &[Condition], new: &[Condition])
where
    K: Resource<DynamicType = ()>,
{
    let regarding = object.object_ref(&());
    for (kind, (type_, condition)) in worth_telling(old, new) {
        let judged = ObjectReference {
            resource_version: object.resource_version(),
            ..regarding.clone()
        };
        let note = condition.message.clone();
        publish(context, &regarding, Some(judged), type_, &condition.reason, kind, note).await;
    }
}

/// Which changes of conditions are told, and how.
fn worth_telling<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<(&'a str, (EventType, &'a Condition))> {
    new.iter()
        .filter(|condition| {
            let before = old.iter().find(|other| other.type_ == condition.type_);
            before.is_none_or(|before| before.status != condition.status || before.reason != condition.reason)
        })
        .filter_map(
            |condition| match (condition.type_.as_str(), condition.status.as_str()) {
                ("Ready", "True") => Some((condition.type_.as_str(), (EventType::Normal, condition))),
                ("Degraded", "True") | ("QuorumHealthy", "False") => {
                    Some((condition.type_.as_str(), (EventType::Warning, condition)))
                }
                ("Ready", "False") if condition.reason == "Invalid" => {
                    Some((condition.type_.as_str(), (EventType::Warning, condition)))
                }
                _ => None,
            },
        )
        .collect()
}

async fn publish(
    context: &Context,
    regarding: &ObjectReference,
    secondary: Option<ObjectReference>,
    type_: EventType,
    reason: &str,
    action: &str,
    mut note: String,
) {
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE - 4)
            .rev()
            .find(|end| note.is_char_boundary(*end))
            .unwrap_or(0);
        note.truncate(end);
        note.push_str(" ...");
    }
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary,
    };
    if let Err(error) = context.recorder.publish(&event, regarding).await {
        tracing::warn!(%error, reason, "an event could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        serde_json::from_value(serde_json::json!({
            "type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"
        }))
        .expect("a condition")
    }

    #[test]
    fn only_changes_are_told() {
        let old = [
            condition("Ready", "True", "AsDeclared"),
            condition("Degraded", "False", "NoDamage"),
        ];
        let new = [
            condition("Ready", "True", "AsDeclared"),
            condition("Degraded", "True", "MemberPending"),
        ];
        let told = worth_telling(&old, &new);
        assert_eq!(
            told.iter()
                .map(|(kind, (_, c))| (*kind, c.reason.as_str()))
                .collect::<Vec<_>>(),
            [("Degraded", "MemberPending")]
        );
        assert!(worth_telling(&new, &new).is_empty());
    }
}
