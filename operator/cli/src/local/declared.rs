//! What a person declared about local clusters, and how a new declaration changes it. Pure: the time is handed in.
//!
//! It does what the API server does with `kubectl apply`: new objects are created, changed ones checked against the
//! transition rules, generations counted.

use std::collections::BTreeMap;

use althing_crds::{RaftCluster, ShardLayout};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};

use super::layout::ClusterKey;
use crate::manifest::{self, Object};

/// A cluster and its layouts.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Declared {
    /// The cluster.
    pub(crate) cluster: RaftCluster,
    /// Its layouts by name.
    pub(crate) layouts: BTreeMap<String, ShardLayout>,
}

/// All clusters of a folder.
pub(crate) type All = BTreeMap<ClusterKey, Declared>;

/// What became of an object: `raftcluster/orders created`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// Of which cluster.
    pub(crate) cluster: ClusterKey,
    /// For a person, as kubectl says it.
    pub(crate) message: String,
}

/// Layouts that one cluster can have: each is a keyspace, whose groups cost memory on every member.
const MAX_LAYOUTS: usize = 64;

/// All clusters after `objects` were applied, or every reason why they cannot be; it is all or nothing.
pub(crate) fn apply(mut all: All, objects: Vec<Object>, now: &Time) -> Result<(All, Vec<Change>), Vec<String>> {
    let mut changes = Vec::new();
    let mut complaints = Vec::new();
    // Clusters first: a file may name the layout before its cluster.
    let (clusters, layouts): (Vec<Object>, Vec<Object>) = objects
        .into_iter()
        .partition(|object| matches!(object, Object::Cluster(_)));
    for object in clusters.into_iter().chain(layouts) {
        let reference = object.reference();
        let outcome = match object {
            Object::Cluster(cluster) => apply_cluster(&mut all, *cluster, now),
            Object::Layout(layout) => apply_layout(&mut all, *layout, now),
        };
        match outcome {
            Ok((cluster, verb)) => changes.push(Change {
                cluster,
                message: format!("{reference} {verb}"),
            }),
            Err(found) => complaints.extend(found.into_iter().map(|complaint| format!("{reference}: {complaint}"))),
        }
    }
    if complaints.is_empty() {
        Ok((all, changes))
    } else {
        Err(complaints)
    }
}

fn apply_cluster(all: &mut All, new: RaftCluster, now: &Time) -> Result<(ClusterKey, String), Vec<String>> {
    let key = key_of(&new);
    let Some(declared) = all.get_mut(&key) else {
        let mut cluster = new;
        born(cluster.meta_mut(), now);
        all.insert(
            key.clone(),
            Declared {
                cluster,
                layouts: BTreeMap::new(),
            },
        );
        return Ok((key, "created".to_owned()));
    };
    let old = &declared.cluster;
    if old.meta().deletion_timestamp.is_some() {
        return Err(vec!["is being deleted; apply it again when it is gone".to_owned()]);
    }
    new.validate_cel_update(old).map_err(manifest::broken_rules)?;
    let verb = match (old.spec == new.spec, old.spec.members, new.spec.members) {
        (true, _, _) => "unchanged".to_owned(),
        (false, before, after) if before != after => {
            format!("configured (members {before} -> {after})")
        }
        (false, _, _) => "configured".to_owned(),
    };
    let metadata = grown(old.meta(), new.meta(), old.spec != new.spec);
    declared.cluster = RaftCluster {
        metadata,
        spec: new.spec,
        status: None,
    };
    Ok((key, verb))
}

