//! The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on a machine of their own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::layout::{CONTROL, PODS, SERVICES};
use super::pki::Pki;
use super::{Folder, Site};
use crate::command::{run, wait_until};
use crate::error::{Error, Result};
use crate::machine::{Machine, check_alive};

/// From start to ready, the apiserver takes about 10 s on an idle machine with two cores.
const API_LIMIT: Duration = Duration::from_secs(120);

/// Nodes that say nothing for this long count as lost; the default of 50 s would make every test of it a minute longer.
const NODE_GRACE: &str = "--node-monitor-grace-period=20s";

/// Starts the control plane and returns when the apiserver is ready.
///
/// # Errors
/// If a process ends early or readiness does not come.
pub(super) fn start(machine: &mut Machine, site: &Site<'_>) -> Result<()> {
    let Site {
        parts,
        folder,
        pki,
        path,
        ..
    } = site;
    let mut start = |name: &str, args: Vec<String>| -> Result<_> {
        Ok((
            machine.start(name, &folder.log(name), path, &parts.path(name), &args)?,
            folder.log(name),
        ))
    };
    start("etcd", etcd(folder))?;
    let (api, api_log) = start("kube-apiserver", apiserver(pki))?;
    start("kube-controller-manager", controller_manager(pki))?;
    start(
        "kube-scheduler",
        vec![
            flag("kubeconfig", &pki.path("scheduler.conf")),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    wait_until("the apiserver is ready", API_LIMIT, || {
        if let Err(error) = check_alive("kube-apiserver", api, &api_log) {
            return Ok(Err(error));
        }
        let mut kubectl = machine.enter_network(parts.path("kubectl"));
        kubectl.args(["--kubeconfig", &pki.path("admin.conf"), "get", "--raw", "/readyz"]);
        run(&mut kubectl).map(|_| Ok(())).map_err(|error| error.to_string())
    })?
}

fn etcd(folder: &Folder) -> Vec<String> {
    let data: PathBuf = folder.path("etcd");
    vec![
        flag("data-dir", &data.to_string_lossy()),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        // A bed does not outlive a power cut; what is tested for that is ours, not the apiserver's store.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn apiserver(pki: &Pki) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        flag("advertise-address", &CONTROL.to_string()),
        flag("service-cluster-ip-range", SERVICES),
        flag("client-ca-file", &pki.path("ca.crt")),
        flag("tls-cert-file", &pki.path("apiserver.crt")),
        flag("tls-private-key-file", &pki.path("apiserver.key")),
        flag("kubelet-certificate-authority", &pki.path("ca.crt")),
        flag("kubelet-client-certificate", &pki.path("kubelet-client.crt")),
        flag("kubelet-client-key", &pki.path("kubelet-client.key")),
        // Nodes' names resolve nowhere.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        flag("service-account-key-file", &pki.path("sa.pub")),
        flag("service-account-signing-key-file", &pki.path("sa.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        // Pods leave a lost node after 30 s instead of five minutes.
        "--default-not-ready-toleration-seconds=30".to_owned(),
        "--default-unreachable-toleration-seconds=30".to_owned(),
    ]
}

fn controller_manager(pki: &Pki) -> Vec<String> {
    vec![
        flag("kubeconfig", &pki.path("controller-manager.conf")),
        "--use-service-account-credentials".to_owned(),
        flag("service-account-private-key-file", &pki.path("sa.key")),
        flag("root-ca-file", &pki.path("ca.crt")),
        flag("cluster-signing-cert-file", &pki.path("ca.crt")),
        flag("cluster-signing-key-file", &pki.path("ca.key")),
        flag("cluster-cidr", PODS),
        "--allocate-node-cidrs=false".to_owned(),
        "--leader-elect=false".to_owned(),
        NODE_GRACE.to_owned(),
    ]
}

pub(super) fn flag(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

/// Writes a configuration file and returns its path.
pub(super) fn config_file(path: PathBuf, text: &str) -> Result<String> {
    fs::write(&path, text).map_err(Error::io("write", &path))?;
    Ok(path.to_string_lossy().into_owned())
}
