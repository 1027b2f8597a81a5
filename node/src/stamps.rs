//! Revisions for the groups that this member leads, from their keyspaces' sequencers.

use crate::ask::{Ask, Reply};
use crate::atlas::Atlas;
use crate::reach::Reach;
use crate::shared::Shared;
use crate::threads::host::Job;
use althing_raft::ids::GroupId;
use althing_shard::{Event, Ticket};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Longest time that a sequencer may take; the host asks again, and clients have a deadline of their own.
const STAMP_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks sequencers on the host's behalf.
pub struct Stamps {
    shared: Arc<Shared>,
    atlas: Arc<Atlas>,
    reach: Arc<Reach>,
    runtime: Handle,
}

impl Stamps {
    /// Of a node.
    #[must_use]
    pub fn new(shared: Arc<Shared>, atlas: Arc<Atlas>, reach: Arc<Reach>, runtime: Handle) -> Self {
        Self {
            shared,
            atlas,
            reach,
            runtime,
        }
    }

    /// Asks for revisions and tells the host.
    pub fn ask(&self, group: GroupId, ticket: Ticket, count: u32) {
        let (shared, atlas, reach) = (
            Arc::clone(&self.shared),
            Arc::clone(&self.atlas),
            Arc::clone(&self.reach),
        );
        self.runtime.spawn(async move {
            let chart = atlas.chart();
            let first = match chart.sequencer_of(group) {
                None => None,
                Some((sequencer, replicas)) => {
                    let ask = Ask::Stamp {
                        group: sequencer,
                        count,
                    };
                    match reach.ask(sequencer, replicas, &ask, STAMP_TIMEOUT).await {
                        Ok(Reply::Stamp(first)) => Some(first),
                        Ok(Reply::Answer(_) | Reply::Failure(_) | Reply::Control(_)) => None,
                        Err(error) => {
                            tracing::debug!(%group, %sequencer, %error, "no revisions now");
                            None
                        }
                    }
                }
            };
            shared.host.push(Job::Event(Event::Stamped { group, ticket, first }));
        });
    }
}
