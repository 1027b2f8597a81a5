//! What the operator may do in Kubernetes, as data that a test compares with the chart. Whoever adds a call adds its
//! verb here, and the test then asks for it in the chart.

/// Verbs on the resources of one API group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
    pub(crate) verbs: &'static [&'static str],
}

/// Rights in the namespaces that are watched.
pub(crate) const RULES: [Rule; 8] = [
    // Applied (create, patch) and watched for drift.
    Rule {
        group: "",
        resources: &["configmaps", "serviceaccounts", "services"],
        verbs: &["create", "list", "patch", "watch"],
    },
    // Made, observed, deleted by plan; claims also grow.
    Rule {
        group: "",
        resources: &["persistentvolumeclaims"],
        verbs: &["create", "delete", "list", "patch", "watch"],
    },
    Rule {
        group: "",
        resources: &["pods"],
        verbs: &["create", "delete", "list", "watch"],
    },
    Rule {
        group: "althing.dev",
        resources: &["raftclusters"],
        verbs: &["get", "list", "watch"],
    },
    Rule {
        group: "althing.dev",
        resources: &["shardlayouts"],
        // Patched for the finalizer only.
        verbs: &["get", "list", "patch", "watch"],
    },
    Rule {
        group: "althing.dev",
        resources: &["raftclusters/status", "shardlayouts/status"],
        verbs: &["patch"],
    },
    Rule {
        group: "events.k8s.io",
        resources: &["events"],
        verbs: &["create", "patch"],
    },
    // Deleted where a budget would only block drains.
    Rule {
        group: "policy",
        resources: &["poddisruptionbudgets"],
        verbs: &["create", "delete", "list", "patch", "watch"],
    },
];

/// Rights beyond namespaces, where all of them are watched: the zone of a member's node. Without it, members are spread over
/// nodes only.
pub(crate) const NODE_RULE: Rule = Rule {
    group: "",
    resources: &["nodes"],
    verbs: &["get"],
};

/// Rights in the operator's own namespace: the lease that elects one replica.
pub(crate) const LEASE_RULE: Rule = Rule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    verbs: &["create", "get", "update"],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// One right: group, resource, verb.
    type Right = (String, String, String);

    fn rights(rules: &[Rule]) -> BTreeSet<Right> {
        let mut rights = BTreeSet::new();
        for rule in rules {
            for resource in rule.resources {
                for verb in rule.verbs {
                    rights.insert((rule.group.to_owned(), (*resource).to_owned(), (*verb).to_owned()));
                }
            }
        }
        rights
    }

    /// Reads the plain rules of a template: `apiGroups`, `resources` and `verbs` as flow lists on a line each.
    fn chart(from: &str, to: &str) -> BTreeSet<Right> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/althing/templates/rbac.yaml");
        let text = std::fs::read_to_string(path).expect("the chart has its rights in one template");
        let start = text.find(from).expect("the rules begin");
        let end = text[start..].find(to).map_or(text.len(), |end| start + end);
        let list = |line: &str, key: &str| -> Option<Vec<String>> {
            let items = line.trim().trim_start_matches("- ").strip_prefix(key)?.trim();
            let items = items.strip_prefix('[')?.strip_suffix(']')?;
            Some(
                items
                    .split(',')
                    .map(|item| item.trim().trim_matches('"').to_owned())
                    .collect(),
            )
        };
        let (mut groups, mut resources, mut rights) = (Vec::new(), Vec::new(), BTreeSet::new());
        for line in text[start..end].lines() {
            if let Some(found) = list(line, "apiGroups:") {
                groups = found;
            } else if let Some(found) = list(line, "resources:") {
                resources = found;
            } else if let Some(verbs) = list(line, "verbs:") {
                for group in &groups {
                    for resource in &resources {
                        for verb in &verbs {
                            rights.insert((group.clone(), resource.clone(), verb.clone()));
                        }
                    }
                }
            }
        }
        rights
    }

    #[test]
    fn the_chart_grants_exactly_what_is_used() {
        assert_eq!(chart("define \"althing.rules\"", "{{- end }}"), rights(&RULES));
    }

    #[test]
    fn the_chart_grants_exactly_what_placement_needs() {
        assert_eq!(chart("-nodes\n", "kind: ClusterRoleBinding"), rights(&[NODE_RULE]));
    }

    #[test]
    fn the_chart_grants_exactly_what_the_lease_needs() {
        assert_eq!(chart("-lease\n", "kind: RoleBinding"), rights(&[LEASE_RULE]));
    }
}
