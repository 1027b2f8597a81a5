//! The members' layout in memory: keyspaces and shards, and a conductor that makes one change of each shard at a look.

use std::collections::{BTreeMap, BTreeSet};

use althing_admin::{
    KeyspaceRequest, KeyspaceState, KeyspaceStatus, LabelsRequest, LayoutMember, LayoutStatus, MemberState,
    OperationKind, OperationStatus, Partitioning, PeerProgress, ProblemReason, RevisionSource, ShardInfo, ShardKind,
    ShardStatus,
};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};

use super::members::{Answer, Group, Here, done, refuse};

/// A shard: who votes in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    id: u64,
    pub(super) voters: BTreeSet<String>,
}

/// A keyspace as it was asked for, and its shards.
#[derive(Clone, Debug, Default)]
pub(super) struct Keyspace {
    pub(super) request: KeyspaceRequest,
    pub(super) shards: Vec<Shard>,
}

/// What the meta group knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    version: u64,
    pub(super) keyspaces: BTreeMap<String, Keyspace>,
    pub(super) draining: BTreeSet<String>,
    pub(super) labels: BTreeMap<String, BTreeMap<String, String>>,
    next: u64,
    /// PUTs that were answered, so that a test can see that nothing is asked twice.
    pub(super) puts: u32,
}

impl Layout {
    /// What a cluster is born with.
    pub(super) fn born(&mut self, first: &str) {
        let shard = Shard {
            id: 1,
            voters: BTreeSet::from([first.to_owned()]),
        };
        let request = KeyspaceRequest {
            shards: 1,
            ..KeyspaceRequest::default()
        };
        self.next = 2;
        self.keyspaces.insert(
            "default".into(),
            Keyspace {
                request,
                shards: vec![shard],
            },
        );
    }

    pub(super) fn replicas(&self, member: &str) -> usize {
        let shards = self.keyspaces.values().flat_map(|keyspace| &keyspace.shards);
        shards.filter(|shard| shard.voters.contains(member)).count()
    }

    /// One change of every keyspace and shard.
    pub(super) fn conduct(&mut self, voters: &BTreeSet<String>, alive: &dyn Fn(&String) -> bool) {
        let places: Vec<String> = voters
            .iter()
            .filter(|id| alive(id) && !self.draining.contains(*id))
            .cloned()
            .collect();
        if places.is_empty() {
            return;
        }
        self.version += 1;
        for keyspace in self.keyspaces.values_mut() {
            let wanted = usize::try_from(keyspace.request.shards).expect("few");
            if keyspace.shards.len() < wanted {
                let parent = keyspace.shards.last().cloned().unwrap_or_else(|| Shard {
                    id: 0,
                    voters: places.iter().take(1).cloned().collect(),
                });
                keyspace.shards.push(Shard {
                    id: self.next,
                    ..parent
                });
                self.next += 1;
            } else if keyspace.shards.len() > wanted {
                keyspace.shards.pop();
            }
            let replicas = keyspace.request.replicas.map_or(places.len(), |wanted| {
                usize::try_from(wanted).expect("few").min(places.len())
            });
            for (at, shard) in keyspace.shards.iter_mut().enumerate() {
                let home: BTreeSet<String> = places
                    .iter()
                    .cycle()
                    .skip(at % places.len())
                    .take(replicas)
                    .cloned()
                    .collect();
                let healthy = shard.voters.iter().filter(|id| alive(id)).count() > shard.voters.len() / 2;
                let missing = home.difference(&shard.voters).next().cloned();
                let extra = shard.voters.difference(&home).next().cloned();
                match (missing, extra) {
                    (Some(missing), _) if healthy => {
                        shard.voters.insert(missing);
                    }
                    (None, Some(extra)) if healthy => {
                        shard.voters.remove(&extra);
                    }
                    (Some(_) | None, Some(_) | None) => {}
                }
            }
        }
    }
}

impl Group {
    /// What a member says of its shards.
    pub(super) fn shard_statuses(&self, id: &String) -> Vec<ShardStatus> {
        let keyspaces = self.layout.keyspaces.iter();
        keyspaces
            .flat_map(|(name, keyspace)| keyspace.shards.iter().map(move |shard| (name, shard)))
            .filter(|(_, shard)| shard.voters.contains(id))
            .map(|(name, shard)| {
                let mut status = self.group_status(
                    id,
                    shard.id,
                    ShardKind::Data,
                    &shard.voters,
                    &BTreeSet::new(),
                    self.lead(shard),
                );
                status.keyspace = Some(name.clone());
                status
            })
            .collect()
    }

    fn lead(&self, shard: &Shard) -> Option<String> {
        let mut alive = shard.voters.iter().filter(|id| self.alive(id));
        let enough = alive.clone().count() > shard.voters.len() / 2;
        alive.next().filter(|_| enough).cloned()
    }

    /// What a member says of one group.
    pub(super) fn group_status(
        &self,
        id: &String,
        group: u64,
        kind: ShardKind,
        voters: &BTreeSet<String>,
        learners: &BTreeSet<String>,
        leader: Option<String>,
    ) -> ShardStatus {
        let leads = leader.as_ref() == Some(id);
        let peers = voters.union(learners).filter(|peer| leads && *peer != id);
        ShardStatus {
            id: group,
            role: if leads {
                "Leader"
            } else if voters.contains(id) {
                "Follower"
            } else {
                "Learner"
            }
            .into(),
            leader,
            term: 1,
            commit_index: self.index,
            applied_index: self.index,
            last_index: self.index,
            revision: 1,
            config_index: self.index,
            voters: voters.iter().cloned().collect(),
            learners: learners.iter().cloned().collect(),
            progress: peers
                .map(|peer| PeerProgress {
                    member_id: peer.clone(),
                    match_index: self.index,
                    lag: 0,
                    recent_active: self.alive(peer),
                })
                .collect(),
            reads: None,
            kind: Some(kind),
            keyspace: None,
            bytes: Some(4096),
            keys: Some(1),
            hibernating: Some(false),
        }
    }

