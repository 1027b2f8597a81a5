//! What a volume holds: the log, and the state of every group that this node has a replica of.

use crate::config::Config;
use crate::node::NodeError;
use crate::recover::judge;
use crate::shared::Store;
use crate::space::Ballast;
use althing_raft::entry::HardState;
use althing_raft::ids::GroupId;
use althing_raft::io::Start;
use althing_store::{Mvcc, Opened, SledOptions, SledStore, StoreError, Sweep, groups, tidy};
use althing_wal::{StdDisk, Wal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often a volume without room is looked at again.
const ROOM_INTERVAL: Duration = Duration::from_secs(2);

/// A group as a boot found it.
pub struct FoundGroup {
    /// Its state.
    pub store: Arc<Store>,
    /// What it starts from.
    pub start: Start,
}

/// An open volume.
pub struct Volume {
    /// The log.
    pub wal: Wal,
    /// The engine that all groups share.
    pub engine: SledStore,
    /// Groups with a replica here.
    pub groups: BTreeMap<GroupId, FoundGroup>,
    /// Terms and votes of groups that have no replica here any more, so that one which comes back never votes twice.
    pub retired: BTreeMap<GroupId, HardState>,
}

impl Volume {
    /// Opens it; on a full disk, as soon as there is room: ending would only make somebody start the process again and again.
    ///
    /// # Errors
    /// If log or state cannot be used.
    pub fn open_with_room(config: &Config) -> Result<Self, NodeError> {
        loop {
            let error = match Self::open(config) {
                Err(NodeError::Store(error)) if error.is_no_space() => error.to_string(),
                Err(NodeError::Wal(error)) if error.is_no_space() => error.to_string(),
                other => return other,
            };
            let ballast = Ballast::new(&config.data_dir, config.volume_reserve_bytes);
            if ballast.give_up().unwrap_or(false) {
                tracing::warn!(error, "the volume is full; what was kept for a start on it is given up");
                continue;
            }
            tracing::error!(error, "the volume is full, and the node starts when there is room");
            std::thread::sleep(ROOM_INTERVAL);
        }
    }

    /// Whether it has shards but nothing that says where they belong.
    #[must_use]
    pub fn lacks_map(&self) -> bool {
        !self.groups.is_empty() && !self.groups.contains_key(&GroupId::META)
    }

    fn open(config: &Config) -> Result<Self, NodeError> {
        let options = althing_wal::Options {
            segment_bytes: config.wal_segment_bytes,
        };
        let (mut wal, recovered) = Wal::open(Arc::new(StdDisk), &config.data_dir.join("wal"), options)?;
        if let Some(tail) = &recovered.truncated_tail {
            tracing::warn!(
                ?tail,
                "cut off what a crash left half written; nothing of it was acknowledged"
            );
        }
        let mut logs = recovered.groups;
        let (engine, mut stores) = open_stores(config)?;
        let (mut groups, mut retired, mut repairs) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let known: BTreeSet<GroupId> = logs.keys().chain(stores.keys()).copied().collect();
        for group in known {
            let store = match stores.remove(&group) {
                Some(store) => store,
                None => Mvcc::open(engine.clone(), group)?,
            };
            let Some(found) = judge(group, logs.remove(&group), store.applied())? else {
                continue;
            };
            let start = found.start;
            repairs.extend(found.repair);
            if found.stale_state {
                tracing::warn!(%group, "a crash kept the state of a replica that left; it is cleared");
                store.retire()?;
                while store.compact_step()? == Sweep::More {}
            }
            // Nothing but term and vote: it left this node, or never had an entry. Whoever wants it here opens it again.
            if start.is_blank() && group != GroupId::META {
                retired.insert(group, start.hard_state);
            } else {
                let store = Arc::new(store);
                groups.insert(group, FoundGroup { store, start });
            }
        }
        if !repairs.is_empty() {
            wal.append(&repairs)?;
            wal.sync()?;
        }
        Ok(Self {
            wal,
            engine,
            groups,
            retired,
        })
    }
}

/// Opens the states, or an empty engine in place of a damaged one: the log rebuilds them.
fn open_stores(config: &Config) -> Result<(SledStore, BTreeMap<GroupId, Store>), NodeError> {
    let dir = config.data_dir.join("state");
    let options = SledOptions {
        cache_bytes: config.store_cache_bytes,
    };
    let open = || {
        let (engine, opened) = SledStore::open(&dir, options)?;
        if let Opened::Quarantined { path, reason } = &opened {
            tracing::error!(to = %path.display(), reason, "the state was damaged; it is rebuilt from the log");
        }
        let mut stores = BTreeMap::new();
        tidy(&engine)?;
        for group in groups(&engine)? {
            stores.insert(group, Mvcc::open(engine.clone(), group)?);
        }
        Ok((engine, stores))
    };
    match open() {
        Ok(opened) => Ok(opened),
        Err(error) if StoreError::is_damage(&error) => {
            let to = SledStore::quarantine(&dir)?;
            tracing::error!(%error, to = %to.display(), "the state contradicts itself; it is rebuilt from the log");
            Ok(open()?)
        }
        Err(error) => Err(error.into()),
    }
}
