//! How much of what a run exercised.

use althing_raft::io::ReadCounts;
use althing_store::ops::OpError;

macro_rules! counts {
    (
        one { $($name:ident $label:literal,)* }
        shards { $($of_shards:ident $of_shards_label:literal,)* }
        both { $($last:ident $last_label:literal,)* }
    ) => {
        /// Counts of what a run exercised.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $(#[doc = concat!("How many: ", $label, ".")] pub $name: u64,)*
            $(#[doc = concat!("How many: ", $of_shards_label, ".")] pub $of_shards: u64,)*
            $(#[doc = concat!("How many: ", $last_label, ".")] pub $last: u64,)*
        }

        impl Counts {
            /// Adds another run's.
            pub fn add(&mut self, other: Self) {
                $(self.$name += other.$name;)*
                $(self.$of_shards += other.$of_shards;)*
                $(self.$last += other.$last;)*
            }

            /// Each with what it counts.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$name),)* $(($of_shards_label, self.$of_shards),)* $(($last_label, self.$last),)*]
            }

            /// Those of them that only runs with several shards exercise.
            #[must_use]
            pub fn rows_of_shards(&self) -> Vec<(&'static str, u64)> {
                vec![$(($of_shards_label, self.$of_shards),)*]
            }
        }
    };
}

counts! {
    one {
        events "steps of the world",
        elections "terms with a leader",
        truncations "logs whose tail was replaced",
        crashes "processes killed",
        wipes "disks wiped",
        cuts "links or groups of links cut",
        pauses "machines stopped for a while",
        storms "storms of restarts",
        flaps "links that flapped",
        sync_errors "syncs that failed",
        slow_syncs "syncs that took very long",
        disk_full "writes refused by a full disk",
        flips "bits flipped in sealed segments",
        flips_found "damaged segments found",
        clock_jumps "clocks that jumped",
        drifts "clocks that changed their rate",
        installs "snapshots installed",
        stray_snapshots "snapshots that nobody asked for",
        install_crashes "crashes right after an installation",
        transfers "leadership transfers",
        config_changes "configuration changes applied",
        joint_changes "of these, joint configurations entered",
        forwards "proposals sent on to a leader",
        read_changes "changes of how reads are answered, applied",
        rosters "rosters adopted",
        local_reads "reads answered without a message",
        held_reads "of these, held until a write committed",
        bounced_reads "held reads that went on to the leader",
        index_reads "reads that asked the leader, or a round of it",
        wild "lease promises broken by clocks beyond the bound, as expected there",
    }
    shards {
        calls "calls of one node to another",
        wishes "changes of what is wanted of shards and members",
        created "groups born of nothing",
        births "replicas born of a split",
        opened "empty replicas opened",
        closed "replicas closed",
        shards "shards at the end",
        snapshots "ranges over several shards",
        spread "transactions over several shards",
        recoveries "transactions whose locks somebody else freed",
        locked "requests refused because a transaction had locked keys",
        wrong_shard "requests refused because the route was old",
        sealed "requests refused while a shard was handed over",
        unstamped "requests refused for want of a revision",
    }
    both {
        ok "operations that succeeded",
        failed "operations that certainly failed",
        unknown "operations whose fate is open",
    }
}

impl Counts {
    /// Adds why a shard refused a request.
    pub(crate) fn add_refusal(&mut self, error: OpError) {
        match error {
            OpError::WrongShard => self.wrong_shard += 1,
            OpError::Sealed => self.sealed += 1,
            OpError::Unstamped => self.unstamped += 1,
            OpError::Locked { .. } => self.locked += 1,
            OpError::Compacted
            | OpError::FutureRevision
            | OpError::KeyNotFound
            | OpError::LeaseNotFound
            | OpError::NoSpace
            | OpError::Stale => {}
        }
    }

    /// Adds what one process says of its reads.
    pub(crate) fn add_reads(&mut self, reads: ReadCounts) {
        self.local_reads += reads.local;
        self.held_reads += reads.held;
        self.bounced_reads += reads.bounced;
        self.index_reads += reads.by_index;
    }
}