    fn member(&self, id: &str) -> LayoutMember {
        LayoutMember {
            id: id.to_owned(),
            name: self.names.get(id).map(|(name, _)| name.clone()).unwrap_or_default(),
            labels: self.layout.labels.get(id).cloned().unwrap_or_default(),
            state: if self.layout.draining.contains(id) {
                MemberState::Draining
            } else {
                MemberState::Active
            },
            replicas: u32::try_from(self.layout.replicas(id)).expect("few"),
            leaders: 0,
            bytes: 0,
        }
    }

    fn keyspace(&self, name: &str, keyspace: &Keyspace) -> KeyspaceStatus {
        let last = keyspace.shards.len();
        let shards = keyspace.shards.iter().enumerate().map(|(at, shard)| ShardInfo {
            id: shard.id,
            start: if at == 0 { String::new() } else { format!("/{at:03}") },
            end: if at + 1 == last {
                String::new()
            } else {
                format!("/{:03}", at + 1)
            },
            epoch: 0,
            leader: self.lead(shard),
            replicas: shard.voters.iter().cloned().collect(),
            voters: shard.voters.iter().cloned().collect(),
            learners: vec![],
            keys: 1,
            bytes: 5000,
            revision: 1,
            lag: Some(0),
            hibernating: false,
            operation: None,
        });
        KeyspaceStatus {
            id: 1,
            name: name.to_owned(),
            state: if keyspace.shards.is_empty() {
                KeyspaceState::Creating
            } else {
                KeyspaceState::Active
            },
            source: if keyspace.request.shards > 1 {
                RevisionSource::Sequenced
            } else {
                RevisionSource::Dense
            },
            desired_shards: keyspace.request.shards,
            current_shards: u32::try_from(last).expect("few"),
            replicas: keyspace.request.replicas,
            port: keyspace.request.port,
            partitioning: keyspace
                .request
                .partitioning
                .clone()
                .unwrap_or(Partitioning::Range { split_keys: vec![] }),
            quota_bytes: keyspace.request.quota_bytes,
            reads: keyspace.request.reads.clone(),
            shards: shards.collect(),
            message: String::new(),
        }
    }

    fn operations(&self) -> Vec<OperationStatus> {
        let under_way = self
            .layout
            .keyspaces
            .iter()
            .filter(|(_, keyspace)| usize::try_from(keyspace.request.shards).expect("few") > keyspace.shards.len());
        under_way
            .zip(1..)
            .map(|((name, keyspace), id)| OperationStatus {
                id,
                kind: OperationKind::Split,
                keyspace: name.clone(),
                shards: keyspace.shards.last().map(|shard| shard.id).into_iter().collect(),
                phase: "Cut".into(),
                reason: format!("{} shards are desired", keyspace.request.shards),
                since_seconds: 0,
            })
            .collect()
    }
}

/// The routes of the layout.
pub(super) fn routes() -> Router<Here> {
    Router::new()
        .route("/v1/layout", get(layout))
        .route("/v1/keyspaces/{name}", put(ask).delete(end))
        .route("/v1/members/{id}/drain", post(drain).delete(undrain))
        .route("/v1/members/{id}/labels", put(label))
}

async fn layout(State(here): State<Here>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, None)?;
    Ok(Json(LayoutStatus {
        version: group.layout.version,
        members: group.names.keys().map(|id| group.member(id)).collect(),
        keyspaces: group
            .layout
            .keyspaces
            .iter()
            .map(|(name, keyspace)| group.keyspace(name, keyspace))
            .collect(),
        operations: group.operations(),
    })
    .into_response())
}

async fn ask(State(here): State<Here>, Path(name): Path<String>, Json(request): Json<KeyspaceRequest>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, None)?;
    if request.quota_bytes == Some(13) {
        return Err(refuse(StatusCode::BAD_REQUEST, ProblemReason::Invalid));
    }
    group.layout.puts += 1;
    group.layout.keyspaces.entry(name).or_default().request = request;
    done()
}

async fn end(State(here): State<Here>, Path(name): Path<String>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    let group = group.at_leader(here.ordinal, None)?;
    assert_ne!(name, "default", "the default keyspace is never dropped");
    group.layout.keyspaces.remove(&name);
    done()
}

async fn drain(State(here): State<Here>, Path(id): Path<String>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    group.at_leader(here.ordinal, None)?.layout.draining.insert(id);
    done()
}

async fn undrain(State(here): State<Here>, Path(id): Path<String>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    group.at_leader(here.ordinal, None)?.layout.draining.remove(&id);
    done()
}

async fn label(State(here): State<Here>, Path(id): Path<String>, Json(request): Json<LabelsRequest>) -> Answer {
    let mut group = here.members.0.lock().expect("no panic while it is held");
    group
        .at_leader(here.ordinal, None)?
        .layout
        .labels
        .insert(id, request.labels);
    done()
}
