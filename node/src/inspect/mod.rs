//! `althing-node inspect`: what a volume holds and what a start would do with it, for a person in a hurry.
//!
//! Contract: the volume is only read. Files are opened for reading, no lock is kept, and the state store, which cannot be opened
//! without writing, is opened as a copy somewhere else. What is damaged is described, with its place; whatever
//! can still be read is shown beside it.

mod render;

pub use render::render;

use crate::identity::Identity;
use crate::recover::{RecoverError, judge};
use althing_raft::entry::SnapshotMeta;
use althing_raft::ids::GroupId;
use althing_store::{Mvcc, Opened, SledOptions, SledStore};
use althing_wal::inspect::Inspection;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Page cache for the look into the state's copy.
const CACHE_BYTES: u64 = 64 << 20;

/// All that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The volume.
    pub data_dir: PathBuf,
    /// Whether a process has the volume; what it writes meanwhile may look torn here.
    pub in_use: bool,
    /// Whose volume it is.
    pub identity: Found<IdentityReport>,
    /// The log.
    pub wal: Found<WalReport>,
    /// The groups that the log knows.
    pub groups: Vec<GroupReport>,
    /// The state store.
    pub state: StateReport,
    /// What a start would do.
    pub verdict: Verdict,
}

/// A part that was read, or why not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Found<T> {
    /// It.
    Read(T),
    /// There is none.
    Missing,
    /// What stands against reading it.
    Problem(String),
}

/// Whose volume it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityReport {
    /// Member's name.
    pub name: String,
    /// Member's id.
    pub member_id: String,
    /// Cluster's id, if it is in one.
    pub cluster_id: Option<String>,
}

/// The log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WalReport {
    /// Bytes of all its files.
    pub bytes: u64,
    /// Segments in use, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Files kept for reuse.
    pub spares: usize,
    /// A torn end that a start would cut off: file, byte. Nothing in it was acknowledged.
    pub torn_tail: Option<(PathBuf, u64)>,
    /// Why a start would refuse it.
    pub problem: Option<String>,
}

/// A segment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentReport {
    /// Name of the file.
    pub file: String,
    /// Salt of its records' checksums.
    pub salt: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes up to the last record that can be read.
    pub used: u64,
    /// First and last sequence number.
    pub sequence: Option<(u64, u64)>,
    /// Entries: group, records, first index, last index.
    pub entries: Vec<(u64, u64, u64, u64)>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// A group, as the log has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupReport {
    /// Its id.
    pub group: u64,
    /// Term.
    pub term: u64,
    /// For whom it voted in that term.
    pub vote: Option<String>,
    /// Commit index.
    pub commit: u64,
    /// The log begins after this index.
    pub log_start: u64,
    /// Its last index.
    pub log_last: u64,
    /// What its state machine has.
    pub state: Found<ApplicationReport>,
}

/// A group's state machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationReport {
    /// Applied index.
    pub applied: u64,
    /// Its term.
    pub applied_term: u64,
    /// Revision.
    pub revision: i64,
    /// History before this is gone.
    pub compacted: Option<i64>,
    /// Keys that are there.
    pub keys: u64,
    /// Rows, old ones too.
    pub rows: u64,
    /// Bytes of the rows.
    pub bytes: u64,
    /// Members with their addresses, voters first.
    pub members: Vec<MemberReport>,
}

/// A member, as the state has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberReport {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// Whether it votes.
    pub voter: bool,
}

/// The state store's files.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateReport {
    /// What the marker file says; without one a start makes the store anew.
    pub marker: Found<String>,
    /// Bytes of the store's files.
    pub bytes: u64,
    /// Damaged stores that earlier starts moved away.
    pub quarantined: Vec<String>,
    /// Why it was not looked into, or what is wrong with it.
    pub problem: Option<String>,
    /// Whether `problem` is damage, and not only a reason not to look.
    pub damaged: bool,
}

/// What a start would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// In one word.
    pub action: Action,
    /// In a sentence.
    pub text: String,
    /// The next step for a person.
    pub next: String,
}

