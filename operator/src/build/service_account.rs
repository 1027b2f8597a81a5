//! The members' identity. It has no rights at all: members never talk to Kubernetes.

use althing_crds::ValidatedCluster;
use k8s_openapi::api::core::v1::ServiceAccount;

pub(super) fn service_account(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: super::metadata(cluster, cluster.name.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, yaml};
    use expect_test::expect;

    #[test]
    fn members_get_no_token() {
        expect![[r#"
            apiVersion: v1
            automountServiceAccountToken: false
            kind: ServiceAccount
            metadata:
              labels:
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/managed-by: althing-operator
                app.kubernetes.io/name: althing
              name: orders
              namespace: shop
              ownerReferences:
              - apiVersion: althing.dev/v1alpha1
                controller: true
                kind: RaftCluster
                name: orders
                uid: u-1
        "#]]
        .assert_eq(&yaml(&super::service_account(&cluster())));
    }
}
