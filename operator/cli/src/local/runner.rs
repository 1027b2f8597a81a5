//! What the kubelet is for pods: keeps the processes of one cluster's members running that shall run.
//!
//! The planner says start or stop; that a node which ended by itself is started again is decided here (by
//! `restarts`), because no plan is needed for it. What shall run is recorded in each member's `process.json` before
//! the process is started, so that the next supervisor goes on where this one ended, however it ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use althing_plan::model::{Ordinal, Volume, Workload};
use serde::{Deserialize, Serialize};

use super::files;
use super::layout::{ClusterKey, Layout, MemberKey};
use super::process::Process;
use super::restarts::Restarts;
use crate::error::Error;

/// How long a node may take to hand over leadership and close its files before it is killed. A kill loses nothing
/// that was acknowledged; it only costs the cluster an election.
pub(crate) const GRACE: Duration = Duration::from_secs(15);
/// How often to look whether a volume that is gone came back; the planner replaces the member meanwhile.
const GONE_AGAIN: Duration = Duration::from_secs(1);
/// A log larger than this is moved to `log.old` when its node is started: two such files per member at most.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;

/// `process.json`: that a process shall run, and which one does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    /// `Desired::workload_hash` at its start.
    workload_hash: String,
    /// The last process started; none if none was yet.
    pid: Option<u32>,
    /// Its start, see `Process::identity`.
    identity: Option<String>,
    /// The volume it was started on.
    volume: Option<FolderId>,
}

/// What happened to a process, for a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Happening {
    /// To which member.
    pub(crate) ordinal: Ordinal,
    /// What.
    pub(crate) what: String,
    /// Whether it is a misfortune rather than progress.
    pub(crate) bad: bool,
}

/// How to run a node: the same program for all, its own arguments for each.
pub(crate) trait Commands {
    /// The program.
    fn program(&self) -> &Path;
    /// A member's arguments.
    fn args(&self, ordinal: Ordinal) -> Result<Vec<String>, Error>;
    /// What of them only a restart can change.
    fn workload_hash(&self) -> String;
}

#[derive(Debug)]
enum State {
    Running {
        process: Process,
        since: Instant,
    },
    /// It ended by itself and is started again at `again`.
    Waiting {
        again: Instant,
        message: String,
    },
    Stopping {
        process: Process,
        since: Instant,
        killed: bool,
    },
}

#[derive(Debug)]
struct Member {
    state: State,
    workload_hash: String,
    /// The folder its last process was started on; none before the first.
    volume: Option<FolderId>,
    restarts: Restarts,
}

/// The processes of one cluster.
#[derive(Debug)]
pub(crate) struct Runner {
    layout: Layout,
    cluster: ClusterKey,
    members: BTreeMap<Ordinal, Member>,
}

impl Runner {
    /// Takes up what the folder records: living processes are adopted, ended ones are started again by the next `tick`.
    pub(crate) fn open(layout: &Layout, cluster: &ClusterKey, now: Instant) -> Result<(Runner, Vec<Happening>), Error> {
        let mut runner = Runner {
            layout: layout.clone(),
            cluster: cluster.clone(),
            members: BTreeMap::new(),
        };
        let mut happenings = Vec::new();
        for ordinal in ordinals(&layout.members(cluster))? {
            let path = layout.process(&runner.key(ordinal));
            let lost = "the knowledge of a process that may still run; end it by hand";
            let Some(record) = files::read_json::<Record>(&path, lost)? else {
                continue;
            };
            let adopted = record
                .pid
                .zip(record.identity.as_deref())
                .and_then(|(pid, id)| Process::adopt(pid, id));
            let state = match adopted {
                Some(process) => {
                    happenings.push(Happening {
                        ordinal,
                        what: format!(
                            "still runs (pid {}), taken over from an earlier supervisor",
                            process.pid()
                        ),
                        bad: false,
                    });
                    State::Running { process, since: now }
                }
                None => State::Waiting {
                    again: now,
                    message: "was stopped with the supervisor".to_owned(),
                },
            };
            let Record {
                workload_hash, volume, ..
            } = record;
            let member = Member {
                state,
                workload_hash,
                volume,
                restarts: Restarts::default(),
            };
            runner.members.insert(ordinal, member);
        }
        Ok((runner, happenings))
    }

    fn key(&self, ordinal: Ordinal) -> MemberKey {
        MemberKey {
            cluster: self.cluster.clone(),
            ordinal,
        }
    }

    /// From now on this member's process shall run; the next `tick` starts it. Repeating it is harmless.
    pub(crate) fn start(&mut self, ordinal: Ordinal, commands: &impl Commands, now: Instant) -> Result<(), Error> {
        if self.members.contains_key(&ordinal) {
            return Ok(());
        }
        let workload_hash = commands.workload_hash();
        let record = Record {
            workload_hash: workload_hash.clone(),
            ..Record::default()
        };
        files::write_json(&self.layout.process(&self.key(ordinal)), &record)?;
        let state = State::Waiting {
            again: now,
            message: "is being started".to_owned(),
        };
        self.members.insert(
            ordinal,
            Member {
                state,
                workload_hash,
                volume: None,
                restarts: Restarts::default(),
            },
        );
        Ok(())
    }

