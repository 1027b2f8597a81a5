//! What a node measures, in Prometheus' words.
//!
//! Counters and histograms are written where things happen; gauges of Raft and storage are set when somebody scrapes.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of a group's metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Shard {
    /// Group id.
    pub shard: u64,
}

/// Labels of what a leader knows about a follower.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ShardPeer {
    /// Group id.
    pub shard: u64,
    /// Member id.
    pub peer: String,
}

/// Labels of a connection.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Peer {
    /// Member id.
    pub peer: String,
}

/// Labels of proposals.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Proposal {
    /// Group id.
    pub shard: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a proposal ended.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as the variants are")]
pub enum Outcome {
    /// Applied.
    applied,
    /// Refused before it was proposed, or certainly without effect.
    refused,
    /// The client does not know.
    unknown,
}

/// Labels of requests.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Request {
    /// gRPC method.
    pub method: &'static str,
    /// gRPC code.
    pub code: String,
}

/// Labels of request times.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Method {
    /// gRPC method.
    pub method: &'static str,
}

/// Labels of a keyspace's metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Keyspace {
    /// Name.
    pub keyspace: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MemberInfo {
    member_id: String,
    version: &'static str,
}

/// Buckets from 50 us (an fdatasync of a fast disk) to 13 s, doubling.
#[derive(Clone)]
pub struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.000_05, 2.0, 19))
    }
}

type FloatCounter = Counter<f64, AtomicU64>;
type Histograms<L> = Family<L, Histogram, Latency>;

