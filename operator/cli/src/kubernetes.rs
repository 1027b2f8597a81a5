//! The commands' other side: Kubernetes' API server.

use althing_crds::{RaftCluster, ShardLayout};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::core::ApiResource;
use kube::{Client, Config, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::error::Error;
use crate::manifest::{self, Object};
use crate::view::shards;

/// Who owns the fields that `althing apply` sets (Server-Side Apply).
const FIELD_MANAGER: &str = "althing";
/// Events shown by `why`: the newest tell the story, the rest is in `kubectl events`.
const MAX_EVENTS: usize = 20;

/// An API server and the namespace that is meant.
pub(crate) struct Kubernetes {
    client: Client,
    namespace: String,
}

impl Kubernetes {
    /// By the kubeconfig, or from within a pod.
    pub(crate) async fn connect(context: Option<&str>, namespace: Option<&str>) -> Result<Kubernetes, Error> {
        let config = match context {
            Some(context) => {
                let options = KubeConfigOptions {
                    context: Some(context.to_owned()),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options)
                    .await
                    .map_err(|error| Error::Kubeconfig(error.to_string()))?
            }
            None => Config::infer()
                .await
                .map_err(|error| Error::Kubeconfig(error.to_string()))?,
        };
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let client = Client::try_from(config).map_err(|error| failed("cannot make a Kubernetes client", error))?;
        Ok(Kubernetes { client, namespace })
    }

    /// The namespace that is meant.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All clusters and layouts, of the namespace or of all.
    pub(crate) async fn objects(&self, everywhere: bool) -> Result<(Vec<RaftCluster>, Vec<ShardLayout>), Error> {
        let (clusters, layouts) = if everywhere {
            (Api::all(self.client.clone()), Api::all(self.client.clone()))
        } else {
            (self.api(), self.api())
        };
        let everything = ListParams::default();
        let (clusters, layouts) = tokio::join!(clusters.list(&everything), layouts.list(&everything));
        let clusters = clusters.map_err(|error| failed("cannot list raftclusters", error))?;
        let layouts = layouts.map_err(|error| failed("cannot list shardlayouts", error))?;
        Ok((clusters.items, layouts.items))
    }

    /// Applies a file. What is sent is what the person wrote, so that nothing else becomes theirs.
    pub(crate) async fn apply(&self, file: &str, text: &str) -> Result<Vec<String>, Error> {
        let objects =
            manifest::parse(file, text, &self.namespace).map_err(|complaints| Error::Manifest { complaints })?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| Error::Manifest {
            complaints: vec![format!("{file}: {error}")],
        })?;
        let parameters = PatchParams::apply(FIELD_MANAGER);
        let mut lines = Vec::new();
        for (object, document) in objects.iter().zip(documents) {
            let (resource, name, namespace) = match object {
                Object::Cluster(cluster) => (
                    ApiResource::erase::<RaftCluster>(&()),
                    cluster.name_any(),
                    cluster.namespace(),
                ),
                Object::Layout(layout) => (
                    ApiResource::erase::<ShardLayout>(&()),
                    layout.name_any(),
                    layout.namespace(),
                ),
            };
            let namespace = namespace.as_deref().unwrap_or(&self.namespace);
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
            let what = format!("cannot apply {}", object.reference());
            api.patch(&name, &parameters, &Patch::Apply(&document))
                .await
                .map_err(|error| failed(&what, error))?;
            lines.push(format!("{} serverside-applied", object.reference()));
        }
        Ok(lines)
    }

    /// Sets a size through the scale subresource, as `kubectl scale` does.
    pub(crate) async fn scale(&self, members: bool, name: &str, size: i32) -> Result<String, Error> {
        let patch = Patch::Merge(json!({ "spec": { "replicas": size } }));
        let parameters = PatchParams::default();
        let (reference, outcome) = if members {
            let api: Api<RaftCluster> = self.api();
            (
                format!("raftcluster/{name}"),
                api.patch_scale(name, &parameters, &patch).await,
            )
        } else {
            let api: Api<ShardLayout> = self.api();
            (
                format!("shardlayout/{name}"),
                api.patch_scale(name, &parameters, &patch).await,
            )
        };
        outcome.map_err(|error| failed(&format!("cannot scale {reference}"), error))?;
        Ok(format!("{reference} scaled to {size}"))
    }

    /// What is going on with a cluster: what the operator says in status, and the Events.
    pub(crate) async fn why(&self, cluster: &RaftCluster, layouts: &[ShardLayout]) -> Result<Vec<String>, Error> {
        let mut events = self.events("RaftCluster", &cluster.name_any()).await?;
        for layout in layouts {
            events.extend(self.events("ShardLayout", &layout.name_any()).await?);
        }
        Ok(why(cluster, layouts, events))
    }

    async fn events(&self, kind: &str, name: &str) -> Result<Vec<Event>, Error> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let events: Api<Event> = self.api();
        let events = events.list(&ListParams::default().fields(&selector)).await;
        let events = events.map_err(|error| failed("cannot list events", error))?;
        Ok(events.items)
    }

    /// Deletes a cluster or a layout.
    pub(crate) async fn delete(&self, cluster: bool, name: &str) -> Result<String, Error> {
        let parameters = DeleteParams::default();
        let (reference, outcome) = if cluster {
            let api: Api<RaftCluster> = self.api();
            (
                format!("raftcluster/{name}"),
                api.delete(name, &parameters).await.map(drop),
            )
        } else {
            let api: Api<ShardLayout> = self.api();
            (
                format!("shardlayout/{name}"),
                api.delete(name, &parameters).await.map(drop),
            )
        };
        outcome.map_err(|error| failed(&format!("cannot delete {reference}"), error))?;
        Ok(format!("{reference} deleted"))
    }
}

