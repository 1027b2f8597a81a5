//! Which operation comes next. Pure: the same for every run, so that runs can be compared.

use std::time::Duration;

use althing_sim::ClientId;
use althing_sim::rng::mix;

use super::{Mix, Plan};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Get,
    Delete,
    /// Compare-and-swap on the revision that the client saw last.
    Swap,
    /// The same of two keys at once.
    SwapTwo,
    /// All keys from one to another.
    Range,
}

/// Of so many clients one asks for several keys at a time, see [`Mix::Spread`].
const WIDE_EVERY: u32 = 5;
/// Keys that one client works on, next to each other.
const KEYS_AT_HOME: u64 = 2;
/// Most keys that one range covers.
const KEYS_PER_RANGE: u64 = 6;

/// What client `id` asks for as its request number `number`; `None`: it waits for its next turn.
pub(super) fn kind(share: Mix, plan: &Plan, id: ClientId, number: u32) -> Option<Kind> {
    match share {
        Mix::PutsAndGets => {
            const WRITES_PER_READ: u32 = 3;
            if number.wrapping_add(id.0).is_multiple_of(WRITES_PER_READ + 1) {
                Some(Kind::Get)
            } else {
                Some(Kind::Put)
            }
        }
        Mix::Everything => Some(match chance(id, number) % 10 {
            0..4 => Kind::Put,
            4..7 => Kind::Get,
            7 => Kind::Delete,
            8.. => Kind::Swap,
        }),
        Mix::Spread if is_wide(id) => Some(if chance(id, number).is_multiple_of(2) {
            Kind::SwapTwo
        } else {
            Kind::Range
        }),
        Mix::Spread => kind(Mix::Everything, plan, id, number),
        Mix::Fill => (filled(plan, id, number) < u64::from(plan.keys)).then_some(Kind::Put),
        Mix::Reads { writes_per_mille } => Some(if chance(id, number) % 1000 < u64::from(writes_per_mille) {
            Kind::Put
        } else {
            Kind::Get
        }),
        Mix::Nothing => None,
    }
}

/// The key of that request after `elapsed`. Clients walk the keys from different starts, so that they meet at every key; or they fill
/// them, each its share; or they choose any.
pub(super) fn key(share: Mix, plan: &Plan, run: &str, id: ClientId, number: u32, elapsed: Duration) -> String {
    let keys = u64::from(plan.keys);
    let key = match share {
        Mix::PutsAndGets | Mix::Everything | Mix::Nothing => u64::from(number.wrapping_add(id.0)) % keys,
        Mix::Fill => filled(plan, id, number) % keys,
        // Drawn once more: the first draw has decided the kind.
        Mix::Reads { .. } => mix(chance(id, number)) % keys,
        Mix::Spread => {
            let narrow = u64::from(id.0 - id.0 / WIDE_EVERY);
            (narrow * KEYS_AT_HOME + u64::from(number) % KEYS_AT_HOME) % keys
        }
    };
    name(plan, run, key, elapsed)
}

/// The keys of a request for several: ascending, and next to each other where they make a range.
pub(super) fn keys(kind: Kind, plan: &Plan, run: &str, id: ClientId, number: u32, elapsed: Duration) -> Vec<String> {
    let keys = u64::from(plan.keys);
    // Drawn once more, for the same reason.
    let draw = mix(chance(id, number));
    let (first, more) = (draw % keys, draw >> 32);
    let mut chosen = match kind {
        Kind::Range => (first..=first + 1 + more % (KEYS_PER_RANGE - 1))
            .take_while(|key| *key < keys)
            .collect(),
        Kind::SwapTwo => vec![first, (first + 1 + more % (keys - 1).max(1)) % keys],
        Kind::Put | Kind::Get | Kind::Delete | Kind::Swap => vec![first],
    };
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|key| name(plan, run, key, elapsed)).collect()
}

/// Whether a client asks for several keys at a time in [`Mix::Spread`].
fn is_wide(id: ClientId) -> bool {
    id.0 % WIDE_EVERY == WIDE_EVERY - 1
}

/// Key number first, then the run and the set: so that all keys under use at one time are spread over all that were ever used, and it
/// is known before a run where its keys will be.
fn name(plan: &Plan, run: &str, key: u64, elapsed: Duration) -> String {
    let set = elapsed.as_millis() / plan.key_life.as_millis().max(1);
    format!("{}/{run}-{set}", folder(key))
}

/// Where the keys of a number begin, in every run.
pub(super) fn folder(key: u64) -> String {
    format!("/workload/{key:02}")
}

/// The number of a key that [`key`] or [`keys`] named.
pub(super) fn number_of(key: &str) -> Option<u32> {
    key.rsplit('/').nth(1)?.parse().ok()
}

fn chance(id: ClientId, number: u32) -> u64 {
    mix((u64::from(id.0) << 32) | u64::from(number))
}

