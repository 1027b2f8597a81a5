//! Who asks for another way to answer reads, and which one.

use super::World;
use super::conditions::MACHINES_MAX;
use super::machine::GROUP;
use crate::rng::Rng;
use althing_raft::ids::{Index, MemberId};
use althing_raft::roster::{ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Span};
use althing_shard::Event;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A [`ReadMode`], as data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Index,
    Leader,
    Roster,
}

/// A way to answer reads, as data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Wish {
    mode: Mode,
    /// Length of a lease in heartbeats.
    beats: u32,
    /// Responders of the keys `[k0, k2)` and of those from `k1` on, a bit for each machine; otherwise every voter for all keys.
    parts: Option<(u64, u64)>,
}

impl Wish {
    /// What a run with leases begins with.
    const FIRST: Self = Self {
        mode: Mode::Roster,
        beats: 8,
        parts: None,
    };

    /// Mostly a roster.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let beats = u32::try_from(rng.between(4, 16)).expect("invariant: small");
        let mode = match rng.below(8) {
            0 => Mode::Index,
            1 | 2 => Mode::Leader,
            _ => Mode::Roster,
        };
        let parts = match rng.below(3) {
            0 => Some((rng.below(1 << MACHINES_MAX), rng.below(1 << MACHINES_MAX))),
            _ => None,
        };
        Self { mode, beats, parts }
    }
}

/// Another rate for a clock. The extremes are what hurts.
pub(super) fn draw_drift(rng: &mut Rng, most: u64) -> i64 {
    let signed = |ppm| i64::try_from(ppm).expect("invariant: below two million");
    let above = *rng.pick(&[0, most, 2 * most, 2 * most]).expect("invariant: not empty");
    signed(above) - signed(most)
}

impl World {
    pub(super) fn spec(&self, wish: Wish) -> ReadSpec {
        let members = |bits: u64| -> std::collections::BTreeSet<MemberId> {
            let chosen = (0..MACHINES_MAX).filter(|machine| bits & (1 << machine) != 0);
            chosen.map(|machine| self.machines[machine].member).collect()
        };
        let range = |start: &'static str, end: Option<&'static str>, bits| ResponderRange {
            span: Span::Range {
                start: Bytes::from_static(start.as_bytes()),
                end: end.map(|end| Bytes::from_static(end.as_bytes())),
            },
            members: members(bits),
        };
        let of_keys = self.conditions.leases.is_some_and(|leases| leases.revisions_of_keys);
        ReadSpec {
            mode: match wish.mode {
                Mode::Index => ReadMode::ReadIndex,
                Mode::Leader => ReadMode::LeaderLease,
                Mode::Roster => ReadMode::RosterLease,
            },
            responders: match wish.parts {
                Some((low, high)) if of_keys => {
                    Responders::Ranges(vec![range("k0", Some("k2"), low), range("k1", None, high)])
                }
                // Only who answers for all keys knows the newest revision.
                Some((low, high)) => Responders::Ranges(vec![range("", None, low | high)]),
                None => Responders::All,
            },
            revisions: if of_keys { Revisions::OfKeys } else { Revisions::Current },
            lease: self.conditions.heartbeat_interval * wish.beats,
        }
    }

    pub(super) fn set_reads(&mut self, leader: usize, spec: ReadSpec) {
        self.ask(leader, |request, deadline| Event::SetReads {
            request,
            group: GROUP,
            spec,
            deadline,
        });
    }

    /// Leases are wanted from the beginning on.
    pub(super) fn begin_leases(&mut self) {
        let Some(leader) = self.leader().filter(|_| self.conditions.leases.is_some()) else {
            return;
        };
        let unset = self.machines[leader]
            .process
            .as_ref()
            .and_then(|process| process.host.view(GROUP))
            .is_some_and(|view| view.raft.lease.reads.index == Index::ZERO);
        if unset {
            let spec = self.spec(Wish::FIRST);
            self.set_reads(leader, spec);
        }
    }
}
