//! The hash that says whether a member must be restarted.

use althing_crds::ValidatedCluster;
use serde_json::json;

use crate::settings::NodeImage;

/// Hashes what a person declared (image, traces, pod template), not what this operator makes of it: a new operator must not
/// restart every database. A field that is added later must be left out of the hash while it has its default.
pub(crate) fn workload_hash(cluster: &ValidatedCluster, image: &NodeImage) -> String {
    let inputs = json!({
        "image": image.reference,
        "settings": super::config_map::settings(cluster),
        "podTemplate": cluster.pod_template,
    });
    format!("{:016x}", fnv1a(inputs.to_string().as_bytes()))
}

/// FNV-1a, 64 bits: small, and the same in every release. Nobody gains anything by a collision here.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, image, valid};
    use super::*;

    #[test]
    fn the_hash_does_not_change_from_release_to_release() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        expect_test::expect!["c647ec3d5bacf4c0"].assert_eq(&workload_hash(&cluster(), &image()));
    }

    #[test]
    fn members_volumes_and_pause_do_not_restart_anything() {
        let other = valid(json!({
            "members": 5, "version": "0.1.0", "storage": {"size": "20Gi"}, "paused": true,
            "volumeRetention": {"whenDeleted": "Delete"}
        }));
        assert_eq!(workload_hash(&cluster(), &image()), workload_hash(&other, &image()));
    }

    #[test]
    fn image_settings_and_pod_template_do() {
        let base = workload_hash(&cluster(), &image());
        let newer = NodeImage {
            reference: "localhost/althing-node:0.2.0".into(),
            ..image()
        };
        assert_ne!(workload_hash(&cluster(), &newer), base);
        for change in [
            json!({"telemetry": {"otlp": {"endpoint": "http://x:4317"}}}),
            json!({"podTemplate": {"resources": {"requests": {"cpu": "1"}}}}),
        ] {
            let mut spec = json!({"members": 3, "version": "0.1.0", "storage": {"size": "10Gi"}});
            spec.as_object_mut()
                .expect("an object")
                .extend(change.as_object().expect("an object").clone());
            assert_ne!(workload_hash(&valid(spec), &image()), base, "{change}");
        }
    }
}
