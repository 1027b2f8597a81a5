//! Keyspaces, their shards, and what is being done to them: the part of the contract that is about the whole cluster.
//! Every member answers from what it has applied of the meta group; only the meta group's leader changes anything, and the
//! others answer `NotLeader` with its id.
//!
//! Every field that a later version adds is optional here, so that answers of older nodes still parse.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ReadsRequest;
use crate::text::write_key;

/// The most shards that a keyspace can be asked to have: a group costs memory on each of its replicas, and the map has to
/// fit one message.
pub const MAX_SHARDS: u32 = 1024;

/// The whole layout, as of `version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayoutStatus {
    /// Version of the map: it rises with every change.
    pub version: u64,
    /// The members, and what each holds.
    pub members: Vec<LayoutMember>,
    /// The keyspaces, by name.
    pub keyspaces: Vec<KeyspaceStatus>,
    /// What is being done, oldest first.
    pub operations: Vec<OperationStatus>,
}

/// A member as a place for replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayoutMember {
    /// Member id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Where it is, such as `zone` and `node`: replicas of one shard are spread over these.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it takes new replicas.
    pub state: MemberState,
    /// Replicas of shards and sequencers that it holds, or that the map still places on it; the meta group's own replica
    /// is not counted. A draining member with 0 can be removed.
    pub replicas: u32,
    /// Of these, how many it leads.
    pub leaders: u32,
    /// Bytes of these replicas' states.
    #[serde(default)]
    pub bytes: u64,
}

/// Whether a member takes replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemberState {
    /// It does.
    Active,
    /// It is being emptied: what it holds moves to the others.
    Draining,
}

/// Asks for a member's labels; they replace those that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelsRequest {
    /// Where it is, such as `zone` and `node`.
    pub labels: BTreeMap<String, String>,
}

/// The keyspaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceList {
    /// They, by name.
    pub keyspaces: Vec<KeyspaceStatus>,
}

/// Asks for a keyspace: makes it, or changes it to be so. Repeating it changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceRequest {
    /// How many shards, 1 to [`MAX_SHARDS`].
    pub shards: u32,
    /// Replicas of each shard; absent: every member holds one. More than there are members means every member, until there
    /// are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// How keys are assigned to shards; absent: by range, without wishes for where they begin. Its kind, the slots and the
    /// prefix segments cannot change (`Conflict`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitioning: Option<Partitioning>,
    /// A port of its own on every member, where clients see this keyspace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The most bytes that its shards hold together; writes beyond it are refused as etcd does when out of space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How linearizable reads are answered by every shard; absent: left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadsRequest>,
}

/// How keys are assigned to shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Partitioning {
    /// By ranges of the key.
    Range {
        /// Where ranges shall begin, ascending, as [`crate::text`] writes keys; the first range begins at the empty key.
        /// Where there are fewer than shards, the rest is cut by size and load.
        #[serde(default)]
        split_keys: Vec<String>,
    },
    /// By a hash of the key's prefix.
    Hash {
        /// How many slots.
        slots: u32,
        /// How many `/`-separated segments of the key are hashed; absent: the whole key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefix_segments: Option<u8>,
    },
}

impl Partitioning {
    /// Writes the bound of a shard, a partition key: for [`ShardInfo::start`] and [`ShardInfo::end`].
    #[must_use]
    pub fn write_bound(&self, partition_key: &[u8]) -> String {
        match (self, <[u8; 4]>::try_from(partition_key)) {
            (Self::Hash { .. }, Ok(slot)) => u32::from_be_bytes(slot).to_string(),
            // The empty key, where a keyspace begins and ends.
            (Self::Hash { .. }, Err(_)) | (Self::Range { .. }, _) => write_key(partition_key),
        }
    }
}

/// A keyspace and its shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyspaceStatus {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Whether it serves.
    pub state: KeyspaceState,
    /// Where its revisions come from.
    pub source: RevisionSource,
    /// How many shards it shall have.
    pub desired_shards: u32,
    /// How many it has.
    pub current_shards: u32,
    /// Replicas of each shard; absent: every member holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Its port on every member, if it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How keys are assigned to shards.
    pub partitioning: Partitioning,
    /// The most bytes that its shards hold together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How reads were asked to be answered; absent: nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<ReadsRequest>,
    /// Its shards, in order of their ranges.
    pub shards: Vec<ShardInfo>,
    /// What keeps it from being as asked for, for a person; empty if nothing does.
    #[serde(default)]
    pub message: String,
}

/// Whether a keyspace serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum KeyspaceState {
    /// Its first shard is being made.
    Creating,
    /// It serves.
    Active,
    /// It is going away, with its data.
    Dropping,
}

/// Where a keyspace's revisions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum RevisionSource {
    /// Its one shard counts them: without holes, as etcd's.
    Dense,
    /// A sequencer hands them out to its shards: rising, with holes in each shard.
    Sequenced,
}

