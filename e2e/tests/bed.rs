//! The bed itself: what the other tests take for granted when they break things on it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failing step is the test's failure, and real processes take real time"
)]

use std::time::Duration;

use althing_e2e::bed::Bed;
use althing_e2e::bed::layout::Node;
use althing_e2e::command::{run, wait_until};
use althing_e2e::workload::{Plan, Workload};

/// For things that take a few seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);

fn bed() -> Bed {
    Bed::from_environment().unwrap()
}

/// A pod that does nothing, with a volume, in a namespace that is deleted at the end.
struct Pod<'a> {
    bed: &'a Bed,
    namespace: String,
}

impl<'a> Pod<'a> {
    fn start(bed: &'a Bed, namespace: &str) -> Self {
        let pod = Self {
            bed,
            namespace: namespace.to_owned(),
        };
        bed.apply(&format!(
            r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: {namespace}}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: idle, namespace: {namespace}}}
spec:
  securityContext: {{runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, runAsNonRoot: true}}
  terminationGracePeriodSeconds: 1
  containers: [{{name: idle, image: "localhost/pause:1", volumeMounts: [{{name: data, mountPath: /data}}]}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]
"#
        ))
        .unwrap();
        pod.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod/idle",
            &format!("--timeout={}s", LIMIT.as_secs()),
        ]);
        pod
    }

    fn kubectl(&self, args: &[&str]) -> String {
        run(self
            .bed
            .kubectl()
            .unwrap()
            .args(["--namespace", &self.namespace])
            .args(args))
        .unwrap()
    }

    fn node(&self) -> Node {
        self.bed.node_of(&self.namespace, "idle").unwrap()
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let mut kubectl = self.bed.kubectl().unwrap();
        drop(run(kubectl.args([
            "delete",
            "namespace",
            &self.namespace,
            "--wait=false",
        ])));
    }
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_deleted_claim_really_loses_its_data_and_a_new_one_gets_a_new_volume() {
    let bed = bed();
    let pod = Pod::start(&bed, "bed-volume");
    let first = bed.volume_of("bed-volume", "data").unwrap();
    std::fs::write(first.join("file"), "data").unwrap();
    pod.kubectl(&["delete", "pod/idle", "pvc/data"]);
    wait_until("the volume's folder is gone", LIMIT, || {
        if first.exists() {
            Err(first.display().to_string())
        } else {
            Ok(())
        }
    })
    .unwrap();
    drop(pod);
    let _again = Pod::start(&bed, "bed-volume-again");
    let second = bed.volume_of("bed-volume-again", "data").unwrap();
    assert_ne!(first, second);
    assert_eq!(std::fs::read_dir(second).unwrap().count(), 0);
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_killed_container_is_started_again_by_kubelet_with_its_volume() {
    let bed = bed();
    let pod = Pod::start(&bed, "bed-kill");
    let volume = bed.volume_of("bed-kill", "data").unwrap();
    std::fs::write(volume.join("file"), "data").unwrap();
    bed.kill_container("bed-kill", "idle", "idle").unwrap();
    wait_until("the container was started again", LIMIT, || {
        let state = pod.kubectl(&["get", "pod", "idle", "-o", "jsonpath={.status.containerStatuses[0]}"]);
        if state.contains(r#""restartCount":1"#) && state.contains(r#""ready":true"#) {
            Ok(())
        } else {
            Err(state)
        }
    })
    .unwrap();
    assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "data");
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_partitioned_node_is_unreachable_until_it_heals_and_its_pods_live_on() {
    let bed = bed();
    let pod = Pod::start(&bed, "bed-partition");
    let node = pod.node();
    let address = pod.kubectl(&["get", "pod", "idle", "-o", "jsonpath={.status.podIP}"]);
    let reaches = || {
        // Nothing listens there: "refused" is an answer, silence is none.
        let target = format!("{address}:1").parse().unwrap();
        let answer = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(1));
        answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    assert!(reaches());
    let partition = bed.partition(node).unwrap();
    assert!(!reaches());
    // The apiserver still answers through another node's kube-proxy.
    pod.kubectl(&[
        "wait",
        "--for=condition=Ready=Unknown",
        &format!("node/{node}"),
        "--timeout=90s",
    ]);
    partition.heal().unwrap();
    pod.kubectl(&[
        "wait",
        "--for=condition=Ready",
        &format!("node/{node}"),
        "--timeout=90s",
    ]);
    assert!(reaches());
    let restarts = pod.kubectl(&[
        "get",
        "pod",
        "idle",
        "-o",
        "jsonpath={.status.containerStatuses[0].restartCount}",
    ]);
    assert_eq!(restarts, "0");
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn a_stopped_kubelet_makes_its_node_not_ready_and_a_resumed_one_ready() {
    let bed = bed();
    bed.stop_kubelet(Node::N3).unwrap();
    let wait = |condition: &str| {
        run(bed
            .kubectl()
            .unwrap()
            .args(["wait", condition, "node/n3", "--timeout=90s"]))
        .map(drop)
    };
    let lost = wait("--for=condition=Ready=Unknown");
    bed.resume_kubelet(Node::N3).unwrap();
    lost.unwrap();
    wait("--for=condition=Ready").unwrap();
}

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn etcd_itself_passes_the_workload_and_the_judge() {
    // The apiserver's own etcd; keys below /workload do not concern it.
    let load = Workload::start(Plan::new(["http://127.0.0.1:2379".to_owned()])).unwrap();
    load.wait_for_writes(500, LIMIT).unwrap();
    let summary = load.stop().unwrap();
    println!("etcd 3.7.3: {summary}");
    summary.assert_sound();
    assert!(summary.counts().reads > 100, "{summary}");
}
