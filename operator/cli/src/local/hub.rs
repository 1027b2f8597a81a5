//! What the supervisor's workers and its control socket share: what is declared, and what was last seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use althing_crds::{DeletionPolicy, RaftCluster, RaftClusterStatus, ShardLayout, ShardLayoutStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use tokio::sync::{Notify, watch};

use super::declared::{self, All, Change, Declared};
use super::files;
use super::layout::{ClusterKey, Layout};
use crate::error::Error;
use crate::manifest::Object;

/// Clusters that one supervisor runs: each is at most nine processes, which is what a machine carries.
pub(crate) const MAX_CLUSTERS: usize = 16;

/// What a worker last saw and did.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Snapshot {
    /// The cluster's status.
    pub(crate) status: RaftClusterStatus,
    /// The status of each of its layouts, by name.
    pub(crate) layouts: BTreeMap<String, ShardLayoutStatus>,
    /// What is being done or waited for, and why; a sentence each.
    pub(crate) why: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    all: All,
    seen: BTreeMap<ClusterKey, Snapshot>,
    wakers: BTreeMap<ClusterKey, Arc<Notify>>,
}

/// Shared by everything in a supervisor.
#[derive(Debug)]
pub(crate) struct Hub {
    layout: Layout,
    state: Mutex<State>,
    /// A cluster was declared that may have no worker yet.
    pub(crate) declared: Notify,
    /// Whether the supervisor shall end.
    pub(crate) ending: watch::Sender<Ending>,
}

/// Whether and how a supervisor ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Ending {
    /// It goes on.
    No,
    /// Nodes are asked to stop and waited for.
    Gently,
    /// Nodes are killed.
    Now,
}

