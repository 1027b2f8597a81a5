//! Processes by identity, not by number: a pid alone may mean another process tomorrow.

use std::fs;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How long a killed process may take to go: the kernel has to free its memory and namespaces.
const END_LIMIT: Duration = Duration::from_secs(20);

/// One process, for as long as this machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number, as the host sees it.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), stat field 22).
    pub started: u64,
}

/// What `/proc/<pid>/stat` tells that we need.
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` if there is none, or only its corpse.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        (stat.state != 'Z').then_some(Self {
            pid,
            started: stat.started,
        })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// The process that started it, or took it over; also of one that has ended and is not yet fetched.
    pub fn parent(self) -> Option<Self> {
        let stat = stat(self.pid).filter(|stat| stat.started == self.started)?;
        Self::of(stat.parent)
    }

    /// Its children, oldest first.
    pub fn children(self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let mut found: Vec<Self> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == self.pid))
            .filter_map(Self::of)
            .collect();
        found.sort_by_key(|child| (child.started, child.pid));
        found
    }

    /// Sends a signal; nothing happens if the process is gone.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(self, signal: Signal) -> Result<()> {
        self.with_handle(|fd| pidfd_send_signal(fd, signal)).map(drop)
    }

    /// Kills it and returns when it is gone.
    ///
    /// # Errors
    /// If the kernel refuses, or it is still there after 20 s.
    pub fn kill(self) -> Result<()> {
        let ended = self.with_handle(|fd| {
            pidfd_send_signal(fd, Signal::KILL)?;
            let limit = rustix::event::Timespec::try_from(END_LIMIT).expect("invariant: a constant that fits");
            poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit))
        })?;
        match ended {
            Some(0) => Err(Error::Timeout {
                what: format!("process {} ends", self.pid),
                limit: END_LIMIT,
                last: "still there after SIGKILL".to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns when it has ended.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn wait(self) -> Result<()> {
        self.with_handle(|fd| poll(&mut [PollFd::new(fd, PollFlags::IN)], None))
            .map(drop)
    }

    /// Runs `act` on a handle that is certain to be this process: the handle is opened first and the start time
    /// compared after, so a number that was given to another process in between is noticed.
    fn with_handle<T>(self, act: impl FnOnce(&rustix::fd::OwnedFd) -> rustix::io::Result<T>) -> Result<Option<T>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(None);
        };
        if !self.is_alive() {
            return Ok(None);
        }
        match act(&handle) {
            Ok(value) => Ok(Some(value)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::io("signal process", self.pid.to_string())(errno.into())),
        }
    }
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

/// The second field is the program's name in parentheses and may hold anything, parentheses included.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a ) S 1 (b) R 5 7 7 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 12345 1 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started), ('R', 5, 12345));
    }

    #[test]
    fn a_killed_process_is_gone_and_killing_it_again_does_nothing() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        id.kill().unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
        id.kill().unwrap();
    }

    #[test]
    fn another_process_under_the_same_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let earlier = ProcessId {
            started: id.started - 1,
            ..id
        };
        earlier.kill().unwrap();
        assert!(id.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