fn apply_layout(all: &mut All, new: ShardLayout, now: &Time) -> Result<(ClusterKey, String), Vec<String>> {
    let name = new.name_any();
    let namespace = new.namespace().unwrap_or_default();
    let key = ClusterKey::new(namespace.clone(), new.spec.cluster_ref.name.clone());
    // A layout of this name may belong to another cluster; then its reference would change, which the rules refuse.
    let known = all
        .iter()
        .find(|(other, declared)| other.namespace == namespace && declared.layouts.contains_key(&name))
        .map(|(other, _)| other.clone());
    if let Some(old) = known.and_then(|other| all.get(&other)?.layouts.get(&name)) {
        if old.meta().deletion_timestamp.is_some() {
            return Err(vec!["is being deleted; apply it again when it is gone".to_owned()]);
        }
        new.validate_cel_update(old).map_err(manifest::broken_rules)?;
    }
    let taken = all.get(&key).and_then(|declared| {
        let mut others = declared.layouts.iter().filter(|(other, _)| **other != name);
        others.find(|(_, other)| other.spec.keyspace == new.spec.keyspace)
    });
    if let Some((other, _)) = taken {
        return Err(vec![format!(
            "spec.keyspace: {:?} has the layout {other} already; change that one, or delete it first",
            new.spec.keyspace,
        )]);
    }
    let Some(declared) = all.get_mut(&key) else {
        return Err(vec![format!(
            "spec.clusterRef.name: there is no RaftCluster {:?} in namespace {namespace:?}; declare it in the same file or correct the name",
            key.name
        )]);
    };
    let (metadata, verb) = match declared.layouts.get(&name) {
        None if declared.layouts.len() >= MAX_LAYOUTS => {
            return Err(vec![format!(
                "RaftCluster {} has {MAX_LAYOUTS} layouts already, which is the most on one machine",
                key.name
            )]);
        }
        None => {
            let mut metadata = new.metadata;
            born(&mut metadata, now);
            (metadata, "created".to_owned())
        }
        Some(old) => {
            let changed = old.spec != new.spec;
            let verb = match (changed, old.spec.shards, new.spec.shards) {
                (false, _, _) => "unchanged".to_owned(),
                (true, before, after) if before != after => format!("configured (shards {before} -> {after})"),
                (true, _, _) => "configured".to_owned(),
            };
            (grown(old.meta(), new.meta(), changed), verb)
        }
    };
    declared.layouts.insert(
        name,
        ShardLayout {
            metadata,
            spec: new.spec,
            status: None,
        },
    );
    Ok((key, verb))
}

/// The cluster's key. The namespace was filled in when it was parsed.
pub(crate) fn key_of(cluster: &RaftCluster) -> ClusterKey {
    ClusterKey::new(cluster.namespace().unwrap_or_default(), cluster.name_any())
}

fn born(metadata: &mut ObjectMeta, now: &Time) {
    metadata.generation.get_or_insert(1);
    metadata.creation_timestamp.get_or_insert_with(|| now.clone());
}

/// The metadata after an update: labels and annotations are the person's, the rest was ours.
fn grown(old: &ObjectMeta, new: &ObjectMeta, changed: bool) -> ObjectMeta {
    ObjectMeta {
        labels: new.labels.clone(),
        annotations: new.annotations.clone(),
        generation: Some(old.generation.unwrap_or(1) + i64::from(changed)),
        ..old.clone()
    }
}

/// A cluster and its layouts as `desired.yaml`.
pub(crate) fn to_yaml(declared: &Declared) -> Result<String, String> {
    let document =
        |value: &dyn Fn() -> Result<String, serde_saphyr::ser::Error>| value().map_err(|error| error.to_string());
    let cluster = RaftCluster {
        status: None,
        ..declared.cluster.clone()
    };
    let mut text = document(&|| serde_saphyr::to_string(&cluster))?;
    for layout in declared.layouts.values() {
        let layout = ShardLayout {
            status: None,
            ..layout.clone()
        };
        text.push_str("---\n");
        text.push_str(&document(&|| serde_saphyr::to_string(&layout))?);
    }
    Ok(text)
}

