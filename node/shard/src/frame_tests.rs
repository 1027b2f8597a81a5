use super::*;
use crate::message_frame::{APPEND, FORWARD, SNAPSHOT, encode_message};
use althing_raft::entry::{ConfigChange, ConfigState, ConfigStep, Entry, Payload};
use althing_raft::ids::{Epoch, Index, LogPosition, Now};
use althing_raft::message::Body;
use althing_raft::roster::{Ballot, ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Roster, Span};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use std::time::Duration;

fn read(bytes: &Bytes) -> Result<Frame, FrameError> {
    let header: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
    Header::decode(header)?.decode_body(bytes.slice(HEADER_BYTES..))
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn position() -> impl Strategy<Value = LogPosition> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, index)| LogPosition {
        term: Term(term),
        index: Index(index),
    })
}

fn meta() -> impl Strategy<Value = SnapshotMeta> {
    let members = || btree_set(any::<u64>().prop_map(MemberId), 0..5);
    let lists = (members(), members(), members());
    (position(), lists, any::<u64>(), reads()).prop_map(|(position, (voters, outgoing, learners), index, reads)| {
        SnapshotMeta {
            position,
            config: ConfigState {
                voters,
                outgoing,
                learners,
                index: Index(index),
            },
            reads,
        }
    })
}

fn ranges() -> impl Strategy<Value = Vec<ResponderRange>> {
    let span = prop_oneof![
        bytes().prop_map(Span::Key),
        (bytes(), proptest::option::of(bytes())).prop_map(|(start, end)| Span::Range { start, end }),
    ];
    let range = (span, btree_set(any::<u64>().prop_map(MemberId), 0..4))
        .prop_map(|(span, members)| ResponderRange { span, members });
    vec(range, 0..3)
}

fn reads() -> impl Strategy<Value = ReadsState> {
    let wished = (ranges(), any::<u64>(), 1..u64::MAX).prop_map(|(ranges, lease, index)| ReadsState {
        spec: ReadSpec {
            mode: ReadMode::RosterLease,
            responders: Responders::Ranges(ranges),
            revisions: Revisions::OfKeys,
            lease: Duration::from_nanos(lease),
        },
        index: Index(index),
    });
    prop_oneof![Just(ReadsState::default()), wished]
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, epoch)| Ballot {
        term: Term(term),
        epoch: Epoch(epoch),
    })
}

fn lease_body() -> impl Strategy<Value = Body> {
    let roster = (ballot(), any::<(u64, u64, u64, u64)>(), ranges()).prop_map(
        |(ballot, (leader, config, lease, safe), ranges)| Body::Roster {
            roster: Roster {
                ballot,
                leader: MemberId(leader),
                config: Index(config),
                lease: Duration::from_nanos(lease),
                ranges,
                revisions: if leader % 2 == 0 {
                    Revisions::Current
                } else {
                    Revisions::OfKeys
                },
                safe: Index(safe),
            },
        },
    );
    let named = (0..4u8, ballot(), any::<(u64, u64, u64)>()).prop_map(|(kind, ballot, (sent, asker, incarnation))| {
        let sent = Now(sent);
        match kind {
            0 => Body::LeaseRequest {
                ballot,
                sent,
                incarnation,
            },
            1 => Body::LeaseGrant {
                ballot,
                sent,
                asker,
                incarnation,
            },
            2 => Body::Revoke {
                below: ballot,
                incarnation,
            },
            _ => Body::Revoked {
                below: ballot,
                incarnation,
            },
        }
    });
    prop_oneof![roster, named]
}

