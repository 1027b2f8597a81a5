//! Carries out a layout's steps.

use althing_admin::ProblemReason;
use althing_crds::{ShardLayout, ValidatedLayout, names};
use althing_plan::layout::{LayoutPlan, LayoutStep, Obstacle};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::observe::World;
use crate::admin::AdminError;
use crate::context::Context;
use crate::error::{Error, is_not_found};
use crate::events;

/// The owner of the finalizer. Not the status' manager: what one applies the other must not take away.
const MANAGER: &str = "althing-operator-finalizer";

/// Carries out the steps in order. A node's refusal that only a person or time can mend is no error: it is told.
pub(super) async fn run(
    context: &Context,
    raw: &ShardLayout,
    layout: &ValidatedLayout,
    world: &World,
    plan: &LayoutPlan,
) -> Result<Option<Obstacle>, Error> {
    for (step, reason) in &plan.steps {
        match step {
            LayoutStep::AddFinalizer => finalizer(context, raw, true).await?,
            LayoutStep::RemoveFinalizer => finalizer(context, raw, false).await?,
            LayoutStep::Put(request) => {
                let answer = context
                    .admin
                    .put_keyspace(leader(world)?, &layout.keyspace, request)
                    .await;
                if let Some(refused) = answered(layout, answer)? {
                    return Ok(Some(refused));
                }
            }
            LayoutStep::Drop => {
                let answer = context.admin.drop_keyspace(leader(world)?, &layout.keyspace).await;
                if let Some(refused) = answered(layout, answer)? {
                    return Ok(Some(refused));
                }
            }
        }
        tracing::info!(layout = layout.name, step = step.word(), reason, "done");
        let subject = format!("keyspace {}", layout.keyspace);
        events::layout(context, raw, step.word(), &subject, format!("{subject}: {reason}")).await;
    }
    Ok(None)
}

fn leader(world: &World) -> Result<&str, Error> {
    world
        .leader
        .as_deref()
        .ok_or_else(|| Error::Stale("there is no leader to ask".into()))
}

/// Sorts a node's answer: done, refused for a reason to be told, or a failure that looking again may cure.
fn answered(layout: &ValidatedLayout, answer: Result<(), AdminError>) -> Result<Option<Obstacle>, Error> {
    let source = match answer {
        Ok(()) => return Ok(None),
        Err(source) => source,
    };
    let refused = match &source {
        AdminError::Refused { problem, .. } => match problem.reason {
            ProblemReason::Invalid => Some(("Refused", true, &problem.message)),
            ProblemReason::Conflict => Some(("Conflict", false, &problem.message)),
            // Gone already: the next look sees it.
            ProblemReason::NotFound
            | ProblemReason::NotLeader
            | ProblemReason::LearnerBehind
            | ProblemReason::Unavailable
            | ProblemReason::OtherCluster => None,
        },
        AdminError::Silent { .. } | AdminError::Strange { .. } => None,
    };
    match refused {
        Some((reason, stuck, message)) => Ok(Some(Obstacle {
            reason,
            message: message.clone(),
            stuck,
        })),
        None => Err(Error::Node {
            doing: format!("change keyspace {} of {}", layout.keyspace, layout.cluster),
            source,
        }),
    }
}

/// Adds or takes away the operator's finalizer, and no other.
async fn finalizer(context: &Context, raw: &ShardLayout, wanted: bool) -> Result<(), Error> {
    let name = raw.name_any();
    let namespace = raw.namespace().unwrap_or_else(|| "default".to_owned());
    let layouts: Api<ShardLayout> = Api::namespaced(context.client.clone(), &namespace);
    let mut body = json!({
        "apiVersion": ShardLayout::api_version(&()),
        "kind": ShardLayout::kind(&()),
        "metadata": {"name": name},
    });
    if wanted {
        body["metadata"]["finalizers"] = json!([names::FINALIZER_KEYSPACE]);
    }
    let how = PatchParams::apply(MANAGER).force();
    match layouts.patch(&name, &how, &Patch::Apply(&body)).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::kube(format!("change the finalizer of ShardLayout {name}"))(
            error,
        )),
    }
}
