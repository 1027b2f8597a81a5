//! A model cluster that carries out steps as an executor, Kubernetes and Raft would, and asserts what must never happen.

#![allow(dead_code, reason = "each test file uses its part of the world")]

mod shards;

use std::collections::{BTreeMap, BTreeSet};

use althing_plan::model::{
    Consensus, Desired, MemberId, Observed, Ordinal, Plan, Report, Slot, Step, Volume, Workload,
};
use althing_plan::{explain, plan};

pub(crate) use shards::Shards;

/// A volume's content.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) member: MemberId,
    pub(crate) cluster: Option<String>,
    pub(crate) terminating: bool,
    pub(crate) lost: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) hash: String,
    /// It cannot run: its node is full, its image unknown.
    pub(crate) pending: bool,
}

/// The configuration that the consensus group agreed on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) index: u64,
    pub(crate) voters: BTreeSet<MemberId>,
    pub(crate) learners: BTreeSet<MemberId>,
    pub(crate) names: BTreeMap<MemberId, String>,
    pub(crate) leader: Option<MemberId>,
}

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) desired: Desired,
    pub(crate) disks: BTreeMap<Ordinal, Disk>,
    pub(crate) pods: BTreeMap<Ordinal, Pod>,
    pub(crate) config: Option<Config>,
    pub(crate) status_cluster: Option<String>,
    pub(crate) status_bootstrapped: bool,
    pub(crate) retained: BTreeSet<Ordinal>,
    /// Learners that have not caught up, and for how many observations still.
    pub(crate) behind: BTreeMap<MemberId, u32>,
    /// Observations that a new learner lags.
    pub(crate) lag_rounds: u32,
    /// What the members hold; none in a world where the members have one group only.
    pub(crate) shards: Option<Shards>,
    pub(crate) bootstraps: u32,
    ids: u32,
}

impl World {
    pub(crate) fn new(members: u32) -> Self {
        Self {
            desired: Desired {
                name: "x".into(),
                members,
                paused: false,
                deleting: false,
                workload_hash: "h1".into(),
                version: "0.1.0".into(),
                keep_volumes: false,
            },
            disks: BTreeMap::new(),
            pods: BTreeMap::new(),
            config: None,
            status_cluster: None,
            status_bootstrapped: false,
            retained: BTreeSet::new(),
            behind: BTreeMap::new(),
            lag_rounds: 0,
            shards: None,
            bootstraps: 0,
            ids: 0,
        }
    }

    /// A settled world whose members hold shards of so many replicas.
    pub(crate) fn sharded(members: u32, shards: usize, replicas: usize) -> Self {
        let mut world = Self::new(members);
        world.shards = Some(Shards::new(shards, replicas));
        world.settle();
        world.conducted();
        world
    }

    /// Has a shard held by these members.
    pub(crate) fn hold(&mut self, shard: u64, ordinals: &[u32]) {
        let voters = ordinals.iter().map(|ordinal| self.member(*ordinal)).collect();
        let shards = self.shards.as_mut().expect("a world of shards");
        shards.voters.insert(shard, voters);
    }

    /// Lets time pass until the conductor has placed every replica.
    pub(crate) fn conducted(&mut self) {
        for _ in 0..600 {
            let before = self.shards.as_ref().map(|shards| shards.voters.clone());
            self.observe();
            if before == self.shards.as_ref().map(|shards| shards.voters.clone()) {
                return;
            }
        }
        panic!("the replicas do not settle: {:?}", self.shards);
    }

    /// A world that has settled with this many members.
    pub(crate) fn settled(members: u32) -> Self {
        let mut world = Self::new(members);
        world.settle();
        world
    }

    fn runs(&self, ordinal: Ordinal) -> bool {
        self.pods.get(&ordinal).is_some_and(|pod| !pod.pending)
            && self.disks.get(&ordinal).is_some_and(|disk| !disk.lost)
    }

    /// Members that answer.
    pub(crate) fn alive(&self) -> BTreeSet<MemberId> {
        self.disks
            .iter()
            .filter(|(ordinal, _)| self.runs(**ordinal))
            .map(|(_, disk)| disk.member.clone())
            .collect()
    }

    fn active_voters(&self, config: &Config) -> usize {
        let alive = self.alive();
        config.voters.iter().filter(|voter| alive.contains(*voter)).count()
    }

    fn has_quorum(&self, config: &Config) -> bool {
        self.active_voters(config) > config.voters.len() / 2
    }

