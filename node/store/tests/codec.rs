//! Commands and metadata as bytes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "common/arb.rs"]
mod arb;
mod common;

use althing_raft::entry::{ConfigState, SnapshotMeta};
use althing_raft::ids::{Index, LogPosition, MemberId, Term};
use althing_store::codec::{
    CodecError, TXN_DEPTH_MAX, decode_command, decode_snapshot_meta, encode_command, encode_snapshot_meta,
};
use althing_store::ops::{Command, Op, Txn};
use bytes::Bytes;
use common::*;
use proptest::prelude::*;

fn encode(command: &Command) -> Bytes {
    let mut out = Vec::new();
    encode_command(command, &mut out);
    out.into()
}

fn nested(depth: usize) -> Command {
    let txn = (1..depth).fold(
        Txn {
            success: vec![put_op("a", "1")],
            ..Txn::default()
        },
        |txn, _| Txn {
            success: vec![Op::Txn(txn)],
            ..Txn::default()
        },
    );
    Command::Txn(txn)
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![arb::command(), arb::shard_command().prop_map(Command::Shard)]
}

proptest! {
    #[test]
    fn commands_come_back_as_they_went_in(command in command()) {
        prop_assert_eq!(decode_command(encode(&command)).unwrap(), command);
    }

    #[test]
    fn a_cut_or_lengthened_command_is_refused(command in command(), cut in any::<proptest::sample::Index>()) {
        let bytes = encode(&command);
        prop_assert!(decode_command(bytes.slice(..cut.index(bytes.len()))).is_err());
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_eq!(decode_command(longer.into()), Err(CodecError::Trailing { what: "command", left: 1 }));
    }

    #[test]
    fn arbitrary_and_damaged_bytes_never_panic(
        command in command(), noise in proptest::collection::vec(any::<u8>(), 0..60), at in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = encode(&command).to_vec();
        let at = at.index(bytes.len());
        for (byte, noise) in bytes[at..].iter_mut().zip(&noise) {
            *byte ^= noise;
        }
        let _ = decode_command(bytes.into());
        let _ = decode_command(Bytes::from([&[1], &noise[..]].concat()));
        let _ = decode_snapshot_meta(&mut Bytes::from(noise));
    }

    #[test]
    fn snapshot_metadata_comes_back(
        position in any::<(u64, u64)>(), index in any::<u64>(),
        voters in proptest::collection::btree_set(any::<u64>(), 0..8), learners in proptest::collection::btree_set(any::<u64>(), 0..8),
        outgoing in proptest::collection::btree_set(any::<u64>(), 0..3),
    ) {
        let members = |ids: std::collections::BTreeSet<u64>| ids.into_iter().map(MemberId).collect();
        let config = ConfigState { voters: members(voters), outgoing: members(outgoing), learners: members(learners), index: Index(index) };
        let meta = SnapshotMeta { position: LogPosition { term: Term(position.0), index: Index(position.1) }, config, ..SnapshotMeta::default() };
        let mut out = Vec::new();
        encode_snapshot_meta(&meta, &mut out);
        out.push(9);
        let mut buf = Bytes::from(out);
        prop_assert_eq!(decode_snapshot_meta(&mut buf).unwrap(), meta);
        prop_assert_eq!(&buf[..], [9]);
    }
}

#[test]
fn metadata_written_before_joint_consensus_is_still_read() {
    // Byte by byte as version 1 wrote it.
    let mut bytes = Vec::new();
    for number in [1_u64, 2, 3] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for members in [&[7_u64, 8][..], &[9]] {
        bytes.extend_from_slice(&u32::try_from(members.len()).unwrap().to_le_bytes());
        members
            .iter()
            .for_each(|member| bytes.extend_from_slice(&member.to_le_bytes()));
    }
    let meta = SnapshotMeta {
        position: LogPosition {
            term: Term(1),
            index: Index(2),
        },
        config: ConfigState {
            voters: [MemberId(7), MemberId(8)].into(),
            learners: [MemberId(9)].into(),
            index: Index(3),
            ..ConfigState::default()
        },
        ..SnapshotMeta::default()
    };
    assert_eq!(decode_snapshot_meta(&mut Bytes::from(bytes.clone())).unwrap(), meta);
    let mut out = Vec::new();
    encode_snapshot_meta(&meta, &mut out);
    assert_eq!(out, bytes, "and an earlier version reads what is written now");
}

#[test]
fn nesting_deeper_than_the_limit_is_refused() {
    let deepest = nested(TXN_DEPTH_MAX);
    assert_eq!(decode_command(encode(&deepest)), Ok(deepest));
    assert_eq!(
        decode_command(encode(&nested(TXN_DEPTH_MAX + 1))),
        Err(CodecError::TooDeep)
    );
}

#[test]
fn a_value_is_a_slice_of_the_input() {
    let bytes = encode(&Command::Put(put("key", "value")));
    let Command::Put(decoded) = decode_command(bytes.clone()).unwrap() else {
        panic!("not a put")
    };
    let value = decoded.value.unwrap();
    assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
}

#[test]
fn another_version_is_refused_by_name() {
    let error = decode_command(Bytes::from_static(&[2, 0])).unwrap_err();
    assert_eq!(
        error,
        CodecError::Tag {
            what: "command version",
            tag: 2
        }
    );
}

#[test]
fn the_format_of_a_put_does_not_change_by_accident() {
    let hex: String = encode(&Command::Put(put("k", "v")))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    expect_test::expect!["0100010000006b01010000007601000000000000000000"].assert_eq(&hex);
}
