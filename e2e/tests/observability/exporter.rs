//! A stand-in for a member or an operator, for Prometheus to scrape.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use althing_e2e::observability::{Kind, Metric, series};

/// A program that exports some metrics over HTTP: counters and histograms grow with each scrape.
pub(crate) struct Exporter {
    pub(crate) address: SocketAddr,
    stopped: Arc<AtomicBool>,
    scrapes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Exporter {
    pub(crate) fn start(metrics: &'static [Metric]) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), metrics)
    }

    pub(crate) fn start_at(address: SocketAddr, metrics: &'static [Metric]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (stopped, scrapes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stopped), Arc::clone(&scrapes));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                // A scrape that was given up is Prometheus' business.
                drop(answer(
                    stream,
                    &page(metrics, count.fetch_add(1, Ordering::Relaxed) + 1),
                ));
            }
        });
        Self {
            address,
            stopped,
            scrapes,
            thread,
        }
    }

    pub(crate) fn scrapes(&self) -> u64 {
        self.scrapes.load(Ordering::Relaxed)
    }

    /// Closes the port and says which it was.
    pub(crate) fn stop(self) -> SocketAddr {
        self.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address).unwrap());
        self.thread.join().unwrap();
        self.address
    }
}

fn answer(mut stream: TcpStream, page: &str) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        if line?.is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n{page}"
    )
}

fn page(metrics: &[Metric], scrape: u64) -> String {
    let labels = r#"shard="1",peer="2",member_id="1",version="1",method="Put",code="OK",outcome="applied",kind="K",keyspace="default""#;
    let lines = |&(name, kind): &Metric| -> String {
        let value = match (kind, name) {
            (Kind::Gauge, "up") => return String::new(),
            (Kind::Gauge, "althing_raft_voters") => 3,
            (Kind::Gauge, "althing_raft_learners" | "althing_groups_leaderless") => 0,
            (Kind::Gauge, _) => 1,
            (Kind::Counter, "althing_raft_leader_changes") => 1,
            (Kind::Counter | Kind::Histogram, _) => scrape,
        };
        let line = |series: String| {
            let buckets = if series.ends_with("_bucket") {
                &["0.001", "+Inf"][..]
            } else {
                &[]
            };
            let plain = buckets.is_empty().then(|| format!("{series}{{{labels}}} {value}\n"));
            let buckets = buckets
                .iter()
                .map(|le| format!("{series}{{{labels},le=\"{le}\"}} {value}\n"));
            plain.into_iter().chain(buckets).collect::<String>()
        };
        series((name, kind)).into_iter().map(line).collect()
    };
    metrics.iter().map(lines).collect()
}
