//! Carries out a plan, one step after the other, and stops at the first that does not go through: the next turn looks
//! again. Every step is safe to repeat, and between any two of them the operator may die (`failpoints`).

use althing_admin::{AddLearnerRequest, BootstrapRequest, ConfigGuard, TransferLeaderRequest};
use althing_crds::{RaftCluster, ValidatedCluster, names};
use althing_plan::model::{Desired, MemberId, Ordinal, Plan, Planned, Step};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::apply::namespace;
use crate::build;
use crate::context::Context;
use crate::error::{Error, is_conflict, is_not_found};
use crate::observe::World;
use crate::settings::NodeImage;
use crate::{events, update_status};

/// What steps act with.
pub(crate) struct Executor<'a> {
    pub(crate) context: &'a Context,
    pub(crate) raw: &'a RaftCluster,
    pub(crate) cluster: &'a ValidatedCluster,
    pub(crate) image: &'a NodeImage,
    pub(crate) workload_hash: &'a str,
    pub(crate) world: &'a World,
}

impl Executor<'_> {
    /// Carries out the steps in order.
    pub(crate) async fn run(&self, desired: &Desired, plan: &Plan) -> Result<(), Error> {
        let observed = &self.world.observed;
        for Planned { step, reason } in &plan.steps {
            crash_point("before", step);
            self.step(step).await?;
            crash_point("after", step);
            let what = step.describe(desired, observed);
            tracing::info!(cluster = self.cluster.name, step = step.word(), reason, "{what}");
            let member = step.member(desired, observed);
            events::step(self.context, self.raw, step, member, format!("{what}: {reason}")).await;
        }
        Ok(())
    }

    async fn step(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::RecordClusterId => {
                update_status::record_cluster_id(self.context, self.raw, &draw_cluster_id()?, false).await
            }
            Step::AdoptCluster { cluster_id } => {
                update_status::record_cluster_id(self.context, self.raw, cluster_id, true).await
            }
            Step::RecordBootstrapped => match &self.world.observed.cluster_id {
                Some(id) => update_status::record_cluster_id(self.context, self.raw, id, true).await,
                None => Err(Error::Stale("the cluster id is not recorded".into())),
            },
            Step::CreateVolume(ordinal) => self.create_volume(*ordinal).await,
            Step::StartMember(ordinal) => self.start(*ordinal).await,
            Step::StopMember(ordinal) => self.stop(*ordinal).await,
            Step::DeleteVolume(ordinal) => self.delete_volume(*ordinal).await,
            Step::Bootstrap { ordinal, cluster_id } => {
                let request = BootstrapRequest {
                    cluster_id: cluster_id.clone(),
                };
                self.node(
                    "bootstrap the cluster",
                    self.context.admin.bootstrap(self.url(*ordinal)?, &request).await,
                )
            }
            Step::AddLearner {
                ordinal,
                member,
                expected_config_index,
            } => self.add_learner(*ordinal, member, *expected_config_index).await,
            Step::Promote {
                member,
                expected_config_index,
            } => {
                let guard = ConfigGuard {
                    expected_config_index: Some(*expected_config_index),
                };
                self.node(
                    "promote a learner",
                    self.context.admin.promote(self.leader()?, &member.0, &guard).await,
                )
            }
            Step::TransferLeader { from: _, to } => {
                let request = TransferLeaderRequest { to: Some(to.0.clone()) };
                let group = self.world.observed.consensus.as_ref().map(|consensus| consensus.group);
                let group = group.ok_or_else(|| Error::Stale("there is no leader to ask".into()))?;
                self.node(
                    "move leadership",
                    self.context.admin.transfer(self.leader()?, group, &request).await,
                )
            }
            Step::Drain { member } => self.node(
                "empty a member",
                self.context.admin.drain(self.leader()?, &member.0, true).await,
            ),
            Step::Undrain { member } => self.node(
                "let a member take replicas",
                self.context.admin.drain(self.leader()?, &member.0, false).await,
            ),
            Step::RemoveMember {
                member,
                expected_config_index,
            } => self.node(
                "remove a member",
                self.context
                    .admin
                    .remove(self.leader()?, &member.0, *expected_config_index)
                    .await,
            ),
        }
    }

    async fn create_volume(&self, ordinal: Ordinal) -> Result<(), Error> {
        let claim = build::volume_claim(self.cluster, ordinal);
        let name = claim.name_any();
        let claims: Api<PersistentVolumeClaim> = self.api();
        created(
            claims.create(&PostParams::default(), &claim).await,
            format!("create volume claim {name}"),
        )
    }

    async fn start(&self, ordinal: Ordinal) -> Result<(), Error> {
        let pod = build::pod(self.cluster, ordinal, self.image, self.workload_hash);
        let name = pod.name_any();
        let pods: Api<Pod> = self.api();
        created(
            pods.create(&PostParams::default(), &pod).await,
            format!("create pod {name}"),
        )
    }

    async fn stop(&self, ordinal: Ordinal) -> Result<(), Error> {
        let Some(pod) = self.world.pods.get(&ordinal) else {
            return Ok(());
        };
        let name = pod.name_any();
        let pods: Api<Pod> = self.api();
        deleted(
            pods.delete(&name, &exactly(pod.uid())).await.map(drop),
            format!("delete pod {name}"),
        )
    }

    async fn delete_volume(&self, ordinal: Ordinal) -> Result<(), Error> {
        let Some(claim) = self.world.claims.get(&ordinal) else {
            return Ok(());
        };
        let name = names::volume(&self.cluster.name, ordinal.0);
        let claims: Api<PersistentVolumeClaim> = self.api();
        deleted(
            claims.delete(&name, &exactly(claim.uid())).await.map(drop),
            format!("delete volume claim {name}"),
        )
    }

    async fn add_learner(&self, ordinal: Ordinal, member: &MemberId, index: u64) -> Result<(), Error> {
        let report = self
            .world
            .observed
            .slots
            .get(&ordinal)
            .and_then(|slot| slot.report.as_ref())
            .filter(|report| report.member_id == *member)
            .ok_or_else(|| {
                Error::Stale(format!(
                    "{} does not answer any more",
                    ordinal.member(&self.cluster.name)
                ))
            })?;
        let request = AddLearnerRequest {
            id: member.0.clone(),
            name: ordinal.member(&self.cluster.name),
            peer_address: report.peer_address.clone(),
            client_urls: report.client_urls.clone(),
            expected_config_index: Some(index),
        };
        self.node(
            "add a learner",
            self.context.admin.add_learner(self.leader()?, &request).await,
        )
    }

    fn node(&self, doing: &str, outcome: Result<(), crate::admin::AdminError>) -> Result<(), Error> {
        outcome.map_err(|source| Error::Node {
            doing: format!("{doing} of {}", self.cluster.name),
            source,
        })
    }

    fn url(&self, ordinal: Ordinal) -> Result<&str, Error> {
        let url = self.world.admin_urls.get(&ordinal).map(String::as_str);
        url.ok_or_else(|| {
            Error::Stale(format!(
                "{} has no address any more",
                ordinal.member(&self.cluster.name)
            ))
        })
    }

    pub(crate) fn leader(&self) -> Result<&str, Error> {
        let observed = &self.world.observed;
        let leader = observed.consensus.as_ref().map(|consensus| &consensus.leader);
        let at = observed
            .slots
            .iter()
            .find(|(_, slot)| slot.report.as_ref().map(|report| &report.member_id) == leader);
        match at {
            Some((ordinal, _)) if leader.is_some() => self.url(*ordinal),
            Some(_) | None => Err(Error::Stale("there is no leader to ask".into())),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), namespace(self.cluster))
    }
}

/// Dies here if the end-to-end tests say so: `FAILPOINTS=after-AddLearner=panic`.
#[cfg(feature = "failpoints")]
fn crash_point(when: &str, step: &Step) {
    let name = format!("{when}-{}", step.word());
    fail::fail_point!(&name);
}

/// Nothing, without the feature.
#[cfg(not(feature = "failpoints"))]
fn crash_point(_when: &str, _step: &Step) {}

/// Deletes this very object: one of the same name that was made meanwhile stays.
fn exactly(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// One that exists already is looked at again in the next turn.
fn created<K>(outcome: Result<K, kube::Error>, doing: String) -> Result<(), Error> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(Error::kube(doing)(error)),
    }
}

fn deleted(outcome: Result<(), kube::Error>, doing: String) -> Result<(), Error> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::kube(doing)(error)),
    }
}

/// Sixteen hex digits, never all zero.
fn draw_cluster_id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes).max(1)))
}
