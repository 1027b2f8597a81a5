//! The status of a layout, in one place, on every way out of a reconciliation.

use althing_crds::{ShardLayout, ShardLayoutStatus, ValidatedLayout};
use althing_plan::layout::{LayoutAssessment, story};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::context::{Context, FIELD_MANAGER};
use crate::error::Error;
use crate::{events, update_status};

/// Writes it, if it differs from what is there, and tells what has happened since.
pub(super) async fn write(
    context: &Context,
    raw: &ShardLayout,
    layout: Option<&ValidatedLayout>,
    assessment: &LayoutAssessment,
) -> Result<(), Error> {
    let old = raw.status.clone().unwrap_or_default();
    let new = status(raw, layout, &old, assessment, Timestamp::now());
    if new == old {
        return Ok(());
    }
    let name = raw.name_any();
    let namespace = raw.namespace().unwrap_or_else(|| "default".to_owned());
    let layouts: Api<ShardLayout> = Api::namespaced(context.client.clone(), &namespace);
    let body = json!({"apiVersion": ShardLayout::api_version(&()), "kind": ShardLayout::kind(&()), "status": new});
    let how = PatchParams::apply(FIELD_MANAGER).force();
    layouts
        .patch_status(&name, &how, &Patch::Apply(&body))
        .await
        .map_err(Error::kube(format!("update the status of ShardLayout {name}")))?;
    // After the write: what could not be recorded is told the next time, and not twice.
    for told in story(&raw.spec.keyspace, &old, &new) {
        events::layout(context, raw, told.reason, &told.subject, told.note).await;
    }
    events::conditions(context, raw, &old.conditions, &new.conditions).await;
    Ok(())
}

/// The new status. Pure: the time is handed in.
fn status(
    raw: &ShardLayout,
    layout: Option<&ValidatedLayout>,
    old: &ShardLayoutStatus,
    assessment: &LayoutAssessment,
    now: Timestamp,
) -> ShardLayoutStatus {
    let generation = raw.meta().generation;
    let conditions = update_status::conditions(&old.conditions, &assessment.conditions, generation, now);
    match &assessment.table {
        Some(table) => ShardLayoutStatus {
            observed_generation: generation,
            conditions,
            current_shards: i32::try_from(table.current_shards).unwrap_or(i32::MAX),
            revisions: table.revisions.map(ToOwned::to_owned),
            endpoint: layout.filter(|_| table.revisions.is_some()).and_then(super::endpoint),
            bytes: table.bytes,
            shards: table.shards.clone(),
            shards_not_listed: i32::try_from(table.not_listed).unwrap_or(i32::MAX),
            operations: table.operations.clone(),
        },
        // Nobody could tell: what was known stays.
        None => ShardLayoutStatus {
            observed_generation: generation,
            conditions,
            ..old.clone()
        },
    }
}
