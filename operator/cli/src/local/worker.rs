//! One cluster's loop: look at its processes and ask its nodes, plan, carry out, look again.
//!
//! It is the operator's loop with processes for pods and folders for volume claims; the plan and the judgement are the
//! same functions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use althing_admin::NodeStatus;
use althing_crds::{RaftClusterStatus, Retention, ValidatedCluster};
use althing_plan::model::{Desired, Observed, Ordinal, Plan, Slot, Volume, Workload};
use althing_plan::{assess, explain, plan, view};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::action::{Action, action};
use super::declared::Declared;
use super::files;
use super::hub::{Ending, Snapshot};
use super::layout::{ClusterKey, MemberKey};
use super::layouts::{self, Look};
use super::node_args::workload_hash;
use super::ports::Ports;
use super::runner::{Happening, Runner, ordinals};
use super::shared::{NodeCommands, Shared};
use super::status;
use crate::error::Error;
use crate::view::members;
use crate::view::paint::Tone;

/// Between two looks while something is under way: a membership change commits within a few milliseconds, and
/// a cluster of three needs about eight turns.
const BUSY: Duration = Duration::from_millis(100);
/// Between two looks at a cluster where nothing is to be done.
const IDLE: Duration = Duration::from_secs(2);
/// Between two looks at the processes alone, which costs next to nothing.
const TICK: Duration = Duration::from_millis(100);
/// A node that is alive answers its status at once; one that does not must not hold up the others.
const PROBE: Duration = Duration::from_millis(800);

/// What the supervisor remembers of a cluster in `status.json`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Memory {
    /// Volumes that were there before the cluster was declared, see `Observed::retained`.
    retained: Vec<u32>,
    /// The last status: `clusterId` and `bootstrapped` are needed, the rest is for the curious.
    status: RaftClusterStatus,
}

/// One cluster.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    key: ClusterKey,
    runner: Runner,
    memory: Memory,
    before: Snapshot,
    /// Whether everything was as declared at the last look; the way there is shown to the person.
    settled: bool,
    began: Instant,
    /// Whether it was never settled yet.
    first: bool,
    /// The last thing that could not be done, so that it is said once and not at every look.
    trouble: Option<String>,
}

enum Turn {
    /// Look again after this long.
    Again(Duration),
    /// The cluster was deleted and is gone.
    Gone,
}

impl Worker {
    /// Takes up a cluster where the last supervisor left it.
    pub(crate) fn open(shared: Arc<Shared>, key: ClusterKey) -> Result<Worker, Error> {
        let layout = shared.hub.layout().clone();
        let now = Instant::now();
        let (runner, happenings) = Runner::open(&layout, &key, now)?;
        let path = layout.status(&key);
        let lost = "which cluster the volumes belong to; it is found again from their members' answers";
        let memory = match files::read_json::<Memory>(&path, lost)? {
            Some(memory) => memory,
            None => {
                // Volumes without a memory are older than this declaration.
                let found = ordinals(&layout.members(&key))?;
                let with_volume = found
                    .into_iter()
                    .filter(|ordinal| runner.volume_state(*ordinal) == Volume::Present)
                    .map(|o| o.0);
                let memory = Memory {
                    retained: with_volume.collect(),
                    ..Memory::default()
                };
                files::write_json(&path, &memory)?;
                memory
            }
        };
        let before = Snapshot {
            status: memory.status.clone(),
            ..Snapshot::default()
        };
        let worker = Worker {
            shared,
            key,
            runner,
            memory,
            before,
            settled: false,
            began: now,
            first: true,
            trouble: None,
        };
        worker.tell(happenings);
        Ok(worker)
    }

    /// Until the supervisor ends or the cluster is gone.
    pub(crate) async fn run(mut self) {
        let waker = self.shared.hub.waker(&self.key);
        let mut ending = self.shared.hub.ending.subscribe();
        let how = ending.clone();
        loop {
            let pause = match self.turn().await {
                Ok(Turn::Gone) => return,
                Ok(Turn::Again(pause)) => {
                    self.trouble = None;
                    pause
                }
                Err(error) => {
                    self.complain(&error.to_string());
                    IDLE
                }
            };
            let until = Instant::now() + pause;
            loop {
                let ends = tokio::select! {
                    // A dropped sender means that the supervisor is gone, which is an end as well.
                    _ = ending.wait_for(|ending| *ending != Ending::No) => true,
                    () = waker.notified() => break,
                    () = tokio::time::sleep(TICK.min(until.saturating_duration_since(Instant::now()))) => false,
                };
                if ends {
                    return self.end(how).await;
                }
                if Instant::now() >= until || self.tick_quietly() {
                    break;
                }
            }
        }
    }

