//! One reconciliation of a `RaftCluster`: dereference, validate, plan, apply, update status. Nothing waits in here: what is
//! not there yet is looked for again in the next turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use althing_crds::{RaftCluster, ValidatedCluster};
use althing_plan::layout::claims::ports;
use althing_plan::model::{Desired, Plan};
use althing_plan::{ConditionKind, ConditionState, ConditionStatus, assess, explain, plan, spare};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use crate::build::Follows;
use crate::context::Context;
use crate::error::{Cure, Error};
use crate::execute::Executor;
use crate::observe::{World, observe};
use crate::update_status::{Findings, update};
use crate::{apply, build, layout, placement};

/// The kind, in metrics and keys.
pub(crate) const KIND: &str = "RaftCluster";

/// After steps: look at once what they did. Short, so that a scale takes seconds.
const AFTER_STEPS: Duration = Duration::from_millis(300);
/// While something is waited for.
const WHILE_WAITING: Duration = Duration::from_secs(1);
/// While only a person can help.
const WHILE_BLOCKED: Duration = Duration::from_secs(5);
/// When all is as declared: failures that change no Kubernetes object are seen within this time.
const SETTLED: Duration = Duration::from_secs(10);
/// An invalid resource: the watch tells of its next edit; this is only for a watch that was missed.
const INVALID: Duration = Duration::from_secs(300);

/// Reconciles one cluster.
pub(crate) async fn reconcile(
    guarded: Arc<DeserializeGuard<RaftCluster>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let started = Instant::now();
    let outcome = turn(&guarded, &context).await;
    let word = outcome.as_ref().map_or_else(Error::word, |_| "ok");
    context.metrics.reconciled(KIND, word, started.elapsed());
    if outcome.is_ok() {
        context.succeeded(&key(&guarded));
    }
    outcome
}

/// What follows an error.
pub(crate) fn error_policy(
    guarded: Arc<DeserializeGuard<RaftCluster>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let name = guarded.name_any();
    match error.cure() {
        Cure::Edit => {
            tracing::warn!(cluster = name, %error, "waiting for an edit");
            Action::requeue(INVALID)
        }
        Cure::LookAgain => {
            tracing::info!(cluster = name, %error, "looking again");
            Action::requeue(WHILE_WAITING)
        }
        Cure::Retry => {
            let wait = context.failed(&key(&guarded));
            tracing::error!(cluster = name, %error, seconds = wait.as_secs(), "trying again");
            Action::requeue(wait)
        }
    }
}

fn key(guarded: &DeserializeGuard<RaftCluster>) -> String {
    format!(
        "{KIND}/{}/{}",
        guarded.namespace().unwrap_or_default(),
        guarded.name_any()
    )
}

async fn turn(guarded: &DeserializeGuard<RaftCluster>, context: &Context) -> Result<Action, Error> {
    let name = guarded.name_any();
    let namespace = guarded.namespace().unwrap_or_else(|| "default".to_owned());
    if let Err(invalid) = &guarded.0 {
        return Err(Error::Unreadable {
            kind: KIND,
            name,
            message: invalid.error.clone(),
        });
    }
    // What the watch saw may be old, and the memory in the status must not be.
    let api: Api<RaftCluster> = Api::namespaced(context.client.clone(), &namespace);
    let raw = api
        .get_opt(&name)
        .await
        .map_err(Error::kube(format!("read RaftCluster {name}")))?;
    let Some(raw) = raw else {
        context.succeeded(&key(guarded));
        context.applied().forget(&format!("{namespace}/{name}"));
        return Ok(Action::await_change());
    };
    let cluster = match ValidatedCluster::try_from(&raw) {
        Ok(cluster) => cluster,
        Err(error) => {
            update(context, &raw, &invalid(&error.to_string())).await?;
            return Err(error.into());
        }
    };
    let world = match observe(context, &raw, &cluster).await {
        Ok(world) => world,
        Err(error) => {
            update(context, &raw, &unobserved(&error.to_string())).await?;
            return Err(error);
        }
    };
    let image = context.settings.image_of(&cluster);
    let workload_hash = build::workload_hash(&cluster, &image);
    let desired = Desired::new(&cluster, workload_hash.clone());
    let plan = plan(&desired, &world.observed);
    let executor = Executor {
        context,
        raw: &raw,
        cluster: &cluster,
        image: &image,
        workload_hash: &workload_hash,
        world: &world,
    };
    let acted = act(&executor, &desired, &plan).await;
    let findings = findings(&desired, &world, &plan, acted.as_ref().err());
    let reported = update(context, &raw, &findings).await;
    acted?;
    reported?;
    Ok(Action::requeue(next_look(&plan)))
}

