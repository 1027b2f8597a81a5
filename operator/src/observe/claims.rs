//! What a volume claim says. Pure.

use althing_crds::names;
use althing_plan::model::Volume;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

/// The claim's phase when the volume that was bound to it does not exist any more.
const PHASE_LOST: &str = "Lost";

/// Its state.
pub(super) fn volume(claim: &PersistentVolumeClaim) -> Volume {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if claim.metadata.deletion_timestamp.is_some() {
        Volume::Terminating
    } else if phase == Some(PHASE_LOST) {
        let name = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref())
            .unwrap_or("its persistent volume");
        Volume::Lost {
            reason: format!(
                "the persistent volume {name} of claim {} does not exist any more",
                claim.name_any()
            ),
        }
    } else {
        Volume::Present
    }
}

/// Whether the claim is older than this declaration of the cluster.
pub(super) fn made_by_another(claim: &PersistentVolumeClaim, uid: Option<&str>) -> bool {
    claim
        .annotations()
        .get(names::ANNOTATION_CLUSTER_UID)
        .map(String::as_str)
        != uid
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(metadata: Value, status: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": metadata, "spec": {"volumeName": "pv-7"}, "status": status}))
            .expect("a claim")
    }

    #[test]
    fn a_claim_is_there_until_it_is_deleted_or_its_volume_is() {
        let name = json!({"name": "data-orders-0"});
        assert_eq!(
            volume(&claim(name.clone(), json!({"phase": "Pending"}))),
            Volume::Present
        );
        assert_eq!(volume(&claim(name.clone(), json!({"phase": "Bound"}))), Volume::Present);
        let lost = volume(&claim(name, json!({"phase": "Lost"})));
        assert!(
            matches!(&lost, Volume::Lost { reason } if reason.contains("pv-7")),
            "{lost:?}"
        );
        let deleted = json!({"name": "data-orders-0", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(volume(&claim(deleted, json!({"phase": "Bound"}))), Volume::Terminating);
    }

    #[test]
    fn a_claim_knows_who_made_it() {
        let ours = json!({"name": "data-orders-0", "annotations": {"althing.dev/cluster-uid": "u-1"}});
        assert!(!made_by_another(&claim(ours.clone(), json!({})), Some("u-1")));
        assert!(made_by_another(&claim(ours, json!({})), Some("u-2")));
        assert!(made_by_another(
            &claim(json!({"name": "data-orders-0"}), json!({})),
            Some("u-1")
        ));
    }
}
