//! The operator, an API server, a kubelet and members, all in one process. Time is turns.

use std::sync::Arc;

use althing_crds::{RaftCluster, ShardLayout};
use clap::Parser;
use kube::core::DeserializeGuard;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::members::Members;
use crate::admin::AdminClient;
use crate::cluster_controller::reconcile;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// Turns within which everything settles; a defect that loops ends here.
const PATIENCE: usize = 120;

/// Everything.
pub(super) struct Bed {
    pub(super) server: ApiServer,
    pub(super) members: Members,
    context: Arc<Context>,
    net: u8,
    /// Pods that no node takes.
    pub(super) unschedulable: bool,
}

impl Bed {
    /// A cluster of this spec, declared and not yet looked at. `net` is the test's own loopback net.
    pub(super) async fn new(net: u8, spec: Value) -> Self {
        let server = ApiServer::default();
        let members = Members::default();
        members.serve(net).await;
        let raw = json!({"apiVersion": "althing.dev/v1alpha1", "kind": "RaftCluster",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u-0", "generation": 1, "resourceVersion": "0"}, "spec": spec});
        let key = ("raftclusters".to_owned(), "shop".to_owned(), "orders".to_owned());
        server.0.lock().expect("not poisoned").objects.insert(key, raw);
        let mut bed = Self {
            context: context(&server),
            server,
            members,
            net,
            unschedulable: false,
        };
        bed.kubelet();
        bed
    }

    /// One reconciliation, as after a restart of the operator if `fresh`.
    pub(super) async fn turn(&mut self, fresh: bool) -> Result<(), Error> {
        if fresh {
            self.context = context(&self.server);
        }
        let outcome = match self.cluster() {
            Some(raw) => reconcile(Arc::new(DeserializeGuard(Ok(raw))), Arc::clone(&self.context))
                .await
                .map(drop),
            None => Ok(()),
        };
        self.kubelet();
        outcome
    }

    /// Declares a layout of the cluster.
    pub(super) fn declare(&self, name: &str, second: u32, mut spec: Value) {
        spec["clusterRef"] = json!({"name": "orders"});
        let raw = json!({"apiVersion": "althing.dev/v1alpha1", "kind": "ShardLayout", "metadata": {
            "name": name, "namespace": "shop", "uid": format!("u-{name}"), "generation": 1, "resourceVersion": "0",
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")
        }, "spec": spec});
        let key = ("shardlayouts".to_owned(), "shop".to_owned(), name.to_owned());
        self.server.0.lock().expect("not poisoned").objects.insert(key, raw);
    }

    /// One reconciliation of a layout; the members have time between two.
    pub(super) async fn layout_turn(&mut self, name: &str) -> Result<(), Error> {
        let raw = self.object("shardlayouts", name);
        let raw: ShardLayout = serde_json::from_value(raw).expect("a ShardLayout");
        let outcome = crate::layout::reconcile(Arc::new(DeserializeGuard(Ok(raw))), Arc::clone(&self.context)).await;
        self.kubelet();
        outcome.map(drop)
    }

    /// Turns until the layout is as declared.
    pub(super) async fn settle_layout(&mut self, name: &str) {
        for _ in 0..PATIENCE {
            self.layout_turn(name).await.expect("a turn");
            let layout = self.object("shardlayouts", name);
            let current = layout["status"]["observedGeneration"] == layout["metadata"]["generation"];
            if current && self.layout_condition(name, "Ready") == ("True".into(), "AsDeclared".into()) {
                return;
            }
        }
        panic!("the layout does not settle: {:#}", self.object("shardlayouts", name));
    }

    /// Status and reason of a layout's condition.
    pub(super) fn layout_condition(&self, name: &str, kind: &str) -> (String, String) {
        condition(&self.object("shardlayouts", name)["status"], kind)
    }

    /// Turns until Ready says that all is as declared.
    pub(super) async fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let outcome = self.turn(false).await;
            if let Err(error) = &outcome {
                assert_ne!(error.cure(), crate::error::Cure::Edit, "{error}");
            }
            let settled = self.condition("Ready") == ("True".into(), "AsDeclared".into());
            let current =
                self.status()["observedGeneration"] == self.object("raftclusters", "orders")["metadata"]["generation"];
            if outcome.is_ok() && settled && current {
                return;
            }
        }
        panic!("the cluster does not settle: {:#}", self.status());
    }

