//! Processor time and memory of a process, and what its threads do, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Linux counts a program's time in hundredths of a second, whatever the kernel's own clock does (proc(5), USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time, user and system.
    pub cpu: f64,
    /// Bytes of resident memory.
    pub rss: u64,
}

/// Reads it.
///
/// # Errors
/// If the process is gone.
pub fn of(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    parse(&stat, &status).ok_or_else(|| Error::refused(format!("process {pid} has ended"), "look at its log"))
}

/// From the texts of `stat` and `status`.
fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The program's name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(Usage {
        cpu: ticks as f64 / TICKS_PER_SECOND,
        rss: kib * 1024,
    })
}

/// What a thread has done since it began.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Thread {
    /// Its name, of which the kernel keeps fifteen bytes.
    pub name: String,
    /// Seconds on a processor.
    pub cpu: f64,
    /// Times that it slept, and so was woken.
    pub sleeps: u64,
}

/// All threads of a process, by their ids. Those that end while this looks are left out.
///
/// # Errors
/// If the process is gone.
pub fn threads(pid: u32) -> Result<BTreeMap<u32, Thread>> {
    let path = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&path).map_err(Error::io("list", &path))?;
    let one = |folder: &Path| {
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        parse_thread(&read("comm")?, &read("schedstat")?, &read("status")?)
    };
    let all = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        Some((id, one(&entry.path())?))
    });
    Ok(all.collect())
}

/// From the texts of `comm`, `schedstat` and `status`.
fn parse_thread(comm: &str, schedstat: &str, status: &str) -> Option<Thread> {
    let nanoseconds: u64 = schedstat.split_whitespace().next()?.parse().ok()?;
    let sleeps = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    Some(Thread {
        name: comm.trim_end().to_owned(),
        cpu: nanoseconds as f64 / 1e9,
        sleeps: sleeps.trim().parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_add_up_and_memory_is_in_bytes() {
        let stat = "7 (a (b) S) S 1 7 7 0 -1 4194304 90 0 0 0 250 50 9 9 20 0 1 0 12345 1 1 1";
        let status = "Name:\ta\nVmPeak:\t  999 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(parse(stat, status), Some(Usage { cpu: 3.0, rss: 2 << 20 }));
    }

    #[test]
    fn a_threads_time_is_in_nanoseconds_and_only_sleeps_of_its_own_count() {
        let status = "Name:\tnet-0\nvoluntary_ctxt_switches:\t30\nnonvoluntary_ctxt_switches:\t4\n";
        let thread = Thread {
            name: "net-0".to_owned(),
            cpu: 1.5,
            sleeps: 30,
        };
        assert_eq!(parse_thread("net-0\n", "1500000000 77 34\n", status), Some(thread));
    }

    #[test]
    fn a_process_can_read_itself() {
        assert!(of(std::process::id()).unwrap().rss > 0);
        assert!(!threads(std::process::id()).unwrap().is_empty());
    }
}
