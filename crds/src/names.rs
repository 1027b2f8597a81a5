//! Names and labels of everything that belongs to a cluster: one place, so that operator, CLI, chart and tests agree.

use std::collections::BTreeMap;

/// API group of both kinds.
pub const GROUP: &str = "althing.dev";
/// API version of both kinds.
pub const VERSION: &str = "v1alpha1";
/// Where clients connect.
pub const CLIENT_PORT: u16 = 2379;
/// Where members talk to each other.
pub const PEER_PORT: u16 = 2380;
/// HTTP admin API, probes and metrics.
pub const ADMIN_PORT: u16 = 2381;
/// Longest name of a cluster or layout: leaves room for `data-`, `-<ordinal>` and a controller's suffixes in the
/// 63 characters of a DNS label.
pub const MAX_NAME_LENGTH: usize = 40;
/// The keyspace that every cluster has.
pub const DEFAULT_KEYSPACE: &str = "default";
/// Label that tells a cluster's services apart.
pub const LABEL_SERVICE: &str = "althing.dev/service";
/// Value of [`LABEL_SERVICE`] on the headless service of a cluster's members: what a ServiceMonitor selects.
pub const SERVICE_PEERS: &str = "peers";
/// Label that carries a member's ordinal.
pub const LABEL_ORDINAL: &str = "althing.dev/ordinal";
/// Kubernetes' own label of nodes that says in which zone they are.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a member, in the shard map, that says on which node it runs.
pub const PLACE_NODE: &str = "node";
/// The label of a member, in the shard map, that says in which zone it runs.
pub const PLACE_ZONE: &str = "zone";
/// Finalizer of a `ShardLayout` whose keyspace goes with it.
pub const FINALIZER_KEYSPACE: &str = "althing.dev/keyspace";
/// Annotation with the hash of what only a restart can change.
pub const ANNOTATION_WORKLOAD_HASH: &str = "althing.dev/workload-hash";
/// Annotation on a volume claim: uid of the `RaftCluster` that made it. Another uid means that the volume is older than
/// the declaration and may hold a cluster's data.
pub const ANNOTATION_CLUSTER_UID: &str = "althing.dev/cluster-uid";

/// `app.kubernetes.io/name` of members.
pub const APP: &str = "althing";
/// `app.kubernetes.io/managed-by` of everything that the operator makes.
pub const MANAGED_BY: &str = "althing-operator";
/// `app.kubernetes.io/component` of members.
pub const COMPONENT: &str = "member";

/// A member's name, also its pod's.
#[must_use]
pub fn member(cluster: &str, ordinal: u32) -> String {
    format!("{cluster}-{ordinal}")
}

/// The ordinal of a member's name, if it is a member of this cluster.
#[must_use]
pub fn ordinal_of(cluster: &str, member: &str) -> Option<u32> {
    let digits = member.strip_prefix(cluster)?.strip_prefix('-')?;
    let canonical = digits.len() == 1 || !digits.starts_with('0');
    if canonical && digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

/// A member's volume claim.
#[must_use]
pub fn volume(cluster: &str, ordinal: u32) -> String {
    format!("data-{cluster}-{ordinal}")
}

/// The name of a keyspace's port on the client service: with its prefix it is none of the service's own.
#[must_use]
pub fn keyspace_port(keyspace: &str) -> String {
    format!("keyspace-{keyspace}")
}

/// The headless service that gives members their DNS names.
#[must_use]
pub fn peer_service(cluster: &str) -> String {
    format!("{cluster}-peers")
}

/// What selects the members of a cluster.
#[must_use]
pub fn selector(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), APP.to_owned()),
        ("app.kubernetes.io/instance".to_owned(), cluster.to_owned()),
        ("app.kubernetes.io/component".to_owned(), COMPONENT.to_owned()),
    ])
}

/// The labels of everything that belongs to a cluster.
#[must_use]
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned());
    labels
}

/// The labels of one member's pod and volume claim.
#[must_use]
pub fn member_labels(cluster: &str, ordinal: u32) -> BTreeMap<String, String> {
    let mut labels = labels(cluster);
    labels.insert(LABEL_ORDINAL.to_owned(), ordinal.to_string());
    labels
}

/// A selector as one string, as status and list calls want it.
#[must_use]
pub fn selector_string(cluster: &str) -> String {
    selector(cluster)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_is_read_back_from_a_member_name_only() {
        assert_eq!(ordinal_of("orders", "orders-0"), Some(0));
        assert_eq!(ordinal_of("orders", &member("orders", 12)), Some(12));
        for other in [
            "orders",
            "orders-",
            "orders-x",
            "orders-01",
            "orders-1-1",
            "order-1",
            "orders--1",
            "orders-+1",
        ] {
            assert_eq!(ordinal_of("orders", other), None, "{other}");
        }
    }

    #[test]
    fn the_longest_name_still_fits_a_dns_label() {
        let longest = "a".repeat(MAX_NAME_LENGTH);
        for name in [
            member(&longest, 8),
            volume(&longest, 8),
            peer_service(&longest),
            keyspace_port(&longest),
        ] {
            assert!(name.len() <= 63, "{name}");
        }
    }
}
