//! Tasks of simulated shells: futures on one thread that wait for answers and for simulated time, and for nothing else.
//!
//! Whatever is awaited is an [`Answer`], kept by whoever has its [`Promise`]. Tasks run in the order in which they were woken, so that
//! the same run wakes them in the same order.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Whose task it is: a machine's ends with its process; `None` lives as long as the run.
pub(crate) type Owner = Option<usize>;

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were woken, in order.
#[derive(Default)]
struct Ready(Mutex<VecDeque<u64>>);

impl Ready {
    fn push(&self, task: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(task);
    }

    fn pop(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

struct Bell {
    task: u64,
    ready: Arc<Ready>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.push(self.task);
    }
}

/// All tasks of a run.
#[derive(Default)]
pub(crate) struct Tasks {
    all: RefCell<BTreeMap<u64, (Owner, Work)>>,
    next: RefCell<u64>,
    ready: Arc<Ready>,
}

impl Tasks {
    pub(crate) fn spawn(&self, owner: Owner, work: impl Future<Output = ()> + 'static) {
        let task = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        self.all.borrow_mut().insert(task, (owner, Box::pin(work)));
        self.ready.push(task);
    }

    /// A process ended: its tasks go no further. Not to be called by a task.
    pub(crate) fn end_of(&self, machine: usize) {
        let mut all = self.all.borrow_mut();
        let ended: Vec<u64> = all
            .iter()
            .filter(|(_, (owner, _))| *owner == Some(machine))
            .map(|(task, _)| *task)
            .collect();
        let ended: Vec<_> = ended.iter().filter_map(|task| all.remove(task)).collect();
        // What they held may wake others.
        drop(all);
        drop(ended);
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        let all = std::mem::take(&mut *self.all.borrow_mut());
        drop(all);
    }

    /// Lets every task go as far as it can.
    pub(crate) fn run(&self) {
        while let Some(task) = self.ready.pop() {
            let Some((owner, mut work)) = self.all.borrow_mut().remove(&task) else {
                continue;
            };
            let bell = Bell {
                task,
                ready: Arc::clone(&self.ready),
            };
            let waker = Waker::from(Arc::new(bell));
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(()) => {}
                Poll::Pending => drop(self.all.borrow_mut().insert(task, (owner, work))),
            }
        }
    }
}

/// Things on their way to one task.
pub(crate) struct Mailbox<T>(Rc<RefCell<(VecDeque<T>, Option<Waker>)>>);

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn push(&self, item: T) {
        let mut inner = self.0.borrow_mut();
        inner.0.push_back(item);
        if let Some(waker) = inner.1.take() {
            waker.wake();
        }
    }

    /// The next one, whenever it comes.
    pub(crate) async fn next(&self) -> T {
        poll_fn(|context| {
            let mut inner = self.0.borrow_mut();
            match inner.0.pop_front() {
                Some(item) => Poll::Ready(item),
                None => {
                    inner.1 = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

struct Cell<T> {
    value: Option<T>,
    over: bool,
    waker: Option<Waker>,
}

/// Will be answered, once.
pub(crate) struct Promise<T>(Rc<RefCell<Cell<T>>>);

/// Comes to what was promised, or to `None` if the promise was dropped.
pub(crate) struct Answer<T>(Rc<RefCell<Cell<T>>>);

pub(crate) fn promise<T>() -> (Promise<T>, Answer<T>) {
    let cell = Rc::new(RefCell::new(Cell {
        value: None,
        over: false,
        waker: None,
    }));
    (Promise(Rc::clone(&cell)), Answer(cell))
}

impl<T> Promise<T> {
    pub(crate) fn keep(self, value: T) {
        self.0.borrow_mut().value = Some(value);
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let waker = {
            let mut cell = self.0.borrow_mut();
            cell.over = true;
            cell.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut cell = self.0.borrow_mut();
        if cell.over {
            return Poll::Ready(cell.value.take());
        }
        cell.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// What comes of the work, unless the limit comes first.
pub(crate) async fn within<T>(work: impl Future<Output = T>, limit: Answer<()>) -> Option<T> {
    let (mut work, mut limit) = (pin!(work), pin!(limit));
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        limit.as_mut().poll(context).map(|_| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_goes_on_when_its_promise_is_kept_or_dropped_and_not_when_its_machine_died() {
        let tasks = Tasks::default();
        let said: Rc<RefCell<Vec<&str>>> = Rc::default();
        let waits = |name: &'static str, owner, answer: Answer<()>| {
            let said = Rc::clone(&said);
            tasks.spawn(owner, async move {
                let kept = answer.await;
                said.borrow_mut().push(if kept.is_some() { name } else { "nobody" });
            });
        };
        let (first, answer) = promise();
        waits("first", Some(0), answer);
        let (second, answer) = promise();
        waits("second", None, answer);
        let (third, answer) = promise::<()>();
        waits("third", Some(1), answer);
        tasks.run();
        assert!(said.borrow().is_empty());
        third.keep(());
        tasks.end_of(1);
        second.keep(());
        drop(first);
        tasks.run();
        assert_eq!(*said.borrow(), ["second", "nobody"]);
    }
}
