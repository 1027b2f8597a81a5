//! Local mode with real nodes: the programs a person runs, talked to as a person does.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::double_ended_iterator_last,
    reason = "a failing step is the test's failure, and real processes take real time"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything below, on a machine that also compiles: a hang is told from slowness.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(100);

/// The node program: named by `ALTHING_NODE_BINARY`, else built now, as it is in this checkout.
fn node_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(named) = std::env::var_os("ALTHING_NODE_BINARY") {
            return PathBuf::from(named);
        }
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let output = Command::new(env!("CARGO"))
            .current_dir(checkout)
            .args([
                "build",
                "--package",
                "althing-node",
                "--message-format",
                "json-render-diagnostics",
            ])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "althing-node does not build");
        let messages = String::from_utf8(output.stdout).unwrap();
        let path = messages.lines().filter_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            let ours = message["target"]["name"] == "althing-node";
            message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
        });
        path.last().expect("cargo says where it put the program")
    })
}

/// A folder with a supervisor, which is ended with its nodes whatever happens.
struct Bed {
    dir: tempfile::TempDir,
    supervisor: Option<Child>,
}

impl Bed {
    fn new() -> Bed {
        Bed {
            dir: tempfile::tempdir().unwrap(),
            supervisor: None,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_althing"));
        command
            .arg("--dir")
            .arg(self.dir.path().join("state"))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a supervisor; its output goes to the test's own.
    fn up(&mut self, first_port: u16, yaml: Option<&str>) {
        let port = first_port.to_string();
        let mut args = vec!["up", "--first-port", &port];
        let file = self.dir.path().join("cluster.yaml");
        let shown = file.display().to_string();
        if let Some(yaml) = yaml {
            std::fs::write(&file, yaml).unwrap();
            args.push(&shown);
        }
        let mut child = self
            .command(&args)
            .env("ALTHING_NODE_BINARY", node_binary())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .for_each(|line| println!("up: {line}"))
        });
        self.supervisor = Some(child);
    }

