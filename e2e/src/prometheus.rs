//! A real Prometheus that scrapes what the chart's ServiceMonitors say and evaluates the chart's rules.
//!
//! Not here: what it scrapes on a bed ([`crate::discovery`]) and what its answers should be ([`crate::observability`]).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::Bed;
use crate::chart::Monitor;
use crate::command::wait_until;
use crate::discovery::{Watch, scrapes};
use crate::error::{Error, Result};
use crate::machine::check_alive;
use crate::process::ProcessId;

/// Often, so that a test need not wait long for two samples of a counter.
const INTERVAL: &str = "2s";
/// Prometheus opens an empty database in about a second.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// One request; the answers take milliseconds unless the machine is starved.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// The rules of a chart or the series of a test are kilobytes; more means that something has run wild.
const ANSWER_LIMIT: u64 = 16 << 20;
const PROGRAM: &str = "/usr/bin/prometheus";

/// A running Prometheus; it ends when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    process: ProcessId,
    log: PathBuf,
    /// Held for as long as there is something to discover.
    _watch: Option<Watch>,
}

/// One sample of an instant query's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The series' labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// An alert that is pending or firing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveAlert {
    /// The rule's name.
    pub name: String,
    /// Whether it has been true for as long as the rule asks.
    pub firing: bool,
    /// Labels, the rule's own included.
    pub labels: BTreeMap<String, String>,
}

impl Prometheus {
    /// Starts it on the bed's control machine, where pods and the apiserver can be reached. The caller must run in that
    /// machine's network.
    ///
    /// # Errors
    /// If it does not start or refuses the configuration.
    pub fn on_bed(bed: &Bed, monitors: &[Monitor], rules: &Value) -> Result<Self> {
        let (folder, log) = (bed.folder().join("prometheus"), bed.folder().join("log/prometheus.log"));
        let targets = folder.join("targets.json");
        let scrapes: Vec<Value> = monitors.iter().flat_map(|monitor| scrapes(monitor, &targets)).collect();
        let (address, args) = prepare(&folder, &scrapes, rules)?;
        let watch = Watch::start(bed, &targets)?;
        let process = bed
            .control()?
            .clone()
            .start("prometheus", &log, bed.search_path(), Path::new(PROGRAM), &args)?;
        Self {
            address,
            process,
            log,
            _watch: Some(watch),
        }
        .ready()
    }

