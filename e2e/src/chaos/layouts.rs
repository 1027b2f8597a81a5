//! Asks for another number of shards now and then, and notes how long each took; in a thread of its own, so that members that do not answer
//! hold up nobody else.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use althing_admin::client::AdminClient;
use althing_admin::{KeyspaceRequest, KeyspaceStatus, LayoutStatus};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::plan::Layout;
use crate::error::{Error, Result};

/// The clients' keyspace.
const KEYSPACE: &str = "default";
/// How exactly times are kept.
const TICK: Duration = Duration::from_millis(100);
/// How long a member may take to answer: stopped ones never do.
const ANSWER_LIMIT: Duration = Duration::from_millis(800);
/// How long the last layout may take once all members serve. The machine may be busy with builds.
const LAST_LIMIT: Duration = Duration::from_secs(90);

/// What became of a wish for shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laid {
    /// The wish.
    pub layout: Layout,
    /// When the cluster took it; `None` if the next one came before.
    pub taken: Option<Duration>,
    /// When there were so many shards and nothing was being done any more; `None` if the next wish came before.
    pub reached: Option<Duration>,
}

impl fmt::Display for Laid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} shards{} asked for at {:.1} s",
            self.layout.shards,
            self.layout
                .replicas
                .map_or_else(String::new, |replicas| format!(" of {replicas} replicas")),
            self.layout.at.as_secs_f64()
        )?;
        match (self.taken, self.reached) {
            (None, _) => write!(f, ", and nobody took it before the next"),
            (Some(taken), None) => write!(
                f,
                ", taken after {:.1} s and not reached before the next",
                taken.saturating_sub(self.layout.at).as_secs_f64()
            ),
            (Some(taken), Some(reached)) => write!(
                f,
                ", taken after {:.1} s, reached {:.1} s later",
                taken.saturating_sub(self.layout.at).as_secs_f64(),
                reached.saturating_sub(taken).as_secs_f64()
            ),
        }
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Layouts {
    stop: Arc<AtomicBool>,
    laid: Arc<RwLock<Vec<Laid>>>,
    thread: JoinHandle<std::result::Result<(), String>>,
}

impl Layouts {
    /// Asks at these times after `begun`.
    pub(super) fn start(urls: &[String], layouts: Vec<Layout>, begun: Instant) -> Result<Self> {
        let admins = urls.iter().map(|url| AdminClient::new(url));
        let admins = admins
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| Error::refused(error.to_string(), "see the log of the node"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start", "a runtime for layouts"))?;
        let stop = Arc::<AtomicBool>::default();
        let laid = Arc::<RwLock<Vec<Laid>>>::default();
        let asker = Asker {
            admins,
            runtime,
            begun,
            laid: Arc::clone(&laid),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || asker.run(&layouts));
        Ok(Self { stop, laid, thread })
    }

    /// Waits until the last one is reached, all members being up, and returns what became of all.
    pub(super) fn finish(self) -> (Vec<Laid>, std::result::Result<(), String>) {
        self.stop.store(true, Ordering::Release);
        let ended = self
            .thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let laid = self.laid.read().unwrap_or_else(PoisonError::into_inner).clone();
        (laid, ended)
    }
}

struct Asker {
    admins: Vec<AdminClient>,
    runtime: Runtime,
    begun: Instant,
    laid: Arc<RwLock<Vec<Laid>>>,
    /// No more wishes: the last one is to be reached.
    stop: Arc<AtomicBool>,
}

impl Asker {
    fn run(self, layouts: &[Layout]) -> std::result::Result<(), String> {
        let mut waiting = layouts.iter().peekable();
        let mut stopped: Option<Instant> = None;
        loop {
            let now = self.begun.elapsed();
            if self.stop.load(Ordering::Acquire) && stopped.is_none() {
                stopped = Some(Instant::now());
            }
            if let Some(layout) = waiting.next_if(|layout| layout.at <= now && stopped.is_none()) {
                self.laid.write().unwrap_or_else(PoisonError::into_inner).push(Laid {
                    layout: *layout,
                    taken: None,
                    reached: None,
                });
            }
            let last = self.laid.read().unwrap_or_else(PoisonError::into_inner).last().copied();
            let seen = last.map_or(Ok(()), |laid| self.tend(laid));
            match (stopped, seen) {
                (Some(_), Ok(())) => return Ok(()),
                (Some(since), Err(what)) if since.elapsed() > LAST_LIMIT => {
                    return Err(format!(
                        "the last layout is not reached {} s after the end: {what}",
                        LAST_LIMIT.as_secs()
                    ));
                }
                (Some(_) | None, _) => std::thread::sleep(TICK),
            }
        }
    }

