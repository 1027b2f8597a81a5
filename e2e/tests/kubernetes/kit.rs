//! What every scenario needs: the operator, a cluster of its own, a load, and ways to look.

use std::time::{Duration, Instant};

use althing_e2e::bed::Bed;
use althing_e2e::command::{run, wait_until};
use althing_e2e::workload::{Plan, Summary, Workload};
use serde_json::Value;

/// A cluster of three from nothing: the issue's own limit.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(60);
/// Repairs and scalings under load on two busy cores; they take seconds when nothing else runs.
pub(crate) const CHANGE_LIMIT: Duration = Duration::from_secs(240);
pub(crate) const OPERATOR_NAMESPACE: &str = "althing-system";
pub(crate) const RELEASE: &str = "althing";
/// Writes that show that a cluster works again.
const SOME_WRITES: usize = 50;

pub(crate) fn bed() -> Bed {
    Bed::from_environment().unwrap()
}

/// Installs the chart, or brings it back to its defaults; more `--set` values make a scenario's own operator.
pub(crate) fn install_operator(bed: &Bed, values: &[&str]) {
    let chart = althing_e2e::paths::checkout().join("charts/althing");
    let mut helm = bed.helm().unwrap();
    helm.args(["upgrade", "--install", RELEASE]).arg(chart);
    helm.args([
        "--namespace",
        OPERATOR_NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout",
        "120s",
    ]);
    helm.args([
        "--set",
        "image.pullPolicy=Never,nodeImage.pullPolicy=IfNotPresent,log.format=text",
    ]);
    for value in values {
        helm.args(["--set", value]);
    }
    run(&mut helm).unwrap();
}

/// `kubectl` on the whole cluster.
pub(crate) fn kubectl(bed: &Bed, args: &[&str]) {
    run(bed.kubectl().unwrap().args(args)).unwrap();
}

/// Deletes the operator's pods at once, so that the next ones start without kubelet's patience for crashes.
pub(crate) fn replace_operator_pods(bed: &Bed) {
    let mut kubectl = bed.kubectl().unwrap();
    kubectl.args([
        "delete",
        "pods",
        "--namespace",
        OPERATOR_NAMESPACE,
        "--all",
        "--grace-period=0",
        "--force",
    ]);
    run(&mut kubectl).unwrap();
}

/// Crashes of the operator's present containers.
pub(crate) fn operator_restarts(bed: &Bed) -> u64 {
    let pods = bed.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).unwrap();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64())
        .sum()
}

/// A cluster in a namespace of its own, deleted at the end of its scenario.
pub(crate) struct Cluster<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// How many shards its scenario has declared; its load is one for so many.
    pub(crate) shards: u32,
}

impl<'a> Cluster<'a> {
    /// Applies a cluster and returns when it is ready.
    pub(crate) fn create(bed: &'a Bed, name: &str, members: u32) -> Self {
        let cluster = Self::declare(bed, name, members, "");
        let took = cluster.wait_ready(members, CHANGE_LIMIT);
        println!("{name}: {members} members ready after {:.1} s", took.as_secs_f64());
        cluster
    }

    /// As [`Cluster::create`], with a keyspace of so many shards; the load's keys are spread evenly over them.
    pub(crate) fn create_with_shards(bed: &'a Bed, name: &str, members: u32, shards: u32) -> Self {
        if shards == 1 {
            return Self::create(bed, name, members);
        }
        let mut cluster = Self::create(bed, &format!("{name}-{shards}"), members);
        cluster.shards = shards;
        let split_keys = Plan::spread([]).split_keys(shards);
        bed.apply(&format!(
            "apiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  clusterRef: {{name: {name}}}\n  shards: {shards}\n  partitioning: {{range: {{splitKeys: {split_keys:?}}}}}\n",
            name = cluster.name,
            namespace = cluster.namespace,
        ))
        .unwrap();
        let took = cluster.wait_layout(&cluster.name, shards);
        println!("{}: {shards} shards after {:.1} s", cluster.name, took.as_secs_f64());
        cluster
    }

