//! A small client: one method per path, typed errors, a timeout on everything.

use crate::{
    AddLearnerRequest, BootstrapRequest, ConfigGuard, KeyspaceList, KeyspaceRequest, KeyspaceStatus, LabelsRequest,
    LayoutMember, LayoutStatus, MemberList, NodeStatus, OperationStatus, Problem, ReadsRequest, ShardList,
    TransferLeaderRequest, paths,
};
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Time for connecting: a node that is gone should not hold up a look at the others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a whole call: a node gives up on a change after 5 s and two election timeouts.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The node did not answer, or not in the form that the contract promises.
    #[error("{url}: {source}")]
    Transport {
        /// What was called.
        url: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// The node refused, and said why.
    #[error("{url} refuses: {}", .problem.message)]
    Refused {
        /// What was called.
        url: String,
        /// Why.
        problem: Problem,
    },
}

impl AdminError {
    /// Whether the node knows no such path: it is of a version that does not have it yet. Of a path that it has, it would say
    /// what is missing there.
    #[must_use]
    pub fn unknown_path(&self) -> bool {
        match self {
            Self::Transport { source, .. } => source.status() == Some(reqwest::StatusCode::NOT_FOUND),
            Self::Refused { .. } => false,
        }
    }
}

/// A client of one node's admin API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdminClient {
    http: reqwest::Client,
    base: String,
}

impl AdminClient {
    /// For the node at this URL, such as `http://orders-0.orders-peers:2381`.
    ///
    /// # Errors
    /// If the HTTP client cannot be made.
    pub fn new(url: &str) -> Result<Self, AdminError> {
        let base = url.trim_end_matches('/').to_owned();
        // No proxy: nodes are reached directly, whatever the environment says about the rest of the world.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build();
        http.map(|http| Self {
            http,
            base: base.clone(),
        })
        .map_err(|source| AdminError::Transport { url: base, source })
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// As of every call: no answer, or a refusal.
    pub async fn status(&self) -> Result<NodeStatus, AdminError> {
        self.get(paths::STATUS).await
    }

    /// The members, as the node has applied them.
    ///
    /// # Errors
    /// As of every call.
    pub async fn members(&self) -> Result<MemberList, AdminError> {
        self.get(paths::MEMBERS).await
    }

    /// Makes an empty node the first member of a new cluster.
    ///
    /// # Errors
    /// As of every call.
    pub async fn bootstrap(&self, request: &BootstrapRequest) -> Result<(), AdminError> {
        self.send(Method::POST, paths::BOOTSTRAP, Some(request)).await
    }

    /// Adds a learner; the leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn add_learner(&self, request: &AddLearnerRequest) -> Result<MemberList, AdminError> {
        self.send(Method::POST, paths::MEMBERS, Some(request)).await
    }

    /// Promotes a learner; the leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn promote(&self, id: &str, guard: &ConfigGuard) -> Result<MemberList, AdminError> {
        self.send(Method::POST, &paths::PROMOTE.replace("{id}", id), Some(guard))
            .await
    }

    /// Removes a member; the leader only, and not itself.
    ///
    /// # Errors
    /// As of every call.
    pub async fn remove(&self, id: &str, guard: &ConfigGuard) -> Result<MemberList, AdminError> {
        let query = guard
            .expected_config_index
            .map(|index| format!("?expectedConfigIndex={index}"))
            .unwrap_or_default();
        self.send::<(), _>(Method::DELETE, &(paths::MEMBER.replace("{id}", id) + &query), None)
            .await
    }

    /// The node's shards.
    ///
    /// # Errors
    /// As of every call.
    pub async fn shards(&self) -> Result<ShardList, AdminError> {
        self.get(paths::SHARDS).await
    }

    /// Moves a shard's leadership; the leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn transfer_leader(&self, shard: u64, request: &TransferLeaderRequest) -> Result<ShardList, AdminError> {
        self.send(
            Method::POST,
            &paths::TRANSFER_LEADER.replace("{id}", &shard.to_string()),
            Some(request),
        )
        .await
    }

    /// Has a shard answer reads in another way; only its leader does.
    ///
    /// # Errors
    /// As of every call.
    pub async fn set_reads(&self, shard: u64, request: &ReadsRequest) -> Result<ShardList, AdminError> {
        self.send(
            Method::PUT,
            &paths::READS.replace("{id}", &shard.to_string()),
            Some(request),
        )
        .await
    }

    /// The whole layout, as the node has applied it.
    ///
    /// # Errors
    /// As of every call.
    pub async fn layout(&self) -> Result<LayoutStatus, AdminError> {
        self.get(paths::LAYOUT).await
    }

    /// The keyspaces and their shards.
    ///
    /// # Errors
    /// As of every call.
    pub async fn keyspaces(&self) -> Result<KeyspaceList, AdminError> {
        self.get(paths::KEYSPACES).await
    }

    /// Makes or changes a keyspace; the meta group's leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn put_keyspace(&self, name: &str, request: &KeyspaceRequest) -> Result<KeyspaceStatus, AdminError> {
        self.send(Method::PUT, &paths::KEYSPACE.replace("{name}", name), Some(request))
            .await
    }

    /// Ends a keyspace, with its data; the meta group's leader only, and never the default one.
    ///
    /// # Errors
    /// As of every call.
    pub async fn drop_keyspace(&self, name: &str) -> Result<KeyspaceStatus, AdminError> {
        self.send::<(), _>(Method::DELETE, &paths::KEYSPACE.replace("{name}", name), None)
            .await
    }

    /// Has a member emptied of replicas; the meta group's leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn drain(&self, id: &str) -> Result<LayoutMember, AdminError> {
        self.send::<(), _>(Method::POST, &paths::DRAIN.replace("{id}", id), None)
            .await
    }

    /// Lets a member take replicas again; the meta group's leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn undrain(&self, id: &str) -> Result<LayoutMember, AdminError> {
        self.send::<(), _>(Method::DELETE, &paths::DRAIN.replace("{id}", id), None)
            .await
    }

    /// Says where a member is; the meta group's leader only.
    ///
    /// # Errors
    /// As of every call.
    pub async fn set_labels(&self, id: &str, request: &LabelsRequest) -> Result<LayoutMember, AdminError> {
        self.send(Method::PUT, &paths::LABELS.replace("{id}", id), Some(request))
            .await
    }

    /// Gives an operation up; the meta group's leader only, and only while nothing of it is beyond return.
    ///
    /// # Errors
    /// As of every call.
    pub async fn cancel_operation(&self, id: u64) -> Result<OperationStatus, AdminError> {
        self.send::<(), _>(Method::DELETE, &paths::OPERATION.replace("{id}", &id.to_string()), None)
            .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        self.send::<(), T>(Method::GET, path, None).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, AdminError> {
        let url = format!("{}{path}", self.base);
        let request = self.http.request(method, &url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        Self::answer(request).await.map_err(|error| match error {
            Failure::Transport(source) => AdminError::Transport { url, source },
            Failure::Refused(problem) => AdminError::Refused { url, problem },
        })
    }

    async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Failure> {
        let response = request.send().await?;
        match response.error_for_status_ref() {
            Ok(_) => Ok(response.json().await?),
            // A refusal explains itself; if it does not, its status has to do.
            Err(status) => Err(response
                .json()
                .await
                .map_or(Failure::Transport(status), Failure::Refused)),
        }
    }
}

enum Failure {
    Transport(reqwest::Error),
    Refused(Problem),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(error.without_url())
    }
}
