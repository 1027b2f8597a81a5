//! What is replicated about a member: the context of a configuration change, as JSON.
//!
//! JSON because it is small, rare, and gets fields: unknown ones are kept out of nobody's way.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A member's name and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberInfo {
    /// Name.
    pub name: String,
    /// `host:port` for peers.
    pub peer_address: String,
    /// URLs for clients.
    #[serde(default)]
    pub client_urls: Vec<String>,
}

impl MemberInfo {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("invariant: strings always serialise")
            .into()
    }

    /// From bytes. What cannot be read counts as unknown: the member list is for people and for connecting, and a member whose
    /// addresses are unknown says them itself when it connects.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }
}