    /// Applies a cluster without waiting; `more` is added to its spec.
    pub(crate) fn declare(bed: &'a Bed, name: &str, members: u32, more: &str) -> Self {
        let cluster = Self {
            bed,
            namespace: format!("e2e-{name}"),
            name: name.to_owned(),
            shards: 1,
        };
        bed.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n",
            cluster.namespace
        ))
        .unwrap();
        bed.apply(&cluster.manifest(members, more)).unwrap();
        cluster
    }

    pub(crate) fn manifest(&self, members: u32, more: &str) -> String {
        let Self { namespace, name, .. } = self;
        format!(
            "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  members: {members}\n  version: \"0.1.0\"\n  storage: {{size: 1Gi}}\n{more}"
        )
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        run(self
            .bed
            .kubectl()
            .unwrap()
            .args(["--namespace", &self.namespace])
            .args(args))
        .unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.bed
            .get(&["raftcluster", &self.name, "--namespace", &self.namespace])
            .unwrap()
    }

    pub(crate) fn layout(&self, name: &str) -> Value {
        self.bed
            .get(&["shardlayout", name, "--namespace", &self.namespace])
            .unwrap()
    }

    pub(crate) fn scale_layout(&self, name: &str, shards: u32) {
        self.kubectl(&["scale", "shardlayout", name, &format!("--replicas={shards}")]);
    }

    /// Waits until a layout is Ready with so many shards, and says how long that took.
    pub(crate) fn wait_layout(&self, name: &str, shards: u32) -> Duration {
        let begun = Instant::now();
        wait_until(&format!("{name} is Ready with {shards} shards"), CHANGE_LIMIT, || {
            let layout = self.layout(name);
            let current = layout["status"]["currentShards"].as_u64();
            match condition_of(&layout, "Ready") {
                Some((is, _, _)) if is == "True" && current == Some(u64::from(shards)) => Ok(()),
                ready => Err(format!(
                    "Ready is {ready:?}, {current:?} shards, doing {}",
                    layout["status"]["operations"]
                )),
            }
        })
        .unwrap();
        begun.elapsed()
    }

    /// Waits until its shards are all where they should be, if there are several.
    pub(crate) fn wait_shards(&self) {
        if self.shards > 1 {
            let took = self.wait_layout(&self.name, self.shards);
            println!("{}: shards in place {:.1} s later", self.name, took.as_secs_f64());
        }
    }

    /// Replicas of shards on each member, as status says.
    pub(crate) fn replicas(&self) -> Vec<(String, u64)> {
        let status = self.status();
        let members = status["status"]["members"].as_array().into_iter().flatten();
        let replicas = members.map(|member| {
            let name = member["name"].as_str().unwrap_or_default().to_owned();
            (name, member["replicas"].as_u64().unwrap_or_default())
        });
        replicas.collect()
    }

    /// A condition's status, reason and message, if it speaks of the present generation.
    pub(crate) fn condition(&self, kind: &str) -> Option<(String, String, String)> {
        condition_of(&self.status(), kind)
    }

    /// Waits until the cluster is Ready with so many members, and says how long that took.
    pub(crate) fn wait_ready(&self, members: u32, limit: Duration) -> Duration {
        let begun = Instant::now();
        wait_until(&format!("{} is Ready with {members} members", self.name), limit, || {
            let ready = self.condition("Ready");
            let status = self.status();
            let count = status["status"]["readyMembers"].as_u64();
            match &ready {
                Some((is, _, _)) if is == "True" && count == Some(u64::from(members)) => Ok(()),
                _ => Err(format!(
                    "Ready is {ready:?}, {count:?} members ready, doing {}",
                    status["status"]["activity"]
                )),
            }
        })
        .unwrap_or_else(|error| {
            println!("{}", self.kubectl(&["get", "pods,pvc,events"]));
            panic!("{error}")
        });
        begun.elapsed()
    }

    /// Waits until a condition's status and reason are these, and returns its message.
    pub(crate) fn wait_condition(&self, kind: &str, status: &str, reason: &str, limit: Duration) -> String {
        wait_until(
            &format!("{}'s {kind} is {status} because {reason}", self.name),
            limit,
            || {
                let now = self.condition(kind);
                match &now {
                    Some((is, why, message)) if is == status && why == reason => Ok(message.clone()),
                    _ => Err(format!("{now:?}")),
                }
            },
        )
        .unwrap()
    }

    /// The pod of the present leader.
    pub(crate) fn leader(&self) -> String {
        wait_until("status names a leader", CHANGE_LIMIT, || {
            let status = self.status();
            status["status"]["leader"]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| status["status"].to_string())
        })
        .unwrap()
    }

    pub(crate) fn member_id(&self, pod: &str) -> String {
        let status = self.status();
        let members = status["status"]["members"].as_array().cloned().unwrap_or_default();
        let member = members
            .into_iter()
            .find(|member| member["name"] == pod)
            .expect("the member is in status");
        member["memberId"].as_str().expect("it has an id").to_owned()
    }

    pub(crate) fn scale(&self, members: u32) {
        self.kubectl(&["scale", "raftcluster", &self.name, &format!("--replicas={members}")]);
    }

    /// The client Service's URL.
    pub(crate) fn endpoint(&self) -> String {
        let service = self
            .bed
            .get(&["service", &self.name, "--namespace", &self.namespace])
            .unwrap();
        format!(
            "http://{}:2379",
            service["spec"]["clusterIP"]
                .as_str()
                .expect("the service has an address")
        )
    }

    pub(crate) fn etcdctl(&self, args: &[&str]) -> String {
        run(self.bed.etcdctl(&self.endpoint()).unwrap().args(args)).unwrap()
    }

    pub(crate) fn load(&self) -> Workload {
        let endpoints = [self.endpoint()];
        // Of several shards, transactions and ranges over some of them belong to the load; and what its judge lets pass of them is what
        // docs/sharding.md lists.
        let plan = if self.shards == 1 {
            Plan::new(endpoints)
        } else {
            Plan::spread(endpoints)
        };
        let workload = Workload::start(plan).unwrap();
        workload.wait_for_writes(SOME_WRITES, CHANGE_LIMIT).unwrap();
        workload
    }

    /// Events' reasons that the operator reported about the cluster.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let events = self
            .bed
            .get(&["events.events.k8s.io", "--namespace", &self.namespace])
            .unwrap();
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let of_cluster = items.iter().filter(|event| event["regarding"]["kind"] == "RaftCluster");
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        of_cluster
            .map(|event| (text(event, "reason"), text(event, "note")))
            .collect()
    }

    pub(crate) fn delete(self) {
        self.kubectl(&["delete", "raftcluster", &self.name, "--wait=false"]);
        run(self
            .bed
            .kubectl()
            .unwrap()
            .args(["delete", "namespace", &self.namespace, "--wait=false"]))
        .unwrap();
    }
}

