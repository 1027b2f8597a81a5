//! Real processes on loopback. Waiting is polling of a condition with a deadline; nothing sleeps as a way to synchronise.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "every test file uses its part; tests wait in real time, and a panic is the test's own failure"
)]

use althing_admin::client::{AdminClient, AdminError};
use althing_admin::{
    AddLearnerRequest, BootstrapRequest, ConfigGuard, KeyspaceRequest, KeyspaceStatus, NodeStatus, Partitioning,
    ProblemReason,
};
use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

pub const CLUSTER: &str = "00000000000000c1";
const PATIENCE: Duration = Duration::from_secs(60);

/// An address of this test alone, so that ports need not be drawn: all of 127.0.0.0/8 is loopback.
pub fn loopback() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    format!(
        "127.{}.{}.{}",
        1 + (pid >> 8) % 250,
        pid & 0xff,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Polls until the condition gives a value; panics with the last word of what is missing.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(missing) => assert!(Instant::now() < end, "{what}: {missing}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One node: its volume, and its process while it runs.
pub struct Node {
    pub name: String,
    host: String,
    dir: tempfile::TempDir,
    extra: Vec<String>,
    env: Vec<(String, PathBuf)>,
    data: Option<PathBuf>,
    process: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- {} ---", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Node {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    pub fn start_with(name: &str, extra: &[&str]) -> Self {
        let mut node = Self::prepare(name, tempfile::tempdir().unwrap(), extra);
        node.run();
        node
    }

    /// Not yet running.
    pub fn prepare(name: &str, dir: tempfile::TempDir, extra: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            host: loopback(),
            dir,
            extra: extra.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            data: None,
            process: None,
        }
    }

    /// Sets the environment of the next runs.
    pub fn with_env(&mut self, env: Vec<(String, PathBuf)>) {
        self.env = env;
    }

    /// Puts the volume somewhere else, before the first run.
    pub fn with_data_dir(&mut self, dir: PathBuf) {
        self.data = Some(dir);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.dir.path().join("data"))
    }

    /// The process that runs.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.process.as_ref().unwrap())
    }

    /// Puts it where another one was.
    pub fn in_place_of(&mut self, other: &Node) {
        self.host.clone_from(&other.host);
    }

    /// HOST:PORT for clients.
    pub fn client_address(&self) -> String {
        format!("{}:2379", self.host)
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process
            .as_mut()
            .is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    /// Adds flags for the next run.
    pub fn require(&mut self, extra: &[&str]) {
        self.extra.extend(extra.iter().map(|arg| (*arg).to_owned()));
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_althing-node"));
        command
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .arg("run")
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(self.data_dir());
        for (flag, port) in [("--client-addr", 2379), ("--peer-addr", 2380), ("--admin-addr", 2381)] {
            command.arg(flag).arg(format!("{}:{port}", self.host));
        }
        // Small segments: filling 64 MiB with zeros per node is most of a test's time.
        let segments = "--wal-segment-bytes";
        if !self.extra.iter().any(|arg| arg == segments) {
            command.args([segments, "8388608"]);
        }
        command.args(["--log-filter", "info"]).args(&self.extra);
        command
    }

    pub fn run(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        self.process = Some(
            self.command()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        process.wait().unwrap()
    }

    /// Empties the volume.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.data_dir()).unwrap();
    }

    pub fn peer_addr(&self) -> String {
        format!("{}:2380", self.host)
    }

    pub fn admin_url(&self) -> String {
        format!("http://{}:2381", self.host)
    }

    pub fn admin(&self) -> AdminClient {
        AdminClient::new(&self.admin_url()).unwrap()
    }

    pub async fn kv(&self) -> KvClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}:2379", self.host))
            .unwrap()
            .timeout(Duration::from_secs(10));
        KvClient::new(endpoint.connect_lazy())
    }

    pub async fn status(&self) -> NodeStatus {
        eventually(&format!("{} answers", self.name), || async {
            self.admin().status().await.map_err(|error| error.to_string())
        })
        .await
    }

    pub async fn ready(&self) -> NodeStatus {
        eventually(&format!("{} is ready", self.name), || async {
            let status = self.admin().status().await.map_err(|error| error.to_string())?;
            if status.ready {
                Ok(status)
            } else {
                Err(status.not_ready_reason)
            }
        })
        .await
    }

    pub async fn bootstrap(&self) {
        self.status().await;
        self.admin()
            .bootstrap(&BootstrapRequest {
                cluster_id: CLUSTER.to_owned(),
            })
            .await
            .unwrap();
        self.ready().await;
    }

    /// One put, tried once: a retry could hide a double apply.
    pub async fn put(&self, key: &str, value: &str) -> Result<i64, tonic::Status> {
        let request = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..PutRequest::default()
        };
        let answer = self.kv().await.put(request).await?.into_inner();
        Ok(answer.header.unwrap().revision)
    }

    pub async fn delete(&self, key: &str) -> Result<i64, tonic::Status> {
        let request = DeleteRangeRequest {
            key: key.to_owned().into(),
            ..DeleteRangeRequest::default()
        };
        Ok(self.kv().await.delete_range(request).await?.into_inner().deleted)
    }

    /// A linearizable read.
    pub async fn get(&self, key: &str) -> Result<Option<String>, tonic::Status> {
        let request = RangeRequest {
            key: key.to_owned().into(),
            ..RangeRequest::default()
        };
        let answer = self.kv().await.range(request).await?.into_inner();
        Ok(answer
            .kvs
            .first()
            .map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
    }

    /// Asks this node, which leads group 0, to let a member go, until it holds nothing any more and has gone.
    pub async fn remove(&self, member: &str) -> althing_admin::MemberList {
        let guard = ConfigGuard {
            expected_config_index: None,
        };
        eventually("the member goes", || async {
            match self.admin().remove(member, &guard).await {
                Ok(left) => Ok(left),
                Err(AdminError::Refused { problem, .. }) if problem.reason == ProblemReason::Conflict => {
                    Err(problem.message)
                }
                Err(error) => panic!("{error}"),
            }
        })
        .await
    }

    /// Asks this node, which leads, to take another in, and waits until it serves.
    pub async fn add(&self, other: &Node) {
        let status = other.status().await;
        let request = AddLearnerRequest {
            id: status.member_id.clone(),
            name: other.name.clone(),
            peer_address: status.peer_address,
            client_urls: status.client_urls,
            expected_config_index: Some(self.admin().members().await.unwrap().config_index),
        };
        self.admin().add_learner(&request).await.unwrap();
        eventually("the learner catches up", || async {
            let guard = ConfigGuard {
                expected_config_index: None,
            };
            match self.admin().promote(&status.member_id, &guard).await {
                Ok(_) => Ok(()),
                Err(AdminError::Refused { problem, .. }) if problem.reason == ProblemReason::LearnerBehind => {
                    Err(problem.message)
                }
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        other.ready().await;
    }
}

/// The node that leads the first shard, among those that answer.
pub async fn leader<'a>(nodes: &[&'a Node]) -> &'a Node {
    leader_of(nodes, 1).await
}

