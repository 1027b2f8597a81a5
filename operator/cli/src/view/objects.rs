//! Lists of objects: tables, JSON, YAML.

use althing_crds::{RaftCluster, ShardLayout};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::paint::{Cell, Paint, Tone, age, cell, plain};
use crate::args::Output;

/// `althing get`: `named` shows one object as itself rather than as a list of one.
pub(crate) fn get(
    paint: Paint,
    output: Output,
    clusters: &[RaftCluster],
    layouts: &[ShardLayout],
    namespaces: bool,
    named: bool,
    now: Timestamp,
) -> Result<String, String> {
    match output {
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let tables = [
                (!clusters.is_empty()).then(|| cluster_table(paint, clusters, namespaces, wide, now)),
                (!layouts.is_empty()).then(|| layout_table(paint, layouts, namespaces, wide, now)),
            ];
            Ok(tables.into_iter().flatten().collect::<Vec<_>>().join("\n"))
        }
        Output::Json | Output::Yaml => {
            let value = document(clusters, layouts, named).map_err(|error| error.to_string())?;
            rendered(output, &value)
        }
    }
}

/// A value as JSON or YAML.
pub(crate) fn rendered(output: Output, value: &Value) -> Result<String, String> {
    match output {
        Output::Yaml => serde_saphyr::to_string(value).map_err(|error| error.to_string()),
        Output::Json | Output::Table | Output::Wide => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string()),
    }
}

fn document(clusters: &[RaftCluster], layouts: &[ShardLayout], named: bool) -> Result<Value, serde_json::Error> {
    let mut items = Vec::new();
    for cluster in clusters {
        items.push(serde_json::to_value(cluster)?);
    }
    for layout in layouts {
        items.push(serde_json::to_value(layout)?);
    }
    Ok(match items.pop() {
        Some(only) if named && items.is_empty() => only,
        last => {
            items.extend(last);
            json!({ "apiVersion": "v1", "kind": "List", "items": items })
        }
    })
}

/// Whether it is ready, and why not.
pub(super) fn ready_cells(conditions: &[Condition], deleting: bool) -> [Cell; 2] {
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        _ if deleting => [cell(Tone::Warn, "False"), plain("Deleting")],
        Some(ready) if ready.status == "True" => [cell(Tone::Good, &ready.status), plain(&ready.reason)],
        Some(ready) => [cell(Tone::Bad, &ready.status), plain(&ready.reason)],
        None => [plain(""), plain("")],
    }
}

fn message(conditions: &[Condition]) -> Cell {
    plain(
        conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .map(|one| one.message.as_str())
            .unwrap_or_default(),
    )
}

fn born(metadata: &ObjectMeta, now: Timestamp) -> Cell {
    plain(
        metadata
            .creation_timestamp
            .as_ref()
            .map(|born| age(now.as_second() - born.0.as_second()))
            .unwrap_or_default(),
    )
}

fn names(metadata: &ObjectMeta, namespaces: bool) -> Vec<Cell> {
    let namespace = namespaces.then(|| plain(metadata.namespace.as_deref().unwrap_or_default()));
    namespace
        .into_iter()
        .chain([cell(Tone::Strong, metadata.name.as_deref().unwrap_or_default())])
        .collect()
}

