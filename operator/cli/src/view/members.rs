//! One cluster: its members, its conditions, where to connect.

use std::time::Duration;

use althing_crds::{MemberStatus, RaftCluster, RaftClusterStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::paint::{Cell, Paint, Tone, cell, plain};
use crate::local::layout::ClusterKey;
use crate::local::ports::Ports;

/// The largest cluster that the custom resource allows; the hint to scale must not be refused.
const MOST_MEMBERS: usize = 9;

/// A line for each member while something is under way: name, tone, where it is.
pub(crate) fn progress(members: &[MemberStatus]) -> Vec<(String, Tone, String)> {
    members
        .iter()
        .map(|member| {
            let role = member.role.as_str();
            let (tone, text) = match (member.ready, role, member.lag) {
                (true, "None", _) => (Tone::Warn, "waits to be taken in".to_owned()),
                (true, "Learner", Some(lag)) => (Tone::Warn, format!("learner, {lag} entries behind")),
                (true, role, _) => (Tone::Good, format!("{}, serves", role.to_lowercase())),
                (false, _, _) if member.reason.is_empty() => (Tone::Warn, "starts".to_owned()),
                (false, _, _) => (Tone::Warn, member.reason.clone()),
            };
            (member.name.clone(), tone, text)
        })
        .collect()
}

/// What `up` says once a cluster is as declared; and how to go on, with what a person types to run this program.
pub(crate) fn ready(
    paint: Paint,
    key: &ClusterKey,
    status: &RaftClusterStatus,
    endpoints: &[(String, Ports)],
    took: Duration,
    hints_for: Option<&str>,
) -> String {
    let rows = endpoints
        .iter()
        .map(|(name, ports)| {
            let member = status.members.iter().find(|member| member.name == *name);
            vec![
                cell(Tone::Strong, name),
                role_cell(member.map_or("None", |member| member.role.as_str())),
                plain(
                    member
                        .and_then(|member| member.member_id.as_deref())
                        .unwrap_or_default(),
                ),
                plain(ports.client_url()),
                plain(ports.admin_url()),
            ]
        })
        .collect();
    let table = paint.table(&["MEMBER", "ROLE", "ID", "CLIENT", "ADMIN"], rows);
    let list: Vec<String> = endpoints
        .iter()
        .map(|(_, ports)| format!("127.0.0.1:{}", ports.client))
        .collect();
    let flag = if key.namespace == "default" {
        String::new()
    } else {
        format!(" -n {}", key.namespace)
    };
    let name = &key.name;
    let now = status.members.len();
    let other = if now < MOST_MEMBERS { now + 2 } else { now - 2 };
    let heading = paint.text(Tone::Good, &format!("{name} is ready"));
    let plural = if now == 1 { "" } else { "s" };
    let text = format!(
        "\n{heading} ({now} member{plural}, {:.1} s)\n\n{table}\n",
        took.as_secs_f64()
    );
    let Some(althing) = hints_for else { return text };
    text + &format!(
        "try it   etcdctl --endpoints={} put hello world\n\
         look     {althing} status {name}{flag}          curl {}/metrics\n\
         scale    {althing} scale {name}{flag} --members {other}\n\
         stop     Ctrl-C here, or `{althing} down`; the data stay\n",
        list.join(","),
        endpoints
            .first()
            .map(|(_, ports)| ports.admin_url())
            .unwrap_or_default(),
    )
}

fn role_cell(role: &str) -> Cell {
    match role {
        "Leader" => cell(Tone::Good, role),
        "Learner" => cell(Tone::Warn, role),
        "None" => cell(Tone::Dim, ""),
        _ => plain(role),
    }
}

/// `althing status`.
pub(crate) fn status(paint: Paint, cluster: &RaftCluster, wide: bool) -> String {
    let nothing = RaftClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&nothing);
    let namespace = cluster.namespace().unwrap_or_default();
    let mut text = format!(
        "{} {}\n",
        paint.text(Tone::Strong, &format!("RaftCluster {namespace}/{}", cluster.name_any())),
        headline(paint, &status.conditions, cluster.metadata.deletion_timestamp.is_some()),
    );
    text.push_str(&format!(
        "cluster id {}   members {}/{} serve   leader {}\n",
        status.cluster_id.as_deref().unwrap_or("-"),
        status.ready_members,
        cluster.spec.members,
        status.leader.as_deref().unwrap_or("-"),
    ));
    let with_replicas = status.members.iter().any(|member| member.replicas.is_some());
    let rows = status
        .members
        .iter()
        .map(|member| {
            let mut row = vec![
                plain(member.ordinal),
                cell(Tone::Strong, &member.name),
                plain(member.member_id.as_deref().unwrap_or_default()),
                role_cell(&member.role),
                if member.ready {
                    cell(Tone::Good, "yes")
                } else {
                    cell(Tone::Bad, "no")
                },
                plain(member.lag.map(|lag| lag.to_string()).unwrap_or_default()),
            ];
            if with_replicas {
                let replicas = member.replicas.map(|replicas| replicas.to_string()).unwrap_or_default();
                row.push(if member.draining {
                    cell(Tone::Warn, format!("{replicas} (leaving)"))
                } else {
                    plain(replicas)
                });
            }
            row.push(plain(member.node.as_deref().unwrap_or_default()));
            if wide {
                row.push(plain(member.version.as_deref().unwrap_or_default()));
            }
            row.push(cell(Tone::Warn, &member.reason));
            row
        })
        .collect();
    let mut heading = vec!["ORDINAL", "NAME", "ID", "ROLE", "READY", "LAG"];
    if with_replicas {
        heading.push("REPLICAS");
    }
    heading.push("NODE");
    if wide {
        heading.push("VERSION");
    }
    heading.push("REASON");
    if !status.members.is_empty() {
        text.push('\n');
        text.push_str(&paint.table(&heading, rows));
    }
    let rows = status
        .conditions
        .iter()
        .map(|condition| {
            let tone = condition_tone(condition);
            vec![
                plain(&condition.type_),
                cell(tone, &condition.status),
                plain(&condition.reason),
                plain(&condition.message),
            ]
        })
        .collect();
    if !status.conditions.is_empty() {
        text.push('\n');
        text.push_str(&paint.table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], rows));
    }
    for activity in &status.activity {
        text.push_str(&format!("\n{activity}"));
    }
    if !status.activity.is_empty() {
        text.push('\n');
    }
    text
}

