//! Keyspaces that hold more than they may.

use crate::conductor::Subject;
use crate::conductor::draft::Draft;
use crate::map::{KeyspaceId, KeyspaceRecord};

/// Of so many parts of its quota, a full keyspace must have one free before it takes writes again: some puts must fit in before it is
/// full once more, or it would be a fight of compaction against writers.
const PARTS_PER_FREE_ONE: u64 = 10;

impl Draft<'_> {
    /// Whether each keyspace is full, as far as its shards' leaders say. Members look at the map before they take a put, so what is written
    /// until they have it, some hundred milliseconds, comes on top.
    pub(super) fn tend_quotas(&mut self) {
        for (id, record) in &self.state.keyspaces {
            // A change that is under way anyway goes first: this would undo it.
            if !self.has_room() || self.changes_keyspace(*id) {
                continue;
            }
            let held = self.held_by(*id);
            let full = is_full(record, held);
            if full != record.full {
                let record = KeyspaceRecord { full, ..record.clone() };
                let name = &record.name;
                self.because(if full {
                    format!("keyspace {name} is full")
                } else {
                    format!("keyspace {name} has room again")
                });
                self.put_keyspace(*id, Some(record));
            }
            if let (true, Some(quota)) = (full, record.quota_bytes) {
                let held = held.map_or_else(|| "more than".to_owned(), |held| format!("{held} of"));
                self.wait(
                    Subject::Keyspace(*id),
                    format!(
                        "it holds {held} the {quota} bytes that it may take: puts are refused until deletions and a compaction have \
                         made room, or its quota is raised"
                    ),
                );
            }
        }
    }

    /// Bytes that a keyspace's shards hold; `None` while one has no leader that is seen.
    fn held_by(&self, keyspace: KeyspaceId) -> Option<u64> {
        let bytes = |group| self.view.leader(group).map(|leader| leader.seen.bytes);
        self.shards_of(keyspace).iter().map(|(group, _)| bytes(*group)).sum()
    }
}

fn is_full(record: &KeyspaceRecord, held: Option<u64>) -> bool {
    match (record.quota_bytes, held) {
        (None, _) => false,
        (Some(_), None) => record.full,
        (Some(quota), Some(held)) if record.full => held > quota - quota / PARTS_PER_FREE_ONE,
        (Some(quota), Some(held)) => held >= quota,
    }
}
