//! Coverage marks: rare branches that tell when they are taken, so that the simulator can say which ones its runs never
//! reached. A search proves nothing about code that it does not run.
//!
//! Without the feature `mutants`, which only `althing-sim` asks for, [`Mark::hit`] does nothing.

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A branch that is rarely taken.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mark {
            $($(#[$doc])* $name,)*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

marks! {
    /// A pre-vote from a lower term is answered with the higher one (pitfall P4).
    PreVoteOfLowerTerm,
    /// A grant for an earlier campaign comes late and does not count (pitfall P4).
    StalePreVoteGrant,
    /// A vote is refused because a leader was heard of lately.
    VoteRefusedInLease,
    /// A leader of an earlier term is told of the present one (pitfall P5).
    LowerTermLeaderAnswered,
    /// A leader that hears from no majority steps down.
    QuorumLost,
    /// A member does not campaign while a committed change of the voters waits (pitfall P8).
    CampaignWaitsForChange,
    /// A member without a leader hears from another one what is committed (pitfall P9).
    CommitHeardWhileStanding,
    /// And that its voters have changed: it stands down (pitfall P8).
    StoodDownForChange,
    /// A transfer came to nothing in time.
    TransferTimedOut,
    /// A successor was told to stand.
    TransferTold,
    /// A leader writes its last append to a member that leaves.
    Farewell,
    /// An append lies wholly below the commit index.
    AppendBelowCommit,
    /// The tail of a log conflicted with its leader's and was dropped.
    ConflictingTailDropped,
    /// A refusal of an append was old news (pitfall P28).
    StaleRejection,
    /// A follower's whole window is under way.
    WindowFull,
    /// A follower made no progress since the last heartbeat and is asked what it has.
    StalledFollowerProbed,
    /// A command was refused because too much is uncommitted (pitfall P27).
    ProposalOverLimit,
    /// A forwarded command was dropped.
    ForwardDropped,
    /// A follower needs a snapshot.
    SnapshotNeeded,
    /// A snapshot came for a log that has all of it (pitfall P13).
    SnapshotOfKnownEntries,
    /// A learner turned out to have less than it had acknowledged, or seemed to have: a late answer of an earlier replica of it.
    AcknowledgedByPredecessor,
    /// An append came while a snapshot is being installed.
    AppendWhileInstalling,
    /// A boot found a log that ends before the applied state (pitfall P15).
    BootBehindSnapshot,
    /// A boot knew of more applied entries than of committed ones (pitfall P16).
    BootCommitRaised,
    /// The write of a tail that was replaced since became durable (pitfall P6).
    WriteOfReplacedTail,
    /// A promise of an earlier term was not sent any more.
    HeldPromiseDropped,
    /// A committed change of the members waited until its commit was durable (pitfall P8).
    ChangeWaitsForDisk,
    /// A change of the members was refused because another one is under way.
    ChangeRefusedInFlight,
    /// A learner was too far behind to be promoted.
    PromotionRefused,
    /// A read waited for the leader's first commit in its term (pitfall P1).
    ReadWaitsForOwnTerm,
    /// A read round was put to everybody, not only to the quickest.
    RoundWidened,
    /// Reads were asked again of the next leader (pitfall P3).
    ReadsMoveToNextLeader,
    /// A follower asked again for a read index.
    ReadAskedAgain,
    /// The answer to an earlier question about reads came after they were asked about again.
    ReadAnsweredLate,
    /// A read was given up by the core: nobody led for long.
    ReadGivenUp,
    /// A group fell asleep at its leader: everybody had agreed.
    Hibernated,
    /// A leader that hibernated was wanted.
    LeaderWoke,
    /// A member that hibernated learnt that its leader leads no more.
    FollowerWokeWithoutLeader,
    /// A node that groups trust in fell silent.
    NodeSilent,
    /// A node that was silent showed a sign of life.
    NodeReturned,
    /// A node without a leader answered a sign of life of a node that it knows nothing of.
    StrangerAnswered,
    /// A node that groups trusted in was started anew.
    NodeRestarted,
    /// The host holds a proposal again that the core did not take.
    ProposalHeldAgain,
    /// A request's leader fell, and nobody knows what became of it.
    RequestLostWithLeader,
    /// A received snapshot was not wanted.
    SnapshotDiscarded,
    /// The host cut a log while running.
    LogCut,
    /// A log ended in a torn tail.
    TornTail,
    /// A segment was sealed and a new one begun.
    SegmentSealed,
    /// A segment was used again.
    SegmentRecycled,
}

impl Mark {
    /// This branch is taken now.
    #[cfg(feature = "mutants")]
    pub fn hit(self) {
        HITS.set(HITS.get() | (1 << self as u32));
    }

    /// This branch is taken now; nobody counts.
    #[cfg(not(feature = "mutants"))]
    pub const fn hit(self) {}

    /// What was hit on the present thread since the last call.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn take() -> Vec<Self> {
        let hits = HITS.take();
        Self::ALL
            .iter()
            .copied()
            .filter(|mark| hits & (1 << *mark as u32) != 0)
            .collect()
    }
}

#[cfg(feature = "mutants")]
thread_local! {
    static HITS: std::cell::Cell<u128> = const { std::cell::Cell::new(0) };
}

const _: () = assert!(Mark::ALL.len() <= 128, "one bit each");