fn entry() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        Just(Payload::Noop),
        bytes().prop_map(Payload::Command),
        (any::<u64>(), any::<u64>(), bytes()).prop_map(|(request, member, context)| Payload::Config(ConfigChange {
            request,
            step: ConfigStep::Promote(MemberId(member)),
            context,
        })),
    ];
    (any::<u64>(), any::<u64>(), payload).prop_map(|(term, index, payload)| Entry {
        term: Term(term),
        index: Index(index),
        payload,
    })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        position().prop_map(|last| Body::PreVote { last }),
        any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
        position().prop_map(|position| Body::Committed { position }),
        (position(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
        (position(), vec(entry(), 0..6), any::<u64>()).prop_map(|(prev, entries, commit)| Body::Append {
            prev,
            entries,
            commit: Index(commit)
        }),
        any::<(u64, Option<u64>)>().prop_map(|(last, stamp)| Body::AppendAccepted {
            last: Index(last),
            stamp: stamp.map(Epoch),
        }),
        lease_body(),
        (any::<u64>(), position()).prop_map(|(rejected, hint)| Body::AppendRejected {
            rejected: Index(rejected),
            hint
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(commit, round)| Body::Heartbeat {
            commit: Index(commit),
            round
        }),
        any::<(u64, Option<u64>)>().prop_map(|(round, stamp)| Body::HeartbeatReply {
            round,
            stamp: stamp.map(Epoch),
        }),
        meta().prop_map(|meta| Body::Snapshot { meta }),
        Just(Body::TimeoutNow),
        beat(),
        any::<u64>().prop_map(|boot| Body::Alive { boot }),
        any::<u64>().prop_map(|request| Body::ReadIndex { request }),
        (any::<u64>(), any::<Option<u64>>()).prop_map(|(request, index)| Body::ReadIndexReply {
            request,
            index: index.map(Index)
        }),
        vec(bytes(), 0..6).prop_map(|commands| Body::Forward { commands }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), body()).prop_map(|(group, from, to, term, body)| Message {
        group: GroupId(group),
        from: MemberId(from),
        to: MemberId(to),
        term: Term(term),
        body,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (
        any::<u16>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        "[a-z.:0-9é]{0,40}",
        prop::sample::select(vec![Purpose::Messages, Purpose::Snapshot, Purpose::Calls]),
    )
        .prop_map(|(version, cluster, from, to, address, purpose)| Hello {
            version,
            cluster,
            from: MemberId(from),
            to: MemberId(to),
            address,
            purpose,
        });
    let reply = prop_oneof![
        Just(HelloReply::Accepted),
        any::<u64>().prop_map(|cluster| HelloReply::OtherCluster { cluster }),
        any::<u64>().prop_map(|member| HelloReply::WrongMember {
            member: MemberId(member)
        }),
        any::<u16>().prop_map(|newest| HelloReply::Version { newest }),
        Just(HelloReply::Removed),
    ];
    let piece =
        || any::<(u64, bool)>().prop_flat_map(|(id, last)| bytes().prop_map(move |body| Piece { id, last, body }));
    prop_oneof![
        piece().prop_map(Frame::Call),
        piece().prop_map(Frame::Answer),
        (any::<u64>(), "[a-z é]{0,60}").prop_map(|(id, reason)| Frame::NoAnswer { id, reason }),
        hello.prop_map(Frame::Hello),
        reply.prop_map(Frame::HelloReply),
        vec(message(), 0..5).prop_map(Frame::Messages),
        (any::<u64>(), any::<u64>(), meta(), any::<u64>()).prop_map(|(group, term, meta, transfer)| {
            Frame::SnapshotHead(SnapshotHead {
                group: GroupId(group),
                term: Term(term),
                meta,
                transfer,
            })
        }),
        bytes().prop_map(Frame::SnapshotFrom),
        bytes().prop_map(Frame::SnapshotChunk),
        Just(Frame::SnapshotEnd),
        "[a-z é]{0,60}".prop_map(Frame::SnapshotReply),
    ]
}

proptest! {
    #[test]
    fn every_frame_comes_back(frame in frame()) {
        prop_assert_eq!(read(&frame.encode()), Ok(frame));
    }

    #[test]
    fn frames_that_are_written_together_are_those_written_alone(frames in vec(frame(), 0..5)) {
        let mut together = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode_to(&mut together));
        let alone: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        prop_assert_eq!(together.to_vec(), alone);
    }

    #[test]
    fn arbitrary_bodies_with_a_right_checksum_never_panic(kind in 0..16u8, body in vec(any::<u8>(), 0..300)) {
        let header = Header { len: body.len(), crc: checksum(kind, &body), kind };
        let _ = header.decode_body(body.into());
    }

    #[test]
    fn damaged_frames_never_panic_and_are_refused(frame in frame(), at: prop::sample::Index, flip in 1..=255u8) {
        let mut bytes = frame.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(read(&bytes.into()).is_err());
    }

    /// Behind a checksum that holds, bodies that begin as real ones do: lengths and counts are where the decoder expects them.
    #[test]
    fn forged_changes_of_real_frames_never_panic_and_hold_no_more_than_they_are(
        frame in frame(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), keep: prop::sample::Index, kind in 0..16u8, same_kind: bool,
    ) {
        let whole = frame.encode();
        let mut body = whole[HEADER_BYTES..].to_vec();
        if !body.is_empty() {
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            body.truncate(keep.index(body.len()) + 1);
        }
        let kind = if same_kind { whole[HEADER_BYTES - 1] } else { kind };
        let header = Header { len: body.len(), crc: checksum(kind, &body), kind };
        let len = body.len();
        if let Ok(frame) = header.decode_body(body.into()) {
            prop_assert!(frame.encode().len() <= HEADER_BYTES + len);
        }
    }

    #[test]
    fn cut_messages_never_panic(message in message(), keep: prop::sample::Index) {
        let mut out = BytesMut::new();
        encode_message(&message, &mut out);
        let mut cut = out.freeze();
        cut.truncate(keep.index(cut.len()));
        prop_assert!(decode_messages(&mut cut, &mut Vec::new()).is_err());
    }

    #[test]
    fn heartbeats_of_many_groups_say_once_who_speaks(groups in vec((any::<u64>(), beat()), 2..50)) {
        let beats: Vec<Message> = groups
            .into_iter()
            .map(|(group, body)| {
                let (group, term) = (GroupId(group), Term(group % 5));
                Message { group, from: MemberId(1), to: MemberId(2), term, body }
            })
            .collect();
        let (frames, lost) = messages_to_frames(&beats);
        prop_assert_eq!((frames.len(), lost), (1, 0));
        // Head and count, then group, term, tag and at most two numbers each.
        prop_assert!(frames[0].len() <= HEADER_BYTES + 37 + beats.len() * 33);
        prop_assert_eq!(read(&frames[0]), Ok(Frame::Messages(beats)));
    }
}

/// What a group says at every beat.
fn beat() -> impl Strategy<Value = Body> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(commit, round)| Body::Heartbeat {
            commit: Index(commit),
            round
        }),
        any::<(u64, Option<u64>)>().prop_map(|(round, stamp)| Body::HeartbeatReply {
            round,
            stamp: stamp.map(Epoch)
        }),
        any::<(u64, u64)>().prop_map(|(commit, spell)| Body::Hibernate {
            commit: Index(commit),
            spell
        }),
        any::<u64>().prop_map(|spell| Body::Hibernating { spell }),
    ]
}