    /// Elects, lets learners catch up, tells members their cluster, finishes deletions.
    fn pass_time(&mut self) {
        let gone: Vec<Ordinal> = self
            .disks
            .iter()
            .filter(|(o, disk)| disk.terminating && !self.pods.contains_key(o))
            .map(|(o, _)| *o)
            .collect();
        for ordinal in gone {
            self.disks.remove(&ordinal);
        }
        let alive = self.alive();
        let Some(mut config) = self.config.take() else {
            return;
        };
        if self.has_quorum(&config) {
            if config
                .leader
                .as_ref()
                .is_none_or(|leader| !alive.contains(leader) || !config.voters.contains(leader))
            {
                config.leader = config.voters.iter().find(|voter| alive.contains(*voter)).cloned();
            }
            for (ordinal, disk) in &mut self.disks {
                let runs = self.pods.get(ordinal).is_some_and(|pod| !pod.pending);
                if runs && (config.voters.contains(&disk.member) || config.learners.contains(&disk.member)) {
                    disk.cluster.clone_from(&self.status_cluster);
                }
            }
            self.behind.retain(|member, rounds| {
                if alive.contains(member) {
                    *rounds = rounds.saturating_sub(1);
                }
                *rounds > 0
            });
            if let Some(shards) = &mut self.shards {
                let doomed = self.disks.values().filter(|disk| disk.terminating || disk.lost);
                let doomed = doomed.map(|disk| disk.member.clone()).collect();
                shards.conduct(&config.voters, &alive, &doomed);
            }
        } else {
            config.leader = None;
        }
        self.config = Some(config);
    }

    pub(crate) fn observe(&mut self) -> Observed {
        self.pass_time();
        let alive = self.alive();
        let consensus = self.config.as_ref().and_then(|config| {
            let leader = config.leader.clone()?;
            let all: BTreeSet<MemberId> = config.voters.union(&config.learners).cloned().collect();
            Some(Consensus {
                group: 0,
                leader,
                config_index: config.index,
                voters: config.voters.clone(),
                learners: config.learners.clone(),
                names: config.names.clone(),
                active: all.intersection(&alive).cloned().collect(),
                caught_up: all
                    .intersection(&alive)
                    .filter(|id| !self.behind.contains_key(*id))
                    .cloned()
                    .collect(),
                lag: all
                    .iter()
                    .map(|id| (id.clone(), u64::from(*self.behind.get(id).unwrap_or(&0))))
                    .collect(),
            })
        });
        let ordinals: BTreeSet<Ordinal> = self.disks.keys().chain(self.pods.keys()).copied().collect();
        let slots = ordinals
            .into_iter()
            .map(|ordinal| (ordinal, self.slot(ordinal, consensus.as_ref())))
            .collect();
        Observed {
            cluster_id: self.status_cluster.clone(),
            bootstrapped: self.status_bootstrapped,
            slots,
            retained: self.retained.clone(),
            consensus,
            groups: self
                .shards
                .as_ref()
                .map(|shards| shards.groups(&alive))
                .unwrap_or_default(),
            places: match (&self.shards, &self.config) {
                (Some(shards), Some(config)) if config.leader.is_some() => Some(shards.places(config.names.keys())),
                (Some(_) | None, Some(_) | None) => None,
            },
        }
    }

    fn slot(&self, ordinal: Ordinal, consensus: Option<&Consensus>) -> Slot {
        let disk = self.disks.get(&ordinal);
        let pod = self.pods.get(&ordinal);
        let report = disk.filter(|_| self.runs(ordinal)).map(|disk| Report {
            member_id: disk.member.clone(),
            cluster_id: disk.cluster.clone(),
            ready: consensus
                .is_some_and(|c| c.voters.contains(&disk.member) && !self.behind.contains_key(&disk.member)),
            not_ready_reason: "it has no vote".into(),
            peer_address: format!("x-{ordinal}:2380"),
            client_urls: vec![format!("http://x-{ordinal}:2379")],
            version: "0.1.0".into(),
        });
        Slot {
            volume: match disk {
                None => Volume::Absent,
                Some(disk) if disk.lost => Volume::Lost {
                    reason: "its node was deleted".into(),
                },
                Some(disk) if disk.terminating => Volume::Terminating,
                Some(_) => Volume::Present,
            },
            workload: match pod {
                None => Workload::Absent,
                Some(pod) if pod.pending || disk.is_none_or(|disk| disk.lost) => Workload::Pending {
                    reason: "Unschedulable".into(),
                    message: "0/3 nodes are available".into(),
                },
                Some(_) => Workload::Running,
            },
            workload_hash: pod.map(|pod| pod.hash.clone()),
            report,
            host: None,
            labels: BTreeMap::new(),
        }
    }