    /// Looks at the processes; true if something happened that is worth a full look.
    fn tick_quietly(&mut self) -> bool {
        let Some(cluster) = self
            .shared
            .hub
            .get(&self.key)
            .and_then(|it| ValidatedCluster::try_from(&it.cluster).ok())
        else {
            return true;
        };
        match self.tick(&cluster) {
            Ok(happened) => happened,
            Err(error) => {
                self.complain(&error.to_string());
                false
            }
        }
    }

    fn tick(&mut self, cluster: &ValidatedCluster) -> Result<bool, Error> {
        let commands = NodeCommands {
            shared: &self.shared,
            key: &self.key,
            cluster,
        };
        let happenings = self.runner.tick(&commands, Instant::now())?;
        let happened = !happenings.is_empty();
        self.tell(happenings);
        Ok(happened)
    }

    async fn turn(&mut self) -> Result<Turn, Error> {
        let Some(declared) = self.shared.hub.get(&self.key) else {
            return Ok(Turn::Gone);
        };
        let cluster = ValidatedCluster::try_from(&declared.cluster).map_err(|invalid| Error::Manifest {
            complaints: vec![invalid.to_string()],
        })?;
        if cluster.deleting {
            return self.delete(&cluster);
        }
        self.tick(&cluster)?;
        let observed = self.observe().await?;
        let desired = Desired::new(&cluster, workload_hash(&cluster, &self.shared.program));
        let planned = plan(&desired, &observed);
        let outcome = self.carry_out(&desired, &observed, &planned).await;
        self.tick(&cluster)?;
        let now = Time(Timestamp::now());
        let before = &self.before.layouts;
        let look = layouts::look(&self.shared, &self.key, &declared, &cluster, &observed, before, &now).await?;
        let busy = look.busy;
        self.publish(&declared, &desired, &observed, &planned, look, &now)?;
        outcome?;
        Ok(Turn::Again(if busy {
            BUSY
        } else if planned.done || !planned.blocked.is_empty() && planned.steps.is_empty() {
            IDLE
        } else {
            BUSY
        }))
    }

    async fn observe(&self) -> Result<Observed, Error> {
        let layout = self.shared.hub.layout();
        let mut slots = BTreeMap::new();
        let mut probes = Vec::new();
        for ordinal in ordinals(&layout.members(&self.key))? {
            let volume = self.runner.volume_state(ordinal);
            let (workload, hash) = self.runner.workload(ordinal);
            if volume == Volume::Absent && workload == Workload::Absent {
                continue;
            }
            let ports = self.shared.ports(&MemberKey {
                cluster: self.key.clone(),
                ordinal,
            });
            if workload == Workload::Running
                && let Some(ports) = ports
            {
                let asker = &self.shared.asker;
                probes.push(async move { (ordinal, asker.status(&ports.admin_url(), PROBE).await) });
            }
            let host = ports.map(|ports| format!("127.0.0.1:{}", ports.client));
            slots.insert(
                ordinal,
                Slot {
                    volume,
                    workload,
                    workload_hash: hash,
                    report: None,
                    host,
                    labels: BTreeMap::new(),
                },
            );
        }
        let answers = futures::future::join_all(probes).await;
        let mut statuses: Vec<(Ordinal, NodeStatus)> = Vec::new();
        for (ordinal, answer) in answers {
            let Some(status) = answer else { continue };
            // Another program, or another cluster's node, may have taken the port.
            if status.name == ordinal.member(&self.key.name) {
                statuses.push((ordinal, status));
            }
        }
        for (ordinal, status) in &statuses {
            if let Some(slot) = slots.get_mut(ordinal) {
                slot.report = Some(view::report(status));
            }
        }
        let all = || statuses.iter().map(|(_, status)| status);
        let asker = &self.shared.asker;
        let (consensus, places) = match view::leader(all()) {
            Some(leader) => {
                let members = asker.members(&leader.admin_url, PROBE).await;
                let layout = asker.layout(&leader.admin_url).await.ok();
                (
                    members.and_then(|members| view::consensus(leader, &members)),
                    layout.map(|layout| view::places(&layout)),
                )
            }
            None => (None, None),
        };
        Ok(Observed {
            cluster_id: self.memory.status.cluster_id.clone(),
            bootstrapped: self.memory.status.bootstrapped,
            slots,
            retained: self.memory.retained.iter().copied().map(Ordinal).collect(),
            consensus,
            groups: view::groups(all()),
            places,
        })
    }

