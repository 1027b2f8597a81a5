//! One handler per path.

use super::Context;
use super::layout_view::kind;
use super::reads::reads_status;
use crate::conductor::ConductError;
use crate::members::MemberInfo;
use crate::node::NodeError;
use crate::shared::{Failed, Shared};
use althing_admin::{
    AddLearnerRequest, BootstrapRequest, ConfigGuard, Member, MemberList, NodeStatus, PeerProgress, Problem,
    ProblemReason, ShardList, ShardStatus, StorageStatus, TransferLeaderRequest, paths,
};
use althing_raft::entry::ConfigStep;
use althing_raft::ids::{GroupId, Index, MemberId};
use althing_raft::io::Role;
use althing_shard::map::MemberState;
use althing_shard::{Done, Event, Refusal};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;

/// The group whose configuration is the cluster's membership.
const GROUP: GroupId = GroupId::META;
/// Longest text that a member may carry through the log.
const TEXT_BYTES_MAX: usize = 1_024;
/// URLs per member.
const URLS_MAX: usize = 16;

/// A refusal as HTTP.
pub(super) struct Refuse(Problem);

impl IntoResponse for Refuse {
    fn into_response(self) -> Response {
        let status = match self.0.reason {
            ProblemReason::Invalid => StatusCode::BAD_REQUEST,
            ProblemReason::NotFound => StatusCode::NOT_FOUND,
            ProblemReason::NotLeader => StatusCode::MISDIRECTED_REQUEST,
            ProblemReason::Conflict | ProblemReason::LearnerBehind | ProblemReason::OtherCluster => {
                StatusCode::CONFLICT
            }
            ProblemReason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self.0)).into_response()
    }
}

pub(super) fn refuse(reason: ProblemReason, message: impl Into<String>) -> Refuse {
    Refuse(Problem {
        reason,
        message: message.into(),
        leader: None,
    })
}

pub(super) fn failed(shared: &Shared, error: Failed) -> Refuse {
    let refusal = match error {
        Failed::Stopped => return refuse(ProblemReason::Unavailable, "the node is going down; ask another one"),
        Failed::Refused(refusal) => refusal,
    };
    match refusal {
        Refusal::NotLeader { leader } => not_leader(shared, leader),
        Refusal::NoLeader | Refusal::NoStamp | Refusal::Timeout | Refusal::LeaderChanged | Refusal::TooManyRequests => {
            refuse(
                ProblemReason::Unavailable,
                format!("{refusal}; look at /v1/status and ask again"),
            )
        }
        Refusal::Conflict { current } => refuse(
            ProblemReason::Conflict,
            format!(
                "the configuration is the one of index {current} now; look at it and ask again with that as expectedConfigIndex"
            ),
        ),
        Refusal::ChangeInFlight => refuse(
            ProblemReason::Conflict,
            "another membership change is under way, or the leader is new and has committed nothing yet; ask again in a moment",
        ),
        Refusal::ChangeInvalid => refuse(
            ProblemReason::Invalid,
            "the change does not fit the configuration: a voter cannot be added or promoted again, and neither the leader nor the last voter \
             can be removed (hand leadership over first)",
        ),
        Refusal::LearnerBehind => refuse(
            ProblemReason::LearnerBehind,
            "the learner has not caught up, or does not answer; ask again later",
        ),
        Refusal::BadTransferee | Refusal::SpecInvalid(_) => refuse(ProblemReason::Invalid, refusal.to_string()),
        Refusal::Learner => not_leader(shared, None),
        Refusal::NotMember | Refusal::NoGroup => refuse(
            ProblemReason::Unavailable,
            format!("{refusal}: {}", shared.readiness().reason),
        ),
    }
}

pub(super) fn not_leader(shared: &Shared, leader: Option<MemberId>) -> Refuse {
    let leader = leader
        .or_else(|| shared.soft(GROUP).and_then(|soft| soft.leader))
        .map(|leader| {
            let name = shared.groups.get(GROUP).and_then(|store| {
                store
                    .members()
                    .get(&leader)
                    .map(|context| MemberInfo::decode(context).name)
            });
            (leader.to_string(), name.unwrap_or_default())
        });
    let message = match &leader {
        Some((id, name)) => format!("this member does not lead; ask {name} (member {id})"),
        None => "this member does not lead and knows no leader".to_owned(),
    };
    Refuse(Problem {
        reason: ProblemReason::NotLeader,
        message,
        leader: leader.map(|(id, _)| id),
    })
}

