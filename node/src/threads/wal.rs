//! The log writer: whatever gathered during the last sync becomes the next one.

use super::die;
use crate::clock::Clock;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::space::RETRY_INTERVAL;
use crate::threads::host::Job;
use crate::waiters::Waiters;
use althing_raft::ids::{GroupId, LogPosition};
use althing_shard::{Event, WriteToken};
use althing_wal::{GroupWrite, Wal, WalError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
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

/// The thread's state.
pub struct Writer {
    /// The log.
    pub wal: Wal,
    /// Where the work comes from.
    pub inbox: Arc<Inbox<WalJob>>,
    /// Who is told what is durable.
    pub host: Arc<Inbox<Job>>,
    /// Clients.
    pub waiters: Arc<Waiters>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// Set while the volume has no room for the next segment.
    pub starved: Arc<AtomicBool>,
}

impl Writer {
    /// Runs until the inbox is closed and empty.
    pub fn run(mut self) {
        loop {
            let retry = self.wal.wants_space().then(|| self.clock.instant() + RETRY_INTERVAL);
            let Some(jobs) = self.inbox.take(retry) else { return };
            if !jobs.is_empty() {
                let started = self.clock.instant();
                let mut last = None;
                let mut others = Vec::new();
                for job in jobs {
                    if !self.append(job, &mut last, &mut others) {
                        return;
                    }
                }
                self.sync(started, last, others);
            }
            self.prepare();
        }
    }

    /// Appends, and waits for room if it takes that; `false` if the node ends first. Nobody was promised anything about
    /// what is then not written.
    fn append(&mut self, job: WalJob, last: &mut Option<WriteToken>, others: &mut Vec<oneshot::Sender<()>>) -> bool {
        loop {
            let result = match &job {
                WalJob::Write { writes, .. } | WalJob::WriteFor { writes, .. } => self.wal.append(writes),
                WalJob::Compact { group, up_to } => self.wal.compact(*group, *up_to),
            };
            match result {
                Ok(()) => break,
                Err(error @ WalError::NoSpace { .. }) => {
                    if !self.starved.swap(true, Ordering::AcqRel) {
                        tracing::error!(%error, "the volume is full: writes wait, reads go on");
                    }
                    if self.inbox.is_closed() {
                        return false;
                    }
                    std::thread::sleep(RETRY_INTERVAL);
                }
                Err(error) => die("the log cannot be written", &error),
            }
        }
        match job {
            WalJob::Write { token, .. } => *last = Some(token),
            WalJob::WriteFor { done, .. } => others.push(done),
            WalJob::Compact { .. } => {}
        }
        true
    }

    fn sync(&mut self, started: Instant, last: Option<WriteToken>, others: Vec<oneshot::Sender<()>>) {
        if let Err(error) = self.wal.sync() {
            die("the log cannot be made durable", &error);
        }
        let ended = self.clock.instant();
        let metrics = &self.metrics;
        metrics.wal_fsync.observe(ended.duration_since(started).as_secs_f64());
        metrics
            .wal_bytes
            .set(i64::try_from(self.wal.stats().bytes).unwrap_or(i64::MAX));
        if let Some(token) = last {
            self.waiters.synced(token, started, ended);
            self.host.push(Job::Event(Event::Written(token)));
        }
        for done in others {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }

    /// Makes the next segment, a little at a time, while nobody waits for the result.
    fn prepare(&mut self) {
        match self.wal.prepare() {
            Ok(()) | Err(WalError::NoSpace { .. }) => {}
            Err(error) => die("the log cannot make its next segment", &error),
        }
        let starved = self.wal.wants_space();
        if self.starved.swap(starved, Ordering::AcqRel) != starved {
            tracing::warn!(
                starved,
                "whether the volume has room for the log's next segment has changed"
            );
        }
    }
}
