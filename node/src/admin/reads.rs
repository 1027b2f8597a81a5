//! How linearizable reads are answered: asked for and shown.

use super::Context;
use super::routes::{Refuse, failed, parse_group, parse_member, refuse, shards};
use althing_admin::{
    Problem, ProblemReason, ReadMode, ReadRange, ReadsRequest, ReadsStatus, Revisions, ShardList, paths,
};
use althing_raft::io::LeaseView;
use althing_raft::roster::{self, ReadSpec, ResponderRange, Responders, Span};
use althing_shard::{Done, Event};
use axum::Json;
use axum::extract::{Path, State};
use bytes::Bytes;
use std::time::Duration;

/// Length of a lease if the asker names none.
const LEASE_MILLIS: u64 = 1_000;

fn mode(mode: roster::ReadMode) -> ReadMode {
    match mode {
        roster::ReadMode::ReadIndex => ReadMode::ReadIndex,
        roster::ReadMode::LeaderLease => ReadMode::LeaderLease,
        roster::ReadMode::RosterLease => ReadMode::RosterLease,
    }
}

/// What a status page says of a group's reads.
pub(super) fn reads_status(lease: &LeaseView) -> ReadsStatus {
    let spec = &lease.reads.spec;
    ReadsStatus {
        mode: mode(spec.mode),
        revisions: match spec.revisions {
            roster::Revisions::Current => Revisions::Current,
            roster::Revisions::OfKeys => Revisions::OfKeys,
        },
        lease_millis: u64::try_from(spec.lease_length().as_millis()).unwrap_or(u64::MAX),
        spec_index: lease.reads.index.0,
        roster: lease.roster.as_ref().map(|roster| roster.ballot.to_string()),
        responders: lease
            .roster
            .iter()
            .flat_map(|roster| roster.responders())
            .map(|member| member.to_string())
            .collect(),
        local: lease.open,
        local_reads: lease.counts.local,
        held_reads: lease.counts.held,
        bounced_reads: lease.counts.bounced,
        index_reads: lease.counts.by_index,
    }
}

fn range(range: ReadRange) -> Result<ResponderRange, Refuse> {
    let members = range.members.iter().map(|member| parse_member(member));
    Ok(ResponderRange {
        members: members.collect::<Result<_, _>>()?,
        span: Span::Range {
            start: Bytes::from(range.start),
            end: range.end.map(Bytes::from),
        },
    })
}

/// A wish as the core takes it.
pub(super) fn read_spec(request: ReadsRequest) -> Result<ReadSpec, Refuse> {
    let responders = match request.ranges {
        None => Responders::All,
        Some(ranges) if ranges.len() > roster::RANGES_MAX => {
            let error = roster::SpecError::TooManyRanges(ranges.len());
            return Err(refuse(ProblemReason::Invalid, error.to_string()));
        }
        Some(ranges) => Responders::Ranges(ranges.into_iter().map(range).collect::<Result<_, _>>()?),
    };
    Ok(ReadSpec {
        mode: match request.mode {
            ReadMode::ReadIndex => roster::ReadMode::ReadIndex,
            ReadMode::LeaderLease => roster::ReadMode::LeaderLease,
            ReadMode::RosterLease => roster::ReadMode::RosterLease,
        },
        responders,
        revisions: match request.revisions.unwrap_or_default() {
            Revisions::Current => roster::Revisions::Current,
            Revisions::OfKeys => roster::Revisions::OfKeys,
        },
        lease: Duration::from_millis(request.lease_millis.unwrap_or(LEASE_MILLIS)),
    })
}

/// The wish that a specification came from.
pub(super) fn asked_reads(spec: &ReadSpec) -> ReadsRequest {
    let range = |range: &ResponderRange| {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let (start, end) = match &range.span {
            // The same keys: the next key is this one and a zero byte.
            Span::Key(key) => (text(key), Some(text(key) + "\0")),
            Span::Range { start, end } => (text(start), end.as_ref().map(text)),
        };
        ReadRange {
            start,
            end,
            members: range.members.iter().map(ToString::to_string).collect(),
        }
    };
    ReadsRequest {
        mode: mode(spec.mode),
        ranges: match &spec.responders {
            Responders::All => None,
            Responders::None => Some(Vec::new()),
            Responders::Ranges(ranges) => Some(ranges.iter().map(range).collect()),
        },
        revisions: Some(match spec.revisions {
            roster::Revisions::Current => Revisions::Current,
            roster::Revisions::OfKeys => Revisions::OfKeys,
        }),
        lease_millis: Some(u64::try_from(spec.lease.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Has a shard answer linearizable reads in another way
#[utoipa::path(put, path = paths::READS, request_body = ReadsRequest,
    params(("id" = String, Path, description = "shard id")), responses(
    (status = 200, description = "applied; the shard as this node sees it", body = ShardList),
    (status = 400, description = "a lease too short or too long, or ranges that make no sense", body = Problem),
    (status = 404, description = "no such shard", body = Problem),
    (status = 421, description = "ask the leader", body = Problem),
    (status = 503, description = "no quorum in time", body = Problem),
))]
pub(super) async fn set(
    State(context): State<Context>,
    Path(id): Path<String>,
    Json(request): Json<ReadsRequest>,
) -> Result<Json<ShardList>, Refuse> {
    let group = parse_group(&context.shared, &id)?;
    let wanted = request.mode;
    let spec = read_spec(request)?;
    let shared = &context.shared;
    let deadline = shared.deadline();
    let asked = shared.ask_host(|request| Event::SetReads {
        request,
        group,
        spec,
        deadline,
    });
    match asked.await.map_err(|error| failed(shared, error))? {
        Done::ReadsSet { index } => {
            tracing::info!(%group, %index, mode = ?wanted, "reads will be answered in another way");
            Ok(shards(State(context.clone())).await)
        }
        Done::Read { .. } | Done::Configured { .. } | Done::Transferred { .. } => {
            unreachable!("invariant: a change of reads is answered as one")
        }
    }
}
