//! What a node is told: flags over environment over file over defaults, checked all at once.

use althing_raft::roster::{DRIFT_PPM_MAX, DRIFT_PPM_MIN, ReadMode, ReadSpec, Responders, Revisions};
use clap::Args;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Shortest time between two heartbeats: below it they would be most of the traffic.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
/// An election timeout has to outlast some lost heartbeats; etcd asks for the same factor.
const ELECTION_FACTOR_MIN: u32 = 5;
/// Longest election timeout; etcd's limit.
const ELECTION_MAX: Duration = Duration::from_secs(50);
/// Longest name: a Kubernetes pod's.
const NAME_BYTES_MAX: usize = 253;

/// Flags of `althing-node run`. Every flag is also read from `ALTHING_<FLAG>` and from the file, as a snake_case key.
#[derive(Args, Debug, Default, Clone)]
pub struct RunArgs {
    /// File with settings in TOML; flags and environment win over it
    #[arg(long, env = "ALTHING_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the member, `<cluster>-<ordinal>`; stored in the volume at the first boot
    #[arg(long, env = "ALTHING_NAME")]
    pub name: Option<String>,
    /// Directory of the volume
    #[arg(long, env = "ALTHING_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where to listen for clients (gRPC) [default: 0.0.0.0:2379]
    #[arg(long, env = "ALTHING_CLIENT_ADDR", value_name = "IP:PORT")]
    pub client_addr: Option<String>,
    /// Where to listen for peers [default: 0.0.0.0:2380]
    #[arg(long, env = "ALTHING_PEER_ADDR", value_name = "IP:PORT")]
    pub peer_addr: Option<String>,
    /// Where to listen for the HTTP admin API and metrics [default: 0.0.0.0:2381]
    #[arg(long, env = "ALTHING_ADMIN_ADDR", value_name = "IP:PORT")]
    pub admin_addr: Option<String>,
    /// URLs that clients should use, comma-separated [default: from --client-addr]
    #[arg(long, env = "ALTHING_ADVERTISE_CLIENT", value_name = "URL")]
    pub advertise_client: Option<String>,
    /// Where peers reach this member; the host is resolved at each connect [default: from --peer-addr]
    #[arg(long, env = "ALTHING_ADVERTISE_PEER", value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,
    /// URL of the admin API [default: from --admin-addr]
    #[arg(long, env = "ALTHING_ADVERTISE_ADMIN", value_name = "URL")]
    pub advertise_admin: Option<String>,
    /// Where this member runs, for spreading replicas: `zone=ZONE,node=MACHINE`, and whatever else
    #[arg(long, env = "ALTHING_LABELS", value_name = "NAME=VALUE,...")]
    pub labels: Option<String>,
    /// How often a leader speaks when it has nothing to say [default: 100ms]
    #[arg(long, env = "ALTHING_HEARTBEAT_INTERVAL", value_name = "TIME")]
    pub heartbeat_interval: Option<String>,
    /// Shortest silence after which a follower stands for election [default: 1s]
    #[arg(long, env = "ALTHING_ELECTION_TIMEOUT", value_name = "TIME")]
    pub election_timeout: Option<String>,
    /// How a new cluster answers linearizable reads; an existing one is changed by the admin API [default: read-index]
    #[arg(long, env = "ALTHING_READ_MODE", value_name = "read-index|leader-lease|roster-lease")]
    pub read_mode: Option<String>,
    /// Length of its read leases [default: 1s]
    #[arg(long, env = "ALTHING_READ_LEASE", value_name = "TIME")]
    pub read_lease: Option<String>,
    /// How far the rate of this machine's clock may be from true time, in parts per million [default: 10000]
    #[arg(long, env = "ALTHING_CLOCK_DRIFT_PPM", value_name = "PPM")]
    pub clock_drift_ppm: Option<String>,
    /// Bytes of a log segment; smaller ones for small volumes [default: 67108864]
    #[arg(long, env = "ALTHING_WAL_SEGMENT_BYTES", value_name = "BYTES")]
    pub wal_segment_bytes: Option<String>,
    /// Free bytes of the volume below which writes are refused [default: 134217728]
    #[arg(long, env = "ALTHING_VOLUME_RESERVE_BYTES", value_name = "BYTES")]
    pub volume_reserve_bytes: Option<String>,
    /// Bytes of the state store's page cache [default: 134217728]
    #[arg(long, env = "ALTHING_STORE_CACHE_BYTES", value_name = "BYTES")]
    pub store_cache_bytes: Option<String>,
    /// Where to send traces and metrics, OTLP over gRPC; nowhere if not set
    #[arg(long, env = "ALTHING_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced, 0 to 1 [default: 0.05]
    #[arg(long, env = "ALTHING_TRACE_SAMPLE_RATIO", value_name = "RATIO")]
    pub trace_sample_ratio: Option<String>,
    /// Form of the log [default: text]
    #[arg(long, env = "ALTHING_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<String>,
    /// What to log, as a tracing filter [default: info]
    #[arg(long, env = "ALTHING_LOG_FILTER", value_name = "FILTER")]
    pub log_filter: Option<String>,
}

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A node's settings, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the member.
    pub name: String,
    /// Directory of the volume.
    pub data_dir: PathBuf,
    /// Where to listen for clients.
    pub client_addr: SocketAddr,
    /// Where to listen for peers.
    pub peer_addr: SocketAddr,
    /// Where to listen for the admin API.
    pub admin_addr: SocketAddr,
    /// URLs for clients; empty: from the bound address.
    pub advertise_client: Vec<String>,
    /// `host:port` for peers; none: from the bound address.
    pub advertise_peer: Option<String>,
    /// URL of the admin API; none: from the bound address.
    pub advertise_admin: Option<String>,
    /// Where it runs.
    pub labels: BTreeMap<String, String>,
    /// Raft's heartbeat interval.
    pub heartbeat_interval: Duration,
    /// Raft's election timeout.
    pub election_timeout: Duration,
    /// How a new cluster answers linearizable reads.
    pub reads: ReadSpec,
    /// Bound on the error of this machine's clock rate.
    pub clock_drift_ppm: u32,
    /// Bytes of a log segment.
    pub wal_segment_bytes: u64,
    /// Free bytes of the volume below which writes are refused.
    pub volume_reserve_bytes: u64,
    /// Bytes of the state store's page cache.
    pub store_cache_bytes: u64,
    /// OTLP endpoint, if telemetry goes out.
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced.
    pub trace_sample_ratio: f64,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Filter of the log.
    pub log_filter: String,
}

