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
}

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
pub(super) fn key(share: Mix, plan: &Plan, prefix: &str, id: ClientId, number: u32, elapsed: Duration) -> String {
    let set = elapsed.as_millis() / plan.key_life.as_millis().max(1);
    let keys = u64::from(plan.keys);
    let key = match share {
        Mix::PutsAndGets | Mix::Everything | Mix::Nothing => u64::from(number.wrapping_add(id.0)) % keys,
        Mix::Fill => filled(plan, id, number) % keys,
        // Drawn once more: the first draw has decided the kind.
        Mix::Reads { .. } => mix(chance(id, number)) % keys,
    };
    format!("{prefix}/{set}/{key}")
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
            key(Mix::Everything, &plan, "/w", ClientId(id), number, elapsed)
        };
        assert_eq!(at(0, 0, 0), "/w/0/0");
        assert_eq!(at(0, 1, 0), at(1, 0, 9));
        assert_eq!(at(1, 1, 10), "/w/1/0");
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
        let all: Vec<String> = (0..7).map(|key| format!("/0/{key}")).collect();
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