    fn cluster(&self) -> Option<Value> {
        let output = self.run(&["get", "raftclusters", "t", "-o", "json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Asks until the cluster is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            last = self.cluster();
            if let Some(cluster) = last.as_ref().filter(|cluster| wanted(cluster)) {
                return cluster.clone();
            }
            std::thread::sleep(AGAIN);
        }
        panic!(
            "not within {PATIENCE:?}: {what}; the last answer: {last:#?}\n{}",
            self.logs()
        );
    }

    fn ready_with(&self, members: usize) -> Value {
        self.until(&format!("{members} members that vote and serve"), |cluster| {
            let status = &cluster["status"];
            let voting = status["members"].as_array().into_iter().flatten();
            let voting = voting
                .filter(|one| one["ready"] == true && ["Leader", "Voter"].iter().any(|role| one["role"] == *role));
            let ready = status["conditions"].as_array().into_iter().flatten();
            let current = status["observedGeneration"] == cluster["metadata"]["generation"];
            current
                && ready
                    .filter(|one| one["type"] == "Ready" && one["status"] == "True")
                    .count()
                    == 1
                && status["members"].as_array().map(Vec::len) == Some(members)
                && voting.count() == members
        })
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for ordinal in 0..3 {
            let path = self.dir.path().join(format!("state/default/t/members/{ordinal}/log"));
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            text.push_str(&format!(
                "{}:\n{}\n",
                path.display(),
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            ));
        }
        text
    }

    fn volume(&self, ordinal: u32) -> PathBuf {
        self.dir
            .path()
            .join(format!("state/default/t/members/{ordinal}/volume"))
    }

    /// Waits for the supervisor's end; true if it ended well.
    fn ended(&mut self) -> bool {
        let mut child = self.supervisor.take().expect("a supervisor runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.success();
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                panic!("the supervisor did not end");
            }
            std::thread::sleep(AGAIN);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let Some(mut child) = self.supervisor.take() else {
            return;
        };
        let _ = self.run(&["down"]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(AGAIN);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn yaml(members: u32) -> String {
    format!(
        "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {{name: t}}\nspec: {{members: {members}, version: 0.1.0, storage: {{size: 1Gi}}}}\n"
    )
}

fn member_ids(cluster: &Value) -> Vec<Value> {
    cluster["status"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["memberId"].clone())
        .collect()
}

#[test]
fn one_member_grows_to_three_and_shrinks_again_and_the_volumes_of_those_that_left_go() {
    let mut bed = Bed::new();
    bed.up(21_379, Some(&yaml(1)));
    let one = bed.ready_with(1);

    assert!(bed.ok(&["scale", "t", "--members", "3"]).contains("members 1 -> 3"));
    let three = bed.ready_with(3);
    assert_eq!(three["status"]["clusterId"], one["status"]["clusterId"]);
    assert_eq!(
        member_ids(&three)[0],
        member_ids(&one)[0],
        "the first member stays who it is"
    );

    bed.ok(&["scale", "t", "--members", "1"]);
    let again = bed.ready_with(1);
    assert_eq!(member_ids(&again), member_ids(&one));
    bed.until("the volumes of those that left are gone", |_| {
        !bed.volume(1).exists() && !bed.volume(2).exists()
    });

    let refused = bed.run(&["scale", "t", "--members", "2"]);
    assert!(!refused.status.success());
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("must be odd"),
        "{refused:?}"
    );
    assert!(bed.ok(&["why", "t"]).contains("as declared"));
}

#[test]
fn a_cluster_goes_on_after_its_supervisor_was_stopped_or_killed_and_replaces_a_lost_volume() {
    let mut bed = Bed::new();
    bed.up(22_379, Some(&yaml(3)));
    let before = bed.ready_with(3);

    let second = bed.run(&["up"]);
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && complaint.contains("already runs"),
        "{complaint}"
    );

    bed.ok(&["down"]);
    assert!(bed.ended(), "a supervisor that was asked to stop ends well");
    bed.up(22_379, None);
    let after = bed.ready_with(3);
    assert_eq!(
        member_ids(&after),
        member_ids(&before),
        "the same members, from their volumes"
    );
    assert_eq!(after["status"]["clusterId"], before["status"]["clusterId"]);

    let mut killed = bed.supervisor.take().expect("a supervisor runs");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut process = String::new();
    let record = bed.volume(0).with_file_name("process.json");
    std::fs::File::open(&record)
        .unwrap()
        .read_to_string(&mut process)
        .unwrap();
    bed.up(22_379, None);
    bed.ready_with(3);
    assert_eq!(
        std::fs::read_to_string(&record).unwrap(),
        process,
        "its nodes ran on and were taken over"
    );

    std::fs::remove_dir_all(bed.volume(1)).unwrap();
    let replaced = bed.until("another member in place of the one that lost its volume", |cluster| {
        cluster["status"]["members"]
            .as_array()
            .is_some_and(|members| members.len() == 3)
            && member_ids(cluster)[1] != member_ids(&before)[1]
            && !member_ids(cluster)[1].is_null()
    });
    assert_eq!(member_ids(&replaced)[0], member_ids(&before)[0]);
    let whole = bed.ready_with(3);
    assert_eq!(whole["status"]["clusterId"], before["status"]["clusterId"]);
}

/// Keyspaces as programs read them, by name.
fn keyspaces(bed: &Bed) -> Vec<(String, Value)> {
    let listed: Value = serde_json::from_str(&bed.ok(&["get", "keyspaces", "-o", "json"])).unwrap();
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    let named = |item: Value| (item["name"].as_str().unwrap_or_default().to_owned(), item);
    items.into_iter().map(named).collect()
}

#[test]
fn keyspaces_of_several_shards_come_grow_and_go_while_members_do() {
    let layout = |keyspace: &str, shards: u32, more: &str| {
        format!(
            "---\napiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: {keyspace}}}\nspec: {{clusterRef: {{name: t}}, keyspace: {keyspace}, shards: {shards}{more}}}\n"
        )
    };
    let split = |keys: &str| format!(", deletionPolicy: Delete, partitioning: {{range: {{splitKeys: [{keys}]}}}}");
    let mut bed = Bed::new();
    let text = [yaml(1), layout("default", 1, ""), layout("audit", 2, &split("/m"))].concat();
    bed.up(25_379, Some(&text));
    bed.ready_with(1);
    let ready = |bed: &Bed, name: &str, shards: u32| {
        keyspaces(bed)
            .iter()
            .any(|(other, item)| other == name && item["ready"] == true && item["currentShards"] == shards)
    };
    bed.until("both keyspaces serve", |_| {
        ready(&bed, "default", 1) && ready(&bed, "audit", 2)
    });
    let shards: Value = serde_json::from_str(&bed.ok(&["get", "shards", "audit", "-o", "json"])).unwrap();
    let ranges: Vec<&Value> = shards["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| &shard["range"])
        .collect();
    assert_eq!(ranges, ["[.., /m)", "[/m, ..)"]);

    bed.ok(&["scale", "t", "--members", "3"]);
    bed.ready_with(3);
    bed.until("every member holds a replica of each shard", |_| {
        let shards: Value = serde_json::from_str(&bed.ok(&["get", "shards", "-o", "json"])).unwrap();
        let shards = shards["items"].as_array().cloned().unwrap_or_default();
        shards.len() == 3
            && shards
                .iter()
                .all(|shard| shard["voters"].as_array().map(Vec::len) == Some(3))
    });
    let refused = bed.run(&["scale", "audit", "--shards", "1"]);
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        complaint.contains("splitKeys"),
        "a key that is named stays a bound: {complaint}"
    );
    bed.ok(&["scale", "t", "--members", "1"]);
    bed.ready_with(1);

    assert!(bed.ok(&["delete", "layout", "audit"]).contains("with its keyspace"));
    bed.until("the keyspace is gone", |_| keyspaces(&bed).len() == 1);
    assert!(bed.ok(&["status", "t"]).contains("Keyspace default is ready"));
}
