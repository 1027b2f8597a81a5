//! What a pod says. Pure.

use std::collections::BTreeMap;

use althing_crds::names;
use althing_plan::model::Workload;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use crate::build::CONTAINER;

/// A pod that nothing is known of yet is on its way.
const STARTING: &str = "Starting";

/// Its address, once it has one.
pub(super) fn address(pod: &Pod) -> Option<&str> {
    pod.status
        .as_ref()
        .and_then(|status| status.pod_ip.as_deref())
        .filter(|address| !address.is_empty())
}

/// Where it runs, for placement: its node, and the zone that Kubernetes copies onto pods since 1.35.
pub(super) fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let zone = pod.labels().get(names::LABEL_ZONE).cloned();
    [(names::PLACE_NODE, node), (names::PLACE_ZONE, zone)]
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| (key.to_owned(), value)))
        .collect()
}

/// Its state. A pod that belongs to an earlier cluster of the same name is on its way out: garbage collection takes it.
pub(super) fn workload(pod: &Pod, uid: Option<&str>) -> Workload {
    let ours = pod
        .owner_references()
        .iter()
        .any(|owner| Some(owner.uid.as_str()) == uid);
    if pod.metadata.deletion_timestamp.is_some() || !ours {
        return Workload::Terminating;
    }
    let Some(status) = &pod.status else {
        return pending(STARTING, "it was created a moment ago");
    };
    let container = status
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == CONTAINER);
    match status.phase.as_deref() {
        Some("Failed" | "Succeeded") => {
            let reason = status.reason.clone().unwrap_or_else(|| "Ended".to_owned());
            let message = status.message.clone().unwrap_or_else(|| "the pod ended".to_owned());
            Workload::Ended { reason, message }
        }
        _ => container.map_or_else(|| not_scheduled(pod), of_container),
    }
}

fn not_scheduled(pod: &Pod) -> Workload {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let unscheduled = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    match unscheduled {
        Some(condition) => pending(
            condition.reason.as_deref().unwrap_or("Unschedulable"),
            condition.message.as_deref().unwrap_or("no node takes it"),
        ),
        None => pending(STARTING, "its node has not started it yet"),
    }
}

fn of_container(container: &ContainerStatus) -> Workload {
    let Some(state) = &container.state else {
        return pending(STARTING, "its node has not started it yet");
    };
    if state.running.is_some() {
        return Workload::Running;
    }
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or(STARTING);
        let message = waiting.message.as_deref().unwrap_or("its container is being started");
        return if reason == "CrashLoopBackOff" || container.restart_count > 0 {
            Workload::Failed {
                reason: reason.to_owned(),
                message: last_words(container).unwrap_or_else(|| message.to_owned()),
            }
        } else {
            pending(reason, message)
        };
    }
    let reason = state
        .terminated
        .as_ref()
        .and_then(|ended| ended.reason.clone())
        .unwrap_or_else(|| "Restarting".to_owned());
    let message = last_words(container).unwrap_or_else(|| "its process ended and is being restarted".to_owned());
    Workload::Failed { reason, message }
}

/// How the process ended, now or before.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref().and_then(|state| state.terminated.clone())
    };
    let ended = ended(&container.state).or_else(|| ended(&container.last_state))?;
    let reason = ended.reason.unwrap_or_else(|| "ended".to_owned());
    Some(format!(
        "its process ended with code {} ({reason}); `kubectl logs --previous` shows its last words",
        ended.exit_code
    ))
}

fn pending(reason: &str, message: &str) -> Workload {
    Workload::Pending {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn state_of(status: Value) -> Workload {
        let pod = json!({"metadata": {"name": "orders-0", "ownerReferences": [
            {"apiVersion": "althing.dev/v1alpha1", "kind": "RaftCluster", "name": "orders", "uid": "u-1"}
        ]}, "status": status});
        workload(&serde_json::from_value(pod).expect("a pod"), Some("u-1"))
    }

    fn container(state: Value, restarts: i32, last: Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "name": "member", "image": "x", "imageID": "x", "ready": false, "restartCount": restarts, "state": state, "lastState": last
        }]})
    }

    #[test]
    fn a_pod_that_no_node_takes_says_why() {
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
        ]});
        let expected = Workload::Pending {
            reason: "Unschedulable".into(),
            message: "0/3 nodes are available".into(),
        };
        assert_eq!(state_of(status), expected);
    }

    #[test]
    fn an_unknown_image_is_named() {
        let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "althing-node:9.9.9: not found"}});
        let expected = Workload::Pending {
            reason: "ErrImagePull".into(),
            message: "althing-node:9.9.9: not found".into(),
        };
        assert_eq!(state_of(container(waiting, 0, json!({}))), expected);
    }

    #[test]
    fn a_crash_loop_tells_how_the_process_ended() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        let last = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
        let state = state_of(container(waiting, 4, last));
        assert!(
            matches!(&state, Workload::Failed { message, .. } if message.contains("code 2")),
            "{state:?}"
        );
    }

    #[test]
    fn an_evicted_pod_has_ended() {
        let status = json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"});
        let expected = Workload::Ended {
            reason: "Evicted".into(),
            message: "the node was low on memory".into(),
        };
        assert_eq!(state_of(status), expected);
    }

    #[test]
    fn a_running_container_runs() {
        assert_eq!(
            state_of(container(json!({"running": {}}), 3, json!({}))),
            Workload::Running
        );
    }

    #[test]
    fn a_pod_of_an_earlier_cluster_is_on_its_way_out() {
        let pod = json!({"metadata": {"name": "orders-0"}, "status": container(json!({"running": {}}), 0, json!({}))});
        assert_eq!(
            workload(&serde_json::from_value(pod).expect("a pod"), Some("u-1")),
            Workload::Terminating
        );
    }
}
