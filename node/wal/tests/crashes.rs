//! Random histories on a disk whose power fails at random: whatever was synced is there, and nothing after a hole is.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use althing_raft::entry::{Entry, HardState, Payload};
use althing_raft::ids::{GroupId, Index, LogPosition, MemberId, Term};
use althing_wal::sim_disk::SimDisk;
use althing_wal::{GroupWrite, Options, RecoveredGroup, Wal};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const OPTIONS: Options = Options { segment_bytes: 4096 };

type Model = BTreeMap<GroupId, RecoveredGroup>;

/// One thing that a node may do to its log; numbers are reduced to what is possible in the state it meets.
#[derive(Clone, Debug)]
enum Step {
    Append {
        group: u64,
        back: u64,
        count: u64,
        size: usize,
        vote: bool,
    },
    Reset {
        group: u64,
        ahead: u64,
    },
    Compact {
        group: u64,
        keep: u64,
    },
    Sync,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3u64, 0..4u64, 0..6u64, 0..600usize, any::<bool>())
            .prop_map(|(group, back, count, size, vote)| Step::Append { group, back, count, size, vote }),
        1 => (0..3u64, 1..20u64).prop_map(|(group, ahead)| Step::Reset { group, ahead }),
        2 => (0..3u64, 0..10u64).prop_map(|(group, keep)| Step::Compact { group, keep }),
        4 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The states that the log went through, one after each record, since the last sync; the first is the synced one.
struct History {
    states: Vec<Model>,
    term: u64,
}

impl History {
    fn now(&self) -> Model {
        self.states.last().expect("there is always a state").clone()
    }

    /// The write that a step means, and the states that its records lead through.
    fn write(&mut self, step: &Step) -> Option<GroupWrite> {
        let mut model = self.now();
        match *step {
            Step::Append {
                group,
                back,
                count,
                size,
                vote,
            } => {
                self.term += 1;
                let id = GroupId(group);
                let log = model.entry(id).or_default();
                let floor = log.log_start.index.max(log.hard_state.commit);
                let first = Index(log.last().index.next().0.saturating_sub(back).max(floor.0 + 1));
                let mut write = GroupWrite {
                    group: id,
                    hard_state: None,
                    reset_to: None,
                    entries: vec![],
                };
                if vote {
                    let state = HardState {
                        term: Term(self.term),
                        vote: Some(MemberId(group)),
                        commit: log.log_start.index.max(log.hard_state.commit),
                        ..HardState::default()
                    };
                    log.hard_state = state;
                    write.hard_state = Some(state);
                    self.states.push(model.clone());
                }
                for offset in 0..count {
                    let entry = Entry {
                        term: Term(self.term),
                        index: Index(first.0 + offset),
                        payload: Payload::Command(Bytes::from(vec![self.term as u8; size])),
                    };
                    let log = model.entry(id).or_default();
                    log.entries.retain(|old| old.index < entry.index);
                    log.entries.push(entry.clone());
                    write.entries.push(entry);
                    self.states.push(model.clone());
                }
                Some(write)
            }
            Step::Reset { group, ahead } => {
                self.term += 1;
                let id = GroupId(group);
                let log = model.entry(id).or_default();
                let to = LogPosition {
                    term: Term(self.term),
                    index: Index(log.last().index.0 + ahead),
                };
                log.log_start = to;
                log.entries.clear();
                self.states.push(model.clone());
                Some(GroupWrite {
                    group: id,
                    hard_state: None,
                    reset_to: Some(to),
                    entries: vec![],
                })
            }
            Step::Compact { .. } | Step::Sync | Step::Reopen => None,
        }
    }

    /// Where a compaction step leads, if it is possible.
    fn compact(&mut self, group: u64, keep: u64) -> Option<(GroupId, LogPosition)> {
        let id = GroupId(group);
        let mut model = self.now();
        let log = model.get_mut(&id)?;
        let upto = log.entries.len().checked_sub(1 + usize::try_from(keep).unwrap())?;
        let to = log.entries[upto].position();
        log.log_start = to;
        log.entries.drain(..=upto);
        self.states.push(model);
        Some((id, to))
    }

    fn synced(&mut self) {
        let now = self.now();
        self.states = vec![now];
    }
}

