//! Keyspaces, their shards and what is being done to them: tables and lists out of the layouts' status.

use althing_crds::{LayoutOperation, ShardLayout, ShardLayoutStatus, ShardState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::objects::{ready_cells, rendered};
use super::paint::{Cell, Paint, Tone, cell, plain};
use crate::args::{Kind, Output};

/// Shards of a layout that `status` shows; `get shards` shows all that are listed.
const STATUS_ROWS: usize = 16;

/// What a layout's row begins with.
fn place(layout: &ShardLayout, namespaces: bool) -> Vec<Cell> {
    let namespace = namespaces.then(|| plain(layout.namespace().unwrap_or_default()));
    namespace
        .into_iter()
        .chain([
            plain(&layout.spec.cluster_ref.name),
            cell(Tone::Strong, &layout.spec.keyspace),
        ])
        .collect()
}

fn heading(namespaces: bool, columns: &[&'static str]) -> Vec<&'static str> {
    let namespace = namespaces.then_some("NAMESPACE");
    namespace
        .into_iter()
        .chain(["CLUSTER", "KEYSPACE"])
        .chain(columns.iter().copied())
        .collect()
}

fn status_of(layout: &ShardLayout) -> ShardLayoutStatus {
    layout.status.clone().unwrap_or_default()
}

/// `althing get shards`, `keyspaces` or `operations`. None: there is nothing of this kind.
pub(crate) fn get(
    paint: Paint,
    kind: Kind,
    output: Output,
    layouts: &[ShardLayout],
    namespaces: bool,
) -> Result<Option<String>, String> {
    let wide = output == Output::Wide;
    let (table, items): (String, Vec<Value>) = match kind {
        Kind::Shards => (
            shard_list(paint, layouts, namespaces, wide),
            listed(layouts, |status| values(&status.shards)),
        ),
        Kind::Operations => (
            operation_list(paint, layouts, namespaces),
            listed(layouts, |status| values(&status.operations)),
        ),
        Kind::Keyspaces => (
            keyspace_list(paint, layouts, namespaces, wide),
            layouts.iter().map(keyspace_value).collect(),
        ),
        Kind::All | Kind::Clusters | Kind::Layouts => return Ok(None),
    };
    match output {
        Output::Table | Output::Wide => Ok((!items.is_empty()).then_some(table)),
        Output::Json | Output::Yaml => rendered(output, &json!({"items": items})).map(Some),
    }
}

fn values<T: serde::Serialize>(rows: &[T]) -> Vec<Value> {
    rows.iter()
        .map(|row| serde_json::to_value(row).unwrap_or_default())
        .collect()
}

/// Rows of every layout, each with where it belongs.
fn listed(layouts: &[ShardLayout], rows: impl Fn(&ShardLayoutStatus) -> Vec<Value>) -> Vec<Value> {
    let all = layouts.iter().flat_map(|layout| {
        let rows = rows(&status_of(layout));
        rows.into_iter().map(|mut row| {
            row["namespace"] = json!(layout.namespace());
            row["cluster"] = json!(layout.spec.cluster_ref.name);
            row["keyspace"] = json!(layout.spec.keyspace);
            row
        })
    });
    all.collect()
}

fn keyspace_value(layout: &ShardLayout) -> Value {
    let status = status_of(layout);
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    json!({
        "namespace": layout.namespace(),
        "cluster": layout.spec.cluster_ref.name,
        "name": layout.spec.keyspace,
        "layout": layout.name_any(),
        "desiredShards": layout.spec.shards,
        "currentShards": status.current_shards,
        "revisions": status.revisions,
        "bytes": status.bytes,
        "endpoint": status.endpoint,
        "ready": ready.map(|ready| ready.status == "True"),
        "reason": ready.map(|ready| ready.reason.clone()),
    })
}

fn keyspace_list(paint: Paint, layouts: &[ShardLayout], namespaces: bool, wide: bool) -> String {
    let rows = layouts
        .iter()
        .map(|layout| {
            let status = status_of(layout);
            let mut row = place(layout, namespaces);
            row.push(plain(layout.name_any()));
            let (now, wanted) = (status.current_shards, layout.spec.shards);
            row.push(if now == wanted {
                plain(now)
            } else {
                cell(Tone::Warn, format!("{now} of {wanted}"))
            });
            row.push(plain(status.revisions.as_deref().unwrap_or_default()));
            row.push(plain(status.bytes.map(size).unwrap_or_default()));
            row.push(plain(status.endpoint.as_deref().unwrap_or_default()));
            row.extend(ready_cells(
                &status.conditions,
                layout.metadata.deletion_timestamp.is_some(),
            ));
            if wide {
                let ready = status.conditions.iter().find(|one| one.type_ == "Ready");
                row.push(plain(ready.map(|ready| ready.message.as_str()).unwrap_or_default()));
            }
            row
        })
        .collect();
    let mut columns = vec!["LAYOUT", "SHARDS", "REVISIONS", "SIZE", "ENDPOINT", "READY", "REASON"];
    if wide {
        columns.push("MESSAGE");
    }
    paint.table(&heading(namespaces, &columns), rows)
}

const SHARD_COLUMNS: [&str; 7] = ["ID", "RANGE", "STATE", "LEADER", "VOTERS", "SIZE", "LAG"];

fn shard_cells(shard: &ShardState) -> Vec<Cell> {
    let tone = match shard.state.as_str() {
        "Serving" => Tone::Good,
        "NoLeader" => Tone::Bad,
        _ => Tone::Warn,
    };
    vec![
        plain(shard.id),
        plain(&shard.range),
        cell(tone, &shard.state),
        plain(shard.leader.as_deref().unwrap_or_default()),
        plain(shard.voters.join(",")),
        plain(shard.bytes.map(size).unwrap_or_default()),
        plain(shard.lag.map(|lag| lag.to_string()).unwrap_or_default()),
    ]
}

fn shard_list(paint: Paint, layouts: &[ShardLayout], namespaces: bool, wide: bool) -> String {
    let mut rows = Vec::new();
    for layout in layouts {
        for shard in &status_of(layout).shards {
            let mut row = place(layout, namespaces);
            row.extend(shard_cells(shard));
            if wide {
                row.push(plain(if shard.hibernating { "yes" } else { "no" }));
            }
            rows.push(row);
        }
    }
    let mut columns = SHARD_COLUMNS.to_vec();
    if wide {
        columns.push("SLEEPS");
    }
    let mut text = paint.table(&heading(namespaces, &columns), rows);
    for layout in layouts {
        text.push_str(&left_out(layout, 0));
    }
    text
}

/// A line about shards that are not shown.
fn left_out(layout: &ShardLayout, hidden: usize) -> String {
    let not_listed = usize::try_from(status_of(layout).shards_not_listed).unwrap_or(0);
    match not_listed + hidden {
        0 => String::new(),
        more => format!("and {more} more shards of keyspace {}\n", layout.spec.keyspace),
    }
}

fn operation_cells(operation: &LayoutOperation) -> Vec<Cell> {
    let shards: Vec<String> = operation.shards.iter().map(ToString::to_string).collect();
    vec![
        plain(operation.id),
        cell(Tone::Warn, &operation.kind),
        plain(shards.join(",")),
        plain(&operation.phase),
        plain(&operation.reason),
    ]
}

const OPERATION_COLUMNS: [&str; 5] = ["ID", "KIND", "SHARDS", "PHASE", "REASON"];

fn operation_list(paint: Paint, layouts: &[ShardLayout], namespaces: bool) -> String {
    let mut rows = Vec::new();
    for layout in layouts {
        for operation in &status_of(layout).operations {
            let mut row = place(layout, namespaces);
            row.extend(operation_cells(operation));
            rows.push(row);
        }
    }
    paint.table(&heading(namespaces, &OPERATION_COLUMNS), rows)
}

/// The layouts of a cluster, for `althing status`.
pub(crate) fn section(paint: Paint, layouts: &[ShardLayout], wide: bool) -> String {
    let mut text = String::new();
    for layout in layouts {
        let status = status_of(layout);
        let head = format!("Keyspace {}", layout.spec.keyspace);
        text.push_str(&format!(
            "\n{} {}   shards {}/{}   size {}   endpoint {}\n",
            paint.text(Tone::Strong, &head),
            readiness(paint, &status.conditions),
            status.current_shards,
            layout.spec.shards,
            status.bytes.map_or_else(|| "-".to_owned(), size),
            status.endpoint.as_deref().unwrap_or("-"),
        ));
        let most = if wide { usize::MAX } else { STATUS_ROWS };
        if !status.shards.is_empty() {
            let rows = status.shards.iter().take(most).map(shard_cells).collect();
            text.push_str(&paint.table(&SHARD_COLUMNS, rows));
            text.push_str(&left_out(layout, status.shards.len().saturating_sub(most)));
        }
        if !status.operations.is_empty() {
            text.push('\n');
            let rows = status.operations.iter().map(operation_cells).collect();
            text.push_str(&paint.table(&OPERATION_COLUMNS, rows));
        }
    }
    text
}

fn readiness(paint: Paint, conditions: &[Condition]) -> String {
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => paint.text(Tone::Good, "is ready"),
        Some(ready) => paint.text(
            Tone::Warn,
            &format!("is not ready ({}: {})", ready.reason, ready.message),
        ),
        None => paint.text(Tone::Warn, "has no status yet"),
    }
}

/// What keeps layouts from being as declared, and what is being done to them; a sentence each, for `althing why`.
pub(crate) fn why(layouts: &[ShardLayout]) -> Vec<String> {
    let mut lines = Vec::new();
    for layout in layouts {
        let name = layout.name_any();
        let Some(status) = &layout.status else {
            lines.push(format!("Nobody has looked at ShardLayout {name} yet."));
            continue;
        };
        let told = |kind: &str, status_is: &str| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == kind && condition.status == status_is)
        };
        if let Some(ready) = told("Ready", "False") {
            lines.push(format!(
                "ShardLayout {name} is not ready ({}): {}.",
                ready.reason, ready.message
            ));
        } else if let Some(working) = told("Progressing", "True") {
            lines.push(format!(
                "ShardLayout {name} is being worked on ({}): {}.",
                working.reason, working.message
            ));
        }
    }
    lines
}

