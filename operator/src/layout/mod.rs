//! One reconciliation of a `ShardLayout`: dereference, validate, plan, apply, update status. What the keyspace shall be is
//! handed to the meta group; how its shards are cut and placed is the meta group's, and is mirrored here.

mod act;
mod observe;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use althing_crds::{ShardLayout, ValidatedLayout, names};
use althing_plan::layout::{LayoutAssessment, LayoutObserved, LayoutPlan, Obstacle, Seen, assess, plan};
use althing_plan::{ConditionKind, ConditionState, ConditionStatus};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

pub(crate) use observe::claims;

use crate::context::Context;
use crate::error::{Cure, Error};

/// The kind, in metrics and keys.
pub(crate) const KIND: &str = "ShardLayout";

/// While shards are cut, joined or moved: a split takes less than a second, and its progress is worth seeing.
const WHILE_WORKING: Duration = Duration::from_secs(1);
/// While only a person can help, or another layout has to go first.
const WHILE_BLOCKED: Duration = Duration::from_secs(10);
/// When all is as declared: what happens to shards changes no Kubernetes object, and is seen within this time.
const SETTLED: Duration = Duration::from_secs(10);
/// An invalid resource waits for its edit.
const INVALID: Duration = Duration::from_secs(300);

/// Reconciles one layout.
pub(crate) async fn reconcile(
    guarded: Arc<DeserializeGuard<ShardLayout>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let started = Instant::now();
    let outcome = turn(&guarded, &context).await;
    context.metrics.reconciled(
        KIND,
        outcome.as_ref().map_or_else(Error::word, |_| "ok"),
        started.elapsed(),
    );
    if outcome.is_ok() {
        context.succeeded(&key(&guarded));
    }
    outcome
}

/// What follows an error.
pub(crate) fn error_policy(
    guarded: Arc<DeserializeGuard<ShardLayout>>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    tracing::warn!(layout = guarded.name_any(), %error, "cannot reconcile");
    match error.cure() {
        Cure::Edit => Action::requeue(INVALID),
        Cure::LookAgain | Cure::Retry => Action::requeue(context.failed(&key(&guarded))),
    }
}

fn key(guarded: &DeserializeGuard<ShardLayout>) -> String {
    format!(
        "{KIND}/{}/{}",
        guarded.namespace().unwrap_or_default(),
        guarded.name_any()
    )
}

async fn turn(guarded: &DeserializeGuard<ShardLayout>, context: &Context) -> Result<Action, Error> {
    let name = guarded.name_any();
    let namespace = guarded.namespace().unwrap_or_else(|| "default".to_owned());
    if let Err(invalid) = &guarded.0 {
        return Err(Error::Unreadable {
            kind: KIND,
            name,
            message: invalid.error.clone(),
        });
    }
    // What the watch saw may be old, and the last status says which of the shards' changes were told already.
    let layouts: Api<ShardLayout> = Api::namespaced(context.client.clone(), &namespace);
    let raw = layouts
        .get_opt(&name)
        .await
        .map_err(Error::kube(format!("read ShardLayout {name}")))?;
    let Some(raw) = raw else {
        context.succeeded(&key(guarded));
        return Ok(Action::await_change());
    };
    let layout = match ValidatedLayout::try_from(&raw) {
        Ok(layout) => layout,
        Err(error) => {
            status::write(context, &raw, None, &invalid(&error.to_string())).await?;
            return Err(error.into());
        }
    };
    let mut world = observe::observe(context, &raw, &layout).await?;
    let planned = plan(&layout, &world.observed);
    let outcome = act::run(context, &raw, &layout, &world, &planned).await;
    if layout.deleting {
        return ended(outcome, &planned);
    }
    let refused = match outcome {
        Ok(refused) => refused,
        Err(error) => {
            let failed = Obstacle {
                reason: "StepFailed",
                message: error.to_string(),
                stuck: false,
            };
            let assessment = assess(&layout, &world.observed, &planned, Some(&failed));
            status::write(context, &raw, Some(&layout), &assessment).await?;
            return Err(error);
        }
    };
    if !planned.steps.is_empty() && refused.is_none() {
        // What the request has become is worth more than what was there before it.
        world.observed.layout = observe::layout(context, world.leader.as_deref()).await;
    }
    let assessment = assess(&layout, &world.observed, &planned, refused.as_ref());
    status::write(context, &raw, Some(&layout), &assessment).await?;
    Ok(Action::requeue(next_look(&assessment, &world.observed)))
}

/// A layout that is being deleted shows no status any more: it is gone, or waits for its keyspace to be.
fn ended(outcome: Result<Option<Obstacle>, Error>, planned: &LayoutPlan) -> Result<Action, Error> {
    match outcome? {
        Some(refused) => {
            tracing::warn!(reason = refused.reason, message = refused.message, "the keyspace stays");
            Ok(Action::requeue(WHILE_BLOCKED))
        }
        None if planned.steps.is_empty() && planned.obstacle.is_none() => Ok(Action::await_change()),
        None => Ok(Action::requeue(WHILE_WORKING)),
    }
}

fn next_look(assessment: &LayoutAssessment, observed: &LayoutObserved) -> Duration {
    let is = |kind, status| {
        assessment
            .conditions
            .iter()
            .any(|condition| condition.kind == kind && condition.status == status)
    };
    let silent = match observed.layout {
        Seen::Layout(_) | Seen::NotServed => false,
        Seen::NoLeader => true,
    };
    if is(ConditionKind::Degraded, ConditionStatus::True) {
        WHILE_BLOCKED
    } else if silent || is(ConditionKind::Progressing, ConditionStatus::True) {
        WHILE_WORKING
    } else {
        SETTLED
    }
}

fn invalid(message: &str) -> LayoutAssessment {
    let state = |kind, status| ConditionState {
        kind,
        status,
        reason: "Invalid".to_owned(),
        message: message.to_owned(),
    };
    LayoutAssessment {
        conditions: vec![
            state(ConditionKind::Ready, ConditionStatus::False),
            state(ConditionKind::Progressing, ConditionStatus::False),
            state(ConditionKind::Degraded, ConditionStatus::True),
        ],
        table: None,
    }
}

/// Where clients reach the keyspace; none for one without a port that is not the default: only a name of its own leads to it,
/// and which name that is, is for those to say who make one.
fn endpoint(layout: &ValidatedLayout) -> Option<String> {
    let namespace = layout.namespace.as_deref().unwrap_or("default");
    let default = (layout.keyspace == names::DEFAULT_KEYSPACE).then_some(names::CLIENT_PORT);
    let port = layout.port.or(default)?;
    Some(format!("{}.{namespace}.svc:{port}", layout.cluster))
}