pub(crate) fn pod_uid(cluster: &Cluster<'_>, pod: &str) -> String {
    let pod = cluster
        .bed
        .get(&["pod", pod, "--namespace", &cluster.namespace])
        .unwrap();
    pod["metadata"]["uid"]
        .as_str()
        .expect("every object has a uid")
        .to_owned()
}

pub(crate) fn wait_for_new_pod(cluster: &Cluster<'_>, pod: &str, old_uid: &str) {
    wait_until(&format!("{pod} is another pod"), CHANGE_LIMIT, || {
        let found = cluster
            .bed
            .get(&["pod", pod, "--namespace", &cluster.namespace])
            .map_err(|error| error.to_string())?;
        let uid = found["metadata"]["uid"].as_str().unwrap_or_default();
        if uid != old_uid && found["status"]["phase"] == "Running" {
            Ok(())
        } else {
            Err(found["status"].to_string())
        }
    })
    .unwrap();
}

/// A condition's status, reason and message, if it speaks of the object's present generation.
fn condition_of(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    if found["observedGeneration"] != object["metadata"]["generation"] {
        return None;
    }
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Lets the load run on a little, stops it, judges it, and holds its largest write gap to a bound, that of every key too: other shards than
/// a key's own may go on meanwhile.
pub(crate) fn judge(what: &str, workload: Workload, gap_max: Duration) -> Summary {
    workload.wait_for_writes(SOME_WRITES, CHANGE_LIMIT).unwrap();
    let summary = workload.stop().unwrap();
    println!("{what}: {summary}");
    summary.assert_sound();
    let gap = summary.largest_write_gap().expect("a sound history has writes").length;
    assert!(
        gap <= gap_max,
        "{what}: writes stood still for {gap:?}, longer than {gap_max:?}"
    );
    let gaps = summary.write_gaps();
    let (key, gap) = gaps
        .iter()
        .max_by_key(|(_, gap)| gap.length)
        .expect("a sound history has keys");
    println!("{what}: key {key} waited longest, {gap}");
    assert!(gap.length <= gap_max, "{what}: key {key} could not be written: {gap}");
    summary
}