/// The node that leads a group, among those that answer. Membership is group 0's.
pub async fn leader_of<'a>(nodes: &[&'a Node], group: u64) -> &'a Node {
    eventually("somebody leads", || async {
        let mut best = None;
        for node in nodes {
            if let Ok(status) = node.admin().status().await
                && let Some(shard) = status.shards.iter().find(|shard| shard.id == group)
                && shard.role == "Leader"
                && status.ready
            {
                best = best.max(Some((shard.term, node.name.clone())));
            }
        }
        let (_, name) = best.ok_or("nobody")?;
        Ok(*nodes.iter().find(|node| node.name == name).unwrap())
    })
    .await
}

/// What a node says of a group.
pub fn shard(status: &NodeStatus, group: u64) -> &althing_admin::ShardStatus {
    status.shards.iter().find(|shard| shard.id == group).unwrap()
}

/// Three members under their names, the first of which was bootstrapped.
pub async fn three() -> Vec<Node> {
    let nodes: Vec<_> = (0..3)
        .map(|ordinal| Node::start(&format!("orders-{ordinal}")))
        .collect();
    nodes[0].bootstrap().await;
    nodes[0].add(&nodes[1]).await;
    nodes[0].add(&nodes[2]).await;
    nodes
}

/// Asks for a layout of the default keyspace and waits until it is so and nothing is done to it any more.
pub async fn lay_out(nodes: &[&Node], wish: KeyspaceRequest) -> KeyspaceStatus {
    eventually("the wish is taken", || async {
        let leader = leader_of(nodes, 0).await;
        let asked = leader.admin().put_keyspace("default", &wish).await;
        asked.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    eventually("the shards are as wanted", || async {
        let leader = leader_of(nodes, 0).await;
        let layout = leader.admin().layout().await.map_err(|error| error.to_string())?;
        let keyspace = layout.keyspaces.into_iter().find(|keyspace| keyspace.name == "default");
        let keyspace = keyspace.ok_or("no keyspace")?;
        if keyspace.current_shards == wish.shards && layout.operations.is_empty() {
            Ok(keyspace)
        } else {
            Err(format!("{keyspace:?} {:?}", layout.operations))
        }
    })
    .await
}

/// Cuts the default keyspace at these keys; at none, it stays one shard and as dense as it was.
pub async fn cut(nodes: &[&Node], split_keys: &[&str]) {
    if split_keys.is_empty() {
        return;
    }
    let wish = KeyspaceRequest {
        shards: u32::try_from(split_keys.len()).unwrap() + 1,
        partitioning: Some(Partitioning::Range {
            split_keys: split_keys.iter().map(|key| (*key).to_owned()).collect(),
        }),
        ..KeyspaceRequest::default()
    };
    lay_out(nodes, wish).await;
}