    /// From now on this member's process shall not run. Repeating it is harmless.
    pub(crate) fn stop(&mut self, ordinal: Ordinal, now: Instant) -> Result<(), Error> {
        files::remove(&self.layout.process(&self.key(ordinal)))?;
        let Some(member) = self.members.remove(&ordinal) else {
            return Ok(());
        };
        let state = match member.state {
            State::Running { process, .. } => {
                let _ = process.terminate();
                State::Stopping {
                    process,
                    since: now,
                    killed: false,
                }
            }
            State::Waiting { .. } => return Ok(()),
            stopping @ State::Stopping { .. } => stopping,
        };
        self.members.insert(ordinal, Member { state, ..member });
        Ok(())
    }

    /// Looks at every process once: notes those that ended, starts those whose wait is over, kills those that were
    /// asked to stop too long ago.
    pub(crate) fn tick(&mut self, commands: &impl Commands, now: Instant) -> Result<Vec<Happening>, Error> {
        let mut happenings = Vec::new();
        for ordinal in self.members.keys().copied().collect::<Vec<_>>() {
            let Some(mut member) = self.members.remove(&ordinal) else {
                continue;
            };
            let mut happened = |what: String, bad: bool| happenings.push(Happening { ordinal, what, bad });
            member.state = match member.state {
                State::Running { mut process, since } => match process.ended().ok().flatten() {
                    None => State::Running { process, since },
                    Some(ended) => {
                        let wait = member.restarts.ended(now.saturating_duration_since(since));
                        let last = files::tail(&self.layout.log(&self.key(ordinal)), 1);
                        let message = if last.is_empty() || ended.by_others() {
                            ended.to_string()
                        } else {
                            format!("{ended}; it last said: {last}")
                        };
                        let times = match member.restarts.failures() {
                            1 => String::new(),
                            n => format!(" (time {n} in a row)"),
                        };
                        happened(
                            format!(
                                "ended by itself{times}: {message}; started again in {} ms",
                                wait.as_millis()
                            ),
                            true,
                        );
                        State::Waiting {
                            again: now + wait,
                            message,
                        }
                    }
                },
                // Never start a node on a volume that is gone: it would make itself an empty one that looks whole.
                State::Waiting { again, .. } if again <= now && !self.may_spawn(ordinal, &member) => State::Waiting {
                    again: now + GONE_AGAIN,
                    message: "its volume is gone".to_owned(),
                },
                State::Waiting { again, .. } if again <= now => {
                    member.workload_hash = commands.workload_hash();
                    match self.spawn(ordinal, commands) {
                        Ok((process, volume)) => {
                            member.volume = Some(volume);
                            happened(format!("started (pid {})", process.pid()), false);
                            State::Running { process, since: now }
                        }
                        Err(error) => {
                            let wait = member.restarts.ended(Duration::ZERO);
                            happened(error.to_string(), true);
                            State::Waiting {
                                again: now + wait,
                                message: error.to_string(),
                            }
                        }
                    }
                }
                waiting @ State::Waiting { .. } => waiting,
                State::Stopping {
                    mut process,
                    since,
                    killed,
                } => match process.ended() {
                    Ok(None) => {
                        let late = !killed && now.saturating_duration_since(since) >= GRACE;
                        if late {
                            let _ = process.kill();
                            happened(
                                format!("did not stop within {} s and was killed", GRACE.as_secs()),
                                true,
                            );
                        }
                        State::Stopping {
                            process,
                            since,
                            killed: killed || late,
                        }
                    }
                    Ok(Some(_)) | Err(_) => {
                        happened("stopped".to_owned(), false);
                        continue;
                    }
                },
            };
            self.members.insert(ordinal, member);
        }
        for ordinal in ordinals(&self.layout.members(&self.cluster))? {
            self.finish_deletion(ordinal)?;
        }
        Ok(happenings)
    }

    /// What the planner calls this member's workload, and the hash it was started with.
    pub(crate) fn workload(&self, ordinal: Ordinal) -> (Workload, Option<String>) {
        let Some(member) = self.members.get(&ordinal) else {
            return (Workload::Absent, None);
        };
        let workload = match &member.state {
            State::Running { .. } => Workload::Running,
            State::Waiting { message, .. } => Workload::Failed {
                reason: if member.restarts.looping() {
                    "CrashLoopBackOff"
                } else {
                    "Ended"
                }
                .to_owned(),
                message: message.clone(),
            },
            State::Stopping { .. } => Workload::Terminating,
        };
        (workload, Some(member.workload_hash.clone()))
    }

    /// Makes a member's volume. One that is being deleted has to be gone first.
    pub(crate) fn make_volume(&self, ordinal: Ordinal) -> Result<(), Error> {
        files::private_dir(&self.volume(ordinal))
    }