pub(super) fn parse_member(text: &str) -> Result<MemberId, Refuse> {
    let parsed = text.parse().ok().filter(|member: &MemberId| member.0 != 0);
    parsed.ok_or_else(|| {
        refuse(
            ProblemReason::Invalid,
            format!("{text:?} is no member id: sixteen hex digits, as /v1/status prints them"),
        )
    })
}

pub(super) fn parse_group(shared: &Shared, text: &str) -> Result<GroupId, Refuse> {
    let parsed = text.parse().ok().map(GroupId);
    let here = parsed.filter(|group| shared.groups.get(*group).is_some());
    here.ok_or_else(|| {
        refuse(
            ProblemReason::NotFound,
            format!("no shard {text} here; /v1/shards lists them"),
        )
    })
}

/// The process is alive
#[utoipa::path(get, path = paths::HEALTHZ, responses((status = 200, description = "alive", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The member serves linearizable requests
#[utoipa::path(get, path = paths::READYZ, responses(
    (status = 200, description = "ready", body = String),
    (status = 503, description = "not ready, with the reason", body = String),
))]
pub(super) async fn readyz(State(context): State<Context>) -> Response {
    let readiness = context.shared.readiness();
    if readiness.ready {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}\n", readiness.reason),
        )
            .into_response()
    }
}

/// What this node is and how it is; always answered
#[utoipa::path(get, path = paths::STATUS, responses((status = 200, description = "the node's status", body = NodeStatus)))]
pub(super) async fn status(State(context): State<Context>) -> Json<NodeStatus> {
    let shared = &context.shared;
    let readiness = shared.readiness();
    // The engine's files are all groups' in common.
    let state_bytes = shared
        .groups
        .get(GROUP)
        .and_then(|store| tokio::task::block_in_place(|| store.size()).ok())
        .map(|size| size.on_disk)
        .unwrap_or_default();
    Json(NodeStatus {
        name: shared.config.name.clone(),
        member_id: shared.me.to_string(),
        cluster_id: shared.cluster().map(|cluster| format!("{cluster:016x}")),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_address: shared.info.peer_address.clone(),
        client_urls: shared.info.client_urls.clone(),
        admin_url: shared.admin_url.clone(),
        ready: readiness.ready,
        not_ready_reason: match readiness.reason {
            _ if shared.short_of_space() => {
                "the volume is almost full: writes are refused until space is made".to_owned()
            }
            reason => reason,
        },
        uptime_seconds: shared.clock.uptime().as_secs(),
        storage: StorageStatus {
            wal_bytes: u64::try_from(shared.metrics.wal_bytes.get()).unwrap_or_default(),
            state_bytes,
            free_bytes: shared.volume().free,
        },
        shards: shard_statuses(&context).await,
    })
}

async fn shard_statuses(context: &Context) -> Vec<ShardStatus> {
    let (shared, chart) = (&context.shared, context.atlas.chart());
    let views = shared.views().await;
    views
        .into_iter()
        .map(|(group, view)| {
            let raft = view.raft;
            let store = shared.groups.get(group);
            let size = store.as_ref().map(|store| store.rows_size());
            let (kind, keyspace) = kind(&chart.state, group);
            let texts =
                |members: &std::collections::BTreeSet<MemberId>| members.iter().map(ToString::to_string).collect();
            ShardStatus {
                id: group.0,
                role: format!("{:?}", raft.soft.role),
                leader: raft.soft.leader.map(|leader| leader.to_string()),
                term: raft.soft.term.0,
                commit_index: raft.commit.0,
                applied_index: view.applied.index.0,
                last_index: raft.last.index.0,
                revision: store.map(|store| store.current_revision().0).unwrap_or_default(),
                config_index: raft.soft.config.index.0,
                voters: texts(&raft.soft.config.voters),
                learners: texts(&raft.soft.config.learners),
                progress: raft
                    .progress
                    .iter()
                    .map(|peer| PeerProgress {
                        member_id: peer.member.to_string(),
                        match_index: peer.matched.0,
                        lag: raft.last.index.0.saturating_sub(peer.matched.0),
                        recent_active: peer.recent_active,
                    })
                    .collect(),
                reads: Some(reads_status(&raft.lease)),
                kind,
                keyspace,
                bytes: size.map(|size| size.in_use),
                keys: size.map(|size| size.keys),
                hibernating: Some(raft.hibernates),
            }
        })
        .collect()
}

