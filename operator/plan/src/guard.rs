//! Quorum arithmetic: may this voter go?

use std::collections::BTreeSet;

use crate::model::{Consensus, MemberId};

/// How many of `voters` make a majority.
#[must_use]
pub(crate) const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Why a voter cannot be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Short {
    /// Voters that would answer.
    pub(crate) active: usize,
    /// Voters that would have to.
    pub(crate) needed: usize,
}

/// Whether the configuration without `member` keeps a quorum of voters that answer. Learners may always go.
pub(crate) fn may_remove(consensus: &Consensus, member: &MemberId) -> Result<(), Short> {
    if !consensus.voters.contains(member) {
        return Ok(());
    }
    let rest: BTreeSet<&MemberId> = consensus.voters.iter().filter(|voter| *voter != member).collect();
    let active = rest.iter().filter(|voter| consensus.active.contains(**voter)).count();
    let needed = quorum(rest.len());
    if !rest.is_empty() && active >= needed {
        Ok(())
    } else {
        Err(Short {
            active,
            needed: needed.max(1),
        })
    }
}

/// Whether the configuration keeps a quorum of voters that answer while `member` is stopped. A voter that does not
/// answer already takes nothing away.
pub(crate) fn may_stop(consensus: &Consensus, member: &MemberId) -> Result<(), Short> {
    if !consensus.voters.contains(member) || !consensus.active.contains(member) {
        return Ok(());
    }
    let active = consensus
        .voters
        .iter()
        .filter(|voter| *voter != member && consensus.active.contains(*voter))
        .count();
    let needed = quorum(consensus.voters.len());
    if active >= needed {
        Ok(())
    } else {
        Err(Short { active, needed })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn consensus(voters: &[&str], active: &[&str]) -> Consensus {
        let ids = |names: &[&str]| {
            names
                .iter()
                .map(|name| MemberId((*name).to_owned()))
                .collect::<BTreeSet<_>>()
        };
        Consensus {
            leader: MemberId(active[0].to_owned()),
            config_index: 1,
            voters: ids(voters),
            learners: BTreeSet::new(),
            names: BTreeMap::new(),
            active: ids(active),
            caught_up: ids(active),
            lag: BTreeMap::new(),
        }
    }

    fn id(name: &str) -> MemberId {
        MemberId(name.to_owned())
    }

    #[test]
    fn a_dead_voter_of_three_may_be_removed_and_a_live_one_may_not_while_it_is_dead() {
        let three = consensus(&["a", "b", "c"], &["a", "b"]);
        assert_eq!(may_remove(&three, &id("c")), Ok(()));
        assert_eq!(may_remove(&three, &id("b")), Err(Short { active: 1, needed: 2 }));
    }

    #[test]
    fn the_last_voter_is_never_removed() {
        assert!(may_remove(&consensus(&["a"], &["a"]), &id("a")).is_err());
    }

    #[test]
    fn one_of_three_may_be_stopped_only_while_all_answer() {
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b", "c"]), &id("b")),
            Ok(())
        );
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b"]), &id("b")),
            Err(Short { active: 1, needed: 2 })
        );
        assert_eq!(
            may_stop(&consensus(&["a", "b", "c"], &["a", "b"]), &id("c")),
            Ok(()),
            "it is down already"
        );
    }
}