/// All clients together count through the keys.
fn filled(plan: &Plan, id: ClientId, number: u32) -> u64 {
    u64::from(number) * u64::from(plan.clients) + u64::from(id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_the_shares_that_it_promises() {
        let plan = Plan::new(["http://127.0.0.1:1".to_owned()]);
        let count = |share, wanted| {
            (0..10_000)
                .filter(|number| kind(share, &plan, ClientId(3), *number) == Some(wanted))
                .count()
        };
        assert_eq!(count(Mix::PutsAndGets, Kind::Get), 2500);
        assert_eq!(count(Mix::PutsAndGets, Kind::Put), 7500);
        for (wanted, share) in [(Kind::Put, 4), (Kind::Get, 3), (Kind::Delete, 1), (Kind::Swap, 2)] {
            let found = count(Mix::Everything, wanted);
            assert!(found.abs_diff(share * 1000) < 200, "{wanted:?}: {found}");
        }
        let few = Mix::Reads { writes_per_mille: 20 };
        assert!(count(few, Kind::Put).abs_diff(200) < 50, "{}", count(few, Kind::Put));
        assert_eq!(count(few, Kind::Put) + count(few, Kind::Get), 10_000);
        assert_eq!(count(Mix::Reads { writes_per_mille: 0 }, Kind::Get), 10_000);
        assert_eq!(kind(Mix::Nothing, &plan, ClientId(3), 1), None);
    }

    #[test]
    fn clients_meet_at_every_key_and_leave_it_when_its_time_is_over() {
        let plan = Plan {
            keys: 2,
            key_life: Duration::from_secs(10),
            ..Plan::new(["http://127.0.0.1:1".to_owned()])
        };
        let at = |id, number, seconds| {
            let elapsed = Duration::from_secs(seconds);
            key(Mix::Everything, &plan, "w", ClientId(id), number, elapsed)
        };
        assert_eq!(at(0, 0, 0), "/workload/00/w-0");
        assert_eq!(at(0, 1, 0), at(1, 0, 9));
        assert_eq!(at(1, 1, 10), "/workload/00/w-1");
        assert_eq!(number_of("/workload/07/w-1"), Some(7));
    }

    #[test]
    fn spread_clients_have_their_own_keys_and_every_fifth_asks_for_several() {
        let plan = Plan {
            clients: 20,
            keys: 16,
            mix: Mix::Spread,
            ..Plan::new(["http://127.0.0.1:1".to_owned()])
        };
        let mut clients: std::collections::BTreeMap<String, std::collections::BTreeSet<u32>> = Default::default();
        for id in (0..plan.clients).map(ClientId) {
            for number in 0..50 {
                let kind = kind(Mix::Spread, &plan, id, number).unwrap();
                match kind {
                    Kind::SwapTwo => {
                        let keys = keys(kind, &plan, "", id, number, Duration::ZERO);
                        assert!(keys.len() == 2 && keys[0] < keys[1], "{keys:?}");
                    }
                    Kind::Range => {
                        let keys = keys(kind, &plan, "", id, number, Duration::ZERO);
                        let numbers: Vec<u32> = keys.iter().map(|key| number_of(key).unwrap()).collect();
                        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{keys:?}");
                    }
                    Kind::Put | Kind::Get | Kind::Delete | Kind::Swap => {
                        let key = key(Mix::Spread, &plan, "", id, number, Duration::ZERO);
                        clients.entry(key).or_default().insert(id.0);
                    }
                }
            }
        }
        assert_eq!(clients.len(), 16);
        let mut shards = [0; 4];
        for key in clients.keys() {
            shards[plan
                .split_keys(4)
                .iter()
                .filter(|start| key.as_str() >= start.as_str())
                .count()] += 1;
        }
        assert_eq!(shards, [4; 4], "{:?}", plan.split_keys(4));
        assert!(clients.values().all(|clients| clients.len() == 2), "{clients:?}");
        let wide = (0..20).filter(|id| is_wide(ClientId(*id))).count();
        assert_eq!(wide, 4);
    }

    #[test]
    fn filling_writes_every_key_once_and_then_nothing() {
        let plan = Plan {
            clients: 3,
            keys: 7,
            ..Plan::new(["http://127.0.0.1:1".to_owned()])
        };
        let mut written = Vec::new();
        for number in 0..5 {
            for id in (0..plan.clients).map(ClientId) {
                if kind(Mix::Fill, &plan, id, number).is_some() {
                    written.push(key(Mix::Fill, &plan, "", id, number, Duration::ZERO));
                }
            }
        }
        written.sort_unstable();
        let all: Vec<String> = (0..7).map(|key| format!("/workload/{key:02}/-0")).collect();
        assert_eq!(written, all);
    }

    #[test]
    fn reads_choose_among_all_keys_whatever_the_client() {
        let plan = Plan {
            keys: 10,
            ..Plan::new(["http://127.0.0.1:1".to_owned()])
        };
        let reads = Mix::Reads { writes_per_mille: 500 };
        for wanted in [Kind::Get, Kind::Put] {
            let keys: std::collections::BTreeSet<String> = (0..200)
                .filter(|number| kind(reads, &plan, ClientId(7), *number) == Some(wanted))
                .map(|number| key(reads, &plan, "", ClientId(7), number, Duration::ZERO))
                .collect();
            assert_eq!(keys.len(), 10, "{wanted:?}");
        }
    }
}
