//! Names and addresses of the bed. All addresses are from 198.18.0.0/15, which RFC 2544 sets apart for benchmarks, so
//! that nothing here resembles a real network; and none is reachable from the host: the bridge lives in a network
//! namespace, so several beds may use the same addresses at the same time.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the apiserver, its etcd, the controllers and the scheduler are; also the nodes' gateway.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
/// The apiserver's address as a Service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// CoreDNS's address as a Service.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// Services' addresses.
pub const SERVICES: &str = "198.19.0.0/20";
/// All nodes' pods together.
pub const PODS: &str = "198.18.128.0/17";
/// The apiserver's URL inside the bed.
pub const API_URL: &str = "https://198.18.0.10:6443";

/// One of the three nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Node {
    /// `n1`
    N1,
    /// `n2`
    N2,
    /// `n3`
    N3,
}

impl Node {
    /// All nodes.
    pub const ALL: [Self; 3] = [Self::N1, Self::N2, Self::N3];

    /// 1, 2 or 3.
    pub const fn number(self) -> u8 {
        match self {
            Self::N1 => 1,
            Self::N2 => 2,
            Self::N3 => 3,
        }
    }

    /// The node's address.
    pub const fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 20 + self.number())
    }

    /// The addresses of its pods.
    pub fn pods(self) -> String {
        format!("198.18.{}.0/24", 128 + self.number())
    }

    /// The bridge's port that leads to it, in the control machine's network.
    pub fn port(self) -> String {
        format!("to-{self}")
    }

    /// The node with this Kubernetes name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|node| node.to_string() == name)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.number())
    }
}
