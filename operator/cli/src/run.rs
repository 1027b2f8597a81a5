//! Finds out where a command goes, and has it done there.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use althing_crds::{RaftCluster, ShardLayout};
use clap::{CommandFactory, FromArgMatches};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::args::{Cli, Command, DeleteKind, Kind, Output, Place, ScaleTo, Up};
use crate::error::Error;
use crate::kubernetes::Kubernetes;
use crate::local::control::{ApplyRequest, Client, Objects, Refusal};
use crate::local::layout::{ClusterKey, Layout};
use crate::local::supervisor;
use crate::manifest::{self, Object};
use crate::target::{self, Facts, Target};
use crate::ui::Ui;
use crate::view::paint::Paint;
use crate::view::{members, objects, shards};

/// Largest file of YAML that is read: thousands of objects.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// How often to look whether a supervisor has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The namespace of local objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// The program.
pub(crate) fn run() -> Result<(), Error> {
    let plugin = called_as_plugin(std::env::args_os().next().as_deref().map(Path::new));
    let command = if plugin {
        Cli::command().bin_name("kubectl althing")
    } else {
        Cli::command()
    };
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Supervisor(format!("cannot start threads: {error}")))?;
    runtime.block_on(dispatch(cli, plugin))
}

/// kubectl runs a program `kubectl-althing` in PATH for `kubectl althing`.
fn called_as_plugin(program: Option<&Path>) -> bool {
    let stem = program.and_then(Path::file_stem).and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.starts_with("kubectl-") || stem.starts_with("kubectl_"))
}

/// What a person types to run this program: cargo says so by `CARGO_MANIFEST_DIR` if it was `cargo run`.
fn own_name() -> String {
    let by_cargo = std::env::var_os("CARGO_MANIFEST_DIR").is_some();
    if by_cargo {
        "cargo run --bin althing --"
    } else {
        "althing"
    }
    .to_owned()
}

/// The folder when no flag names one.
pub(crate) fn default_dir() -> PathBuf {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // Not a flag's default: a folder named for all commands must not turn `kubectl althing` away from Kubernetes.
    if let Some(named) = folder("ALTHING_DIR") {
        return named;
    }
    target::default_dir(
        Path::new(target::HERE).is_dir(),
        folder("XDG_STATE_HOME"),
        folder("HOME"),
    )
}

async fn dispatch(cli: Cli, plugin: bool) -> Result<(), Error> {
    let Cli { place, command } = cli;
    match command {
        Command::Up(up) => return start(&place, &up).await,
        Command::Completion { shell } => return complete(shell),
        Command::Version => {
            return print(&format!(
                "althing {}\napi {}/{}\n",
                env!("CARGO_PKG_VERSION"),
                althing_crds::names::GROUP,
                althing_crds::names::VERSION
            ));
        }
        Command::Apply { .. }
        | Command::Get { .. }
        | Command::Status { .. }
        | Command::Scale { .. }
        | Command::Why { .. }
        | Command::Delete { .. }
        | Command::Down => {}
    }
    let dir = place.dir.clone().unwrap_or_else(default_dir);
    let facts = Facts {
        kubectl_plugin: plugin,
        supervisor: supervisor::is_supervised(&dir),
        kubeconfig: has_kubeconfig(),
        dir,
    };
    // To stop a supervisor is to mean this machine.
    let target = match (&command, target::choose(&place, &facts)) {
        (Command::Down, _) => Target::Local(facts.dir.clone()),
        (_, target) => target?,
    };
    match target {
        Target::Local(dir) => {
            Place::local(&dir, facts.supervisor, place.namespace.as_deref())?
                .run(command)
                .await
        }
        Target::Kube { context } => {
            let kubernetes = Kubernetes::connect(context.as_deref(), place.namespace.as_deref()).await?;
            in_kubernetes(&kubernetes, command).await
        }
    }
}

fn has_kubeconfig() -> bool {
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let named = std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
    let home = std::env::var_os("HOME").is_some_and(|home| PathBuf::from(home).join(".kube/config").is_file());
    in_pod || named || home
}

