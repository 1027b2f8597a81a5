//! How long a member with much data takes from its start to its first linearizable answer.
//!
//! `cargo xtask recovery` builds and runs it. It writes a volume as a member leaves it that was killed: the state of a checkpoint, and
//! the log after it. Then it starts the real process on it, several times, each time after a kill, and prints a line per start.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use althing_node::identity::Identity;
use althing_node::members::MemberInfo;
use althing_raft::entry::{ConfigState, Entry, HardState, Payload, SnapshotMeta};
use althing_raft::ids::{GroupId, Index, LogPosition, Term};
use althing_raft::io::Start;
use althing_shard::envelope::{BootNonce, Envelope};
use althing_store::codec::encode_command;
use althing_store::ops::{Command, Put};
use althing_store::{ApplyItem, Mvcc, SledOptions, SledStore};
use althing_wal::{GroupWrite, Options, StdDisk, Wal};
use bytes::BytesMut;
use clap::Parser;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const GROUP: GroupId = GroupId::FIRST_SHARD;
const CLUSTER: u64 = 0xbe;
const NAME: &str = "recovery-0";
const TERM: Term = Term(1);
/// Keys per batch while the volume is written.
const BATCH: u64 = 1_000;
/// Log after the checkpoint: a checkpoint is made every so many bytes, so this is what a kill leaves at most.
const TAIL_BYTES: u64 = 16 << 20;
/// A start that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures recovery.
#[derive(Parser)]
struct Args {
    /// Keys
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 1_024)]
    value_bytes: usize,
    /// Starts
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Where to put the volume [default: the place for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also start with a cold page cache (root only)
    #[arg(long)]
    cold: bool,
    /// Only write the volume there and keep it
    #[arg(long)]
    write_only: bool,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn put(number: u64, value_bytes: usize) -> Command {
    // Values that do not repeat: nothing may profit from sameness.
    let mut value = Vec::with_capacity(value_bytes + 8);
    let mut word = number;
    while value.len() < value_bytes {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ number;
        value.extend(word.to_le_bytes());
    }
    value.truncate(value_bytes);
    // Spread over the key space, each number its own key.
    let key = format!("/registry/pods/{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    Command::Put(Put {
        key: key.into(),
        value: Some(value.into()),
        lease: Some(0),
        prev_kv: false,
    })
}

fn write_volume(dir: &Path, args: &Args) -> Result<()> {
    let mut identity = Identity::open(dir, NAME)?;
    identity.join(CLUSTER)?;
    let me = identity.member();
    let engine = SledStore::open(&dir.join("state"), SledOptions { cache_bytes: 256 << 20 })?.0;
    let store = Mvcc::open(engine, GROUP)?;
    let config = ConfigState {
        voters: [me].into(),
        index: Index(0),
        ..ConfigState::default()
    };
    let info = MemberInfo {
        name: NAME.to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
        client_urls: vec!["http://127.0.0.1:1".to_owned()],
    };
    store.bootstrap(config.clone(), BTreeMap::from([(me, info.encode())]))?;
    let meta = |index| SnapshotMeta {
        position: LogPosition {
            term: TERM,
            index: Index(index),
        },
        config: config.clone(),
        ..SnapshotMeta::default()
    };
    let mut done = 0;
    while done < args.keys {
        let next = (done + BATCH).min(args.keys);
        let items: Vec<_> = (done..next)
            .map(|number| ApplyItem::unstamped(put(number, args.value_bytes)))
            .collect();
        store.apply(&items, meta(next))?;
        done = next;
        if done % 100_000 == 0 {
            store.checkpoint()?;
            eprint!("\r  {done} of {} keys written ", args.keys);
        }
    }
    eprintln!();
    let applied = store.checkpoint()?;
    let mut wal = Wal::open(Arc::new(StdDisk), &dir.join("wal"), Options::default())?.0;
    let tail = TAIL_BYTES / args.value_bytes.max(1) as u64;
    let entries: Vec<_> = (1..=tail)
        .map(|at| {
            let mut command = BytesMut::new();
            encode_command(&put(at, args.value_bytes), &mut command);
            let envelope = Envelope {
                proposer: me,
                nonce: BootNonce(1),
                sequence: at,
                stamp: None,
                command: command.freeze(),
            };
            Entry {
                term: TERM,
                index: Index(args.keys + at),
                payload: Payload::Command(envelope.encode()),
            }
        })
        .collect();
    let birth = Start::birth(me, info.encode());
    let map = GroupWrite {
        group: GroupId::META,
        hard_state: Some(birth.hard_state),
        reset_to: None,
        entries: birth.entries,
    };
    let keys = GroupWrite {
        group: GROUP,
        hard_state: Some(HardState {
            term: TERM,
            vote: Some(me),
            commit: Index(args.keys + tail),
            ..HardState::default()
        }),
        reset_to: Some(applied.position),
        entries,
    };
    // The map is not in it yet: as after a kill right behind the birth, the first start makes it.
    wal.append(&[map, keys])?;
    wal.sync()?;
    Ok(())
}

