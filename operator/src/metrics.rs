//! The operator's own metrics.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds in seconds: from a turn that finds nothing to do to one that waits for a commit.
const BUCKETS: [f64; 8] = [0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 2.5, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    kind: String,
    outcome: String,
}

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    reconciles: Family<OutcomeLabels, Counter>,
    durations: Family<KindLabel, Histogram, fn() -> Histogram>,
    leader: Gauge,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            leader: Gauge::default(),
        };
        registry.register(
            "althing_operator_reconcile",
            "Reconciliations by outcome",
            metrics.reconciles.clone(),
        );
        registry.register(
            "althing_operator_reconcile_duration_seconds",
            "How long a reconciliation took",
            metrics.durations.clone(),
        );
        registry.register(
            "althing_operator_leader",
            "1 if this replica acts",
            metrics.leader.clone(),
        );
        metrics
    }

    /// A reconciliation ended.
    pub(crate) fn reconciled(&self, kind: &str, outcome: &str, took: Duration) {
        let labels = OutcomeLabels {
            kind: kind.to_owned(),
            outcome: outcome.to_owned(),
        };
        self.reconciles.get_or_create(&labels).inc();
        self.durations
            .get_or_create(&KindLabel { kind: kind.to_owned() })
            .observe(took.as_secs_f64());
    }

    /// This replica acts, or does not.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_that_the_dashboards_ask_for() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.reconciled("RaftCluster", "ok", Duration::from_millis(7));
        metrics.leads(true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            r#"althing_operator_reconcile_total{kind="RaftCluster",outcome="ok"} 1"#,
            r#"althing_operator_reconcile_duration_seconds_count{kind="RaftCluster"} 1"#,
            "althing_operator_leader 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