/// Runs the steps until the power fails after `fail_after` operations, then checks what is left.
fn run(steps: &[Step], seed: u64, fail_after: u64) -> Result<(), TestCaseError> {
    let disk = SimDisk::new(seed);
    let dir = Path::new("/wal");
    let open = || Wal::open(Arc::new(disk.clone()), dir, OPTIONS);
    let mut history = History {
        states: vec![Model::new()],
        term: 0,
    };
    let mut wal = open().unwrap().0;
    disk.fail_after(fail_after);
    for step in steps {
        let done = match step {
            Step::Append { .. } | Step::Reset { .. } => {
                let write = history.write(step).expect("these steps write");
                wal.append(std::slice::from_ref(&write)).is_ok()
            }
            Step::Compact { group, keep } => match history.compact(*group, *keep) {
                Some((group, to)) => wal.compact(group, to).is_ok(),
                None => true,
            },
            Step::Sync => {
                let done = wal.sync().is_ok();
                if done {
                    history.synced();
                }
                done
            }
            Step::Reopen => {
                drop(wal);
                match open() {
                    Ok((reopened, recovered)) => {
                        prop_assert_eq!(&recovered.groups, &history.now(), "a process that ends loses nothing");
                        history.synced();
                        wal = reopened;
                        true
                    }
                    Err(_) => {
                        disk.crash();
                        return check(&open().unwrap().1.groups, &history);
                    }
                }
            }
        };
        if !done {
            break;
        }
    }
    disk.crash();
    let (mut wal, recovered) = open().map_err(|error| TestCaseError::fail(error.to_string()))?;
    check(&recovered.groups, &history)?;

    // What came back is durable and can be written on, also after a crash right away.
    let mut after = History {
        states: vec![recovered.groups],
        term: history.term,
    };
    disk.crash();
    drop(wal);
    wal = open().unwrap().0;
    let step = Step::Append {
        group: 1,
        back: 2,
        count: 2,
        size: 10,
        vote: false,
    };
    wal.append(&[after.write(&step).expect("an append writes")]).unwrap();
    wal.sync().unwrap();
    after.synced();
    disk.crash();
    drop(wal);
    check(&open().unwrap().1.groups, &after)
}

fn check(found: &Model, history: &History) -> Result<(), TestCaseError> {
    // A group whose state says nothing may or may not be listed.
    let known = |model: &Model| -> Model {
        model
            .iter()
            .filter(|(_, log)| **log != RecoveredGroup::default())
            .map(|(id, log)| (*id, log.clone()))
            .collect()
    };
    let found = known(found);
    prop_assert!(
        history.states.iter().any(|state| known(state) == found),
        "what came back is none of the {} states since the last sync:\n{found:#?}\nsynced: {:#?}",
        history.states.len(),
        history.states[0]
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn everything_synced_is_there_and_nothing_after_a_hole_is(steps in steps(), seed in any::<u64>(), fail_after in 0..400u64) {
        run(&steps, seed, fail_after)?;
    }

    #[test]
    fn a_flipped_bit_never_shortens_a_log_unnoticed_before_its_last_batch(
        appends in proptest::collection::vec(1..4u64, 3..12), offset in any::<proptest::sample::Index>(), bit in 0..8u8, seed in any::<u64>(),
    ) {
        let disk = SimDisk::new(seed);
        let dir = Path::new("/wal");
        let open = || Wal::open(Arc::new(disk.clone()), dir, OPTIONS);
        let mut wal = open().unwrap().0;
        let mut next = 1;
        let mut before_last = 0;
        for count in appends {
            before_last = next - 1;
            let entries = (next..next + count)
                .map(|index| Entry { term: Term(1), index: Index(index), payload: Payload::Command(Bytes::from(vec![1; 100])) })
                .collect();
            next += count;
            wal.append(&[GroupWrite { group: GroupId(1), hard_state: None, reset_to: None, entries }]).unwrap();
            wal.sync().unwrap();
        }
        drop(wal);
        let files: Vec<_> = disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal")).collect();
        let at = offset.index(files.len() * 4096);
        prop_assert!(disk.flip_bit(&files[at / 4096], at % 4096, bit));
        if let Ok((_, recovered)) = open() {
            let found = recovered.groups.get(&GroupId(1)).map_or(0, |log| log.entries.len() as u64);
            prop_assert!(found >= before_last, "{found} entries came back of {}, and {before_last} were before the last batch", next - 1);
        }
    }
}