    /// Carries out one step. Returns whether the next may follow.
    pub(crate) fn apply(&mut self, step: &Step) -> bool {
        match step {
            Step::RecordClusterId => {
                assert!(self.status_cluster.is_none(), "a cluster id is recorded once");
                self.status_cluster = Some("c1".into());
            }
            Step::AdoptCluster { cluster_id } => {
                assert!(self.status_cluster.is_none(), "only a cluster without id adopts one");
                self.status_cluster = Some(cluster_id.clone());
                self.status_bootstrapped = true;
            }
            Step::RecordBootstrapped => {
                assert!(self.config.is_some(), "what is recorded is true");
                self.status_bootstrapped = true;
            }
            Step::CreateVolume(ordinal) => {
                if !self.disks.contains_key(ordinal) {
                    self.ids += 1;
                    let member = MemberId(format!("m{}-{}", self.ids, ordinal));
                    self.disks.insert(
                        *ordinal,
                        Disk {
                            member,
                            cluster: None,
                            terminating: false,
                            lost: false,
                        },
                    );
                    self.retained.remove(ordinal);
                }
            }
            Step::StartMember(ordinal) => {
                self.pods.entry(*ordinal).or_insert_with(|| Pod {
                    hash: self.desired.workload_hash.clone(),
                    pending: false,
                });
            }
            Step::StopMember(ordinal) => self.stop(*ordinal),
            Step::DeleteVolume(ordinal) => self.delete_volume(*ordinal),
            Step::Bootstrap { ordinal, cluster_id } => return self.bootstrap(*ordinal, cluster_id),
            Step::AddLearner {
                ordinal,
                member,
                expected_config_index,
            } => {
                let Some(config) = self.change(*expected_config_index) else {
                    return false;
                };
                config.names.insert(member.clone(), format!("x-{ordinal}"));
                config.learners.insert(member.clone());
                self.behind.insert(member.clone(), self.lag_rounds);
            }
            Step::Promote {
                member,
                expected_config_index,
            } => {
                assert!(
                    !self.behind.contains_key(member),
                    "a learner that is behind is never promoted"
                );
                let Some(config) = self.change(*expected_config_index) else {
                    return false;
                };
                assert!(config.learners.remove(member), "only learners are promoted");
                config.voters.insert(member.clone());
                self.assert_quorum(step);
            }
            Step::RemoveMember {
                member,
                expected_config_index,
            } => {
                if self.shards.as_ref().is_some_and(|shards| shards.replicas(member) > 0) {
                    // As a node does: it would take replicas with it.
                    return false;
                }
                let Some(config) = self.change(*expected_config_index) else {
                    return false;
                };
                assert_ne!(
                    config.leader.as_ref(),
                    Some(member),
                    "leadership is handed over before the leader is removed"
                );
                config.voters.remove(member);
                config.learners.remove(member);
                config.names.remove(member);
                assert!(!config.voters.is_empty(), "the last voter is never removed");
                self.behind.remove(member);
                if let Some(shards) = &mut self.shards {
                    shards.draining.remove(member);
                }
                self.assert_quorum(step);
            }
            Step::Drain { member } => {
                let shards = self.shards.as_mut().expect("only what holds replicas is emptied");
                shards.draining.insert(member.clone());
            }
            Step::Undrain { member } => {
                let shards = self.shards.as_mut().expect("only what holds replicas is emptied");
                shards.draining.remove(member);
            }
            Step::TransferLeader { from, to } => {
                let alive = self.alive();
                let config = self.config.as_mut().expect("a transfer needs a cluster");
                assert!(config.voters.contains(to), "only voters lead");
                if config.leader.as_ref() == Some(from) && alive.contains(to) {
                    config.leader = Some(to.clone());
                }
            }
        }
        true
    }

    fn bootstrap(&mut self, ordinal: Ordinal, cluster_id: &str) -> bool {
        assert!(
            !self.status_bootstrapped,
            "a cluster that is recorded as existing is never bootstrapped"
        );
        assert_eq!(
            self.status_cluster.as_deref(),
            Some(cluster_id),
            "the recorded id is the one that is used"
        );
        if !self.runs(ordinal) {
            return false;
        }
        if self.config.is_none() {
            let disk = self.disks.get_mut(&ordinal).expect("it runs on a volume");
            disk.cluster = Some(cluster_id.to_owned());
            self.config = Some(Config {
                index: 1,
                voters: BTreeSet::from([disk.member.clone()]),
                learners: BTreeSet::new(),
                names: BTreeMap::from([(disk.member.clone(), format!("x-{ordinal}"))]),
                leader: Some(disk.member.clone()),
            });
            self.bootstraps += 1;
        }
        assert_eq!(self.bootstraps, 1, "a cluster is bootstrapped once");
        true
    }