macro_rules! metrics {
    ($($(#[$doc:meta])* $field:ident : $kind:ty = $make:expr, $name:literal, $help:literal;)*) => {
        /// All of them.
        pub struct Metrics {
            registry: Registry,
            $($(#[$doc])* pub $field: $kind,)*
        }

        impl Metrics {
            /// Registers everything under this member's name.
            #[must_use]
            pub fn new(member_id: String) -> Self {
                let mut registry = Registry::default();
                let info = Family::<MemberInfo, Gauge>::default();
                info.get_or_create(&MemberInfo { member_id, version: env!("CARGO_PKG_VERSION") }).set(1);
                registry.register("althing_member_info", "This member", info);
                $(
                    let $field: $kind = $make;
                    registry.register($name, $help, $field.clone());
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

fn latency() -> Histogram {
    Latency.new_metric()
}

fn latencies<L: Clone + std::hash::Hash + Eq>() -> Histograms<L> {
    Family::new_with_constructor(Latency)
}

metrics! {
    /// 1 if this member leads.
    raft_leader: Family<Shard, Gauge> = Family::default(), "althing_raft_leader", "Whether this member leads the shard";
    /// 1 if it knows a leader.
    raft_has_leader: Family<Shard, Gauge> = Family::default(), "althing_raft_has_leader", "Whether this member knows the shard's leader";
    /// Leaders seen.
    raft_leader_changes: Family<Shard, Counter> = Family::default(), "althing_raft_leader_changes", "Leaders that this member saw come up";
    /// Term.
    raft_term: Family<Shard, Gauge> = Family::default(), "althing_raft_term", "Raft term";
    /// Commit index.
    raft_commit_index: Family<Shard, Gauge> = Family::default(), "althing_raft_commit_index", "Last index known to be committed";
    /// Applied index.
    raft_applied_index: Family<Shard, Gauge> = Family::default(), "althing_raft_applied_index", "Last index applied to the state machine";
    /// Voters.
    raft_voters: Family<Shard, Gauge> = Family::default(), "althing_raft_voters", "Members with a vote";
    /// Learners.
    raft_learners: Family<Shard, Gauge> = Family::default(), "althing_raft_learners", "Members without a vote";
    /// Entries that a peer lacks, at the leader.
    raft_peer_lag: Family<ShardPeer, Gauge> = Family::default(), "althing_raft_peer_lag", "Entries that a peer lacks, as its leader knows";
    /// Local reads.
    reads_local: Family<Shard, Gauge> = Family::default(), "althing_reads_local", "Linearizable reads answered from this member's state without a message, since the start";
    /// Held reads.
    reads_held: Family<Shard, Gauge> = Family::default(), "althing_reads_held", "Local reads that waited for the newest write of their keys, since the start";
    /// Bounced reads.
    reads_bounced: Family<Shard, Gauge> = Family::default(), "althing_reads_bounced", "Held reads that asked the leader after all, since the start";
    /// Reads by index.
    reads_by_index: Family<Shard, Gauge> = Family::default(), "althing_reads_by_index", "Linearizable reads that needed the leader or a round of it, since the start";
    /// Gate.
    read_lease: Family<Shard, Gauge> = Family::default(), "althing_read_lease", "Whether this member would answer a linearizable read without a message now";
    /// Epoch.
    roster_epoch: Family<Shard, Gauge> = Family::default(), "althing_roster_epoch", "Rosters of the present term before this one";
    /// Responders.
    roster_responders: Family<Shard, Gauge> = Family::default(), "althing_roster_responders", "Members beside the leader that may answer reads under the present roster";
    /// Commands by how they ended.
    proposals: Family<Proposal, Counter> = Family::default(), "althing_proposals", "Commands of this member's clients, by how they ended";
    /// Commands under way.
    proposals_pending: Family<Shard, Gauge> = Family::default(), "althing_proposals_pending", "Commands of this member's clients under way";
    /// Requests.
    grpc_requests: Family<Request, Counter> = Family::default(), "althing_grpc_requests", "Requests answered, by method and gRPC code";
    /// Time per request.
    grpc_duration: Histograms<Method> = latencies(), "althing_grpc_request_duration_seconds", "Time from a request to its answer";
    /// Time per sync of the log.
    wal_fsync: Histogram = latency(), "althing_wal_fsync_duration_seconds", "Time of one write and sync of the log";
    /// Time from propose to commit.
    commit_duration: Histograms<Shard> = latencies(), "althing_commit_duration_seconds", "Time from proposing a command to its commit";
    /// Time per batch of the state machine.
    apply_duration: Histograms<Shard> = latencies(), "althing_apply_duration_seconds", "Time to apply one batch to the state machine";
    /// Committed and not applied.
    apply_lag: Family<Shard, Gauge> = Family::default(), "althing_apply_lag", "Committed entries that are not applied yet";
    /// Bytes of the log.
    wal_bytes: Gauge = Gauge::default(), "althing_wal_bytes", "Bytes of the write-ahead log on disk";
    /// Bytes of the store.
    store_bytes: Gauge = Gauge::default(), "althing_store_bytes", "Bytes of the state store on disk";
    /// Bytes of it in use.
    store_bytes_in_use: Gauge = Gauge::default(), "althing_store_bytes_in_use", "Bytes of the state store that a fresh copy would take";
    /// Free bytes.
    volume_free: Gauge = Gauge::default(), "althing_volume_free_bytes", "Free bytes of the volume";
    /// All bytes.
    volume_size: Gauge = Gauge::default(), "althing_volume_size_bytes", "Size of the volume";
    /// Keys.
    store_keys: Gauge = Gauge::default(), "althing_store_keys", "Keys that are there now";
    /// Revision.
    store_revision: Family<Keyspace, Gauge> = Family::default(), "althing_store_revision", "Current revision of a keyspace";
    /// Bytes sent.
    peer_sent: Family<Peer, Counter> = Family::default(), "althing_peer_sent_bytes", "Bytes sent to a peer";
    /// Messages sent.
    peer_messages: Family<Peer, Counter> = Family::default(), "althing_peer_sent_messages", "Messages of all shards sent to a peer";
    /// Bytes received.
    peer_received: Family<Peer, Counter> = Family::default(), "althing_peer_received_bytes", "Bytes received from a peer";
    /// 1 if connected.
    peer_connected: Family<Peer, Gauge> = Family::default(), "althing_peer_connected", "Whether the stream to a peer is up";
    /// Memory.
    memory: Gauge = Gauge::default(), "process_resident_memory_bytes", "Resident memory";
    /// Processor time.
    cpu: FloatCounter = FloatCounter::default(), "process_cpu_seconds", "User and system time";
}

impl Metrics {
    /// The page that Prometheus scrapes.
    #[must_use]
    pub fn text(&self) -> String {
        self.read_process();
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("invariant: writing to a string cannot fail");
        text
    }

    /// Forgets peers that left.
    pub fn forget_peer(&self, peer: &str) {
        let labels = Peer { peer: peer.to_owned() };
        self.peer_sent.remove(&labels);
        self.peer_messages.remove(&labels);
        self.peer_received.remove(&labels);
        self.peer_connected.remove(&labels);
    }

    fn read_process(&self) {
        /// Linux' own units: clock ticks are 100 a second for programs, and pages 4 KiB where we build for.
        const TICKS_PER_SECOND: f64 = 100.0;
        let page_bytes = rustix::param::page_size() as i64;
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm")
            && let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok())
        {
            self.memory.set(pages * page_bytes);
        }
        if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
            // The name may hold spaces; it ends with the last parenthesis.
            && let Some((_, fields)) = stat.rsplit_once(')')
        {
            let ticks: f64 = fields
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|ticks| ticks.parse::<f64>().ok())
                .sum();
            let more = ticks / TICKS_PER_SECOND - self.cpu.get();
            if more > 0.0 {
                self.cpu.inc_by(more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_agreed_names() {
        let metrics = Metrics::new("00000000000000aa".to_owned());
        let shard = Shard { shard: 1 };
        metrics.raft_leader.get_or_create(&shard).set(1);
        metrics.raft_leader_changes.get_or_create(&shard).inc();
        metrics
            .proposals
            .get_or_create(&Proposal {
                shard: 1,
                outcome: Outcome::applied,
            })
            .inc();
        metrics
            .grpc_duration
            .get_or_create(&Method {
                method: "etcdserverpb.KV/Put",
            })
            .observe(0.001);
        let text = metrics.text();
        for line in [
            r#"althing_member_info{member_id="00000000000000aa",version=""#,
            r#"althing_raft_leader{shard="1"} 1"#,
            r#"althing_raft_leader_changes_total{shard="1"} 1"#,
            r#"althing_proposals_total{shard="1",outcome="applied"} 1"#,
            r#"althing_grpc_request_duration_seconds_count{method="etcdserverpb.KV/Put"} 1"#,
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
