//! What a node measures, in Prometheus' words.
//!
//! Counters and histograms are written where things happen; gauges of Raft and storage are set when somebody scrapes.

use crate::shard_labels::{Named, OfShard, PerShard, ShardValue};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of a group's metrics.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Shard {
    /// Group id.
    pub shard: u64,
}

/// Labels of what a leader knows about a follower.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
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
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
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

macro_rules! of_shard {
    ($($labels:ident: $($field:ident),*;)*) => {
        $(
            impl OfShard for $labels {
                fn shard(&mut self) -> &mut u64 {
                    &mut self.shard
                }
            }

            impl EncodeLabelSet for $labels {
                fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
                    ("shard", ShardValue(self.shard)).encode(encoder.encode_label())?;
                    $((stringify!($field), self.$field.clone()).encode(encoder.encode_label())?;)*
                    Ok(())
                }
            }
        )*
    };
}

of_shard! {
    Shard: ;
    ShardPeer: peer;
    Proposal: outcome;
}

/// Labels of calls to other nodes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Call {
    /// How it ended.
    pub outcome: CallOutcome,
}

/// How a call to another node ended.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as the variants are")]
pub enum CallOutcome {
    /// Answered.
    answered,
    /// It certainly did not happen.
    refused,
    /// It may have happened.
    unknown,
}

/// Labels of operations on shards.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Operation {
    /// What kind.
    pub kind: OperationKind,
}

/// Kinds of operations on shards.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum OperationKind {
    /// A keyspace's first shard is made.
    Create,
    /// A keyspace gets a sequencer.
    Sequence,
    /// A shard is cut in two.
    Split,
    /// Two shards become one.
    Merge,
    /// A shard's replicas change.
    Move,
}

impl EncodeLabelValue for OperationKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Create => "create",
            Self::Sequence => "sequence",
            Self::Split => "split",
            Self::Merge => "merge",
            Self::Move => "move",
        })
    }
}

impl OperationKind {
    const ALL: [Self; 5] = [Self::Create, Self::Sequence, Self::Split, Self::Merge, Self::Move];
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
    /// Name. There are few keyspaces, by a limit of the shard map.
    pub keyspace: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MemberInfo {
    member_id: String,
    version: &'static str,
}

/// Buckets from 50 us (an fdatasync of a fast disk) to 13 s, doubling.
#[derive(Clone, Debug)]
pub struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.000_05, 2.0, 19))
    }
}

type FloatCounter = Counter<f64, AtomicU64>;
type Histograms<L> = Family<L, Histogram, Latency>;

