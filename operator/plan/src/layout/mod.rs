//! One `ShardLayout`: what the meta group is asked for, and how its keyspace is.
//!
//! Contract: [`plan`] is a pure function from what is declared and what the meta group's leader says to steps that are safe
//! to repeat. It says what a keyspace shall be; how shards are cut, moved and placed is the meta group's to decide, and
//! [`assess()`] mirrors how far that is. Of several layouts that claim one keyspace or port, [`claims`] says who has it.

mod assess;
pub mod claims;
mod request;
mod story;

use althing_admin::{KeyspaceRequest, KeyspaceState, KeyspaceStatus, LayoutStatus};
use althing_crds::names::DEFAULT_KEYSPACE;
use althing_crds::{DeletionPolicy, ValidatedLayout};

pub use assess::{LayoutAssessment, assess};
pub use request::request;
pub use story::{Told, story};

use claims::Claim;

/// What was seen, all at once, before planning.
#[derive(Clone, PartialEq, Debug)]
pub struct LayoutObserved {
    /// The cluster; none if there is no such RaftCluster.
    pub cluster: Option<ClusterSeen>,
    /// Every layout of this cluster, this one among them.
    pub claims: Vec<Claim>,
    /// Whether the layout's deletion waits for the operator.
    pub finalizer: bool,
    /// What the meta group's leader says.
    pub layout: Seen,
}

/// What of a cluster matters to its layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterSeen {
    /// It exists.
    pub bootstrapped: bool,
    /// Nothing but status is touched.
    pub paused: bool,
    /// It is being deleted, and everything with it.
    pub deleting: bool,
}

/// What the meta group's leader says.
#[derive(Clone, PartialEq, Debug)]
pub enum Seen {
    /// Its layout.
    Layout(LayoutStatus),
    /// No member leads, or the leader does not answer.
    NoLeader,
    /// The members are of a version without layouts.
    NotServed,
}

/// One thing to do. Every step is safe to repeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LayoutStep {
    /// Have the layout's deletion wait for the keyspace's.
    AddFinalizer,
    /// Let the layout go.
    RemoveFinalizer,
    /// Ask the meta group's leader for the keyspace as declared.
    Put(KeyspaceRequest),
    /// Ask the meta group's leader to end the keyspace.
    Drop,
}

impl LayoutStep {
    /// One word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::RemoveFinalizer => "RemoveFinalizer",
            Self::Put(_) => "PutKeyspace",
            Self::Drop => "DropKeyspace",
        }
    }
}

/// Something that keeps the layout from being as declared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Only a person can help.
    pub stuck: bool,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LayoutPlan {
    /// Steps with their reasons.
    pub steps: Vec<(LayoutStep, String)>,
    /// What nothing can be done about now.
    pub obstacle: Option<Obstacle>,
}

impl LayoutPlan {
    fn step(step: LayoutStep, reason: impl Into<String>) -> Self {
        Self {
            steps: vec![(step, reason.into())],
            obstacle: None,
        }
    }

    fn obstacle(reason: &'static str, message: String, stuck: bool) -> Self {
        Self {
            steps: Vec::new(),
            obstacle: Some(Obstacle { reason, message, stuck }),
        }
    }
}

/// The keyspace that a layout is about, if there is one.
fn keyspace<'a>(desired: &ValidatedLayout, layout: &'a LayoutStatus) -> Option<&'a KeyspaceStatus> {
    layout
        .keyspaces
        .iter()
        .find(|keyspace| keyspace.name == desired.keyspace)
}

