//! YAML documents to objects, refusing what the API server and the operator would refuse. Pure.
//!
//! Every complaint names the file, the document, the field and what to write.

use althing_crds::{InvalidResource, Problem, RaftCluster, ShardLayout, ValidatedCluster, ValidatedLayout};
use kube::{CustomResourceExt, Resource, ResourceExt};
use serde_json::Value;

use crate::schema::{self, distance};

/// An object that a person declares.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Object {
    /// A cluster.
    Cluster(Box<RaftCluster>),
    /// A layout.
    Layout(Box<ShardLayout>),
}

impl Object {
    /// `raftcluster/orders`, as kubectl prints it.
    pub(crate) fn reference(&self) -> String {
        match self {
            Object::Cluster(cluster) => format!("raftcluster/{}", cluster.name_any()),
            Object::Layout(layout) => format!("shardlayout/{}", layout.name_any()),
        }
    }
}

const API_VERSION: &str = "althing.dev/v1alpha1";
const KINDS: [&str; 2] = ["RaftCluster", "ShardLayout"];
/// Longest name of a Kubernetes object that also names a folder, a DNS label (RFC 1123).
const LABEL_LENGTH: usize = 63;

/// The objects of a file, or every complaint about it. `namespace` is for objects that name none.
pub(crate) fn parse(file: &str, text: &str, namespace: &str) -> Result<Vec<Object>, Vec<String>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        vec![format!(
            "{file}: this is not YAML that can be read: {error}\n  compare with manifests/samples/quickstart.yaml"
        )]
    })?;
    let mut objects = Vec::new();
    let mut complaints = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let place = place(file, index, &document);
        match object(document, namespace) {
            Ok(object) => objects.push(object),
            Err(found) => complaints.extend(found.into_iter().map(|complaint| format!("{place}: {complaint}"))),
        }
    }
    if objects.is_empty() && complaints.is_empty() {
        complaints.push(format!(
            "{file}: there is no document in it; compare with manifests/samples/quickstart.yaml"
        ));
    }
    if complaints.is_empty() {
        Ok(objects)
    } else {
        Err(complaints)
    }
}

/// `orders.yaml, document 2 (ShardLayout orders)`.
fn place(file: &str, index: usize, document: &Value) -> String {
    let what = [&document["kind"], &document["metadata"]["name"]];
    let what: Vec<&str> = what.into_iter().filter_map(Value::as_str).collect();
    let what = if what.is_empty() {
        String::new()
    } else {
        format!(" ({})", what.join(" "))
    };
    format!("{file}, document {}{what}", index + 1)
}