    /// Asks for it until it is taken, then looks whether it is reached.
    fn tend(&self, laid: Laid) -> std::result::Result<(), String> {
        let mut now = laid;
        if now.taken.is_none() {
            self.ask(laid.layout)?;
            now.taken = Some(self.begun.elapsed());
        } else if now.reached.is_none() {
            self.is_reached(laid.layout)?;
            now.reached = Some(self.begun.elapsed());
        }
        if let Some(last) = self.laid.write().unwrap_or_else(PoisonError::into_inner).last_mut() {
            *last = now;
        }
        match now.reached {
            Some(_) => Ok(()),
            None => Err("taken".to_owned()),
        }
    }

    /// Whoever leads takes it.
    fn ask(&self, layout: Layout) -> std::result::Result<KeyspaceStatus, String> {
        let request = KeyspaceRequest {
            shards: layout.shards,
            replicas: layout.replicas,
            ..KeyspaceRequest::default()
        };
        self.first(|admin| {
            let request = request.clone();
            async move { admin.put_keyspace(KEYSPACE, &request).await }
        })
    }

    fn is_reached(&self, wanted: Layout) -> std::result::Result<(), String> {
        // Of one version, whoever conducts knows most: the others have seen their own groups only.
        let knows = |layout: &LayoutStatus| {
            let shards = layout.keyspaces.iter().flat_map(|keyspace| &keyspace.shards);
            (layout.version, shards.map(|shard| shard.voters.len()).sum::<usize>())
        };
        let mut newest: Option<LayoutStatus> = None;
        for admin in &self.admins {
            let asked = self
                .runtime
                .block_on(async { timeout(ANSWER_LIMIT, admin.layout()).await });
            if let Ok(Ok(layout)) = asked
                && newest.as_ref().is_none_or(|newest| knows(newest) < knows(&layout))
            {
                newest = Some(layout);
            }
        }
        let layout = newest.ok_or("nobody answers")?;
        let keyspace = layout.keyspaces.iter().find(|keyspace| keyspace.name == KEYSPACE);
        let keyspace = keyspace.ok_or("there is no such keyspace")?;
        let shards = wanted.shards;
        let shaped = keyspace.desired_shards == shards && keyspace.current_shards == shards;
        let want = wanted
            .replicas
            .map_or(layout.members.len(), |replicas| replicas as usize);
        let placed = keyspace
            .shards
            .iter()
            .all(|shard| shard.voters.len() == want && shard.learners.is_empty());
        if shaped && placed && keyspace.replicas == wanted.replicas && layout.operations.is_empty() {
            return Ok(());
        }
        let doing = layout.operations.iter().map(|operation| {
            format!(
                "{} {} of {:?}: {}",
                operation.kind.word(),
                operation.phase,
                operation.shards,
                operation.reason
            )
        });
        Err(format!(
            "{} shards of {shards}{}; {}; {}",
            keyspace.current_shards,
            if placed { "" } else { ", not all where they should be" },
            keyspace.message,
            doing.collect::<Vec<_>>().join("; ")
        ))
    }

    /// The first good answer among all members'.
    fn first<'a, T, F>(&'a self, ask: impl Fn(&'a AdminClient) -> F) -> std::result::Result<T, String>
    where
        F: Future<Output = std::result::Result<T, althing_admin::client::AdminError>>,
    {
        let mut said = "nobody was asked".to_owned();
        for admin in &self.admins {
            match self.runtime.block_on(async { timeout(ANSWER_LIMIT, ask(admin)).await }) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => said = error.to_string(),
                Err(_) => said = "no answer".to_owned(),
            }
        }
        Err(said)
    }
}
