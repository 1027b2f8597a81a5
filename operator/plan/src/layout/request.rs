//! What a layout asks the meta group for, and whether it has it.

use althing_admin::{KeyspaceRequest, KeyspaceStatus, Partitioning, ReadMode, ReadsRequest, Revisions};
use althing_crds::{Partitioned, ReadResponders, ReadRevisions, Reads, ValidatedLayout};

/// Length of a lease when nobody names one, as `ReadsRequest` says.
const LEASE_MILLIS: u64 = 1000;

/// The keyspace as declared.
#[must_use]
pub fn request(desired: &ValidatedLayout) -> KeyspaceRequest {
    KeyspaceRequest {
        shards: desired.shards,
        replicas: desired.replicas,
        partitioning: Some(match &desired.partitioning {
            Partitioned::Range { split_keys } => Partitioning::Range {
                split_keys: split_keys.clone(),
            },
            Partitioned::Hash { slots, prefix_segments } => Partitioning::Hash {
                slots: *slots,
                prefix_segments: *prefix_segments,
            },
        }),
        port: desired.port,
        quota_bytes: desired.quota.map(|quota| quota.0),
        reads: desired.reads.as_ref().map(reads),
    }
}

fn reads(reads: &Reads) -> ReadsRequest {
    ReadsRequest {
        mode: match reads.mode {
            althing_crds::ReadMode::ReadIndex => ReadMode::ReadIndex,
            althing_crds::ReadMode::LeaderLease => ReadMode::LeaderLease,
            althing_crds::ReadMode::RosterLease => ReadMode::RosterLease,
        },
        // All that vote, which is what no ranges mean.
        ranges: match reads.responders {
            Some(ReadResponders::All) | None => None,
        },
        revisions: reads.revisions.map(|revisions| match revisions {
            ReadRevisions::Current => Revisions::Current,
            ReadRevisions::OfKeys => Revisions::OfKeys,
        }),
        lease_millis: reads.lease_millis.and_then(|millis| u64::try_from(millis).ok()),
    }
}

/// Why the keyspace that is there can never be what is asked for, if so.
pub(super) fn unchangeable(request: &KeyspaceRequest, present: &KeyspaceStatus) -> Option<String> {
    let describe = |partitioning: &Partitioning| match partitioning {
        Partitioning::Range { .. } => "by range".to_owned(),
        Partitioning::Hash {
            slots,
            prefix_segments: None,
        } => format!("by a hash of whole keys into {slots} slots"),
        Partitioning::Hash {
            slots,
            prefix_segments: Some(segments),
        } => format!("by a hash of {segments} segments into {slots} slots"),
    };
    let asked = request.partitioning.as_ref()?;
    let same = match (asked, &present.partitioning) {
        (Partitioning::Range { .. }, Partitioning::Range { .. }) => true,
        (Partitioning::Hash { .. }, Partitioning::Hash { .. }) => *asked == present.partitioning,
        (Partitioning::Range { .. }, Partitioning::Hash { .. })
        | (Partitioning::Hash { .. }, Partitioning::Range { .. }) => false,
    };
    (!same).then(|| {
        format!(
            "keyspace {} is partitioned {}, and spec.partitioning asks for one {}; this cannot change: write what it is, or make a ShardLayout with another keyspace",
            present.name,
            describe(&present.partitioning),
            describe(asked)
        )
    })
}

/// Whether they mean the same; a node may answer with what was left out filled in.
fn same_reads(asked: &ReadsRequest, present: Option<&ReadsRequest>) -> bool {
    let meant = |reads: &ReadsRequest| {
        (
            reads.mode,
            reads.ranges.clone(),
            reads.revisions.unwrap_or_default(),
            reads.lease_millis.unwrap_or(LEASE_MILLIS),
        )
    };
    present.is_some_and(|present| meant(asked) == meant(present))
}

/// What differs between the keyspace and what is asked for, as a reason.
pub(super) fn difference(request: &KeyspaceRequest, present: &KeyspaceStatus) -> Option<String> {
    let mut found = Vec::new();
    if request.shards != present.desired_shards {
        found.push(format!(
            "spec.shards is {}, not {}",
            request.shards, present.desired_shards
        ));
    }
    if request.replicas != present.replicas {
        let word =
            |replicas: Option<u32>| replicas.map_or_else(|| "every member".to_owned(), |number| number.to_string());
        found.push(format!(
            "spec.replicas is {}, not {}",
            word(request.replicas),
            word(present.replicas)
        ));
    }
    if request.port != present.port {
        found.push("spec.port has changed".to_owned());
    }
    if request.quota_bytes != present.quota_bytes {
        found.push("spec.quota has changed".to_owned());
    }
    if request
        .reads
        .as_ref()
        .is_some_and(|asked| !same_reads(asked, present.reads.as_ref()))
    {
        found.push("spec.reads has changed".to_owned());
    }
    if request
        .partitioning
        .as_ref()
        .is_some_and(|asked| *asked != present.partitioning)
    {
        found.push("spec.partitioning.range.splitKeys has changed".to_owned());
    }
    (!found.is_empty()).then(|| found.join(", "))
}