/// True is good, but for the two conditions that tell of trouble or work.
fn condition_tone(condition: &Condition) -> Tone {
    match (condition.type_.as_str(), condition.status.as_str()) {
        ("Degraded", "True") => Tone::Bad,
        ("Progressing", "True") => Tone::Warn,
        ("Degraded" | "Progressing", _) => Tone::Plain,
        (_, "True") => Tone::Good,
        (_, "False") => Tone::Bad,
        (_, _) => Tone::Warn,
    }
}

/// Ready, or what keeps it from being.
fn headline(paint: Paint, conditions: &[Condition], deleting: bool) -> String {
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        _ if deleting => paint.text(Tone::Warn, "is being deleted"),
        Some(ready) if ready.status == "True" => paint.text(Tone::Good, "is ready"),
        Some(ready) => paint.text(Tone::Warn, &format!("is not ready ({})", ready.reason)),
        None => paint.text(Tone::Warn, "has no status yet"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn member(ordinal: i32, role: &str, ready: bool, lag: Option<i64>) -> MemberStatus {
        MemberStatus {
            name: format!("orders-{ordinal}"),
            ordinal,
            member_id: ready.then(|| format!("{ordinal:016x}")),
            role: role.to_owned(),
            ready,
            reason: if ready {
                String::new()
            } else {
                "Silent: it does not answer on its admin API".to_owned()
            },
            lag,
            replicas: None,
            draining: false,
            node: Some(format!("127.0.0.1:{}", 2379 + 10 * ordinal)),
            version: ready.then(|| "0.1.0".to_owned()),
        }
    }

    fn cluster() -> RaftCluster {
        let text = "apiVersion: althing.dev/v1alpha1\nkind: RaftCluster\nmetadata: {name: orders}\nspec: {members: 3, version: 0.1.0, storage: {size: 1Gi}}\n";
        let mut objects = crate::manifest::parse("f", text, "default").unwrap();
        let crate::manifest::Object::Cluster(cluster) = objects.remove(0) else {
            panic!("a cluster")
        };
        let condition = |kind: &str, status: &str, reason: &str, message: &str| Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default()),
        };
        let status = RaftClusterStatus {
            cluster_id: Some("c".repeat(16)),
            leader: Some("orders-0".to_owned()),
            ready_members: 2,
            conditions: vec![
                condition(
                    "Ready",
                    "False",
                    "LearnerBehind",
                    "orders-1 is a learner and still lacks 12 entries",
                ),
                condition("Degraded", "False", "NoDamage", "no voter is missing"),
            ],
            members: vec![
                member(0, "Leader", true, Some(0)),
                member(1, "Learner", true, Some(12)),
                member(2, "None", false, None),
            ],
            activity: vec!["Waiting (LearnerBehind): orders-1 is a learner and still lacks 12 entries.".to_owned()],
            ..RaftClusterStatus::default()
        };
        RaftCluster {
            status: Some(status),
            ..*cluster
        }
    }

    #[test]
    fn status_shows_members_conditions_and_what_is_going_on() {
        expect![[r#"
            RaftCluster default/orders is not ready (LearnerBehind)
            cluster id cccccccccccccccc   members 2/3 serve   leader orders-0

            ORDINAL   NAME       ID                 ROLE      READY   LAG   NODE             REASON
            0         orders-0   0000000000000000   Leader    yes     0     127.0.0.1:2379   -
            1         orders-1   0000000000000001   Learner   yes     12    127.0.0.1:2389   -
            2         orders-2   -                  -         no      -     127.0.0.1:2399   Silent: it does not answer on its admin API

            CONDITION   STATUS   REASON          MESSAGE
            Ready       False    LearnerBehind   orders-1 is a learner and still lacks 12 entries
            Degraded    False    NoDamage        no voter is missing

            Waiting (LearnerBehind): orders-1 is a learner and still lacks 12 entries.
        "#]].assert_eq(&status(Paint::Mono, &cluster(), false));
    }

    #[test]
    fn a_cluster_that_nobody_has_looked_at_yet_is_shown_without_guesses() {
        let fresh = RaftCluster {
            status: None,
            ..cluster()
        };
        expect![[r#"
            RaftCluster default/orders has no status yet
            cluster id -   members 0/3 serve   leader -
        "#]]
        .assert_eq(&status(Paint::Mono, &fresh, true));
    }

    #[test]
    fn progress_says_where_each_member_is() {
        let lines: Vec<String> = progress(&cluster().status.unwrap().members)
            .into_iter()
            .map(|(name, _, text)| format!("{name} {text}\n"))
            .collect();
        expect![[r#"
            orders-0 leader, serves
            orders-1 learner, 12 entries behind
            orders-2 Silent: it does not answer on its admin API
        "#]]
        .assert_eq(&lines.concat());
    }

    #[test]
    fn a_ready_cluster_says_where_to_connect_and_how_to_go_on() {
        let ports = |n: u16| Ports {
            client: 2379 + 10 * n,
            peer: 2380 + 10 * n,
            admin: 2381 + 10 * n,
        };
        let endpoints: Vec<(String, Ports)> = (0..3).map(|n| (format!("orders-{n}"), ports(n))).collect();
        let key = ClusterKey::new("shop", "orders");
        let status = cluster().status.unwrap();
        expect![[r#"

            orders is ready (3 members, 2.3 s)

            MEMBER     ROLE      ID                 CLIENT                  ADMIN
            orders-0   Leader    0000000000000000   http://127.0.0.1:2379   http://127.0.0.1:2381
            orders-1   Learner   0000000000000001   http://127.0.0.1:2389   http://127.0.0.1:2391
            orders-2   -         -                  http://127.0.0.1:2399   http://127.0.0.1:2401

            try it   etcdctl --endpoints=127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399 put hello world
            look     althing status orders -n shop          curl http://127.0.0.1:2381/metrics
            scale    althing scale orders -n shop --members 5
            stop     Ctrl-C here, or `althing down`; the data stay
        "#]]
        .assert_eq(&ready(
            Paint::Mono,
            &key,
            &status,
            &endpoints,
            Duration::from_millis(2345),
            Some("althing"),
        ));
    }
}
