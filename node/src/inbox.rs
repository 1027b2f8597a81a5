//! A queue whose reader takes everything at once.
//!
//! One lock per batch instead of one per item, and the batch is the turn: what gathered while the last turn was under way.
//! The reader is a thread or a task. A writer wakes it only if it sleeps, so a batch costs at most one wake-up: waking is a
//! system call, and many times dearer than adding an item.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

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
    reader: Reader,
}

/// What the reader does.
#[derive(Debug)]
enum Reader {
    /// It works, or was woken.
    Awake,
    /// It is a thread and sleeps.
    Thread,
    /// It is a task and sleeps.
    Task(Waker),
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
                reader: Reader::Awake,
            }),
            arrived: Condvar::new(),
        }
    }
}

impl<T> State<T> {
    /// What is there, with room for as much again.
    fn take(&mut self) -> Option<Vec<T>> {
        self.reader = Reader::Awake;
        if self.closed && self.items.is_empty() {
            return None;
        }
        let room = Vec::with_capacity(self.items.len());
        Some(std::mem::replace(&mut self.items, room))
    }
}

impl<T> Inbox<T> {
    /// Whether nothing is there now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// Adds an item that must not be lost. For writers whose items are bounded otherwise (answers to what the reader itself asked).
    pub fn push(&self, item: T) {
        let mut state = self.lock();
        if !state.closed {
            state.items.push(item);
            self.wake(state);
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
        self.wake(state);
        Ok(())
    }

    /// Waits until something is there, the queue is closed, or the time has come; takes all. `None` once it is closed and empty.
    /// For a reader that is a thread.
    #[expect(clippy::disallowed_methods, reason = "a shell's queue waits in real time")]
    pub fn take(&self, until: Option<Instant>) -> Option<Vec<T>> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            state.reader = Reader::Thread;
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
        state.take()
    }

    /// As `take` without a time, for a reader that is a task.
    pub async fn next(&self) -> Option<Vec<T>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As `take`, for a reader that is a task.
    pub async fn next_until(&self, until: Option<Instant>, alarm: &mut Alarm) -> Option<Vec<T>> {
        poll_fn(|context| {
            let arrival = self.poll_next(context);
            if arrival.is_pending()
                && let Some(until) = until
                && alarm.poll(until, context).is_ready()
            {
                return Poll::Ready(self.lock().take());
            }
            arrival
        })
        .await
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Vec<T>>> {
        let mut state = self.lock();
        if state.items.is_empty() && !state.closed {
            state.reader = Reader::Task(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.take())
    }

    /// Takes no more items; the reader gets what is there and then `None`.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let reader = std::mem::replace(&mut state.reader, Reader::Awake);
        drop(state);
        match reader {
            Reader::Awake => {}
            Reader::Thread => self.arrived.notify_one(),
            Reader::Task(waker) => waker.wake(),
        }
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of a task that waits again and again, mostly for something else. A timer of the runtime that is set to before all
/// others costs two system calls, so this one is moved only if it would ring too late; if it rings too early it is set anew.
pub struct Alarm {
    timer: Pin<Box<Sleep>>,
}

impl Default for Alarm {
    fn default() -> Self {
        Self {
            timer: Box::pin(sleep(Duration::ZERO)),
        }
    }
}

impl Alarm {
    fn poll(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let until = until.into();
        if self.timer.deadline() > until {
            self.timer.as_mut().reset(until);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if self.timer.deadline() >= until {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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

    #[test]
    fn a_sleeping_thread_is_woken_by_an_item_and_by_the_end() {
        let inbox = Arc::new(Inbox::default());
        let reader = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                let mut all = Vec::new();
                while let Some(items) = inbox.take(None) {
                    all.extend(items);
                }
                all
            })
        };
        for number in 0..1000 {
            inbox.push(number);
        }
        inbox.close();
        assert_eq!(reader.join().unwrap(), (0..1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_sleeping_task_is_woken_by_another_thread_and_by_time() {
        let inbox = Arc::new(Inbox::default());
        let mut alarm = Alarm::default();
        // Sooner than the alarm stands, later, and in the past.
        for wait in [20, 1, 30, 0] {
            let until = Instant::now() + Duration::from_millis(wait);
            assert_eq!(inbox.next_until(Some(until), &mut alarm).await, Some(vec![]));
            assert!(Instant::now() >= until);
        }
        let writer = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                for number in 0..1000 {
                    inbox.push(number);
                }
                inbox.close();
            })
        };
        let mut all = Vec::new();
        while let Some(items) = inbox.next().await {
            all.extend(items);
        }
        writer.join().unwrap();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }
}