/// Makes an empty node the first member of a new cluster; repeating it is harmless
#[utoipa::path(post, path = paths::BOOTSTRAP, request_body = BootstrapRequest, responses(
    (status = 200, description = "the node belongs to the cluster"),
    (status = 400, description = "no such id", body = Problem),
    (status = 409, description = "the node belongs to another cluster", body = Problem),
))]
pub(super) async fn bootstrap(
    State(context): State<Context>,
    Json(request): Json<BootstrapRequest>,
) -> Result<Json<()>, Refuse> {
    let text = &request.cluster_id;
    let parsed = u64::from_str_radix(text, 16).ok().filter(|cluster| *cluster != 0);
    let invalid = || {
        refuse(
            ProblemReason::Invalid,
            format!("{text:?} is no cluster id: up to sixteen hex digits, not all zero"),
        )
    };
    let cluster = parsed.ok_or_else(invalid)?;
    context
        .joiner
        .bootstrap(cluster)
        .await
        .map(Json)
        .map_err(|error| match error {
            NodeError::OtherCluster(_) => refuse(ProblemReason::OtherCluster, error.to_string()),
            NodeError::Identity(_)
            | NodeError::Wal(_)
            | NodeError::Store(_)
            | NodeError::Recover(_)
            | NodeError::Listen { .. }
            | NodeError::Thread(_)
            | NodeError::HalfBorn
            | NodeError::NoMap
            | NodeError::BornBefore(_)
            | NodeError::Changed(_)
            | NodeError::Stopped => refuse(ProblemReason::Unavailable, error.to_string()),
        })
}

/// The members, as this node has applied them
#[utoipa::path(get, path = paths::MEMBERS, responses((status = 200, description = "the members", body = MemberList)))]
pub(super) async fn members(State(context): State<Context>) -> Json<MemberList> {
    let Some(store) = context.shared.groups.get(GROUP) else {
        return Json(MemberList {
            config_index: 0,
            members: Vec::new(),
        });
    };
    let config = store.applied().config;
    let member = |(id, context): (&MemberId, &Bytes)| {
        let info = MemberInfo::decode(context);
        Member {
            id: id.to_string(),
            name: info.name,
            peer_address: info.peer_address,
            client_urls: info.client_urls,
            learner: config.learners.contains(id),
        }
    };
    Json(MemberList {
        config_index: config.index.0,
        members: store.members().iter().map(member).collect(),
    })
}

async fn configure(
    context: &Context,
    step: ConfigStep,
    info: Bytes,
    expected: Option<u64>,
) -> Result<Json<MemberList>, Refuse> {
    let shared = &context.shared;
    let deadline = shared.deadline();
    let expected = expected.map(Index);
    let asked = step.clone();
    let ask = shared.ask_host(|request| Event::Configure {
        request,
        group: GROUP,
        step,
        context: info,
        expected,
        deadline,
    });
    match ask.await.map_err(|error| failed(shared, error))? {
        Done::Configured { index } => {
            tracing::info!(step = ?asked, %index, "the configuration changed");
            Ok(members(State(context.clone())).await)
        }
        Done::Read { .. } | Done::ReadsSet { .. } | Done::Transferred { .. } => {
            unreachable!("invariant: a change is answered as one")
        }
    }
}

