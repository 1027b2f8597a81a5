//! The bytes between peers.
//!
//! ```text
//! frame    := len u32 | crc32c u32 | kind u8 | body[len]
//! ```
//!
//! Little-endian; the CRC covers kind and body. A connection starts with a `Hello`, which carries the protocol version, and its
//! `HelloReply`; after that come `Messages` in one direction, or calls in one direction and their answers in the other, or a
//! snapshot. One frame holds messages of all groups. Decoding takes nothing on trust: lengths are checked before anything is sliced
//! or reserved.

use crate::beat_frame::{encode_piece, together};
use crate::fields::{get_bool, get_text, get_u8, get_u64, need, put_text};
use crate::message_frame::{decode_messages, decode_meta, decode_meta_reads, encode_meta};
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::{GroupId, MemberId, Term};
use althing_raft::message::Message;
use althing_raft::roster::ReadsState;
use althing_wal::codec::{self, CodecError};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Version of handshake and frames that this build speaks. N-1 must stay understood.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 9;
/// Largest body. One message can hold one append (1 MiB) or one forward of a turn's commands; the rest is headroom.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// A frame is closed when it has so many bytes, so that a slow connection carries on with small steps.
pub const BODY_BYTES_TARGET: usize = 1 << 20;
/// Longest text (address, reason).
pub const TEXT_BYTES_MAX: usize = 1024;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A stream of messages.
    Messages,
    /// One snapshot.
    Snapshot,
    /// Calls and their answers, in any order.
    Calls,
}

/// First word of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Protocol version of the sender.
    pub version: u16,
    /// Its cluster.
    pub cluster: u64,
    /// It.
    pub from: MemberId,
    /// Whom it wants to speak to.
    pub to: MemberId,
    /// Where it lives.
    pub address: String,
    /// What for.
    pub purpose: Purpose,
}

/// Answer to a `Hello`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HelloReply {
    /// Go on.
    Accepted,
    /// The receiver belongs to another cluster.
    OtherCluster {
        /// Its cluster.
        cluster: u64,
    },
    /// The receiver is another member: the volume was wiped, or the address is now somebody else's.
    WrongMember {
        /// It.
        member: MemberId,
    },
    /// The receiver speaks other versions.
    Version {
        /// The newest that it speaks.
        newest: u16,
    },
    /// The receiver leads and the sender is not a member any more.
    Removed,
}

/// Announces a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotHead {
    /// The group.
    pub group: GroupId,
    /// The sender's term.
    pub term: Term,
    /// What it covers.
    pub meta: SnapshotMeta,
    /// Names the sender's export, so that a transfer that broke can be carried on over another connection.
    pub transfer: u64,
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Opens a connection.
    Hello(Hello),
    /// Answers it. Also sent later with `Removed`, when the leader sees that the sender left the cluster.
    HelloReply(HelloReply),
    /// Messages of all groups.
    Messages(Vec<Message>),
    /// Opens a snapshot.
    SnapshotHead(SnapshotHead),
    /// The receiver says from where it wants it, in the words of the state machine.
    SnapshotFrom(Bytes),
    /// A piece of it.
    SnapshotChunk(Bytes),
    /// Its end.
    SnapshotEnd,
    /// The receiver has it (empty) or says why not.
    SnapshotReply(String),
    /// A request of another node, or a piece of one.
    Call(Piece),
    /// The answer to a call, or a piece of it.
    Answer(Piece),
    /// A call gets no answer. Whether anything of it happened is not known.
    NoAnswer {
        /// The call.
        id: u64,
        /// Why not, for a person.
        reason: String,
    },
}

/// A piece of a call or of an answer. Large ones go in several, so that small ones do not wait behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The call, as its connection counts.
    pub id: u64,
    /// Nothing of this body follows.
    pub last: bool,
    /// The bytes, which mean nothing here.
    pub body: Bytes,
}

