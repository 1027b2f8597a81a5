//! Members in memory: a meta group and shards behind the admin API of every pod, each on a loopback address of its own.
//! A member's identity lives with its volume claim: a new claim is another member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use althing_admin::{
    AddLearnerRequest, BootstrapRequest, ConfigGuard, Member, MemberList, NodeStatus, Problem, ProblemReason,
    ShardKind, StorageStatus, TransferLeaderRequest,
};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;

use super::shards::{self, Layout};

/// One group.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Member ids by ordinal, of those that run.
    pub(super) running: BTreeMap<u32, String>,
    /// The cluster of each volume.
    clusters: BTreeMap<String, String>,
    pub(super) voters: BTreeSet<String>,
    learners: BTreeSet<String>,
    pub(super) names: BTreeMap<String, (String, String)>,
    pub(super) index: u64,
    pub(super) layout: Layout,
    pub(super) leader: Option<String>,
    pub(super) bootstraps: u32,
}

/// A handle that tests and servers share.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(pub(super) Arc<Mutex<Group>>);

#[derive(Clone)]
pub(super) struct Here {
    pub(super) members: Members,
    pub(super) ordinal: u32,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Guard {
    expected_config_index: Option<u64>,
}

pub(super) type Answer = Result<Response, Response>;

impl Members {
    /// The address of a member; `net` keeps tests apart.
    pub(super) fn address(net: u8, ordinal: u32) -> String {
        format!("127.77.{net}.{}", ordinal + 1)
    }

    /// Serves the admin API of ordinals 0 to 4.
    pub(super) async fn serve(&self, net: u8) {
        for ordinal in 0..5 {
            let listener = TcpListener::bind((Self::address(net, ordinal), althing_crds::names::ADMIN_PORT))
                .await
                .expect("a loopback address of this test's own");
            let here = Here {
                members: self.clone(),
                ordinal,
            };
            let router = Router::new()
                .route("/v1/status", get(status))
                .route("/v1/bootstrap", post(bootstrap))
                .route("/v1/members", get(list).post(add))
                .route("/v1/members/{id}", delete(remove))
                .route("/v1/members/{id}/promote", post(promote))
                .route("/v1/shards/{id}/transfer-leader", post(transfer))
                .merge(shards::routes())
                .with_state(here);
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
    }
}

impl Group {
    pub(super) fn alive(&self, id: &String) -> bool {
        self.running.values().any(|other| other == id)
    }

    /// Elects, and lets members learn their cluster.
    pub(super) fn pass_time(&mut self) {
        let active = self.voters.iter().filter(|id| self.alive(id)).count();
        if active <= self.voters.len() / 2 {
            self.leader = None;
            return;
        }
        if self
            .leader
            .as_ref()
            .is_none_or(|leader| !self.alive(leader) || !self.voters.contains(leader))
        {
            self.leader = self.voters.iter().find(|id| self.alive(id)).cloned();
        }
        let cluster = self
            .leader
            .as_ref()
            .and_then(|leader| self.clusters.get(leader))
            .cloned();
        if let Some(cluster) = cluster {
            for id in self.voters.union(&self.learners) {
                self.clusters.insert(id.clone(), cluster.clone());
            }
        }
        let running: BTreeSet<&String> = self.running.values().collect();
        self.layout.conduct(&self.voters, &|id| running.contains(id));
    }

