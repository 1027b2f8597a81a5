//! Bugs on purpose, in one list: those of the core (`althing_raft::mutant`) and those of the shell around it.
//!
//! A search that finds nothing proves something only if it finds what is there. So every rule has a way to be broken, and a
//! test holds that the simulator notices each.

use crate::profile::Profile;
use althing_raft::mutant::Mutant as CoreMutant;
use std::fmt;
use std::str::FromStr;

/// A rule of the shell that the simulator breaks on purpose. Production code stays as it is: what is broken is what stands
/// between the host and the (simulated) world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// `Written` is said before the sync.
    AckBeforeSync,
    /// Reads are answered from the local state, without a read index.
    ReadWithoutIndex,
    /// A restart forgets term and vote.
    ForgetVote,
    /// The network delivers forwarded proposals twice.
    DuplicateForward,
    /// A wiped machine comes back under its old member id.
    SameIdAfterWipe,
    /// One machine skips a command now and then.
    SkipCommand,
    /// Syncs do nothing, and say that they did.
    LyingDisk,
    /// A group that was cut off starts before the cut is durable.
    ChildBeforeDurable,
    /// A replica is closed whatever it has got since somebody looked.
    CloseWithoutGuard,
    /// A replica is closed before what took its state over is durable.
    CloseBeforeDurable,
    /// A replica that is opened again forgets the votes of its last stay.
    ForgetVoteOfRetired,
    /// A sequencer hands out without making sure that it still leads.
    SequencerUnconfirmed,
    /// A range at a revision is read without waiting for what the shard was given before.
    ReadUnsettled,
    /// Decisions of transactions that are still driven are forgotten.
    CleanUpTheLiving,
    /// A new leader of a sequencer begins below the ceiling that it finds.
    SequencerBelowCeiling,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AckBeforeSync,
        Self::ReadWithoutIndex,
        Self::ForgetVote,
        Self::DuplicateForward,
        Self::SameIdAfterWipe,
        Self::SkipCommand,
        Self::LyingDisk,
        Self::ChildBeforeDurable,
        Self::CloseWithoutGuard,
        Self::CloseBeforeDurable,
        Self::ForgetVoteOfRetired,
        Self::SequencerUnconfirmed,
        Self::ReadUnsettled,
        Self::CleanUpTheLiving,
        Self::SequencerBelowCeiling,
    ];

    /// Whether it is about shards, of which there are several.
    const fn of_shards(self) -> bool {
        match self {
            Self::AckBeforeSync
            | Self::ReadWithoutIndex
            | Self::ForgetVote
            | Self::DuplicateForward
            | Self::SameIdAfterWipe
            | Self::SkipCommand
            | Self::LyingDisk => false,
            Self::ChildBeforeDurable
            | Self::CloseWithoutGuard
            | Self::CloseBeforeDurable
            | Self::ForgetVoteOfRetired
            | Self::SequencerUnconfirmed
            | Self::ReadUnsettled
            | Self::CleanUpTheLiving
            | Self::SequencerBelowCeiling => true,
        }
    }
}

/// A broken rule, wherever it lies. Its name is the same on the command line, in tables and in regression files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// Inside the pure rooms.
    Core(CoreMutant),
    /// Around them.
    Shell(Sabotage),
}

impl Mutant {
    /// Every mutant there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let core = CoreMutant::ALL.iter().copied().map(Self::Core);
        core.chain(Sabotage::ALL.into_iter().map(Self::Shell))
    }

    /// Whether it is a rule of hibernation, which is also staged (`crate::herd`).
    #[must_use]
    pub fn of_hibernation(self) -> bool {
        matches!(self, Self::Core(core) if core.of_hibernation())
    }

    /// The weather in which it shows.
    #[must_use]
    pub fn weather(self) -> Profile {
        match self {
            Self::Core(core) if core.of_leases() => Profile::LeaseHeavy,
            Self::Core(core) if core.of_shards() => Profile::Shards,
            Self::Shell(sabotage) if sabotage.of_shards() => Profile::Shards,
            Self::Core(_) | Self::Shell(_) => Profile::Swarm,
        }
    }
}

impl fmt::Display for Mutant {
    /// The variant's name in lower case with hyphens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Core(mutant) => format!("{mutant:?}"),
            Self::Shell(sabotage) => format!("{sabotage:?}"),
        };
        let mut text = String::new();
        for letter in name.chars() {
            if letter.is_uppercase() && !text.is_empty() {
                text.push('-');
            }
            text.push(letter.to_ascii_lowercase());
        }
        f.pad(&text)
    }
}

/// No mutant has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no mutant {0:?}")]
pub struct UnknownMutant(String);

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::all()
            .find(|mutant| mutant.to_string() == name)
            .ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}

/// While this lives, the present thread's core has one rule broken, or none. Mended also if the run panics.
#[derive(Debug)]
pub(crate) struct Broken(());

impl Broken {
    pub(crate) fn by(mutant: Option<Mutant>) -> Self {
        CoreMutant::set(match mutant {
            Some(Mutant::Core(core)) => Some(core),
            Some(Mutant::Shell(_)) | None => None,
        });
        Self(())
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        CoreMutant::set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_mutant_has_a_name_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<String> = Mutant::all().map(|mutant| mutant.to_string()).collect();
        assert_eq!(names.len(), Mutant::all().count());
        for mutant in Mutant::all() {
            assert_eq!(mutant.to_string().parse(), Ok(mutant));
        }
        assert!(names.contains("commit-earlier-term"), "{names:?}");
        assert!("nonsense".parse::<Mutant>().is_err());
    }

    #[test]
    fn a_broken_rule_is_mended_after_a_run_and_after_a_panic() {
        let rule = CoreMutant::CommitEarlierTerm;
        {
            let _broken = Broken::by(Some(Mutant::Core(rule)));
            assert!(rule.active());
        }
        assert!(!rule.active());
        let panic = std::panic::catch_unwind(|| {
            let _broken = Broken::by(Some(Mutant::Core(rule)));
            panic!("on purpose");
        });
        assert!(panic.is_err() && !rule.active());
    }
}
