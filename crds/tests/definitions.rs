//! The definitions that the chart installs.

use std::path::Path;

use althing_crds::generate::files;
use kube::CustomResourceExt;
use serde_json::Value;

#[test]
fn the_chart_has_the_definitions_of_these_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/althing/crds");
    for file in files().expect("the definitions are YAML") {
        let present = std::fs::read_to_string(folder.join(&file.name)).unwrap_or_default();
        assert!(
            present == file.content,
            "charts/althing/crds/{} differs; run `cargo run -p althing-crds --bin crdgen -- charts/althing/crds`",
            file.name
        );
    }
}

#[test]
fn the_definitions_offer_what_kubectl_needs() {
    let cluster = serde_json::to_value(althing_crds::RaftCluster::crd()).expect("JSON");
    let version = &cluster["spec"]["versions"][0];
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.members");
    assert_eq!(
        version["subresources"]["scale"]["statusReplicasPath"],
        ".status.currentMembers"
    );
    assert_eq!(
        version["subresources"]["scale"]["labelSelectorPath"],
        ".status.selector"
    );
    assert_eq!(cluster["spec"]["names"]["shortNames"][0], "rcl");
    assert_eq!(cluster["spec"]["names"]["categories"][0], "althing");
    let layout = serde_json::to_value(althing_crds::ShardLayout::crd()).expect("JSON");
    let version = &layout["spec"]["versions"][0];
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.shards");
    assert_eq!(version["selectableFields"][0]["jsonPath"], ".spec.clusterRef.name");
}

#[test]
fn every_rule_has_a_message() {
    fn walk(value: &Value, rules: &mut usize) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::Array(list)) = fields.get("x-kubernetes-validations") {
                    for rule in list {
                        assert!(
                            rule["message"].as_str().is_some_and(|text| text.len() > 10),
                            "{rule} says nothing"
                        );
                        *rules += 1;
                    }
                }
                fields.values().for_each(|field| walk(field, rules));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, rules)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut rules = 0;
    for definition in althing_crds::generate::definitions() {
        walk(&serde_json::to_value(definition).expect("JSON"), &mut rules);
    }
    assert!(rules >= 20, "only {rules} rules were found: the walk misses some");
}

#[test]
fn the_definitions_fit_an_annotation() {
    // `kubectl apply` keeps the last applied object in an annotation of at most 256 KiB.
    for file in files().expect("the definitions are YAML") {
        assert!(
            file.content.len() < 200 * 1024,
            "{} has {} bytes",
            file.name,
            file.content.len()
        );
    }
}
