//! Room on the volume: measured, and waited for.
//!
//! Three lines of defence against a full disk. Below the reserve, clients' writes are refused and the NOSPACE alarm is up, as long as that
//! lasts. What is already in the log must still go into the state store, which cannot stand a full disk (rule 10), so below a
//! quarter of the reserve it is not asked to write. And the log takes no batch whose segments it has not allocated. So nothing
//! that was promised can fail for want of room, and with room everything goes on by itself.
//!
//! sled writes a few KiB when it opens, and the end of the log is applied again. A start on a volume without a single byte gives up the
//! [`Ballast`] for that, so that the member serves reads at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Share of the reserve that is kept for the state store, as a divisor.
const STORE_SHARE: u64 = 4;
/// The least that is kept for it, also without a reserve: some of sled's 512 KiB segments.
const STORE_BYTES_MIN: u64 = 4 << 20;
/// The most: a reserve may be as large as a volume.
const STORE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of commands that may be under way when the last one is taken: they must still find room.
const UNDER_WAY_BYTES: u64 = 2 << 20;
/// Bytes that sled may write for one byte applied: its log, and pages that are written again.
const AMPLIFICATION: u64 = 3;
/// Bytes beyond the state store's share that are given up for a start on a full volume: what sled writes when it opens, and the
/// end of a log that is applied again.
const BALLAST_BYTES: u64 = 8 << 20;
/// How often to look whether there is room again.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Space on the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Volume {
    /// Bytes that a program may still use.
    pub free: u64,
    /// All bytes.
    pub size: u64,
}

/// Where to measure, and how much the state store is left.
#[derive(Clone, Debug)]
pub struct Room {
    dir: PathBuf,
    floor: u64,
}

/// What is kept for the state store.
fn floor(reserve: u64) -> u64 {
    (reserve / STORE_SHARE).clamp(STORE_BYTES_MIN, STORE_BYTES_MAX)
}

impl Room {
    /// For a volume of which so many bytes are reserved.
    #[must_use]
    pub fn new(dir: PathBuf, reserve: u64) -> Self {
        Self {
            dir,
            floor: floor(reserve),
        }
    }

    /// Measures now.
    ///
    /// # Errors
    /// As the operating system has them.
    pub fn measure(&self) -> io::Result<Volume> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(Volume {
            free: stat.f_bavail * stat.f_frsize,
            size: stat.f_blocks * stat.f_frsize,
        })
    }

    /// Whether the state store may write so many bytes. A volume that cannot be measured is not held against it.
    #[must_use]
    pub fn takes(&self, bytes: u64) -> bool {
        let needed = self.floor.saturating_add(bytes.saturating_mul(AMPLIFICATION));
        self.measure().map_or(true, |volume| volume.free >= needed)
    }

    /// Whether a command may be taken at all, so that the state store will still take it.
    #[must_use]
    pub fn takes_commands(&self) -> bool {
        self.takes(UNDER_WAY_BYTES)
    }

    /// Waits until the state store may write so many bytes; `false` if `stopped` says so first.
    pub fn wait(&self, bytes: u64, mut stopped: impl FnMut() -> bool) -> bool {
        let mut told = false;
        while !self.takes(bytes) {
            if stopped() {
                return false;
            }
            if !told {
                told = true;
                tracing::error!(
                    volume = %self.dir.display(), bytes,
                    "the volume is full: committed entries wait in the log until there is room; nothing is lost"
                );
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        if told {
            tracing::info!("there is room on the volume again");
        }
        true
    }
}

/// A file that only takes room, until a start needs it.
#[derive(Clone, Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
    reserve: u64,
}

impl Ballast {
    /// For a volume of which so many bytes are reserved; without a reserve there is none.
    #[must_use]
    pub fn new(dir: &Path, reserve: u64) -> Self {
        Self {
            path: dir.join("ballast"),
            bytes: if reserve == 0 {
                0
            } else {
                floor(reserve) + BALLAST_BYTES
            },
            reserve,
        }
    }

    /// Makes it if it is missing and there is room beyond the reserve.
    ///
    /// # Errors
    /// If the file system refuses; a start on a full volume then waits for room.
    pub fn keep(&self, volume: Volume) -> io::Result<()> {
        if self.bytes == 0 || volume.free < self.reserve + self.bytes || self.path.exists() {
            return Ok(());
        }
        let file = fs::File::create(&self.path)?;
        let made = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes);
        made.or_else(|error| {
            fs::remove_file(&self.path)?;
            Err(error.into())
        })
    }

    /// Gives its room up; `false` if there was none.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn give_up(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_ballast_takes_its_room_only_beyond_the_reserve_and_gives_it_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path(), 128 * MIB);
        let free = |mib| Volume {
            free: mib * MIB,
            size: 1 << 30,
        };
        ballast.keep(free(167)).unwrap();
        assert!(!ballast.give_up().unwrap(), "there was no room for it");
        ballast.keep(free(168)).unwrap();
        let made = fs::metadata(&ballast.path).unwrap();
        assert_eq!(made.len(), 40 * MIB, "the store's share of 32 MiB, and 8");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&made) * 512;
        assert!(blocks >= 40 * MIB, "a hole would give nothing up: {blocks}");
        ballast.keep(free(168)).unwrap();
        assert!(ballast.give_up().unwrap());
        assert!(!ballast.give_up().unwrap());
    }

    #[test]
    fn without_a_reserve_there_is_no_ballast() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path(), 0);
        ballast
            .keep(Volume {
                free: 1 << 40,
                size: 1 << 40,
            })
            .unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
