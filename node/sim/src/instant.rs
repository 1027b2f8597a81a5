//! A world that does not get on: things happen, and no time passes.

/// Events at one instant that are still taken for work. The busiest instants of sound runs have some hundreds; two nodes that answer
/// each other's answers over a network without delay have no end, and neither would the run.
const EVENTS_MAX: u64 = 100_000;

/// Counts the events of the present instant.
#[derive(Default)]
pub(crate) struct Instant {
    at: u64,
    events: u64,
}

impl Instant {
    /// Another event at that time. Fails if that makes too many of them.
    pub(crate) fn event(&mut self, at: u64) -> Result<(), String> {
        if at > self.at {
            *self = Self { at, events: 0 };
        }
        self.events += 1;
        if self.events > EVENTS_MAX {
            return Err(format!("liveness: {EVENTS_MAX} events at one instant, and no end"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_without_end_at_one_instant_are_noticed_and_those_of_several_are_not() {
        let mut instant = Instant::default();
        let several = (0..3 * EVENTS_MAX).find_map(|event| instant.event(event / 2).err());
        assert_eq!(several, None);
        let one = (0..=EVENTS_MAX).find_map(|_| instant.event(u64::MAX).err());
        assert_eq!(one.unwrap(), "liveness: 100000 events at one instant, and no end");
    }
}
