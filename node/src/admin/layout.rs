//! Keyspaces, drains, labels and operations: wishes about the shard map, and how it is.

use super::Context;
use super::layout_view::{Sight, View};
use super::reads::read_spec;
use super::routes::{Refuse, conducted, not_leader, parse_member, refuse};
use crate::conductor::{ConductError, wall_seconds};
use althing_admin::text::read_key;
use althing_admin::{
    KeyspaceList, KeyspaceRequest, KeyspaceStatus, LabelsRequest, LayoutMember, LayoutStatus, MAX_SHARDS,
    OperationStatus, Partitioning, Problem, ProblemReason, paths,
};
use althing_raft::ids::GroupId;
use althing_raft::io::Role;
use althing_shard::map::{MemberState, OperationId};
use althing_shard::meta::{KeyspaceSpec, MetaChange, MetaError, MetaState};
use althing_store::partition;
use axum::Json;
use axum::extract::{Path, State};

/// How often a wish is thought over again because the map changed meanwhile. The conductor changes it several times a second at most.
const TRIES_MAX: usize = 10;

/// What this node knows of the layout.
async fn view<'a>(context: &Context, state: &'a MetaState) -> View<'a> {
    let shared = &context.shared;
    let seen = context.conductor.seen();
    let sight = if seen.members.is_empty() {
        let views = shared.views().await;
        tokio::task::block_in_place(|| Sight::of_node(shared, views))
    } else {
        Sight::of_conductor(&seen)
    };
    View {
        state,
        sight,
        pending: context.conductor.pending(),
        wall_seconds: wall_seconds(),
        names: context.directory.names(),
    }
}

/// Makes a change of the map that is thought out from its newest version. Says what the map is then.
async fn wish(
    context: &Context,
    think: impl Fn(&MetaState) -> Result<MetaChange, MetaError>,
) -> Result<MetaState, Refuse> {
    let shared = &context.shared;
    let leads = shared.soft(GroupId::META).is_some_and(|soft| soft.role == Role::Leader);
    if !leads {
        return Err(not_leader(shared, None));
    }
    let mut tries = 1;
    loop {
        let mut state = context.conductor.state().await.map_err(|error| conducted(&error))?;
        if state.version == 0 {
            // The first map names what was there before it. A wish that came earlier would be the first, and give the first shard's number
            // out again: two groups of one name.
            return Err(no_map_yet());
        }
        let change = think(&state).map_err(|error| refused(&error))?;
        if change.is_empty() {
            return Ok(state);
        }
        match context.conductor.change(change.clone(), state.version).await {
            Ok(()) => {
                state.apply(&change);
                return Ok(state);
            }
            Err(ConductError::Raced { .. }) if tries < TRIES_MAX => tries += 1,
            Err(error) => return Err(conducted(&error)),
        }
    }
}

fn no_map_yet() -> Refuse {
    refuse(
        ProblemReason::Unavailable,
        "the first shard map is still being made; ask again in a moment",
    )
}

fn refused(error: &MetaError) -> Refuse {
    let reason = match error {
        MetaError::NoKeyspace { .. } | MetaError::NoMember { .. } | MetaError::NoOperation { .. } => {
            ProblemReason::NotFound
        }
        MetaError::Invalid {
            field: "partitioning", ..
        }
        | MetaError::Exists { .. }
        | MetaError::TooLate { .. }
        | MetaError::Taken { .. }
        | MetaError::Dropping { .. } => ProblemReason::Conflict,
        MetaError::Invalid { .. } => ProblemReason::Invalid,
        MetaError::Row { .. } | MetaError::Format { .. } | MetaError::Contradiction { .. } => {
            ProblemReason::Unavailable
        }
    };
    refuse(reason, error.to_string())
}

/// Members, keyspaces, shards and what is being done to them, as this node knows them; the leader of the cluster knows most
#[utoipa::path(get, path = paths::LAYOUT, responses((status = 200, description = "the layout", body = LayoutStatus)))]
pub(super) async fn layout(State(context): State<Context>) -> Json<LayoutStatus> {
    let chart = context.atlas.chart();
    Json(view(&context, &chart.state).await.layout())
}

/// The keyspaces, as this node knows them
#[utoipa::path(get, path = paths::KEYSPACES, responses((status = 200, description = "the keyspaces", body = KeyspaceList)))]
pub(super) async fn keyspaces(State(context): State<Context>) -> Json<KeyspaceList> {
    let chart = context.atlas.chart();
    Json(KeyspaceList {
        keyspaces: view(&context, &chart.state).await.keyspaces(),
    })
}

async fn keyspace_status(context: &Context, state: &MetaState, name: &str) -> Result<Json<KeyspaceStatus>, Refuse> {
    let (id, record) = state
        .keyspace(name)
        .ok_or_else(|| refuse(ProblemReason::NotFound, format!("there is no keyspace {name:?}")))?;
    Ok(Json(view(context, state).await.keyspace(id, record)))
}

fn spec(request: KeyspaceRequest) -> Result<KeyspaceSpec, Refuse> {
    if request.shards > MAX_SHARDS {
        return Err(refuse(
            ProblemReason::Invalid,
            format!("shards: {} must be from 1 to {MAX_SHARDS}", request.shards),
        ));
    }
    let (partitioning, split_keys) = match request.partitioning {
        None => (None, Vec::new()),
        Some(Partitioning::Range { split_keys }) => {
            let keys = split_keys.iter().map(|text| read_key(text).map(Into::into));
            let keys = keys
                .collect::<Result<_, _>>()
                .map_err(|error| refuse(ProblemReason::Invalid, format!("splitKeys: {error}")))?;
            (Some(partition::Partitioning::Range), keys)
        }
        Some(Partitioning::Hash { slots, prefix_segments }) => (
            Some(partition::Partitioning::Hash { slots, prefix_segments }),
            Vec::new(),
        ),
    };
    Ok(KeyspaceSpec {
        shards: request.shards,
        replicas: request.replicas,
        partitioning,
        split_keys,
        port: request.port,
        quota_bytes: request.quota_bytes,
        reads: request.reads.map(read_spec).transpose()?,
    })
}

