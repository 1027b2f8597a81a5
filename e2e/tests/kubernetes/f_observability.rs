//! Every panel and alert on a real Prometheus that scrapes the cluster as the chart's monitors say.

use std::time::Duration;

use althing_e2e::chart::{MONITORING, Monitoring, render};
use althing_e2e::observability::{Scope, check_alerts, check_metrics, check_panels, wait_for_alert, wait_for_resolved};
use althing_e2e::prometheus::Prometheus;

use crate::kit::{CHANGE_LIMIT, Cluster, OPERATOR_NAMESPACE, RELEASE, bed, install_operator, kubectl};

/// The alert waits half a minute by itself; the rest is scraping and evaluation.
const ALERT_LIMIT: Duration = Duration::from_secs(180);

#[test]
#[ignore = "needs the bed: cargo xtask e2e"]
fn every_panel_has_data_every_alert_is_sound_and_a_killed_member_fires_its_alert() {
    let bed = bed();
    install_operator(&bed, &[]);
    let cluster = Cluster::create(&bed, "watched", 3);
    let objects = render(bed.helm().unwrap(), RELEASE, OPERATOR_NAMESPACE, &MONITORING).unwrap();
    let monitoring = Monitoring::of(&objects).unwrap();
    let prometheus = Prometheus::on_bed(&bed, &monitoring.monitors, &monitoring.rules).unwrap();

    let load = cluster.load();
    let scope = Scope {
        namespace: &cluster.namespace,
        cluster: &cluster.name,
        rate_interval: "1m",
    };
    for dashboard in &monitoring.dashboards {
        println!(
            "{}",
            check_panels(&prometheus, dashboard, &scope, CHANGE_LIMIT).unwrap()
        );
    }
    check_alerts(&prometheus, &monitoring.alerts, CHANGE_LIMIT).unwrap();
    check_metrics(&prometheus, CHANGE_LIMIT).unwrap();
    load.stop().unwrap().assert_sound();

    let pod = format!("{}-2", cluster.name);
    let node = bed.node_of(&cluster.namespace, &pod).unwrap().to_string();
    let labels = [
        ("namespace", cluster.namespace.as_str()),
        ("cluster", cluster.name.as_str()),
    ];
    kubectl(&bed, &["cordon", &node]);
    cluster.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    wait_for_alert(&prometheus, "AlthingMemberDown", &labels, ALERT_LIMIT).unwrap();
    kubectl(&bed, &["uncordon", &node]);
    cluster.wait_ready(3, CHANGE_LIMIT);
    wait_for_resolved(&prometheus, "AlthingMemberDown", &labels, ALERT_LIMIT).unwrap();
    cluster.delete();
}
