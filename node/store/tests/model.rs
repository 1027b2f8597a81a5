//! The state machine against a model that keeps a whole map for every revision.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "common/arb.rs"]
mod arb;
mod common;
#[path = "common/flat.rs"]
mod flat;

use althing_store::ops::{Command, KeyRange, Op, Range, Revision, Txn};
use althing_store::{ApplyItem, MemStore, Mvcc, SledOptions, SledStore, StateStore};
use bytes::Bytes;
use common::*;
use flat::{Model, Working};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    Range(Range),
    Sweep,
    Reopen,
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(arb::command(), 1..4).prop_map(Step::Apply),
        4 => arb::range().prop_map(Step::Range),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Runs the steps on a store and on the model. `other` makes an empty store to send snapshots to.
fn run<S: StateStore>(steps: Vec<Step>, store: S, mut other: impl FnMut() -> S) -> Result<(), TestCaseError> {
    let mut model = Model::new();
    let mut store = store;
    let mut keys = Keys {
        mvcc: Mvcc::open(store.clone(), G).unwrap(),
    };
    for step in steps {
        match step {
            Step::Apply(commands) => {
                let expected: Vec<_> = commands
                    .iter()
                    .map(|command| Some(model.command(command, None)))
                    .collect();
                let items: Vec<_> = commands.into_iter().map(ApplyItem::unstamped).collect();
                prop_assert_eq!(keys.apply(&items), expected);
            }
            Step::Range(range) => {
                let expected = model.range(&range, model.now());
                prop_assert_eq!(keys.range(&range), expected);
                let txn = Txn {
                    success: vec![Op::Range(range)],
                    ..Txn::default()
                };
                let expected = model.check(&txn.success[0]).map(|()| {
                    let mut work = Working {
                        map: model.now().clone(),
                        changed: false,
                    };
                    (
                        Revision(model.current),
                        model.run(&Op::Txn(txn.clone()), &mut work).unwrap().1,
                    )
                });
                prop_assert_eq!(keys.mvcc.read_txn(&txn).unwrap(), expected);
            }
            Step::Sweep => keys.sweep(),
            Step::Reopen => {
                keys = Keys {
                    mvcc: Mvcc::open(store.clone(), G).unwrap(),
                }
            }
            Step::Snapshot if keys.mvcc.applied().position.index.0 == 0 => {}
            Step::Snapshot => {
                let target = other();
                let fresh = Mvcc::open(target.clone(), G).unwrap();
                let mut import = fresh.import();
                for chunk in keys.mvcc.export().unwrap() {
                    import.chunk(&chunk.unwrap()).unwrap();
                }
                prop_assert_eq!(fresh.install(import).unwrap(), keys.mvcc.applied());
                prop_assert_eq!(fresh.size().unwrap().in_use, keys.mvcc.size().unwrap().in_use);
                store = target;
                keys = Keys { mvcc: fresh };
            }
        }
        prop_assert_eq!(keys.revision(), model.current);
        prop_assert_eq!(keys.mvcc.size().unwrap().keys, model.now().len() as u64);
    }
    // Everything still readable reads as it was, before and after whatever a sweep drops, and after a reopen.
    for pass in 0..3 {
        for revision in model.compacted.max(1)..=model.current {
            let range = Range {
                revision: Some(Revision(revision)),
                ..Range::of(KeyRange::From(Bytes::new()))
            };
            prop_assert_eq!(
                keys.range(&range),
                model.range(&range, model.now()),
                "revision {} in pass {}",
                revision,
                pass
            );
        }
        if pass == 0 {
            keys.sweep();
        } else {
            keys = Keys {
                mvcc: Mvcc::open(store.clone(), G).unwrap(),
            };
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn in_memory_it_does_what_the_model_does(steps in steps()) {
        run(steps, MemStore::default(), MemStore::default)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn over_sled_it_does_what_the_model_does(steps in steps()) {
        let dirs = std::cell::RefCell::new(Vec::new());
        let open = || {
            let dir = tempfile::tempdir().unwrap();
            let store = SledStore::open(dir.path(), SledOptions { cache_bytes: 1 << 20 }).unwrap().0;
            dirs.borrow_mut().push(dir);
            store
        };
        run(steps, open(), open)?;
    }
}
