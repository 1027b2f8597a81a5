//! Bugs on purpose. Each names one rule of the core; the simulator breaks one at a time and must notice (mutation testing:
//! a search that finds nothing proves something only if it finds what is there).
//!
//! Without the feature `mutants`, which only `althing-sim` asks for, [`Mutant::active`] is a constant and nothing of this is
//! in the program.

/// A rule of the core that can be broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mutant {
    /// A leader commits entries of earlier terms by counting copies (Raft paper, figure 8).
    CommitEarlierTerm,
    /// A joint configuration counts its incoming half only (Raft thesis, section 4.3).
    JointCountsOneHalf,
    /// Nobody ends a joint configuration (pitfall P11).
    JointIsNeverLeft,
    /// A configuration change holds although a crash could forget that it is committed (pitfall P8).
    ChangeHoldsBeforeItIsDurable,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::CommitEarlierTerm,
        Self::JointCountsOneHalf,
        Self::JointIsNeverLeft,
        Self::ChangeHoldsBeforeItIsDurable,
    ];

    /// Whether this rule is broken on the present thread.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn active(self) -> bool {
        ACTIVE.get() == Some(self)
    }

    /// Whether this rule is broken: never.
    #[cfg(not(feature = "mutants"))]
    #[must_use]
    pub const fn active(self) -> bool {
        false
    }

    /// Breaks this rule, and no other, on the present thread; `None` mends all.
    #[cfg(feature = "mutants")]
    pub fn set(mutant: Option<Self>) {
        ACTIVE.set(mutant);
    }
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}
