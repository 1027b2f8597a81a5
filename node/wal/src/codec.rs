//! Entries as bytes: the same form in the log and in peer frames.
//!
//! Little-endian, no padding:
//!
//! ```text
//! entry   := kind u8 | term u64 | index u64 | payload
//! payload := Noop (0)    : nothing
//!            Command (1) : len u32 | bytes
//!            Config (2)  : request u64 | step u8 | of whom | len u32 | context
//!            Reads (3)   : request u64 | read specification (`althing_raft::spec_codec`)
//! of whom := AddLearner (0), Promote (1), Remove (2) : member u64
//!            EnterJoint (3)                          : voters | learners, each count u32 | member u64 ...
//!            LeaveJoint (4)                          : nothing
//! ```
//!
//! Kinds 4 and up, and steps 5 and up, are free for later versions; a decoder refuses what it does not know. The version itself
//! stands in the container: the segment header or the peers' handshake.
//! Decoding takes nothing on trust: every length is checked against the bytes that are there before anything is sliced,
//! and payloads are slices of the input, so a lying length cannot make it allocate.

use althing_raft::entry::{ConfigChange, ConfigStep, Entry, HardState, JointTarget, LeaseState, Payload, ReadsChange};
use althing_raft::ids::{Epoch, Index, LogPosition, MemberId, Term};
use althing_raft::roster::Ballot;
use althing_raft::spec_codec::{SpecCodecError, decode_spec, encode_spec, nanos, spec_len};
use bytes::{Buf, BufMut, Bytes};
use std::collections::BTreeSet;
use std::time::Duration;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes end inside a value.
    #[error("{what} needs {needed} bytes and {left} are left")]
    Short {
        /// What was being read.
        what: &'static str,
        /// Bytes that it takes.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// A tag that this version does not know.
    #[error("{what} has the unknown tag {tag}; it may come from a newer version")]
    Tag {
        /// What was being read.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A read specification does not parse.
    #[error(transparent)]
    Spec(#[from] SpecCodecError),
    /// Bytes are left over where a value should end.
    #[error("{left} bytes follow the end of {what}")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many.
        left: usize,
    },
}

const NOOP: u8 = 0;
const COMMAND: u8 = 1;
const CONFIG: u8 = 2;
const READS: u8 = 3;

const ADD_LEARNER: u8 = 0;
const PROMOTE: u8 = 1;
const REMOVE: u8 = 2;
const ENTER_JOINT: u8 = 3;
const LEAVE_JOINT: u8 = 4;

const MEMBER_BYTES: usize = 8;

fn need(buf: &Bytes, what: &'static str, needed: usize) -> Result<(), CodecError> {
    if buf.len() < needed {
        Err(CodecError::Short {
            what,
            needed,
            left: buf.len(),
        })
    } else {
        Ok(())
    }
}

fn get_bytes(buf: &mut Bytes, what: &'static str) -> Result<Bytes, CodecError> {
    need(buf, what, 4)?;
    let len = buf.get_u32_le() as usize;
    need(buf, what, len)?;
    Ok(buf.split_to(len))
}

fn get_member(buf: &mut Bytes) -> Result<MemberId, CodecError> {
    need(buf, "member of a configuration change", MEMBER_BYTES)?;
    Ok(MemberId(buf.get_u64_le()))
}

/// Reads what [`put_members`] wrote; the count is checked against what is there before anything is built.
///
/// # Errors
/// If the bytes end early.
pub fn get_members(buf: &mut Bytes, what: &'static str) -> Result<BTreeSet<MemberId>, CodecError> {
    need(buf, what, 4)?;
    let count = buf.get_u32_le() as usize;
    need(buf, what, count.saturating_mul(MEMBER_BYTES))?;
    Ok((0..count).map(|_| MemberId(buf.get_u64_le())).collect())
}

/// Appends a set of members: `count u32 | member u64 ...`.
pub fn put_members(members: &BTreeSet<MemberId>, out: &mut impl BufMut) {
    out.put_u32_le(u32::try_from(members.len()).expect("invariant: a group has a handful of members"));
    for member in members {
        out.put_u64_le(member.0);
    }
}

fn members_len(members: &BTreeSet<MemberId>) -> usize {
    4 + members.len() * MEMBER_BYTES
}

fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("invariant: payloads are far below 4 GiB (entry size limit)");
    out.put_u32_le(len);
    out.put_slice(bytes);
}

