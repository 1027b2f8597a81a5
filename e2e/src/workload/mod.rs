//! Clients that write and read at a constant rate while a test does its worst, and a record of all they saw.
//!
//! Each client is sequential: it has one request under way and asks one member at a time. It never repeats a request:
//! what it could not find out stays unknown, and the judge (`althing_sim::lin`) considers both.

mod client;
mod operation;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use althing_sim::{ClientId, Recorder, lin};
use tokio::sync::watch;

use crate::error::{Error, Result};
use client::Client;
pub use summary::{Counts, Summary, WriteGap};

/// How many operations one client may do: bounds memory, and an hour of a forgotten run at the usual rate.
const OPERATIONS_MAX: u32 = 100_000;

/// How long the final read of the keys may take: clusters under test are to have healed by then.
const FINAL_READ_LIMIT: Duration = Duration::from_secs(30);

/// How long a set of keys is used: at the usual rates a few thousand operations a key, which the judge decides in well
/// under a second.
const KEY_LIFE: Duration = Duration::from_secs(60);

/// What clients do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// URLs of members or of a Service; a client whose request fails goes on to the next.
    pub endpoints: Vec<String>,
    /// How many clients, each with one request under way at most.
    pub clients: u32,
    /// How many keys they share. More clients per key make the judge's work harder, fewer make it duller.
    pub keys: u32,
    /// Time from one request of a client to its next.
    pub period: Duration,
    /// After this a request's outcome is unknown.
    pub request_timeout: Duration,
    /// What clients ask for.
    pub mix: Mix,
    /// How they read.
    pub reads: Reads,
    /// Whether a client whose request fails goes on to the next endpoint or stays with its own.
    pub attach: Attach,
    /// How long a set of keys is used before the next: a long history stays a number of short ones for the judge.
    pub key_life: Duration,
    /// Values are filled up to so many bytes on the way to the server; the history holds what is unique of them.
    pub value_bytes: usize,
    /// What the judge allows.
    pub judge: lin::Options,
}

/// The share of each kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Three puts to one get.
    PutsAndGets,
    /// Of ten: four puts, three gets, one delete, two compare-and-swaps.
    Everything,
    /// Puts until every key has been written once, then nothing. Only to begin with.
    Fill,
    /// Gets, and so many puts in a thousand requests, of any keys.
    Reads {
        /// Puts in a thousand requests.
        writes_per_mille: u16,
    },
    /// As [`Mix::Everything`], but every client has two keys of its own, next to each other, so that one shard's trouble is not
    /// every client's; and every fifth client asks for several keys at a time, anywhere: transactions over two keys, and ranges.
    Spread,
    /// No requests.
    Nothing,
}

/// How clients read. What they record is a linearizable read in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// As etcd does if nothing else is said.
    Linearizable,
    /// Whatever the member has, which may be old: shows that the judge sees old answers.
    Serializable,
}

/// What a client does when its request has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Asks the next endpoint.
    FailOver,
    /// Asks the same one again: every member has clients of its own, whatever becomes of it.
    Stay,
}

impl Plan {
    /// Six clients, four keys, twenty requests a second each, three writes to one read.
    pub fn new(endpoints: impl IntoIterator<Item = String>) -> Self {
        Self {
            endpoints: endpoints.into_iter().collect(),
            clients: 6,
            keys: 4,
            period: Duration::from_millis(50),
            request_timeout: Duration::from_secs(2),
            mix: Mix::PutsAndGets,
            reads: Reads::Linearizable,
            attach: Attach::FailOver,
            key_life: KEY_LIFE,
            value_bytes: 0,
            judge: lin::Options::default(),
        }
    }

    /// Where a keyspace is to be cut so that each of so many shards gets as many of this plan's keys as the others.
    pub fn split_keys(&self, shards: u32) -> Vec<String> {
        let keys = u64::from(self.keys);
        (1..u64::from(shards))
            .map(|shard| operation::folder(keys * shard / u64::from(shards)))
            .collect()
    }

    /// Twenty clients over sixteen keys, of which each is one client's neighbourhood: for keyspaces of several shards.
    pub fn spread(endpoints: impl IntoIterator<Item = String>) -> Self {
        Self {
            clients: 20,
            keys: 16,
            period: Duration::from_millis(100),
            mix: Mix::Spread,
            judge: lin::Options {
                revisions_of_shards: true,
                ..lin::Options::default()
            },
            ..Self::new(endpoints)
        }
    }
}

/// What clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Orders {
    go: Go,
    mix: Mix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    /// Go on.
    On,
    /// Stop, then read every key.
    StopAndLook,
    /// Stop.
    Stop,
}

/// A running workload.
#[derive(Debug)]
pub struct Workload {
    orders: watch::Sender<Orders>,
    log: Log,
    runner: JoinHandle<Result<Summary>>,
}

