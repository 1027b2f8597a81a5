//! A disk whose syncs take longer, for the processes that are started with it: a small library (`disk.c`) that is preloaded into them.
//!
//! A device-mapper target with a delay would do it for the kernel's own writes too, and needs root and a volume of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::Result;
use crate::preload;

const SOURCE: &str = include_str!("disk.c");

/// The compiled library, and how much longer a sync takes with it.
#[derive(Clone, Debug)]
pub(super) struct SlowDisk {
    library: PathBuf,
    delay: Duration,
}

impl SlowDisk {
    /// Compiles it into `folder`.
    ///
    /// # Errors
    /// If there is no C compiler.
    pub(super) fn compile(folder: &Path, delay: Duration) -> Result<Self> {
        Ok(Self {
            library: preload::compile(folder, "disk", SOURCE)?,
            delay,
        })
    }

    /// Has the program that `command` starts, and those that this starts, wait longer for the disk.
    pub(super) fn apply(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("BENCH_SYNC_DELAY_US", self.delay.as_micros().to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::command::run;

    /// Not a test of its own: what the one below runs in a process with a slow disk.
    #[test]
    #[ignore = "run by the test below"]
    fn a_process_that_syncs() {
        let file = tempfile::tempfile().unwrap();
        let begun = Instant::now();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        println!("{} ms", begun.elapsed().as_millis());
    }

    #[test]
    fn each_sync_of_a_process_takes_so_much_longer() {
        let folder = tempfile::tempdir().unwrap();
        let disk = SlowDisk::compile(folder.path(), Duration::from_millis(200)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "bench::disk::tests::a_process_that_syncs",
            "--ignored",
            "--nocapture",
        ]);
        disk.apply(&mut command);
        let printed = run(&mut command).unwrap();
        let mut lines = printed.lines();
        let took: u64 = lines
            .find_map(|line| line.strip_suffix(" ms")?.rsplit(' ').next()?.parse().ok())
            .unwrap();
        assert!(took >= 400, "two syncs took {took} ms");
    }
}
