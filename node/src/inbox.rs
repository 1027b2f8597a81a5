//! A queue whose reader takes everything at once.
//!
//! One lock per batch instead of one per item, and the batch is the turn: what gathered while the last turn was under way.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Many writers, one reader.
#[derive(Debug)]
pub struct Inbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    closed: bool,
}

/// The queue is full or closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                items: Vec::new(),
                closed: false,
            }),
            arrived: Condvar::new(),
        }
    }
}

impl<T> Inbox<T> {
    /// Adds an item that must not be lost. For writers whose items are bounded otherwise (answers to what the reader itself asked).
    pub fn push(&self, item: T) {
        let mut state = self.lock();
        if !state.closed {
            state.items.push(item);
            self.arrived.notify_one();
        }
    }

    /// Adds an item unless `limit` wait already.
    ///
    /// # Errors
    /// If they do, or the reader is gone; the item is dropped.
    pub fn try_push(&self, item: T, limit: usize) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed || state.items.len() >= limit {
            return Err(Refused);
        }
        state.items.push(item);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits until something is there, the queue is closed, or the time has come; takes all. `None` once it is closed and empty.
    #[expect(clippy::disallowed_methods, reason = "a shell's queue waits in real time")]
    pub fn take(&self, until: Option<Instant>) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            match until {
                None => state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    state = self
                        .arrived
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
        if state.closed && state.items.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut state.items))
    }

    /// Takes no more items; the reader gets what is there and then `None`.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_gets_all_that_gathered_and_a_closed_queue_ends() {
        let inbox = Inbox::default();
        inbox.push(1);
        assert_eq!(inbox.try_push(2, 2), Ok(()));
        assert_eq!(inbox.try_push(3, 2), Err(Refused));
        assert_eq!(inbox.take(None), Some(vec![1, 2]));
        inbox.push(4);
        inbox.close();
        inbox.push(5);
        assert_eq!(inbox.take(None), Some(vec![4]));
        assert_eq!(inbox.take(None), None);
    }
}
