//! What `perf stat` counted, for one request. Pure.

use std::collections::BTreeMap;

/// System calls are events of this group, by their names.
const CALL: &str = "syscalls:sys_enter_";
/// Times that a processor went from one thread to another.
const SWITCHES: &str = "context-switches";
/// All system calls, also those without a line of their own.
const CALLS: &str = "raw_syscalls:sys_enter";

/// System calls that servers of either kind live from. The rest is in the sum.
const NAMES: [&str; 14] = [
    "epoll_pwait",
    "epoll_wait",
    "fdatasync",
    "fsync",
    "futex",
    "nanosleep",
    "pwrite64",
    "read",
    "recvfrom",
    "recvmsg",
    "sendmsg",
    "sendto",
    "write",
    "writev",
];

/// What to count, as `perf stat --event` takes it.
pub(super) fn events() -> String {
    let calls = NAMES.iter().map(|name| format!("{CALL}{name}"));
    let all = [SWITCHES, CALLS].into_iter().map(str::to_owned).chain(calls);
    all.collect::<Vec<_>>().join(",")
}

/// Of all members together, for one request.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Times that a processor went from one thread to another.
    pub context_switches: f64,
    /// System calls.
    pub system_calls: f64,
    /// Of these, by name.
    pub by_name: BTreeMap<String, f64>,
}

/// Reads what `perf stat -x,` wrote.
///
/// # Errors
/// If something was not counted, with what was not.
pub(super) fn parse(text: &str, requests: u64) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.split(',');
        let (value, event) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let value: f64 = value.parse().map_err(|_| format!("`{event}` was {value}"))?;
        let each = value / requests as f64;
        match event {
            SWITCHES => counts.context_switches = each,
            CALLS => counts.system_calls = each,
            event => {
                let name = event
                    .strip_prefix(CALL)
                    .ok_or_else(|| format!("`{event}` was not asked for"))?;
                counts.by_name.insert(name.to_owned(), each);
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_divided_by_requests() {
        let text = "# started on Thu\n\n300,,context-switches,9,100.00,,\n1000,,raw_syscalls:sys_enter,9,100.00,,\n\
                    250,,syscalls:sys_enter_futex,9,100.00,,\n";
        let counts = parse(text, 100).unwrap();
        assert_eq!((counts.context_switches, counts.system_calls), (3.0, 10.0));
        assert_eq!(counts.by_name, [("futex".to_owned(), 2.5)].into());
    }

    #[test]
    fn what_the_kernel_does_not_count_is_named() {
        let text = "<not supported>,,context-switches,0,100.00,,\n";
        assert_eq!(parse(text, 1).unwrap_err(), "`context-switches` was <not supported>");
    }
}