/// Reads `desired.yaml` back.
pub(crate) fn from_yaml(path: &str, text: &str, namespace: &str, now: &Time) -> Result<All, Vec<String>> {
    apply(All::new(), manifest::parse(path, text, namespace)?, now).map(|(all, _)| all)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn cluster(members: u32, size: &str) -> String {
        format!(
            "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {{name: orders}}\nspec: {{members: {members}, version: 0.1.0, storage: {{size: {size}}}}}\n"
        )
    }

    fn layout(name: &str, cluster: &str) -> String {
        format!(
            "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: {cluster}}}}}\n"
        )
    }

    fn then(all: All, text: &str) -> Result<(All, Vec<String>), Vec<String>> {
        let now = Time(Default::default());
        let (all, changes) = apply(all, manifest::parse("f.yaml", text, "default")?, &now)?;
        Ok((all, changes.into_iter().map(|change| change.message).collect()))
    }

    #[test]
    fn generations_count_changes_of_the_spec() {
        let (all, said) = then(
            All::new(),
            &format!("{}---\n{}", layout("orders", "orders"), cluster(3, "1Gi")),
        )
        .unwrap();
        assert_eq!(said, ["raftcluster/orders created", "shardlayout/orders created"]);
        let (all, said) = then(all, &cluster(3, "1Gi")).unwrap();
        assert_eq!(said, ["raftcluster/orders unchanged"]);
        let (all, said) = then(all, &cluster(5, "1Gi")).unwrap();
        assert_eq!(said, ["raftcluster/orders configured (members 3 -> 5)"]);
        let declared = &all[&ClusterKey::new("default", "orders")];
        assert_eq!(declared.cluster.metadata.generation, Some(2));
        assert!(
            declared.layouts.contains_key("orders"),
            "applying a cluster keeps its layouts"
        );
    }

    #[test]
    fn a_cluster_has_a_layout_for_each_keyspace_and_sizes_are_told() {
        let audit = |shards: u32| {
            layout("audit", "orders").replace("spec: {", &format!("spec: {{keyspace: audit, shards: {shards}, "))
        };
        let text = [cluster(3, "1Gi"), layout("orders", "orders"), audit(1)].join("---\n");
        let (all, said) = then(All::new(), &text).unwrap();
        assert_eq!(
            said,
            [
                "raftcluster/orders created",
                "shardlayout/orders created",
                "shardlayout/audit created"
            ]
        );
        let (all, said) = then(all, &audit(4)).unwrap();
        assert_eq!(said, ["shardlayout/audit configured (shards 1 -> 4)"]);
        let declared = &all[&ClusterKey::new("default", "orders")];
        assert_eq!(declared.layouts["audit"].metadata.generation, Some(2));
        let yaml = to_yaml(declared).unwrap();
        assert_eq!(
            from_yaml("desired.yaml", &yaml, "default", &Time(Default::default())),
            Ok(all)
        );
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let (all, _) = then(
            All::new(),
            &format!("{}---\n{}", cluster(3, "1Gi"), layout("orders", "orders")),
        )
        .unwrap();
        let (all, _) = then(all, &cluster(5, "2Gi")).unwrap();
        let yaml = to_yaml(&all[&ClusterKey::new("default", "orders")]).unwrap();
        let later = Time(Default::default());
        assert_eq!(from_yaml("desired.yaml", &yaml, "default", &later), Ok(all));
    }

    #[test]
    fn a_refused_object_changes_nothing_and_says_why() {
        let (all, _) = then(
            All::new(),
            &format!("{}---\n{}", cluster(3, "1Gi"), layout("orders", "orders")),
        )
        .unwrap();
        let complaints = [
            then(all.clone(), &cluster(3, "512Mi")).unwrap_err(),
            then(all.clone(), &layout("other", "nobody")).unwrap_err(),
            then(all.clone(), &layout("second", "orders")).unwrap_err(),
            then(all, &layout("orders", "elsewhere")).unwrap_err(),
        ]
        .concat();
        expect![[r#"
            raftcluster/orders: spec.storage.size can grow but not shrink: volumes cannot be made smaller; write the old size or a larger one
            shardlayout/other: spec.clusterRef.name: there is no RaftCluster "nobody" in namespace "default"; declare it in the same file or correct the name
            shardlayout/second: spec.keyspace: "default" has the layout orders already; change that one, or delete it first
            shardlayout/orders: spec.clusterRef.name cannot change: a keyspace lives in one cluster; make another ShardLayout
        "#]].assert_eq(&(complaints.join("\n") + "\n"));
    }
}
