//! Heartbeats and hibernation as bytes, and many of them as one: bodies of `Messages` in [`crate::frame`].
//!
//! ```text
//! beats := head (group 0, from, to, term 0) | BEATS | count u32 | count x (group u64 | term u64 | body)
//! ```
//!
//! The groups of a node beat together, so thousands of heartbeats leave for one peer at once. Who speaks to whom is said once.

use crate::fields::{get_count, get_u64, put_count};
use crate::frame::FrameError;
use crate::message_frame::{decode_body, encode_body, encode_message};
use althing_raft::ids::{GroupId, Index, MemberId, Term};
use althing_raft::message::{Body, Message};
use althing_wal::codec::CodecError;
use bytes::{BufMut, Bytes, BytesMut};

/// Tags of these bodies; those of others are in `message_frame` and `lease_frame`.
pub(crate) const HIBERNATE: u8 = 25;
const HIBERNATING: u8 = 26;
/// The last body of them.
pub(crate) const ALIVE: u8 = 27;
/// Not a body: many messages.
pub(crate) const BEATS: u8 = 28;
/// Messages in one piece: far below the limit of a frame.
const BEATS_MAX: usize = 4_096;

pub(crate) fn encode_hibernate(commit: Index, spell: u64, out: &mut BytesMut) {
    out.put_u8(HIBERNATE);
    out.put_u64_le(commit.0);
    out.put_u64_le(spell);
}

pub(crate) fn encode_hibernating(spell: u64, out: &mut BytesMut) {
    out.put_u8(HIBERNATING);
    out.put_u64_le(spell);
}

pub(crate) fn encode_alive(boot: u64, out: &mut BytesMut) {
    out.put_u8(ALIVE);
    out.put_u64_le(boot);
}

/// Reads the body behind one of the tags above.
pub(crate) fn decode(tag: u8, buf: &mut Bytes) -> Result<Body, CodecError> {
    Ok(match tag {
        HIBERNATE => Body::Hibernate {
            commit: Index(get_u64(buf, "hibernation")?),
            spell: get_u64(buf, "hibernation")?,
        },
        HIBERNATING => Body::Hibernating {
            spell: get_u64(buf, "hibernation")?,
        },
        ALIVE => Body::Alive {
            boot: get_u64(buf, "sign of life")?,
        },
        tag => {
            return Err(CodecError::Tag {
                what: "hibernation",
                tag,
            });
        }
    })
}

/// Whether a group says this at every beat.
fn is_beat(body: &Body) -> bool {
    match body {
        Body::Heartbeat { .. } | Body::HeartbeatReply { .. } | Body::Hibernate { .. } | Body::Hibernating { .. } => {
            true
        }
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Committed { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::Append { .. }
        | Body::AppendAccepted { .. }
        | Body::AppendRejected { .. }
        | Body::Alive { .. }
        | Body::Snapshot { .. }
        | Body::TimeoutNow
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::Forward { .. }
        | Body::Roster { .. }
        | Body::LeaseRequest { .. }
        | Body::LeaseGrant { .. }
        | Body::Revoke { .. }
        | Body::Revoked { .. } => false,
    }
}

/// How many messages from the first on can be said as one piece. At least one, if there is any.
pub(crate) fn together(messages: &[Message]) -> usize {
    let Some(first) = messages.first() else { return 0 };
    let same = |message: &&Message| (message.from, message.to) == (first.from, first.to) && is_beat(&message.body);
    messages.iter().take(BEATS_MAX).take_while(same).count().max(1)
}

/// Writes one message, or several that belong together.
pub(crate) fn encode_piece(piece: &[Message], out: &mut BytesMut) {
    match piece {
        [message] => encode_message(message, out),
        beats => encode_together(beats, out),
    }
}

fn encode_together(messages: &[Message], out: &mut BytesMut) {
    let Some(first) = messages.first() else { return };
    out.put_u64_le(0);
    out.put_u64_le(first.from.0);
    out.put_u64_le(first.to.0);
    out.put_u64_le(0);
    out.put_u8(BEATS);
    put_count(messages.len(), out);
    for message in messages {
        out.put_u64_le(message.group.0);
        out.put_u64_le(message.term.0);
        encode_body(&message.body, out);
    }
}

/// Reads them, behind the tag.
pub(crate) fn decode_together(
    from: MemberId,
    to: MemberId,
    buf: &mut Bytes,
    into: &mut Vec<Message>,
) -> Result<(), FrameError> {
    for _ in 0..get_count(buf, "heartbeats")? {
        let group = GroupId(get_u64(buf, "heartbeats")?);
        let term = Term(get_u64(buf, "heartbeats")?);
        let tag = buf.first().copied().unwrap_or_default();
        let body = decode_body(buf)?;
        if !is_beat(&body) {
            let what = "heartbeats";
            return Err(CodecError::Tag { what, tag }.into());
        }
        into.push(Message {
            group,
            from,
            to,
            term,
            body,
        });
    }
    Ok(())
}