/// Bytes that [`encode_entry`] appends.
#[must_use]
pub fn entry_len(entry: &Entry) -> usize {
    17 + match &entry.payload {
        Payload::Noop => 0,
        Payload::Command(bytes) => 4 + bytes.len(),
        Payload::Config(change) => {
            let of_whom = match &change.step {
                ConfigStep::AddLearner(_) | ConfigStep::Promote(_) | ConfigStep::Remove(_) => MEMBER_BYTES,
                ConfigStep::EnterJoint(target) => members_len(&target.voters) + members_len(&target.learners),
                ConfigStep::LeaveJoint => 0,
            };
            13 + of_whom + change.context.len()
        }
        Payload::Reads(change) => 8 + spec_len(&change.spec),
    }
}

/// Appends the entry.
pub fn encode_entry(entry: &Entry, out: &mut impl BufMut) {
    let kind = match &entry.payload {
        Payload::Noop => NOOP,
        Payload::Command(_) => COMMAND,
        Payload::Config(_) => CONFIG,
        Payload::Reads(_) => READS,
    };
    out.put_u8(kind);
    encode_position(entry.position(), out);
    match &entry.payload {
        Payload::Noop => {}
        Payload::Command(bytes) => put_bytes(out, bytes),
        Payload::Config(change) => {
            out.put_u64_le(change.request);
            let mut single = |step, member: &MemberId| {
                out.put_u8(step);
                out.put_u64_le(member.0);
            };
            match &change.step {
                ConfigStep::AddLearner(member) => single(ADD_LEARNER, member),
                ConfigStep::Promote(member) => single(PROMOTE, member),
                ConfigStep::Remove(member) => single(REMOVE, member),
                ConfigStep::EnterJoint(target) => {
                    out.put_u8(ENTER_JOINT);
                    put_members(&target.voters, out);
                    put_members(&target.learners, out);
                }
                ConfigStep::LeaveJoint => out.put_u8(LEAVE_JOINT),
            }
            put_bytes(out, &change.context);
        }
        Payload::Reads(change) => {
            out.put_u64_le(change.request);
            encode_spec(&change.spec, out);
        }
    }
}

/// Takes one entry off the front of `buf`. Its payload shares `buf`'s memory.
///
/// # Errors
/// If the bytes end early or hold an unknown tag; `buf` is then left somewhere inside.
pub fn decode_entry(buf: &mut Bytes) -> Result<Entry, CodecError> {
    need(buf, "entry", 17)?;
    let kind = buf.get_u8();
    let LogPosition { term, index } = decode_position(buf)?;
    let payload = match kind {
        NOOP => Payload::Noop,
        COMMAND => Payload::Command(get_bytes(buf, "command")?),
        CONFIG => {
            need(buf, "configuration change", 9)?;
            let request = buf.get_u64_le();
            let step = match buf.get_u8() {
                ADD_LEARNER => ConfigStep::AddLearner(get_member(buf)?),
                PROMOTE => ConfigStep::Promote(get_member(buf)?),
                REMOVE => ConfigStep::Remove(get_member(buf)?),
                ENTER_JOINT => ConfigStep::EnterJoint(JointTarget {
                    voters: get_members(buf, "voters of a joint change")?,
                    learners: get_members(buf, "learners of a joint change")?,
                }),
                LEAVE_JOINT => ConfigStep::LeaveJoint,
                tag => {
                    return Err(CodecError::Tag {
                        what: "configuration step",
                        tag,
                    });
                }
            };
            Payload::Config(ConfigChange {
                request,
                step,
                context: get_bytes(buf, "configuration context")?,
            })
        }
        READS => {
            need(buf, "change of reads", 8)?;
            Payload::Reads(ReadsChange {
                request: buf.get_u64_le(),
                spec: decode_spec(buf)?,
            })
        }
        tag => return Err(CodecError::Tag { what: "entry", tag }),
    };
    Ok(Entry { term, index, payload })
}

/// Appends a position: `term u64 | index u64`.
pub fn encode_position(position: LogPosition, out: &mut impl BufMut) {
    out.put_u64_le(position.term.0);
    out.put_u64_le(position.index.0);
}

/// Takes a position off the front of `buf`.
///
/// # Errors
/// If fewer than 16 bytes are left.
pub fn decode_position(buf: &mut Bytes) -> Result<LogPosition, CodecError> {
    need(buf, "log position", 16)?;
    Ok(LogPosition {
        term: Term(buf.get_u64_le()),
        index: Index(buf.get_u64_le()),
    })
}

