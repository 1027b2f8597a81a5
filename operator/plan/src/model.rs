//! The planner's words: what is desired, what is observed, what to do, and why.
//!
//! The same model serves Kubernetes (pods, volume claims) and a laptop (processes, folders): an executor
//! observes, asks the planner, carries out the steps, and observes again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use althing_crds::{Retention, ValidatedCluster};

/// A member's place in the cluster: `<cluster>-<ordinal>`. The ordinal is reused when a volume is lost,
/// the member id never is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ordinal(pub u32);

impl Ordinal {
    /// The member's name in its cluster.
    #[must_use]
    pub fn member(self, cluster: &str) -> String {
        althing_crds::names::member(cluster, self.0)
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A member id as the nodes report it: sixteen hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub String);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the spec asks for, validated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Desired {
    /// The cluster's name; members are `<name>-<ordinal>`.
    pub name: String,
    /// How many members.
    pub members: u32,
    /// Nothing but status is touched.
    pub paused: bool,
    /// The cluster is being deleted.
    pub deleting: bool,
    /// Hash of everything in a member's workload that only a restart can change.
    pub workload_hash: String,
    /// Version for people, in reasons of restarts.
    pub version: String,
    /// A member that is removed by scaling down leaves its volume behind.
    pub keep_volumes: bool,
}

impl Desired {
    /// What a validated spec asks for. The hash is the executor's: it alone knows what a workload is made of.
    #[must_use]
    pub fn new(cluster: &ValidatedCluster, workload_hash: String) -> Self {
        Self {
            name: cluster.name.clone(),
            members: cluster.members.get(),
            paused: cluster.paused,
            deleting: cluster.deleting,
            workload_hash,
            version: cluster.version.clone(),
            keep_volumes: match cluster.volumes.when_scaled {
                Retention::Retain => true,
                Retention::Delete => false,
            },
        }
    }
}

/// What the executor saw, all at once, before planning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// The cluster id recorded in status before the first bootstrap call, sixteen hex digits.
    pub cluster_id: Option<String>,
    /// Whether status says that the bootstrap was seen to succeed. Once true, never bootstrap again.
    pub bootstrapped: bool,
    /// Every ordinal of which a workload or a volume exists.
    pub slots: BTreeMap<Ordinal, Slot>,
    /// Volumes that are older than this declaration of the cluster: they may hold a cluster already, and nothing is
    /// bootstrapped before their members have said.
    pub retained: BTreeSet<Ordinal>,
    /// The consensus state as its leader tells it, if a leader answered.
    pub consensus: Option<Consensus>,
    /// Every Raft group that a member told of, the members' own among them, by number.
    pub groups: BTreeMap<u64, Group>,
    /// What the members hold, as the leader tells it; none if nobody leads, or if members of this version have one group only.
    pub places: Option<BTreeMap<MemberId, Place>>,
}

/// A Raft group, put together from what its replicas say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// What it is, for people: "shard 7 of keyspace orders".
    pub name: String,
    /// The replica that leads it, if one that hears a quorum answered.
    pub leader: Option<MemberId>,
    /// Voters, as the leader says, or else the replica with the newest configuration.
    pub voters: BTreeSet<MemberId>,
    /// Voters that answer: their leader, or, without one, whoever looked.
    pub active: BTreeSet<MemberId>,
    /// Active voters that lack next to nothing, the leader among them. Empty without a leader.
    pub caught_up: BTreeSet<MemberId>,
}

/// A member as a place for replicas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Replicas that it holds, or that the map still places on it; the members' own group is not counted.
    pub replicas: u32,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Where it is, as the map says.
    pub labels: BTreeMap<String, String>,
}

/// One ordinal's workload and volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The volume.
    pub volume: Volume,
    /// The pod or process.
    pub workload: Workload,
    /// Its `Desired::workload_hash` when it was started.
    pub workload_hash: Option<String>,
    /// What the node answered on `/v1/status`, if it did.
    pub report: Option<Report>,
    /// The machine that it runs on, for people.
    pub host: Option<String>,
    /// Where it runs, for placement: `zone`, `node`; empty if nobody can tell.
    pub labels: BTreeMap<String, String>,
}

/// State of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Volume {
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// It is being deleted.
    Terminating,
    /// It exists as an object, but its data is gone for good (its node or backing volume was deleted).
    Lost {
        /// What was seen.
        reason: String,
    },
}

