//! What a member asks of another one on behalf of its clients, as bytes.
//!
//! ```text
//! ask   := Execute (1) : group u64 | command
//!          Read (2)    : group u64 | flags u8 | command (a read-only transaction)
//!          Stamp (3)   : group u64 | count u32
//!          Control (4) : JSON (`crate::control`)
//! reply := Answer (1)  : answer of the state machine (`althing_store::answer`)
//!          Failure (2) : kind u8
//!          Stamp (3)   : first revision i64
//!          Control (4) : JSON
//! ```
//!
//! Little-endian. Commands are as in the log.

use althing_api::keyspace::KeyspaceError;
use althing_raft::ids::GroupId;
use althing_store::CommandResult;
use althing_store::answer::{decode_answer, encode_answer};
use althing_store::codec::{CodecError, decode_command, encode_command};
use althing_store::ops::{Command, Revision, Txn};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// How a read is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadTerms {
    /// Any applied state will do.
    pub serializable: bool,
    /// After everything is settled that the sequencer had given to the shard before: in a keyspace of several shards. Only its leader
    /// knows.
    pub settled: bool,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Replicate and apply a command.
    Execute {
        /// In this group.
        group: GroupId,
        /// As it goes into the log.
        command: Bytes,
    },
    /// Read.
    Read {
        /// In this group.
        group: GroupId,
        /// How.
        terms: ReadTerms,
        /// What.
        txn: Txn,
    },
    /// Hand out revisions.
    Stamp {
        /// By this sequencer.
        group: GroupId,
        /// So many; 0: only say which was the last.
        count: u32,
    },
    /// Something about groups themselves.
    Control(Bytes),
}

/// What is said to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The state machine's answer.
    Answer(CommandResult),
    /// It came to nothing, or nobody knows.
    Failure(KeyspaceError),
    /// The first of the revisions; for a count of 0 the last one handed out.
    Stamp(Revision),
    /// Something about groups themselves.
    Control(Bytes),
}

/// Why bytes are no ask or reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AskError {
    /// They end early.
    #[error("an ask of {0} bytes ends early")]
    Short(usize),
    /// A tag that this build does not know.
    #[error("unknown tag {0} in an ask; it may come from a newer version")]
    Tag(u8),
    /// What it carries does not parse.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A read with something else than a transaction that reads.
    #[error("a read asks for something else than reading")]
    NoRead,
}

const SERIALIZABLE: u8 = 1;
const SETTLED: u8 = 2;

impl Ask {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Execute { group, command } => {
                out.put_u8(1);
                out.put_u64_le(group.0);
                out.put_slice(command);
            }
            Self::Read { group, terms, txn } => {
                out.put_u8(2);
                out.put_u64_le(group.0);
                let flag = |set: bool, bit| if set { bit } else { 0 };
                out.put_u8(flag(terms.serializable, SERIALIZABLE) | flag(terms.settled, SETTLED));
                encode_command(&Command::Txn(txn.clone()), &mut out);
            }
            Self::Stamp { group, count } => {
                out.put_u8(3);
                out.put_u64_le(group.0);
                out.put_u32_le(*count);
            }
            Self::Control(json) => {
                out.put_u8(4);
                out.put_slice(json);
            }
        }
        out.freeze()
    }

    /// From bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(mut bytes: Bytes) -> Result<Self, AskError> {
        let short = AskError::Short(bytes.len());
        match bytes.try_get_u8().map_err(|_| short.clone())? {
            1 => Ok(Self::Execute {
                group: GroupId(bytes.try_get_u64_le().map_err(|_| short)?),
                command: bytes,
            }),
            2 => {
                let group = GroupId(bytes.try_get_u64_le().map_err(|_| short.clone())?);
                let flags = bytes.try_get_u8().map_err(|_| short)?;
                let Command::Txn(txn) = decode_command(bytes)? else {
                    return Err(AskError::NoRead);
                };
                if !txn.read_only() {
                    return Err(AskError::NoRead);
                }
                let terms = ReadTerms {
                    serializable: flags & SERIALIZABLE != 0,
                    settled: flags & SETTLED != 0,
                };
                Ok(Self::Read { group, terms, txn })
            }
            3 => Ok(Self::Stamp {
                group: GroupId(bytes.try_get_u64_le().map_err(|_| short.clone())?),
                count: bytes.try_get_u32_le().map_err(|_| short)?,
            }),
            4 => Ok(Self::Control(bytes)),
            tag => Err(AskError::Tag(tag)),
        }
    }
}