/// In a hard state's flags: somebody got the vote.
const VOTED: u8 = 1;
/// In a hard state's flags: it says something about leases. Absent in groups without, and in logs of earlier versions.
const LEASED: u8 = 2;

/// Appends a hard state: `term u64 | commit u64 | flags u8 | member u64 if voted | leases if any`, the leases as
/// `incarnation u64 | adopted term u64 | adopted epoch u64 | longest promise ns u64 | configuration index u64`.
pub fn encode_hard_state(state: &HardState, out: &mut impl BufMut) {
    out.put_u64_le(state.term.0);
    out.put_u64_le(state.commit.0);
    let leased = state.lease != LeaseState::default();
    out.put_u8(if state.vote.is_some() { VOTED } else { 0 } | if leased { LEASED } else { 0 });
    if let Some(member) = state.vote {
        out.put_u64_le(member.0);
    }
    if leased {
        out.put_u64_le(state.lease.incarnation);
        out.put_u64_le(state.lease.adopted.term.0);
        out.put_u64_le(state.lease.adopted.epoch.0);
        out.put_u64_le(nanos(state.lease.promise_max));
        out.put_u64_le(state.lease.config.0);
    }
}

/// Takes a hard state off the front of `buf`.
///
/// # Errors
/// If the bytes end early or an unknown flag is set.
pub fn decode_hard_state(buf: &mut Bytes) -> Result<HardState, CodecError> {
    need(buf, "hard state", 17)?;
    let term = Term(buf.get_u64_le());
    let commit = Index(buf.get_u64_le());
    let flags = buf.get_u8();
    if flags > (VOTED | LEASED) {
        return Err(CodecError::Tag {
            what: "hard state",
            tag: flags,
        });
    }
    let vote = if flags & VOTED == 0 {
        None
    } else {
        need(buf, "vote", 8)?;
        Some(MemberId(buf.get_u64_le()))
    };
    let lease = if flags & LEASED == 0 {
        LeaseState::default()
    } else {
        need(buf, "lease state", 40)?;
        LeaseState {
            incarnation: buf.get_u64_le(),
            adopted: Ballot {
                term: Term(buf.get_u64_le()),
                epoch: Epoch(buf.get_u64_le()),
            },
            promise_max: Duration::from_nanos(buf.get_u64_le()),
            config: Index(buf.get_u64_le()),
        }
    };
    Ok(HardState {
        term,
        vote,
        commit,
        lease,
    })
}

