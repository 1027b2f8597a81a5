//! A bed: real Kubernetes on one machine, for tests and for a person to play with.
//!
//! A control machine and three nodes ([`crate::machine`]), joined by one bridge, without a route out. All state lies in
//! one folder below [`crate::paths::state`]; `bed.json` in it says which processes are ours.
//!
//! Not here: what is installed on the bed (the tests' business) and building the parts ([`crate::parts`]).

mod addons;
mod control;
pub mod faults;
pub mod layout;
mod network;
mod node;
mod pki;
pub mod tools;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::command::run;
use crate::error::{Error, Result};
use crate::host;
use crate::machine::{HIDDEN, Machine};
use crate::parts::Parts;
use crate::paths;
use crate::process::ProcessId;
use crate::progress::Step;
use layout::Node;
use pki::Pki;

const RECORD: &str = "bed.json";

/// A bed's name: part of folder and cgroup names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BedName(String);

impl FromStr for BedName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const LIMIT: usize = 32;
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !text.is_empty() && text.len() <= LIMIT && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::refused(
            format!("`{text}` cannot name a bed"),
            format!("use 1 to {LIMIT} lower-case letters, digits and hyphens"),
        ))
    }
}

impl TryFrom<String> for BedName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BedName> for String {
    fn from(name: BedName) -> Self {
        name.0
    }
}

impl fmt::Display for BedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `bed.json` holds: enough to use the bed and to end it, also for a program that did not start it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: BedName,
    /// Processes are recorded by pid and start time, which mean nothing after the host was booted again.
    boot: String,
    /// Who must be alive for the bed to be of use; none for a bed that a person plays with, once it is up.
    owner: Option<ProcessId>,
    /// `PATH` for the bed's tools.
    path: String,
    control: Option<Machine>,
    nodes: BTreeMap<Node, Machine>,
}

/// A bed that is up, or was.
#[derive(Debug, Clone)]
pub struct Bed {
    record: Record,
    folder: Folder,
}

/// The folder of one bed.
#[derive(Debug, Clone)]
struct Folder(PathBuf);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn log(&self, process: &str) -> PathBuf {
        self.0.join("log").join(format!("{process}.log"))
    }
}

/// What starting a process on a machine needs to know.
struct Site<'a> {
    parts: &'a Parts,
    folder: &'a Folder,
    pki: &'a Pki,
    path: &'a str,
    bed: &'a str,
}

/// Whether the bed should outlive the program that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Stays until [`Bed::down`].
    Kept,
    /// Of no use without this process; the next [`Bed::up`] clears it away if this one could not.
    Ours,
}

impl Bed {
    /// Boots Kubernetes and returns when its nodes are ready and DNS answers. Clears away what crashed runs have left.
    ///
    /// # Errors
    /// If a bed of this name exists, the host is not fit for it, or something does not start; what was started by then
    /// is ended again.
    pub fn up(name: &BedName, lifetime: Lifetime, parts: &Parts) -> Result<Self> {
        host::require_root()?;
        reap()?;
        let folder = Folder(beds()?.join(&name.0));
        if let Some(hidden) = HIDDEN.iter().find(|hidden| folder.0.starts_with(hidden)) {
            return Err(Error::refused(
                format!(
                    "a bed's state cannot lie in {}, because its machines have a {hidden} of their own",
                    folder.0.display()
                ),
                "set ALTHING_STATE to a folder elsewhere",
            ));
        }
        if folder.path(RECORD).exists() {
            return Err(Error::refused(
                format!("a bed `{name}` is there already"),
                format!("end it with `cargo xtask cluster down --name {name}`, or choose another name"),
            ));
        }
        let logs = folder.path("log");
        fs::create_dir_all(&logs).map_err(Error::io("create", &logs))?;
        let mut bed = Self {
            record: Record {
                name: name.clone(),
                boot: boot_id()?,
                owner: ProcessId::of(std::process::id()),
                path: parts.search_path("/usr/sbin:/usr/bin:/sbin:/bin"),
                control: None,
                nodes: BTreeMap::new(),
            },
            folder,
        };
        match bed.boot(parts) {
            Ok(()) => {
                if lifetime == Lifetime::Kept {
                    bed.record.owner = None;
                }
                bed.save()?;
                Ok(bed)
            }
            Err(error) => {
                // The first error is the one to report; if clearing fails too, the next `up` repeats it.
                let kept = bed.keep_logs();
                drop(bed.down());
                if let Ok(kept) = kept {
                    eprintln!("  logs: {}", kept.display());
                }
                Err(error)
            }
        }
    }

    fn boot(&mut self, parts: &Parts) -> Result<()> {
        let step = Step::begin("machines and network");
        let name = self.record.name.0.clone();
        let mut control = Machine::boot(&name, "control", &self.folder.path("control"))?;
        self.record.control = Some(control.clone());
        self.save()?;
        for node in Node::ALL {
            let machine = Machine::boot(&name, &node.to_string(), &self.folder.path(&node.to_string()))?;
            self.record.nodes.insert(node, machine);
            self.save()?;
        }
        let machines: Vec<(Node, &Machine)> = self
            .record
            .nodes
            .iter()
            .map(|(node, machine)| (*node, machine))
            .collect();
        network::connect(&control, &machines)?;
        step.done();

        let step = Step::begin("control plane");
        let pki = Pki::create(&self.folder.path("pki"))?;
        let path = self.record.path.clone();
        let site = Site {
            parts,
            folder: &self.folder,
            pki: &pki,
            path: &path,
            bed: &name,
        };
        control::start(&mut control, &site)?;
        self.record.control = Some(control);
        self.save()?;
        step.done();

        let step = Step::begin("nodes");
        let images = addons::images(parts, &self.folder)?;
        let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
        let site = Site {
            parts,
            folder: &self.folder,
            pki: &pki,
            path: &path,
            bed: &name,
        };
        std::thread::scope(|scope| {
            let starting: Vec<_> = self
                .record
                .nodes
                .iter_mut()
                .map(|(node, machine)| scope.spawn(|| node::start(*node, machine, &site, &images)))
                .collect();
            starting
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<()>>>()
        })?;
        self.save()?;
        step.done();
        addons::install(self, parts)
    }