async fn start(place: &Place, up: &Up) -> Result<(), Error> {
    if place.kube || place.context.is_some() {
        return Err(Error::UpInKubernetes);
    }
    let namespace = place.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let mut all: Vec<Object> = Vec::new();
    let mut complaints = Vec::new();
    for path in &up.files {
        match manifest::parse(&path.display().to_string(), &read(path)?, namespace) {
            Ok(objects) => all.extend(objects),
            Err(found) => complaints.extend(found),
        }
    }
    if !complaints.is_empty() {
        return Err(Error::Manifest { complaints });
    }
    let dir = place.dir.clone().unwrap_or_else(default_dir);
    supervisor::up(
        &dir,
        up,
        all,
        Ui::new(paint(), std::io::stdout().is_terminal(), own_name()),
    )
    .await
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
    };
    read.map_err(Error::file("read", path))?;
    Ok(text)
}

fn paint() -> Paint {
    let no_color = std::env::var_os("NO_COLOR").map(|value| value.to_string_lossy().into_owned());
    Paint::decide(std::io::stdout().is_terminal(), no_color.as_deref())
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn print_lines(lines: &[String]) -> Result<(), Error> {
    print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn complete(shell: clap_complete::Shell) -> Result<(), Error> {
    // Into memory first: the generator panics when the reader of a pipe goes away.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "althing", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// What `get` asked for, out of all there is.
struct Wanted {
    kind: Kind,
    name: Option<String>,
    namespace: Option<String>,
}

impl Wanted {
    fn of(&self, clusters: Vec<RaftCluster>, layouts: Vec<ShardLayout>) -> (Vec<RaftCluster>, Vec<ShardLayout>) {
        let meant = |name: String, namespace: Option<String>| {
            self.name.as_ref().is_none_or(|wanted| *wanted == name)
                && self
                    .namespace
                    .as_ref()
                    .is_none_or(|wanted| namespace.as_ref() == Some(wanted))
        };
        let (with_clusters, with_layouts, parts) = match self.kind {
            Kind::All => (true, true, false),
            Kind::Clusters => (true, false, false),
            Kind::Layouts => (false, true, false),
            Kind::Keyspaces | Kind::Shards | Kind::Operations => (false, true, true),
        };
        let clusters = clusters
            .into_iter()
            .filter(|one| with_clusters && meant(one.name_any(), one.namespace()))
            .collect();
        let layouts = layouts
            .into_iter()
            .filter(|one| {
                // What is part of a layout may be asked for by any of its names.
                let names = [
                    one.name_any(),
                    one.spec.cluster_ref.name.clone(),
                    one.spec.keyspace.clone(),
                ];
                let names = if parts { &names[..] } else { &names[..1] };
                with_layouts && names.iter().any(|name| meant(name.clone(), one.namespace()))
            })
            .collect();
        (clusters, layouts)
    }
}

fn show(
    wanted: &Wanted,
    output: Output,
    all: (Vec<RaftCluster>, Vec<ShardLayout>),
    place: &'static str,
) -> Result<(), Error> {
    let (clusters, layouts) = wanted.of(all.0, all.1);
    if clusters.is_empty() && layouts.is_empty() {
        if let Some(name) = &wanted.name {
            let kind = match wanted.kind {
                Kind::Layouts | Kind::Keyspaces | Kind::Shards | Kind::Operations => "ShardLayout",
                Kind::Clusters => "RaftCluster",
                Kind::All => "RaftCluster or ShardLayout",
            };
            return Err(not_found(kind, wanted.namespace.as_deref().unwrap_or("*"), name, place));
        }
        if matches!(output, Output::Table | Output::Wide) {
            match &wanted.namespace {
                Some(namespace) => {
                    eprintln!("nothing found {place} in namespace {namespace} (-A looks in all)")
                }
                None => eprintln!("nothing found {place}"),
            }
            return Ok(());
        }
    }
    let everywhere = wanted.namespace.is_none();
    match wanted.kind {
        Kind::All | Kind::Clusters | Kind::Layouts => {}
        Kind::Keyspaces | Kind::Shards | Kind::Operations => {
            let text = shards::get(paint(), wanted.kind, output, &layouts, everywhere).map_err(Error::Supervisor)?;
            return match text {
                Some(text) => print(&text),
                None => {
                    eprintln!("nothing of this kind {place}");
                    Ok(())
                }
            };
        }
    }
    let text = objects::get(
        paint(),
        output,
        &clusters,
        &layouts,
        everywhere,
        wanted.name.is_some(),
        Timestamp::now(),
    );
    print(&text.map_err(Error::Supervisor)?)
}

/// The layouts of a cluster.
fn of_cluster(layouts: Vec<ShardLayout>, cluster: &RaftCluster) -> Vec<ShardLayout> {
    layouts
        .into_iter()
        .filter(|layout| {
            layout.namespace() == cluster.namespace() && layout.spec.cluster_ref.name == cluster.name_any()
        })
        .collect()
}

fn show_status(cluster: &RaftCluster, layouts: &[ShardLayout], output: Output) -> Result<(), Error> {
    let text = |wide| members::status(paint(), cluster, wide) + &shards::section(paint(), layouts, wide);
    match output {
        Output::Table => print(&text(false)),
        Output::Wide => print(&text(true)),
        Output::Json | Output::Yaml => {
            let value = serde_json::to_value(cluster).map_err(|error| Error::Supervisor(error.to_string()))?;
            print(&objects::rendered(output, &value).map_err(Error::Supervisor)?)
        }
    }
}

fn show_why(name: &str, lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        print(&format!("{name} is as declared: nothing is being done or waited for\n"))
    } else {
        print_lines(lines)
    }
}

fn not_found(kind: &'static str, namespace: &str, name: &str, place: &'static str) -> Error {
    Error::NotFound {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        place,
    }
}

const IN_KUBERNETES: &str = "in Kubernetes";
const ON_THIS_MACHINE: &str = "on this machine";

async fn in_kubernetes(kubernetes: &Kubernetes, command: Command) -> Result<(), Error> {
    let cluster = async |name: &str| {
        let (clusters, layouts) = kubernetes.objects(false).await?;
        let found = clusters.into_iter().find(|cluster| cluster.name_any() == name);
        let found = found.ok_or_else(|| not_found("RaftCluster", kubernetes.namespace(), name, IN_KUBERNETES))?;
        let layouts = of_cluster(layouts, &found);
        Ok::<_, Error>((found, layouts))
    };
    match command {
        Command::Apply { files } => {
            for path in files {
                print_lines(&kubernetes.apply(&path.display().to_string(), &read(&path)?).await?)?;
            }
            Ok(())
        }
        Command::Get {
            kind,
            name,
            output,
            all_namespaces,
        } => {
            let namespace = (!all_namespaces).then(|| kubernetes.namespace().to_owned());
            let all = kubernetes.objects(all_namespaces).await?;
            show(&Wanted { kind, name, namespace }, output, all, IN_KUBERNETES)
        }
        Command::Status { name, output } => {
            let (cluster, layouts) = cluster(&name).await?;
            show_status(&cluster, &layouts, output)
        }
        Command::Scale { name, to } => {
            let line = match to {
                ScaleTo {
                    members: Some(size),
                    shards: _,
                } => kubernetes.scale(true, &name, size).await?,
                ScaleTo { members: None, shards } => kubernetes.scale(false, &name, shards.unwrap_or_default()).await?,
            };
            print_lines(&[line])
        }
        Command::Why { name } => {
            let (cluster, layouts) = cluster(&name).await?;
            show_why(&name, &kubernetes.why(&cluster, &layouts).await?)
        }
        Command::Delete { kind, name } => print_lines(&[kubernetes.delete(kind == DeleteKind::Cluster, &name).await?]),
        Command::Up(_) | Command::Down | Command::Completion { .. } | Command::Version => Ok(()),
    }
}

/// A supervisor and the namespace that is meant.
struct Supervised {
    client: Client,
    dir: PathBuf,
    namespace: String,
}

impl Place {
    fn local(dir: &Path, supervised: bool, namespace: Option<&str>) -> Result<Supervised, Error> {
        if !supervised {
            return Err(Error::NoSupervisor {
                dir: dir.to_owned(),
                has_clusters: supervisor::has_clusters(dir),
            });
        }
        Ok(Supervised {
            client: Client::new(&Layout::new(dir).socket())?,
            dir: dir.to_owned(),
            namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned(),
        })
    }
}

impl Supervised {
    async fn run(&self, command: Command) -> Result<(), Error> {
        match command {
            Command::Apply { files } => {
                for path in files {
                    self.apply(path.display().to_string(), read(&path)?).await?;
                }
                Ok(())
            }
            Command::Get {
                kind,
                name,
                output,
                all_namespaces,
            } => {
                let namespace = (!all_namespaces).then(|| self.namespace.clone());
                let all = self.objects().await?;
                show(
                    &Wanted { kind, name, namespace },
                    output,
                    (all.clusters, all.layouts),
                    ON_THIS_MACHINE,
                )
            }
            Command::Status { name, output } => {
                let cluster = self.cluster(&name).await?;
                let layouts = of_cluster(self.objects().await?.layouts, &cluster);
                show_status(&cluster, &layouts, output)
            }
            Command::Scale { name, to } => self.scale(&name, &to).await,
            Command::Why { name } => {
                let lines = self.client.why(&self.key(&name)).await;
                show_why(&name, &self.found("RaftCluster", &name, lines)?.lines)
            }
            Command::Delete { kind, name } => {
                let (what, outcome) = match kind {
                    DeleteKind::Cluster => ("RaftCluster", self.client.delete_cluster(&self.key(&name)).await),
                    DeleteKind::Layout => ("ShardLayout", self.client.delete_layout(&self.key(&name)).await),
                };
                print_lines(&self.found(what, &name, outcome)?.lines)
            }
            Command::Down => self.down().await,
            Command::Up(_) | Command::Completion { .. } | Command::Version => Ok(()),
        }
    }

    /// Returns when the supervisor has ended, so that the next command finds its folder free.
    async fn down(&self) -> Result<(), Error> {
        print_lines(&self.found("supervisor", "", self.client.down().await)?.lines)?;
        let deadline = Instant::now() + supervisor::LONGEST_END;
        while supervisor::is_supervised(&self.dir) {
            if Instant::now() >= deadline {
                return Err(Error::Supervisor(format!(
                    "the supervisor has not ended within {} s\n  look at its terminal; a second Ctrl-C there kills the nodes",
                    supervisor::LONGEST_END.as_secs()
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn key(&self, name: &str) -> ClusterKey {
        ClusterKey::new(&self.namespace, name)
    }

    fn found<T>(&self, kind: &'static str, name: &str, outcome: Result<T, Refusal>) -> Result<T, Error> {
        outcome.map_err(|refusal| match refusal {
            Refusal::NotFound => not_found(kind, &self.namespace, name, ON_THIS_MACHINE),
            Refusal::Error(error) => error,
        })
    }

    async fn objects(&self) -> Result<Objects, Error> {
        self.found("object", "", self.client.objects().await)
    }

    async fn cluster(&self, name: &str) -> Result<RaftCluster, Error> {
        let all = self.objects().await?.clusters;
        let wanted = Wanted {
            kind: Kind::Clusters,
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
        };
        let found = wanted.of(all, Vec::new()).0.pop();
        found.ok_or_else(|| not_found("RaftCluster", &self.namespace, name, ON_THIS_MACHINE))
    }

    async fn apply(&self, file: String, text: String) -> Result<(), Error> {
        let request = ApplyRequest {
            file,
            namespace: self.namespace.clone(),
            text,
        };
        print_lines(&self.found("object", "", self.client.apply(&request).await)?.lines)
    }

    /// Local objects have no scale subresource: the object is applied with the new size, and every rule with it.
    async fn scale(&self, name: &str, to: &ScaleTo) -> Result<(), Error> {
        let text = match *to {
            ScaleTo {
                members: Some(members),
                shards: _,
            } => {
                let mut cluster = self.cluster(name).await?;
                cluster.spec.members = members;
                serde_json::to_string(&RaftCluster {
                    status: None,
                    ..cluster
                })
            }
            ScaleTo { members: None, shards } => {
                let all = self.objects().await?.layouts;
                let wanted = Wanted {
                    kind: Kind::Layouts,
                    name: Some(name.to_owned()),
                    namespace: Some(self.namespace.clone()),
                };
                let found = wanted.of(Vec::new(), all).1.pop();
                let mut layout =
                    found.ok_or_else(|| not_found("ShardLayout", &self.namespace, name, ON_THIS_MACHINE))?;
                layout.spec.shards = shards.unwrap_or_default();
                serde_json::to_string(&ShardLayout { status: None, ..layout })
            }
        };
        let text = text.map_err(|error| Error::Supervisor(error.to_string()))?;
        self.apply("scale".to_owned(), text).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_begins_with_kubectl_makes_it_a_plugin() {
        for (program, plugin) in [
            ("/usr/bin/kubectl-althing", true),
            ("kubectl-althing.exe", true),
            ("kubectl_althing", true),
            ("target/debug/althing", false),
        ] {
            assert_eq!(called_as_plugin(Some(Path::new(program))), plugin, "{program}");
        }
        assert!(!called_as_plugin(None));
    }
}