fn object(document: Value, namespace: &str) -> Result<Object, Vec<String>> {
    if !document.is_object() {
        return Err(vec![
            "must be a mapping that begins with `apiVersion:` and `kind:`".to_owned(),
        ]);
    }
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    let api_version = document["apiVersion"].as_str().unwrap_or_default();
    match kind.as_str() {
        "" => {
            return Err(vec![format!(
                "kind: is missing; write `kind: {}` or `kind: {}`",
                KINDS[0], KINDS[1]
            )]);
        }
        other if !KINDS.contains(&other) => {
            let near = KINDS.into_iter().find(|kind| distance(kind, other) <= 3);
            let advice = near.map_or_else(
                || format!("only {} and {} are taken here", KINDS[0], KINDS[1]),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(vec![format!("kind: there is no {other:?}; {advice}")]);
        }
        _ if api_version != API_VERSION => {
            return Err(vec![format!(
                "apiVersion: is {api_version:?}; write `apiVersion: {API_VERSION}`"
            )]);
        }
        _ => {}
    }
    if kind == KINDS[0] {
        let cluster = typed::<RaftCluster>(document, namespace)?;
        ValidatedCluster::try_from(&cluster).map_err(|invalid| said(&invalid))?;
        Ok(Object::Cluster(Box::new(cluster)))
    } else {
        let layout = typed::<ShardLayout>(document, namespace)?;
        ValidatedLayout::try_from(&layout).map_err(|invalid| said(&invalid))?;
        Ok(Object::Layout(Box::new(layout)))
    }
}

fn typed<T>(mut document: Value, namespace: &str) -> Result<T, Vec<String>>
where
    T: CustomResourceExt + Resource + serde::de::DeserializeOwned,
{
    let mut complaints = metadata(&document["metadata"]);
    // Status is what the operator says, not what a person declares; kubectl ignores it too.
    if let Some(fields) = document.as_object_mut() {
        fields.remove("status");
    }
    complaints.extend(
        schema::check(&document, &schema_of::<T>())
            .into_iter()
            .filter(|complaint| complaint.field != "metadata")
            .map(|complaint| format!("{}: {}", complaint.field, complaint.message)),
    );
    if !complaints.is_empty() {
        return Err(complaints);
    }
    let mut object: T = serde_json::from_value(document).map_err(|error| vec![error.to_string()])?;
    object.meta_mut().namespace.get_or_insert_with(|| namespace.to_owned());
    Ok(object)
}

/// The validation's complaints, one each.
fn said(invalid: &InvalidResource) -> Vec<String> {
    invalid.problems.iter().map(ToString::to_string).collect()
}

/// Broken transition rules as complaints, in the same words as `said`.
pub(crate) fn broken_rules(errors: kube::core::cel::ValidationErrors) -> Vec<String> {
    errors
        .into_vec()
        .into_iter()
        .map(|error| {
            Problem {
                path: error.field_path,
                message: error.message,
            }
            .to_string()
        })
        .collect()
}

/// The schema of the served version, with the fields that every object has.
fn schema_of<T: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(T::crd()).unwrap_or_default();
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    if let Some(properties) = schema["properties"].as_object_mut() {
        for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            properties.insert(name.to_owned(), serde_json::json!({ "type": kind }));
        }
    }
    schema
}

/// Complaints about the fields of `metadata` that name things; in local mode they become names of folders.
fn metadata(metadata: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    match &metadata["name"] {
        Value::String(name) => complaints.extend(label("metadata.name", name)),
        Value::Null => complaints.push("metadata.name: is missing; give it a name".to_owned()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            complaints.push("metadata.name: must be a string (quote it)".to_owned());
        }
    }
    match &metadata["namespace"] {
        Value::String(namespace) => complaints.extend(label("metadata.namespace", namespace)),
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            complaints.push("metadata.namespace: must be a string (quote it)".to_owned());
        }
    }
    complaints
}

