//! The chart, its dashboards, alerts and runbooks, without a cluster: what can be wrong on paper. The same queries on a
//! cluster's own metrics are part of the scenarios in `kubernetes`.
#![allow(clippy::unwrap_used, reason = "a failing step is the test's failure")]

mod exporter;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use althing_e2e::chart::{self, Dashboard, MONITORING, Monitoring};
use althing_e2e::command::{run, wait_until};
use althing_e2e::discovery;
use althing_e2e::observability::{
    MEMBER_METRICS, Metric, OPERATOR_METRICS, Scope, all_series, check_alerts, check_metrics, check_panels,
    fires_until, legend_labels, wait_for_alert, wait_for_resolved,
};
use althing_e2e::paths::{cache, checkout};
use althing_e2e::prometheus::Prometheus;
use althing_e2e::promql::{metric, selectors};
use expect_test::expect;
use serde_json::{Value, json};

use exporter::Exporter;

/// A starved machine may take this long for what else takes two or three scrapes.
const LIMIT: Duration = Duration::from_secs(60);
const SCOPE: Scope<'_> = Scope {
    namespace: "n",
    cluster: "c",
    rate_interval: "30s",
};

/// A program that CI must have; elsewhere the test says that it was skipped.
fn tool(name: &str, found: Option<PathBuf>) -> Option<PathBuf> {
    if found.is_none() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "{name} is missing, and CI may skip nothing"
        );
        eprintln!("SKIPPED: there is no {name}; `cargo xtask cluster up` installs and builds it");
    }
    found
}

/// The bed's Helm, if it was ever built.
fn helm() -> Option<Command> {
    let built = fs::read_dir(cache().unwrap().join("bin"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut built: Vec<PathBuf> = built
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("helm-"))
        })
        .map(|path| path.join("helm"))
        .filter(|path| path.exists())
        .collect();
    built.sort();
    tool("helm", built.pop()).map(Command::new)
}

fn debian(name: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/bin").join(name);
    tool(name, path.exists().then_some(path))
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).unwrap()
}

/// The chart's own files, put into the objects that the templates put them into; needs no Helm.
fn monitoring() -> Monitoring {
    let rules: Value = serde_saphyr::from_str(&read("charts/althing/rules/althing.yaml")).unwrap();
    let dashboard = read("charts/althing/dashboards/cluster.json");
    Monitoring::of(&[
        json!({"kind": "PrometheusRule", "spec": rules}),
        json!({"kind": "ConfigMap", "data": {"cluster.json": dashboard}}),
    ])
    .unwrap()
}

fn render(values: &[&str]) -> Option<althing_e2e::Result<Vec<Value>>> {
    helm().map(|helm| chart::render(helm, "demo", "sys", values))
}

fn kinds(objects: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let line = |object: &Value| {
        let metadata = &object["metadata"];
        format!(
            "{} {}/{}\n",
            text(&object["kind"]),
            text(&metadata["namespace"]),
            text(&metadata["name"])
        )
    };
    objects.iter().map(line).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do() {
    for alert in monitoring().alerts {
        let name = &alert.name;
        for annotation in ["summary", "description"] {
            assert!(
                alert.annotations.get(annotation).is_some_and(|text| !text.is_empty()),
                "{name} has no {annotation}"
            );
        }
        let severity = alert.labels.get("severity").map(String::as_str);
        assert!(
            matches!(severity, Some("warning" | "critical")),
            "{name} has severity {severity:?}"
        );
        assert_eq!(alert.annotations["runbook_url"], format!("RUNBOOKS/{name}.md"));
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: BTreeSet<String> = monitoring().alerts.into_iter().map(|alert| alert.name).collect();
    let pages = fs::read_dir(checkout().join("docs/runbooks"))
        .unwrap()
        .map(|page| page.unwrap().path());
    let pages: BTreeSet<String> = pages
        .map(|page| {
            let name = page.file_stem().unwrap().to_str().unwrap().to_owned();
            assert!(
                fs::read_to_string(&page).unwrap().starts_with(&format!("# {name}\n")),
                "{name}.md has another title"
            );
            name
        })
        .collect();
    assert_eq!(alerts, pages);
}

#[test]
fn every_runbook_links_to_pages_that_exist() {
    let folder = checkout().join("docs/runbooks");
    for page in fs::read_dir(&folder).unwrap().map(|page| page.unwrap().path()) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let external = link.starts_with("https://");
            assert!(
                external || folder.join(link).exists(),
                "{} links to {link}",
                page.display()
            );
        }
    }
}