    async fn carry_out(&mut self, desired: &Desired, observed: &Observed, planned: &Plan) -> Result<(), Error> {
        for one in &planned.steps {
            let what = one.step.describe(desired, observed);
            let shared = Arc::clone(&self.shared);
            let ports = |ordinal| {
                shared.ports(&MemberKey {
                    cluster: self.key.clone(),
                    ordinal,
                })
            };
            let done = match action(&self.key.name, &one.step, observed, ports) {
                Ok(action) => self.act(action).await,
                Err(missing) => Err(Error::Supervisor(missing)),
            };
            match done {
                Ok(()) => self
                    .shared
                    .ui
                    .line(Tone::Plain, &format!("{}: {what} ({})", self.key.name, one.reason)),
                // The rest of the plan relied on it; the next look makes a new one.
                Err(error) => return Err(Error::Supervisor(format!("could not {what}: {error}"))),
            }
        }
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::RecordClusterId => {
                self.memory.status.cluster_id = Some(draw_cluster_id()?);
                self.remember()
            }
            Action::AdoptCluster(id) => {
                self.memory.status.cluster_id = Some(id);
                self.memory.status.bootstrapped = true;
                self.remember()
            }
            Action::RecordBootstrapped => {
                self.memory.status.bootstrapped = true;
                self.remember()
            }
            Action::MakeVolume(ordinal) => self.runner.make_volume(ordinal),
            Action::Start(ordinal) => {
                let Some(declared) = self.shared.hub.get(&self.key) else {
                    return Ok(());
                };
                let cluster = ValidatedCluster::try_from(&declared.cluster).map_err(|invalid| Error::Manifest {
                    complaints: vec![invalid.to_string()],
                })?;
                let commands = NodeCommands {
                    shared: &self.shared,
                    key: &self.key,
                    cluster: &cluster,
                };
                self.runner.start(ordinal, &commands, Instant::now())
            }
            Action::Stop(ordinal) => self.runner.stop(ordinal, Instant::now()),
            Action::DeleteVolume(ordinal) => self.runner.delete_volume(ordinal),
            Action::Ask { admin_url, ask } => self.shared.asker.ask(&admin_url, ask).await.map_err(Error::from),
        }
    }

    fn remember(&self) -> Result<(), Error> {
        files::write_json(&self.shared.hub.layout().status(&self.key), &self.memory)
    }

    fn publish(
        &mut self,
        declared: &Declared,
        desired: &Desired,
        observed: &Observed,
        planned: &Plan,
        look: Look,
        now: &Time,
    ) -> Result<(), Error> {
        let assessment = assess(desired, observed, planned);
        let activity = explain(desired, observed, planned);
        // The memory may be younger than what was observed.
        let observed = Observed {
            cluster_id: self.memory.status.cluster_id.clone(),
            bootstrapped: self.memory.status.bootstrapped,
            ..observed.clone()
        };
        let generation = declared.cluster.metadata.generation;
        let cluster_status = status::cluster(
            &desired.name,
            generation,
            &observed,
            &assessment,
            activity.clone(),
            &self.before.status,
            now,
        );
        for (tone, line) in look.lines {
            self.shared.ui.line(tone, &line);
        }

        let rows = members::progress(&cluster_status.members);
        let done = planned.done
            && assessment
                .conditions
                .iter()
                .all(|one| one.kind.word() != "Ready" || one.status.word() == "True");
        if done && !self.settled {
            self.shared.ui.members(&self.key.name, &[]);
            let endpoints: Vec<(String, Ports)> = observed
                .slots
                .keys()
                .filter_map(|ordinal| {
                    let ports = self.shared.ports(&MemberKey {
                        cluster: self.key.clone(),
                        ordinal: *ordinal,
                    })?;
                    Some((ordinal.member(&self.key.name), ports))
                })
                .collect();
            let took = self.began.elapsed();
            let text = members::ready(
                self.shared.ui.paint(),
                &self.key,
                &cluster_status,
                &endpoints,
                took,
                self.first.then(|| self.shared.ui.own_name()),
            );
            self.first = false;
            self.shared.ui.block(&text);
        } else if !done {
            if self.settled {
                self.began = Instant::now();
            }
            self.shared.ui.members(&self.key.name, &rows);
        }
        self.settled = done;
        let worth_keeping = cluster_status.conditions != self.before.status.conditions;
        self.before = Snapshot {
            status: cluster_status.clone(),
            layouts: look.statuses,
            why: activity.into_iter().chain(look.why).collect(),
        };
        self.memory.status = cluster_status;
        self.shared.hub.publish(&self.key, self.before.clone());
        if worth_keeping { self.remember() } else { Ok(()) }
    }

    /// Deletes the cluster as far as it can now be deleted: first its processes, then what is not to be kept.
    fn delete(&mut self, cluster: &ValidatedCluster) -> Result<Turn, Error> {
        let running: Vec<Ordinal> = self.runner.ordinals().collect();
        for ordinal in &running {
            self.runner.stop(*ordinal, Instant::now())?;
        }
        self.tick(cluster)?;
        if !self.runner.is_empty() {
            let why = vec!["Doing: stop the members, because the cluster is being deleted.".to_owned()];
            self.before.why = why.clone();
            self.before.status.activity = why;
            self.shared.hub.publish(&self.key, self.before.clone());
            return Ok(Turn::Again(BUSY));
        }
        let layout = self.shared.hub.layout();
        let members: Vec<MemberKey> = ordinals(&layout.members(&self.key))?
            .into_iter()
            .map(|ordinal| MemberKey {
                cluster: self.key.clone(),
                ordinal,
            })
            .collect();
        self.shared.ui.members(&self.key.name, &[]);
        self.shared.hub.forget(&self.key)?;
        match cluster.volumes.when_deleted {
            Retention::Delete => {
                files::remove_dir(&layout.cluster(&self.key))?;
                self.shared.release(&members)?;
                self.shared
                    .ui
                    .line(Tone::Plain, &format!("{}: deleted, with its data", self.key.name));
            }
            Retention::Retain => {
                let kept = layout.members(&self.key);
                self.shared.ui.line(
                    Tone::Plain,
                    &format!(
                        "{}: deleted; its data stay in {} for a cluster of the same name",
                        self.key.name,
                        kept.display()
                    ),
                );
            }
        }
        Ok(Turn::Gone)
    }

    /// Stops the processes and waits for them, at most for their grace.
    async fn end(mut self, ending: watch::Receiver<Ending>) {
        self.runner.pause_all(Instant::now());
        let cluster = self
            .shared
            .hub
            .get(&self.key)
            .and_then(|it| ValidatedCluster::try_from(&it.cluster).ok());
        while !self.runner.is_empty() {
            if *ending.borrow() == Ending::Now {
                self.runner.kill_all();
            }
            match &cluster {
                Some(cluster) => {
                    if let Err(error) = self.tick(cluster) {
                        self.complain(&error.to_string());
                        break;
                    }
                }
                None => break,
            }
            tokio::time::sleep(BUSY / 4).await;
        }
        self.runner.kill_all();
    }

    fn tell(&self, happenings: Vec<Happening>) {
        for Happening { ordinal, what, bad } in happenings {
            let tone = if bad { Tone::Bad } else { Tone::Dim };
            self.shared
                .ui
                .line(tone, &format!("{}: {what}", ordinal.member(&self.key.name)));
        }
    }

    fn complain(&mut self, message: &str) {
        if self.trouble.as_deref() != Some(message) {
            self.shared
                .ui
                .line(Tone::Warn, &format!("{}: {message}", self.key.name));
            self.trouble = Some(message.to_owned());
        }
    }
}

/// A fresh cluster id: sixteen hex digits, never zero, which etcd's clients take for "none".
fn draw_cluster_id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Supervisor(format!("the system gives no random numbers: {error}")))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes).max(1)))
}
