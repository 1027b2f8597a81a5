//! What to scrape on a bed: the Prometheus operator's reading of a `ServiceMonitor`, and Kubernetes' own discovery.
//!
//! Debian builds Prometheus without discovery on Kubernetes. So targets come from a file that is written here, with the
//! labels that discovery of the role `endpointslice` would give them; choice and relabelling stay Prometheus' work.

use std::fs;
use std::path::Path;
use std::slice::from_ref;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bed::Bed;
use crate::chart::{Endpoint, Monitor};
use crate::error::{Error, Result};

/// What targets are made of, as `kubectl get` wants it.
const OBJECTS: &str = "services,pods,endpointslices.discovery.k8s.io";
/// Between two looks at the apiserver; kubectl takes a tenth of a second of a core.
const INTERVAL: Duration = Duration::from_secs(3);
const SERVICE_LABEL: &str = "__meta_kubernetes_service_label_";
const NAMESPACE: &str = "__meta_kubernetes_namespace";
const SERVICE: &str = "__meta_kubernetes_service_name";
const PORT: &str = "__meta_kubernetes_endpointslice_port_name";
const POD: &str = "__meta_kubernetes_pod_name";
const CONTAINER: &str = "__meta_kubernetes_pod_container_name";
const PHASE: &str = "__meta_kubernetes_pod_phase";

/// Keeps a file of targets up to date; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Taken to end the thread, which waits for its other end to go.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Writes the file once, then again and again.
    ///
    /// # Errors
    /// If the apiserver does not answer or the file cannot be written.
    pub(crate) fn start(bed: &Bed, file: &Path) -> Result<Self> {
        let (bed, file) = (bed.clone(), file.to_owned());
        write(&bed, &file)?;
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // As in Prometheus itself, the last known targets stay until the apiserver answers again.
                if let Err(error) = write(&bed, &file) {
                    eprintln!("  discovery: {error}");
                }
            }
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Written beside and renamed, so that Prometheus never reads half a list.
fn write(bed: &Bed, file: &Path) -> Result<()> {
    let found = targets(&bed.get(&[OBJECTS, "--all-namespaces"])?);
    let partial = file.with_extension("partial");
    fs::write(&partial, found.to_string()).map_err(Error::io("write", &partial))?;
    fs::rename(&partial, file).map_err(Error::io("replace", file))
}

/// Every address and port of every `EndpointSlice` in a list of services, pods and slices, as a target file has it.
pub fn targets(list: &Value) -> Value {
    let items = || list["items"].as_array().into_iter().flatten();
    let find = |kind: &str, namespace: &Value, name: &Value| {
        items().find(|item| {
            item["kind"] == kind && item["metadata"]["namespace"] == *namespace && item["metadata"]["name"] == *name
        })
    };
    let mut found = Vec::new();
    for slice in items().filter(|item| item["kind"] == "EndpointSlice") {
        let namespace = &slice["metadata"]["namespace"];
        let service_name = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        let mut of_slice = Map::new();
        of_slice.insert(NAMESPACE.to_owned(), namespace.clone());
        if let Some(service) = find("Service", namespace, service_name) {
            of_slice.insert(SERVICE.to_owned(), service_name.clone());
            for (label, value) in service["metadata"]["labels"].as_object().into_iter().flatten() {
                of_slice.insert(format!("{SERVICE_LABEL}{}", sanitized(label)), value.clone());
            }
        }
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let target = &endpoint["targetRef"];
            let pod = find("Pod", namespace, &target["name"]).filter(|_| target["kind"] == "Pod");
            for port in slice["ports"].as_array().into_iter().flatten() {
                let mut labels = of_slice.clone();
                labels.insert(PORT.to_owned(), port["name"].clone());
                if let Some(pod) = pod {
                    labels.insert(POD.to_owned(), target["name"].clone());
                    labels.insert(PHASE.to_owned(), pod["status"]["phase"].clone());
                    if let Some(container) = container_of(pod, &port["port"]) {
                        labels.insert(CONTAINER.to_owned(), container.clone());
                    }
                }
                let addresses = endpoint["addresses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                let addresses: Vec<String> = addresses.map(|address| format!("{address}:{}", port["port"])).collect();
                found.push(json!({"targets": addresses, "labels": labels}));
            }
        }
    }
    Value::Array(found)
}

/// The container of the pod that says it listens on the port.
fn container_of<'a>(pod: &'a Value, port: &Value) -> Option<&'a Value> {
    let containers = pod["spec"]["containers"].as_array()?;
    let listens = |container: &&Value| {
        container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|listed| listed["containerPort"] == *port)
    };
    Some(&containers.iter().find(listens)?["name"])
}

/// `scrape_configs` for a `ServiceMonitor`, on the targets in `file`; the interval is Prometheus' own.
pub fn scrapes(monitor: &Monitor, file: &Path) -> Vec<Value> {
    let numbered = monitor.spec.endpoints.iter().enumerate();
    numbered
        .map(|(number, endpoint)| scrape(monitor, number, endpoint, file))
        .collect()
}

fn scrape(monitor: &Monitor, number: usize, endpoint: &Endpoint, file: &Path) -> Value {
    let keep = |from: &str, values: &[String]| {
        let regex = values.iter().map(|value| literal(value)).collect::<Vec<_>>().join("|");
        json!({"source_labels": [from], "regex": regex, "action": "keep"})
    };
    let spec = &monitor.spec;
    let own = [monitor.namespace.clone()];
    let namespaces = match spec.namespace_selector.match_names.as_slice() {
        [] => own.as_slice(),
        names => names,
    };
    let namespaces = (!spec.namespace_selector.any).then(|| keep(NAMESPACE, namespaces));
    let matched = &spec.selector.match_labels;
    let services = matched
        .iter()
        .map(|(label, value)| keep(&format!("{SERVICE_LABEL}{}", sanitized(label)), from_ref(value)));
    let choice = [
        keep(PORT, from_ref(&endpoint.port)),
        json!({"source_labels": [PHASE], "regex": "Failed|Succeeded", "action": "drop"}),
    ];
    let job = format!("{SERVICE_LABEL}{}", sanitized(&spec.job_label));
    let labels = [
        (NAMESPACE, "namespace"),
        (SERVICE, "service"),
        (POD, "pod"),
        (CONTAINER, "container"),
        (PORT, "endpoint"),
        (&job, "job"),
    ];
    let labels = labels.map(|(from, to)| json!({"source_labels": [from], "target_label": to}));
    let more = endpoint.relabelings.iter();
    let more = more.map(|copy| json!({"source_labels": copy.source_labels, "target_label": copy.target_label}));
    let relabelings: Vec<Value> = namespaces
        .into_iter()
        .chain(services)
        .chain(choice)
        .chain(labels)
        .chain(more)
        .collect();
    json!({
        "job_name": format!("serviceMonitor/{}/{}/{number}", monitor.namespace, monitor.name),
        "metrics_path": endpoint.path.as_deref().unwrap_or("/metrics"),
        "file_sd_configs": [{"files": [file], "refresh_interval": "5s"}],
        "relabel_configs": relabelings,
    })
}

/// A label's name as discovery writes it.
fn sanitized(label: &str) -> String {
    label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

/// A pattern that matches `text` alone; letters, digits, hyphens and underscores mean themselves.
fn literal(text: &str) -> String {
    let special = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    text.chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}
