//! Bugs on purpose. Each names one rule of the pure rooms (this crate, the log, the host); the simulator breaks one at a time
//! and must notice (mutation testing: a search that finds nothing proves something only if it finds what is there).
//!
//! Without the feature `mutants`, which only `althing-sim` asks for, [`Mutant::active`] is a constant and nothing of this is
//! in the program.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule that can be broken.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    /// A leader commits entries of earlier terms by counting copies (Raft paper, figure 8).
    CommitEarlierTerm,
    /// Half of an even number of voters decides.
    HalfIsMajority,
    /// What a leader has sent counts as what a follower has.
    CommitWhatIsSent,
    /// A vote leaves before it is durable (pitfall P7).
    VoteBeforePersist,
    /// A candidate asks for votes before its own is durable (pitfall P7).
    AskBeforePersist,
    /// A candidate counts its own vote before it is durable.
    LeadBeforePersist,
    /// A member votes for whoever asks.
    VoteTwice,
    /// A member votes for a candidate whose log is behind its own.
    VoteForShorterLog,
    /// Members without a leader do not tell each other what is committed.
    CommitIsKeptSecret,
    /// Entries are acknowledged before they are durable (pitfall P7).
    AckBeforePersist,
    /// The write of a tail that was replaced since makes the new tail durable (pitfall P6).
    TrustReplacedWrite,
    /// An append is taken although nothing matches before it.
    AppendWithoutMatch,
    /// Every append cuts what follows its first entry.
    CutTailOnEveryAppend,
    /// A leader answers reads before it has committed in its term (pitfall P1).
    ReadBeforeOwnTerm,
    /// The answer to an earlier round confirms the present one (pitfall P2).
    ReadByOldRound,
    /// A follower takes only the answer to its newest question, and serves nothing over a slow network.
    ReadByNewestQuestion,
    /// A leader confirms its rounds alone.
    ReadUnconfirmed,
    /// A leader that loses its leadership answers the reads that it could not confirm (pitfall P3).
    ReadAfterLostLeadership,
    /// A configuration change is taken while another one is under way (pitfall P8).
    ChangeWhileChanging,
    /// A configuration change is taken before the leader has committed in its term (Ongaro's correction of 2015).
    ChangeBeforeOwnTerm,
    /// A candidate that hears of a committed configuration change goes on as if it did not concern it (pitfall P8).
    StandThroughChange,
    /// A configuration change holds before its commit is durable (pitfall P8).
    ForgetfulChange,
    /// A joint configuration counts its incoming half only (Raft thesis, section 4.3).
    JointCountsOneHalf,
    /// Nobody ends a joint configuration (pitfall P11).
    JointIsNeverLeft,
    /// A learner that has nothing is promoted.
    PromoteUnready,
    /// A snapshot replaces the log and not the members (pitfall P13).
    SnapshotWithoutMembers,
    /// A snapshot replaces a log that has more (pitfall P13).
    SnapshotOverLongerLog,
    /// A heartbeat carries a commit index beyond what the follower has (pitfall P29).
    HeartbeatBeyondMatch,
    /// A restart believes the commit index of its log, although more is applied (pitfall P16).
    CommitBelowApplied,
    /// A restart applies the last entry again.
    ApplyAgain,
    /// A read is served before the state machine has what it must show.
    ReadBeforeApply,
    /// A boot forgets that it may have promised something (pitfall P24).
    SkipQuarantine,
    /// A boot forgets which roster it takes part in.
    ForgetBallot,
    /// A lease counts from when the promise came, not from when it was asked for (pitfall P22).
    AnchorAtReceipt,
    /// An acknowledgement is stamped for the next roster while promises for the last one live.
    StampEarly,
    /// Promises are forgotten, not revoked, when a newer roster shows up (defect D2).
    ForgetPromises,
    /// Copies count for a commit whatever roster their holder takes part in.
    CountUnstamped,
    /// Commits do not wait for responders.
    SkipResponders,
    /// A member reads locally before it has what older rosters committed.
    SkipSafeIndex,
    /// A responder looks for the newest write among committed entries only.
    CommittedOnly,
    /// Promises of learners count.
    CountLearners,
    /// Leases have no margin for clocks that run fast or slow.
    NoDriftMargin,
    /// A promise counts although it was revoked while under way.
    AcceptLateGrant,
    /// A promise counts although it was asked for in an earlier life, by another clock.
    SkipIncarnation,
    /// A new leader commits what earlier terms left before older rosters are dead.
    ShowUncovered,
    /// A promise counts although its time is over (defect D5).
    IgnoreExpiry,
    /// A leader hibernates although a follower lacks something.
    HibernateWithLaggard,
    /// A leader hibernates before everybody has agreed.
    HibernateUnasked,
    /// Members that hibernate do not mind that their leader's node is silent (pitfall P26).
    SleepThroughSilence,
    /// A leader that hibernates does not mind that a member is back which was away (pitfall P26).
    SleepThroughReturn,
    /// A leader that hibernates answers reads without a round.
    ReadAsleep,
    /// A member takes what an earlier process of its own proposed for its own request.
    AnswerOfAnotherBoot,
    /// What a lost leader may have replicated is reported as certainly refused.
    LostMeansRefused,
    /// The log is cut behind what the state machine has durably (pitfall P14).
    CompactUndurable,
    /// The log says that it is durable without a sync.
    SkipSync,
    /// A segment is sealed without a sync.
    SealWithoutSync,
    /// The oldest segment is freed although it holds something live.
    FreeLiveSegment,
    /// A new segment does not begin with the groups' states.
    SegmentWithoutStates,
    /// What was asked of a sequencer under an earlier leadership is used.
    StampsOutliveLeadership,
    /// A command takes a revision that was asked for before the command came.
    EarlierTicketServes,
    /// A shard counts as settled although revisions for it are under way.
    ResolveForgetsTickets,
    /// A shard shows keys that it does not own.
    ForeignKeysRead,
    /// A shard changes keys that it does not own.
    ForeignKeysWritten,
    /// A shard that is being handed over takes commands.
    SealedTakesCommands,
    /// Reads do not mind the locks of transactions over several shards.
    LockedKeysRead,
    /// Writes do not mind the locks of transactions over several shards.
    LockedKeysWritten,
    /// Of several decisions about a transaction, the last one stands.
    LastDecisionStands,
    /// Whoever frees the locks of a transaction does not ask what was decided.
    RecoveryPresumesAbort,
    /// A shard takes its neighbour over before every replica has all of it durably.
    AbsorbUnconfirmed,
}

impl Mutant {
    /// Whether it is a rule of read leases, which only runs with leases can show broken.
    #[must_use]
    pub fn of_leases(self) -> bool {
        (Self::SkipQuarantine..=Self::IgnoreExpiry).contains(&self)
    }

    /// Whether it is a rule of hibernation.
    #[must_use]
    pub fn of_hibernation(self) -> bool {
        (Self::HibernateWithLaggard..=Self::ReadAsleep).contains(&self)
    }

    /// Whether it is a rule of shards, which only runs with several of them can show broken.
    #[must_use]
    pub fn of_shards(self) -> bool {
        (Self::StampsOutliveLeadership..=Self::AbsorbUnconfirmed).contains(&self)
    }

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