/// Complains about a name that is no DNS label (RFC 1123, section 2.1).
pub(crate) fn label(field: &str, name: &str) -> Option<String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fine = !name.is_empty()
        && name.len() <= LABEL_LENGTH
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    (!fine).then(|| {
        format!(
            "{field}: {name:?} must be at most {LABEL_LENGTH} lower-case letters, digits and '-', beginning and ending with a letter or digit"
        )
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const CLUSTER: &str = "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {name: orders}\nspec: {members: 3, version: 0.1.0, storage: {size: 1Gi}}\n";
    const LAYOUT: &str = "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {name: orders}\nspec: {clusterRef: {name: orders}, shards: 1}\n";

    fn refused(text: &str, expected: &Expect) {
        let complaints = parse("orders.yaml", text, "default").expect_err("this must be refused");
        expected.assert_eq(&(complaints.join("\n") + "\n"));
    }

    #[test]
    fn documents_become_objects_in_the_namespace_that_is_meant() {
        let text = format!("# a comment\n---\n{CLUSTER}---\n{LAYOUT}---\n");
        let objects = parse("orders.yaml", &text, "shop").unwrap();
        let references: Vec<String> = objects.iter().map(Object::reference).collect();
        assert_eq!(references, ["raftcluster/orders", "shardlayout/orders"]);
        let Object::Cluster(cluster) = &objects[0] else {
            panic!("the first is a cluster")
        };
        assert_eq!(cluster.namespace().as_deref(), Some("shop"));
        let named = CLUSTER.replace("{name: orders}", "{name: orders, namespace: other}");
        let Object::Cluster(cluster) = parse("f", &named, "shop").unwrap().remove(0) else {
            panic!("a cluster")
        };
        assert_eq!(cluster.namespace().as_deref(), Some("other"));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_what_to_write() {
        refused(
            "",
            &expect![[r#"
            orders.yaml: there is no document in it; compare with manifests/samples/quickstart.yaml
        "#]],
        );
        refused(
            "a: [",
            &expect![[r#"
            orders.yaml: this is not YAML that can be read: error: line 1 column 4: unclosed bracket '['
             --> <input>:1:4
              |
            1 | a: [
              |    ^ unclosed bracket '['
              compare with manifests/samples/quickstart.yaml
        "#]],
        );
        refused(
            "- a list",
            &expect![[r#"
            orders.yaml, document 1: must be a mapping that begins with `apiVersion:` and `kind:`
        "#]],
        );
        refused(
            "apiVersion: althing.dev/v1alpha1",
            &expect![[r#"
            orders.yaml, document 1: kind: is missing; write `kind: RaftCluster` or `kind: ShardLayout`
        "#]],
        );
        refused(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}",
            &expect![[r#"
            orders.yaml, document 1 (Pod x): kind: there is no "Pod"; only RaftCluster and ShardLayout are taken here
        "#]],
        );
        refused(
            &CLUSTER.replace("RaftCluster", "Raftclusters"),
            &expect![[r#"
            orders.yaml, document 1 (Raftclusters orders): kind: there is no "Raftclusters"; did you mean `RaftCluster`?
        "#]],
        );
        refused(
            &CLUSTER.replace("v1alpha1", "v1"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): apiVersion: is "althing.dev/v1"; write `apiVersion: althing.dev/v1alpha1`
        "#]],
        );
    }

    #[test]
    fn fields_are_refused_by_the_schema_with_their_path() {
        refused(
            &CLUSTER.replace("members: 3", "member: 3"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): spec.members: is missing; it must be given (How many members: an odd number from 1 to 9)
            orders.yaml, document 1 (RaftCluster orders): spec.member: is not a field here; did you mean `members`?
        "#]],
        );
        refused(
            &CLUSTER.replace("members: 3", "members: three"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): spec.members: must be a whole number, not "three"
        "#]],
        );
        refused(
            &CLUSTER.replace("{name: orders}", "{}"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster): metadata.name: is missing; give it a name
        "#]],
        );
        refused(
            &CLUSTER.replace("{name: orders}", "{name: ../../etc}"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster ../../etc): metadata.name: "../../etc" must be at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit
        "#]],
        );
        refused(
            &CLUSTER.replace("{name: orders}", "{name: orders, namespace: ..}"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): metadata.namespace: ".." must be at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit
        "#]],
        );
        refused(
            &CLUSTER.replace("version: 0.1.0", "version: 1"),
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): spec.version: must be a string (quote it), not 1
        "#]],
        );
    }

    #[test]
    fn rules_are_the_operators_own_and_every_document_is_looked_at() {
        let text = format!(
            "{}---\n{}",
            CLUSTER.replace("members: 3", "members: 4"),
            LAYOUT.replace("shards: 1", "port: 2380")
        );
        refused(
            &text,
            &expect![[r#"
            orders.yaml, document 1 (RaftCluster orders): spec.members must be odd; write 1, 3, 5, 7 or 9: an even number tolerates no more failures than one member fewer
            orders.yaml, document 2 (ShardLayout orders): spec.port cannot be 2379, 2380 or 2381: the members use them for clients, peers and admin; write another one such as 2479
        "#]],
        );
    }
}