fn heading(namespaces: bool, columns: &[&'static str], wide: bool) -> Vec<&'static str> {
    let namespace = namespaces.then_some("NAMESPACE");
    let wide = wide.then_some("MESSAGE");
    namespace
        .into_iter()
        .chain(["NAME"])
        .chain(columns.iter().copied())
        .chain(wide)
        .collect()
}

fn cluster_table(paint: Paint, clusters: &[RaftCluster], namespaces: bool, wide: bool, now: Timestamp) -> String {
    let rows = clusters
        .iter()
        .map(|cluster| {
            let status = cluster.status.as_ref();
            let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
            let mut row = names(&cluster.metadata, namespaces);
            row.push(plain(cluster.spec.members));
            row.push(plain(
                status
                    .map(|status| status.ready_members.to_string())
                    .unwrap_or_default(),
            ));
            row.push(plain(&cluster.spec.version));
            row.push(plain(
                status.and_then(|status| status.leader.as_deref()).unwrap_or_default(),
            ));
            row.extend(ready_cells(conditions, cluster.metadata.deletion_timestamp.is_some()));
            row.push(born(&cluster.metadata, now));
            if wide {
                row.push(message(conditions));
            }
            row
        })
        .collect();
    let columns = ["MEMBERS", "SERVING", "VERSION", "LEADER", "READY", "REASON", "AGE"];
    paint.table(&heading(namespaces, &columns, wide), rows)
}

fn layout_table(paint: Paint, layouts: &[ShardLayout], namespaces: bool, wide: bool, now: Timestamp) -> String {
    let rows = layouts
        .iter()
        .map(|layout| {
            let status = layout.status.as_ref();
            let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
            let mut row = names(&layout.metadata, namespaces);
            row.push(plain(&layout.spec.cluster_ref.name));
            row.push(plain(&layout.spec.keyspace));
            row.push(plain(layout.spec.shards));
            row.push(plain(
                status
                    .map(|status| status.current_shards.to_string())
                    .unwrap_or_default(),
            ));
            row.extend(ready_cells(conditions, layout.metadata.deletion_timestamp.is_some()));
            row.push(born(&layout.metadata, now));
            if wide {
                row.push(message(conditions));
            }
            row
        })
        .collect();
    let columns = ["CLUSTER", "KEYSPACE", "SHARDS", "CURRENT", "READY", "REASON", "AGE"];
    paint.table(&heading(namespaces, &columns, wide), rows)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::manifest::{self, Object};

    fn objects() -> (Vec<RaftCluster>, Vec<ShardLayout>) {
        let text = include_str!("../../../../manifests/samples/quickstart.yaml");
        let (mut clusters, mut layouts) = (Vec::new(), Vec::new());
        for object in manifest::parse("quickstart.yaml", text, "default").unwrap() {
            match object {
                Object::Cluster(cluster) => clusters.push(*cluster),
                Object::Layout(layout) => layouts.push(*layout),
            }
        }
        (clusters, layouts)
    }

    fn shown(output: Output, named: bool, namespaces: bool) -> String {
        let (clusters, layouts) = objects();
        let layouts = if named { &[] } else { layouts.as_slice() };
        get(
            Paint::Mono,
            output,
            &clusters,
            layouts,
            namespaces,
            named,
            Timestamp::UNIX_EPOCH,
        )
        .unwrap()
    }

    #[test]
    fn tables_have_the_columns_that_kubectl_prints() {
        expect![[r#"
            NAME     MEMBERS   SERVING   VERSION   LEADER   READY   REASON   AGE
            orders   3         -         0.1.0     -        -       -        -

            NAME     CLUSTER   KEYSPACE   SHARDS   CURRENT   READY   REASON   AGE
            orders   orders    default    1        -         -       -        -
        "#]]
        .assert_eq(&shown(Output::Table, false, false));
        expect![[r#"
            NAMESPACE   NAME     MEMBERS   SERVING   VERSION   LEADER   READY   REASON   AGE   MESSAGE
            default     orders   3         -         0.1.0     -        -       -        -     -
        "#]]
        .assert_eq(&shown(Output::Wide, true, true));
    }

    #[test]
    fn one_named_object_is_itself_and_several_are_a_list() {
        let one: Value = serde_json::from_str(&shown(Output::Json, true, false)).unwrap();
        assert_eq!(one["kind"], "RaftCluster");
        let list: Value = serde_json::from_str(&shown(Output::Json, false, false)).unwrap();
        assert_eq!(
            (&list["kind"], list["items"].as_array().map(Vec::len)),
            (&json!("List"), Some(2))
        );
    }

    #[test]
    fn what_get_prints_as_yaml_can_be_applied_again() {
        let yaml = shown(Output::Yaml, true, false);
        assert_eq!(manifest::parse("again", &yaml, "default").unwrap().len(), 1, "{yaml}");
    }
}
