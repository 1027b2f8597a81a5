//! What samples of members' stacks say. Pure: text in the form of `flamegraph.pl`'s folded stacks, a thread's name first.

use std::collections::BTreeMap;

/// What the folder puts behind a function of the kernel.
const KERNEL: &str = "_[k]";

/// Parts of names of functions that get and give back memory: Rust's and the C library's, Go's allocator and its collector.
const MEMORY: [&str; 13] = [
    "malloc",
    "calloc",
    "realloc",
    "_int_free",
    "cfree",
    "__rust_alloc",
    "__rust_dealloc",
    "mi_",
    "_rjem_",
    "runtime.newobject",
    "runtime.growslice",
    "runtime.gcBgMarkWorker",
    "runtime.bgsweep",
];

/// Shares of processor time, in percent of all samples.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shares {
    /// Nanoseconds that the samples stand for.
    pub nanoseconds: u64,
    /// In the kernel.
    pub kernel: f64,
    /// In functions that get or give back memory, or in what these call; nothing if the program does not say what its functions are called.
    pub memory: Option<f64>,
    /// By thread, those of a pool as one, the busiest first.
    pub threads: Vec<(String, f64)>,
}

/// Adds samples up.
pub(super) fn shares(folded: &str) -> Shares {
    let (mut nanoseconds, mut kernel, mut memory, mut nameless) = (0, 0, 0, 0);
    let mut threads: BTreeMap<&str, u64> = BTreeMap::new();
    let lines = folded.lines().filter_map(|line| line.rsplit_once(' '));
    for (stack, count) in lines.filter_map(|(stack, count)| Some((stack, count.parse::<u64>().ok()?))) {
        let mut frames = stack.split(';');
        let thread = frames.next().unwrap_or_default();
        *threads.entry(crate::bench::usage::kind(thread)).or_default() += count;
        nanoseconds += count;
        if stack.ends_with(KERNEL) {
            kernel += count;
        }
        let own: Vec<&str> = frames.filter(|frame| !frame.ends_with(KERNEL)).collect();
        // In place of a name that is not known there is the file's.
        if !own.is_empty() && own.iter().all(|frame| frame.starts_with('[')) {
            nameless += count;
        }
        if own.iter().any(|frame| MEMORY.iter().any(|name| frame.contains(name))) {
            memory += count;
        }
    }
    let percent = |count: u64| 100.0 * count as f64 / nanoseconds.max(1) as f64;
    let mut threads: Vec<(String, f64)> = threads
        .into_iter()
        .map(|(name, count)| (name.to_owned(), percent(count)))
        .collect();
    threads.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    Shares {
        nanoseconds,
        kernel: percent(kernel),
        memory: (nameless * 2 < nanoseconds).then(|| percent(memory)),
        threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_count_for_their_thread_and_once_for_what_is_on_the_stack() {
        let folded =
            "net-0;serve;malloc;_int_malloc 10\nnet-1;serve;tcp_sendmsg_[k] 30\nwal;append with space;write_[k] 60\n";
        let shares = shares(folded);
        assert_eq!(
            (shares.nanoseconds, shares.kernel, shares.memory),
            (100, 90.0, Some(10.0))
        );
        assert_eq!(shares.threads, [("wal".to_owned(), 60.0), ("net".to_owned(), 40.0)]);
    }

    #[test]
    fn of_a_program_without_names_nothing_is_said_about_memory() {
        let folded = "etcd;[etcd];[etcd];do_futex_[k] 60\netcd;[etcd] 20\netcd;runtime.mallocgc 20\n";
        assert_eq!(shares(folded).memory, None);
    }

    #[test]
    fn no_samples_are_no_shares() {
        assert_eq!(shares(""), Shares::default());
    }
}