impl Workload {
    /// Starts the clients.
    ///
    /// # Errors
    /// If there is no endpoint or no runtime to be had.
    pub fn start(plan: Plan) -> Result<Self> {
        if plan.endpoints.is_empty() || plan.keys == 0 {
            return Err(Error::refused(
                "a workload needs an endpoint and a key",
                "name at least one of each",
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start", "a runtime for the workload"))?;
        let (orders, told) = watch::channel(Orders {
            go: Go::On,
            mix: plan.mix,
        });
        let log = Log::new();
        let clients = log.clone();
        let runner = std::thread::spawn(move || runtime.block_on(run(plan, clients, told)));
        Ok(Self { orders, log, runner })
    }

    /// Returns when `count` more writes have been acknowledged than at the time of the call: the way for a test to say
    /// "under load" and "it works again" without guessing a time.
    ///
    /// # Errors
    /// If that does not happen within `limit`.
    pub fn wait_for_writes(&self, count: usize, limit: Duration) -> Result<()> {
        let goal = self.log.writes() + count;
        crate::command::wait_until(&format!("{count} more writes are acknowledged"), limit, || {
            let writes = self.log.writes();
            if writes >= goal {
                Ok(())
            } else {
                Err(format!("{} of them", count - (goal - writes)))
            }
        })
    }

    /// Time since the clients started, in the history's clock.
    pub fn elapsed(&self) -> Duration {
        self.log.begun.elapsed()
    }

    /// When the clients started.
    pub fn begun(&self) -> Instant {
        self.log.begun
    }

    /// What clients ask for from their next request on.
    pub fn ask_for(&self, mix: Mix) {
        self.orders.send_modify(|orders| orders.mix = mix);
    }

    /// Stops the clients, waits for their last answers, reads every key, and returns what they saw.
    ///
    /// # Errors
    /// If the keys cannot be read.
    pub fn stop(self) -> Result<Summary> {
        self.end(Go::StopAndLook)
    }

    /// As [`Workload::stop`], of members that are known not to serve any more: nobody reads the keys.
    ///
    /// # Errors
    /// None: only the last look can fail.
    pub fn stop_without_last_look(self) -> Result<Summary> {
        self.end(Go::Stop)
    }

    fn end(self, how: Go) -> Result<Summary> {
        self.orders.send_modify(|orders| orders.go = how);
        self.runner
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Summary {
    /// Keeps the history as JSON lines, for `althing_sim::History::read_json_lines`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(&self, path: &Path) -> Result<()> {
        let mut lines = Vec::new();
        self.history
            .write_json_lines(&mut lines)
            .expect("invariant: a vector takes every write");
        std::fs::File::create(path)
            .and_then(|mut file| file.write_all(&lines))
            .map_err(Error::io("write", path))
    }
}

/// The recorder and its clock, shared by the clients of one thread and the test's.
#[derive(Debug, Clone)]
struct Log {
    recorder: Arc<Mutex<Recorder>>,
    begun: Instant,
}

impl Log {
    fn new() -> Self {
        Self {
            recorder: Arc::default(),
            begun: Instant::now(),
        }
    }

    /// The clock is read inside the lock, so that times in the history are in the order of its calls.
    fn record<T>(&self, act: impl FnOnce(&mut Recorder, u64) -> T) -> T {
        // Nothing that holds the lock can panic halfway through a change that matters.
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let now = u64::try_from(self.begun.elapsed().as_nanos()).expect("invariant: a run is shorter than 584 years");
        act(&mut recorder, now)
    }

    fn writes(&self) -> usize {
        self.record(|recorder, _| {
            recorder
                .completed()
                .iter()
                .filter(|event| event.reply().is_some_and(|reply| reply.wrote()))
                .count()
        })
    }
}

async fn run(plan: Plan, log: Log, told: watch::Receiver<Orders>) -> Result<Summary> {
    // Keys of this run alone: the judge starts from keys that do not exist.
    let run = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let run = run.to_string();
    let clients: Vec<_> = (0..plan.clients)
        .map(|id| {
            let client = Client::new(ClientId(id), &plan, run.clone(), log.clone());
            tokio::spawn(client.run(told.clone()))
        })
        .collect();
    for client in clients {
        client
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    let history = log.record(|recorder, now| std::mem::take(recorder).finish(now));
    let keys: BTreeSet<&str> = history.events.iter().map(|event| event.op.key()).collect();
    let how = told.borrow().go;
    let last_seen = match how {
        Go::On | Go::StopAndLook => Some(read_all(&plan, &keys).await?),
        Go::Stop => None,
    };
    Ok(Summary {
        history,
        last_seen,
        judge: plan.judge,
    })
}

async fn read_all(plan: &Plan, keys: &BTreeSet<&str>) -> Result<BTreeMap<String, althing_sim::Seen>> {
    let deadline = Instant::now() + FINAL_READ_LIMIT;
    let mut reader = client::Connection::new(plan, ClientId(0)).always_linearizable();
    let mut seen = BTreeMap::new();
    for key in keys {
        loop {
            match reader.get(key).await {
                Ok((_, found)) => {
                    seen.extend(found.map(|found| ((*key).to_owned(), found)));
                    break;
                }
                Err(status) if Instant::now() >= deadline => {
                    return Err(Error::Timeout {
                        what: format!("{key} is read at the end of the workload"),
                        limit: FINAL_READ_LIMIT,
                        last: status.to_string(),
                    });
                }
                Err(_) => tokio::time::sleep(plan.period).await,
            }
        }
    }
    Ok(seen)
}