/// State of a pod or process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Workload {
    /// There is none.
    Absent,
    /// It cannot start yet: unschedulable, image pull, ...
    Pending {
        /// The platform's reason, in one word (`Unschedulable`, `ErrImagePull`, ...).
        reason: String,
        /// The platform's sentence.
        message: String,
    },
    /// It runs; whether it is ready is the report's to say.
    Running,
    /// It crashes again and again, or is being restarted; the platform does that by itself.
    Failed {
        /// The platform's reason, in one word.
        reason: String,
        /// The platform's sentence.
        message: String,
    },
    /// It ended and nobody restarts it (an evicted pod): the planner clears it away and starts it anew.
    Ended {
        /// The platform's reason, in one word.
        reason: String,
        /// The platform's sentence.
        message: String,
    },
    /// It is being stopped.
    Terminating,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its member id.
    pub member_id: MemberId,
    /// Its cluster, if it has one.
    pub cluster_id: Option<String>,
    /// Whether it serves linearizable requests.
    pub ready: bool,
    /// Why not.
    pub not_ready_reason: String,
    /// Addresses to hand to the leader in `AddLearner`.
    pub peer_address: String,
    /// Client URLs, likewise.
    pub client_urls: Vec<String>,
    /// Version of the running program.
    pub version: String,
}

/// The configuration as the leader applied it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consensus {
    /// The Raft group whose configuration are the members.
    pub group: u64,
    /// The leader.
    pub leader: MemberId,
    /// Guard of the next change.
    pub config_index: u64,
    /// Voters.
    pub voters: BTreeSet<MemberId>,
    /// Learners.
    pub learners: BTreeSet<MemberId>,
    /// Names (`<cluster>-<ordinal>`) of voters and learners.
    pub names: BTreeMap<MemberId, String>,
    /// Members that answered the leader within an election timeout (the leader itself included).
    pub active: BTreeSet<MemberId>,
    /// Members whose log is close enough to the leader's: learners among them may be promoted, and a restarted voter
    /// counts as back (the leader itself included).
    pub caught_up: BTreeSet<MemberId>,
    /// Entries that each member lacks.
    pub lag: BTreeMap<MemberId, u64>,
}

/// One thing to do. Steps are safe to repeat: each names what it expects to find.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Write a fresh cluster id into status, before anything acts on it.
    RecordClusterId,
    /// Create an ordinal's volume.
    CreateVolume(Ordinal),
    /// Create an ordinal's workload; its volume exists.
    StartMember(Ordinal),
    /// Stop an ordinal's workload.
    StopMember(Ordinal),
    /// Delete an ordinal's volume; its member is in no configuration.
    DeleteVolume(Ordinal),
    /// Make this empty member the first of the cluster.
    Bootstrap {
        /// Which.
        ordinal: Ordinal,
        /// The recorded id.
        cluster_id: String,
    },
    /// Write into status that the cluster exists.
    RecordBootstrapped,
    /// Write into status the id of a cluster that was found alive in retained volumes, and that it exists.
    AdoptCluster {
        /// The id that its members say.
        cluster_id: String,
    },
    /// Ask the leader to add a learner.
    AddLearner {
        /// Which.
        ordinal: Ordinal,
        /// Its id.
        member: MemberId,
        /// The configuration that was seen.
        expected_config_index: u64,
    },
    /// Ask the leader to give a learner its vote.
    Promote {
        /// Which.
        member: MemberId,
        /// The configuration that was seen.
        expected_config_index: u64,
    },
    /// Ask the leader to hand over leadership.
    TransferLeader {
        /// The present leader.
        from: MemberId,
        /// Its successor.
        to: MemberId,
    },
    /// Ask the leader to have a member emptied of replicas.
    Drain {
        /// Which.
        member: MemberId,
    },
    /// Ask the leader to let a member take replicas again.
    Undrain {
        /// Which.
        member: MemberId,
    },
    /// Ask the leader to remove a member.
    RemoveMember {
        /// Which.
        member: MemberId,
        /// The configuration that was seen.
        expected_config_index: u64,
    },
}

/// A step and why it is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    /// What.
    pub step: Step,
    /// Why, as a sentence's end: "orders-2 has lost its volume".
    pub reason: String,
}

/// Something that the plan cannot do now.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wait {
    /// The object that is waited for: a member's name, or the cluster's.
    pub subject: String,
    /// One word for programs: `VolumeTerminating`, `LearnerBehind`, `WouldLoseQuorum` ...
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// What to do now. The executor carries out the steps in order, stops at the first that fails, and observes again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Steps that are safe together. At most one changes the consensus configuration.
    pub steps: Vec<Planned>,
    /// What passes by itself.
    pub waits: Vec<Wait>,
    /// What does not pass by itself: a person must change the spec or the world.
    pub blocked: Vec<Wait>,
    /// Everything is as declared: no steps, waits or blocks.
    pub done: bool,
}