/// Failures by number. An operation's own error travels inside an answer.
const FAILURES: [KeyspaceError; 9] = [
    KeyspaceError::NoLeader,
    KeyspaceError::LeaderChanged,
    KeyspaceError::Timeout,
    KeyspaceError::TooManyRequests,
    KeyspaceError::TooLarge,
    KeyspaceError::Stopped,
    KeyspaceError::Learner,
    KeyspaceError::NotLeader,
    KeyspaceError::BadTransferee,
];

impl Reply {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Answer(answer) => {
                out.put_u8(1);
                out.put_slice(&encode_answer(answer));
            }
            Self::Failure(failure) => {
                let number = FAILURES.iter().position(|known| known == failure);
                out.put_u8(2);
                // Nothing that is not listed is said by one member to another; were it, it would be as unknown as a timeout.
                out.put_u8(number.and_then(|at| u8::try_from(at).ok()).unwrap_or(2));
            }
            Self::Stamp(first) => {
                out.put_u8(3);
                out.put_i64_le(first.0);
            }
            Self::Control(json) => {
                out.put_u8(4);
                out.put_slice(json);
            }
        }
        out.freeze()
    }

    /// From bytes.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(mut bytes: Bytes) -> Result<Self, AskError> {
        let short = AskError::Short(bytes.len());
        match bytes.try_get_u8().map_err(|_| short.clone())? {
            1 => Ok(Self::Answer(decode_answer(bytes)?)),
            2 => {
                let number = bytes.try_get_u8().map_err(|_| short)?;
                let failure = FAILURES.get(usize::from(number)).ok_or(AskError::Tag(number))?;
                Ok(Self::Failure(failure.clone()))
            }
            3 => Ok(Self::Stamp(Revision(bytes.try_get_i64_le().map_err(|_| short)?))),
            4 => Ok(Self::Control(bytes)),
            tag => Err(AskError::Tag(tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use althing_store::ops::{KeyRange, Op, OpError, Put, Range};

    #[test]
    fn asks_come_back() {
        let range = Op::Range(Range::of(KeyRange::From(Bytes::from_static(b"k"))));
        let txn = Txn {
            success: vec![range],
            ..Txn::default()
        };
        let group = GroupId(7);
        let read = |serializable, settled| Ask::Read {
            group,
            terms: ReadTerms { serializable, settled },
            txn: txn.clone(),
        };
        for ask in [
            Ask::Execute {
                group,
                command: Bytes::from_static(b"\x01\x02\x03"),
            },
            read(false, false),
            read(true, false),
            read(false, true),
            Ask::Stamp { group, count: 3 },
            Ask::Control(Bytes::from_static(b"{}")),
        ] {
            assert_eq!(Ask::decode(ask.encode()), Ok(ask));
        }
    }

    #[test]
    fn a_read_that_would_write_is_refused() {
        let put = Op::Put(Put {
            key: Bytes::from_static(b"k"),
            value: None,
            lease: None,
            prev_kv: false,
        });
        let ask = Ask::Read {
            group: GroupId(1),
            terms: ReadTerms::default(),
            txn: Txn {
                failure: vec![put],
                ..Txn::default()
            },
        };
        assert_eq!(Ask::decode(ask.encode()), Err(AskError::NoRead));
    }

    #[test]
    fn replies_come_back_with_every_failure() {
        let refused = CommandResult {
            revision: Revision(3),
            result: Err(OpError::WrongShard),
        };
        let replies = [
            Reply::Answer(refused),
            Reply::Stamp(Revision(12)),
            Reply::Control(Bytes::from_static(b"[]")),
        ];
        for reply in replies.into_iter().chain(FAILURES.map(Reply::Failure)) {
            assert_eq!(Reply::decode(reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x09",
            b"\x03\x00\x00",
            b"\x02\x00\x00\x00\x00\x00\x00\x00\x00",
        ] {
            assert!(Ask::decode(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x09", b"\x03\x00\x00", b"\x02", b"\x02\x63", b"\x01\x02"] {
            assert!(Reply::decode(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }
}