/// Everything that is wrong with the settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} setting(s) cannot be used:\n  - {}", .0.len(), .0.join("\n  - "))]
pub struct ConfigError(pub Vec<String>);

impl RunArgs {
    /// Joins flags and environment (both in `self`) with the file's text, and checks the result.
    ///
    /// # Errors
    /// All problems at once, each with the setting's name and what would be right.
    pub fn resolve(&self, file: Option<&str>) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        let mut settings = file.map_or_else(BTreeMap::new, |text| read_file(text, &mut problems));
        for (key, value) in self.given() {
            if let Some(value) = value {
                settings.insert(key.to_owned(), value.clone());
            }
        }
        let config = Reader {
            settings,
            problems: &mut problems,
        }
        .read();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigError(problems)),
        }
    }

    fn given(&self) -> [(&'static str, &Option<String>); 21] {
        [
            ("name", &self.name),
            ("data_dir", &self.data_dir),
            ("client_addr", &self.client_addr),
            ("peer_addr", &self.peer_addr),
            ("admin_addr", &self.admin_addr),
            ("advertise_client", &self.advertise_client),
            ("advertise_peer", &self.advertise_peer),
            ("advertise_admin", &self.advertise_admin),
            ("labels", &self.labels),
            ("heartbeat_interval", &self.heartbeat_interval),
            ("election_timeout", &self.election_timeout),
            ("read_mode", &self.read_mode),
            ("read_lease", &self.read_lease),
            ("clock_drift_ppm", &self.clock_drift_ppm),
            ("wal_segment_bytes", &self.wal_segment_bytes),
            ("volume_reserve_bytes", &self.volume_reserve_bytes),
            ("store_cache_bytes", &self.store_cache_bytes),
            ("otlp_endpoint", &self.otlp_endpoint),
            ("trace_sample_ratio", &self.trace_sample_ratio),
            ("log_format", &self.log_format),
            ("log_filter", &self.log_filter),
        ]
    }
}