/// Decides what to do now.
#[must_use]
pub fn plan(desired: &ValidatedLayout, observed: &LayoutObserved) -> LayoutPlan {
    if desired.deleting {
        return ending(desired, observed);
    }
    let Some(cluster) = observed.cluster else {
        let cluster = &desired.cluster;
        return LayoutPlan::obstacle(
            "ClusterNotFound",
            format!(
                "there is no RaftCluster {cluster} in this namespace; create it, or make a layout that names another"
            ),
            true,
        );
    };
    if let Some(taken) = claims::taken(&desired.name, &observed.claims) {
        return LayoutPlan {
            steps: Vec::new(),
            obstacle: Some(taken),
        };
    }
    if cluster.deleting {
        return LayoutPlan::obstacle(
            "ClusterDeleting",
            format!(
                "RaftCluster {} is being deleted, and its keyspaces with it",
                desired.cluster
            ),
            false,
        );
    }
    if cluster.paused {
        return LayoutPlan::obstacle(
            "Paused",
            format!(
                "spec.paused of RaftCluster {} is true: nothing is changed until it is false",
                desired.cluster
            ),
            false,
        );
    }
    match (desired.deletion_policy, observed.finalizer) {
        (DeletionPolicy::Delete, false) => {
            return LayoutPlan::step(
                LayoutStep::AddFinalizer,
                "spec.deletionPolicy is Delete, so the layout has to outlive its keyspace",
            );
        }
        (DeletionPolicy::Retain, true) => {
            return LayoutPlan::step(
                LayoutStep::RemoveFinalizer,
                "spec.deletionPolicy is Retain, so the layout may go at any time",
            );
        }
        (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => {}
    }
    match &observed.layout {
        // The map is written a moment after the meta group is born, and a keyspace asked for before that would be the first.
        Seen::Layout(layout) if !layout.keyspaces.iter().any(|one| one.name == DEFAULT_KEYSPACE) => {
            LayoutPlan::obstacle(
                "NotBootstrapped",
                format!(
                    "RaftCluster {} is being born: its shard map is not written yet",
                    desired.cluster
                ),
                false,
            )
        }
        Seen::Layout(layout) => wanted(desired, keyspace(desired, layout)),
        Seen::NoLeader if cluster.bootstrapped => no_leader(desired),
        Seen::NoLeader => LayoutPlan::obstacle(
            "NotBootstrapped",
            format!("RaftCluster {} does not exist yet: see its conditions", desired.cluster),
            false,
        ),
        Seen::NotServed => LayoutPlan::obstacle(
            "NotSupported",
            format!(
                "the members of RaftCluster {} are of a version without keyspaces and shards; raise its spec.version",
                desired.cluster
            ),
            true,
        ),
    }
}

fn no_leader(desired: &ValidatedLayout) -> LayoutPlan {
    LayoutPlan::obstacle(
        "NoLeader",
        format!(
            "no member of RaftCluster {} leads its meta group: see its conditions",
            desired.cluster
        ),
        false,
    )
}

fn wanted(desired: &ValidatedLayout, present: Option<&KeyspaceStatus>) -> LayoutPlan {
    let request = request(desired);
    let name = &desired.keyspace;
    let Some(present) = present else {
        return LayoutPlan::step(LayoutStep::Put(request), format!("there is no keyspace {name} yet"));
    };
    match present.state {
        KeyspaceState::Dropping => {
            return LayoutPlan::obstacle(
                "Dropping",
                format!("keyspace {name} is being dropped; it is made anew when it is gone"),
                false,
            );
        }
        KeyspaceState::Creating | KeyspaceState::Active => {}
    }
    if let Some(why) = request::unchangeable(&request, present) {
        return LayoutPlan::obstacle("PartitioningDiffers", why, true);
    }
    match request::difference(&request, present) {
        Some(difference) => LayoutPlan::step(LayoutStep::Put(request), difference),
        None => LayoutPlan::default(),
    }
}

/// The layout is being deleted: the keyspace goes first, if it shall.
fn ending(desired: &ValidatedLayout, observed: &LayoutObserved) -> LayoutPlan {
    if !observed.finalizer {
        return LayoutPlan::default();
    }
    let released = |why: &str| LayoutPlan::step(LayoutStep::RemoveFinalizer, why);
    match desired.deletion_policy {
        DeletionPolicy::Retain => return released("the keyspace stays"),
        DeletionPolicy::Delete => {}
    }
    if claims::taken(&desired.name, &observed.claims).is_some() {
        return released("the keyspace is another layout's");
    }
    match observed.cluster {
        None => return released("the cluster is gone, and the keyspace with it"),
        Some(cluster) if cluster.deleting => return released("the cluster goes, and the keyspace with it"),
        Some(cluster) if !cluster.bootstrapped => {
            return released("the cluster never existed, so nor did the keyspace");
        }
        Some(_) => {}
    }
    match &observed.layout {
        Seen::Layout(layout) => match keyspace(desired, layout).map(|keyspace| keyspace.state) {
            None => released("the keyspace is gone"),
            Some(KeyspaceState::Dropping) => LayoutPlan::obstacle(
                "Dropping",
                format!("keyspace {} is being dropped", desired.keyspace),
                false,
            ),
            Some(KeyspaceState::Creating | KeyspaceState::Active) => LayoutPlan::step(
                LayoutStep::Drop,
                "the layout is being deleted and spec.deletionPolicy is Delete",
            ),
        },
        Seen::NoLeader => no_leader(desired),
        Seen::NotServed => released("the members know of no keyspaces"),
    }
}
