//! The checkpointer: makes applied state durable now and then, so that the log can be cut.

use super::die;
use crate::shared::Shared;
use crate::threads::host::Job;
use althing_raft::ids::{GroupId, LogPosition};
use althing_shard::Event;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Applied bytes after which a checkpoint is worth its syncs: a restart replays at most about as much.
pub const CHECKPOINT_BYTES: usize = 16 << 20;
/// Longest time between checkpoints while something is applied.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);

/// Runs until the other end of `kicks` is gone, then makes a last one.
pub fn run(kicks: &Receiver<()>, shared: &Shared) {
    let mut done: BTreeMap<GroupId, LogPosition> = BTreeMap::new();
    loop {
        let ended = match kicks.recv_timeout(CHECKPOINT_INTERVAL) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        // Without room the log keeps what it has; it is the truth, and this only makes it shorter.
        let roomy = shared.room.takes(0);
        for (group, mvcc) in shared.groups.all().into_iter().filter(|_| roomy) {
            if done.get(&group) == Some(&mvcc.applied().position) {
                continue;
            }
            match mvcc.checkpoint() {
                Ok(meta) => {
                    done.insert(group, meta.position);
                    shared.set_durable(group, meta.position);
                    shared.host.push(Job::Event(Event::Checkpointed {
                        group,
                        position: meta.position,
                    }));
                }
                Err(error) => die("the state store cannot be made durable", &error),
            }
        }
        if ended {
            return;
        }
    }
}