impl Hub {
    /// With what the folder holds.
    pub(crate) fn new(layout: Layout, all: All) -> Hub {
        let (ending, _) = watch::channel(Ending::No);
        let state = Mutex::new(State {
            all,
            ..State::default()
        });
        Hub {
            layout,
            state,
            declared: Notify::new(),
            ending,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below leaves the state whole at each step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The clusters that are declared.
    pub(crate) fn keys(&self) -> Vec<ClusterKey> {
        self.state().all.keys().cloned().collect()
    }

    /// What is declared of a cluster; none once it is gone.
    pub(crate) fn get(&self, key: &ClusterKey) -> Option<Declared> {
        self.state().all.get(key).cloned()
    }

    /// What wakes a cluster's worker before its time.
    pub(crate) fn waker(&self, key: &ClusterKey) -> Arc<Notify> {
        self.state().wakers.entry(key.clone()).or_default().clone()
    }

    /// What a worker saw.
    pub(crate) fn publish(&self, key: &ClusterKey, snapshot: Snapshot) {
        self.state().seen.insert(key.clone(), snapshot);
    }

    /// What was last seen of a cluster.
    pub(crate) fn seen(&self, key: &ClusterKey) -> Option<Snapshot> {
        self.state().seen.get(key).cloned()
    }

    /// Every object with its status.
    pub(crate) fn objects(&self) -> (Vec<RaftCluster>, Vec<ShardLayout>) {
        let state = self.state();
        let mut clusters = Vec::new();
        let mut layouts = Vec::new();
        for (key, declared) in &state.all {
            let seen = state.seen.get(key);
            clusters.push(RaftCluster {
                status: seen.map(|seen| seen.status.clone()),
                ..declared.cluster.clone()
            });
            layouts.extend(declared.layouts.iter().map(|(name, layout)| ShardLayout {
                status: seen.and_then(|seen| seen.layouts.get(name).cloned()),
                ..layout.clone()
            }));
        }
        (clusters, layouts)
    }

    /// Applies objects: all of them or none. What is declared is on disk before it is acted on.
    pub(crate) fn apply(&self, objects: Vec<Object>, now: &Time) -> Result<Vec<Change>, Error> {
        let mut state = self.state();
        let (all, changes) =
            declared::apply(state.all.clone(), objects, now).map_err(|complaints| Error::Manifest { complaints })?;
        if all.len() > MAX_CLUSTERS {
            return Err(Error::TooManyClusters { max: MAX_CLUSTERS });
        }
        for (key, declared) in &all {
            if state.all.get(key) != Some(declared) {
                self.save(key, declared)?;
                state.all.insert(key.clone(), declared.clone());
            }
        }
        self.stir(&mut state, changes.iter().map(|change| &change.cluster));
        Ok(changes)
    }

    /// Begins the deletion of a cluster. False: there is none.
    pub(crate) fn delete_cluster(&self, key: &ClusterKey, now: &Time) -> Result<bool, Error> {
        let mut state = self.state();
        let Some(mut declared) = state.all.get(key).cloned() else {
            return Ok(false);
        };
        declared
            .cluster
            .metadata
            .deletion_timestamp
            .get_or_insert_with(|| now.clone());
        self.save(key, &declared)?;
        state.all.insert(key.clone(), declared);
        self.stir(&mut state, [key]);
        Ok(true)
    }

    /// Deletes a layout: at once, or, if its keyspace goes with it, when that is gone. None: there is none.
    pub(crate) fn delete_layout(
        &self,
        namespace: &str,
        name: &str,
        now: &Time,
    ) -> Result<Option<DeletionPolicy>, Error> {
        let mut state = self.state();
        let found = state
            .all
            .iter()
            .find(|(key, declared)| key.namespace == namespace && declared.layouts.contains_key(name))
            .map(|(key, declared)| (key.clone(), declared.clone()));
        let Some((key, mut declared)) = found else {
            return Ok(None);
        };
        let policy = declared.layouts.get(name).map(|layout| layout.spec.deletion_policy);
        match (policy, declared.layouts.get_mut(name)) {
            (Some(DeletionPolicy::Delete), Some(layout)) => {
                layout.metadata.deletion_timestamp.get_or_insert_with(|| now.clone());
            }
            (Some(DeletionPolicy::Delete | DeletionPolicy::Retain) | None, _) => {
                declared.layouts.remove(name);
            }
        }
        self.save(&key, &declared)?;
        state.all.insert(key.clone(), declared);
        self.stir(&mut state, [&key]);
        Ok(policy)
    }

    /// The last of a layout that was deleted with its keyspace.
    pub(crate) fn forget_layout(&self, key: &ClusterKey, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        let Some(mut declared) = state.all.get(key).cloned() else {
            return Ok(());
        };
        declared.layouts.remove(name);
        self.save(key, &declared)?;
        state.all.insert(key.clone(), declared);
        Ok(())
    }

    /// The last of a deleted cluster: its processes are gone, it is declared no longer.
    pub(crate) fn forget(&self, key: &ClusterKey) -> Result<(), Error> {
        let mut state = self.state();
        files::remove(&self.layout.desired(key))?;
        state.all.remove(key);
        state.seen.remove(key);
        state.wakers.remove(key);
        Ok(())
    }

    fn save(&self, key: &ClusterKey, declared: &Declared) -> Result<(), Error> {
        let path = self.layout.desired(key);
        let text = declared::to_yaml(declared).map_err(|message| Error::File {
            what: "write",
            path: path.clone(),
            source: std::io::Error::other(message),
        })?;
        files::write(&path, text.as_bytes())
    }

    fn stir<'a>(&self, state: &mut State, keys: impl IntoIterator<Item = &'a ClusterKey>) {
        for key in keys {
            state.wakers.entry(key.clone()).or_default().notify_one();
        }
        self.declared.notify_one();
    }
}

/// The clusters that a folder declares.
pub(crate) fn load(layout: &Layout, now: &Time) -> Result<All, Error> {
    let mut all = All::new();
    for namespace in folders(layout.dir())? {
        for name in folders(&layout.dir().join(&namespace))? {
            let path = layout.desired(&ClusterKey::new(&namespace, &name));
            let Some(text) = files::read(&path)? else {
                continue;
            };
            let read = declared::from_yaml(&path.display().to_string(), &text, &namespace, now)
                .map_err(|complaints| Error::Manifest { complaints })?;
            all.extend(
                read.into_iter()
                    .filter(|(_, declared)| declared.cluster.name_any() == name),
            );
        }
    }
    Ok(all)
}

fn folders(path: &std::path::Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::File {
                what: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn a_layout_is_gone_at_once_unless_its_keyspace_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(Layout::new(dir.path()), All::new());
        let now = Time(Default::default());
        let of = |name: &str, policy: &str| {
            format!(
                "---\napiVersion: althing.dev/v1alpha1\nkind: ShardLayout\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: orders}}, keyspace: {name}, deletionPolicy: {policy}}}\n"
            )
        };
        let cluster = "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {name: orders}\nspec: {members: 1, version: 0.1.0, storage: {size: 1Gi}}\n";
        let text = [cluster, &of("kept", "Retain"), &of("dropped", "Delete")].concat();
        hub.apply(manifest::parse("f", &text, "default").unwrap(), &now)
            .unwrap();
        let key = ClusterKey::new("default", "orders");
        let names = |hub: &Hub| {
            hub.get(&key)
                .map(|declared| declared.layouts.into_keys().collect::<Vec<_>>())
        };
        let delete = |name| hub.delete_layout("default", name, &now).unwrap();
        assert_eq!(delete("nobody"), None);
        assert_eq!(delete("kept"), Some(DeletionPolicy::Retain));
        assert_eq!(delete("dropped"), Some(DeletionPolicy::Delete));
        assert_eq!(
            names(&hub),
            Some(vec!["dropped".to_owned()]),
            "its keyspace has to go first"
        );
        // The next supervisor knows it too.
        let read = load(&Layout::new(dir.path()), &now).unwrap();
        assert!(read[&key].layouts["dropped"].metadata.deletion_timestamp.is_some());
        let again = manifest::parse("f", &of("dropped", "Delete"), "default").unwrap();
        let refused = hub.apply(again, &now).unwrap_err().to_string();
        assert!(refused.contains("is being deleted"), "{refused}");
        hub.forget_layout(&key, "dropped").unwrap();
        assert_eq!(names(&hub), Some(vec![]));
    }
}
