//! Holds what the chart shows to what the programs export: every panel has data, every alert can fire.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::chart::{Alert, Dashboard, Target};
use crate::command::wait_until;
use crate::error::{Error, Result};
use crate::prometheus::Prometheus;
use crate::promql::selectors;

/// What becomes of a metric's name on the page that is scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One series with its own name.
    Gauge,
    /// One series that ends in `_total`.
    Counter,
    /// Series that end in `_bucket`, `_count` and `_sum`.
    Histogram,
}

/// A metric as it is registered.
pub type Metric = (&'static str, Kind);

/// What a member exports.
pub const MEMBER_METRICS: [Metric; 50] = [
    ("althing_member_info", Kind::Gauge),
    ("althing_raft_leader", Kind::Gauge),
    ("althing_raft_has_leader", Kind::Gauge),
    ("althing_raft_leader_changes", Kind::Counter),
    ("althing_raft_term", Kind::Gauge),
    ("althing_raft_commit_index", Kind::Gauge),
    ("althing_raft_applied_index", Kind::Gauge),
    ("althing_raft_voters", Kind::Gauge),
    ("althing_raft_learners", Kind::Gauge),
    ("althing_raft_peer_lag", Kind::Gauge),
    ("althing_reads_local", Kind::Gauge),
    ("althing_reads_held", Kind::Gauge),
    ("althing_reads_bounced", Kind::Gauge),
    ("althing_reads_by_index", Kind::Gauge),
    ("althing_read_lease", Kind::Gauge),
    ("althing_roster_epoch", Kind::Gauge),
    ("althing_roster_responders", Kind::Gauge),
    ("althing_proposals", Kind::Counter),
    ("althing_proposals_pending", Kind::Gauge),
    ("althing_grpc_requests", Kind::Counter),
    ("althing_grpc_request_duration_seconds", Kind::Histogram),
    ("althing_wal_fsync_duration_seconds", Kind::Histogram),
    ("althing_commit_duration_seconds", Kind::Histogram),
    ("althing_apply_duration_seconds", Kind::Histogram),
    ("althing_apply_lag", Kind::Gauge),
    ("althing_wal_bytes", Kind::Gauge),
    ("althing_store_bytes", Kind::Gauge),
    ("althing_store_bytes_in_use", Kind::Gauge),
    ("althing_volume_free_bytes", Kind::Gauge),
    ("althing_volume_size_bytes", Kind::Gauge),
    ("althing_store_keys", Kind::Gauge),
    ("althing_store_revision", Kind::Gauge),
    ("althing_peer_sent_bytes", Kind::Counter),
    ("althing_peer_sent_messages", Kind::Counter),
    ("althing_peer_received_bytes", Kind::Counter),
    ("althing_peer_connected", Kind::Gauge),
    ("althing_groups", Kind::Gauge),
    ("althing_groups_led", Kind::Gauge),
    ("althing_groups_leaderless", Kind::Gauge),
    ("althing_groups_hibernating", Kind::Gauge),
    ("althing_shard_bytes", Kind::Gauge),
    ("althing_shard_keys", Kind::Gauge),
    ("althing_operations", Kind::Gauge),
    ("althing_operations_ended", Kind::Counter),
    ("althing_calls", Kind::Counter),
    ("althing_calls_answered", Kind::Counter),
    ("althing_call_duration_seconds", Kind::Histogram),
    ("process_resident_memory_bytes", Kind::Gauge),
    ("process_cpu_seconds", Kind::Counter),
    ("up", Kind::Gauge),
];

/// What the operator exports.
pub const OPERATOR_METRICS: [Metric; 3] = [
    ("althing_operator_reconcile", Kind::Counter),
    ("althing_operator_reconcile_duration_seconds", Kind::Histogram),
    ("althing_operator_leader", Kind::Gauge),
];

/// The names of a metric's series.
pub fn series(metric: Metric) -> Vec<String> {
    let (name, kind) = metric;
    match kind {
        Kind::Gauge => vec![name.to_owned()],
        Kind::Counter => vec![format!("{name}_total")],
        Kind::Histogram => ["bucket", "count", "sum"]
            .map(|suffix| format!("{name}_{suffix}"))
            .to_vec(),
    }
}

/// The names of all series, of members and operator.
pub fn all_series() -> BTreeSet<String> {
    MEMBER_METRICS
        .into_iter()
        .chain(OPERATOR_METRICS)
        .flat_map(series)
        .collect()
}

/// What the dashboard's variables stand for.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// `$namespace`
    pub namespace: &'a str,
    /// `$cluster`
    pub cluster: &'a str,
    /// `$__rate_interval`: at least four scrapes.
    pub rate_interval: &'a str,
}

impl Scope<'_> {
    /// The query with values for variables.
    ///
    /// # Errors
    /// If it uses a variable that is none of these.
    pub fn fill(&self, expr: &str) -> Result<String> {
        let variables = [
            ("__rate_interval", self.rate_interval),
            ("namespace", self.namespace),
            ("cluster", self.cluster),
        ];
        let filled = variables.into_iter().fold(expr.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
                .replace(&format!("${name}"), value)
        });
        if filled.contains('$') {
            return Err(Error::refused(
                format!("`{expr}` uses a variable that no one fills"),
                "say in Scope what it is",
            ));
        }
        Ok(filled)
    }
}

/// How many samples each query of each panel gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanelTable(Vec<(String, usize)>);

impl fmt::Display for PanelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (panel, samples) in &self.0 {
            writeln!(f, "{panel:<32} {samples:>4}")?;
        }
        Ok(())
    }
}