    /// From now on this member's volume is being deleted: at once, or when its process is gone. The intent is recorded,
    /// so that half a volume is never taken for a whole one.
    pub(crate) fn delete_volume(&mut self, ordinal: Ordinal) -> Result<(), Error> {
        files::write(&self.layout.doomed(&self.key(ordinal)), b"")?;
        self.finish_deletion(ordinal)
    }

    fn finish_deletion(&self, ordinal: Ordinal) -> Result<(), Error> {
        let key = self.key(ordinal);
        let doomed = self.layout.doomed(&key);
        if self.members.contains_key(&ordinal) || !doomed.exists() {
            return Ok(());
        }
        files::remove_dir(&self.layout.volume(&key))?;
        files::remove(&doomed)
    }

    /// The member's volume.
    pub(crate) fn volume_state(&self, ordinal: Ordinal) -> Volume {
        let path = self.volume(ordinal);
        if self.layout.doomed(&self.key(ordinal)).exists() {
            return Volume::Terminating;
        }
        match self.members.get(&ordinal).map(|member| member.volume_lost(&path)) {
            Some(Some(reason)) => Volume::Lost {
                reason: format!("{reason}: {}", path.display()),
            },
            Some(None) => Volume::Present,
            None if path.is_dir() => Volume::Present,
            None => Volume::Absent,
        }
    }

    /// Ordinals that have a process or shall have one.
    pub(crate) fn ordinals(&self) -> impl Iterator<Item = Ordinal> + '_ {
        self.members.keys().copied()
    }

    /// Asks every process to stop, but leaves recorded that it shall run: the supervisor ends, the cluster goes on later.
    pub(crate) fn pause_all(&mut self, now: Instant) {
        let members = std::mem::take(&mut self.members);
        self.members = members
            .into_iter()
            .filter_map(|(ordinal, member)| {
                let state = match member.state {
                    State::Running { process, .. } => {
                        let _ = process.terminate();
                        State::Stopping {
                            process,
                            since: now,
                            killed: false,
                        }
                    }
                    State::Waiting { .. } => return None,
                    stopping @ State::Stopping { .. } => stopping,
                };
                Some((ordinal, Member { state, ..member }))
            })
            .collect();
    }

    /// Kills what still runs, without waiting any longer.
    pub(crate) fn kill_all(&mut self) {
        for member in self.members.values_mut() {
            if let State::Running { process, .. } | State::Stopping { process, .. } = &member.state {
                let _ = process.kill();
            }
        }
    }

    /// Whether no process is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn may_spawn(&self, ordinal: Ordinal, member: &Member) -> bool {
        member.volume_lost(&self.volume(ordinal)).is_none() && !self.layout.doomed(&self.key(ordinal)).exists()
    }

    fn volume(&self, ordinal: Ordinal) -> PathBuf {
        self.layout.volume(&self.key(ordinal))
    }

    fn spawn(&self, ordinal: Ordinal, commands: &impl Commands) -> Result<(Process, FolderId), Error> {
        let key = self.key(ordinal);
        let path = self.layout.process(&key);
        let volume = self.layout.volume(&key);
        let id = FolderId::of(&volume).ok_or_else(|| Error::file("find", &volume)(io::ErrorKind::NotFound.into()))?;
        let mut record = Record {
            workload_hash: commands.workload_hash(),
            volume: Some(id),
            ..Record::default()
        };
        // First the intent, then the process, then which one it is: dying in between leaves at worst a process that
        // holds its ports and makes the next one fail loudly.
        files::write_json(&path, &record)?;
        let args = commands.args(ordinal)?;
        let log = open_log(&self.layout.log(&key))?;
        let process = Process::start(commands.program(), &args, log).map_err(Error::file("run", commands.program()))?;
        record.pid = Some(process.pid());
        record.identity = Some(process.identity().to_owned());
        files::write_json(&path, &record)?;
        Ok((process, id))
    }
}

/// Which folder a path leads to: deleting a folder and making it again gives another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct FolderId {
    device: u64,
    inode: u64,
}

impl FolderId {
    fn of(path: &Path) -> Option<FolderId> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
        Some(FolderId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Member {
    /// Why the volume that this member's process was started on is no longer there, if so.
    fn volume_lost(&self, volume: &Path) -> Option<&'static str> {
        match (self.volume, FolderId::of(volume)) {
            (_, None) => Some("its folder was deleted"),
            (Some(then), Some(now)) if then != now => Some("its folder was replaced"),
            (Some(_) | None, Some(_)) => None,
        }
    }
}

/// The ordinals that have a folder.
pub(crate) fn ordinals(members: &Path) -> Result<Vec<Ordinal>, Error> {
    let entries = match fs::read_dir(members) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::File {
                what: "read",
                path: members.to_owned(),
                source,
            });
        }
    };
    let mut ordinals: Vec<Ordinal> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Ordinal))
        .collect();
    ordinals.sort_unstable();
    Ok(ordinals)
}

fn open_log(path: &Path) -> Result<fs::File, Error> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
        let old: PathBuf = path.with_extension("old");
        fs::rename(path, &old).map_err(Error::file("rename", path))?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::file("open", path))
}

#[cfg(test)]
mod tests;
