//! Clocks that run at another rate, for one process: a small library (`clock.c`) that is preloaded into it.
//!
//! libfaketime, the usual tool, scales what a process reads but not the moments until which it waits: the standard library hands those
//! to futex(2) directly, and after a minute at 1 % every wait would be off by more than half a second.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Result;
use crate::preload;

const SOURCE: &str = include_str!("clock.c");

/// The compiled library.
#[derive(Debug, Clone)]
pub(super) struct SkewedClock {
    library: PathBuf,
}

impl SkewedClock {
    /// Compiles it into `folder`.
    ///
    /// # Errors
    /// If there is no C compiler.
    pub(super) fn compile(folder: &Path) -> Result<Self> {
        Ok(Self {
            library: preload::compile(folder, "clock", SOURCE)?,
        })
    }

    /// Has the program that `command` starts live at this rate.
    pub(super) fn apply(&self, command: &mut Command, ppm: i32) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("CHAOS_CLOCK_PPM", ppm.to_string());
    }
}

/// Whether a C compiler is there, and this machine's vDSO is one that the library can replace.
pub(super) fn available() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64"))
        && Command::new("cc")
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::command::run;

    /// Not a test of its own: what the one below runs in a process with another clock.
    #[test]
    #[ignore = "run by the test below"]
    fn a_process_that_waits_and_reads_its_clock() {
        let kernel_begun = boottime();
        let (begun, pair) = (Instant::now(), (std::sync::Mutex::new(()), std::sync::Condvar::new()));
        let mut rounds = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            drop(
                pair.1
                    .wait_timeout(pair.0.lock().unwrap(), Duration::from_millis(100))
                    .unwrap(),
            );
            rounds += 1;
        }
        println!("{rounds} rounds");
        println!("{} ms", (boottime() - kernel_begun).as_millis());
    }

    /// As a member reads it: without libc.
    fn boottime() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    }

    #[test]
    fn a_process_lives_at_its_own_rate_in_what_it_reads_and_in_how_long_it_waits() {
        let folder = tempfile::tempdir().unwrap();
        let clock = SkewedClock::compile(folder.path()).unwrap();
        for (ppm, least, most) in [(500_000, 1250, 1800), (-500_000, 3900, 5000)] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([
                "--exact",
                "chaos::clock::tests::a_process_that_waits_and_reads_its_clock",
                "--ignored",
                "--nocapture",
            ]);
            clock.apply(&mut command, ppm);
            let begun = Instant::now();
            let printed = run(&mut command).unwrap();
            let took = begun.elapsed().as_millis();
            assert!((least..most).contains(&took), "{ppm} ppm: 2 s took {took} ms");
            // Twenty waits of a tenth make two seconds of its own time; a wait for another clock's moment would make
            // them many (at once) or few (for ever longer).
            let number = |unit| -> u32 {
                let mut lines = printed.lines();
                lines
                    .find_map(|line| line.strip_suffix(unit)?.rsplit(' ').next()?.parse().ok())
                    .unwrap()
            };
            let (rounds, boottime) = (number(" rounds"), number(" ms"));
            assert!((15..=21).contains(&rounds), "{ppm} ppm: {rounds} rounds");
            assert!((1990..2300).contains(&boottime), "{ppm} ppm: {boottime} ms by the vDSO");
        }
    }
}
