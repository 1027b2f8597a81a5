//! The stock tools, run inside the bed's network: from a test, from a shell, from the host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::Bed;
use super::layout::Node;
use crate::command::{run, run_with_input};
use crate::error::{Error, Result};

/// Tells a program that runs on the bed which bed that is: its folder.
pub const BED_VARIABLE: &str = "ALTHING_BED";

impl Bed {
    /// The bed that this test is to use.
    ///
    /// # Errors
    /// If `ALTHING_BED` does not say, as when a test is run by hand.
    pub fn from_environment() -> Result<Self> {
        let folder = std::env::var_os(BED_VARIABLE).ok_or_else(|| {
            Error::refused(
                format!("{BED_VARIABLE} is not set, so there is no bed to test on"),
                "run this test with `cargo xtask e2e <name of the test>`",
            )
        })?;
        Self::load(Path::new(&folder))
    }

    /// A host program in the bed's network, with the tools first in `PATH` and `KUBECONFIG` set.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = self.control()?.enter_network("env");
        // A developer's own tools stay reachable behind the bed's.
        let rest = std::env::var("PATH").unwrap_or_default();
        command
            .arg(format!("PATH={}:{rest}", self.search_path()))
            .arg(format!("KUBECONFIG={}", self.kubeconfig().display()))
            .arg(format!("{BED_VARIABLE}={}", self.folder().display()))
            .arg(program);
        Ok(command)
    }

    /// `kubectl` as administrator.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn kubectl(&self) -> Result<Command> {
        self.command("kubectl")
    }

    /// `helm` as administrator.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn helm(&self) -> Result<Command> {
        self.command("helm")
    }

    /// The stock `etcdctl`, talking to `endpoints`.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn etcdctl(&self, endpoints: &str) -> Result<Command> {
        let mut command = self.command("etcdctl")?;
        command.arg(format!("--endpoints={endpoints}"));
        Ok(command)
    }

    /// `kubectl apply` of a manifest's text.
    ///
    /// # Errors
    /// If the apiserver refuses; the error holds its words.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        run_with_input(self.kubectl()?.args(["apply", "-f", "-"]), manifest)
    }

    /// `kubectl get ... -o json`.
    ///
    /// # Errors
    /// If there is no such object.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = run(self.kubectl()?.arg("get").args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).map_err(|source| Error::Json {
            what: format!("kubectl get {}", args.join(" ")),
            source,
        })
    }

    /// `ctr` in containerd's Kubernetes namespace on a node.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn ctr(&self, node: Node) -> Result<Command> {
        let mut command = self.node(node)?.enter("env");
        command
            .arg(format!("PATH={}", self.search_path()))
            .args(["ctr", "--namespace", "k8s.io"]);
        Ok(command)
    }

    /// Puts an image on every node, replacing one of the same name.
    ///
    /// # Errors
    /// If containerd refuses it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        for node in Node::ALL {
            run(self.ctr(node)?.args(["images", "import"]).arg(archive))?;
        }
        Ok(())
    }
}
