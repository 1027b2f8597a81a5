//! A machine of the bed: network, mounts, hostname and processes of its own, on the host's kernel and files.
//!
//! Everything on a machine is a descendant of its first process, in a pid namespace. So ending that one process ends
//! containerd, every shim and every pod on it, and the kernel takes the mounts, interfaces and routes away with it:
//! what a crash leaves behind is one recorded process per machine, some folders and empty cgroups.
//!
//! It is not a sandbox: the processes are root on the host's files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::command::{tail, wait_until};
use crate::error::{Error, Result};
use crate::process::ProcessId;

/// How long the kernel and two small programs may take to make a machine.
const BOOT_LIMIT: Duration = Duration::from_secs(20);

/// Makes fresh `/run`, `/var/lib` and `/var/log`, so that programs can use their usual places without meeting the
/// host's or another machine's; shares mounts among the machine's processes, as kubelet's volumes need; stays for ever
/// and, being process 1, reaps orphans (`wait` does).
const INIT: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$2/lib" /var/lib
mount --bind "$2/log" /var/log
mount --make-rshared /
echo "$1" > /proc/sys/kernel/hostname
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
touch "$2/ready"
sleep infinity &
wait
"#;

/// Joins the cgroups that are named before `--`, then becomes the rest.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@""#;

/// Folders that a machine hides behind its own; a run's state must not lie below them.
pub(crate) const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// A running machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its hostname, and for a Kubernetes node its name.
    pub name: String,
    /// Its folder on the host: `lib` is its `/var/lib`, `log` its `/var/log`.
    pub folder: PathBuf,
    /// Its first process.
    pub init: ProcessId,
    bed: String,
    processes: BTreeMap<String, ProcessId>,
}

impl Machine {
    /// Boots machine `name` of bed `bed` with its state in `folder`.
    ///
    /// # Errors
    /// If namespaces, mounts or cgroups cannot be made.
    pub fn boot(bed: &str, name: &str, folder: &Path) -> Result<Self> {
        for sub in ["lib", "log"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let cgroup = Cgroup::create(bed, name)?;
        let log = folder.join("init.log");
        let mut command = joining(&cgroup, "unshare");
        command
            .args([
                "--net",
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
            ])
            .args(["--", "sh", "-euc", INIT, "sh", name])
            .arg(folder);
        let mut child = spawn(&mut command, &log)?;
        let ready = folder.join("ready");
        let init = wait_until(&format!("machine {name} is up"), BOOT_LIMIT, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(died(name, &log, &status.to_string())));
            }
            let init = ProcessId::of(child.id()).and_then(|parent| parent.children().first().copied());
            init.filter(|_| ready.exists()).map(Ok).ok_or_else(|| tail_of(&log))
        })??;
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            init,
            bed: bed.to_owned(),
            processes: BTreeMap::new(),
        })
    }

    /// A command that runs on this machine; its `PATH` is the caller's to set.
    pub fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.pid.to_string());
        command
            .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--"])
            .arg(program);
        command
    }

    /// A command in this machine's network and otherwise on the host.
    pub fn enter_network(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.pid.to_string())
            .args(["--net", "--"])
            .arg(program);
        command
    }

    /// Starts a process that stays, with its output in `<log>`; remembered under `name`.
    ///
    /// # Errors
    /// If it cannot be started or ends at once.
    pub fn start(&mut self, name: &str, log: &Path, path: &str, program: &Path, args: &[String]) -> Result<ProcessId> {
        let cgroup = Cgroup::create(&self.bed, &self.name)?;
        let entered = self.enter(program);
        let mut command = joining(&cgroup, entered.get_program());
        command
            .args(entered.get_args())
            .args(args)
            .env("PATH", path)
            .current_dir(&self.folder);
        let mut child = spawn(&mut command, log)?;
        let process = wait_until(&format!("{name} on {} starts", self.name), BOOT_LIMIT, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(died(name, log, &status.to_string())));
            }
            // nsenter forks to get into the pid namespace; its child is the program.
            let process = ProcessId::of(child.id()).and_then(|parent| parent.children().first().copied());
            process.map(Ok).ok_or_else(|| tail_of(log))
        })??;
        self.processes.insert(name.to_owned(), process);
        Ok(process)
    }

    /// A process that was started here.
    ///
    /// # Errors
    /// If none was started under that name.
    pub fn process(&self, name: &str) -> Result<ProcessId> {
        self.processes.get(name).copied().ok_or_else(|| {
            Error::refused(
                format!("no process `{name}` was started on {}", self.name),
                "see the bed's record for names",
            )
        })
    }

    /// The processes that were started here and whether each still runs.
    pub fn processes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.processes
            .iter()
            .map(|(name, process)| (name.as_str(), process.is_alive()))
    }

    /// Ends everything on this machine; safe to repeat.
    ///
    /// # Errors
    /// If the kernel does not get it done.
    pub fn halt(&self) -> Result<()> {
        // `nsenter` stops itself when the program that it started is stopped. It has to go on to fetch that program's end,
        // or the machine's first process waits for that for ever.
        for parent in self.processes.values().filter_map(|process| process.parent()) {
            parent.signal(Signal::CONT)?;
        }
        self.init.kill()
    }
}

/// Fails with the end of `log` if `process` has ended.
pub(crate) fn check_alive(name: &str, process: ProcessId, log: &Path) -> Result<()> {
    if process.is_alive() {
        Ok(())
    } else {
        Err(died(name, log, "no status: not our child"))
    }
}

fn joining(cgroup: &Cgroup, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-euc", JOIN, "sh"])
        .args(cgroup.doors())
        .arg("--")
        .arg(program);
    command
}

/// Starts a command in a process group of its own, so that Ctrl-C in our terminal is ours alone.
fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let open = || -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::io("open", log))
    };
    command
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .process_group(0);
    command.spawn().map_err(|source| Error::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
        hint: "install util-linux",
    })
}

fn died(name: &str, log: &Path, status: &str) -> Error {
    Error::Died {
        name: format!("{name} ({status})"),
        log: log.to_owned(),
        tail: tail_of(log),
    }
}

fn tail_of(log: &Path) -> String {
    const KEPT: usize = 2000;
    tail(&fs::read_to_string(log).unwrap_or_default(), KEPT).to_owned()
}
