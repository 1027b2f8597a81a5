//! The log writer: whatever gathered during the last sync becomes the next one.

use super::die;
use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::threads::host::Job;
use crate::waiters::Waiters;
use althing_raft::ids::{GroupId, LogPosition};
use althing_shard::{Event, WriteToken};
use althing_wal::{GroupWrite, Wal};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What the writer is asked to do.
pub enum WalJob {
    /// Append and sync, then tell the host.
    Write {
        /// The host's name for it.
        token: WriteToken,
        /// What to append.
        writes: Vec<GroupWrite>,
    },
    /// The same for somebody else.
    WriteFor {
        /// What to append.
        writes: Vec<GroupWrite>,
        /// Told when it is durable.
        done: oneshot::Sender<()>,
    },
    /// Forget entries up to here.
    Compact {
        /// The group.
        group: GroupId,
        /// The last to go.
        up_to: LogPosition,
    },
}

/// Runs until the inbox is closed and empty.
pub fn run(
    mut wal: Wal,
    inbox: &Inbox<WalJob>,
    host: &Inbox<Job>,
    waiters: &Waiters,
    metrics: &Arc<Metrics>,
    clock: Clock,
) {
    while let Some(jobs) = inbox.take(None) {
        let started = clock.instant();
        let mut last = None;
        let mut others = Vec::new();
        for job in jobs {
            let result = match job {
                WalJob::Write { token, writes } => {
                    last = Some(token);
                    wal.append(&writes)
                }
                WalJob::WriteFor { writes, done } => {
                    others.push(done);
                    wal.append(&writes)
                }
                WalJob::Compact { group, up_to } => wal.compact(group, up_to),
            };
            if let Err(error) = result {
                die("the log cannot be written", &error);
            }
        }
        if let Err(error) = wal.sync() {
            die("the log cannot be made durable", &error);
        }
        let ended = clock.instant();
        metrics.wal_fsync.observe(ended.duration_since(started).as_secs_f64());
        metrics
            .wal_bytes
            .set(i64::try_from(wal.stats().bytes).unwrap_or(i64::MAX));
        if let Some(token) = last {
            waiters.synced(token, started, ended);
            host.push(Job::Event(Event::Written(token)));
        }
        for done in others {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
}