/// Why bytes are no frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond the limit.
    #[error("a frame of {0} bytes is over the limit of {BODY_BYTES_MAX}; is the peer another program?")]
    TooLong(usize),
    /// The checksum does not hold.
    #[error("a frame's checksum is wrong; the bytes were damaged on the way")]
    Checksum,
    /// The frame's kind is not known.
    #[error("frame kind {0} is not known to this build")]
    Kind(u8),
    /// The body does not parse.
    #[error(transparent)]
    Body(#[from] CodecError),
    /// A text is too long or not UTF-8.
    #[error("{0} is longer than {TEXT_BYTES_MAX} bytes or not UTF-8")]
    Text(&'static str),
}

const HELLO: u8 = 1;
const HELLO_REPLY: u8 = 2;
const MESSAGES: u8 = 3;
const SNAPSHOT_HEAD: u8 = 4;
const SNAPSHOT_CHUNK: u8 = 5;
const SNAPSHOT_END: u8 = 6;
const SNAPSHOT_REPLY: u8 = 7;
const SNAPSHOT_FROM: u8 = 8;
/// A head that also says how reads are answered; where that is the default, the plain head is sent.
const SNAPSHOT_HEAD_READS: u8 = 9;
const CALL: u8 = 10;
const ANSWER: u8 = 11;
const NO_ANSWER: u8 = 12;

/// A frame's header, checked against the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the body that follows.
    pub len: usize,
    crc: u32,
    kind: u8,
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// If the body would be too long.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut bytes = &bytes[..];
        let len = bytes.get_u32_le() as usize;
        let header = Self {
            len,
            crc: bytes.get_u32_le(),
            kind: bytes.get_u8(),
        };
        if len > BODY_BYTES_MAX {
            Err(FrameError::TooLong(len))
        } else {
            Ok(header)
        }
    }

    /// Reads the body, which has `len` bytes.
    ///
    /// # Errors
    /// If it is damaged or not understood.
    pub fn decode_body(self, mut body: Bytes) -> Result<Frame, FrameError> {
        if body.len() != self.len || checksum(self.kind, &body) != self.crc {
            return Err(FrameError::Checksum);
        }
        let buf = &mut body;
        let frame = match self.kind {
            HELLO => Frame::Hello(decode_hello(buf)?),
            HELLO_REPLY => Frame::HelloReply(decode_reply(buf)?),
            MESSAGES => {
                let mut messages = Vec::new();
                while !buf.is_empty() {
                    decode_messages(buf, &mut messages)?;
                }
                Frame::Messages(messages)
            }
            SNAPSHOT_HEAD => Frame::SnapshotHead(SnapshotHead {
                group: GroupId(get_u64(buf, "group")?),
                term: Term(get_u64(buf, "term")?),
                meta: decode_meta(buf)?,
                transfer: get_u64(buf, "transfer")?,
            }),
            SNAPSHOT_FROM => Frame::SnapshotFrom(buf.split_to(buf.len())),
            SNAPSHOT_HEAD_READS => Frame::SnapshotHead(SnapshotHead {
                group: GroupId(get_u64(buf, "group")?),
                term: Term(get_u64(buf, "term")?),
                meta: decode_meta_reads(buf)?,
                transfer: get_u64(buf, "transfer")?,
            }),
            SNAPSHOT_CHUNK => Frame::SnapshotChunk(buf.split_to(buf.len())),
            SNAPSHOT_END => Frame::SnapshotEnd,
            SNAPSHOT_REPLY => Frame::SnapshotReply(get_text(buf, "reason")?),
            CALL => Frame::Call(decode_part(buf)?),
            ANSWER => Frame::Answer(decode_part(buf)?),
            NO_ANSWER => Frame::NoAnswer {
                id: get_u64(buf, "call")?,
                reason: get_text(buf, "reason")?,
            },
            kind => return Err(FrameError::Kind(kind)),
        };
        codec::finish(&body, "frame")?;
        Ok(frame)
    }
}

fn checksum(kind: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), body)
}

fn seal(kind: u8, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    seal_to(&mut out, kind, write);
    out.freeze()
}

/// Adds a frame whose body is what `write` adds.
fn seal_to(out: &mut BytesMut, kind: u8, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    let body = start + HEADER_BYTES;
    out.put_bytes(0, HEADER_BYTES);
    write(out);
    let len = out.len() - body;
    assert!(
        len <= BODY_BYTES_MAX,
        "invariant: frames are built under the limit, this one has {len} bytes"
    );
    let crc = checksum(kind, &out[body..]);
    let mut header = &mut out[start..body];
    header.put_u32_le(u32::try_from(len).expect("invariant: under BODY_BYTES_MAX"));
    header.put_u32_le(crc);
    header.put_u8(kind);
}

