//! Asks nodes on this machine through their HTTP admin API.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use althing_admin::client::{AdminClient, AdminError};
use althing_admin::{LayoutStatus, MemberList, NodeStatus};

use super::action::Ask;

/// Clients by URL, so that connections are kept between two looks. At most one for each member's ports, whose number
/// `hub::MAX_CLUSTERS` bounds.
#[derive(Debug, Default)]
pub(crate) struct Asker {
    clients: Mutex<BTreeMap<String, AdminClient>>,
}

impl Asker {
    fn client(&self, admin_url: &str) -> Result<AdminClient, AdminError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(admin_url) {
            return Ok(client.clone());
        }
        let client = AdminClient::new(admin_url)?;
        clients.insert(admin_url.to_owned(), client.clone());
        Ok(client)
    }

    /// What a node says of itself; none if it does not answer in time, or not sensibly.
    pub(crate) async fn status(&self, admin_url: &str, within: Duration) -> Option<NodeStatus> {
        let client = self.client(admin_url).ok()?;
        tokio::time::timeout(within, client.status()).await.ok()?.ok()
    }

    /// The members as a node knows them.
    pub(crate) async fn members(&self, admin_url: &str, within: Duration) -> Option<MemberList> {
        let client = self.client(admin_url).ok()?;
        tokio::time::timeout(within, client.members()).await.ok()?.ok()
    }

    /// The whole layout as a node has applied it.
    pub(crate) async fn layout(&self, admin_url: &str) -> Result<LayoutStatus, AdminError> {
        self.client(admin_url)?.layout().await
    }

    /// Asks for a change. Each request names what it expects to find, so an answer that got lost does no harm.
    pub(crate) async fn ask(&self, admin_url: &str, ask: Ask) -> Result<(), AdminError> {
        let client = self.client(admin_url)?;
        match ask {
            Ask::Bootstrap(request) => client.bootstrap(&request).await,
            Ask::AddLearner(request) => client.add_learner(&request).await.map(drop),
            Ask::Promote(id, guard) => client.promote(&id, &guard).await.map(drop),
            Ask::Remove(id, guard) => client.remove(&id, &guard).await.map(drop),
            Ask::TransferLeader(shard, request) => client.transfer_leader(shard, &request).await.map(drop),
            Ask::Drain(id) => client.drain(&id).await.map(drop),
            Ask::Undrain(id) => client.undrain(&id).await.map(drop),
            Ask::PutKeyspace(name, request) => client.put_keyspace(&name, &request).await.map(drop),
            Ask::DropKeyspace(name) => client.drop_keyspace(&name).await.map(drop),
        }
    }
}
