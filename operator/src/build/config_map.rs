//! The members' settings file, the same for all of them.

use std::fmt::Write;

use althing_crds::ValidatedCluster;
use k8s_openapi::api::core::v1::ConfigMap;

/// The file's name in the map and in the pod.
pub(super) const FILE: &str = "node.toml";

pub(super) fn config_map(cluster: &ValidatedCluster) -> ConfigMap {
    ConfigMap {
        metadata: super::metadata(cluster, cluster.name.clone()),
        data: Some(super::one(FILE, settings(cluster))),
        ..ConfigMap::default()
    }
}

/// The file. What differs between members comes as flags.
pub(super) fn settings(cluster: &ValidatedCluster) -> String {
    let mut text = String::from("log_format = \"json\"\n");
    if let Some(otlp) = &cluster.telemetry.otlp {
        let write = "invariant: writing to a string does not fail";
        writeln!(text, "otlp_endpoint = {}", quoted(&otlp.endpoint)).expect(write);
        writeln!(text, "trace_sample_ratio = {:?}", cluster.telemetry.sample_ratio).expect(write);
    }
    text
}

/// A TOML basic string (TOML 1.0, section "String"): quotes, backslashes and control characters are escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            control if control.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(control)).expect("invariant: writing to a string does not fail");
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, valid, yaml};
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn the_file_says_where_traces_go() {
        let traced = valid(json!({
            "members": 3, "version": "0.1.0", "storage": {"size": "10Gi"},
            "telemetry": {"otlp": {"endpoint": "http://otel:4317"}, "sampleRatio": 1.0}
        }));
        expect![[r#"
            apiVersion: v1
            data:
              node.toml: |
                log_format = "json"
                otlp_endpoint = "http://otel:4317"
                trace_sample_ratio = 1.0
            kind: ConfigMap
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
        "#]]
        .assert_eq(&yaml(&super::config_map(&traced)));
    }

    #[test]
    fn without_a_collector_nothing_is_said_of_traces() {
        assert_eq!(super::settings(&cluster()), "log_format = \"json\"\n");
    }

    #[test]
    fn an_endpoint_cannot_break_out_of_its_string() {
        assert_eq!(super::quoted("http://x\"\n\\"), r#""http://x\"\u000A\\""#);
    }
}
