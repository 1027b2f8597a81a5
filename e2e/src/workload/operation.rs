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

/// What client `id` asks for as its request number `number`.
pub(super) fn kind(share: Mix, id: ClientId, number: u32) -> Kind {
    match share {
        Mix::PutsAndGets => {
            const WRITES_PER_READ: u32 = 3;
            if number.wrapping_add(id.0).is_multiple_of(WRITES_PER_READ + 1) {
                Kind::Get
            } else {
                Kind::Put
            }
        }
        Mix::Everything => match mix((u64::from(id.0) << 32) | u64::from(number)) % 10 {
            0..4 => Kind::Put,
            4..7 => Kind::Get,
            7 => Kind::Delete,
            8.. => Kind::Swap,
        },
    }
}

/// The key of that request after `elapsed`. Clients walk the keys from different starts, so that they meet at every key.
pub(super) fn key(plan: &Plan, prefix: &str, id: ClientId, number: u32, elapsed: Duration) -> String {
    let set = elapsed.as_millis() / plan.key_life.as_millis().max(1);
    let key = number.wrapping_add(id.0) % plan.keys;
    format!("{prefix}/{set}/{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_the_shares_that_it_promises() {
        let count = |share, wanted| {
            (0..10_000)
                .filter(|number| kind(share, ClientId(3), *number) == wanted)
                .count()
        };
        assert_eq!(count(Mix::PutsAndGets, Kind::Get), 2500);
        assert_eq!(count(Mix::PutsAndGets, Kind::Put), 7500);
        for (wanted, share) in [(Kind::Put, 4), (Kind::Get, 3), (Kind::Delete, 1), (Kind::Swap, 2)] {
            let found = count(Mix::Everything, wanted);
            assert!(found.abs_diff(share * 1000) < 200, "{wanted:?}: {found}");
        }
    }

    #[test]
    fn clients_meet_at_every_key_and_leave_it_when_its_time_is_over() {
        let plan = Plan {
            keys: 2,
            key_life: Duration::from_secs(10),
            ..Plan::new(["http://127.0.0.1:1".to_owned()])
        };
        let at = |id, number, seconds| key(&plan, "/w", ClientId(id), number, Duration::from_secs(seconds));
        assert_eq!(at(0, 0, 0), "/w/0/0");
        assert_eq!(at(0, 1, 0), at(1, 0, 9));
        assert_eq!(at(1, 1, 10), "/w/1/0");
    }
}
