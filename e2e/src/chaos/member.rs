//! One member: its volume, its process while it runs, and all that was seen of its ends.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::clock::SkewedClock;
use super::proxy::Addresses;
use super::volume::{RESERVE_BYTES, Volumes};
use crate::error::{Error, Result};

/// Small segments: many of them are begun and recycled in a run, and a volume need not be large.
const SEGMENT_BYTES: u64 = 4 << 20;

/// How often a member may end by itself. A plan has far fewer full disks.
const EXITS_MAX: usize = 1000;

/// A process that ended although nobody ended it.
#[derive(Debug, Clone)]
pub struct Exit {
    /// When, from the start of the clients.
    pub at: Duration,
    /// Exit code or signal.
    pub status: String,
    /// Whether its volume was full then, or had been so a moment ago: then ending is allowed, losing is not.
    pub disk_full: bool,
}

/// What all members have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) program: PathBuf,
    pub(super) volumes: Option<Volumes>,
    pub(super) clock: Option<SkewedClock>,
    /// Beside the harness's own.
    pub(super) flags: Vec<String>,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    host: Ipv4Addr,
    proxy: Ipv4Addr,
    folder: PathBuf,
    /// Parts per million that its clock runs too fast, from its next start on.
    pub(crate) ppm: i32,
    /// Until when its volume is full, or has been so a moment ago.
    pub(crate) disk_full_until: Duration,
    process: Option<Child>,
    pub(crate) exits: Vec<Exit>,
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

impl Member {
    /// Not yet started; everything of it lies below `folder`.
    pub(crate) fn new(name: String, host: Ipv4Addr, proxy: Ipv4Addr, folder: PathBuf) -> Result<Self> {
        let member = Self {
            name,
            host,
            proxy,
            folder,
            ppm: 0,
            disk_full_until: Duration::ZERO,
            process: None,
            exits: Vec::new(),
        };
        let volume = member.volume();
        fs::create_dir_all(&volume).map_err(Error::io("create", &volume))?;
        Ok(member)
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.folder.join("volume")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            real: SocketAddr::from((self.host, 2380)),
            advertised: SocketAddr::from((self.proxy, 2380)),
        }
    }

    pub(crate) fn client_url(&self) -> String {
        format!("http://{}:2379", self.host)
    }

    pub(crate) fn admin_addr(&self) -> SocketAddr {
        SocketAddr::from((self.host, 2381))
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin_addr())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts its process, which must not run.
    pub(super) fn start(&mut self, common: &Common) -> Result<()> {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let path = self.log();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut command = match &common.volumes {
            Some(volumes) => volumes.enter(),
            None => Command::new("env"),
        };
        // Ends with the thread that started it, also if that is killed.
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        command.arg(&common.program).args(self.args()).args(&common.flags);
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some(clock) = common.clock.as_ref().filter(|_| self.ppm != 0) {
            clock.apply(&mut command, self.ppm);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().map_err(|source| Error::Start {
            program: common.program.display().to_string(),
            source,
            hint: "build it with `cargo build --bin althing-node`",
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn args(&self) -> Vec<String> {
        let Addresses { real, advertised } = self.addresses();
        let flags = [
            ("name", self.name.clone()),
            ("data-dir", self.volume().join("data").display().to_string()),
            ("client-addr", format!("{}:2379", self.host)),
            ("peer-addr", real.to_string()),
            ("advertise-peer", advertised.to_string()),
            ("admin-addr", format!("{}:2381", self.host)),
            ("wal-segment-bytes", SEGMENT_BYTES.to_string()),
            ("volume-reserve-bytes", RESERVE_BYTES.to_string()),
            ("log-filter", "info".to_owned()),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [format!("--{flag}"), value]);
        std::iter::once("run".to_owned()).chain(flags).collect()
    }

    /// kill -9; returns when it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process
            .kill()
            .and_then(|()| process.wait())
            .map(drop)
            .map_err(Error::io("kill", &self.name))
    }

    /// SIGSTOP, or SIGCONT; nothing if it does not run.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        // A child that has not been waited for keeps its number.
        kill_process(Pid::from_child(process), signal).map_err(|errno| Error::io("signal", &self.name)(errno.into()))
    }

    /// Whether it has just ended by itself, which is noted.
    pub(crate) fn has_ended(&mut self, at: Duration) -> Result<bool> {
        let Some(process) = &mut self.process else {
            return Ok(false);
        };
        let Some(status) = process.try_wait().map_err(Error::io("wait for", &self.name))? else {
            return Ok(false);
        };
        self.process = None;
        self.exits.push(Exit {
            at,
            status: status.to_string(),
            disk_full: at <= self.disk_full_until,
        });
        if self.exits.len() > EXITS_MAX {
            return Err(self.died());
        }
        Ok(true)
    }

    /// An error with the end of its log.
    pub(crate) fn died(&self) -> Error {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        Error::Died {
            name: self.name.clone(),
            log: self.log(),
            tail: crate::command::tail(&text, 2000).to_owned(),
        }
    }

    /// Lines of its log that say that the program found itself in the wrong.
    pub(crate) fn panics(&self) -> Vec<String> {
        let bytes = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            if line.contains("panicked at") {
                // The message stands on the next line.
                found.push(format!("{line} {}", lines.next().unwrap_or_default()));
            }
        }
        found
    }
}

/// Copies a folder and all below it.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(Error::io("look at", &source))?.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
        }
    }
    Ok(())
}