    pub(super) fn at_leader(&mut self, ordinal: u32, expected: Option<u64>) -> Result<&mut Self, Response> {
        self.pass_time();
        if self.leader.is_none() || self.running.get(&ordinal) != self.leader.as_ref() {
            return Err(refuse(StatusCode::MISDIRECTED_REQUEST, ProblemReason::NotLeader));
        }
        if expected.is_some_and(|expected| expected != self.index) {
            return Err(refuse(StatusCode::CONFLICT, ProblemReason::Conflict));
        }
        Ok(self)
    }
}

pub(super) fn refuse(status: StatusCode, reason: ProblemReason) -> Response {
    let problem = Problem {
        reason,
        message: "no".into(),
        leader: None,
    };
    (status, Json(problem)).into_response()
}

pub(super) fn done() -> Answer {
    Ok(StatusCode::OK.into_response())
}

async fn status(State(here): State<Here>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    group.pass_time();
    let id = group.running.get(&here.ordinal).cloned();
    let id = id.ok_or_else(|| refuse(StatusCode::SERVICE_UNAVAILABLE, ProblemReason::Unavailable))?;
    let votes = group.voters.contains(&id);
    let leader = group.leader.clone();
    let mut shards = vec![group.group_status(&id, 0, ShardKind::Meta, &group.voters, &group.learners, leader)];
    shards.extend(group.shard_statuses(&id));
    let name = format!("orders-{}", here.ordinal);
    Ok(Json(NodeStatus {
        peer_address: format!("{name}:2380"),
        client_urls: vec![format!("http://{name}:2379")],
        admin_url: format!("http://{name}:2381"),
        name,
        cluster_id: group.clusters.get(&id).cloned(),
        member_id: id,
        version: "0.1.0".into(),
        ready: votes && group.leader.is_some(),
        not_ready_reason: "it has no vote".into(),
        uptime_seconds: 1,
        storage: StorageStatus::default(),
        shards,
    })
    .into_response())
}

async fn list(State(here): State<Here>) -> Answer {
    let group = here.members.0.lock().expect("no panic while it is held");
    let members = group
        .names
        .iter()
        .map(|(id, (name, peer_address))| Member {
            id: id.clone(),
            name: name.clone(),
            peer_address: peer_address.clone(),
            client_urls: vec![],
            learner: group.learners.contains(id),
        })
        .collect();
    Ok(Json(MemberList {
        config_index: group.index,
        members,
    })
    .into_response())
}

async fn bootstrap(State(here): State<Here>, Json(request): Json<BootstrapRequest>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let id = group
        .running
        .get(&here.ordinal)
        .cloned()
        .expect("only members that run are asked");
    if group.clusters.get(&id) != Some(&request.cluster_id) {
        group.bootstraps += 1;
        group
            .names
            .insert(id.clone(), (format!("orders-{}", here.ordinal), "x:2380".into()));
        group.clusters.insert(id.clone(), request.cluster_id);
        group.layout.born(&id);
        group.voters.insert(id);
        group.index = 1;
    }
    done()
}

async fn add(State(here): State<Here>, Json(request): Json<AddLearnerRequest>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, request.expected_config_index)?;
    group
        .names
        .insert(request.id.clone(), (request.name, request.peer_address));
    group.learners.insert(request.id);
    group.index += 1;
    done()
}

async fn promote(State(here): State<Here>, Path(id): Path<String>, Json(guard): Json<ConfigGuard>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, guard.expected_config_index)?;
    if !group.learners.remove(&id) {
        return Err(refuse(StatusCode::NOT_FOUND, ProblemReason::NotFound));
    }
    group.voters.insert(id);
    group.index += 1;
    done()
}

async fn remove(State(here): State<Here>, Path(id): Path<String>, Query(guard): Query<Guard>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    assert!(guard.expected_config_index.is_some(), "removal is always guarded");
    let group = group.at_leader(here.ordinal, guard.expected_config_index)?;
    assert_ne!(
        group.leader.as_ref(),
        Some(&id),
        "the leader hands over before it is removed"
    );
    if group.layout.replicas(&id) > 0 {
        return Err(refuse(StatusCode::CONFLICT, ProblemReason::Conflict));
    }
    group.layout.draining.remove(&id);
    group.voters.remove(&id);
    group.learners.remove(&id);
    group.names.remove(&id);
    group.index += 1;
    done()
}

async fn transfer(
    State(here): State<Here>,
    Path(shard): Path<u64>,
    Json(request): Json<TransferLeaderRequest>,
) -> Answer {
    assert_eq!(shard, 0, "the operator moves the members' group only");
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, None)?;
    group.leader = request.to;
    done()
}