/// The operator's reasons, then the Events from old to new. Pure.
fn why(cluster: &RaftCluster, layouts: &[ShardLayout], mut events: Vec<Event>) -> Vec<String> {
    let mut lines = Vec::new();
    match &cluster.status {
        None => lines.push(
            "The operator has not looked at it yet; if this stays, see whether it runs: kubectl get deployments -A -l app.kubernetes.io/name=althing-operator".to_owned(),
        ),
        Some(status) => {
            if status.observed_generation != cluster.metadata.generation {
                lines.push("The operator has not seen the newest spec yet; what follows is about an older one.".to_owned());
            }
            lines.extend(status.activity.iter().cloned());
            if status.activity.is_empty() {
                lines.extend(
                    status
                        .conditions
                        .iter()
                        .filter(|condition| condition.type_ == "Ready")
                        .map(|ready| format!("Ready is {} ({}): {}.", ready.status, ready.reason, ready.message)),
                );
            }
        }
    }
    lines.extend(shards::why(layouts));
    let moment = |event: &Event| {
        let micro = event.event_time.as_ref().map(|time| time.0);
        micro
            .or(event.last_timestamp.as_ref().map(|time| time.0))
            .unwrap_or_default()
    };
    events.sort_by_key(moment);
    let skipped = events.len().saturating_sub(MAX_EVENTS);
    lines.extend(events.iter().skip(skipped).map(|event| {
        format!(
            "{} {} {}: {}",
            moment(event).strftime("%Y-%m-%d %H:%M:%S"),
            event.type_.as_deref().unwrap_or("Normal"),
            event.reason.as_deref().unwrap_or("-"),
            event.message.as_deref().unwrap_or("-"),
        )
    }));
    lines
}

/// An API server's refusal in its own words, with the next step.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the client's enum, which grows with its releases"
)]
fn failed(what: &str, error: kube::Error) -> Error {
    let (message, hint) = match &error {
        kube::Error::Api(status) => {
            let hint = match status.code {
                401 | 403 => "\n  your account may not do this; `kubectl auth can-i` shows what it may",
                404 if status.message.contains("could not find the requested resource") => {
                    "\n  the custom resources are not installed: helm install althing charts/althing"
                }
                404 => "\n  `althing get -A` lists what is there",
                409 => {
                    "\n  another manager owns these fields (such as `kubectl scale`); leave them out of the file, or use `kubectl apply --server-side --force-conflicts`"
                }
                _ => "",
            };
            (status.message.clone(), hint)
        }
        other => (
            other.to_string(),
            "\n  is the API server up, and is this the context you mean (--context)?",
        ),
    };
    Error::Kube {
        what: what.to_owned(),
        message,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn cluster(status: Value) -> RaftCluster {
        let text = "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {name: orders, generation: 2}\nspec: {members: 3, version: 0.1.0, storage: {size: 1Gi}}\n";
        let Object::Cluster(cluster) = manifest::parse("f", text, "default").unwrap().remove(0) else {
            panic!("a cluster")
        };
        RaftCluster {
            status: serde_json::from_value(status).unwrap(),
            ..*cluster
        }
    }

    fn event(second: u32, reason: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": reason}, "involvedObject": {},
            "eventTime": format!("2026-01-01T00:00:{second:02}.000000Z"),
            "type": "Normal", "reason": reason, "message": "as it says",
        }))
        .unwrap()
    }

    #[test]
    fn why_tells_the_operators_reasons_and_then_the_events_in_order() {
        let busy = cluster(
            json!({"observedGeneration": 2, "activity": ["Waiting (LearnerBehind): orders-1 lacks 12 entries."]}),
        );
        let settled = cluster(json!({"observedGeneration": 1, "conditions": [
            {"type": "Ready", "status": "True", "reason": "AsDeclared", "message": "all 3 members vote and serve", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}));
        let text = [
            why(&busy, &[], vec![event(2, "Promote"), event(1, "AddLearner")]),
            why(&settled, &[], Vec::new()),
            why(&cluster(Value::Null), &[], Vec::new()),
        ];
        expect![[r#"
            Waiting (LearnerBehind): orders-1 lacks 12 entries.
            2026-01-01 00:00:01 Normal AddLearner: as it says
            2026-01-01 00:00:02 Normal Promote: as it says
            The operator has not seen the newest spec yet; what follows is about an older one.
            Ready is True (AsDeclared): all 3 members vote and serve.
            The operator has not looked at it yet; if this stays, see whether it runs: kubectl get deployments -A -l app.kubernetes.io/name=althing-operator
        "#]].assert_eq(&(text.concat().join("\n") + "\n"));
    }

    #[test]
    fn only_the_newest_events_are_told() {
        let many: Vec<Event> = (0..60).map(|n| event(n, &format!("R{n}"))).collect();
        let lines = why(&cluster(json!({"observedGeneration": 2})), &[], many);
        assert_eq!(lines.len(), MAX_EVENTS);
        assert!(lines.last().is_some_and(|line| line.contains("R59")));
    }
}