#[test]
fn only_heartbeats_stand_in_a_piece_of_heartbeats() {
    let mut body = BytesMut::new();
    for number in [0_u64, 1, 2, 0] {
        body.put_u64_le(number);
    }
    body.put_u8(28);
    body.put_u32_le(1);
    body.put_u64_le(7);
    body.put_u64_le(3);
    // A `TimeoutNow` would not hurt; but a piece that holds what it must not is not what it says it is.
    body.put_u8(11);
    let error = decode_messages(&mut body.freeze(), &mut Vec::new());
    let (what, tag) = ("heartbeats", 11);
    assert_eq!(error, Err(CodecError::Tag { what, tag }.into()));
}

#[test]
fn a_snapshot_of_a_plain_configuration_is_announced_as_before_joint_consensus() {
    // Byte by byte: group, term, position, index, voters, learners, transfer.
    let mut body = BytesMut::new();
    for number in [1_u64, 2, 3, 4, 5] {
        body.put_u64_le(number);
    }
    body.put_u32_le(2);
    body.put_u64_le(7);
    body.put_u64_le(8);
    body.put_u32_le(1);
    body.put_u64_le(9);
    body.put_u64_le(6);
    let frame = Frame::SnapshotHead(SnapshotHead {
        group: GroupId(1),
        term: Term(2),
        meta: SnapshotMeta {
            position: LogPosition {
                term: Term(3),
                index: Index(4),
            },
            config: ConfigState {
                voters: [MemberId(7), MemberId(8)].into(),
                learners: [MemberId(9)].into(),
                index: Index(5),
                ..ConfigState::default()
            },
            reads: ReadsState::default(),
        },
        transfer: 6,
    });
    let bytes = seal(SNAPSHOT_HEAD, |out| out.put_slice(&body));
    assert_eq!(read(&bytes), Ok(frame.clone()));
    assert_eq!(
        frame.encode(),
        bytes,
        "and an earlier version reads what is written now"
    );
}

fn forward(bytes: usize) -> Message {
    Message {
        group: GroupId(1),
        from: MemberId(1),
        to: MemberId(2),
        term: Term(3),
        body: Body::Forward {
            commands: vec![Bytes::from(vec![7; bytes])],
        },
    }
}

#[test]
fn messages_of_a_turn_share_frames_and_big_ones_do_not_pile_up() {
    let small: Vec<_> = (0..100).map(|_| forward(10)).collect();
    let (frames, too_long) = messages_to_frames(&small);
    assert_eq!((frames.len(), too_long), (1, 0));
    assert_eq!(read(&frames[0]), Ok(Frame::Messages(small)));

    let big: Vec<_> = (0..5).map(|_| forward(BODY_BYTES_MAX / 2)).collect();
    let (frames, too_long) = messages_to_frames(&big);
    assert_eq!((frames.len(), too_long), (5, 0));

    let huge = [forward(1), forward(BODY_BYTES_MAX + 1), forward(2)];
    let (frames, too_long) = messages_to_frames(&huge);
    assert_eq!(too_long, 1);
    assert_eq!(read(&frames[0]), Ok(Frame::Messages(vec![forward(1), forward(2)])));
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_reserved() {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Header::decode(header), Err(FrameError::TooLong(u32::MAX as usize)));
}

#[test]
fn counts_of_four_billion_are_refused_without_reserving_anything() {
    for tag in [APPEND, SNAPSHOT, FORWARD] {
        let mut body = BytesMut::new();
        (0..4).for_each(|field| body.put_u64_le(field));
        body.put_u8(tag);
        // What stands before the first count.
        let before = match tag {
            APPEND | SNAPSHOT => 24,
            _ => 0,
        };
        body.put_bytes(0, before);
        body.put_u32_le(u32::MAX);
        let body = body.freeze();
        let header = Header {
            len: body.len(),
            crc: checksum(MESSAGES, &body),
            kind: MESSAGES,
        };
        let error = header.decode_body(body).unwrap_err();
        assert!(
            matches!(error, FrameError::Body(CodecError::Short { left: 0, .. })),
            "{error}"
        );
    }
}