macro_rules! metrics {
    ($named:ident; $($(#[$doc:meta])* $field:ident : $kind:ty = $make:expr, $name:literal, $help:literal;)*) => {
        /// All of them.
        pub struct Metrics {
            registry: Registry,
            named: Named,
            operations_seen: Mutex<BTreeMap<u64, OperationKind>>,
            scraping: Mutex<()>,
            $($(#[$doc])* pub $field: $kind,)*
        }

        impl Metrics {
            /// Registers everything under this member's name.
            #[must_use]
            pub fn new(member_id: String) -> Self {
                let mut registry = Registry::default();
                let $named = Named::default();
                let info = Family::<MemberInfo, Gauge>::default();
                info.get_or_create(&MemberInfo { member_id, version: env!("CARGO_PKG_VERSION") }).set(1);
                registry.register("althing_member_info", "This member", info);
                $(
                    let $field: $kind = $make;
                    registry.register($name, $help, $field.clone());
                )*
                let metrics = Self { registry, named: $named, operations_seen: Mutex::default(), scraping: Mutex::default(), $($field,)* };
                metrics.begin_at_zero();
                metrics
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

metrics! { named;
    /// 1 if this member leads.
    raft_leader: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_leader", "Whether this member leads the shard";
    /// 1 if it knows a leader.
    raft_has_leader: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_has_leader", "Whether this member knows the shard's leader";
    /// Leaders seen.
    raft_leader_changes: PerShard<Shard, Counter> = PerShard::new(&named, Counter::default), "althing_raft_leader_changes", "Leaders that this member saw come up";
    /// Term.
    raft_term: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_term", "Raft term";
    /// Commit index.
    raft_commit_index: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_commit_index", "Last index known to be committed";
    /// Applied index.
    raft_applied_index: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_applied_index", "Last index applied to the state machine";
    /// Voters.
    raft_voters: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_voters", "Members with a vote";
    /// Learners.
    raft_learners: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_learners", "Members without a vote";
    /// Entries that a peer lacks, at the leader.
    raft_peer_lag: PerShard<ShardPeer, Gauge> = PerShard::new(&named, Gauge::default), "althing_raft_peer_lag", "Entries that a peer lacks, as its leader knows";
    /// Local reads.
    reads_local: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_reads_local", "Linearizable reads answered from this member's state without a message, since the start";
    /// Held reads.
    reads_held: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_reads_held", "Local reads that waited for the newest write of their keys, since the start";
    /// Bounced reads.
    reads_bounced: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_reads_bounced", "Held reads that asked the leader after all, since the start";
    /// Reads by index.
    reads_by_index: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_reads_by_index", "Linearizable reads that needed the leader or a round of it, since the start";
    /// Gate.
    read_lease: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_read_lease", "Whether this member would answer a linearizable read without a message now";
    /// Epoch.
    roster_epoch: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_roster_epoch", "Rosters of the present term before this one";
    /// Responders.
    roster_responders: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_roster_responders", "Members beside the leader that may answer reads under the present roster";
    /// Commands by how they ended.
    proposals: PerShard<Proposal, Counter> = PerShard::new(&named, Counter::default), "althing_proposals", "Commands of this member's clients, by how they ended";
    /// Commands under way.
    proposals_pending: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_proposals_pending", "Commands of this member's clients under way";
    /// Requests.
    grpc_requests: Family<Request, Counter> = Family::default(), "althing_grpc_requests", "Requests answered, by method and gRPC code";
    /// Time per request.
    grpc_duration: Histograms<Method> = latencies(), "althing_grpc_request_duration_seconds", "Time from a request to its answer";
    /// Time per sync of the log.
    wal_fsync: Histogram = latency(), "althing_wal_fsync_duration_seconds", "Time of one write and sync of the log";
    /// Time from propose to commit.
    commit_duration: PerShard<Shard, Histogram, Latency> = PerShard::new(&named, Latency), "althing_commit_duration_seconds", "Time from proposing a command to its commit";
    /// Time per batch of the state machine.
    apply_duration: PerShard<Shard, Histogram, Latency> = PerShard::new(&named, Latency), "althing_apply_duration_seconds", "Time to apply one batch to the state machine";
    /// Committed and not applied.
    apply_lag: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_apply_lag", "Committed entries that are not applied yet";
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
    /// Groups.
    groups: Gauge = Gauge::default(), "althing_groups", "Shards with a replica at this member, those of the cluster itself too";
    /// Groups that this member leads.
    groups_led: Gauge = Gauge::default(), "althing_groups_led", "Shards that this member leads";
    /// Groups without a leader.
    groups_leaderless: Gauge = Gauge::default(), "althing_groups_leaderless", "Shards whose leader this member does not know";
    /// Bytes of a group.
    shard_bytes: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_shard_bytes", "Bytes of a shard's rows at this member, as a fresh copy would take";
    /// Keys of a group.
    shard_keys: PerShard<Shard, Gauge> = PerShard::new(&named, Gauge::default), "althing_shard_keys", "Keys of a shard that are there now";
    /// Groups that hibernate.
    groups_hibernating: Gauge = Gauge::default(), "althing_groups_hibernating", "Shards that sleep at this member for want of work";
    /// Operations under way.
    operations: Family<Operation, Gauge> = Family::default(), "althing_operations", "Operations on shards under way, at the member that conducts them";
    /// Operations that ended.
    operations_ended: Family<Operation, Counter> = Family::default(), "althing_operations_ended", "Operations on shards that ended, at the member that conducted them then";
    /// Calls to other nodes.
    calls: Family<Call, Counter> = Family::default(), "althing_calls", "Calls to other members, by how they ended";
    /// Calls of other nodes.
    calls_answered: Counter = Counter::default(), "althing_calls_answered", "Calls of other members that this one answered";
    /// Time per call.
    call_duration: Histogram = latency(), "althing_call_duration_seconds", "Time from a call to another member to its answer";
    /// Memory.
    memory: Gauge = Gauge::default(), "process_resident_memory_bytes", "Resident memory";
    /// Processor time.
    cpu: FloatCounter = FloatCounter::default(), "process_cpu_seconds", "User and system time";
}

/// A command of a client under way; counted until it is dropped.
pub struct Pending(Gauge);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A counter whose series begins with its first event has no rate then.
    fn begin_at_zero(&self) {
        for kind in OperationKind::ALL {
            let labels = Operation { kind };
            drop(self.operations.get_or_create(&labels));
            drop(self.operations_ended.get_or_create(&labels));
        }
        for outcome in [CallOutcome::answered, CallOutcome::refused, CallOutcome::unknown] {
            drop(self.calls.get_or_create(&Call { outcome }));
        }
    }

    /// Gives a group that has come to this node a label of its own, if there is one left.
    pub fn name_shard(&self, shard: u64) {
        self.named.add(shard);
    }

    /// Forgets groups that are not on this node any more, and names others in their place.
    pub fn keep_shards(&self, live: impl Iterator<Item = u64> + Clone) {
        for shard in self.named.keep(live) {
            let labels = Shard { shard };
            self.raft_leader_changes.remove(&labels);
            self.commit_duration.remove(&labels);
            self.apply_duration.remove(&labels);
            self.proposals_pending.remove(&labels);
            for outcome in [Outcome::applied, Outcome::refused, Outcome::unknown] {
                self.proposals.remove(&Proposal { shard, outcome });
            }
        }
    }

    /// Begins to set the gauges of groups anew ([`PerShard::fold`]). Held until the page is written, so that two who scrape at once
    /// do not add to each other's.
    pub fn begin_scrape(&self) -> MutexGuard<'_, ()> {
        let scraping = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        for gauges in [
            &self.raft_leader,
            &self.raft_has_leader,
            &self.raft_term,
            &self.raft_commit_index,
            &self.raft_applied_index,
            &self.raft_voters,
            &self.raft_learners,
            &self.reads_local,
            &self.reads_held,
            &self.reads_bounced,
            &self.reads_by_index,
            &self.read_lease,
            &self.roster_epoch,
            &self.roster_responders,
            &self.apply_lag,
            &self.shard_bytes,
            &self.shard_keys,
        ] {
            gauges.clear();
        }
        self.store_revision.clear();
        self.raft_peer_lag.clear();
        scraping
    }

    /// Counts a command as under way for as long as the answer is kept, also if its client goes away.
    #[must_use]
    pub fn pending(&self, shard: u64) -> Pending {
        let gauge = self.proposals_pending.get_or_create_owned(&Shard { shard });
        gauge.inc();
        Pending(gauge)
    }

    /// Takes note of the operations in the shard map, by their ids, at the member that conducts them. Those that were there before and
    /// are not any more have ended. `None`: another member conducts, and counts.
    pub fn see_operations(&self, now: Option<BTreeMap<u64, OperationKind>>) {
        let mut seen = self.operations_seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = &now {
            for (_, kind) in seen.iter().filter(|(id, _)| !now.contains_key(id)) {
                self.operations_ended.get_or_create(&Operation { kind: *kind }).inc();
            }
        }
        let now = now.unwrap_or_default();
        for kind in OperationKind::ALL {
            let count = now.values().filter(|other| **other == kind).count();
            let gauge = self.operations.get_or_create_owned(&Operation { kind });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        *seen = now;
    }

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
    use crate::shard_labels::{Fold, SHARDS_LABELLED_MAX};

    #[test]
    fn the_page_has_the_agreed_names() {
        let metrics = Metrics::new("00000000000000aa".to_owned());
        let shard = Shard { shard: 1 };
        metrics.name_shard(1);
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

    #[test]
    fn a_node_with_thousands_of_groups_has_as_many_series_as_one_with_a_few_dozen() {
        let page = |groups: u64| {
            let metrics = Metrics::new("a".to_owned());
            (0..groups).for_each(|shard| metrics.name_shard(shard));
            let _scrape = metrics.begin_scrape();
            for shard in 0..groups {
                metrics.raft_leader.fold(Shard { shard }, 1, Fold::Sum);
                metrics
                    .raft_has_leader
                    .fold(Shard { shard }, i64::from(shard % 2 == 0), Fold::Min);
                metrics.raft_term.fold(Shard { shard }, 7, Fold::Max);
                metrics.commit_duration.get_or_create(&Shard { shard }).observe(0.1);
                let outcome = Outcome::applied;
                metrics.proposals.get_or_create(&Proposal { shard, outcome }).inc();
            }
            metrics.text()
        };
        let few = SHARDS_LABELLED_MAX as u64 + 1;
        assert_eq!(page(few).lines().count(), page(5_000).lines().count());
        let others = 5_000 - SHARDS_LABELLED_MAX;
        for line in [
            r#"althing_raft_leader{shard="0"} 1"#.to_owned(),
            format!(r#"althing_raft_leader{{shard="other"}} {others}"#),
            r#"althing_raft_has_leader{shard="other"} 0"#.to_owned(),
            r#"althing_raft_term{shard="other"} 7"#.to_owned(),
            format!(r#"althing_proposals_total{{shard="other",outcome="applied"}} {others}"#),
            format!(r#"althing_commit_duration_seconds_count{{shard="other"}} {others}"#),
        ] {
            assert!(page(5_000).contains(&line), "{line} is missing");
        }
    }

    #[test]
    fn what_was_measured_of_a_group_leaves_with_it() {
        let metrics = Metrics::new("a".to_owned());
        for shard in [1, 2] {
            metrics.name_shard(shard);
            metrics.raft_leader_changes.get_or_create(&Shard { shard }).inc();
            metrics.apply_duration.get_or_create(&Shard { shard }).observe(0.1);
            let outcome = Outcome::unknown;
            metrics.proposals.get_or_create(&Proposal { shard, outcome }).inc();
        }
        let pending = metrics.pending(2);
        metrics.keep_shards([1].into_iter());
        // Whoever still holds on to it brings nothing back.
        drop(pending);
        let text = metrics.text();
        assert!(!text.contains(r#"shard="2""#), "{text}");
        let sum = |outcome| {
            let labels = Proposal { shard: 0, outcome };
            metrics.proposals.sum(labels, Counter::get)
        };
        assert_eq!((sum(Outcome::unknown), sum(Outcome::applied)), (1, 0));
    }

    #[test]
    fn an_operation_is_counted_by_its_kind_when_the_map_has_it_no_more() {
        let metrics = Metrics::new("a".to_owned());
        let (split, merge) = (OperationKind::Split, OperationKind::Merge);
        metrics.see_operations(Some([(1, split), (2, split), (3, merge)].into()));
        metrics.see_operations(Some([(2, split), (4, OperationKind::Move)].into()));
        let text = metrics.text();
        for line in [
            r#"althing_operations{kind="split"} 1"#,
            r#"althing_operations{kind="merge"} 0"#,
            r#"althing_operations{kind="move"} 1"#,
            r#"althing_operations_ended_total{kind="split"} 1"#,
            r#"althing_operations_ended_total{kind="merge"} 1"#,
            r#"althing_operations_ended_total{kind="move"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        // Whoever conducts next counts how these end.
        metrics.see_operations(None);
        metrics.see_operations(Some(BTreeMap::new()));
        let text = metrics.text();
        for line in [
            r#"althing_operations{kind="split"} 0"#,
            r#"althing_operations_ended_total{kind="move"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