/// Ends the process whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn readyz(admin: &str) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut socket = std::net::TcpStream::connect(admin)?;
        socket.write_all(format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn start(program: &Path, dir: &Path) -> Result<(Duration, u64)> {
    let admin = format!("127.{}.7.1:2381", 1 + std::process::id() % 250);
    let host = admin.trim_end_matches(":2381");
    let begun = Instant::now();
    let child = Process::new(program)
        .env_clear()
        .args(["run", "--name", NAME, "--data-dir"])
        .arg(dir)
        .args([
            "--client-addr",
            &format!("{host}:2379"),
            "--peer-addr",
            &format!("{host}:2380"),
        ])
        .args(["--admin-addr", &admin])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.with_extension("log"))?)
        .spawn()?;
    let mut running = Running(child);
    while !readyz(&admin) {
        if let Some(status) = running.0.try_wait()? {
            let log = std::fs::read_to_string(dir.with_extension("log"))?;
            return Err(format!(
                "the node ended with {status}: {}",
                log.lines().last().unwrap_or_default()
            )
            .into());
        }
        if begun.elapsed() > LIMIT {
            return Err(format!("not ready after {LIMIT:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begun.elapsed();
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id()))?;
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    Ok((took, peak.unwrap_or_default() >> 10))
}

fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for item in std::fs::read_dir(dir)? {
        let item = item?;
        bytes += if item.path().is_dir() {
            tree_bytes(&item.path())?
        } else {
            item.metadata()?.len()
        };
    }
    Ok(bytes)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let base = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let dir = base.path().join("volume");
    std::fs::create_dir(&dir)?;
    let begun = Instant::now();
    write_volume(&dir, &args)?;
    println!(
        "volume: {} keys of {} bytes, {} MiB on disk, written in {:.1} s",
        args.keys,
        args.value_bytes,
        tree_bytes(&dir)? >> 20,
        begun.elapsed().as_secs_f64()
    );
    if args.write_only {
        println!("{}", base.keep().display());
        return Ok(());
    }
    let program = std::env::current_exe()?.with_file_name("../althing-node");
    let program = program.canonicalize()?;
    let mut worst = Duration::ZERO;
    for number in 1..=args.starts {
        let cold = args.cold && number == 1;
        if cold {
            Process::new("sync").status()?;
            std::fs::write("/proc/sys/vm/drop_caches", b"3")?;
        }
        let (took, peak) = start(&program, &dir)?;
        worst = worst.max(took);
        println!(
            "start {number}{}: ready in {:.2} s, peak memory {peak} MiB",
            if cold { " (cold page cache)" } else { "" },
            took.as_secs_f64()
        );
    }
    println!(
        "recovery: {} keys ready in {:.2} s at worst",
        args.keys,
        worst.as_secs_f64()
    );
    Ok(())
}
