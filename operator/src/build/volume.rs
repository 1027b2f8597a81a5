//! A member's volume claim.

use althing_crds::{Retention, ValidatedCluster, names};
use althing_plan::model::Ordinal;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Builds the claim. It is owned by the cluster only if it is to go with it: garbage collection then deletes it, and no
/// finalizer has to wait for an operator.
pub(crate) fn volume_claim(cluster: &ValidatedCluster, ordinal: Ordinal) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::volume(&cluster.name, ordinal.0)),
            namespace: cluster.namespace.clone(),
            labels: Some(names::member_labels(&cluster.name, ordinal.0)),
            annotations: cluster
                .uid
                .clone()
                .map(|uid| super::one(names::ANNOTATION_CLUSTER_UID, uid)),
            owner_references: if owned(cluster) {
                super::owner(cluster).map(|owner| vec![owner])
            } else {
                None
            },
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(cluster.volumes.size.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: cluster.volumes.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// Whether volumes go with the cluster.
fn owned(cluster: &ValidatedCluster) -> bool {
    match cluster.volumes.when_deleted {
        Retention::Delete => true,
        Retention::Retain => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, valid, yaml};
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn a_retained_claim_has_no_owner() {
        expect![[r#"
            apiVersion: v1
            kind: PersistentVolumeClaim
            metadata:
              annotations:
                althing.dev/cluster-uid: u-1
              labels:
                althing.dev/ordinal: "1"
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/managed-by: althing-operator
                app.kubernetes.io/name: althing
              name: data-orders-1
              namespace: shop
            spec:
              accessModes:
              - ReadWriteOnce
              resources:
                requests:
                  storage: 10Gi
        "#]]
        .assert_eq(&yaml(&volume_claim(&cluster(), Ordinal(1))));
    }

    #[test]
    fn a_claim_that_goes_with_its_cluster_is_owned_by_it() {
        let cluster = valid(json!({
            "members": 1, "version": "0.1.0", "storage": {"size": "1Gi", "storageClassName": "fast"},
            "volumeRetention": {"whenDeleted": "Delete"}
        }));
        expect![[r#"
            apiVersion: v1
            kind: PersistentVolumeClaim
            metadata:
              annotations:
                althing.dev/cluster-uid: u-1
              labels:
                althing.dev/ordinal: "0"
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/managed-by: althing-operator
                app.kubernetes.io/name: althing
              name: data-orders-0
              namespace: shop
              ownerReferences:
              - apiVersion: althing.dev/v1alpha1
                controller: true
                kind: RaftCluster
                name: orders
                uid: u-1
            spec:
              accessModes:
              - ReadWriteOnce
              resources:
                requests:
                  storage: 1Gi
              storageClassName: fast
        "#]]
        .assert_eq(&yaml(&volume_claim(&cluster, Ordinal(0))));
    }
}