/// A shard of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardInfo {
    /// Group id.
    pub id: u64,
    /// Where it begins: a key as [`crate::text`] writes it, empty for the beginning; of a hash keyspace a slot's number.
    pub start: String,
    /// Where the next one begins; empty: it reaches to the end.
    pub end: String,
    /// How often its range has changed.
    pub epoch: u64,
    /// Its leader's member id, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Member ids of where its replicas shall be.
    pub replicas: Vec<String>,
    /// Member ids of those that vote.
    pub voters: Vec<String>,
    /// Member ids of those that learn.
    pub learners: Vec<String>,
    /// Keys that it holds.
    #[serde(default)]
    pub keys: u64,
    /// Bytes of its state.
    #[serde(default)]
    pub bytes: u64,
    /// Its newest revision.
    #[serde(default)]
    pub revision: i64,
    /// Log entries that its slowest voter lacks, as its leader sees it; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Whether it sleeps for want of work.
    #[serde(default)]
    pub hibernating: bool,
    /// The operation that is about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<u64>,
}

/// Something that is being done to the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// Name of the keyspace that it is about.
    pub keyspace: String,
    /// The shards that it is about: those that there were first, then those that it makes.
    pub shards: Vec<u64>,
    /// How far it is, in a word.
    pub phase: String,
    /// Why it is done, for a person.
    pub reason: String,
    /// Seconds since it began, as far as the meta group's leader knows.
    #[serde(default)]
    pub since_seconds: u64,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum OperationKind {
    /// Makes two shards of one.
    Split,
    /// Makes one shard of two neighbours.
    Merge,
    /// Changes which members hold a shard.
    Move,
    /// Makes a keyspace.
    Create,
    /// Has a keyspace take its revisions from a sequencer.
    Sequence,
    /// Ends a keyspace.
    Drop,
}

impl OperationKind {
    /// The word for tables and events.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Split => "Split",
            Self::Merge => "Merge",
            Self::Move => "Move",
            Self::Create => "Create",
            Self::Sequence => "Sequence",
            Self::Drop => "Drop",
        }
    }
}

/// What a Raft group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ShardKind {
    /// It holds the map of all others.
    Meta,
    /// It hands out revisions.
    Sequencer,
    /// It holds keys of a keyspace.
    Data,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReadMode, ShardStatus};
    use serde_json::json;

    #[test]
    fn a_request_is_as_the_contract_writes_it() {
        let request = KeyspaceRequest {
            shards: 4,
            replicas: Some(3),
            partitioning: Some(Partitioning::Hash {
                slots: 16384,
                prefix_segments: Some(2),
            }),
            port: Some(2479),
            quota_bytes: Some(1 << 30),
            reads: Some(ReadsRequest {
                mode: ReadMode::RosterLease,
                ranges: None,
                revisions: None,
                lease_millis: None,
            }),
        };
        let json = json!({
            "shards": 4, "replicas": 3, "partitioning": {"hash": {"slots": 16384, "prefixSegments": 2}},
            "port": 2479, "quotaBytes": 1_073_741_824, "reads": {"mode": "RosterLease"}
        });
        assert_eq!(serde_json::to_value(&request).expect("JSON"), json);
        assert_eq!(
            serde_json::from_value::<KeyspaceRequest>(json).expect("it parses"),
            request
        );
        let range: Partitioning = serde_json::from_value(json!({"range": {"splitKeys": ["/m"]}})).expect("it parses");
        assert_eq!(
            range,
            Partitioning::Range {
                split_keys: vec!["/m".into()]
            }
        );
    }

    #[test]
    fn bounds_are_keys_or_slots() {
        let hash = Partitioning::Hash {
            slots: 16384,
            prefix_segments: None,
        };
        assert_eq!(hash.write_bound(&4096_u32.to_be_bytes()), "4096");
        assert_eq!(hash.write_bound(b""), "");
        let range = Partitioning::Range { split_keys: vec![] };
        assert_eq!(range.write_bound(b"/m\0\0"), "/m\\x00\\x00");
    }

    #[test]
    fn an_answer_without_the_optional_fields_parses() {
        let layout: LayoutStatus = serde_json::from_value(json!({
            "version": 3,
            "members": [{"id": "0000000000000001", "name": "a-0", "state": "Active", "replicas": 1, "leaders": 1}],
            "keyspaces": [{
                "id": 1, "name": "default", "state": "Active", "source": "Dense", "desiredShards": 1, "currentShards": 1,
                "partitioning": {"range": {}},
                "shards": [{"id": 1, "start": "", "end": "", "epoch": 0, "replicas": [], "voters": [], "learners": []}]
            }],
            "operations": [{"id": 1, "kind": "Split", "keyspace": "default", "shards": [1, 2], "phase": "Cut", "reason": "r"}]
        }))
        .expect("it parses");
        assert_eq!(layout.keyspaces[0].shards[0].lag, None);
        assert_eq!(layout.operations[0].kind.word(), "Split");
    }

    #[test]
    fn a_shard_of_an_older_node_parses() {
        let shard: ShardStatus = serde_json::from_value(json!({
            "id": 1, "role": "Leader", "leader": null, "term": 1, "commitIndex": 1, "appliedIndex": 1, "lastIndex": 1,
            "revision": 1, "configIndex": 1, "voters": [], "learners": [], "progress": []
        }))
        .expect("it parses");
        assert_eq!((shard.kind, shard.keyspace, shard.bytes), (None, None, None));
    }
}
