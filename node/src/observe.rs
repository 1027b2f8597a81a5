//! How the groups of this node are, for whoever conducts.

use crate::control::{GroupForm, ViewForm};
use crate::lifecycle::Lifecycle;
use crate::sequencers;
use crate::shared::Shared;
use althing_raft::ids::{GroupId, Index};
use althing_raft::io::Role;
use althing_shard::conductor::{GroupSeen, PeerSeen};
use althing_shard::host::GroupView;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Shortest time over which writes are counted: less would show bursts as load.
const RATE_WINDOW: Duration = Duration::from_millis(900);
/// A shard's middle is looked for again when its bytes have changed by one part in so many: it costs a walk.
const MIDDLE_PART: u64 = 8;
/// Bytes of a shard below which its middle is looked for at every change: the walk is short.
const MIDDLE_SMALL_BYTES: u64 = 64 << 10;

/// Looks at groups.
pub struct Observer {
    shared: Arc<Shared>,
    lifecycle: Arc<Lifecycle>,
    /// What is remembered of each group between two looks.
    tracked: Mutex<BTreeMap<GroupId, Tracked>>,
}

struct Tracked {
    /// When writes were last counted, up to which entry, and what came of it.
    counted: (Instant, Index, u64),
    /// The bytes that the shard had when its middle was looked for, and what it was.
    middle: Option<(u64, Option<Bytes>)>,
}

impl Observer {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, lifecycle: Arc<Lifecycle>) -> Self {
        Self {
            shared,
            lifecycle,
            tracked: Mutex::default(),
        }
    }

    /// All groups, in full where the asker does not know them as they are.
    pub async fn view(&self, known: &BTreeMap<u64, u64>) -> ViewForm {
        let mut view = ViewForm {
            name: self.shared.config.name.clone(),
            labels: self.shared.config.labels.clone(),
            ..ViewForm::default()
        };
        let views = self.shared.views().await;
        let mut tracked = self.tracked.lock().await;
        tracked.retain(|group, _| self.shared.groups.get(*group).is_some());
        for (group, seen) in views {
            let Some(seen) = self.look(group, seen, &mut tracked) else {
                continue;
            };
            let form = GroupForm::new(group, &seen);
            let mut hasher = DefaultHasher::new();
            form.hash(&mut hasher);
            let number = hasher.finish();
            view.groups.insert(group.0, number);
            if known.get(&group.0) != Some(&number) {
                view.changed.push(form);
            }
        }
        view
    }

    fn look(&self, group: GroupId, view: GroupView, tracked: &mut BTreeMap<GroupId, Tracked>) -> Option<GroupSeen> {
        let store = self.shared.groups.get(group)?;
        let meta = store.applied();
        let now = self.shared.clock.instant();
        let applied = meta.position.index;
        let tracked = tracked.entry(group).or_insert_with(|| Tracked {
            counted: (now, applied, 0),
            middle: None,
        });
        let (since, from, _) = tracked.counted;
        let took = now.duration_since(since);
        if took >= RATE_WINDOW {
            let entries = applied.0.saturating_sub(from.0);
            let rate = entries * 1_000 / u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
            tracked.counted = (now, applied, rate);
        }
        let size = store.rows_size();
        let soft = &view.raft.soft;
        let leads = soft.role == Role::Leader;
        if leads && group != GroupId::META {
            let stale = match &tracked.middle {
                None => true,
                Some((bytes, _)) if *bytes == size.in_use => false,
                Some((bytes, _)) => {
                    size.in_use < MIDDLE_SMALL_BYTES || bytes.abs_diff(size.in_use) >= bytes / MIDDLE_PART
                }
            };
            if stale {
                let middle = tokio::task::block_in_place(|| store.middle_key());
                tracked.middle = Some((size.in_use, middle));
            }
        }
        let middle = tracked
            .middle
            .as_ref()
            .filter(|_| leads)
            .and_then(|(_, middle)| middle.clone());
        let peers = view.raft.progress.iter().map(|peer| {
            let seen = PeerSeen {
                matched: peer.matched,
                active: peer.recent_active,
                snapshot: peer.snapshot,
            };
            (peer.member, seen)
        });
        Some(GroupSeen {
            life: self.lifecycle.life(group),
            role: soft.role,
            leader: soft.leader,
            term: soft.term,
            config: meta.config,
            applied: meta.position,
            last: view.raft.last,
            durable: self.shared.durable(group),
            peers: peers.collect(),
            hibernating: view.raft.hibernates,
            reads: view.raft.lease.reads.spec.clone(),
            territory: store.territory(),
            source: store.source(),
            revision: store.current_revision(),
            sealed: store.sealed(),
            transactions: store.transactions(),
            ceiling: sequencers::ceiling(&store),
            bytes: size.in_use,
            keys: size.keys,
            writes_per_second: tracked.counted.2,
            middle,
        })
    }
}
