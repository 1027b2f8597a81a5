//! A Kubernetes node: containerd, kubelet and kube-proxy on a machine of their own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::Site;
use super::control::{config_file, flag};
use super::layout::{DNS_SERVICE, Node, PODS};
use crate::cgroup::Cgroup;
use crate::command::{run, wait_until};
use crate::error::{Error, Result};
use crate::machine::Machine;

/// containerd answers within a second; two busy cores may take longer.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);

/// What the sandbox of every pod runs.
const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Debian's folder of CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Starts the node's processes; `images` are imported before kubelet may ask for them.
///
/// # Errors
/// If a process ends early or an image cannot be imported.
pub(super) fn start(node: Node, machine: &mut Machine, site: &Site<'_>, images: &[&Path]) -> Result<()> {
    let Site {
        parts,
        folder,
        pki,
        path,
        bed,
    } = site;
    Cgroup::create(bed, &pods_cgroup(node, site).0)?;
    let own = |file: &str| machine.folder.join(file);
    let cni = own("cni");
    let volumes = own("volumes");
    for made in [&cni, &volumes] {
        fs::create_dir_all(made).map_err(Error::io("create", made))?;
    }
    config_file(cni.join("10-bed.conflist"), &format!("{:#}\n", network(node)))?;
    let containerd = config_file(own("containerd.toml"), &containerd(&cni))?;
    let kubelet_config = config_file(own("kubelet.json"), &format!("{:#}\n", kubelet(node, site)))?;

    let mut start = |name: &str, args: Vec<String>| -> Result<()> {
        let log = folder.log(&format!("{name}-{node}"));
        machine.start(name, &log, path, &parts.path(name), &args).map(drop)
    };
    start("containerd", vec!["--config".to_owned(), containerd])?;
    start(
        "kube-proxy",
        vec![
            flag("kubeconfig", &pki.path("proxy.conf")),
            flag("hostname-override", &node.to_string()),
            "--proxy-mode=iptables".to_owned(),
            flag("cluster-cidr", PODS),
            // Zero leaves the host's connection tracking limit alone.
            "--conntrack-max-per-core=0".to_owned(),
        ],
    )?;
    let ctr = |args: &[&str]| -> Command {
        let mut command = machine.enter(parts.path("ctr"));
        command.args(["--namespace", "k8s.io"]).args(args);
        command
    };
    wait_until(&format!("containerd on {node} answers"), CONTAINERD_LIMIT, || {
        run(&mut ctr(&["version"])).map_err(|error| error.to_string())
    })?;
    for image in images {
        run(&mut ctr(&["images", "import", &image.to_string_lossy()]))?;
    }
    machine
        .start(
            "kubelet",
            &folder.log(&format!("kubelet-{node}")),
            path,
            &parts.path("kubelet"),
            &[
                flag("config", &kubelet_config),
                flag("kubeconfig", &pki.path(&format!("kubelet-{node}.conf"))),
                flag("hostname-override", &node.to_string()),
                flag("node-ip", &node.address().to_string()),
            ],
        )
        .map(drop)
}

/// Where a node's pods live: a group beside the machine's own, because cgroup v2 wants processes in leaves only.
fn pods_cgroup(node: Node, site: &Site<'_>) -> (String, String) {
    let group = format!("{node}-pods");
    let path = Cgroup::path(site.bed, &group);
    (group, path)
}

fn network(node: Node) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": node.pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn containerd(cni: &Path) -> String {
    format!(
        r#"version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  # We may not lower a score that the host has set.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{CNI_PLUGINS}"]
  conf_dir = "{}"
"#,
        cni.display()
    )
}

fn kubelet(node: Node, site: &Site<'_>) -> serde_json::Value {
    let pki = site.pki;
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": pki.path("ca.crt")},
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": pki.path(&format!("kubelet-{node}.crt")),
        "tlsPrivateKeyFile": pki.path(&format!("kubelet-{node}.key")),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS_SERVICE.to_string()],
        "clusterDomain": "cluster.local",
        // The host's resolver is not reachable from here and none of our business.
        "resolvConf": "",
        // Pods below the bed's own group, so that none is left behind. v1 hosts are still around.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": pods_cgroup(node, site).1,
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // Images are imported once and cannot be pulled again; a full host disk is not this node's problem.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi"},
        "logging": {"verbosity": 2},
    })
}
