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

/// What threads of each name did between two looks at every member. Those of a pool are one name.
pub fn spent(before: &[BTreeMap<u32, Thread>], after: &[BTreeMap<u32, Thread>]) -> BTreeMap<String, Thread> {
    let mut by_name: BTreeMap<String, Thread> = BTreeMap::new();
    for (before, after) in before.iter().zip(after) {
        for (id, thread) in after {
            // One that was not there has done all of it since.
            let (cpu, sleeps) = before.get(id).map_or((0.0, 0), |before| (before.cpu, before.sleeps));
            let sum = by_name.entry(kind(&thread.name).to_owned()).or_default();
            sum.cpu += thread.cpu - cpu;
            sum.sleeps += thread.sleeps.saturating_sub(sleeps);
        }
    }
    by_name
}

/// Threads of a pool are numbered.
pub(super) fn kind(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('-')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn thread(name: &str, cpu: f64, sleeps: u64) -> Thread {
        Thread {
            name: name.to_owned(),
            cpu,
            sleeps,
        }
    }

    #[test]
    fn threads_of_a_pool_count_together_and_only_for_what_they_did_since() {
        let before = [[(1, thread("net-0", 1.0, 5))].into()];
        let after = [[
            (1, thread("net-0", 1.5, 7)),
            (2, thread("net-1", 0.25, 1)),
            (3, thread("wal", 0.0, 0)),
        ]
        .into()];
        let found = spent(&before, &after);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["net", "wal"]);
        assert_eq!((found["net"].cpu, found["net"].sleeps), (0.75, 3));
    }

    #[test]
    fn user_and_system_time_add_up_and_memory_is_in_bytes() {
        let stat = "7 (a (b) S) S 1 7 7 0 -1 4194304 90 0 0 0 250 50 9 9 20 0 1 0 12345 1 1 1";
        let status = "Name:\ta\nVmPeak:\t  999 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(parse(stat, status), Some(Usage { cpu: 3.0, rss: 2 << 20 }));
    }

    #[test]
    fn a_threads_time_is_in_nanoseconds_and_only_sleeps_of_its_own_count() {
        let status = "Name:\tnet-0\nvoluntary_ctxt_switches:\t30\nnonvoluntary_ctxt_switches:\t4\n";
        let thread = thread("net-0", 1.5, 30);
        assert_eq!(parse_thread("net-0\n", "1500000000 77 34\n", status), Some(thread));
    }

    #[test]
    fn a_process_can_read_itself() {
        assert!(of(std::process::id()).unwrap().rss > 0);
        assert!(!threads(std::process::id()).unwrap().is_empty());
    }
}
