//! Which ports a local member gets. Pure: whether a port is free is asked of the caller.
//!
//! A member keeps its ports for life, because the other members remember its peer address; so they are allotted
//! once per ordinal and kept in a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::layout::MemberKey;

/// etcd's client port, so that the first member is where every etcd client looks by default.
pub(crate) const FIRST_PORT: u16 = 2379;
/// Distance between two members' client ports: room for three, and easy to read (2379, 2389, 2399).
const STRIDE: u16 = 10;
/// Blocks to look at before giving up: sixty clusters of five leave room, and a search ends.
const MAX_BLOCKS: u16 = 300;

/// A member's ports on the loopback address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    /// gRPC for clients.
    pub(crate) client: u16,
    /// For the other members.
    pub(crate) peer: u16,
    /// HTTP admin and metrics.
    pub(crate) admin: u16,
}

impl Ports {
    fn block(first: u16) -> Option<Ports> {
        Some(Ports {
            client: first,
            peer: first.checked_add(1)?,
            admin: first.checked_add(2)?,
        })
    }

    /// The three of them.
    pub(crate) fn all(self) -> [u16; 3] {
        [self.client, self.peer, self.admin]
    }

    /// `http://127.0.0.1:<client>`.
    pub(crate) fn client_url(self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// `127.0.0.1:<peer>`.
    pub(crate) fn peer_address(self) -> String {
        format!("127.0.0.1:{}", self.peer)
    }

    /// `http://127.0.0.1:<admin>`.
    pub(crate) fn admin_url(self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }
}

/// Who has which ports, as the folder's `ports.json` keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PortBook(BTreeMap<String, Ports>);

impl PortBook {
    /// The ports of a member, if it has some.
    pub(crate) fn get(&self, member: &MemberKey) -> Option<Ports> {
        self.0.get(&member.to_string()).copied()
    }

    /// Gives a member ports that nobody else of this folder has and that are free now; what it has, it keeps.
    /// None: there are no three free ports in a row among those looked at.
    pub(crate) fn allot(&mut self, member: &MemberKey, first: u16, is_free: impl Fn(u16) -> bool) -> Option<Ports> {
        if let Some(ports) = self.get(member) {
            return Some(ports);
        }
        let taken = |port: u16| self.0.values().any(|ports| ports.all().contains(&port));
        let ports = (0..MAX_BLOCKS)
            .filter_map(|n| {
                n.checked_mul(STRIDE)
                    .and_then(|offset| first.checked_add(offset))
                    .and_then(Ports::block)
            })
            .find(|ports| ports.all().into_iter().all(|port| !taken(port) && is_free(port)))?;
        self.0.insert(member.to_string(), ports);
        Some(ports)
    }

    /// Forgets a member that will not come back.
    pub(crate) fn release(&mut self, member: &MemberKey) {
        self.0.remove(&member.to_string());
    }
}

#[cfg(test)]
mod tests {
    use althing_plan::model::Ordinal;

    use super::super::layout::ClusterKey;
    use super::*;

    fn member(cluster: &str, ordinal: u32) -> MemberKey {
        MemberKey {
            cluster: ClusterKey::new("default", cluster),
            ordinal: Ordinal(ordinal),
        }
    }

    #[test]
    fn the_first_member_is_where_etcd_clients_look() {
        let mut book = PortBook::default();
        let clients: Vec<u16> = (0..3)
            .map(|n| book.allot(&member("orders", n), FIRST_PORT, |_| true).unwrap().client)
            .collect();
        assert_eq!(clients, [2379, 2389, 2399]);
    }

    #[test]
    fn a_block_with_one_busy_port_is_passed_over() {
        let mut book = PortBook::default();
        let ports = book
            .allot(&member("orders", 0), FIRST_PORT, |port| port != 2381)
            .unwrap();
        assert_eq!(
            ports,
            Ports {
                client: 2389,
                peer: 2390,
                admin: 2391
            }
        );
    }

    #[test]
    fn a_member_keeps_its_ports_even_while_they_are_busy() {
        let mut book = PortBook::default();
        let first = book.allot(&member("orders", 0), FIRST_PORT, |_| true).unwrap();
        assert_eq!(book.allot(&member("orders", 0), FIRST_PORT, |_| false), Some(first));
    }

    #[test]
    fn two_clusters_never_share_a_port_and_released_ones_are_given_again() {
        let mut book = PortBook::default();
        let a = book.allot(&member("a", 0), FIRST_PORT, |_| true).unwrap();
        let b = book.allot(&member("b", 0), FIRST_PORT, |_| true).unwrap();
        assert!(a.all().iter().all(|port| !b.all().contains(port)));
        book.release(&member("a", 0));
        assert_eq!(book.allot(&member("c", 0), FIRST_PORT, |_| true), Some(a));
    }

    #[test]
    fn the_search_ends_when_nothing_is_free_and_at_the_highest_port() {
        let mut book = PortBook::default();
        assert_eq!(book.allot(&member("a", 0), FIRST_PORT, |_| false), None);
        assert_eq!(book.allot(&member("a", 0), u16::MAX, |_| true), None);
    }
}