#[test]
fn every_alert_is_tested_to_fire() {
    let tests: Value = serde_saphyr::from_str(&read("charts/althing/rules/althing_test.yaml")).unwrap();
    let cases = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let fires = cases.filter(|case| !case["exp_alerts"].as_array().unwrap().is_empty());
    let tested: BTreeSet<&str> = fires.map(|case| case["alertname"].as_str().unwrap()).collect();
    let monitoring = monitoring();
    let alerts: BTreeSet<&str> = monitoring.alerts.iter().map(|alert| alert.name.as_str()).collect();
    assert_eq!(tested, alerts);
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    let Some(promtool) = debian("promtool") else { return };
    let folder = checkout().join("charts/althing/rules");
    run(Command::new(&promtool)
        .args(["check", "rules", "althing.yaml"])
        .current_dir(&folder))
    .unwrap();
    run(Command::new(&promtool)
        .args(["test", "rules", "althing_test.yaml"])
        .current_dir(&folder))
    .unwrap();
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_queries() {
    for Dashboard { file, json } in &monitoring().dashboards {
        let dashboard = Dashboard {
            file: file.clone(),
            json: json.clone(),
        };
        for panel in dashboard.panels() {
            assert!(
                !panel.title.is_empty(),
                "{file}: panel {} has no title",
                panel.json["id"]
            );
            for (what, value) in [
                ("description", &panel.json["description"]),
                ("unit", &panel.json["fieldConfig"]["defaults"]["unit"]),
                ("data source", &panel.json["datasource"]["uid"]),
            ] {
                assert!(
                    value.as_str().is_some_and(|text| !text.is_empty()),
                    "{file}: {} has no {what}",
                    panel.title
                );
            }
            assert!(!panel.targets.is_empty(), "{file}: {} asks for nothing", panel.title);
            assert!(
                panel.targets.iter().all(|target| !target.expr.is_empty()),
                "{file}: {} has an empty query",
                panel.title
            );
        }
    }
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() {
    for Dashboard { file, json } in monitoring().dashboards {
        let panels = json["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}");
        let mut taken = BTreeMap::new();
        for panel in panels {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|field| panel["gridPos"][field].as_u64().unwrap());
            assert!(x + w <= 24, "{file}: {} is wider than the grid", panel["title"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                let other = taken.insert(cell, &panel["title"]);
                assert_eq!(other, None, "{file}: {} lies on it", panel["title"]);
            }
        }
    }
}

#[test]
fn panels_use_declared_variables_only_and_every_variable_is_used() {
    for dashboard in monitoring().dashboards {
        let declared: BTreeSet<&str> = dashboard.variables().into_iter().collect();
        let text = dashboard.json.to_string();
        let starts = text.split('$').skip(1).map(|rest| rest.trim_start_matches('{'));
        let used: BTreeSet<&str> = starts
            .map(|rest| {
                &rest[..rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(rest.len())]
            })
            // Grafana's own begin with two underscores.
            .filter(|name| !name.starts_with("__"))
            .collect();
        assert_eq!(used, declared, "{}", dashboard.file);
    }
}

#[test]
fn every_metric_of_a_panel_or_an_alert_is_exported() {
    let monitoring = monitoring();
    let exported = all_series();
    let panels = monitoring.dashboards.iter().flat_map(|dashboard| {
        dashboard.panels().into_iter().flat_map(|panel| {
            panel
                .targets
                .iter()
                .map(|target| target.expr.to_owned())
                .collect::<Vec<_>>()
        })
    });
    let mut seen = 0;
    for query in panels.chain(monitoring.alerts.iter().map(|alert| alert.expr.clone())) {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{query} reads nothing");
        for selector in &selectors {
            assert!(exported.contains(metric(selector)), "{selector} is exported by nobody");
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

/// The programs' own sources are the truth; the scenario on a cluster then sees the names on real pages.
#[test]
fn the_list_of_metrics_is_what_the_programs_register() {
    let listed = |metrics: &[Metric]| {
        metrics
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .filter(|name| name != "up")
            .collect()
    };
    let registered = |path: &str| -> BTreeSet<String> {
        let source = read(path);
        let code = source.split("#[cfg(test)]").next().unwrap();
        let is_metric = |text: &&str| {
            (text.starts_with("althing_") || text.starts_with("process_"))
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        code.split('"')
            .skip(1)
            .step_by(2)
            .filter(is_metric)
            .map(str::to_owned)
            .collect()
    };
    let members: BTreeSet<String> = listed(&MEMBER_METRICS);
    let operators: BTreeSet<String> = listed(&OPERATOR_METRICS);
    assert_eq!(registered("node/src/metrics.rs"), members);
    assert_eq!(registered("operator/src/metrics.rs"), operators);
}

#[test]
fn the_chart_renders_its_objects_by_default() {
    let Some(objects) = render(&[]) else { return };
    expect![[r#"
        ClusterRole -/demo-operator
        ClusterRole -/demo-operator-edit
        ClusterRole -/demo-operator-nodes
        ClusterRole -/demo-operator-view
        ClusterRoleBinding -/demo-operator
        ClusterRoleBinding -/demo-operator-nodes
        ConfigMap sys/demo-operator-dashboards
        Deployment sys/demo-operator
        Role sys/demo-operator-lease
        RoleBinding sys/demo-operator-lease
        Service sys/demo-operator
        ServiceAccount sys/demo-operator
    "#]]
    .assert_eq(&kinds(&objects.unwrap()));
}

#[test]
fn the_chart_renders_monitoring_where_it_is_wanted() {
    let Some(plain) = render(&[]) else { return };
    let (plain, monitored) = (kinds(&plain.unwrap()), kinds(&render(&MONITORING).unwrap().unwrap()));
    let added: String = monitored
        .lines()
        .filter(|line| !plain.contains(line))
        .map(|line| format!("{line}\n"))
        .collect();
    expect![[r#"
        PrometheusRule sys/demo-operator
        ServiceMonitor sys/demo-operator
        ServiceMonitor sys/demo-operator-members
    "#]]
    .assert_eq(&added);
}

#[test]
fn an_operator_of_one_namespace_gets_rights_in_that_namespace_only() {
    let Some(objects) = render(&["watchNamespace=data"]) else {
        return;
    };
    let objects = objects.unwrap();
    expect![[r#"
        ClusterRole -/demo-operator-edit
        ClusterRole -/demo-operator-view
        ConfigMap sys/demo-operator-dashboards
        Deployment sys/demo-operator
        Role data/demo-operator
        Role sys/demo-operator-lease
        RoleBinding data/demo-operator
        RoleBinding sys/demo-operator-lease
        Service sys/demo-operator
        ServiceAccount sys/demo-operator
    "#]]
    .assert_eq(&kinds(&objects));
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap();
    assert!(
        environment.contains(&json!({"name": "WATCH_NAMESPACE", "value": "data"})),
        "{environment:?}"
    );
}

#[test]
fn rendered_alerts_point_to_pages_on_the_web() {
    let Some(objects) = render(&MONITORING) else { return };
    let monitoring = Monitoring::of(&objects.unwrap()).unwrap();
    assert!(!monitoring.alerts.is_empty());
    for alert in monitoring.alerts {
        let url = &alert.annotations["runbook_url"];
        assert!(
            url.starts_with("https://") && url.ends_with(&format!("/docs/runbooks/{}.md", alert.name)),
            "{url}"
        );
    }
}

#[test]
fn a_wrong_value_is_refused_with_its_path_and_what_to_write() {
    let Some(_) = render(&[]) else { return };
    for (value, words) in [
        ("replicas=9", "at '/replicas': maximum: got 9, want 5"),
        (
            "image.pullPolicy=Sometimes",
            "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        (
            "log.format=xml",
            "at '/log/format': value must be one of 'json', 'text'",
        ),
        (
            "watchNamespaces=a",
            "additional properties 'watchNamespaces' not allowed",
        ),
        (
            "monitoring.dashboards.enabled=maybe",
            "at '/monitoring/dashboards/enabled': got string, want boolean",
        ),
    ] {
        let error = render(&[value]).unwrap().unwrap_err().to_string();
        assert!(error.contains(words), "{value}: {error}");
    }
}

/// From a `ServiceMonitor` and the objects of a cluster to the labels of what is scraped, through a real Prometheus.
#[test]
fn prometheus_scrapes_members_and_operator_and_nothing_else_by_what_the_service_monitors_say() {
    let (Some(objects), Some(_)) = (render(&MONITORING), debian("prometheus")) else {
        return;
    };
    let monitoring = Monitoring::of(&objects.unwrap()).unwrap();
    let member = json!({
        "app.kubernetes.io/name": "althing", "app.kubernetes.io/instance": "orders",
        "app.kubernetes.io/managed-by": "althing-operator",
    });
    let mut peers = member.clone();
    peers["althing.dev/service"] = json!("peers");
    let operator = json!({"app.kubernetes.io/name": "althing-operator", "app.kubernetes.io/instance": "demo"});
    let ports = json!([{"name": "client", "port": 2379}, {"name": "admin", "port": 2381}]);
    let object = |kind: &str, namespace: &str, name: &str, labels: &Value| json!({"kind": kind, "metadata": {"namespace": namespace, "name": name, "labels": labels}});
    let slice = |namespace: &str, service: &str, pod: &str, ports: &Value| {
        let mut slice = object(
            "EndpointSlice",
            namespace,
            &format!("{service}-x"),
            &json!({"kubernetes.io/service-name": service}),
        );
        // Nobody listens there, which is fine: what would be scraped is the question.
        slice["endpoints"] = json!([{"addresses": ["127.0.0.1"], "targetRef": {"kind": "Pod", "name": pod}}]);
        slice["ports"] = ports.clone();
        slice
    };
    let pod = |namespace: &str, name: &str, phase: &str| {
        let mut pod = object("Pod", namespace, name, &json!({}));
        pod["spec"] = json!({"containers": [{"name": "node", "ports": [{"containerPort": 2381}]}]});
        pod["status"] = json!({"phase": phase});
        pod
    };
    let metrics = json!([{"name": "metrics", "port": 8080}]);
    let list = json!({"items": [
        object("Service", "shop", "orders-peers", &peers), slice("shop", "orders-peers", "orders-0", &ports),
        pod("shop", "orders-0", "Running"),
        // The same members behind the clients' service, a pod that has ended, another program, another release.
        object("Service", "shop", "orders", &member), slice("shop", "orders", "orders-0", &ports),
        object("Service", "shop", "old-peers", &peers), slice("shop", "old-peers", "old-0", &ports),
        pod("shop", "old-0", "Failed"),
        object("Service", "shop", "other", &json!({})), slice("shop", "other", "other-0", &ports),
        object("Service", "sys", "demo-operator", &operator), slice("sys", "demo-operator", "demo-7", &metrics),
        pod("sys", "demo-7", "Running"),
        object("Service", "else", "demo-operator", &operator), slice("else", "demo-operator", "demo-8", &metrics),
    ]});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("targets.json");
    fs::write(&file, discovery::targets(&list).to_string()).unwrap();
    let scrapes: Vec<Value> = monitoring
        .monitors
        .iter()
        .flat_map(|monitor| discovery::scrapes(monitor, &file))
        .collect();
    let prometheus = Prometheus::on_host(folder.path(), &scrapes, &monitoring.rules).unwrap();
    let found = wait_until("both are discovered", LIMIT, || {
        let targets = prometheus.targets().unwrap();
        if targets.len() >= 2 {
            Ok(targets)
        } else {
            Err(format!("{targets:?}"))
        }
    });
    let mut lines: Vec<String> = found
        .unwrap()
        .into_iter()
        .map(|(labels, _)| format!("{labels:?}\n"))
        .collect();
    lines.sort();
    expect![[r#"
        {"cluster": "orders", "container": "node", "endpoint": "admin", "instance": "127.0.0.1:2381", "job": "althing", "namespace": "shop", "pod": "orders-0", "service": "orders-peers"}
        {"endpoint": "metrics", "instance": "127.0.0.1:8080", "job": "althing-operator", "namespace": "sys", "pod": "demo-7", "service": "demo-operator"}
    "#]]
    .assert_eq(&lines.concat());
}

/// All queries, on a real Prometheus, over programs that export exactly the listed names.
#[test]
fn every_query_returns_data_from_the_listed_metrics_and_a_dead_member_fires_its_alert() {
    let Some(_) = debian("prometheus") else { return };
    let monitoring = monitoring();
    let mut members: Vec<Exporter> = (0..3).map(|_| Exporter::start(&MEMBER_METRICS)).collect();
    let operator = Exporter::start(&OPERATOR_METRICS);
    let targets: Vec<Value> = members
        .iter()
        .enumerate()
        .map(|(ordinal, member)| {
            json!({"targets": [member.address], "labels": {"namespace": "n", "cluster": "c", "pod": format!("c-{ordinal}")}})
        })
        .collect();
    let scrapes = [
        json!({"job_name": "althing", "static_configs": targets}),
        json!({"job_name": "althing-operator", "static_configs": [
            {"targets": [operator.address], "labels": {"namespace": "sys", "pod": "o"}},
        ]}),
    ];
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::on_host(folder.path(), &scrapes, &impatient(&monitoring.rules)).unwrap();

    check_metrics(&prometheus, LIMIT).unwrap();
    for dashboard in &monitoring.dashboards {
        println!("{}", check_panels(&prometheus, dashboard, &SCOPE, LIMIT).unwrap());
    }
    check_alerts(&prometheus, &monitoring.alerts, LIMIT).unwrap();
    // Before each member was scraped once, some count as down.
    wait_until("nothing is wrong", LIMIT, || {
        match prometheus.alerts().unwrap().as_slice() {
            [] => Ok(()),
            alerts => Err(format!("{alerts:?}")),
        }
    })
    .unwrap();

    let (name, labels) = ("AlthingMemberDown", [("namespace", "n"), ("cluster", "c")]);
    let address = members.remove(1).stop();
    wait_for_alert(&prometheus, name, &labels, LIMIT).unwrap();
    // Until the next scrape of the others has come in.
    let before = members[0].scrapes();
    fires_until(&prometheus, name, &labels, LIMIT, || members[0].scrapes() > before + 1).unwrap();
    let back = Exporter::start_at(address, &MEMBER_METRICS);
    wait_for_resolved(&prometheus, name, &labels, LIMIT).unwrap();
    back.stop();
}

#[test]
fn a_query_for_what_is_not_there_is_reported_with_its_panel_and_alert() {
    let Some(_) = debian("prometheus") else { return };
    let folder = tempfile::tempdir().unwrap();
    let monitoring = monitoring();
    let prometheus = Prometheus::on_host(folder.path(), &[], &monitoring.rules).unwrap();
    let panels = check_panels(&prometheus, &monitoring.dashboards[0], &SCOPE, Duration::ZERO)
        .unwrap_err()
        .to_string();
    assert!(
        panels.contains("panel `Members up` has no data for count(up{"),
        "{panels}"
    );
    let metrics = check_metrics(&prometheus, Duration::ZERO).unwrap_err().to_string();
    assert!(metrics.contains("althing_raft_voters"), "{metrics}");
    // The first evaluation may be still to come, or has found nothing to read; never is it fine.
    check_alerts(&prometheus, &monitoring.alerts, Duration::ZERO).unwrap_err();
    let refused = prometheus.query("sum(").unwrap_err().to_string();
    assert!(refused.contains("parse error"), "{refused}");
}

#[test]
fn a_legend_names_its_labels() {
    assert_eq!(legend_labels("{{pod}} shard {{ shard }}"), ["pod", "shard"]);
    assert!(legend_labels("p50").is_empty());
}

/// The rules with a patience of a second, for a test without any.
fn impatient(rules: &Value) -> Value {
    let mut rules = rules.clone();
    for rule in rules["groups"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .flat_map(|group| group["rules"].as_array_mut().unwrap())
    {
        if rule.get("for").is_some() {
            rule["for"] = json!("1s");
        }
    }
    rules
}