/// The file's settings as text, so that they are checked like flags.
fn read_file(text: &str, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            problems.push(format!("the file is not TOML: {error}"));
            return BTreeMap::new();
        }
    };
    let empty = RunArgs::default();
    let known: Vec<_> = empty.given().iter().map(|(key, _)| *key).collect();
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        if !known.contains(&key.as_str()) {
            problems.push(format!(
                "{key} in the file is not a setting; there are: {}",
                known.join(", ")
            ));
            continue;
        }
        let text = match value {
            toml::Value::String(text) => Some(text),
            toml::Value::Integer(number) => Some(number.to_string()),
            toml::Value::Float(number) => Some(number.to_string()),
            toml::Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map(|items| items.join(",")),
            toml::Value::Boolean(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
        };
        match text {
            Some(text) => {
                settings.insert(key, text);
            }
            None => problems.push(format!(
                "{key} in the file must be a string, a number or a list of strings"
            )),
        }
    }
    settings
}

struct Reader<'a> {
    settings: BTreeMap<String, String>,
    problems: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn labels(&mut self) -> BTreeMap<String, String> {
        let text = self.get("labels").unwrap_or_default();
        let mut labels = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            match pair.trim().split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    labels.insert(name.to_owned(), value.to_owned());
                }
                Some(_) | None => {
                    self.check(false, || {
                        format!("labels: {pair:?} must be NAME=VALUE, several with commas between them")
                    });
                }
            }
        }
        labels
    }

    fn read(mut self) -> Option<Config> {
        let name = self.required("name", "the member's name, as orders-0");
        let name = name.filter(|name| {
            let fits = !name.is_empty()
                && name.len() <= NAME_BYTES_MAX
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
            self.check(fits, || {
                format!("name {name:?} must be 1 to {NAME_BYTES_MAX} letters, digits, '-', '.' or '_'")
            })
        });
        let data_dir = self
            .required("data_dir", "the directory of the member's volume")
            .map(PathBuf::from);
        let client_addr = self.addr("client_addr", "0.0.0.0:2379");
        let peer_addr = self.addr("peer_addr", "0.0.0.0:2380");
        let admin_addr = self.addr("admin_addr", "0.0.0.0:2381");
        let advertise_client: Vec<String> = self
            .get("advertise_client")
            .map(|urls| urls.split(',').map(|url| url.trim().to_owned()).collect())
            .unwrap_or_default();
        for url in &advertise_client {
            self.url("advertise_client", url);
        }
        let advertise_peer = self.get("advertise_peer");
        if let Some(address) = &advertise_peer {
            let port = address
                .rsplit_once(':')
                .filter(|(host, _)| !host.is_empty() && !host.contains('/'));
            let fits = port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
            self.check(fits, || {
                format!("advertise_peer {address:?} must be HOST:PORT, without a scheme")
            });
        }
        let advertise_admin = self.get("advertise_admin");
        if let Some(url) = &advertise_admin {
            self.url("advertise_admin", url);
        }
        for (advertise, addr, bound) in [
            (
                "advertise_client",
                "client_addr",
                client_addr.filter(|_| advertise_client.is_empty()),
            ),
            (
                "advertise_peer",
                "peer_addr",
                peer_addr.filter(|_| advertise_peer.is_none()),
            ),
            (
                "advertise_admin",
                "admin_addr",
                admin_addr.filter(|_| advertise_admin.is_none()),
            ),
        ] {
            let fits = bound.is_none_or(|bound| !bound.ip().is_unspecified());
            self.check(fits, || {
                format!(
                    "{advertise} must be set, because others cannot connect to {addr} {}",
                    bound.expect("invariant: just looked at")
                )
            });
        }
        let labels = self.labels();
        let heartbeat_interval = self.time("heartbeat_interval", "100ms");
        let election_timeout = self.time("election_timeout", "1s");
        if let (Some(heartbeat), Some(election)) = (heartbeat_interval, election_timeout) {
            self.check(heartbeat >= HEARTBEAT_MIN, || {
                format!("heartbeat_interval must be at least {HEARTBEAT_MIN:?}")
            });
            self.check(election >= heartbeat * ELECTION_FACTOR_MIN && election <= ELECTION_MAX, || {
                format!("election_timeout must be at least {ELECTION_FACTOR_MIN} heartbeat intervals and at most {ELECTION_MAX:?}")
            });
        }
        let mode = self.get("read_mode").unwrap_or_else(|| "read-index".to_owned());
        let read_mode = match mode.as_str() {
            "read-index" => Some(ReadMode::ReadIndex),
            "leader-lease" => Some(ReadMode::LeaderLease),
            "roster-lease" => Some(ReadMode::RosterLease),
            _ => None,
        };
        self.check(read_mode.is_some(), || {
            format!("read_mode {mode:?} must be read-index, leader-lease or roster-lease")
        });
        let read_lease = self.time("read_lease", "1s");
        let reads = read_mode.zip(read_lease).map(|(mode, lease)| ReadSpec {
            mode,
            responders: Responders::All,
            revisions: Revisions::Current,
            lease,
        });
        if let (Some(reads), Some(heartbeat), Some(election)) = (&reads, heartbeat_interval, election_timeout)
            && let Err(error) = reads.validate(heartbeat, election)
        {
            self.problems.push(format!("read_lease: {error}"));
        }
        let drift = self.get("clock_drift_ppm").unwrap_or_else(|| DRIFT_PPM_MIN.to_string());
        let clock_drift_ppm = drift
            .parse()
            .ok()
            .filter(|ppm| (DRIFT_PPM_MIN..=DRIFT_PPM_MAX).contains(ppm));
        self.check(clock_drift_ppm.is_some(), || {
            format!("clock_drift_ppm {drift:?} must be a number from {DRIFT_PPM_MIN} to {DRIFT_PPM_MAX}")
        });
        let wal_segment_bytes = self.number("wal_segment_bytes", 64 << 20);
        if let Some(bytes) = wal_segment_bytes {
            // Below it a request of the largest size would not fit.
            let fits = (4 << 20..=althing_wal::SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(8);
            self.check(fits, || {
                format!(
                    "wal_segment_bytes must be a multiple of 8 from 4194304 to {}",
                    althing_wal::SEGMENT_BYTES_MAX
                )
            });
        }
        let volume_reserve_bytes = self.number("volume_reserve_bytes", 128 << 20);
        let store_cache_bytes = self.number("store_cache_bytes", 128 << 20);
        let otlp_endpoint = self.get("otlp_endpoint").filter(|url| !url.is_empty());
        if let Some(url) = &otlp_endpoint {
            self.url("otlp_endpoint", url);
        }
        let ratio = self.get("trace_sample_ratio").unwrap_or_else(|| "0.05".to_owned());
        let trace_sample_ratio = ratio.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        self.check(trace_sample_ratio.is_some(), || {
            format!("trace_sample_ratio {ratio:?} must be a number from 0 to 1")
        });
        let format = self.get("log_format").unwrap_or_else(|| "text".to_owned());
        let log_format = match format.as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        };
        self.check(log_format.is_some(), || {
            format!("log_format {format:?} must be text or json")
        });
        let log_filter = self.get("log_filter").unwrap_or_else(|| "info".to_owned());
        let parsed = log_filter.parse::<tracing_subscriber::filter::Targets>();
        self.check(parsed.is_ok(), || {
            format!("log_filter {log_filter:?} must be a list such as info,althing_node=debug")
        });
        Some(Config {
            name: name?,
            data_dir: data_dir?,
            client_addr: client_addr?,
            peer_addr: peer_addr?,
            admin_addr: admin_addr?,
            advertise_client,
            labels,
            advertise_peer,
            advertise_admin,
            heartbeat_interval: heartbeat_interval?,
            election_timeout: election_timeout?,
            reads: reads?,
            clock_drift_ppm: clock_drift_ppm?,
            wal_segment_bytes: wal_segment_bytes?,
            volume_reserve_bytes: volume_reserve_bytes?,
            store_cache_bytes: store_cache_bytes?,
            otlp_endpoint,
            trace_sample_ratio: trace_sample_ratio?,
            log_format: log_format?,
            log_filter,
        })
    }

    fn get(&self, key: &str) -> Option<String> {
        self.settings.get(key).cloned()
    }

    fn check(&mut self, fits: bool, problem: impl FnOnce() -> String) -> bool {
        if !fits {
            self.problems.push(problem());
        }
        fits
    }

    fn required(&mut self, key: &str, meaning: &str) -> Option<String> {
        let value = self.get(key);
        let flag = key.replace('_', "-");
        self.check(value.is_some(), || {
            format!(
                "{key} is missing: give --{flag}, ALTHING_{} or {key} in the file: {meaning}",
                key.to_uppercase()
            )
        });
        value
    }

    fn addr(&mut self, key: &str, default: &str) -> Option<SocketAddr> {
        let text = self.get(key).unwrap_or_else(|| default.to_owned());
        let addr = text.parse().ok();
        self.check(addr.is_some(), || {
            format!("{key} {text:?} must be IP:PORT, as {default}")
        });
        addr
    }

    fn url(&mut self, key: &str, url: &str) {
        let host = url.strip_prefix("http://").unwrap_or_default();
        self.check(!host.is_empty() && !host.starts_with('/'), || {
            format!("{key} {url:?} must be a URL such as http://HOST:PORT (this version serves no TLS)")
        });
    }

    fn time(&mut self, key: &str, default: &str) -> Option<Duration> {
        let text = self.get(key).unwrap_or_else(|| default.to_owned());
        let time = humantime::parse_duration(&text).ok();
        self.check(time.is_some(), || {
            format!("{key} {text:?} must be a time with a unit, as {default}")
        });
        time
    }

    fn number(&mut self, key: &str, default: u64) -> Option<u64> {
        let text = self.get(key).unwrap_or_else(|| default.to_string());
        let number = text.parse().ok();
        self.check(number.is_some(), || format!("{key} {text:?} must be a number of bytes"));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn args() -> RunArgs {
        RunArgs {
            name: Some("orders-0".to_owned()),
            data_dir: Some("/data".to_owned()),
            client_addr: Some("127.0.0.1:0".to_owned()),
            peer_addr: Some("127.0.0.1:0".to_owned()),
            admin_addr: Some("127.0.0.1:0".to_owned()),
            ..RunArgs::default()
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "name = \"from-file\"\nelection_timeout = \"3s\"\ntrace_sample_ratio = 0.5\n\
                    advertise_client = [\"http://a:1\", \"http://b:1\"]\n";
        let config = args().resolve(Some(file)).unwrap();
        assert_eq!(config.name, "orders-0");
        assert_eq!(config.election_timeout, Duration::from_secs(3));
        assert_eq!(config.heartbeat_interval, Duration::from_millis(100));
        assert!((config.trace_sample_ratio - 0.5).abs() < f64::EPSILON);
        assert_eq!(config.advertise_client, ["http://a:1", "http://b:1"]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let bad = RunArgs {
            client_addr: Some("localhost".to_owned()),
            advertise_peer: Some("http://x:1".to_owned()),
            heartbeat_interval: Some("1".to_owned()),
            trace_sample_ratio: Some("5".to_owned()),
            log_format: Some("xml".to_owned()),
            otlp_endpoint: Some("collector:4317".to_owned()),
            ..RunArgs::default()
        };
        let error = bad.resolve(Some("colour = \"red\"\nname = true\n")).unwrap_err();
        expect![[r#"
            11 setting(s) cannot be used:
              - colour in the file is not a setting; there are: name, data_dir, client_addr, peer_addr, admin_addr, advertise_client, advertise_peer, advertise_admin, labels, heartbeat_interval, election_timeout, read_mode, read_lease, clock_drift_ppm, wal_segment_bytes, volume_reserve_bytes, store_cache_bytes, otlp_endpoint, trace_sample_ratio, log_format, log_filter
              - name in the file must be a string, a number or a list of strings
              - name is missing: give --name, ALTHING_NAME or name in the file: the member's name, as orders-0
              - data_dir is missing: give --data-dir, ALTHING_DATA_DIR or data_dir in the file: the directory of the member's volume
              - client_addr "localhost" must be IP:PORT, as 0.0.0.0:2379
              - advertise_peer "http://x:1" must be HOST:PORT, without a scheme
              - advertise_admin must be set, because others cannot connect to admin_addr 0.0.0.0:2381
              - heartbeat_interval "1" must be a time with a unit, as 100ms
              - otlp_endpoint "collector:4317" must be a URL such as http://HOST:PORT (this version serves no TLS)
              - trace_sample_ratio "5" must be a number from 0 to 1
              - log_format "xml" must be text or json"#]]
        .assert_eq(&error.to_string());
    }

    #[test]
    fn a_read_lease_that_does_not_outlive_heartbeats_is_refused_with_what_would_do() {
        let bad = RunArgs {
            read_mode: Some("roster-lease".to_owned()),
            read_lease: Some("200ms".to_owned()),
            clock_drift_ppm: Some("500".to_owned()),
            ..args()
        };
        let error = bad.resolve(None).unwrap_err().to_string();
        assert!(
            error.contains("read_lease: a read lease of 200ms is too short") && error.contains("400ms"),
            "{error}"
        );
        assert!(
            error.contains("clock_drift_ppm \"500\" must be a number from 10000"),
            "{error}"
        );
    }

    #[test]
    fn an_election_timeout_below_five_heartbeats_is_refused() {
        let bad = RunArgs {
            election_timeout: Some("400ms".to_owned()),
            ..args()
        };
        let error = bad.resolve(None).unwrap_err();
        assert!(
            error.to_string().contains("election_timeout must be at least 5"),
            "{error}"
        );
    }
}
