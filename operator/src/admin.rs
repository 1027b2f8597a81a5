//! Calls the nodes' HTTP admin API.

use std::time::Duration;

use althing_admin::{
    AddLearnerRequest, BootstrapRequest, ConfigGuard, KeyspaceRequest, LabelsRequest, LayoutStatus, MemberList,
    NodeStatus, Problem, ProblemReason, TransferLeaderRequest, paths,
};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a member may take to say how it is. One that is slower counts as silent for this turn, so that a member that
/// is cut off does not hold up the others.
const OBSERVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a change may take: it has to be committed by a quorum.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(8);

/// A request without a body.
const NOTHING: Option<&()> = None;

/// Why a node did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// No answer, or not a whole one.
    #[error("{url} does not answer: {source}")]
    Silent {
        /// What was called.
        url: String,
        /// Cause.
        source: reqwest::Error,
    },
    /// It refused.
    #[error("{url} refuses ({:?}): {}", problem.reason, problem.message)]
    Refused {
        /// What was called.
        url: String,
        /// Its reason.
        problem: Problem,
    },
    /// It answered an error without a reason.
    #[error("{url} answers {status}")]
    Strange {
        /// What was called.
        url: String,
        /// HTTP status.
        status: u16,
    },
}

impl AdminError {
    /// Whether looking again is all that is needed: the configuration moved on, or the leader changed.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Silent { .. } => true,
            Self::Strange { .. } => false,
            Self::Refused { problem, .. } => match problem.reason {
                ProblemReason::NotLeader
                | ProblemReason::Conflict
                | ProblemReason::LearnerBehind
                | ProblemReason::Unavailable
                | ProblemReason::NotFound => true,
                ProblemReason::Invalid | ProblemReason::OtherCluster => false,
            },
        }
    }
}

/// A client for all nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    http: reqwest::Client,
}

impl AdminClient {
    /// A client that goes to the nodes directly, whatever proxy the environment names.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .connect_timeout(OBSERVE_TIMEOUT)
                .build()?,
        })
    }

    /// How the node is.
    pub(crate) async fn status(&self, base: &str) -> Result<NodeStatus, AdminError> {
        self.get(base, paths::STATUS).await
    }

    /// The members as this node knows them.
    pub(crate) async fn members(&self, base: &str) -> Result<MemberList, AdminError> {
        self.get(base, paths::MEMBERS).await
    }

    /// Makes an empty node the first member.
    pub(crate) async fn bootstrap(&self, base: &str, request: &BootstrapRequest) -> Result<(), AdminError> {
        self.post(base, paths::BOOTSTRAP, request).await
    }

    /// Asks the leader to add a learner.
    pub(crate) async fn add_learner(&self, base: &str, request: &AddLearnerRequest) -> Result<(), AdminError> {
        self.post(base, paths::MEMBERS, request).await
    }

    /// Asks the leader to give a learner its vote.
    pub(crate) async fn promote(&self, base: &str, id: &str, guard: &ConfigGuard) -> Result<(), AdminError> {
        self.post(base, &paths::PROMOTE.replace("{id}", id), guard).await
    }

    /// Asks the leader to hand over.
    pub(crate) async fn transfer(
        &self,
        base: &str,
        shard: u64,
        request: &TransferLeaderRequest,
    ) -> Result<(), AdminError> {
        self.post(
            base,
            &paths::TRANSFER_LEADER.replace("{id}", &shard.to_string()),
            request,
        )
        .await
    }

    /// Asks the leader to remove a member.
    pub(crate) async fn remove(&self, base: &str, id: &str, expected_config_index: u64) -> Result<(), AdminError> {
        let path = paths::MEMBER.replace("{id}", id);
        let url = format!("{base}{path}?expectedConfigIndex={expected_config_index}");
        let sent = self.http.delete(&url).timeout(CHANGE_TIMEOUT).send().await;
        accepted(url, sent).await.map(drop)
    }

    /// The whole layout, as this node has applied it.
    pub(crate) async fn layout(&self, base: &str) -> Result<LayoutStatus, AdminError> {
        self.get(base, paths::LAYOUT).await
    }

    /// Asks the meta group's leader to make or change a keyspace.
    pub(crate) async fn put_keyspace(
        &self,
        base: &str,
        name: &str,
        request: &KeyspaceRequest,
    ) -> Result<(), AdminError> {
        self.change(
            Method::PUT,
            base,
            &paths::KEYSPACE.replace("{name}", name),
            Some(request),
        )
        .await
    }

    /// Asks the meta group's leader to end a keyspace.
    pub(crate) async fn drop_keyspace(&self, base: &str, name: &str) -> Result<(), AdminError> {
        self.change(Method::DELETE, base, &paths::KEYSPACE.replace("{name}", name), NOTHING)
            .await
    }

    /// Asks the meta group's leader to have a member emptied, or to let it take replicas again.
    pub(crate) async fn drain(&self, base: &str, id: &str, drain: bool) -> Result<(), AdminError> {
        let method = if drain { Method::POST } else { Method::DELETE };
        self.change(method, base, &paths::DRAIN.replace("{id}", id), NOTHING)
            .await
    }

    /// Tells the meta group's leader where a member is.
    pub(crate) async fn set_labels(&self, base: &str, id: &str, request: &LabelsRequest) -> Result<(), AdminError> {
        self.change(Method::PUT, base, &paths::LABELS.replace("{id}", id), Some(request))
            .await
    }

    async fn get<T: DeserializeOwned>(&self, base: &str, path: &str) -> Result<T, AdminError> {
        let url = format!("{base}{path}");
        let sent = self.http.get(&url).timeout(OBSERVE_TIMEOUT).send().await;
        let answer = accepted(url.clone(), sent).await?;
        answer.json().await.map_err(|source| AdminError::Silent { url, source })
    }

    async fn post(&self, base: &str, path: &str, body: &impl Serialize) -> Result<(), AdminError> {
        self.change(Method::POST, base, path, Some(body)).await
    }

    async fn change(
        &self,
        method: Method,
        base: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), AdminError> {
        let url = format!("{base}{path}");
        let request = self.http.request(method, &url).timeout(CHANGE_TIMEOUT);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        accepted(url, request.send().await).await.map(drop)
    }
}

async fn accepted(
    url: String,
    sent: Result<reqwest::Response, reqwest::Error>,
) -> Result<reqwest::Response, AdminError> {
    let answer = match sent {
        Ok(answer) => answer,
        Err(source) => return Err(AdminError::Silent { url, source }),
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    match answer.json::<Problem>().await {
        Ok(problem) => Err(AdminError::Refused { url, problem }),
        Err(_) => Err(AdminError::Strange {
            url,
            status: status.as_u16(),
        }),
    }
}
