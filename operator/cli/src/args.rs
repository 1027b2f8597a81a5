//! The command line: what a person may ask for. Parsing only; `run` decides where it goes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Clusters of Althing: on this machine with `up`, or in Kubernetes, from the same YAML.
#[derive(Parser, Debug)]
#[command(version, about, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which clusters are meant: those of a folder on this machine, or those of a Kubernetes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Place {
    /// The clusters of this machine, even if a kubeconfig is there
    #[arg(long, global = true, conflicts_with_all = ["kube", "context"])]
    pub(crate) local: bool,
    /// The clusters of Kubernetes, even if a supervisor runs on this machine
    #[arg(long, global = true, conflicts_with = "dir")]
    pub(crate) kube: bool,
    /// The kubeconfig's context to use; implies --kube
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "dir")]
    pub(crate) context: Option<String>,
    /// Folder with the local clusters' state; implies --local
    /// [default: $ALTHING_DIR, else ./.althing if it exists, else $XDG_STATE_HOME/althing]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The namespace [default: "default", or the context's]
    #[arg(long, short, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run clusters on this machine, in the foreground; Ctrl-C stops them and keeps their data
    Up(Up),
    /// Create or change clusters and shard layouts from YAML
    Apply {
        /// Files of YAML documents; `-` reads standard input
        #[arg(long = "filename", short = 'f', value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// List clusters and shard layouts, or keyspaces, shards and operations
    Get {
        /// What to list
        #[arg(value_enum, default_value_t = Kind::All)]
        kind: Kind,
        /// Only the one of this name; of keyspaces, shards and operations: those of this layout, cluster or keyspace
        name: Option<String>,
        /// How to show them
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// In all namespaces
        #[arg(long, short = 'A')]
        all_namespaces: bool,
    },
    /// Show one cluster: its members, their roles and lag, its conditions, its keyspaces and shards
    Status {
        /// The cluster's name
        name: String,
        /// How to show it
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Change how many members a cluster has, or how many shards a layout has
    Scale {
        /// The name of the RaftCluster, or with --shards of the ShardLayout
        name: String,
        #[command(flatten)]
        to: ScaleTo,
    },
    /// Say what is being done to a cluster, what is waited for, and why
    Why {
        /// The cluster's name
        name: String,
    },
    /// Delete clusters or layouts
    Delete {
        /// What to delete
        #[arg(value_enum)]
        kind: DeleteKind,
        /// Its name
        name: String,
    },
    /// Stop the supervisor of this machine's clusters; their data stays
    Down,
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the version
    Version,
}

/// Flags of `up`.
#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Files of YAML documents (`-` reads standard input); none goes on with what the folder holds
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The node program [default: `althing-node` beside this program, else built by cargo in a checkout, else in PATH]
    #[arg(long, value_name = "PATH", env = "ALTHING_NODE_BINARY")]
    pub(crate) node_binary: Option<PathBuf>,
    /// First port to try; a member takes three in a row (client, peer, admin)
    #[arg(long, value_name = "PORT", default_value_t = crate::local::ports::FIRST_PORT)]
    pub(crate) first_port: u16,
}

/// Exactly one of the two sizes.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ScaleTo {
    /// How many members the cluster shall have
    #[arg(long, value_name = "N")]
    pub(crate) members: Option<i32>,
    /// How many shards the layout shall have
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<i32>,
}

/// What `get` lists. The aliases are the custom resources' own plural and short names.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Both kinds
    All,
    /// RaftClusters
    #[value(name = "raftclusters", aliases = ["raftcluster", "clusters", "cluster"])]
    Clusters,
    /// ShardLayouts
    #[value(name = "shardlayouts", aliases = ["shardlayout", "layouts", "layout"])]
    Layouts,
    /// Keyspaces, each with its shards counted and where it is reached
    #[value(name = "keyspaces", aliases = ["keyspace"])]
    Keyspaces,
    /// Shards, with range, leader, voters, size and lag
    #[value(name = "shards", aliases = ["shard"])]
    Shards,
    /// What is being done to shards
    #[value(name = "operations", aliases = ["operation", "ops"])]
    Operations,
}

/// What `delete` deletes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeleteKind {
    /// A RaftCluster
    #[value(name = "raftcluster", aliases = ["raftclusters", "cluster"])]
    Cluster,
    /// A ShardLayout
    #[value(name = "shardlayout", aliases = ["shardlayouts", "layout"])]
    Layout,
}

/// How to show things.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// The objects as JSON
    Json,
    /// The objects as YAML
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scale_wants_members_or_shards_and_not_both() {
        for (line, accepted) in [
            ("althing scale orders --members 5", true),
            ("althing scale orders --shards 4", true),
            ("althing scale orders", false),
            ("althing scale orders --members 5 --shards 4", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).is_ok(), accepted, "{line}");
        }
    }
}