    /// The bed of that name, if there is one.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn find(name: &BedName) -> Result<Option<Self>> {
        let folder = beds()?.join(&name.0);
        if folder.join(RECORD).exists() {
            Self::load(&folder).map(Some)
        } else {
            Ok(None)
        }
    }

    /// All beds, also those that a crash has left.
    ///
    /// # Errors
    /// If a record cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let folder = beds()?;
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(Vec::new());
        };
        let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        folders.sort();
        folders
            .iter()
            .filter(|folder| folder.join(RECORD).exists())
            .map(|folder| Self::load(folder))
            .collect()
    }

    /// The bed whose folder this is.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(RECORD);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let record = serde_json::from_str(&text).map_err(|source| Error::Json {
            what: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            record,
            folder: Folder(folder.to_owned()),
        })
    }

    /// Ends all processes of the bed and removes its state. What runs on the bed is lost.
    ///
    /// # Errors
    /// If something does not go away; safe to repeat.
    pub fn down(self) -> Result<()> {
        if self.record.boot == boot_id()? {
            for machine in self.record.nodes.values().chain(self.record.control.as_ref()) {
                machine.halt()?;
            }
            Cgroup::remove(&self.record.name.0)?;
        }
        fs::remove_dir_all(&self.folder.0).map_err(Error::io("remove", &self.folder.0))
    }

    /// Copies the logs of processes and pods to a folder that outlives the bed, and returns it.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let kept = paths::state()?
            .join("failed")
            .join(format!("{}-{}", self.record.name, std::process::id()));
        fs::create_dir_all(&kept).map_err(Error::io("create", &kept))?;
        let mut copy = std::process::Command::new("cp");
        copy.args(["--recursive", "--no-dereference"])
            .arg(self.folder.path("log"))
            .arg(kept.join("processes"));
        run(&mut copy)?;
        for (node, machine) in &self.record.nodes {
            let pods = machine.folder.join("log/pods");
            if pods.exists() {
                run(std::process::Command::new("cp")
                    .arg("--recursive")
                    .arg(pods)
                    .arg(kept.join(format!("pods-{node}"))))?;
            }
        }
        Ok(kept)
    }

    /// The bed's name.
    pub fn name(&self) -> &BedName {
        &self.record.name
    }

    /// The bed's folder.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path("pki/admin.conf")
    }

    /// `PATH` with the bed's tools.
    pub fn search_path(&self) -> &str {
        &self.record.path
    }

    /// The machine of a node.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn node(&self, node: Node) -> Result<&Machine> {
        self.record
            .nodes
            .get(&node)
            .ok_or_else(|| self.unfinished(&node.to_string()))
    }

    /// The control plane's machine.
    ///
    /// # Errors
    /// If the bed did not get that far.
    pub fn control(&self) -> Result<&Machine> {
        self.record.control.as_ref().ok_or_else(|| self.unfinished("control"))
    }

    /// Every recorded process as (machine, process, runs).
    pub fn processes(&self) -> Vec<(String, String, bool)> {
        let machines = self.record.control.iter().chain(self.record.nodes.values());
        machines
            .flat_map(|machine| {
                machine
                    .processes()
                    .map(|(name, alive)| (machine.name.clone(), name.to_owned(), alive))
            })
            .collect()
    }

    /// Whether nobody can use it any more: its owner died, or the host was booted again.
    ///
    /// # Errors
    /// If the host does not say when it was booted.
    pub fn is_stale(&self) -> Result<bool> {
        Ok(self.record.boot != boot_id()? || self.record.owner.is_some_and(|owner| !owner.is_alive()))
    }

    fn unfinished(&self, machine: &str) -> Error {
        let name = &self.record.name;
        Error::refused(
            format!("bed `{name}` has no machine {machine}"),
            format!("end it with `cargo xtask cluster down --name {name}` and start again"),
        )
    }

    /// Written beside and renamed, so that a crash never leaves half a record.
    fn save(&self) -> Result<()> {
        let (path, partial) = (self.folder.path(RECORD), self.folder.path(".bed.json"));
        let text = serde_json::to_string_pretty(&self.record).map_err(|source| Error::Json {
            what: path.display().to_string(),
            source,
        })?;
        fs::write(&partial, text).map_err(Error::io("write", &partial))?;
        fs::rename(&partial, &path).map_err(Error::io("replace", &path))
    }
}

/// Clears away the beds that nobody can use any more.
///
/// # Errors
/// If one does not go.
pub fn reap() -> Result<()> {
    for bed in Bed::all()? {
        if bed.is_stale()? {
            let step = Step::begin(format!("clearing away bed `{}`, whose owner is gone", bed.name()));
            bed.down()?;
            step.done();
        }
    }
    Ok(())
}

fn beds() -> Result<PathBuf> {
    Ok(paths::state()?.join("beds"))
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path)
        .map_err(Error::io("read", path))?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bed_name_that_could_leave_its_folder_is_refused() {
        for name in ["", "..", "a/b", "A", "a b", &"x".repeat(33)] {
            assert!(name.parse::<BedName>().is_err(), "{name}");
        }
        assert_eq!("e2e-7".parse::<BedName>().unwrap().to_string(), "e2e-7");
    }
}