/// Checks that nothing follows.
///
/// # Errors
/// If something does.
pub fn finish(buf: &Bytes, what: &'static str) -> Result<(), CodecError> {
    if buf.is_empty() {
        Ok(())
    } else {
        Err(CodecError::Trailing { what, left: buf.len() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use althing_raft::roster::{ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Span};
    use proptest::prelude::*;

    pub(crate) fn arb_entry() -> impl Strategy<Value = Entry> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let member = || any::<u64>().prop_map(MemberId);
        let members = || proptest::collection::btree_set(member(), 0..5);
        let step = prop_oneof![
            member().prop_map(ConfigStep::AddLearner),
            member().prop_map(ConfigStep::Promote),
            member().prop_map(ConfigStep::Remove),
            (members(), members())
                .prop_map(|(voters, learners)| ConfigStep::EnterJoint(JointTarget { voters, learners })),
            Just(ConfigStep::LeaveJoint),
        ];
        let payload = prop_oneof![
            Just(Payload::Noop),
            bytes().prop_map(Payload::Command),
            (any::<u64>(), step, bytes()).prop_map(|(request, step, context)| Payload::Config(ConfigChange {
                request,
                step,
                context
            })),
            (any::<u64>(), any::<u64>(), bytes()).prop_map(|(request, lease, key)| Payload::Reads(ReadsChange {
                request,
                spec: ReadSpec {
                    mode: ReadMode::RosterLease,
                    responders: Responders::Ranges(vec![ResponderRange {
                        span: Span::Key(key),
                        members: [MemberId(request)].into(),
                    }]),
                    revisions: Revisions::OfKeys,
                    lease: Duration::from_nanos(lease),
                },
            })),
        ];
        (any::<u64>(), any::<u64>(), payload).prop_map(|(term, index, payload)| Entry {
            term: Term(term),
            index: Index(index),
            payload,
        })
    }

    proptest! {
        #[test]
        fn entries_come_back_as_they_went_in(entries in proptest::collection::vec(arb_entry(), 0..5)) {
            let mut out = Vec::new();
            for entry in &entries {
                let before = out.len();
                encode_entry(entry, &mut out);
                prop_assert_eq!(out.len() - before, entry_len(entry));
            }
            let mut buf = Bytes::from(out);
            for entry in &entries {
                prop_assert_eq!(&decode_entry(&mut buf).unwrap(), entry);
            }
            prop_assert!(finish(&buf, "entries").is_ok());
        }

        #[test]
        fn a_cut_entry_is_refused(entry in arb_entry(), cut in any::<proptest::sample::Index>()) {
            let mut out = Vec::new();
            encode_entry(&entry, &mut out);
            out.truncate(cut.index(out.len()));
            prop_assert!(decode_entry(&mut Bytes::from(out)).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_decode_to_more_than_they_hold(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0..5u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let len = bytes.len();
            let mut buf = Bytes::from(bytes);
            if let Ok(entry) = decode_entry(&mut buf) {
                prop_assert!(entry_len(&entry) <= len);
            }
        }

        #[test]
        fn hard_states_come_back(term in any::<u64>(), commit in any::<u64>(), vote in proptest::option::of(any::<u64>()), lease in proptest::option::of(any::<(u64, u64, u64)>())) {
            let lease = lease.map_or_else(LeaseState::default, |(incarnation, epoch, promise)| LeaseState {
                incarnation,
                adopted: Ballot { term: Term(term), epoch: Epoch(epoch) },
                promise_max: Duration::from_nanos(promise),
                config: Index(epoch),
            });
            let state = HardState { term: Term(term), vote: vote.map(MemberId), commit: Index(commit), lease };
            let mut out = Vec::new();
            encode_hard_state(&state, &mut out);
            let mut buf = Bytes::from(out);
            prop_assert_eq!(decode_hard_state(&mut buf).unwrap(), state);
            prop_assert!(buf.is_empty());
        }
    }

    #[test]
    fn what_was_written_before_joint_consensus_is_still_read() {
        // A promotion of member 7 with the context "ab", byte by byte as version 1 wrote it.
        let mut bytes = vec![CONFIG];
        for number in [3_u64, 4, 5] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(1);
        bytes.extend_from_slice(&7_u64.to_le_bytes());
        bytes.extend_from_slice(&[2, 0, 0, 0, b'a', b'b']);
        let change = ConfigChange {
            request: 5,
            step: ConfigStep::Promote(MemberId(7)),
            context: Bytes::from_static(b"ab"),
        };
        let entry = Entry {
            term: Term(3),
            index: Index(4),
            payload: Payload::Config(change),
        };
        assert_eq!(decode_entry(&mut Bytes::from(bytes.clone())).unwrap(), entry);
        let mut out = Vec::new();
        encode_entry(&entry, &mut out);
        assert_eq!(out, bytes, "and an earlier version reads what is written now");
    }

    #[test]
    fn a_joint_change_of_four_billion_members_is_refused_without_allocating() {
        let mut bytes = vec![CONFIG];
        bytes.extend_from_slice(&[0; 24]);
        bytes.push(ENTER_JOINT);
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decode_entry(&mut Bytes::from(bytes)),
            Err(CodecError::Short { left: 0, .. })
        ));
    }

    #[test]
    fn a_hard_state_without_leases_is_written_as_the_version_before_wrote_it() {
        let state = HardState {
            term: Term(3),
            vote: Some(MemberId(7)),
            commit: Index(2),
            lease: LeaseState::default(),
        };
        let before: Vec<u8> = [&3u64.to_le_bytes()[..], &2u64.to_le_bytes(), &[1], &7u64.to_le_bytes()].concat();
        let mut out = Vec::new();
        encode_hard_state(&state, &mut out);
        assert_eq!(out, before);
        assert_eq!(decode_hard_state(&mut Bytes::from(before)), Ok(state));
    }

    #[test]
    fn a_length_of_four_gigabytes_is_refused_without_allocating() {
        let mut bytes = vec![COMMAND];
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        let error = decode_entry(&mut Bytes::from(bytes)).unwrap_err();
        assert_eq!(
            error,
            CodecError::Short {
                what: "command",
                needed: u32::MAX as usize,
                left: 0
            }
        );
    }
}