impl Frame {
    /// As bytes.
    ///
    /// # Panics
    /// If the body is over [`BODY_BYTES_MAX`]: use [`messages_to_frames`] for messages, and chunks and pieces under
    /// [`BODY_BYTES_TARGET`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode_to(&mut out);
        out.freeze()
    }

    /// Adds it to others that are written together.
    ///
    /// # Panics
    /// As `encode`.
    pub fn encode_to(&self, frames: &mut BytesMut) {
        let mut seal = |kind, write: &dyn Fn(&mut BytesMut)| seal_to(frames, kind, write);
        match self {
            Self::Hello(hello) => seal(HELLO, &|out| {
                out.put_u16_le(hello.version);
                out.put_u64_le(hello.cluster);
                out.put_u64_le(hello.from.0);
                out.put_u64_le(hello.to.0);
                out.put_u8(match hello.purpose {
                    Purpose::Messages => 0,
                    Purpose::Snapshot => 1,
                    Purpose::Calls => 2,
                });
                put_text(&hello.address, out);
            }),
            Self::HelloReply(reply) => seal(HELLO_REPLY, &|out| {
                let (tag, value) = match reply {
                    HelloReply::Accepted => (0, 0),
                    HelloReply::OtherCluster { cluster } => (1, *cluster),
                    HelloReply::WrongMember { member } => (2, member.0),
                    HelloReply::Version { newest } => (3, u64::from(*newest)),
                    HelloReply::Removed => (4, 0),
                };
                out.put_u8(tag);
                out.put_u64_le(value);
            }),
            Self::Messages(messages) => seal(MESSAGES, &|out| {
                let mut rest = &messages[..];
                while !rest.is_empty() {
                    let (piece, others) = rest.split_at(together(rest));
                    encode_piece(piece, out);
                    rest = others;
                }
            }),
            Self::SnapshotHead(head) => {
                let plain = head.meta.reads == ReadsState::default();
                seal(if plain { SNAPSHOT_HEAD } else { SNAPSHOT_HEAD_READS }, &|out| {
                    out.put_u64_le(head.group.0);
                    out.put_u64_le(head.term.0);
                    encode_meta(&head.meta, out);
                    out.put_u64_le(head.transfer);
                })
            }
            Self::SnapshotFrom(bytes) => seal(SNAPSHOT_FROM, &|out| out.put_slice(bytes)),
            Self::SnapshotChunk(bytes) => seal(SNAPSHOT_CHUNK, &|out| out.put_slice(bytes)),
            Self::SnapshotEnd => seal(SNAPSHOT_END, &|_| {}),
            Self::SnapshotReply(reason) => seal(SNAPSHOT_REPLY, &|out| put_text(reason, out)),
            Self::Call(piece) => seal(CALL, &|out| encode_part(piece, out)),
            Self::Answer(piece) => seal(ANSWER, &|out| encode_part(piece, out)),
            Self::NoAnswer { id, reason } => seal(NO_ANSWER, &|out| {
                out.put_u64_le(*id);
                put_text(reason, out);
            }),
        }
    }
}

/// Messages as few frames as the limits allow, in order. A message that is over the limit alone is left out and counted: Raft
/// takes loss well, and entry limits keep it from happening.
#[must_use]
pub fn messages_to_frames(messages: &[Message]) -> (Vec<Bytes>, usize) {
    let mut frames = Vec::new();
    let mut too_long = 0;
    let mut body = BytesMut::new();
    let mut close = |body: &mut BytesMut| {
        if !body.is_empty() {
            frames.push(seal(MESSAGES, |out| out.unsplit(body.split())));
        }
    };
    let mut rest = messages;
    while !rest.is_empty() {
        let start = body.len();
        let (piece, others) = rest.split_at(together(rest));
        rest = others;
        encode_piece(piece, &mut body);
        if body.len() - start > BODY_BYTES_MAX {
            body.truncate(start);
            too_long += 1;
        } else if body.len() > BODY_BYTES_MAX {
            let last = body.split_off(start);
            close(&mut body);
            body = last;
        }
        if body.len() >= BODY_BYTES_TARGET {
            close(&mut body);
        }
    }
    close(&mut body);
    (frames, too_long)
}

fn encode_part(piece: &Piece, out: &mut BytesMut) {
    out.reserve(piece.body.len() + 9);
    out.put_u64_le(piece.id);
    out.put_u8(u8::from(piece.last));
    out.put_slice(&piece.body);
}

fn decode_part(buf: &mut Bytes) -> Result<Piece, FrameError> {
    Ok(Piece {
        id: get_u64(buf, "call")?,
        last: get_bool(buf)?,
        body: buf.split_to(buf.len()),
    })
}

fn decode_hello(buf: &mut Bytes) -> Result<Hello, FrameError> {
    need(buf, "hello", 2)?;
    Ok(Hello {
        version: buf.get_u16_le(),
        cluster: get_u64(buf, "hello")?,
        from: MemberId(get_u64(buf, "hello")?),
        to: MemberId(get_u64(buf, "hello")?),
        purpose: match get_u8(buf, "hello")? {
            0 => Purpose::Messages,
            1 => Purpose::Snapshot,
            2 => Purpose::Calls,
            tag => return Err(CodecError::Tag { what: "purpose", tag }.into()),
        },
        address: get_text(buf, "address")?,
    })
}

fn decode_reply(buf: &mut Bytes) -> Result<HelloReply, FrameError> {
    let tag = get_u8(buf, "hello reply")?;
    let value = get_u64(buf, "hello reply")?;
    Ok(match tag {
        0 => HelloReply::Accepted,
        1 => HelloReply::OtherCluster { cluster: value },
        2 => HelloReply::WrongMember {
            member: MemberId(value),
        },
        3 => HelloReply::Version {
            newest: u16::try_from(value).unwrap_or(u16::MAX),
        },
        4 => HelloReply::Removed,
        tag => {
            return Err(CodecError::Tag {
                what: "hello reply",
                tag,
            }
            .into());
        }
    })
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