/// What a start would do, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Go on from the state and the log.
    Start,
    /// The same, after the state was made anew from the log.
    Rebuild,
    /// Wait for a cluster.
    Wait,
    /// End with an error.
    Refuse,
    /// A process has the volume already.
    InUse,
    /// It cannot be told.
    Unknown,
}

/// Looks at a volume. `scratch` is where the state's copy goes; it is gone afterwards.
///
/// # Errors
/// If the directory cannot be listed at all.
pub fn inspect(data_dir: &Path, scratch: &Path) -> io::Result<Report> {
    fs::read_dir(data_dir)?;
    let in_use = is_locked(&data_dir.join("LOCK"));
    let identity = match Identity::peek(data_dir) {
        Ok(None) => Found::Missing,
        Ok(Some((name, member, cluster))) => Found::Read(IdentityReport {
            name,
            member_id: member.to_string(),
            cluster_id: cluster.map(|cluster| format!("{cluster:016x}")),
        }),
        Err(error) => Found::Problem(error.to_string()),
    };
    let (wal, log) = match althing_wal::inspect::inspect(&data_dir.join("wal")) {
        Ok(found) if found.segments.is_empty() && found.spares.is_empty() => (Found::Missing, found),
        Ok(found) => (Found::Read(wal_report(&found)), found),
        Err(error) => (Found::Problem(error.to_string()), Inspection::default()),
    };
    let state_dir = data_dir.join("state");
    let mut state = state_report(&state_dir);
    let mut applications: BTreeMap<GroupId, (SnapshotMeta, ApplicationReport)> = BTreeMap::new();
    // The first groups have a state also when the log is gone.
    let mut known: Vec<_> = log.recovered.groups.keys().copied().collect();
    if known.is_empty() {
        known.extend([GroupId::META, GroupId::FIRST_SHARD]);
    }
    if in_use {
        state.problem = Some(
            "not looked into: the process that has it writes to it; ask its admin API (/v1/status) instead".to_owned(),
        );
    } else if matches!(state.marker, Found::Read(_)) {
        match copy_and_open(&state_dir, scratch, state.bytes, &known) {
            Ok(found) => applications = found,
            Err(Closed::Damaged(what)) => (state.problem, state.damaged) = (Some(what), true),
            Err(Closed::NotNow(what)) => state.problem = Some(what),
        }
    }
    let facts = Facts {
        in_use,
        state: &state,
        applications: &applications,
        identity: &identity,
        wal: &wal,
        log: &log,
    };
    let verdict = facts.verdict();
    let groups = log
        .recovered
        .groups
        .iter()
        .map(|(id, group)| GroupReport {
            group: id.0,
            term: group.hard_state.term.0,
            vote: group.hard_state.vote.map(|member| member.to_string()),
            commit: group.hard_state.commit.0,
            log_start: group.log_start.index.0,
            log_last: group.last().index.0,
            state: match applications.remove(id) {
                Some((_, report)) => Found::Read(report),
                None => match &state.problem {
                    Some(problem) => Found::Problem(problem.clone()),
                    None => Found::Missing,
                },
            },
        })
        .collect();
    Ok(Report {
        data_dir: data_dir.to_owned(),
        in_use,
        identity,
        wal,
        groups,
        state,
        verdict,
    })
}

