//! The chart as Helm renders it: what a user's monitoring would be given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::command::run;
use crate::error::{Error, Result};
use crate::paths::checkout;

/// Values that turn everything about monitoring on.
pub const MONITORING: [&str; 2] = [
    "monitoring.serviceMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
];

/// The chart's folder.
pub fn folder() -> PathBuf {
    checkout().join("charts/althing")
}

/// `helm template`: every object of the chart, with `values` as `--set` takes them.
///
/// # Errors
/// If Helm refuses the values or the templates, in its words, or what it renders is no YAML.
pub fn render(mut helm: Command, release: &str, namespace: &str, values: &[&str]) -> Result<Vec<Value>> {
    helm.args(["template", release])
        .arg(folder())
        .args(["--namespace", namespace]);
    for value in values {
        helm.args(["--set", value]);
    }
    let text = run(&mut helm)?;
    serde_saphyr::from_multiple(&text).map_err(|error| {
        Error::refused(
            format!("what Helm renders is no YAML: {error}"),
            "look at `helm template charts/althing`",
        )
    })
}

/// What the chart gives to Prometheus and Grafana.
#[derive(Debug, Clone)]
pub struct Monitoring {
    /// What to scrape.
    pub monitors: Vec<Monitor>,
    /// The body of the `PrometheusRule`: a rule file.
    pub rules: Value,
    /// All alerts of the rules.
    pub alerts: Vec<Alert>,
    /// All dashboards.
    pub dashboards: Vec<Dashboard>,
}

/// A `ServiceMonitor`; a field that is not here is refused, so that nothing the chart says goes unheeded.
#[derive(Debug, Clone)]
pub struct Monitor {
    /// Its name.
    pub name: String,
    /// Where it lies, which is also where it looks unless it says otherwise.
    pub namespace: String,
    /// The rest.
    pub spec: MonitorSpec,
}

/// See the Prometheus operator's API reference, `ServiceMonitorSpec`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MonitorSpec {
    /// The service's label that becomes `job`.
    pub job_label: String,
    /// Which namespaces.
    #[serde(default)]
    pub namespace_selector: NamespaceSelector,
    /// Which services.
    pub selector: Selector,
    /// Which of their ports.
    pub endpoints: Vec<Endpoint>,
}

/// Which namespaces; neither field: the monitor's own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceSelector {
    /// All.
    #[serde(default)]
    pub any: bool,
    /// These.
    #[serde(default)]
    pub match_names: Vec<String>,
}

/// Labels that a service must have.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Exactly these values.
    pub match_labels: BTreeMap<String, String>,
}

/// A port to scrape.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// The service port's name.
    pub port: String,
    /// Default `/metrics`.
    pub path: Option<String>,
    /// How often, as Prometheus writes durations.
    pub interval: Option<String>,
    /// More labels.
    #[serde(default)]
    pub relabelings: Vec<Relabeling>,
}

/// A label copied from what discovery knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Relabeling {
    /// From.
    pub source_labels: Vec<String>,
    /// To.
    pub target_label: String,
}

/// An alert.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Its name.
    #[serde(rename = "alert")]
    pub name: String,
    /// When it is true.
    pub expr: String,
    /// For how long that must be so.
    #[serde(rename = "for")]
    pub lasting: Option<String>,
    /// `severity`.
    pub labels: BTreeMap<String, String>,
    /// What a person reads.
    pub annotations: BTreeMap<String, String>,
}

/// A Grafana dashboard.
#[derive(Debug, Clone)]
pub struct Dashboard {
    /// Its file in the chart.
    pub file: String,
    /// Grafana's own JSON.
    pub json: Value,
}

/// One panel of a dashboard that draws something; rows are left out.
#[derive(Debug, Clone)]
pub struct Panel<'a> {
    /// Its title.
    pub title: &'a str,
    /// Its JSON.
    pub json: &'a Value,
    /// What it asks for.
    pub targets: Vec<Target<'a>>,
}

/// One query of a panel.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// `PromQL` with dashboard variables in it.
    pub expr: &'a str,
    /// With `{{label}}` in it, or empty.
    pub legend: &'a str,
}

impl Monitoring {
    /// Collects it from rendered objects.
    ///
    /// # Errors
    /// If an object is not of the shape that the Prometheus operator or Grafana wants.
    pub fn of(objects: &[Value]) -> Result<Self> {
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let monitors = of_kind("ServiceMonitor").map(Monitor::parse).collect::<Result<_>>()?;
        let groups: Vec<Value> = of_kind("PrometheusRule")
            .flat_map(|rule| rule["spec"]["groups"].as_array().cloned().unwrap_or_default())
            .collect();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let alerts = rules.map(|rule| parse("an alert", rule)).collect::<Result<_>>()?;
        let mut dashboards = Vec::new();
        for (file, text) in of_kind("ConfigMap").filter_map(|map| map["data"].as_object()).flatten() {
            let json = serde_json::from_str(text.as_str().unwrap_or_default()).map_err(|source| Error::Json {
                what: format!("dashboard {file}"),
                source,
            })?;
            dashboards.push(Dashboard {
                file: file.clone(),
                json,
            });
        }
        Ok(Self {
            monitors,
            rules: serde_json::json!({ "groups": groups }),
            alerts,
            dashboards,
        })
    }
}

impl Monitor {
    fn parse(object: &Value) -> Result<Self> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            name: text("name"),
            namespace: text("namespace"),
            spec: parse("a ServiceMonitor", object["spec"].clone())?,
        })
    }
}

impl Dashboard {
    /// Its panels, rows' hidden ones included.
    pub fn panels(&self) -> Vec<Panel<'_>> {
        let top = self.json["panels"].as_array().into_iter().flatten();
        let nested = top
            .clone()
            .flat_map(|panel| panel["panels"].as_array().into_iter().flatten());
        top.chain(nested)
            .filter(|panel| panel["type"] != "row")
            .map(Panel::of)
            .collect()
    }

    /// The names of its variables.
    pub fn variables(&self) -> Vec<&str> {
        let list = self.json["templating"]["list"].as_array().into_iter().flatten();
        list.filter_map(|variable| variable["name"].as_str()).collect()
    }
}

impl<'a> Panel<'a> {
    fn of(json: &'a Value) -> Self {
        let targets = json["targets"].as_array().into_iter().flatten();
        Self {
            title: json["title"].as_str().unwrap_or_default(),
            json,
            targets: targets
                .map(|target| Target {
                    expr: target["expr"].as_str().unwrap_or_default(),
                    legend: target["legendFormat"].as_str().unwrap_or_default(),
                })
                .collect(),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|source| Error::Json {
        what: what.to_owned(),
        source,
    })
}
