//! Links between machines: delay, loss, repetition, and who cannot reach whom.

use super::conditions::{Conditions, MACHINES_MAX, MS};
use crate::rng::Rng;

/// How a spike stretches a delay.
const SPIKE_FACTOR: u64 = 100;
/// Chance that a snapshot comes a second time, where the network repeats things at all.
const REPEAT_LATE: u64 = 300;

/// The network.
#[derive(Debug)]
pub(crate) struct Network {
    rng: Rng,
    delay: (u64, u64),
    spike: u64,
    loss: u64,
    duplicate: u64,
    /// `blocked[from][to]`.
    blocked: [[bool; MACHINES_MAX]; MACHINES_MAX],
}

impl Network {
    pub(crate) fn new(seed: u64, conditions: &Conditions) -> Self {
        Self {
            rng: Rng::split(seed, "net", 0),
            delay: conditions.net_delay,
            spike: conditions.net_spike,
            loss: conditions.net_loss,
            duplicate: conditions.net_duplicate,
            blocked: Default::default(),
        }
    }

    /// When copies of what is sent now arrive: none, one or two of them. What `once` is never repeated: a
    /// stream may lose its end, but it does not repeat bytes.
    pub(crate) fn send(&mut self, from: usize, to: usize, once: bool) -> Vec<u64> {
        if self.blocked[from][to] || self.rng.chance(self.loss) {
            return Vec::new();
        }
        let copies = 1 + u64::from(!once && self.rng.chance(self.duplicate));
        (0..copies).map(|_| self.draw_delay()).collect()
    }

    /// How much later something large comes a second time, if it does.
    pub(crate) fn repeats_late(&mut self) -> Option<u64> {
        (self.duplicate > 0 && self.rng.chance(REPEAT_LATE)).then(|| self.rng.below(3000 * MS))
    }

    pub(crate) fn draw_delay(&mut self) -> u64 {
        let delay = self.rng.between(self.delay.0, self.delay.1);
        if self.rng.chance(self.spike) {
            (delay * SPIKE_FACTOR).min(2000 * MS)
        } else {
            delay
        }
    }

    /// Whether something sent now could arrive.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.blocked[from][to]
    }

    /// Cuts one direction.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.blocked[from][to] = true;
    }

    /// That direction works again.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.blocked[from][to] = false;
    }

    /// Cuts both directions between the machines in `side` (a bit each) and the others.
    pub(crate) fn split(&mut self, side: u64) {
        for from in 0..MACHINES_MAX {
            for to in 0..MACHINES_MAX {
                if (side >> from) & 1 != (side >> to) & 1 {
                    self.cut(from, to);
                }
            }
        }
    }

    /// Everybody reaches everybody; chances of loss stay.
    pub(crate) fn heal(&mut self) {
        self.blocked = Default::default();
    }

    /// No more faults at all.
    pub(crate) fn calm(&mut self) {
        self.heal();
        self.loss = 0;
        self.duplicate = 0;
        self.spike = 0;
    }
}
