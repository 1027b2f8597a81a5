//! How much of what a run exercised.

macro_rules! counts {
    ($($name:ident $label:literal,)*) => {
        /// Counts of what a run exercised.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $(#[doc = concat!("How many: ", $label, ".")] pub $name: u64,)*
        }

        impl Counts {
            /// Adds another run's.
            pub fn add(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }

            /// Each with what it counts.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$name),)*]
            }
        }
    };
}

counts! {
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
    installs "snapshots installed",
    stray_snapshots "snapshots that nobody asked for",
    install_crashes "crashes right after an installation",
    transfers "leadership transfers",
    config_changes "configuration changes applied",
    joint_changes "of these, joint configurations entered",
    forwards "proposals sent on to a leader",
    ok "operations that succeeded",
    failed "operations that certainly failed",
    unknown "operations whose fate is open",
}