/// Makes a keyspace, or changes what is wanted of it; repeating it changes nothing
#[utoipa::path(put, path = paths::KEYSPACE, request_body = KeyspaceRequest,
    params(("name" = String, Path, description = "name of the keyspace: small letters, digits and inner dashes")), responses(
    (status = 200, description = "wanted; the keyspace as it is now", body = KeyspaceStatus),
    (status = 400, description = "a value that makes no sense", body = Problem),
    (status = 409, description = "the partitioning cannot change, the port is taken, or the keyspace is being dropped", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn put_keyspace(
    State(context): State<Context>,
    Path(name): Path<String>,
    Json(request): Json<KeyspaceRequest>,
) -> Result<Json<KeyspaceStatus>, Refuse> {
    let wanted = spec(request)?;
    let state = wish(&context, |state| {
        let mut wanted = wanted.clone();
        // Of reads alone, absence means that they are left as they are.
        if let Some((_, present)) = state.keyspace(&name) {
            wanted.reads = wanted.reads.or_else(|| present.reads.clone());
        }
        state.put_keyspace(&name, &wanted)
    })
    .await?;
    tracing::info!(keyspace = name, shards = wanted.shards, "a keyspace is wanted so");
    keyspace_status(&context, &state, &name).await
}

/// Drops a keyspace with everything in it; repeating it changes nothing
#[utoipa::path(delete, path = paths::KEYSPACE, params(("name" = String, Path, description = "name of the keyspace")), responses(
    (status = 200, description = "it goes; the keyspace as it is now", body = KeyspaceStatus),
    (status = 400, description = "the default keyspace stays", body = Problem),
    (status = 404, description = "no such keyspace", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn drop_keyspace(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Json<KeyspaceStatus>, Refuse> {
    let state = wish(&context, |state| state.drop_keyspace(&name)).await?;
    tracing::info!(keyspace = name, "a keyspace is dropped");
    keyspace_status(&context, &state, &name).await
}

async fn changed_member(
    context: &Context,
    text: &str,
    think: impl Fn(&MetaState, althing_raft::ids::MemberId) -> Result<MetaChange, MetaError>,
) -> Result<Json<LayoutMember>, Refuse> {
    let id = parse_member(text)?;
    let state = wish(context, |state| think(state, id)).await?;
    let record = state
        .members
        .get(&id)
        .ok_or_else(|| refuse(ProblemReason::NotFound, format!("there is no member {id}")))?;
    Ok(Json(view(context, &state).await.member(id, record)))
}

/// Empties a member of replicas: they move to others
#[utoipa::path(post, path = paths::DRAIN, params(("id" = String, Path, description = "member id")), responses(
    (status = 200, description = "it is being emptied; the member now", body = LayoutMember),
    (status = 404, description = "no such member", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn drain(
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<Json<LayoutMember>, Refuse> {
    changed_member(&context, &id, |state, id| {
        state.set_member_state(id, MemberState::Draining)
    })
    .await
}

/// Lets a member have replicas again
#[utoipa::path(delete, path = paths::DRAIN, params(("id" = String, Path, description = "member id")), responses(
    (status = 200, description = "it takes replicas; the member now", body = LayoutMember),
    (status = 404, description = "no such member", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn undrain(
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<Json<LayoutMember>, Refuse> {
    changed_member(&context, &id, |state, id| {
        state.set_member_state(id, MemberState::Active)
    })
    .await
}

/// Says where a member runs: replicas of one shard are spread over zones and nodes
#[utoipa::path(put, path = paths::LABELS, request_body = LabelsRequest,
    params(("id" = String, Path, description = "member id")), responses(
    (status = 200, description = "the member now", body = LayoutMember),
    (status = 400, description = "too many or too long", body = Problem),
    (status = 404, description = "no such member", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn labels(
    State(context): State<Context>,
    Path(id): Path<String>,
    Json(request): Json<LabelsRequest>,
) -> Result<Json<LayoutMember>, Refuse> {
    changed_member(&context, &id, |state, id| state.set_labels(id, request.labels.clone())).await
}

/// Gives an operation up, if nothing of it is beyond return
#[utoipa::path(delete, path = paths::OPERATION, params(("id" = u64, Path, description = "number of the operation")), responses(
    (status = 200, description = "it is given up; the operation as it was", body = OperationStatus),
    (status = 404, description = "no such operation; it may have ended", body = Problem),
    (status = 409, description = "it is beyond return", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn cancel(
    State(context): State<Context>,
    Path(text): Path<String>,
) -> Result<Json<OperationStatus>, Refuse> {
    let unknown = || {
        refuse(
            ProblemReason::NotFound,
            format!("there is no operation {text}; it may have ended"),
        )
    };
    let id = text.parse().map(OperationId).map_err(|_| unknown())?;
    let before = std::sync::Mutex::new(None);
    let state = wish(&context, |state| {
        let operation = state.operations.get(&id).cloned();
        *before.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = operation;
        state.cancel(id)
    })
    .await?;
    tracing::info!(operation = %id, "an operation is given up");
    // What is left of it, or what it was.
    let operation = state.operations.get(&id).cloned();
    let before = before.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let operation = operation.or(before).ok_or_else(unknown)?;
    Ok(Json(view(&context, &state).await.operation(id, &operation)))
}
