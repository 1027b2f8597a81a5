//! What the operator is told at start.

use std::net::SocketAddr;

use althing_crds::{PullPolicy, ValidatedCluster};
use clap::{Parser, ValueEnum};

/// Keeps Althing clusters as declared.
#[derive(Clone, Debug, Parser)]
#[command(name = "althing-operator", version)]
pub(crate) struct Settings {
    /// Watch this namespace only; empty: all of them.
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub(crate) watch_namespace: String,
    /// This process's name among its replicas.
    #[arg(long, env = "POD_NAME", default_value = "althing-operator")]
    pub(crate) pod_name: String,
    /// Where the lease that elects one replica lives.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub(crate) pod_namespace: String,
    /// The lease's name.
    #[arg(long, env = "ALTHING_LEASE_NAME", default_value = "althing-operator")]
    pub(crate) lease_name: String,
    /// The members' image without tag; `{version}` in it is replaced by spec.version, otherwise that is the tag.
    #[arg(long, env = "ALTHING_NODE_IMAGE", default_value = "localhost/althing-node")]
    pub(crate) node_image: String,
    /// When the members' image is pulled.
    #[arg(long, env = "ALTHING_NODE_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = pull_policy)]
    pub(crate) node_image_pull_policy: PullPolicy,
    /// Serves /healthz, /readyz and /metrics.
    #[arg(long, env = "ALTHING_LISTEN", default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,
    /// How logs are written.
    #[arg(long, env = "ALTHING_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

fn pull_policy(text: &str) -> Result<PullPolicy, String> {
    match text {
        "Always" => Ok(PullPolicy::Always),
        "IfNotPresent" => Ok(PullPolicy::IfNotPresent),
        "Never" => Ok(PullPolicy::Never),
        other => Err(format!(
            "`{other}` is not a pull policy; write Always, IfNotPresent or Never"
        )),
    }
}

/// The image that a cluster's members run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeImage {
    /// Reference.
    pub(crate) reference: String,
    /// When it is pulled.
    pub(crate) pull_policy: PullPolicy,
}

impl Settings {
    /// The namespace to watch, if it is one.
    pub(crate) fn namespace(&self) -> Option<&str> {
        (!self.watch_namespace.is_empty()).then_some(self.watch_namespace.as_str())
    }

    /// The image of this cluster's members: its own override first.
    pub(crate) fn image_of(&self, cluster: &ValidatedCluster) -> NodeImage {
        let tag = cluster.image.tag.as_ref().unwrap_or(&cluster.version);
        let reference = match &cluster.image.repository {
            Some(repository) => format!("{repository}:{tag}"),
            None if self.node_image.contains("{version}") => self.node_image.replace("{version}", tag),
            None => format!("{}:{tag}", self.node_image),
        };
        NodeImage {
            reference,
            pull_policy: cluster.image.pull_policy.unwrap_or(self.node_image_pull_policy),
        }
    }
}
