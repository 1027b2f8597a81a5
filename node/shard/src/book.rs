//! Where members live.
//!
//! Two sources: the member tables that groups have applied, and what members say of themselves when they connect. The
//! second is newer (a pod may come back under another name) and is all that a fresh learner has.

use althing_raft::ids::{GroupId, MemberId};
use std::collections::BTreeMap;

/// Addresses learned from handshakes alone. A learner needs one, its leader's; more come only from members that a table
/// will name, or from strangers, who must not fill memory.
pub const STRANGERS_MAX: usize = 64;

/// A host name or address with a port, resolved at each connect.
pub type Address = String;

/// The address book of one node.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    me: MemberId,
    tables: BTreeMap<GroupId, BTreeMap<MemberId, Address>>,
    seen: BTreeMap<MemberId, Address>,
}

impl AddressBook {
    /// An empty one.
    #[must_use]
    pub fn new(me: MemberId) -> Self {
        Self {
            me,
            tables: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// A member connected and said where it lives. `false` if nothing changed.
    pub fn seen(&mut self, member: MemberId, address: Address) -> bool {
        if member == self.me || self.seen.get(&member) == Some(&address) {
            return false;
        }
        let known = self.tables.values().any(|table| table.contains_key(&member));
        if !known && !self.seen.contains_key(&member) && self.strangers() >= STRANGERS_MAX {
            return false;
        }
        self.seen.insert(member, address);
        true
    }

    /// A group applied a configuration: these are its members now. Who was in it before and is nowhere any more is forgotten.
    pub fn applied(&mut self, group: GroupId, table: BTreeMap<MemberId, Address>) {
        let before = self.tables.insert(group, table).unwrap_or_default();
        self.forget_strangers(&before);
    }

    /// A group has left this node.
    pub fn retired(&mut self, group: GroupId) {
        let before = self.tables.remove(&group).unwrap_or_default();
        self.forget_strangers(&before);
    }

    fn forget_strangers(&mut self, before: &BTreeMap<MemberId, Address>) {
        for member in before.keys() {
            if !self.tables.values().any(|table| table.contains_key(member)) {
                self.seen.remove(member);
            }
        }
    }

    /// Everybody else, with the best known address.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<MemberId, Address> {
        let mut peers: BTreeMap<_, _> = self
            .tables
            .values()
            .flatten()
            .map(|(member, address)| (*member, address.clone()))
            .collect();
        peers.extend(self.seen.iter().map(|(member, address)| (*member, address.clone())));
        peers.remove(&self.me);
        peers.retain(|_, address| !address.is_empty());
        peers
    }

    fn strangers(&self) -> usize {
        self.seen
            .keys()
            .filter(|member| !self.tables.values().any(|table| table.contains_key(member)))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::FIRST_SHARD;

    fn table(members: &[(u64, &str)]) -> BTreeMap<MemberId, Address> {
        members
            .iter()
            .map(|(id, address)| (MemberId(*id), (*address).to_owned()))
            .collect()
    }

    #[test]
    fn what_a_member_says_of_itself_beats_the_table() {
        let mut book = AddressBook::new(MemberId(1));
        book.applied(GROUP, table(&[(1, "a:1"), (2, "b:1")]));
        assert_eq!(book.peers(), table(&[(2, "b:1")]));
        assert!(book.seen(MemberId(2), "b:2".to_owned()));
        assert!(!book.seen(MemberId(2), "b:2".to_owned()));
        assert_eq!(book.peers(), table(&[(2, "b:2")]));
    }

    #[test]
    fn a_learner_without_a_table_knows_the_leader_that_called_it() {
        let mut book = AddressBook::new(MemberId(9));
        assert!(book.seen(MemberId(1), "a:1".to_owned()));
        assert_eq!(book.peers(), table(&[(1, "a:1")]));
    }

    #[test]
    fn a_removed_member_is_forgotten_even_if_it_connected() {
        let mut book = AddressBook::new(MemberId(1));
        book.applied(GROUP, table(&[(1, "a:1"), (2, "b:1")]));
        book.seen(MemberId(2), "b:1".to_owned());
        book.applied(GROUP, table(&[(1, "a:1")]));
        assert_eq!(book.peers(), table(&[]));
    }

    #[test]
    fn strangers_do_not_fill_memory() {
        let mut book = AddressBook::new(MemberId(1));
        for id in 0..1000 {
            book.seen(MemberId(100 + id), "x:1".to_owned());
        }
        assert_eq!(book.peers().len(), STRANGERS_MAX);
        book.applied(GROUP, table(&[(5, "e:1")]));
        assert!(
            book.seen(MemberId(5), "e:2".to_owned()),
            "a member of a table is always welcome"
        );
    }
}
