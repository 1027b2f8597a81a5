//! One node of a herd: its host, and what its disk holds.

use super::{Answer, ELECTION, HEARTBEAT, HIBERNATE_AFTER};
use crate::rng::mix;
use althing_raft::entry::{Entry, HardState};
use althing_raft::ids::{GroupId, Index, MemberId, Now};
use althing_raft::io::{Config, RequestId, Soft, Start};
use althing_shard::envelope::BootNonce;
use althing_shard::policy::CutPolicy;
use althing_shard::{GroupStart, Host, HostConfig};
use althing_wal::GroupWrite;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a node has durably of a group: all of its log, from the beginning.
pub(super) type Disk = BTreeMap<GroupId, (HardState, Vec<Entry>)>;

pub(super) struct Node {
    pub(super) host: Option<Host>,
    pub(super) boot: u64,
    disk: Disk,
    pub(super) wake_at: Option<Now>,
    /// It does nothing before.
    pub(super) held_until: Now,
    pub(super) soft: BTreeMap<GroupId, Soft>,
    /// The value that the state machine of each group holds.
    pub(super) values: BTreeMap<GroupId, u64>,
    pub(super) answers: BTreeMap<RequestId, Answer>,
    /// Reads under way: the group, and the newest value that was acknowledged when they came.
    pub(super) reads: BTreeMap<RequestId, (GroupId, u64)>,
}

/// A group whose first members are these: the birth of each, one after the other.
pub(super) fn born(voters: &[MemberId]) -> (HardState, Vec<Entry>) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut hard_state = HardState::default();
    for voter in voters {
        let start = Start::birth(*voter, Bytes::new());
        hard_state = start.hard_state;
        for mut entry in start.entries {
            entry.index = Index(entries.len() as u64 + 1);
            entries.push(entry);
        }
    }
    hard_state.commit = Index(entries.len() as u64);
    (hard_state, entries)
}

impl Node {
    pub(super) fn new(disk: Disk) -> Self {
        Self {
            host: None,
            boot: 0,
            disk,
            wake_at: None,
            held_until: Now::default(),
            soft: BTreeMap::new(),
            values: BTreeMap::new(),
            answers: BTreeMap::new(),
            reads: BTreeMap::new(),
        }
    }

    pub(super) fn start(&mut self, now: Now, me: MemberId, boot: u64) {
        self.boot = boot;
        self.wake_at = None;
        self.soft.clear();
        self.values.clear();
        self.reads.clear();
        let mut host = Host::new(HostConfig {
            me,
            nonce: BootNonce(mix(boot)),
            heartbeat_interval: HEARTBEAT,
            silence: Some(ELECTION),
            cut: CutPolicy::PRODUCTION,
            needs_stamp: |_| false,
        });
        for (group, (hard_state, entries)) in &self.disk {
            let config = Config {
                group: *group,
                id: me,
                election_timeout: ELECTION,
                heartbeat_interval: HEARTBEAT,
                seed: mix(boot ^ mix(group.0)),
                append_bytes_max: 1 << 20,
                inflight_appends_max: 16,
                inflight_bytes_max: 1 << 20,
                uncommitted_bytes_max: 1 << 20,
                drift_ppm: 10_000,
                demote_after: HEARTBEAT * 4,
                hibernate_after: Some(HIBERNATE_AFTER),
                footprint: althing_shard::envelope::footprint,
            };
            let start = Start {
                hard_state: *hard_state,
                entries: entries.clone(),
                ..Start::default()
            };
            host.add_group(now, GroupStart { config, start });
        }
        self.host = Some(host);
    }

    /// Whether it is still the same process.
    pub(super) fn runs(&self, boot: u64) -> bool {
        self.boot == boot && self.host.is_some()
    }

    /// A write is durable.
    pub(super) fn write(&mut self, writes: Vec<GroupWrite>) {
        for write in writes {
            let (hard_state, entries) = self.disk.entry(write.group).or_default();
            *hard_state = write.hard_state.unwrap_or(*hard_state);
            if let Some(first) = write.entries.first() {
                entries.retain(|entry| entry.index < first.index);
            }
            entries.extend(write.entries);
        }
    }

    pub(super) fn value(&self, group: GroupId) -> u64 {
        self.values.get(&group).copied().unwrap_or_default()
    }
}
