//! A local node's command line. Pure.

use std::path::{Path, PathBuf};

use althing_crds::ValidatedCluster;

use super::layout::MemberKey;
use super::ports::Ports;

/// The node program, and what tells one build of it from another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Program {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Changes when the program is built anew, so that its members are restarted.
    pub(crate) build: String,
}

/// The arguments of `althing-node` (its flags are its contract, see `node`).
pub(crate) fn node_args(cluster: &ValidatedCluster, member: &MemberKey, ports: Ports, volume: &Path) -> Vec<String> {
    let listen = |port: u16| format!("127.0.0.1:{port}");
    let mut args = vec!["run".to_owned()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("name", member.node_name());
    flag("data-dir", volume.display().to_string());
    flag("client-addr", listen(ports.client));
    flag("peer-addr", listen(ports.peer));
    flag("admin-addr", listen(ports.admin));
    flag("advertise-client", ports.client_url());
    flag("advertise-peer", ports.peer_address());
    flag("advertise-admin", ports.admin_url());
    if let Some(otlp) = &cluster.telemetry.otlp {
        flag("otlp-endpoint", otlp.endpoint.clone());
        flag("trace-sample-ratio", cluster.telemetry.sample_ratio.to_string());
    }
    args
}

/// What only a restart can change, in clear: it is compared, never parsed. `podTemplate`, `image` and `storage` mean
/// nothing on one machine.
pub(crate) fn workload_hash(cluster: &ValidatedCluster, program: &Program) -> String {
    let otlp = cluster
        .telemetry
        .otlp
        .as_ref()
        .map(|otlp| format!("{} {}", otlp.endpoint, cluster.telemetry.sample_ratio));
    format!(
        "version {}, program {}, otlp {}",
        cluster.version,
        program.build,
        otlp.as_deref().unwrap_or("none")
    )
}

#[cfg(test)]
mod tests {
    use althing_plan::model::Ordinal;
    use expect_test::expect;

    use super::super::layout::ClusterKey;
    use super::*;
    use crate::manifest::{self, Object};

    fn cluster(telemetry: &str) -> ValidatedCluster {
        let text = format!(
            "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {{name: orders}}\nspec: {{members: 3, version: 0.1.0, storage: {{size: 1Gi}}, telemetry: {telemetry}}}\n"
        );
        let Object::Cluster(cluster) = manifest::parse("f", &text, "default").unwrap().remove(0) else {
            panic!("a cluster")
        };
        ValidatedCluster::try_from(&*cluster).unwrap()
    }

    #[test]
    fn a_node_listens_on_the_loopback_address_only_and_says_so_to_its_peers() {
        let member = MemberKey {
            cluster: ClusterKey::new("default", "orders"),
            ordinal: Ordinal(1),
        };
        let ports = Ports {
            client: 2389,
            peer: 2390,
            admin: 2391,
        };
        let with = cluster("{otlp: {endpoint: 'http://127.0.0.1:4317'}, sampleRatio: 0.5}");
        let args = node_args(&with, &member, ports, Path::new("/state/volume"));
        expect![[r#"
            run
            --name orders-1
            --data-dir /state/volume
            --client-addr 127.0.0.1:2389
            --peer-addr 127.0.0.1:2390
            --admin-addr 127.0.0.1:2391
            --advertise-client http://127.0.0.1:2389
            --advertise-peer 127.0.0.1:2390
            --advertise-admin http://127.0.0.1:2391
            --otlp-endpoint http://127.0.0.1:4317
            --trace-sample-ratio 0.5
        "#]]
        .assert_eq(&(args.join(" ").replace(" --", "\n--") + "\n"));
    }

    #[test]
    fn a_rebuilt_program_or_other_telemetry_restarts_members_and_size_does_not() {
        let program = |build: &str| Program {
            path: PathBuf::from("/bin/althing-node"),
            build: build.to_owned(),
        };
        let before = workload_hash(&cluster("{}"), &program("a"));
        assert_ne!(before, workload_hash(&cluster("{}"), &program("b")));
        assert_ne!(
            before,
            workload_hash(&cluster("{otlp: {endpoint: 'http://127.0.0.1:4317'}}"), &program("a"))
        );
        let mut larger = cluster("{}");
        larger.volumes.size = "9Gi".to_owned();
        assert_eq!(before, workload_hash(&larger, &program("a")));
    }
}