/// Adds a member without a vote, or updates a learner's addresses
#[utoipa::path(post, path = paths::MEMBERS, request_body = AddLearnerRequest, responses(
    (status = 200, description = "added; the members now", body = MemberList),
    (status = 400, description = "malformed, or already a voter", body = Problem),
    (status = 409, description = "the configuration is another one, or a change is under way", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn add_learner(
    State(context): State<Context>,
    Json(request): Json<AddLearnerRequest>,
) -> Result<Json<MemberList>, Refuse> {
    let member = parse_member(&request.id)?;
    let too_long = [&request.name, &request.peer_address]
        .into_iter()
        .chain(&request.client_urls)
        .any(|text| text.len() > TEXT_BYTES_MAX);
    if request.client_urls.len() > URLS_MAX || too_long {
        return Err(refuse(
            ProblemReason::Invalid,
            format!("at most {URLS_MAX} URLs, and no text over {TEXT_BYTES_MAX} bytes"),
        ));
    }
    if request.name.is_empty()
        || request
            .peer_address
            .rsplit_once(':')
            .is_none_or(|(_, port)| port.parse::<u16>().is_err())
    {
        return Err(refuse(
            ProblemReason::Invalid,
            "a member needs a name and a peerAddress of the form HOST:PORT",
        ));
    }
    let info = MemberInfo {
        name: request.name,
        peer_address: request.peer_address,
        client_urls: request.client_urls,
    };
    configure(
        &context,
        ConfigStep::AddLearner(member),
        info.encode(),
        request.expected_config_index,
    )
    .await
}

/// Gives a learner its vote
#[utoipa::path(post, path = paths::PROMOTE, request_body = ConfigGuard, params(("id" = String, Path, description = "member id")), responses(
    (status = 200, description = "promoted; the members now", body = MemberList),
    (status = 400, description = "not a learner", body = Problem),
    (status = 409, description = "not caught up, or the configuration is another one", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn promote(
    State(context): State<Context>,
    Path(id): Path<String>,
    Json(guard): Json<ConfigGuard>,
) -> Result<Json<MemberList>, Refuse> {
    let member = parse_member(&id)?;
    configure(
        &context,
        ConfigStep::Promote(member),
        Bytes::new(),
        guard.expected_config_index,
    )
    .await
}

/// A member goes when it holds nothing any more: until then its replicas are moved elsewhere, which this begins.
async fn leave(context: &Context, member: MemberId) -> Result<(), Refuse> {
    let shared = &context.shared;
    let soft = shared.soft(GROUP);
    if soft.as_ref().is_none_or(|soft| soft.role != Role::Leader) {
        return Err(not_leader(shared, None));
    }
    if soft.is_some_and(|soft| soft.leader == Some(member)) {
        return Err(failed(shared, Failed::Refused(Refusal::ChangeInvalid)));
    }
    let state = context.conductor.state().await.map_err(|error| conducted(&error))?;
    let placed = state.placed_on(member).len();
    if placed == 0 {
        return Ok(());
    }
    let change = state
        .set_member_state(member, MemberState::Draining)
        .map_err(|error| refuse(ProblemReason::Invalid, error.to_string()))?;
    if !change.is_empty() {
        let changed = context.conductor.change(change, state.version).await;
        changed.map_err(|error| conducted(&error))?;
    }
    Err(refuse(
        ProblemReason::Conflict,
        format!("the member holds replicas of {placed} shards; they are being moved elsewhere, ask again"),
    ))
}

/// Why the shard map did not change.
pub(super) fn conducted(error: &ConductError) -> Refuse {
    let reason = match error {
        ConductError::Raced { .. } => ProblemReason::Conflict,
        ConductError::Meta(_) | ConductError::Map(_) => ProblemReason::Unavailable,
    };
    refuse(reason, error.to_string())
}

/// The guard of a removal.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RemoveQuery {
    expected_config_index: Option<u64>,
}

/// Removes a voter or a learner
#[utoipa::path(delete, path = paths::MEMBER,
    params(
        ("id" = String, Path, description = "member id"),
        ("expectedConfigIndex" = Option<u64>, Query, description = "refuse if the configuration is another one"),
    ),
    responses(
        (status = 200, description = "removed; the members now", body = MemberList),
        (status = 400, description = "not a member, the last voter, or the leader itself", body = Problem),
        (status = 409, description = "the configuration is another one, or a change is under way", body = Problem),
        (status = 421, description = "ask the leader", body = Problem),
        (status = 503, description = "no quorum in time", body = Problem),
    )
)]
pub(super) async fn remove(
    State(context): State<Context>,
    Path(id): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<MemberList>, Refuse> {
    let member = parse_member(&id)?;
    leave(&context, member).await?;
    configure(
        &context,
        ConfigStep::Remove(member),
        Bytes::new(),
        query.expected_config_index,
    )
    .await
}

/// The Raft groups of this node
#[utoipa::path(get, path = paths::SHARDS, responses((status = 200, description = "the shards", body = ShardList)))]
pub(super) async fn shards(State(context): State<Context>) -> Json<ShardList> {
    Json(ShardList {
        shards: shard_statuses(&context).await,
    })
}

/// Moves a shard's leadership
#[utoipa::path(post, path = paths::TRANSFER_LEADER, request_body = TransferLeaderRequest,
    params(("id" = String, Path, description = "shard id")), responses(
    (status = 200, description = "another member leads now; the shard as this node sees it", body = ShardList),
    (status = 400, description = "not a voter, or no other voter", body = Problem),
    (status = 404, description = "no such shard", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "nobody took over in time", body = Problem),
))]
pub(super) async fn transfer_leader(
    State(context): State<Context>,
    Path(id): Path<String>,
    Json(request): Json<TransferLeaderRequest>,
) -> Result<Json<ShardList>, Refuse> {
    let shared = &context.shared;
    let group = parse_group(shared, &id)?;
    let to = request.to.as_deref().map(parse_member).transpose()?;
    let deadline = shared.deadline();
    match shared
        .ask_host(|request| Event::Transfer {
            request,
            group,
            to,
            deadline,
        })
        .await
        .map_err(|error| failed(shared, error))?
    {
        Done::Transferred { .. } => Ok(shards(State(context.clone())).await),
        Done::Read { .. } | Done::Configured { .. } | Done::ReadsSet { .. } => {
            unreachable!("invariant: a transfer is answered as one")
        }
    }
}