async fn act(executor: &Executor<'_>, desired: &Desired, plan: &Plan) -> Result<(), Error> {
    let Executor {
        context,
        cluster,
        world,
        ..
    } = executor;
    if !desired.deleting && !desired.paused {
        let claims = layout::claims(context, apply::namespace(cluster), &cluster.name).await?;
        let follows = Follows {
            voters: voters(desired, world),
            spare: spare(&world.observed.groups),
            ports: ports(&claims),
        };
        apply::resources(context, cluster, &build::resources(cluster, &follows)).await?;
        apply::claims(context, cluster, world).await?;
        if let Ok(leader) = executor.leader() {
            placement::tell(context, cluster, world, leader).await;
        }
    }
    executor.run(desired, plan).await
}

/// How many voters a drain has to spare; the declared number while nobody can tell.
fn voters(desired: &Desired, world: &World) -> usize {
    let declared = usize::try_from(desired.members).expect("invariant: at most nine members");
    world
        .observed
        .consensus
        .as_ref()
        .map_or(declared, |consensus| consensus.voters.len())
}

fn next_look(plan: &Plan) -> Duration {
    if !plan.steps.is_empty() {
        AFTER_STEPS
    } else if plan.waits.iter().any(|wait| wait.reason != "Paused") {
        WHILE_WAITING
    } else if !plan.blocked.is_empty() {
        WHILE_BLOCKED
    } else {
        SETTLED
    }
}

fn findings(desired: &Desired, world: &World, plan: &Plan, failed: Option<&Error>) -> Findings {
    let assessment = assess(desired, &world.observed, plan);
    let mut activity = explain(desired, &world.observed, plan);
    let mut conditions = assessment.conditions.clone();
    // A step that somebody else overtook is no failure: the next turn plans anew.
    if let Some(error) = failed.filter(|error| error.cure() == Cure::Retry) {
        activity.push(format!("Failed: {error}."));
        for condition in &mut conditions {
            match condition.kind {
                ConditionKind::Progressing => {
                    "StepFailed".clone_into(&mut condition.reason);
                    condition.message = error.to_string();
                    condition.status = ConditionStatus::True;
                }
                ConditionKind::Ready => {
                    "StepFailed".clone_into(&mut condition.reason);
                    condition.message = error.to_string();
                    condition.status = ConditionStatus::False;
                }
                ConditionKind::Available | ConditionKind::Degraded | ConditionKind::QuorumHealthy => {}
            }
        }
    }
    Findings {
        conditions,
        assessment: Some(assessment),
        activity,
    }
}

/// An invalid spec says nothing about the cluster that runs: only what the spec decides is told.
fn invalid(message: &str) -> Findings {
    every(
        |kind| match kind {
            ConditionKind::Ready => (ConditionStatus::False, "Invalid"),
            ConditionKind::Progressing => (ConditionStatus::False, "Invalid"),
            ConditionKind::Degraded => (ConditionStatus::True, "Invalid"),
            ConditionKind::Available | ConditionKind::QuorumHealthy => (ConditionStatus::Unknown, "Invalid"),
        },
        message,
    )
}

/// Nothing could be seen.
fn unobserved(message: &str) -> Findings {
    every(|_| (ConditionStatus::Unknown, "NotObserved"), message)
}

fn every(judge: impl Fn(ConditionKind) -> (ConditionStatus, &'static str), message: &str) -> Findings {
    let kinds = [
        ConditionKind::Ready,
        ConditionKind::Available,
        ConditionKind::Progressing,
        ConditionKind::Degraded,
        ConditionKind::QuorumHealthy,
    ];
    let conditions = kinds
        .into_iter()
        .map(|kind| {
            let (status, reason) = judge(kind);
            ConditionState {
                kind,
                status,
                reason: reason.to_owned(),
                message: message.to_owned(),
            }
        })
        .collect();
    Findings {
        conditions,
        assessment: None,
        activity: vec![format!("Blocked: {message}.")],
    }
}
