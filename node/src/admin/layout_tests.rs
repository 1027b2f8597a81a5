use super::*;
use althing_raft::ids::{LogPosition, Now};
use althing_raft::roster::{ReadMode, ReadSpec};
use althing_shard::conductor::{MemberView, PeerSeen};
use althing_shard::meta::KeyspaceSpec;
use althing_store::ops::Revision;
use althing_store::partition::Territory;

const A: MemberId = MemberId(0xa);
const B: MemberId = MemberId(0xb);

/// A cluster of two members with the default keyspace, and `orders` by hash.
fn map() -> MetaState {
    let mut state = MetaState::default();
    let record = |name: &str| MemberRecord {
        name: name.to_owned(),
        ..MemberRecord::default()
    };
    let members = BTreeMap::from([(A, record("c-0")), (B, record("c-1"))]);
    let change = state.genesis(&members).unwrap();
    state.apply(&change);
    let spec = KeyspaceSpec {
        shards: 4,
        replicas: Some(2),
        partitioning: Some(partition::Partitioning::Hash {
            slots: 1024,
            prefix_segments: Some(2),
        }),
        port: Some(2479),
        reads: Some(ReadSpec {
            mode: ReadMode::RosterLease,
            ..ReadSpec::default()
        }),
        ..KeyspaceSpec::default()
    };
    let change = state.put_keyspace("orders", &spec).unwrap();
    state.apply(&change);
    let change = state.set_member_state(B, map::MemberState::Draining).unwrap();
    state.apply(&change);
    state
}

fn seen(role: Role, term: u64, revision: i64) -> GroupSeen {
    let position = LogPosition {
        term: Term(term),
        index: Index(20),
    };
    GroupSeen {
        life: 1,
        role,
        leader: Some(A),
        term: Term(term),
        config: ConfigState {
            voters: BTreeSet::from([A, B]),
            ..ConfigState::default()
        },
        applied: position,
        last: position,
        durable: position,
        peers: BTreeMap::new(),
        hibernating: false,
        reads: ReadSpec::default(),
        territory: Territory::default(),
        source: partition::RevisionSource::Dense,
        revision: Revision(revision),
        sealed: None,
        transactions: 0,
        ceiling: None,
        bytes: 100,
        keys: 7,
        writes_per_second: 0,
        middle: None,
    }
}

fn observed(members: impl IntoIterator<Item = (MemberId, BTreeMap<GroupId, GroupSeen>)>) -> Observed {
    let view = |groups| MemberView {
        heard: Some(Now(1)),
        groups,
        ..MemberView::default()
    };
    Observed {
        members: members
            .into_iter()
            .map(|(member, groups)| (member, view(groups)))
            .collect(),
        ..Observed::default()
    }
}

#[test]
fn a_shard_is_as_its_leader_sees_it_and_members_hold_what_they_have_and_what_the_map_gives_them() {
    let state = map();
    let lagging = PeerSeen {
        matched: Index(15),
        active: true,
        snapshot: false,
    };
    let leader = GroupSeen {
        peers: BTreeMap::from([(B, lagging)]),
        ..seen(Role::Leader, 3, 9)
    };
    // The follower is behind; a group that the map does not know any more is still there.
    let follower = seen(Role::Follower, 3, 5);
    let meta = || (GroupId::META, seen(Role::Follower, 1, 1));
    let at_a = BTreeMap::from([meta(), (GroupId::FIRST_SHARD, leader)]);
    let at_b = BTreeMap::from([
        meta(),
        (GroupId::FIRST_SHARD, follower),
        (GroupId(77), seen(Role::Learner, 1, 1)),
    ]);
    let observed = observed([(A, at_a), (B, at_b)]);
    let view = View {
        state: &state,
        sight: Sight::of_conductor(&observed),
        pending: vec![],
        wall_seconds: 0,
        names: state.keyspaces.values().map(|record| record.name.clone()).collect(),
    };
    let layout = view.layout();
    assert_eq!(layout.version, 3);
    let [a, b] = layout.members.as_slice() else {
        panic!("{:?}", layout.members)
    };
    assert_eq!(
        (a.name.as_str(), a.state, a.replicas, a.leaders, a.bytes),
        ("c-0", MemberState::Active, 1, 1, 100)
    );
    assert_eq!(
        (b.name.as_str(), b.state, b.replicas, b.leaders, b.bytes),
        ("c-1", MemberState::Draining, 1, 0, 200),
        "what only the member itself still counts does not keep it"
    );
    let [default, orders] = layout.keyspaces.as_slice() else {
        panic!("{:?}", layout.keyspaces)
    };
    assert_eq!(
        (default.name.as_str(), default.state, default.current_shards),
        ("default", KeyspaceState::Active, 1)
    );
    let shard = &default.shards[0];
    assert_eq!((shard.start.as_str(), shard.end.as_str(), shard.epoch), ("", "", 0));
    assert_eq!(shard.leader.as_deref(), Some("000000000000000a"));
    assert_eq!(
        (shard.keys, shard.bytes, shard.revision, shard.lag),
        (7, 100, 9, Some(5))
    );
    assert_eq!(shard.voters, ["000000000000000a", "000000000000000b"]);

    assert_eq!(
        (orders.state, orders.desired_shards, orders.current_shards),
        (KeyspaceState::Creating, 4, 0)
    );
    assert_eq!((orders.port, orders.replicas), (Some(2479), Some(2)));
    assert_eq!(
        orders.partitioning,
        Partitioning::Hash {
            slots: 1024,
            prefix_segments: Some(2)
        }
    );
    assert_eq!(
        orders.reads.as_ref().map(|reads| reads.mode),
        Some(althing_admin::ReadMode::RosterLease)
    );
}

#[test]
fn what_waits_is_told_of_its_own_keyspace_and_not_without_end() {
    let state = map();
    let (orders, _) = state.keyspace("orders").unwrap();
    let pending = |subject, reason: &str| Pending {
        subject,
        reason: reason.to_owned(),
    };
    let mut all = vec![
        pending(Subject::Shard(GroupId::FIRST_SHARD), "waits for its leader"),
        pending(Subject::Member(A), "is silent"),
    ];
    all.extend((0..7).map(|number| pending(Subject::Keyspace(orders), &format!("reason {number}"))));
    let view = View {
        state: &state,
        sight: Sight::default(),
        pending: all,
        wall_seconds: 0,
        names: state.keyspaces.values().map(|record| record.name.clone()).collect(),
    };
    let messages: Vec<_> = view.keyspaces().into_iter().map(|keyspace| keyspace.message).collect();
    assert_eq!(
        messages,
        [
            "waits for its leader",
            "reason 0; reason 1; reason 2; reason 3; reason 4; and 2 more"
        ]
    );
}

#[test]
fn a_group_is_for_what_the_map_says() {
    let state = map();
    assert_eq!(kind(&state, GroupId::META), (Some(ShardKind::Meta), None));
    let first = (Some(ShardKind::Data), Some("default".to_owned()));
    assert_eq!(kind(&state, GroupId::FIRST_SHARD), first);
    assert_eq!(kind(&state, GroupId(77)), (None, None));
}