    fn stop(&mut self, ordinal: Ordinal) {
        let was_quorum = self.config.as_ref().is_some_and(|config| self.has_quorum(config));
        let only_voter = self.config.as_ref().is_some_and(|config| config.voters.len() == 1);
        let healthy = self.shards.as_ref().map(|shards| shards.healthy(&self.alive()));
        let gone = self
            .disks
            .get(&ordinal)
            .is_none_or(|disk| disk.terminating || disk.lost);
        self.pods.remove(&ordinal);
        if let (Some(shards), Some(before), false) = (&self.shards, healthy, gone) {
            let after = shards.healthy(&self.alive());
            assert_eq!(
                before, after,
                "stopping {ordinal} takes a shard's quorum away: {shards:?}"
            );
        }
        if was_quorum && !only_voter {
            let config = self.config.as_ref().expect("it was there");
            assert!(self.has_quorum(config), "stopping {ordinal} takes the quorum away");
        }
    }

    fn delete_volume(&mut self, ordinal: Ordinal) {
        if let Some(disk) = self.disks.get_mut(&ordinal) {
            if let Some(config) = &self.config {
                assert!(
                    !config.voters.contains(&disk.member) && !config.learners.contains(&disk.member),
                    "the volume of a member of the configuration is never deleted"
                );
            }
            if self.pods.contains_key(&ordinal) {
                disk.terminating = true;
            } else {
                self.disks.remove(&ordinal);
            }
        }
    }

    /// A configuration change goes through if the asker saw the present configuration and a quorum is there.
    fn change(&mut self, expected: u64) -> Option<&mut Config> {
        let possible = self
            .config
            .as_ref()
            .is_some_and(|config| config.leader.is_some() && self.has_quorum(config));
        let config = self
            .config
            .as_mut()
            .filter(|config| possible && config.index == expected)?;
        config.index += 1;
        Some(config)
    }

    fn assert_quorum(&self, step: &Step) {
        let config = self.config.as_ref().expect("it was changed");
        assert!(
            self.has_quorum(config),
            "{step:?} leaves {} of {} voters",
            self.active_voters(config),
            config.voters.len()
        );
    }

    /// Plans and carries out at most `limit` steps (a crash comes after them).
    pub(crate) fn turn(&mut self, limit: usize) -> Plan {
        let observed = self.observe();
        let plan = plan(&self.desired, &observed);
        let changes = plan
            .steps
            .iter()
            .filter(|planned| {
                matches!(
                    planned.step,
                    Step::AddLearner { .. } | Step::Promote { .. } | Step::RemoveMember { .. }
                )
            })
            .count();
        assert!(changes <= 1, "two changes in one plan: {plan:?}");
        for planned in plan.steps.iter().take(limit) {
            assert!(!planned.reason.is_empty(), "every step has a reason");
            if !self.apply(&planned.step) {
                break;
            }
        }
        plan
    }

    /// Plans and acts until nothing is left to do; returns the sentences of every turn.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        let mut story = Vec::new();
        for _ in 0..600 {
            let observed = self.observe();
            let told = explain(&self.desired, &observed, &plan(&self.desired, &observed));
            let plan = self.turn(usize::MAX);
            story.extend(told);
            if plan.done {
                return story;
            }
        }
        panic!(
            "the cluster does not settle: {:?}; the last turns: {:#?}",
            self.shards,
            &story[story.len().saturating_sub(12)..]
        );
    }

    /// What `turns` turns say.
    pub(crate) fn story(&mut self, turns: usize) -> String {
        let mut text = String::new();
        for turn in 1..=turns {
            let observed = self.observe();
            let told = explain(&self.desired, &observed, &plan(&self.desired, &observed));
            self.turn(usize::MAX);
            text.push_str(&format!("turn {turn}\n"));
            for line in told {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }

    pub(crate) fn member(&self, ordinal: u32) -> MemberId {
        self.disks[&Ordinal(ordinal)].member.clone()
    }

    pub(crate) fn voters(&self) -> Vec<String> {
        let config = self.config.as_ref().expect("a cluster");
        let mut names: Vec<String> = config.voters.iter().map(|id| config.names[id].clone()).collect();
        names.sort();
        names
    }
}
