//! How many members a drain may take at once: as many as the quorum of the members' voters and that of every shard can spare,
//! and never a budget that only blocks.

use althing_crds::{ValidatedCluster, names};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// None for a single voter: a budget could then only forbid every drain for ever.
/// `shards` is what the smallest shard can spare.
pub(super) fn disruption_budget(
    cluster: &ValidatedCluster,
    voters: usize,
    shards: Option<usize>,
) -> Option<PodDisruptionBudget> {
    let members = usize::try_from(cluster.members.get()).expect("invariant: at most nine members");
    if voters <= 1 || members <= 1 {
        return None;
    }
    // A budget counts pods, quorum counts voters: in the worst case every pod that goes is a voter's.
    let spare = shards.map_or((voters - 1) / 2, |shards| shards.min((voters - 1) / 2));
    let needed = i32::try_from(members.max(voters) - spare).expect("invariant: at most nine members");
    Some(PodDisruptionBudget {
        metadata: super::metadata(cluster, cluster.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(needed)),
            selector: Some(LabelSelector {
                match_labels: Some(names::selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, valid, yaml};
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn needed(members: u32, voters: usize, shards: Option<usize>) -> Option<IntOrString> {
        let cluster = valid(json!({"members": members, "version": "0.1.0", "storage": {"size": "1Gi"}}));
        disruption_budget(&cluster, voters, shards)
            .and_then(|budget| budget.spec)
            .and_then(|spec| spec.min_available)
    }

    #[test]
    fn the_budget_selects_the_members() {
        expect![[r#"
            apiVersion: policy/v1
            kind: PodDisruptionBudget
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
            spec:
              minAvailable: 2
              selector:
                matchLabels:
                  app.kubernetes.io/component: member
                  app.kubernetes.io/instance: orders
                  app.kubernetes.io/name: althing
        "#]]
        .assert_eq(&yaml(&disruption_budget(&cluster(), 3, None)));
    }

    #[test]
    fn voters_price_the_budget_before_and_after_a_membership_change() {
        for (members, voters, expected) in [(3, 3, 2), (5, 5, 3), (5, 3, 4), (3, 5, 3), (3, 2, 3), (5, 4, 4)] {
            assert_eq!(
                needed(members, voters, None),
                Some(IntOrString::Int(expected)),
                "{members} members, {voters} voters"
            );
        }
    }

    #[test]
    fn a_single_voter_never_blocks_a_drain() {
        assert_eq!(needed(1, 1, None), None);
        assert_eq!(needed(3, 1, Some(0)), None);
        assert_eq!(needed(1, 3, None), None);
    }

    #[test]
    fn shards_of_three_replicas_on_five_members_spare_one() {
        assert_eq!(needed(5, 5, Some(1)), Some(IntOrString::Int(4)));
        assert_eq!(needed(5, 5, Some(2)), Some(IntOrString::Int(3)));
    }
}