/// A size in the largest binary unit that leaves a whole number, at least one.
fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut rest = bytes;
    for unit in UNITS {
        if rest < 1024 {
            return format!("{rest} {unit}");
        }
        rest /= 1024;
    }
    format!("{rest} PiB")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn layout() -> ShardLayout {
        serde_json::from_value(json!({
            "apiVersion": "althing.dev/v1alpha1", "kind": "ShardLayout",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"clusterRef": {"name": "orders"}, "shards": 3},
            "status": {
                "currentShards": 2, "revisions": "Sequenced", "endpoint": "orders.shop.svc:2379", "bytes": 3_670_016,
                "conditions": [
                    {"type": "Ready", "status": "False", "reason": "Splitting", "message": "2 of 3 shards; Split of shard 4 (Cut): 3 shards are desired", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Progressing", "status": "True", "reason": "Splitting", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                ],
                "shards": [
                    {"id": 1, "range": "[.., /m)", "state": "Serving", "leader": "orders-0", "voters": ["orders-0", "orders-1"], "bytes": 917_504, "lag": 0},
                    {"id": 4, "range": "[/m, ..)", "state": "Splitting", "voters": ["orders-1"], "bytes": 12, "lag": 2048, "hibernating": true}
                ],
                "shardsNotListed": 7,
                "operations": [{"id": 5, "kind": "Split", "shards": [4, 6], "phase": "Cut", "reason": "3 shards are desired"}]
            }
        }))
        .expect("a layout")
    }

    fn shown(kind: Kind, output: Output, namespaces: bool) -> String {
        let text = get(Paint::Mono, kind, output, &[layout()], namespaces).expect("it is shown");
        text.expect("there is something to show")
    }

    #[test]
    fn shards_keyspaces_and_operations_are_listed() {
        let text = [
            shown(Kind::Shards, Output::Wide, true),
            shown(Kind::Keyspaces, Output::Table, false),
            shown(Kind::Operations, Output::Table, false),
        ];
        expect![[r#"
            NAMESPACE   CLUSTER   KEYSPACE   ID   RANGE      STATE       LEADER     VOTERS              SIZE      LAG    SLEEPS
            shop        orders    default    1    [.., /m)   Serving     orders-0   orders-0,orders-1   896 KiB   0      no
            shop        orders    default    4    [/m, ..)   Splitting   -          orders-1            12 B      2048   yes
            and 7 more shards of keyspace default

            CLUSTER   KEYSPACE   LAYOUT   SHARDS   REVISIONS   SIZE    ENDPOINT               READY   REASON
            orders    default    orders   2 of 3   Sequenced   3 MiB   orders.shop.svc:2379   False   Splitting

            CLUSTER   KEYSPACE   ID   KIND    SHARDS   PHASE   REASON
            orders    default    5    Split   4,6      Cut     3 shards are desired
        "#]].assert_eq(&text.join("\n"));
    }

    #[test]
    fn lists_for_programs_name_where_each_row_belongs() {
        expect![[r#"
            items:
            - cluster: orders
              id: 5
              keyspace: default
              kind: Split
              namespace: shop
              phase: Cut
              reason: 3 shards are desired
              shards:
              - 4
              - 6
        "#]]
        .assert_eq(&shown(Kind::Operations, Output::Yaml, false));
        expect![[r#"
            {
              "items": [
                {
                  "bytes": 3670016,
                  "cluster": "orders",
                  "currentShards": 2,
                  "desiredShards": 3,
                  "endpoint": "orders.shop.svc:2379",
                  "layout": "orders",
                  "name": "default",
                  "namespace": "shop",
                  "ready": false,
                  "reason": "Splitting",
                  "revisions": "Sequenced"
                }
              ]
            }
        "#]]
        .assert_eq(&shown(Kind::Keyspaces, Output::Json, false));
    }

    #[test]
    fn a_clusters_status_has_a_section_for_each_keyspace() {
        expect![[r#"

            Keyspace default is not ready (Splitting: 2 of 3 shards; Split of shard 4 (Cut): 3 shards are desired)   shards 2/3   size 3 MiB   endpoint orders.shop.svc:2379
            ID   RANGE      STATE       LEADER     VOTERS              SIZE      LAG
            1    [.., /m)   Serving     orders-0   orders-0,orders-1   896 KiB   0
            4    [/m, ..)   Splitting   -          orders-1            12 B      2048
            and 7 more shards of keyspace default

            ID   KIND    SHARDS   PHASE   REASON
            5    Split   4,6      Cut     3 shards are desired
        "#]].assert_eq(&section(Paint::Mono, &[layout()], false));
    }

    #[test]
    fn why_says_what_is_being_done_to_a_layout() {
        let mut moving = layout();
        let fresh = ShardLayout {
            status: None,
            ..layout()
        };
        if let Some(status) = &mut moving.status {
            status.conditions[0].status = "True".into();
        }
        let lines = why(&[layout(), moving, fresh]);
        expect![[r#"
            ShardLayout orders is not ready (Splitting): 2 of 3 shards; Split of shard 4 (Cut): 3 shards are desired.
            ShardLayout orders is being worked on (Splitting): m.
            Nobody has looked at ShardLayout orders yet.
        "#]]
        .assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn nothing_to_list_is_no_table() {
        let none = get(Paint::Mono, Kind::Operations, Output::Table, &[], false);
        assert_eq!(none, Ok(None));
        let many = get(Paint::Mono, Kind::Shards, Output::Json, &[], false);
        assert!(many.is_ok_and(|text| text.is_some_and(|text| text.contains("[]"))));
    }

    #[test]
    fn sizes_are_told_in_binary_units() {
        assert_eq!(
            [0, 1023, 917_504, 3_670_016, 5 << 40].map(size),
            ["0 B", "1023 B", "896 KiB", "3 MiB", "5 TiB"]
        );
    }
}
