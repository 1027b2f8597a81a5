//! Asks every member how it is, all at once, and the leader for the configuration.

use std::collections::BTreeMap;

use althing_admin::NodeStatus;
use althing_crds::names;
use althing_plan::model::{Consensus, Group, MemberId, Ordinal, Place, Report};
use althing_plan::view;
use futures::future::join_all;

use crate::admin::AdminClient;

/// What the members said.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) reports: BTreeMap<Ordinal, Report>,
    pub(super) consensus: Option<Consensus>,
    pub(super) groups: BTreeMap<u64, Group>,
    pub(super) places: Option<BTreeMap<MemberId, Place>>,
}

/// The admin API of a pod.
pub(super) fn admin_url(address: &str) -> String {
    let port = names::ADMIN_PORT;
    // An IPv6 address needs brackets in a URL (RFC 3986, section 3.2.2).
    if address.contains(':') {
        format!("http://[{address}]:{port}")
    } else {
        format!("http://{address}:{port}")
    }
}

/// What every member says of itself. Members that do not answer in time are left out.
async fn statuses(
    admin: &AdminClient,
    cluster: &str,
    urls: &BTreeMap<Ordinal, String>,
) -> BTreeMap<Ordinal, NodeStatus> {
    let asked = join_all(
        urls.iter()
            .map(|(ordinal, url)| async move { (*ordinal, admin.status(url).await) }),
    )
    .await;
    let mut statuses: BTreeMap<Ordinal, NodeStatus> = BTreeMap::new();
    for (ordinal, answer) in asked {
        match answer {
            // Another pod may have got the address meanwhile.
            Ok(status) if status.name == ordinal.member(cluster) => {
                statuses.insert(ordinal, status);
            }
            Ok(status) => {
                tracing::warn!(member = %ordinal.member(cluster), found = status.name, "another member answers at this address")
            }
            Err(error) => tracing::debug!(member = %ordinal.member(cluster), %error, "no answer"),
        }
    }
    statuses
}

fn leader(statuses: &BTreeMap<Ordinal, NodeStatus>) -> Option<(Ordinal, &NodeStatus)> {
    let leader = view::leader(statuses.values())?;
    statuses
        .iter()
        .find(|(_, status)| status.member_id == leader.member_id)
        .map(|(ordinal, _)| (*ordinal, leader))
}

/// The admin URL of the member that leads the members' group: it alone changes the layout.
pub(super) async fn leader_url(admin: &AdminClient, cluster: &str, urls: &BTreeMap<Ordinal, String>) -> Option<String> {
    let statuses = statuses(admin, cluster, urls).await;
    let (ordinal, _) = leader(&statuses)?;
    urls.get(&ordinal).cloned()
}

/// Asks all members how they are, and the leader for the configuration and the layout.
pub(super) async fn ask(admin: &AdminClient, cluster: &str, urls: &BTreeMap<Ordinal, String>) -> Seen {
    let statuses = statuses(admin, cluster, urls).await;
    let url_of = |ordinal: Ordinal| urls.get(&ordinal);
    let leader = leader(&statuses);
    let consensus = match leader {
        Some((ordinal, leader)) => match url_of(ordinal) {
            Some(url) => match admin.members(url).await {
                Ok(members) => view::consensus(leader, &members),
                Err(error) => {
                    tracing::warn!(%error, "the leader does not name its members");
                    None
                }
            },
            None => None,
        },
        None => None,
    };
    let places = match (&consensus, leader.and_then(|(ordinal, _)| url_of(ordinal))) {
        (Some(consensus), Some(url)) if consensus.group == view::META => match admin.layout(url).await {
            Ok(layout) => Some(view::places(&layout)),
            // Nothing is removed by mistake: a member that holds replicas refuses to be.
            Err(error) => {
                tracing::debug!(%error, "the leader does not tell the layout");
                None
            }
        },
        (Some(_) | None, Some(_) | None) => None,
    };
    Seen {
        groups: view::groups(statuses.values()),
        places,
        reports: statuses
            .iter()
            .map(|(ordinal, status)| (*ordinal, view::report(status)))
            .collect(),
        consensus,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_ipv6_address_is_put_in_brackets() {
        assert_eq!(super::admin_url("10.0.0.7"), "http://10.0.0.7:2381");
        assert_eq!(super::admin_url("fd00::7"), "http://[fd00::7]:2381");
    }
}
