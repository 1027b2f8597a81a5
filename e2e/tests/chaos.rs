//! Real processes under faults: short runs of the real thing, and proof that the judge sees what is broken.
#![allow(clippy::unwrap_used, reason = "a failing step is the test's failure")]

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use althing_e2e::chaos::fault::{Cut, Fault, Planned, Who};
use althing_e2e::chaos::plan::{Abilities, FaultPlan};
use althing_e2e::chaos::{Options, Report, abilities, build_node, run};
use althing_e2e::workload::Reads;

/// One cluster at a time: their elections should not wait for each other's processor time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn program() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        // In the profile that this test was built with, so that what is built already is used.
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        build_node(profile).unwrap()
    });
    BUILT.clone()
}

fn drawn(members: usize, seconds: u64, seed: u64) -> Report {
    let _alone = alone();
    let options = Options::drawn(program(), members, Duration::from_secs(seconds), seed, abilities());
    let report = run(&options, &|line| println!("{line}")).unwrap();
    println!("{report}");
    report
}

/// A plan of one fault.
fn only(members: usize, fault: Fault, begun: u64, ended: u64, reads: Reads) -> Report {
    let _alone = alone();
    let seconds = Duration::from_secs;
    let options = Options {
        program: program(),
        flags: Vec::new(),
        members,
        plan: FaultPlan {
            faults: vec![Planned {
                at: seconds(begun),
                until: seconds(ended),
                fault,
            }],
            layouts: Vec::new(),
            end: seconds(ended + 3),
        },
        seed: None,
        shards: None,
        abilities: Abilities::default(),
        reads,
        period: None,
    };
    let report = run(&options, &|line| println!("{line}")).unwrap();
    println!("{report}");
    report
}

fn clear_away(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn three_members_stay_linearizable_and_lose_nothing_under_faults() {
    let report = drawn(3, 30, 0xa17_0003);
    assert_eq!(report.failures(), [""; 0], "{report}");
}

#[test]
fn five_members_stay_linearizable_and_lose_nothing_under_faults() {
    let report = drawn(5, 25, 0xa17_0005);
    assert_eq!(report.failures(), [""; 0], "{report}");
}

#[test]
fn shards_that_are_cut_and_joined_under_faults_stay_linearizable_and_lose_nothing() {
    let _alone = alone();
    let options = Options::drawn(program(), 3, Duration::from_secs(40), 0xa17_0008, abilities()).with_shards(8);
    let report = run(&options, &|line| println!("{line}")).unwrap();
    println!("{report}");
    assert_eq!(report.failures(), [""; 0], "{report}");
}

#[test]
fn a_majority_of_volumes_that_lost_what_was_synced_is_found_out() {
    let report = only(3, Fault::RollBack, 2, 6, Reads::Linearizable);
    assert!(!report.summary.verdict().passed(), "{report}");
    clear_away(&report.folder);
}

#[test]
fn old_answers_of_an_isolated_member_are_found_out() {
    let fault = Fault::Isolate {
        who: Who::Follower(0),
        cut: Cut::Hold,
    };
    let report = only(3, fault.clone(), 2, 6, Reads::Serializable);
    assert!(!report.summary.verdict().passed(), "{report}");
    clear_away(&report.folder);
    // And it is the kind of read that makes the difference.
    let report = only(3, fault, 2, 6, Reads::Linearizable);
    assert_eq!(report.failures(), [""; 0], "{report}");
}