    /// Starts it as a child of this process, with `scrapes` as Prometheus' own `scrape_configs`.
    ///
    /// # Errors
    /// If it does not start or refuses the configuration.
    pub fn on_host(folder: &Path, scrapes: &[Value], rules: &Value) -> Result<Self> {
        let log = folder.join("prometheus.log");
        let (address, args) = prepare(folder, scrapes, rules)?;
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .map_err(Error::io("open", &log))
        };
        // Ends with the test's thread, also if that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", PROGRAM]).args(&args);
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        let child = command.spawn().map_err(|source| Error::Start {
            program: PROGRAM.to_owned(),
            source,
            hint: "install util-linux and prometheus",
        })?;
        let process = ProcessId::of(child.id())
            .ok_or_else(|| Error::refused("prometheus ended at once", format!("look at {}", log.display())))?;
        Self {
            address,
            process,
            log,
            _watch: None,
        }
        .ready()
    }

    fn ready(self) -> Result<Self> {
        wait_until("Prometheus is ready", READY_LIMIT, || {
            if let Err(error) = check_alive("prometheus", self.process, &self.log) {
                return Ok(Err(error));
            }
            get(self.address, "/-/ready")
                .map(|_| Ok(()))
                .map_err(|error| error.to_string())
        })??;
        Ok(self)
    }

    /// The samples of an instant query; values that are no number count as none, as in a graph.
    ///
    /// # Errors
    /// If Prometheus does not answer or refuses the query.
    pub fn query(&self, expr: &str) -> Result<Vec<Sample>> {
        let data = self.api(&format!("query?query={}", encode(expr)))?;
        let samples = match data["resultType"].as_str() {
            Some("scalar") => vec![Sample {
                labels: BTreeMap::new(),
                value: number(&data["result"]),
            }],
            Some("vector") => {
                let series = data["result"].as_array().into_iter().flatten();
                series
                    .map(|series| Sample {
                        labels: labels(&series["metric"]),
                        value: number(&series["value"]),
                    })
                    .collect()
            }
            other => {
                return Err(Error::refused(
                    format!("`{expr}` gives a {other:?}"),
                    "ask for a vector or a scalar",
                ));
            }
        };
        Ok(samples.into_iter().filter(|sample| !sample.value.is_nan()).collect())
    }

    /// The names of all series that it has seen.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub fn metric_names(&self) -> Result<Vec<String>> {
        let data = self.api("label/__name__/values")?;
        Ok(data
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }

    /// What it thinks of its rules: name, health, last error.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub fn rules(&self) -> Result<Vec<(String, String, String)>> {
        let data = self.api("rules?type=alert")?;
        let groups = data["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let text = |rule: &Value, field: &str| rule[field].as_str().unwrap_or_default().to_owned();
        Ok(rules
            .map(|rule| (text(rule, "name"), text(rule, "health"), text(rule, "lastError")))
            .collect())
    }

    /// Alerts that are pending or firing.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub fn alerts(&self) -> Result<Vec<ActiveAlert>> {
        let data = self.api("alerts")?;
        let alerts = data["alerts"].as_array().into_iter().flatten();
        Ok(alerts
            .map(|alert| ActiveAlert {
                name: alert["labels"]["alertname"].as_str().unwrap_or_default().to_owned(),
                firing: alert["state"] == "firing",
                labels: labels(&alert["labels"]),
            })
            .collect())
    }

    /// What it scrapes and how that went: the labels of each target and its last error, empty if there was none.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub fn targets(&self) -> Result<Vec<(BTreeMap<String, String>, String)>> {
        let data = self.api("targets?state=active")?;
        let targets = data["activeTargets"].as_array().into_iter().flatten();
        Ok(targets
            .map(|target| {
                (
                    labels(&target["labels"]),
                    target["lastError"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect())
    }

    fn api(&self, path: &str) -> Result<Value> {
        let body = get(self.address, &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|source| Error::Json {
            what: format!("Prometheus' answer to {path}"),
            source,
        })?;
        Ok(answer["data"].take())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Best effort: it ends with the bed or with this thread at the latest.
        drop(self.process.kill());
    }
}

/// Writes its files into `folder`, over what an earlier run has left, and says where it will listen.
fn prepare(folder: &Path, scrapes: &[Value], rules: &Value) -> Result<(SocketAddr, Vec<String>)> {
    let data = folder.join("data");
    if data.exists() {
        fs::remove_dir_all(&data).map_err(Error::io("remove", &data))?;
    }
    fs::create_dir_all(&data).map_err(Error::io("create", &data))?;
    let (config_path, rules_path) = (folder.join("prometheus.json"), folder.join("rules.json"));
    // JSON is YAML.
    let write = |path: &Path, value: &Value| fs::write(path, format!("{value:#}\n")).map_err(Error::io("write", path));
    write(&config_path, &config(scrapes, &rules_path))?;
    write(&rules_path, rules)?;
    // Another program may take the port in between; then Prometheus ends and the caller hears of it.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("bind a port on", "127.0.0.1"))?;
    let address = listener
        .local_addr()
        .map_err(Error::io("bind a port on", "127.0.0.1"))?;
    let args = vec![
        format!("--config.file={}", config_path.display()),
        format!("--storage.tsdb.path={}", data.display()),
        format!("--web.listen-address={address}"),
    ];
    Ok((address, args))
}

/// Prometheus' configuration file.
fn config(scrapes: &[Value], rules: &Path) -> Value {
    json!({
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [rules],
        "scrape_configs": scrapes,
    })
}

/// GET over HTTP 1.0, which asks for an answer in one piece; the body, if the status is 200.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let failed = |action: &'static str| Error::io(action, format!("http://{address}{path}"));
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_LIMIT).map_err(failed("connect to"))?;
    stream.set_read_timeout(Some(REQUEST_LIMIT)).map_err(failed("ask"))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(failed("ask"))?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_LIMIT)
        .read_to_end(&mut answer)
        .map_err(failed("read"))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    Err(Error::refused(
        format!("Prometheus says {status} to {path}: {body}"),
        "look at the expression",
    ))
}

/// Percent-encoding of all but letters and digits.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The value of `[time, "value"]`.
fn number(pair: &Value) -> f64 {
    pair[1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}