/// Whether somebody holds the lock. It is not kept: a node that starts now must not find it taken.
fn is_locked(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

fn wal_report(found: &Inspection) -> WalReport {
    let segments = found.segments.iter().map(|segment| SegmentReport {
        file: segment.name.clone(),
        salt: segment.number,
        bytes: segment.bytes,
        used: segment.used,
        sequence: segment.first_seq.zip(segment.last_seq),
        entries: segment
            .groups
            .iter()
            .map(|(group, range)| (group.0, range.records, range.first.0, range.last.0))
            .collect(),
        problem: segment.problem.clone(),
    });
    WalReport {
        bytes: found.segments.iter().map(|segment| segment.bytes).sum::<u64>()
            + found.spares.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        segments: segments.collect(),
        spares: found.spares.len(),
        torn_tail: found
            .recovered
            .truncated_tail
            .as_ref()
            .map(|tail| (tail.file.clone(), tail.offset)),
        problem: found.problem.clone(),
    }
}

fn state_report(dir: &Path) -> StateReport {
    let marker = match fs::read_to_string(dir.join("FORMAT")) {
        Ok(text) => Found::Read(text.trim().chars().take(80).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Missing,
        Err(error) => Found::Problem(error.to_string()),
    };
    let mut quarantined: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|item| item.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("quarantine-"))
        .collect();
    quarantined.sort();
    StateReport {
        marker,
        bytes: live_dir(dir).map_or(0, |dir| tree_bytes(&dir)),
        quarantined,
        problem: None,
        damaged: false,
    }
}

/// The directory that the marker points to.
fn live_dir(dir: &Path) -> Option<PathBuf> {
    SledStore::current_dir(dir).ok().flatten()
}

fn tree_bytes(dir: &Path) -> u64 {
    let items = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = items.map(|item| match item.metadata() {
        Ok(data) if data.is_dir() => tree_bytes(&item.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Why the state was not looked into.
enum Closed {
    Damaged(String),
    NotNow(String),
}

type Applications = BTreeMap<GroupId, (SnapshotMeta, ApplicationReport)>;

fn copy_and_open(dir: &Path, scratch: &Path, bytes: u64, groups: &[GroupId]) -> Result<Applications, Closed> {
    let not_now = |what: String| Closed::NotNow(format!("not looked into: {what}"));
    let live = match SledStore::current_dir(dir) {
        Ok(Some(live)) => live,
        Ok(None) => return Err(not_now("its marker is gone".to_owned())),
        Err(error) => return Err(not_now(error.to_string())),
    };
    let room = rustix::fs::statvfs(scratch).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    if room < bytes {
        return Err(not_now(format!(
            "a copy takes {bytes} bytes and {} has {room}; give another place with --scratch",
            scratch.display()
        )));
    }
    let copy = scratch.join(format!("althing-inspect-{}", std::process::id()));
    let copied = copy_tree(&live, &copy.join(live.file_name().unwrap_or_default()))
        .and_then(|()| fs::copy(dir.join("FORMAT"), copy.join("FORMAT")).map(drop));
    let found = match copied {
        Ok(()) => open_copy(&copy, groups),
        Err(error) => Err(not_now(format!("it cannot be copied to {}: {error}", copy.display()))),
    };
    // What is left there is a copy in a place for temporary files.
    let _ = fs::remove_dir_all(&copy);
    found
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        let target = to.join(item.file_name());
        if item.metadata()?.is_dir() {
            copy_tree(&item.path(), &target)?;
        } else {
            fs::copy(item.path(), target)?;
        }
    }
    Ok(())
}

fn open_copy(copy: &Path, groups: &[GroupId]) -> Result<Applications, Closed> {
    let options = SledOptions {
        cache_bytes: CACHE_BYTES,
    };
    let damaged = |error: althing_store::StoreError| Closed::Damaged(error.to_string());
    let (engine, opened) = SledStore::open(copy, options).map_err(damaged)?;
    if let Opened::Quarantined { reason, .. } = opened {
        return Err(Closed::Damaged(reason));
    }
    let mut found = BTreeMap::new();
    for group in groups {
        let mvcc = Mvcc::open(engine.clone(), *group).map_err(damaged)?;
        let applied = mvcc.applied();
        let size = mvcc.size().map_err(damaged)?;
        let config = &applied.config;
        let members = mvcc.members();
        let mut members: Vec<_> = members
            .iter()
            .map(|(id, context)| {
                let info = crate::members::MemberInfo::decode(context);
                MemberReport {
                    id: id.to_string(),
                    name: info.name,
                    peer_address: info.peer_address,
                    voter: config.voters.contains(id),
                }
            })
            .collect();
        members.sort_by_key(|member| !member.voter);
        let report = ApplicationReport {
            applied: applied.position.index.0,
            applied_term: applied.position.term.0,
            revision: mvcc.current_revision().0,
            compacted: mvcc.compacted_revision().map(|revision| revision.0),
            keys: size.keys,
            rows: size.revisions,
            bytes: size.in_use,
            members,
        };
        found.insert(*group, (applied, report));
    }
    Ok(found)
}

/// What the verdict is made of.
struct Facts<'a> {
    in_use: bool,
    identity: &'a Found<IdentityReport>,
    wal: &'a Found<WalReport>,
    log: &'a Inspection,
    state: &'a StateReport,
    applications: &'a Applications,
}

const REPLACE: &str = "remove this member from its cluster (DELETE /v1/members/ID on the leader's admin API, or let the operator do it), \
                       then start it with an empty volume; it gets everything from the leader";

impl Facts<'_> {
    fn verdict(&self) -> Verdict {
        let verdict = |action, text: String, next: &str| Verdict {
            action,
            text,
            next: next.to_owned(),
        };
        if self.in_use {
            return verdict(
                Action::InUse,
                "a process has this volume, so a second one would refuse to start".to_owned(),
                "look at that process: its log, and GET /v1/status on its admin address",
            );
        }
        let cluster = match self.identity {
            Found::Problem(problem) => {
                return verdict(Action::Refuse, problem.clone(), REPLACE);
            }
            Found::Read(identity) => identity.cluster_id.is_some(),
            Found::Missing => false,
        };
        if let Found::Problem(problem) = self.wal {
            return verdict(
                Action::Refuse,
                format!("the log cannot be read: {problem}"),
                "see whether the volume is mounted and readable; the log itself may be sound",
            );
        }
        if let Some(problem) = &self.log.problem {
            return verdict(Action::Refuse, format!("the log is damaged: {problem}"), REPLACE);
        }
        let unmarked = matches!(self.state.marker, Found::Missing);
        let lost = self.state.damaged || unmarked;
        if let (false, Some(problem)) = (lost, &self.state.problem) {
            return verdict(
                Action::Unknown,
                format!("the identity and the log are sound; the state is {problem}"),
                "give --scratch a place with room, or just start the node: it judges the same way",
            );
        }
        let mut replayed = 0;
        let mut fresh = true;
        for (id, group) in &self.log.recovered.groups {
            let applied = self
                .applications
                .get(id)
                .map(|(meta, _)| meta.clone())
                .unwrap_or_default();
            let at = applied.position.index.0;
            replayed += group.last().index.0.saturating_sub(at);
            match judge(*id, Some(group.clone()), applied) {
                Ok(found) => fresh &= found.is_none(),
                Err(error @ (RecoverError::LogLost { .. } | RecoverError::StateLost { .. })) => {
                    return verdict(Action::Refuse, error.to_string(), REPLACE);
                }
            }
        }
        if self.log.recovered.groups.is_empty()
            && let Some((id, (applied, _))) = self
                .applications
                .iter()
                .find(|(_, (meta, _))| meta.position.index.0 > 0)
            && let Err(error) = judge(*id, None, applied.clone())
        {
            return verdict(Action::Refuse, error.to_string(), REPLACE);
        }
        if self.state.damaged {
            let reason = self.state.problem.clone().unwrap_or_default();
            return verdict(
                Action::Rebuild,
                format!(
                    "the state is damaged ({reason}); a start moves it to quarantine and rebuilds it from {replayed} log entries"
                ),
                "start the node; if damage comes back, suspect the disk",
            );
        }
        if fresh && !cluster {
            return verdict(
                Action::Wait,
                "the volume holds no data; a start waits for a bootstrap or for a leader that adds it".to_owned(),
                "start the node and let the operator (or POST /v1/bootstrap) bring it into a cluster",
            );
        }
        if !fresh && !cluster {
            return verdict(
                Action::Wait,
                "the volume has a log and no cluster: its bootstrap was interrupted".to_owned(),
                "start the node and repeat the bootstrap with the cluster's id",
            );
        }
        let torn = if self.log.recovered.truncated_tail.is_some() {
            ", after cutting off a torn end that nobody was promised anything about"
        } else {
            ""
        };
        if unmarked && !fresh {
            return verdict(
                Action::Rebuild,
                format!(
                    "there is no finished state store; a start makes one and fills it from {replayed} log entries{torn}"
                ),
                "start the node",
            );
        }
        verdict(
            Action::Start,
            format!("a start replays {replayed} log entries{torn}, then asks the others what is committed"),
            "start the node",
        )
    }
}
