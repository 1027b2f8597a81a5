//! What every reconciliation shares.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::admin::AdminClient;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait between attempts: a cluster that was mended is noticed within half a minute.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Shared by all reconciliations.
pub(crate) struct Context {
    /// Kubernetes.
    pub(crate) client: Client,
    /// The nodes.
    pub(crate) admin: AdminClient,
    /// Events.
    pub(crate) recorder: Recorder,
    /// Metrics.
    pub(crate) metrics: Metrics,
    /// Settings.
    pub(crate) settings: Settings,
    /// Failures in a row, by kind, namespace and name. Bounded by the number of resources: success removes the entry,
    /// and so does deletion.
    failures: Mutex<BTreeMap<String, u32>>,
    /// Hash of the objects that were last applied for a cluster; a watch event about one of them removes the entry.
    applied: Arc<Applied>,
}

impl Context {
    /// Puts it together.
    pub(crate) fn new(client: Client, admin: AdminClient, metrics: Metrics, settings: Settings) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.into(),
            instance: Some(settings.pod_name.clone()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin,
            metrics,
            settings,
            failures: Mutex::default(),
            applied: Arc::default(),
        }
    }

    /// Counts a failure and says how long to wait: doubling, up to a cap.
    pub(crate) fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        backoff(*count)
    }

    /// Forgets failures.
    pub(crate) fn succeeded(&self, key: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// What was applied last.
    pub(crate) fn applied(&self) -> &Arc<Applied> {
        &self.applied
    }
}

/// The field manager of everything that the operator applies, and the name under which its events appear.
pub(crate) const FIELD_MANAGER: &str = "althing-operator";

/// Doubles from the first wait up to the longest.
fn backoff(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST_RETRY)
}

/// What was applied last, by `namespace/cluster`.
#[derive(Debug, Default)]
pub(crate) struct Applied(Mutex<BTreeMap<String, String>>);

impl Applied {
    /// Whether exactly this was applied last, and nothing was heard of the objects since.
    pub(crate) fn is(&self, key: &str, content: &str) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .is_some_and(|last| last == content)
    }

    /// Remembers.
    pub(crate) fn set(&self, key: String, content: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, content);
    }

    /// Forgets: one of the objects has changed, or the cluster is gone.
    pub(crate) fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_a_cap() {
        let waits: Vec<u64> = [1, 2, 3, 5, 6, 40, u32::MAX]
            .map(|count| backoff(count).as_secs())
            .to_vec();
        assert_eq!(waits, [1, 2, 4, 16, 30, 30, 30]);
    }

    #[test]
    fn what_was_applied_is_applied_again_after_a_change() {
        let applied = Applied::default();
        applied.set("shop/orders".into(), "a".into());
        assert!(applied.is("shop/orders", "a") && !applied.is("shop/orders", "b") && !applied.is("shop/other", "a"));
        applied.forget("shop/orders");
        assert!(!applied.is("shop/orders", "a"));
    }
}
