//! Tells the meta group where members run, so that the replicas of a shard are spread over zones and nodes. Best effort: a
//! cluster works without, and a member that nobody could place now is placed at the next look.

use std::collections::BTreeMap;

use althing_admin::LabelsRequest;
use althing_crds::{ValidatedCluster, names};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};

use crate::context::Context;
use crate::observe::World;

/// What to tell of one member.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Telling {
    /// It is known already.
    Known,
    /// Its node, with the zone of that node.
    AskZone { node: String },
    /// These labels.
    Say(BTreeMap<String, String>),
}

/// Whether what is seen of a pod is news. A pod does not change its node, so its zone is looked up once.
fn telling(seen: &BTreeMap<String, String>, known: &BTreeMap<String, String>) -> Telling {
    match seen.get(names::PLACE_NODE) {
        None => Telling::Known,
        Some(_) if seen.contains_key(names::PLACE_ZONE) => {
            let same = |key| known.get(key) == seen.get(key);
            if same(names::PLACE_NODE) && same(names::PLACE_ZONE) {
                Telling::Known
            } else {
                Telling::Say(seen.clone())
            }
        }
        Some(node) if known.get(names::PLACE_NODE) == Some(node) => Telling::Known,
        Some(node) => Telling::AskZone { node: node.clone() },
    }
}

/// Tells, through the leader's admin API at `leader`.
pub(crate) async fn tell(context: &Context, cluster: &ValidatedCluster, world: &World, leader: &str) {
    let Some(places) = &world.observed.places else {
        return;
    };
    for slot in world.observed.slots.values() {
        let Some(report) = &slot.report else { continue };
        let Some(place) = places.get(&report.member_id) else {
            continue;
        };
        let labels = match telling(&slot.labels, &place.labels) {
            Telling::Known => continue,
            Telling::Say(labels) => labels,
            Telling::AskZone { node } => {
                let mut labels = slot.labels.clone();
                labels.extend(
                    zone(context, &node)
                        .await
                        .map(|zone| (names::PLACE_ZONE.to_owned(), zone)),
                );
                labels
            }
        };
        let request = LabelsRequest { labels };
        if let Err(error) = context.admin.set_labels(leader, &report.member_id.0, &request).await {
            tracing::warn!(cluster = cluster.name, member = %report.member_id, %error, "cannot say where a member runs");
        }
    }
}

/// The zone of a node; none if it has none, or if the operator may not read nodes (it watches one namespace only).
async fn zone(context: &Context, node: &str) -> Option<String> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    match nodes.get_opt(node).await {
        Ok(found) => found?.labels().get(names::LABEL_ZONE).cloned(),
        Err(error) => {
            tracing::debug!(node, %error, "the node's zone is not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_member_is_placed_once_and_again_when_it_has_moved() {
        let asked = Telling::AskZone { node: "n1".into() };
        assert_eq!(telling(&labels(&[]), &labels(&[])), Telling::Known, "not scheduled yet");
        assert_eq!(telling(&labels(&[("node", "n1")]), &labels(&[])), asked);
        assert_eq!(
            telling(&labels(&[("node", "n1")]), &labels(&[("node", "n1"), ("zone", "a")])),
            Telling::Known
        );
        assert_eq!(
            telling(&labels(&[("node", "n1")]), &labels(&[("node", "n2"), ("zone", "a")])),
            asked
        );
        let both = labels(&[("node", "n1"), ("zone", "b")]);
        assert_eq!(
            telling(&both, &labels(&[("node", "n1"), ("zone", "a")])),
            Telling::Say(both.clone())
        );
        assert_eq!(telling(&both, &both), Telling::Known);
    }
}
