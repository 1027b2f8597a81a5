//! Raft's messages as bytes: bodies of `Messages` in [`crate::frame`].

use crate::beat_frame;
use crate::fields::{get_bool, get_count, get_u8, get_u64, need, put_count};
use crate::frame::FrameError;
use crate::lease_frame;
use althing_raft::entry::{ConfigState, SnapshotMeta};
use althing_raft::ids::{Epoch, GroupId, Index, LogPosition, MemberId, Term};
use althing_raft::message::{Body, Message};
use althing_raft::roster::ReadsState;
use althing_raft::spec_codec;
use althing_store::codec::{JOINT_FLAG, encode_reads, encode_snapshot_meta};
use althing_wal::codec::{self, CodecError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;

const PRE_VOTE: u8 = 1;
const PRE_VOTE_REPLY: u8 = 2;
const VOTE: u8 = 3;
const VOTE_REPLY: u8 = 4;
pub(crate) const APPEND: u8 = 5;
const APPEND_ACCEPTED: u8 = 6;
const APPEND_REJECTED: u8 = 7;
const HEARTBEAT: u8 = 8;
const HEARTBEAT_REPLY: u8 = 9;
pub(crate) const SNAPSHOT: u8 = 10;
const TIMEOUT_NOW: u8 = 11;
const READ_INDEX: u8 = 12;
const READ_INDEX_REPLY: u8 = 13;
pub(crate) const FORWARD: u8 = 14;
/// As `APPEND_ACCEPTED`, `HEARTBEAT_REPLY` and `SNAPSHOT`, with more: groups that never had leases send the forms that
/// earlier versions know.
const APPEND_STAMPED: u8 = 15;
const HEARTBEAT_STAMPED: u8 = 16;
const SNAPSHOT_READS: u8 = 17;
const COMMITTED: u8 = 18;

pub(crate) fn encode_message(message: &Message, out: &mut BytesMut) {
    out.put_u64_le(message.group.0);
    out.put_u64_le(message.from.0);
    out.put_u64_le(message.to.0);
    out.put_u64_le(message.term.0);
    encode_body(&message.body, out);
}

pub(crate) fn encode_body(body: &Body, out: &mut BytesMut) {
    match body {
        Body::PreVote { last } => {
            out.put_u8(PRE_VOTE);
            codec::encode_position(*last, out);
        }
        Body::PreVoteReply { granted } => {
            out.put_u8(PRE_VOTE_REPLY);
            out.put_u8(u8::from(*granted));
        }
        Body::Committed { position } => {
            out.put_u8(COMMITTED);
            codec::encode_position(*position, out);
        }
        Body::Vote { last, transfer } => {
            out.put_u8(VOTE);
            codec::encode_position(*last, out);
            out.put_u8(u8::from(*transfer));
        }
        Body::VoteReply { granted } => {
            out.put_u8(VOTE_REPLY);
            out.put_u8(u8::from(*granted));
        }
        Body::Append { prev, entries, commit } => {
            out.reserve(entries.iter().map(codec::entry_len).sum::<usize>() + 32);
            out.put_u8(APPEND);
            codec::encode_position(*prev, out);
            out.put_u64_le(commit.0);
            put_count(entries.len(), out);
            entries.iter().for_each(|entry| codec::encode_entry(entry, out));
        }
        Body::AppendAccepted { last, stamp: None } => {
            out.put_u8(APPEND_ACCEPTED);
            out.put_u64_le(last.0);
        }
        Body::AppendAccepted {
            last,
            stamp: Some(stamp),
        } => {
            out.put_u8(APPEND_STAMPED);
            out.put_u64_le(last.0);
            out.put_u64_le(stamp.0);
        }
        Body::AppendRejected { rejected, hint } => {
            out.put_u8(APPEND_REJECTED);
            out.put_u64_le(rejected.0);
            codec::encode_position(*hint, out);
        }
        Body::Heartbeat { commit, round } => {
            out.put_u8(HEARTBEAT);
            out.put_u64_le(commit.0);
            out.put_u64_le(*round);
        }
        Body::HeartbeatReply { round, stamp: None } => {
            out.put_u8(HEARTBEAT_REPLY);
            out.put_u64_le(*round);
        }
        Body::HeartbeatReply {
            round,
            stamp: Some(stamp),
        } => {
            out.put_u8(HEARTBEAT_STAMPED);
            out.put_u64_le(*round);
            out.put_u64_le(stamp.0);
        }
        Body::Hibernate { commit, spell } => beat_frame::encode_hibernate(*commit, *spell, out),
        Body::Hibernating { spell } => beat_frame::encode_hibernating(*spell, out),
        Body::Alive { boot } => beat_frame::encode_alive(*boot, out),
        Body::Snapshot { meta } => {
            let plain = meta.reads == ReadsState::default();
            out.put_u8(if plain { SNAPSHOT } else { SNAPSHOT_READS });
            encode_meta(meta, out);
        }
        Body::Roster { roster } => lease_frame::encode_roster(roster, out),
        Body::LeaseRequest {
            ballot,
            sent,
            incarnation,
        } => lease_frame::encode_request(*ballot, *sent, *incarnation, out),
        Body::LeaseGrant {
            ballot,
            sent,
            asker,
            incarnation,
        } => lease_frame::encode_grant(*ballot, *sent, *asker, *incarnation, out),
        Body::Revoke { below, incarnation } => lease_frame::encode_revoke(*below, *incarnation, out),
        Body::Revoked { below, incarnation } => lease_frame::encode_revoked(*below, *incarnation, out),
        Body::TimeoutNow => out.put_u8(TIMEOUT_NOW),
        Body::ReadIndex { request } => {
            out.put_u8(READ_INDEX);
            out.put_u64_le(*request);
        }
        Body::ReadIndexReply { request, index } => {
            out.put_u8(READ_INDEX_REPLY);
            out.put_u64_le(*request);
            out.put_u8(u8::from(index.is_some()));
            out.put_u64_le(index.unwrap_or_default().0);
        }
        Body::Forward { commands } => {
            out.put_u8(FORWARD);
            put_count(commands.len(), out);
            for command in commands {
                put_count(command.len(), out);
                out.put_slice(command);
            }
        }
    }
}

/// Reads one message, or many that were written as one piece.
pub(crate) fn decode_messages(buf: &mut Bytes, into: &mut Vec<Message>) -> Result<(), FrameError> {
    let group = GroupId(get_u64(buf, "message")?);
    let from = MemberId(get_u64(buf, "message")?);
    let to = MemberId(get_u64(buf, "message")?);
    let term = Term(get_u64(buf, "message")?);
    if buf.first() == Some(&beat_frame::BEATS) {
        buf.advance(1);
        return beat_frame::decode_together(from, to, buf, into);
    }
    let body = decode_body(buf)?;
    into.push(Message {
        group,
        from,
        to,
        term,
        body,
    });
    Ok(())
}

pub(crate) fn decode_body(buf: &mut Bytes) -> Result<Body, FrameError> {
    Ok(match get_u8(buf, "message")? {
        PRE_VOTE => Body::PreVote {
            last: codec::decode_position(buf)?,
        },
        PRE_VOTE_REPLY => Body::PreVoteReply {
            granted: get_bool(buf)?,
        },
        COMMITTED => Body::Committed {
            position: codec::decode_position(buf)?,
        },
        VOTE => Body::Vote {
            last: codec::decode_position(buf)?,
            transfer: get_bool(buf)?,
        },
        VOTE_REPLY => Body::VoteReply {
            granted: get_bool(buf)?,
        },
        APPEND => {
            let prev = codec::decode_position(buf)?;
            let commit = Index(get_u64(buf, "append")?);
            let entries = (0..get_count(buf, "append")?)
                .map(|_| codec::decode_entry(buf))
                .collect::<Result<_, _>>()?;
            Body::Append { prev, entries, commit }
        }
        APPEND_ACCEPTED => Body::AppendAccepted {
            last: Index(get_u64(buf, "append reply")?),
            stamp: None,
        },
        APPEND_STAMPED => Body::AppendAccepted {
            last: Index(get_u64(buf, "append reply")?),
            stamp: Some(Epoch(get_u64(buf, "append reply")?)),
        },
        APPEND_REJECTED => Body::AppendRejected {
            rejected: Index(get_u64(buf, "append reply")?),
            hint: codec::decode_position(buf)?,
        },
        HEARTBEAT => Body::Heartbeat {
            commit: Index(get_u64(buf, "heartbeat")?),
            round: get_u64(buf, "heartbeat")?,
        },
        HEARTBEAT_REPLY => Body::HeartbeatReply {
            round: get_u64(buf, "heartbeat reply")?,
            stamp: None,
        },
        HEARTBEAT_STAMPED => Body::HeartbeatReply {
            round: get_u64(buf, "heartbeat reply")?,
            stamp: Some(Epoch(get_u64(buf, "heartbeat reply")?)),
        },
        SNAPSHOT => Body::Snapshot {
            meta: decode_meta(buf)?,
        },
        SNAPSHOT_READS => Body::Snapshot {
            meta: decode_meta_reads(buf)?,
        },
        tag @ lease_frame::ROSTER..=lease_frame::REVOKED => lease_frame::decode(tag, buf)?,
        tag @ beat_frame::HIBERNATE..=beat_frame::ALIVE => beat_frame::decode(tag, buf)?,
        TIMEOUT_NOW => Body::TimeoutNow,
        READ_INDEX => Body::ReadIndex {
            request: get_u64(buf, "read index")?,
        },
        READ_INDEX_REPLY => {
            let request = get_u64(buf, "read index reply")?;
            let known = get_bool(buf)?;
            let index = Index(get_u64(buf, "read index reply")?);
            Body::ReadIndexReply {
                request,
                index: known.then_some(index),
            }
        }
        FORWARD => {
            let commands = (0..get_count(buf, "forward")?)
                .map(|_| {
                    let len = get_count(buf, "command")?;
                    need(buf, "command", len)?;
                    Ok(buf.split_to(len))
                })
                .collect::<Result<_, FrameError>>()?;
            Body::Forward { commands }
        }
        tag => return Err(CodecError::Tag { what: "message", tag }.into()),
    })
}

/// In the store's form; how reads are answered follows if anybody ever asked for it.
pub(crate) fn encode_meta(meta: &SnapshotMeta, out: &mut BytesMut) {
    encode_snapshot_meta(meta, out);
    if meta.reads != ReadsState::default() {
        encode_reads(&meta.reads, out);
    }
}

pub(crate) fn decode_meta_reads(buf: &mut Bytes) -> Result<SnapshotMeta, FrameError> {
    let meta = decode_meta(buf)?;
    let index = Index(get_u64(buf, "snapshot")?);
    let spec = spec_codec::decode_spec(buf).map_err(CodecError::from)?;
    Ok(SnapshotMeta {
        reads: ReadsState { spec, index },
        ..meta
    })
}

pub(crate) fn decode_meta(buf: &mut Bytes) -> Result<SnapshotMeta, FrameError> {
    let position: LogPosition = codec::decode_position(buf)?;
    let index = Index(get_u64(buf, "snapshot")?);
    need(buf, "snapshot", 4)?;
    let count = buf.get_u32_le();
    let members = |count: u32, buf: &mut Bytes| -> Result<BTreeSet<MemberId>, FrameError> {
        (0..count).map(|_| Ok(MemberId(get_u64(buf, "snapshot")?))).collect()
    };
    let voters = members(count & !JOINT_FLAG, buf)?;
    let learners = codec::get_members(buf, "snapshot")?;
    let outgoing = if count & JOINT_FLAG == 0 {
        BTreeSet::new()
    } else {
        codec::get_members(buf, "snapshot")?
    };
    Ok(SnapshotMeta {
        position,
        config: ConfigState {
            voters,
            outgoing,
            learners,
            index,
        },
        ..SnapshotMeta::default()
    })
}
