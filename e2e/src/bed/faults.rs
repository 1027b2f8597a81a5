//! What goes wrong on purpose. Every fault is undone by its guard or its counterpart, and says what it hit.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use super::layout::Node;
use super::{Bed, network};
use crate::command::run;
use crate::error::{Error, Result};

/// A partition that ends when this is dropped.
#[derive(Debug)]
pub struct Partition<'a> {
    bed: &'a Bed,
    node: Node,
}

impl Partition<'_> {
    /// Mends the cable and says whether that worked, which dropping cannot.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(self) -> Result<()> {
        network::set_cable(self.bed.control()?, self.node, true)
    }
}

impl Drop for Partition<'_> {
    fn drop(&mut self) {
        // In a failing test the first error counts; and the bed goes down with its cables anyway.
        if let Ok(control) = self.bed.control() {
            drop(network::set_cable(control, self.node, true));
        }
    }
}

impl Bed {
    /// Cuts a node off the network: from the other nodes, the apiserver and the clients. Its pods go on and can talk to
    /// each other.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn partition(&self, node: Node) -> Result<Partition<'_>> {
        let control = self.control()?;
        // Otherwise the test's own way to Services would be cut, which says nothing about what is tested.
        let gateway = Node::ALL
            .into_iter()
            .find(|other| *other != node)
            .expect("invariant: there are three nodes");
        network::route_services_through(control, gateway)?;
        network::set_cable(control, node, false)?;
        Ok(Partition { bed: self, node })
    }

    /// Stops a node's kubelet: to Kubernetes the node is lost, while its pods go on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn stop_kubelet(&self, node: Node) -> Result<()> {
        self.node(node)?.process("kubelet")?.signal(Signal::STOP)
    }

    /// Lets a stopped kubelet go on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn resume_kubelet(&self, node: Node) -> Result<()> {
        self.node(node)?.process("kubelet")?.signal(Signal::CONT)
    }

    /// `kill -9` of a container's first process; kubelet starts the container again.
    ///
    /// # Errors
    /// If there is no such container.
    pub fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Result<()> {
        let object = self.get(&["pod", pod, "--namespace", namespace])?;
        let node = node_of(&object)?;
        let statuses = object["status"]["containerStatuses"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let id = statuses
            .iter()
            .find(|status| status["name"] == container)
            .and_then(|status| status["containerID"].as_str()?.strip_prefix("containerd://"))
            .ok_or_else(|| no_such("container", &format!("{namespace}/{pod}/{container}")))?;
        run(self.ctr(node)?.args(["tasks", "kill", "--signal", "SIGKILL", id])).map(drop)
    }

    /// The node that a pod runs on.
    ///
    /// # Errors
    /// If it runs on none.
    pub fn node_of(&self, namespace: &str, pod: &str) -> Result<Node> {
        node_of(&self.get(&["pod", pod, "--namespace", namespace])?)
    }

    /// The folder on the host that holds a claim's data.
    ///
    /// # Errors
    /// If the claim is not bound to a volume of the bed's storage class.
    pub fn volume_of(&self, namespace: &str, claim: &str) -> Result<PathBuf> {
        let object = self.get(&["pvc", claim, "--namespace", namespace])?;
        let volume = object["spec"]["volumeName"]
            .as_str()
            .ok_or_else(|| no_such("bound claim", claim))?;
        let volume = self.get(&["pv", volume])?;
        let path = volume["spec"]["local"]["path"]
            .as_str()
            .ok_or_else(|| no_such("local volume of", claim))?;
        Ok(PathBuf::from(path))
    }

    /// Loses everything in a claim's volume while the claim stays, as a replaced disk does.
    ///
    /// # Errors
    /// If the claim is not bound, or something cannot be removed.
    pub fn wipe_volume(&self, namespace: &str, claim: &str) -> Result<()> {
        let folder = self.volume_of(namespace, claim)?;
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let path = entry.map_err(Error::io("list", &folder))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}

fn node_of(pod: &Value) -> Result<Node> {
    pod["spec"]["nodeName"].as_str().and_then(Node::named).ok_or_else(|| {
        let name = pod["metadata"]["name"].as_str().unwrap_or("?");
        Error::refused(format!("pod {name} is not on any node"), "wait until it is scheduled")
    })
}

fn no_such(kind: &str, name: &str) -> Error {
    Error::refused(
        format!("there is no {kind} {name}"),
        "check the name, or wait until it is there",
    )
}