    pub(super) fn cluster(&self) -> Option<RaftCluster> {
        let server = self.server.0.lock().expect("not poisoned");
        server
            .get("raftclusters", "orders")
            .cloned()
            .map(|raw| serde_json::from_value(raw).expect("a RaftCluster"))
    }

    pub(super) fn object(&self, resource: &str, name: &str) -> Value {
        self.server
            .0
            .lock()
            .expect("not poisoned")
            .get(resource, name)
            .cloned()
            .unwrap_or(Value::Null)
    }

    pub(super) fn status(&self) -> Value {
        self.object("raftclusters", "orders")["status"].clone()
    }

    /// Status and reason.
    pub(super) fn condition(&self, kind: &str) -> (String, String) {
        condition(&self.status(), kind)
    }

    pub(super) fn names(&self, resource: &str) -> Vec<String> {
        self.server
            .0
            .lock()
            .expect("not poisoned")
            .names(resource)
            .into_iter()
            .collect()
    }

    pub(super) fn edit(&self, resource: &str, name: &str, change: impl FnOnce(&mut Value)) {
        self.server.0.lock().expect("not poisoned").edit(resource, name, change);
    }

    /// `kubectl delete --wait=false`.
    pub(super) fn delete(&self, resource: &str, name: &str) {
        self.edit(resource, name, |object| {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
        });
    }

    pub(super) fn voters(&self) -> usize {
        self.members.0.lock().expect("not poisoned").voters.len()
    }

    /// Finishes deletions, binds claims, starts pods.
    fn kubelet(&mut self) {
        let mut server = self.server.0.lock().expect("not poisoned");
        let mut group = self.members.0.lock().expect("not poisoned");
        server
            .objects
            .retain(|key, object| key.0 != "pods" || object["metadata"]["deletionTimestamp"].is_null());
        server.objects.retain(|key, object| {
            let waits = object["metadata"]["finalizers"]
                .as_array()
                .is_some_and(|list| !list.is_empty());
            key.0 != "shardlayouts" || object["metadata"]["deletionTimestamp"].is_null() || waits
        });
        let used: Vec<String> = server.names("pods").iter().map(|pod| format!("data-{pod}")).collect();
        server.objects.retain(|key, object| {
            key.0 != "persistentvolumeclaims"
                || object["metadata"]["deletionTimestamp"].is_null()
                || used.contains(&key.2)
        });
        group.running.clear();
        for pod in server.names("pods") {
            let claim = server.get("persistentvolumeclaims", &format!("data-{pod}")).cloned();
            let ordinal: u32 = pod.trim_start_matches("orders-").parse().expect("an ordinal");
            let status = match claim {
                Some(claim) if !self.unschedulable => {
                    let uid = claim["metadata"]["uid"]
                        .as_str()
                        .expect("a uid")
                        .trim_start_matches("u-")
                        .to_owned();
                    group
                        .running
                        .insert(ordinal, format!("{:016x}", uid.parse::<u64>().expect("a number")));
                    json!({"phase": "Running", "podIP": Members::address(self.net, ordinal), "containerStatuses": [{
                        "name": "member", "image": "x", "imageID": "x", "ready": true, "restartCount": 0, "state": {"running": {}}
                    }]})
                }
                _ => json!({"phase": "Pending", "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
                ]}),
            };
            server.edit("pods", &pod, |object| object["status"] = status);
        }
        group.pass_time();
    }
}

fn condition(status: &Value, kind: &str) -> (String, String) {
    let found = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    let text = |field: &str| {
        found
            .and_then(|condition| condition[field].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    (text("status"), text("reason"))
}

fn context(server: &ApiServer) -> Arc<Context> {
    let settings = Settings::parse_from(["althing-operator"]);
    let metrics = Metrics::new(&mut Registry::default());
    Arc::new(Context::new(
        server.client(),
        AdminClient::new().expect("a client"),
        metrics,
        settings,
    ))
}
