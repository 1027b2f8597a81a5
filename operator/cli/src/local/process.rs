//! One operating-system process of a node: started, recognised again after the supervisor's own death, ended.
//!
//! A pid alone names nobody: it is reused. A process is recognised by its pid together with the moment of its start,
//! both of which are recorded in the member's folder.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A running process, whether this supervisor started it or an earlier one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    identity: String,
    /// None for an adopted one: its parent is gone, so its exit status cannot be known.
    child: Option<Child>,
}

/// How a process ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Our own child.
    Status(ExitStatus),
    /// An adopted one is no longer there.
    Gone,
}

impl Ended {
    /// Whether somebody else ended it: then its log has no reason to tell.
    pub(crate) fn by_others(&self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let kill = [Signal::KILL, Signal::TERM, Signal::INT].map(Signal::as_raw);
        match self {
            Ended::Status(status) => status.signal().is_some_and(|signal| kill.contains(&signal)),
            Ended::Gone => true,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // "exit status: 1", "signal: 9 (SIGKILL)".
            Ended::Status(status) => status.fmt(f),
            Ended::Gone => f.write_str("ended while no supervisor watched"),
        }
    }
}

impl Process {
    /// Starts `program` with its output appended to `log`, in a process group of its own: a Ctrl-C in the terminal
    /// reaches only the supervisor, which then stops the nodes in order.
    pub(crate) fn start(program: &Path, args: &[String], log: File) -> io::Result<Process> {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(false);
        // The node takes every flag from the environment too; ours must not leak into it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ALTHING_")) {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("the process ended before it had a pid"))?;
        let identity = identity(pid).unwrap_or_default();
        Ok(Process {
            pid,
            identity,
            child: Some(child),
        })
    }

    /// Takes over a process that an earlier supervisor recorded, if it still is that one.
    pub(crate) fn adopt(pid: u32, recorded_identity: &str) -> Option<Process> {
        let identity = identity(pid).filter(|now| now == recorded_identity && !now.is_empty())?;
        Some(Process {
            pid,
            identity,
            child: None,
        })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What to record beside the pid.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether it has ended, without waiting.
    pub(crate) fn ended(&mut self) -> io::Result<Option<Ended>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.map(Ended::Status)),
            None => Ok((identity(self.pid).as_deref() != Some(self.identity.as_str())).then_some(Ended::Gone)),
        }
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Ends it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // An unreaped child keeps its pid, so this cannot hit a stranger; an adopted one is looked at once more.
        if self.child.is_none() && identity(self.pid).as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// When a process started, in words that no other process of this machine will ever have together with its pid.
/// None: there is no such process, or it has ended and only waits to be collected.
#[cfg(target_os = "linux")]
fn identity(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = start_ticks(&stat)?;
    // Ticks count from boot; without the boot's id they would come round again.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{}:{start}", boot.trim()))
}

/// Field 22 of proc_pid_stat(5), unless the process is a zombie or dead (field 3). The name in field 2 may contain
/// anything, also spaces and parentheses, so fields are counted from the last parenthesis.
#[cfg(target_os = "linux")]
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn identity(pid: u32) -> Option<String> {
    let output = std::process::Command::new("ps")
        .args(["-o", "stat=,lstart=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (state, start) = line.split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| start.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_read_past_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 987654 1 2 3";
        assert_eq!(start_ticks(stat), Some(987_654));
        assert_eq!(
            start_ticks(&stat.replace(") S ", ") Z ")),
            None,
            "a zombie is not running"
        );
        assert_eq!(start_ticks("42 (cut off"), None);
    }

    #[tokio::test]
    async fn a_process_is_adopted_only_with_its_own_start_time() {
        let log = tempfile::tempfile().unwrap();
        let mut process = Process::start(Path::new("sleep"), &["60".into()], log).unwrap();
        let (pid, identity) = (process.pid(), process.identity().to_owned());
        assert!(Process::adopt(pid, &identity).is_some());
        assert!(Process::adopt(pid, "another boot:1").is_none());
        assert!(Process::adopt(pid, "").is_none());

        process.kill().unwrap();
        let status = process.child.as_mut().unwrap().wait().await.unwrap();
        assert!(!status.success());
        assert!(Process::adopt(pid, &identity).is_none(), "it has ended");
    }
}
