//! What a cluster needs besides its nodes: DNS and volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::layout::Node;
use super::{Bed, Folder, control::flag};
use crate::command::{run, run_with_input};
use crate::error::Result;
use crate::image::Image;
use crate::parts::Parts;
use crate::progress::Step;

const COREDNS: &str = include_str!("../../cluster/manifests/coredns.yaml");
const STORAGE: &str = include_str!("../../cluster/manifests/storage.yaml");

/// From kubelet's start to a ready node and an answering CoreDNS takes about 20 s on an idle machine with two cores.
const READY_LIMIT: Duration = Duration::from_secs(240);

/// The images that are on every node from the start, as archives.
pub(super) fn images(parts: &Parts, folder: &Folder) -> Result<Vec<PathBuf>> {
    [("localhost/pause:1", "pause"), ("localhost/coredns:1", "coredns")]
        .into_iter()
        .map(|(name, program)| {
            let archive = folder.path(&format!("{program}.tar"));
            let image = Image {
                name: name.to_owned(),
                program: parts.path(program),
                labels: BTreeMap::new(),
            };
            image.write(&archive).map(|()| archive)
        })
        .collect()
}

/// Installs DNS and the storage class and waits until nodes and DNS are ready.
pub(super) fn install(bed: &mut Bed, parts: &Parts) -> Result<()> {
    let step = Step::begin("nodes ready, DNS, storage class");
    let (kubeconfig, folder) = (bed.kubeconfig(), bed.folder.clone());
    let path = bed.record.path.clone();
    let control = bed
        .record
        .control
        .as_mut()
        .expect("invariant: the control machine was booted before its addons");
    let provisioner_args = [
        flag("kubeconfig", &kubeconfig.to_string_lossy()),
        flag("bed", &folder.0.to_string_lossy()),
    ];
    let program = parts.path("provisioner");
    control.start(
        "provisioner",
        &folder.log("provisioner"),
        &path,
        &program,
        &provisioner_args,
    )?;
    bed.save()?;
    run_with_input(bed.kubectl()?.args(["apply", "-f", "-"]), COREDNS)?;
    run_with_input(bed.kubectl()?.args(["apply", "-f", "-"]), STORAGE)?;
    let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
    // `--for=create` first: kubelets register themselves when they get to it.
    for node in Node::ALL {
        let node = format!("node/{node}");
        run(bed.kubectl()?.args(["wait", "--for=create", &node, &limit]))?;
        run(bed.kubectl()?.args(["wait", "--for=condition=Ready", &node, &limit]))?;
    }
    run(bed.kubectl()?.args([
        "--namespace=kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        &limit,
    ]))?;
    step.done();
    Ok(())
}