/// Waits until every query of every panel returns data, with the labels that its legend names.
///
/// # Errors
/// If a query is refused, or some still return none when time is up: these are named.
pub fn check_panels(
    prometheus: &Prometheus,
    dashboard: &Dashboard,
    scope: &Scope<'_>,
    limit: Duration,
) -> Result<PanelTable> {
    let queries: Vec<(String, Target<'_>, String)> = dashboard
        .panels()
        .iter()
        .flat_map(|panel| panel.targets.iter().map(|target| (panel.title.to_owned(), *target)))
        .map(|(title, target)| Ok((title, target, scope.fill(target.expr)?)))
        .collect::<Result<_>>()?;
    wait_until(&format!("every panel of {} has data", dashboard.file), limit, || {
        let mut table = Vec::new();
        for (title, target, expr) in &queries {
            let samples = match prometheus.query(expr) {
                Ok(samples) => samples,
                // Waiting longer does not make a query right.
                Err(error) => return Ok(Err(error)),
            };
            if samples.is_empty() {
                return Err(format!("panel `{title}` has no data for {expr}"));
            }
            for label in legend_labels(target.legend) {
                if samples.iter().any(|sample| !sample.labels.contains_key(label)) {
                    return Err(format!(
                        "panel `{title}` names {{{{{label}}}}}, which {expr} does not give"
                    ));
                }
            }
            table.push((title.clone(), samples.len()));
        }
        Ok(Ok(PanelTable(table)))
    })?
}

/// Waits until Prometheus has evaluated every alert without error, and each series that an alert reads is there. (A rule
/// about something that nobody exports evaluates happily, and never fires.)
///
/// # Errors
/// If time is up; the error says what is missing.
pub fn check_alerts(prometheus: &Prometheus, alerts: &[Alert], limit: Duration) -> Result<()> {
    wait_until("every alert is evaluated on data that is there", limit, || {
        let rules = prometheus.rules().map_err(|error| error.to_string())?;
        for alert in alerts {
            match rules.iter().find(|(name, _, _)| *name == alert.name) {
                Some((_, health, _)) if health == "ok" => {}
                Some((_, health, error)) => return Err(format!("{} is {health}: {error}", alert.name)),
                None => return Err(format!("{} is not loaded", alert.name)),
            }
            prometheus.query(&alert.expr).map_err(|error| error.to_string())?;
            for selector in selectors(&alert.expr) {
                if prometheus
                    .query(&selector)
                    .map_err(|error| error.to_string())?
                    .is_empty()
                {
                    return Err(format!("{} reads {selector}, which is not there", alert.name));
                }
            }
        }
        Ok(())
    })
}

/// Waits until Prometheus has seen everything that members and operator are said to export.
///
/// # Errors
/// If time is up; the error names what is missing.
pub fn check_metrics(prometheus: &Prometheus, limit: Duration) -> Result<()> {
    wait_until("members and operator export what they should", limit, || {
        let seen: BTreeSet<String> = prometheus
            .metric_names()
            .map_err(|error| error.to_string())?
            .into_iter()
            .collect();
        let missing: Vec<String> = all_series().difference(&seen).cloned().collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("missing: {}", missing.join(" ")))
        }
    })
}

/// Waits until the alert fires for something with these labels.
///
/// # Errors
/// If it does not in time; the error says which alerts were pending or firing instead.
pub fn wait_for_alert(prometheus: &Prometheus, name: &str, labels: &[(&str, &str)], limit: Duration) -> Result<()> {
    wait_until(&format!("{name} fires for {labels:?}"), limit, || {
        match is_firing(prometheus, name, labels)? {
            true => Ok(()),
            false => Err(format!("{:?}", prometheus.alerts().map_err(|error| error.to_string())?)),
        }
    })
}

/// Holds that the alert fires at every look until `done`, which is looked at last; call after [`wait_for_alert`].
///
/// # Errors
/// If the alert went away before, or `done` did not come in time.
pub fn fires_until(
    prometheus: &Prometheus,
    name: &str,
    labels: &[(&str, &str)],
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> Result<()> {
    wait_until(&format!("{name} fires all the time"), limit, || {
        match is_firing(prometheus, name, labels) {
            Ok(true) if done() => Ok(Ok(())),
            Ok(true) => Err("it does, and the end is still to come".to_owned()),
            Ok(false) => Ok(Err(Error::refused(
                format!("{name} for {labels:?} stopped firing too early"),
                "look at its expression",
            ))),
            Err(error) => Ok(Err(Error::refused(error, "look at Prometheus' log"))),
        }
    })?
}

/// Waits until the alert fires no longer for anything with these labels.
///
/// # Errors
/// If it does not stop in time.
pub fn wait_for_resolved(prometheus: &Prometheus, name: &str, labels: &[(&str, &str)], limit: Duration) -> Result<()> {
    wait_until(
        &format!("{name} no longer fires for {labels:?}"),
        limit,
        || match is_firing(prometheus, name, labels)? {
            true => Err("it fires".to_owned()),
            false => Ok(()),
        },
    )
}

fn is_firing(prometheus: &Prometheus, name: &str, labels: &[(&str, &str)]) -> std::result::Result<bool, String> {
    let has = |found: &BTreeMap<String, String>| {
        labels
            .iter()
            .all(|(label, value)| found.get(*label).is_some_and(|found| found == value))
    };
    let alerts = prometheus.alerts().map_err(|error| error.to_string())?;
    Ok(alerts
        .iter()
        .any(|alert| alert.name == name && alert.firing && has(&alert.labels)))
}

/// The `{{label}}`s of a legend.
pub fn legend_labels(legend: &str) -> Vec<&str> {
    legend
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split("}}").next())
        .map(str::trim)
        .collect()
}
