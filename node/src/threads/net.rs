//! The threads that serve sockets: each a runtime of its own, single-threaded.
//!
//! A runtime that spreads tasks over threads moves them between cores for every request; one thread that keeps its connections
//! needs neither locks nor wake-ups for them, and costs a third less per request. The first thread also runs the host and the
//! streams of peers, so that a request meets the host without leaving its thread.

use super::AbortOnPanic;
use std::cell::Cell;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads at most: beyond that the host's thread is the limit.
const THREADS_MAX: usize = 8;
/// Long reads at one time beside each of them; more wait for their turn. A disk and a few processors are busy with fewer.
const LONG_READS_MAX: usize = 16;

/// Number of a thread that serves sockets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Home(pub usize);

thread_local! {
    static HOME: Cell<Option<Home>> = const { Cell::new(None) };
}

impl Home {
    /// That of this thread; `None` if it serves no sockets.
    #[must_use]
    pub fn here() -> Option<Self> {
        HOME.get()
    }
}

/// How many a machine should have: half of its processors, because the log, the state machine and the kernel need the others.
#[must_use]
pub fn threads_wanted() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, THREADS_MAX))
}

/// All of them.
pub struct Net {
    threads: Vec<(Handle, oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Net {
    /// Starts them.
    ///
    /// # Errors
    /// If the system gives no thread or no event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads = (0..count)
            .map(|number| {
                let (stop, stopped) = oneshot::channel::<()>();
                let (tell, told) = mpsc::sync_channel(1);
                let thread = std::thread::Builder::new()
                    .name(format!("net-{number}"))
                    .spawn(move || {
                        let _guard = AbortOnPanic;
                        HOME.set(Some(Home(number)));
                        let runtime = Builder::new_current_thread()
                            .enable_all()
                            .on_thread_park(althing_api::settle)
                            .max_blocking_threads(LONG_READS_MAX)
                            .build();
                        match runtime {
                            Ok(runtime) => {
                                // Whoever waits for it is alive: it is the caller of this function.
                                let _ = tell.send(Ok(runtime.handle().clone()));
                                // The other end dropped means the same.
                                let _ = runtime.block_on(stopped);
                            }
                            Err(error) => {
                                let _ = tell.send(Err(error));
                            }
                        }
                    })?;
                let handle = told.recv().map_err(|_| io::Error::other("a thread ended at once"))??;
                Ok((handle, stop, thread))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// The one that also runs the host.
    #[must_use]
    pub fn first(&self) -> &Handle {
        &self.threads.first().expect("invariant: there is at least one").0
    }

    /// All, in order.
    pub fn handles(&self) -> impl Iterator<Item = (Home, &Handle)> {
        self.threads
            .iter()
            .enumerate()
            .map(|(number, (handle, ..))| (Home(number), handle))
    }

    /// Ends them with all their tasks. Blocks until they are gone.
    ///
    /// # Errors
    /// If one has panicked.
    pub fn stop(self) -> std::thread::Result<()> {
        let mut ended = Ok(());
        for (_, stop, thread) in self.threads {
            // It may have ended before.
            let _ = stop.send(());
            ended = ended.and(thread.join());
        }
        ended
    }
}
