//! `althing up`: holds the folder, runs a worker for each cluster, answers on the control socket, ends them in order.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::ask::Asker;
use super::hub::{self, Ending, Hub};
use super::layout::{ClusterKey, Layout};
use super::node_args::Program;
use super::runner::GRACE;
use super::shared::Shared;
use super::worker::Worker;
use super::{control, files, node_binary};
use crate::args::Up;
use crate::error::Error;
use crate::manifest::Object;
use crate::ui::Ui;
use crate::view::paint::Tone;

/// Nodes that do not stop are killed after their grace; with some time to spare for a busy machine.
pub(crate) const LONGEST_END: Duration = GRACE.saturating_add(Duration::from_secs(10));

/// Holds the folder for as long as it lives.
struct Lock {
    _file: File,
}

impl Lock {
    fn take(layout: &Layout) -> Result<Lock, Error> {
        let path = layout.lock();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let mut file = open().map_err(Error::file("open", &path))?;
        match file.try_lock() {
            Ok(()) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut file).map_err(Error::file("write", &path))?;
                Ok(Lock { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                Err(Error::AlreadySupervised {
                    dir: layout.dir().to_owned(),
                    pid,
                })
            }
            Err(TryLockError::Error(source)) => Err(Error::File {
                what: "lock",
                path,
                source,
            }),
        }
    }
}

/// Whether a supervisor answers for this folder. The socket is tried rather than the lock: to try a lock is to hold it
/// for a moment, and a supervisor that starts in that moment would be turned away.
pub(crate) fn is_supervised(dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(Layout::new(dir).socket()).is_ok()
}

/// Whether a folder declares clusters.
pub(crate) fn has_clusters(dir: &Path) -> bool {
    hub::load(&Layout::new(dir), &Time(Timestamp::now())).is_ok_and(|all| !all.is_empty())
}

/// Runs until a signal or `althing down`.
pub(crate) async fn up(dir: &Path, options: &Up, objects: Vec<Object>, ui: Ui) -> Result<(), Error> {
    files::private_dir(dir)?;
    let dir = std::fs::canonicalize(dir).map_err(Error::file("find", dir))?;
    let layout = Layout::new(&dir);
    let _lock = Lock::take(&layout)?;
    let ui = Arc::new(ui);
    let now = Time(Timestamp::now());
    let hub = Arc::new(Hub::new(layout.clone(), hub::load(&layout, &now)?));
    let changes = hub.apply(objects, &now)?;
    if hub.keys().is_empty() {
        return Err(Error::NothingToRun { dir });
    }
    for change in changes {
        ui.line(Tone::Plain, &change.message);
    }
    // Signals are taken from here on, so that a Ctrl-C during the build below is not lost between the two.
    let mut signals = Signals::new()?;
    let program = program(options, &ui)?;
    let lost = "which member had which ports; they are allotted anew, and the members find each other again";
    let ports = files::read_json(&layout.ports(), lost)?.unwrap_or_default();
    let listener = control::listen(&layout)?;
    let shared = Arc::new(Shared {
        hub: Arc::clone(&hub),
        ui: Arc::clone(&ui),
        program,
        ports: Mutex::new(ports),
        first_port: options.first_port,
        asker: Asker::default(),
    });
    let served = axum::serve(listener, control::router(Arc::clone(&hub)));
    let control = tokio::spawn(async move { served.await });

    let mut workers: JoinSet<ClusterKey> = JoinSet::new();
    let mut known: BTreeSet<ClusterKey> = BTreeSet::new();
    let mut ending = hub.ending.subscribe();
    let mut failure = None;
    loop {
        for key in hub.keys() {
            if *ending.borrow() == Ending::No && known.insert(key.clone()) {
                match Worker::open(Arc::clone(&shared), key.clone()) {
                    Ok(worker) => {
                        workers.spawn(async move {
                            worker.run().await;
                            key
                        });
                    }
                    Err(error) => {
                        failure = Some(error);
                        hub.ending.send_replace(Ending::Gently);
                    }
                }
            }
        }
        if *ending.borrow() != Ending::No && workers.is_empty() {
            break;
        }
        tokio::select! {
            () = hub.declared.notified() => {}
            Some(ended) = workers.join_next() => match ended {
                Ok(key) => {
                    known.remove(&key);
                }
                Err(panic) => {
                    // A defect of ours: the nodes run on, and the next supervisor takes them over.
                    failure = Some(Error::Supervisor(format!("a worker failed: {panic}\n  its nodes run on; `althing up` takes them over")));
                    hub.ending.send_replace(Ending::Gently);
                }
            },
            () = signals.next() => {
                let again = *ending.borrow() != Ending::No;
                ui.line(Tone::Plain, if again {
                    "killing the nodes; nothing that was acknowledged is lost"
                } else {
                    "stopping the nodes; their data stay (again to kill them)"
                });
                hub.ending.send_replace(if again { Ending::Now } else { Ending::Gently });
            }
            _ = ending.changed() => {}
        }
    }
    control.abort();
    files::remove(&layout.socket())?;
    match failure {
        Some(error) => Err(error),
        None => {
            ui.line(
                Tone::Plain,
                &format!("stopped; go on with: {} up{}", ui.own_name(), dir_flag(&dir)),
            );
            Ok(())
        }
    }
}

/// ` --dir DIR` if the folder is not the one that would be found without it.
fn dir_flag(dir: &Path) -> String {
    let default = crate::run::default_dir();
    if std::fs::canonicalize(default).is_ok_and(|default| default == dir) {
        String::new()
    } else {
        format!(" --dir {}", dir.display())
    }
}

fn program(options: &Up, ui: &Ui) -> Result<Program, Error> {
    let path = node_binary::locate(options.node_binary.as_deref(), |text| ui.line(Tone::Dim, text))?;
    let path = std::fs::canonicalize(&path).map_err(Error::file("find", &path))?;
    let metadata = std::fs::metadata(&path).map_err(Error::file("read", &path))?;
    let built = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let built = built.map_or(0, |since| since.as_millis());
    Ok(Program {
        build: format!("{} bytes of {built}", metadata.len()),
        path,
    })
}

/// Every way in which a terminal or a service manager asks a program to end.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Signals, Error> {
        let take = |kind| signal(kind).map_err(|error| Error::Supervisor(format!("cannot take signals: {error}")));
        Ok(Signals {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
