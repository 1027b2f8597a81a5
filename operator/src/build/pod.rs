//! A member's pod. It passes the `restricted` Pod Security Standard.

use althing_crds::{PullPolicy, ValidatedCluster, names};
use althing_plan::model::Ordinal;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, HTTPGetAction,
    PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, Probe,
    SeccompProfile, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config_map::FILE;
use crate::settings::NodeImage;

/// The container's name.
pub(crate) const CONTAINER: &str = "member";

/// User and group of the process and of its volume.
const USER: i64 = 65532;

/// Seconds for handing leadership over and finishing requests before the process is killed.
const GRACE_SECONDS: i64 = 30;

const DATA: &str = "/var/lib/althing";
const SETTINGS: &str = "/etc/althing";

/// Builds the pod of one member.
pub(crate) fn pod(cluster: &ValidatedCluster, ordinal: Ordinal, image: &NodeImage, workload_hash: &str) -> Pod {
    let name = ordinal.member(&cluster.name);
    let template = &cluster.pod_template;
    let mut labels = template.labels.clone();
    labels.extend(names::member_labels(&cluster.name, ordinal.0));
    let mut annotations = template.annotations.clone();
    annotations.insert(names::ANNOTATION_WORKLOAD_HASH.to_owned(), workload_hash.to_owned());
    Pod {
        metadata: ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..super::metadata(cluster, name.clone())
        },
        spec: Some(PodSpec {
            hostname: Some(name.clone()),
            subdomain: Some(names::peer_service(&cluster.name)),
            service_account_name: Some(cluster.name.clone()),
            automount_service_account_token: Some(false),
            // Variables for every service of the namespace would only confuse.
            enable_service_links: Some(false),
            restart_policy: Some("Always".into()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(cluster, &name, image)],
            volumes: Some(vec![
                Volume {
                    name: "data".into(),
                    persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                        claim_name: names::volume(&cluster.name, ordinal.0),
                        ..PersistentVolumeClaimVolumeSource::default()
                    }),
                    ..Volume::default()
                },
                Volume {
                    name: "settings".into(),
                    config_map: Some(ConfigMapVolumeSource {
                        name: cluster.name.clone(),
                        ..ConfigMapVolumeSource::default()
                    }),
                    ..Volume::default()
                },
            ]),
            affinity: Some(template.affinity.clone().unwrap_or_else(|| apart(cluster))),
            tolerations: (!template.tolerations.is_empty()).then(|| template.tolerations.clone()),
            topology_spread_constraints: spread(cluster),
            node_selector: (!template.node_selector.is_empty()).then(|| template.node_selector.clone()),
            priority_class_name: template.priority_class_name.clone(),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn container(cluster: &ValidatedCluster, name: &str, image: &NodeImage) -> Container {
    let namespace = cluster.namespace.as_deref().unwrap_or("default");
    // Without the cluster's domain, which differs from place to place: `svc` is in every pod's search path.
    let host = format!("{name}.{}.{namespace}.svc", names::peer_service(&cluster.name));
    let (client, peer, admin) = (names::CLIENT_PORT, names::PEER_PORT, names::ADMIN_PORT);
    Container {
        name: CONTAINER.into(),
        image: Some(image.reference.clone()),
        image_pull_policy: Some(pull_policy(image.pull_policy).into()),
        args: Some(vec![
            "run".into(),
            format!("--name={name}"),
            format!("--config={SETTINGS}/{FILE}"),
            format!("--data-dir={DATA}"),
            format!("--client-addr=0.0.0.0:{client}"),
            format!("--peer-addr=0.0.0.0:{peer}"),
            format!("--admin-addr=0.0.0.0:{admin}"),
            format!("--advertise-client=http://{host}:{client}"),
            format!("--advertise-peer={host}:{peer}"),
            format!("--advertise-admin=http://{host}:{admin}"),
        ]),
        ports: Some(vec![port("client", client), port("peer", peer), port("admin", admin)]),
        resources: cluster.pod_template.resources.clone(),
        volume_mounts: Some(vec![mount("data", DATA, None), mount("settings", SETTINGS, Some(true))]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        // Reading back a large log takes its time: ten minutes before liveness counts.
        startup_probe: Some(probe("/healthz", 1, 600)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        ..Container::default()
    }
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: i32::from(number),
        ..ContainerPort::default()
    }
}

fn mount(name: &str, path: &str, read_only: Option<bool>) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only,
        ..VolumeMount::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("admin".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn members(cluster: &ValidatedCluster) -> LabelSelector {
    LabelSelector {
        match_labels: Some(names::selector(&cluster.name)),
        ..LabelSelector::default()
    }
}

/// Members prefer different nodes.
fn apart(cluster: &ValidatedCluster) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: PodAffinityTerm {
                    topology_key: "kubernetes.io/hostname".into(),
                    label_selector: Some(members(cluster)),
                    ..PodAffinityTerm::default()
                },
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// The declared constraints; one that selects nothing selects the members.
fn spread(cluster: &ValidatedCluster) -> Option<Vec<TopologySpreadConstraint>> {
    let declared = &cluster.pod_template.topology_spread_constraints;
    (!declared.is_empty()).then(|| {
        declared
            .iter()
            .cloned()
            .map(|mut constraint| {
                constraint.label_selector.get_or_insert_with(|| members(cluster));
                constraint
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, image, valid, yaml};
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn a_member_runs_restricted_with_its_own_volume_and_name() {
        expect![[r#"
            apiVersion: v1
            kind: Pod
            metadata:
              annotations:
                althing.dev/workload-hash: 00ff
              labels:
                althing.dev/ordinal: "2"
                app.kubernetes.io/component: member
                app.kubernetes.io/instance: orders
                app.kubernetes.io/managed-by: althing-operator
                app.kubernetes.io/name: althing
              name: orders-2
              namespace: shop
              ownerReferences:
              - apiVersion: althing.dev/v1alpha1
                controller: true
                kind: RaftCluster
                name: orders
                uid: u-1
            spec:
              affinity:
                podAntiAffinity:
                  preferredDuringSchedulingIgnoredDuringExecution:
                  - podAffinityTerm:
                      labelSelector:
                        matchLabels:
                          app.kubernetes.io/component: member
                          app.kubernetes.io/instance: orders
                          app.kubernetes.io/name: althing
                      topologyKey: kubernetes.io/hostname
                    weight: 100
              automountServiceAccountToken: false
              containers:
              - args:
                - run
                - --name=orders-2
                - --config=/etc/althing/node.toml
                - --data-dir=/var/lib/althing
                - --client-addr=0.0.0.0:2379
                - --peer-addr=0.0.0.0:2380
                - --admin-addr=0.0.0.0:2381
                - --advertise-client=http://orders-2.orders-peers.shop.svc:2379
                - --advertise-peer=orders-2.orders-peers.shop.svc:2380
                - --advertise-admin=http://orders-2.orders-peers.shop.svc:2381
                image: localhost/althing-node:0.1.0
                imagePullPolicy: IfNotPresent
                livenessProbe:
                  failureThreshold: 6
                  httpGet:
                    path: /healthz
                    port: admin
                  periodSeconds: 10
                  timeoutSeconds: 2
                name: member
                ports:
                - containerPort: 2379
                  name: client
                - containerPort: 2380
                  name: peer
                - containerPort: 2381
                  name: admin
                readinessProbe:
                  failureThreshold: 2
                  httpGet:
                    path: /readyz
                    port: admin
                  periodSeconds: 2
                  timeoutSeconds: 2
                securityContext:
                  allowPrivilegeEscalation: false
                  capabilities:
                    drop:
                    - ALL
                  readOnlyRootFilesystem: true
                startupProbe:
                  failureThreshold: 600
                  httpGet:
                    path: /healthz
                    port: admin
                  periodSeconds: 1
                  timeoutSeconds: 2
                volumeMounts:
                - mountPath: /var/lib/althing
                  name: data
                - mountPath: /etc/althing
                  name: settings
                  readOnly: true
              enableServiceLinks: false
              hostname: orders-2
              restartPolicy: Always
              securityContext:
                fsGroup: 65532
                fsGroupChangePolicy: OnRootMismatch
                runAsGroup: 65532
                runAsNonRoot: true
                runAsUser: 65532
                seccompProfile:
                  type: RuntimeDefault
              serviceAccountName: orders
              subdomain: orders-peers
              terminationGracePeriodSeconds: 30
              volumes:
              - name: data
                persistentVolumeClaim:
                  claimName: data-orders-2
              - configMap:
                  name: orders
                name: settings
        "#]]
        .assert_eq(&yaml(&pod(&cluster(), Ordinal(2), &image(), "00ff")));
    }

    #[test]
    fn the_pod_template_is_laid_over_it_and_cannot_take_the_operators_labels() {
        let cluster = valid(json!({
            "members": 3, "version": "0.1.0", "storage": {"size": "10Gi"},
            "podTemplate": {
                "labels": {"team": "orders"},
                "annotations": {"note": "x"},
                "resources": {"requests": {"cpu": "500m"}},
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "dedicated", "operator": "Exists"}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
                "affinity": {},
                "priorityClassName": "high"
            }
        }));
        let pod = pod(&cluster, Ordinal(0), &image(), "00ff");
        let labels = pod.metadata.labels.expect("labels");
        assert_eq!(
            (labels["team"].as_str(), labels["althing.dev/ordinal"].as_str()),
            ("orders", "0")
        );
        let mut spec = pod.spec.expect("a spec");
        let resources = spec.containers.remove(0).resources;
        let overlay = json!({
            "resources": resources,
            "nodeSelector": spec.node_selector,
            "tolerations": spec.tolerations,
            "topologySpreadConstraints": spec.topology_spread_constraints,
            "affinity": spec.affinity,
            "priorityClassName": spec.priority_class_name,
        });
        expect![[r#"
            affinity: {}
            nodeSelector:
              disk: ssd
            priorityClassName: high
            resources:
              requests:
                cpu: 500m
            tolerations:
            - key: dedicated
              operator: Exists
            topologySpreadConstraints:
            - labelSelector:
                matchLabels:
                  app.kubernetes.io/component: member
                  app.kubernetes.io/instance: orders
                  app.kubernetes.io/name: althing
              maxSkew: 1
              topologyKey: zone
              whenUnsatisfiable: DoNotSchedule
        "#]]
        .assert_eq(&yaml(&overlay));
    }
}
