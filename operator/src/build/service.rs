//! How members and clients find the members.

use althing_crds::{ValidatedCluster, names};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Headless: gives each member a DNS name, also before it is ready (it becomes ready only by talking to the others).
pub(super) fn peers(cluster: &ValidatedCluster) -> Service {
    let mut metadata = super::metadata(cluster, names::peer_service(&cluster.name));
    // Both services lead to the same pods: Prometheus is to scrape each of them once, and also while it is not ready.
    metadata
        .labels
        .get_or_insert_default()
        .insert(names::LABEL_SERVICE.into(), names::SERVICE_PEERS.into());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&cluster.name)),
            ports: Some(vec![
                port("client", names::CLIENT_PORT),
                port("peer", names::PEER_PORT),
                port("admin", names::ADMIN_PORT),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// One address for clients, of the members that are ready. Keyspaces' ports are numbers and not names of container ports:
/// members listen by themselves, so a new port restarts nothing.
pub(super) fn clients(cluster: &ValidatedCluster, keyspaces: &[(String, u16)]) -> Service {
    let mut ports = vec![port("client", names::CLIENT_PORT), port("admin", names::ADMIN_PORT)];
    ports.extend(keyspaces.iter().map(|(keyspace, number)| ServicePort {
        target_port: Some(IntOrString::Int(i32::from(*number))),
        ..port(&names::keyspace_port(keyspace), *number)
    }));
    Service {
        metadata: super::metadata(cluster, cluster.name.clone()),
        spec: Some(ServiceSpec {
            selector: Some(names::selector(&cluster.name)),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, yaml};
    use expect_test::expect;

    #[test]
    fn members_are_found_before_they_are_ready() {
        expect![[r#"
            apiVersion: v1
            kind: Service
            metadata:
              labels:
                althing.dev/service: peers
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/managed-by: althing-operator
                app.kubernetes.io/name: althing
              name: orders-peers
              namespace: shop
              ownerReferences:
              - apiVersion: althing.dev/v1alpha1
                controller: true
                kind: RaftCluster
                name: orders
                uid: u-1
            spec:
              clusterIP: None
              ports:
              - name: client
                port: 2379
                protocol: TCP
                targetPort: client
              - name: peer
                port: 2380
                protocol: TCP
                targetPort: peer
              - name: admin
                port: 2381
                protocol: TCP
                targetPort: admin
              publishNotReadyAddresses: true
              selector:
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/name: althing
        "#]]
        .assert_eq(&yaml(&super::peers(&cluster())));
    }

    #[test]
    fn clients_find_ready_members() {
        expect![[r#"
            apiVersion: v1
            kind: Service
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
              ports:
              - name: client
                port: 2379
                protocol: TCP
                targetPort: client
              - name: admin
                port: 2381
                protocol: TCP
                targetPort: admin
              selector:
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/name: althing
        "#]]
        .assert_eq(&yaml(&super::clients(&cluster(), &[])));
    }

    #[test]
    fn a_keyspace_with_a_port_is_reached_through_the_same_service() {
        let service = super::clients(&cluster(), &[("audit".to_owned(), 2479)]);
        let ports = service.spec.and_then(|spec| spec.ports).expect("ports");
        expect![[r#"
            name: keyspace-audit
            port: 2479
            protocol: TCP
            targetPort: 2479
        "#]]
        .assert_eq(&yaml(ports.last().expect("a port")));
    }
}
