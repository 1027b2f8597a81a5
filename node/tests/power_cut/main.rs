//! Power cuts, replayed: a real process is recorded under load, below its calls to the operating system; then disks are rebuilt
//! that a cut at some moment could have left, a process is started on each, and everything acknowledged before the cut
//! must be there. The harness is tested by a disk that lies: with the log's syncs left out it must find losses.
//!
//! `cargo xtask power-cut --images 300` runs the long form.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests wait in real time, and a panic is the test's own failure"
)]

#[path = "../support/mod.rs"]
mod support;
mod trace;

use althing_api::pb::etcdserverpb::kv_client::KvClient;
use althing_api::pb::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{CLUSTER, Node};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use trace::{Disk, Event, Mood, Op, Random, parse, whole_bytes};

/// Images of a normal test run; the long run sets the variable.
const IMAGES: usize = 30;
/// Images of a test of one kind of moment.
const FOCUSED_IMAGES: usize = 12;
const IMAGES_VARIABLE: &str = "ALTHING_POWER_CUT_IMAGES";
/// Clients at one time: several puts share a sync, and several syncs are under way at a cut.
const CLIENTS: u64 = 32;
/// Processes that are started on images at one time.
const WORKERS: usize = 3;
/// Longest time for an image to serve.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Values whose text is read back per image, beside all keys.
const SAMPLES: usize = 150;

/// Small segments: they fill, roll and are recycled many times in a short recording. No reserve: images lie in memory.
const FLAGS: [&str; 4] = ["--wal-segment-bytes", "4194304", "--volume-reserve-bytes", "0"];

/// One acknowledged put, and how long the trace was when its answer had come.
struct Ack {
    at: usize,
    client: u64,
    number: u64,
}

struct Recording {
    trace: Vec<u8>,
    events: Vec<Event>,
    acks: Vec<Ack>,
    /// The bootstrap was acknowledged.
    born: usize,
    /// Old revisions were being deleted from here to here.
    compaction: std::ops::Range<usize>,
}

fn key(client: u64, number: u64) -> String {
    format!("put/{client:02}/{number:06}")
}

fn counter(client: u64) -> String {
    format!("counter/{client:02}")
}

/// About 3 KiB, different for every put.
fn value(client: u64, number: u64) -> String {
    format!("{client}.{number} ").repeat(2_900 / format!("{client}.{number} ").len() + (number % 40) as usize)
}

/// In memory if possible: images are many, and their own durability is nobody's concern.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Builds the shim; `None` without a C compiler.
fn shim(dir: &Path) -> Option<PathBuf> {
    let library = dir.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power_cut/shim.c");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .output();
    match output {
        Err(error) => {
            eprintln!("skipped: no C compiler ({error})");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(library)
        }
    }
}

async fn channels(node: &Node) -> Vec<KvClient<Channel>> {
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(node.kv().await);
    }
    all
}

/// Puts `numbers` with every client; what is acknowledged is added. Ends early if the node does.
async fn load(node: &Node, trace: &Path, numbers: std::ops::Range<u64>, acks: &Arc<Mutex<Vec<Ack>>>) {
    let channels = channels(node).await;
    let writers: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut kv = channels[client as usize % channels.len()].clone();
            let (trace, acks, numbers) = (trace.to_owned(), Arc::clone(acks), numbers.clone());
            tokio::spawn(async move {
                for number in numbers {
                    let put = |key: String, value: String| PutRequest {
                        key: key.into(),
                        value: value.into(),
                        ..PutRequest::default()
                    };
                    if number % 10 == 0 && kv.put(put(counter(client), number.to_string())).await.is_err() {
                        return;
                    }
                    if kv.put(put(key(client, number), value(client, number))).await.is_err() {
                        return;
                    }
                    let at = std::fs::metadata(&trace).unwrap().len() as usize;
                    acks.lock().unwrap().push(Ack { at, client, number });
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

fn recorded(shim: &Path, root: &Path, trace: &Path, lie: &str) -> Vec<(String, PathBuf)> {
    let named = |name: &str, value: &Path| (format!("POWER_CUT_{name}"), value.to_owned());
    vec![
        ("LD_PRELOAD".to_owned(), shim.to_owned()),
        named("ROOT", root),
        named("TRACE", trace),
        named("LIE", Path::new(lie)),
    ]
}

/// Records a node from its birth: load, a kill in the middle, checkpoints, cuts of the log, recycled segments, a compaction.
async fn record(shim: &Path, lie: &str, rounds: u64) -> Recording {
    let trace_dir = scratch();
    let trace_path = trace_dir.path().join("trace");
    let mut node = Node::prepare("a-0", scratch(), &FLAGS);
    let root = node.data_dir();
    node.with_env(recorded(shim, &root, &trace_path, lie));
    let length = || std::fs::metadata(&trace_path).unwrap().len() as usize;
    node.run();
    node.bootstrap().await;
    let born = length();
    let acks: Arc<Mutex<Vec<Ack>>> = Arc::default();
    load(&node, &trace_path, 0..rounds / 3, &acks).await;
    // Clients are cut off in the middle, and every one of them has noticed before the node comes back.
    let half = rounds / 2;
    let pid = node.pid();
    let killer = async {
        let goal = acks.lock().unwrap().len() + CLIENTS as usize * (half - rounds / 3) as usize / 2;
        while acks.lock().unwrap().len() < goal {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rustix::process::kill_process(pid, rustix::process::Signal::USR2).unwrap();
    };
    tokio::join!(load(&node, &trace_path, rounds / 3..half, &acks), killer);
    node.kill();
    let whole = whole_bytes(&std::fs::read(&trace_path).unwrap());
    let file = std::fs::File::options().write(true).open(&trace_path).unwrap();
    file.set_len(whole as u64).unwrap();
    node.run();
    node.ready().await;
    load(&node, &trace_path, half..rounds, &acks).await;
    let begun = length();
    let revision = node.put("last", "1").await.unwrap();
    let compact = CompactionRequest {
        revision,
        physical: true,
    };
    node.kv().await.compact(compact).await.unwrap();
    load(&node, &trace_path, rounds..rounds + 20, &acks).await;
    let compaction = begun..length();
    assert!(node.terminate().success());
    let trace = std::fs::read(&trace_path).unwrap();
    let events = parse(&trace, &root);
    let acks = std::mem::take(&mut *acks.lock().unwrap());
    Recording {
        trace,
        events,
        acks,
        born,
        compaction,
    }
}

fn is_recycling(event: &Event) -> bool {
    let spare = |path: &Path| path.extension().is_some_and(|end| end == "spare");
    match &event.op {
        Op::Rename { from, to } => spare(from) || spare(to),
        _ => false,
    }
}

/// Where to cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Focus {
    /// Anywhere, a part of them where names change, and at both of what follows.
    Mixed,
    /// Where segments of the log are set aside and taken into use again.
    Recycling,
    /// While old revisions are deleted.
    Compaction,
}

/// Moments to cut at, and what happens there.
fn moments(recording: &Recording, focus: Focus, count: usize, random: &mut Random) -> Vec<(usize, &'static str)> {
    let events = &recording.events;
    let first = events.partition_point(|event| event.at < recording.born / 2);
    let names: Vec<_> = (first..events.len())
        .filter(|at| {
            matches!(
                events[*at].op,
                Op::Rename { .. } | Op::Unlink { .. } | Op::Create { .. }
            )
        })
        .collect();
    let recycling: Vec<_> = (first..events.len()).filter(|at| is_recycling(&events[*at])).collect();
    let compaction: Vec<_> = (first..events.len())
        .filter(|at| recording.compaction.contains(&events[*at].at))
        .collect();
    let mut moments: Vec<_> = (0..count)
        .map(|number| {
            let anywhere = |random: &mut Random| first + random.below((events.len() - first) as u64) as usize;
            let near = |of: &[usize], random: &mut Random| {
                if of.is_empty() {
                    return anywhere(random);
                }
                let at = of[random.below(of.len() as u64) as usize] + random.below(8) as usize;
                at.saturating_sub(3).min(events.len() - 1)
            };
            match (focus, number % 5) {
                (Focus::Recycling, _) | (Focus::Mixed, 0) => (near(&recycling, random), "recycling"),
                (Focus::Compaction, _) | (Focus::Mixed, 1) => (near(&compaction, random), "compaction"),
                (Focus::Mixed, 2) => (near(&names, random), "names"),
                (Focus::Mixed, _) => (anywhere(random), "anywhere"),
            }
        })
        .collect();
    moments.sort_unstable();
    moments
}

/// What a cut must not lose.
struct Expected {
    born: bool,
    puts: Vec<(u64, u64)>,
    counters: BTreeMap<u64, u64>,
}

impl Expected {
    fn at(recording: &Recording, cut: usize) -> Self {
        let mut expected = Self {
            born: recording.born <= cut,
            puts: Vec::new(),
            counters: BTreeMap::new(),
        };
        for ack in recording.acks.iter().filter(|ack| ack.at <= cut) {
            expected.puts.push((ack.client, ack.number));
            let counter = expected.counters.entry(ack.client).or_default();
            *counter = ack.number.max(*counter);
        }
        expected
    }
}

/// Starts a node on an image and compares.
async fn examine(node: &mut Node, expected: &Expected, seed: u64) -> Result<(), String> {
    node.run();
    let end = Instant::now() + START_LIMIT;
    loop {
        if node.has_ended() {
            let log = std::fs::read_to_string(node.log_path()).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default().to_owned();
            return Err(format!("it does not start: {last}"));
        }
        if let Ok(status) = node.admin().status().await {
            if status.ready {
                break;
            }
            if !expected.born && status.cluster_id.is_none() {
                // Nothing was promised yet, and it can be born again.
                node.bootstrap().await;
                return Ok(());
            }
        }
        if Instant::now() > end {
            return Err("it does not become ready".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut kv = node.kv().await;
    let list = RangeRequest {
        key: "put/".into(),
        range_end: "put0".into(),
        keys_only: true,
        ..RangeRequest::default()
    };
    let failed = |error: tonic::Status| format!("a read failed: {error}");
    let kvs = kv.range(list).await.map_err(failed)?.into_inner().kvs;
    let present: std::collections::BTreeSet<_> = kvs.into_iter().map(|kv| kv.key).collect();
    let missing: Vec<_> = expected
        .puts
        .iter()
        .map(|(client, number)| key(*client, *number))
        .filter(|key| !present.contains(key.as_bytes()))
        .collect();
    if let Some(first) = missing.first() {
        return Err(format!(
            "{} of {} acknowledged puts are lost, {first} is one",
            missing.len(),
            expected.puts.len()
        ));
    }
    let mut random = Random(seed);
    for _ in 0..SAMPLES.min(expected.puts.len()) {
        let (client, number) = expected.puts[random.below(expected.puts.len() as u64) as usize];
        let found = node.get(&key(client, number)).await.map_err(failed)?;
        if found.as_deref() != Some(value(client, number).as_str()) {
            return Err(format!("{} has another value", key(client, number)));
        }
    }
    for (client, number) in &expected.counters {
        let found = node.get(&counter(*client)).await.map_err(failed)?;
        let found: Option<u64> = found.and_then(|text| text.parse().ok());
        if found.is_none_or(|found| found < number / 10 * 10) {
            return Err(format!("{} stands at {found:?} after {number}", counter(*client)));
        }
    }
    node.put("afterwards", "1").await.map_err(failed)?;
    Ok(())
}

/// Rebuilds images and examines them; says what was lost.
async fn replay(recording: Arc<Recording>, focus: Focus, count: usize, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let moments = moments(&recording, focus, count, &mut random);
    let mut disk = Disk::default();
    let mut next = 0;
    let places = Arc::new(tokio::sync::Semaphore::new(WORKERS));
    let losses = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut tasks = Vec::new();
    let began = Instant::now();
    for (number, (at, kind)) in moments.into_iter().enumerate() {
        while next < at {
            disk.step(&recording.events[next], &recording.trace);
            next += 1;
        }
        *kinds.entry(kind).or_default() += 1;
        let cut = recording.events[at].at;
        let mood = match random.below(5) {
            0 | 1 => Mood::None,
            2 | 3 => Mood::Half,
            _ => Mood::All,
        };
        let image_seed = random.next();
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let mut node = Node::prepare("a-0", scratch(), &FLAGS);
        disk.materialise(&recording.trace, &node.data_dir(), mood, &mut Random(image_seed));
        let (recording, losses, done) = (Arc::clone(&recording), Arc::clone(&losses), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let expected = Expected::at(&recording, cut);
            let verdict = examine(&mut node, &expected, image_seed).await;
            drop(node);
            drop(place);
            if let Err(loss) = verdict {
                let text = format!(
                    "image {number} of seed {seed}: cut {kind} at {cut}, {mood:?} of the unsynced kept: {loss}"
                );
                losses.lock().unwrap().push(text);
            }
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if done % 10 == 0 || done == count {
                let lost = losses.lock().unwrap().len();
                eprint!(
                    "\r  {done} of {count} images, {lost} losses, {:.0} s ",
                    began.elapsed().as_secs_f64()
                );
                let _ = std::io::stderr().flush();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    eprintln!("\n  images by kind: {kinds:?}");
    std::mem::take(&mut *losses.lock().unwrap())
}

fn describe(recording: &Recording) {
    let count = |kind: fn(&Event) -> bool| recording.events.iter().filter(|event| kind(event)).count();
    eprintln!(
        "  recorded {} operations ({} MB): {} writes, {} syncs, {} renames, {} of them of recycled segments; {} acknowledged puts",
        recording.events.len(),
        recording.trace.len() >> 20,
        count(|event| matches!(event.op, Op::Write { .. })),
        count(|event| matches!(event.op, Op::Sync { .. })),
        count(|event| matches!(event.op, Op::Rename { .. })),
        count(is_recycling),
        recording.acks.len(),
    );
}

/// The recording that several tests look at; `None` without a C compiler.
async fn recording() -> Option<Arc<Recording>> {
    static RECORDING: OnceCell<Option<Arc<Recording>>> = OnceCell::const_new();
    let make = || async {
        let dir = scratch();
        let shim = shim(dir.path())?;
        let recording = record(&shim, "", 400).await;
        describe(&recording);
        assert!(
            recording.events.iter().any(is_recycling),
            "the recording must be long enough for a segment to be recycled"
        );
        Some(Arc::new(recording))
    };
    RECORDING.get_or_init(make).await.clone()
}

async fn cuts(focus: Focus, images: usize, seed: u64) {
    let Some(recording) = recording().await else { return };
    let losses = replay(recording, focus, images, seed).await;
    assert!(
        losses.is_empty(),
        "{} of {images} images:\n{}",
        losses.len(),
        losses.join("\n")
    );
    eprintln!("  power cut, {focus:?}: {images} images, 0 losses");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_a_power_cut() {
    assert_eq!(CLUSTER.len(), 16);
    cuts(Focus::Mixed, IMAGES, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_a_cut_while_a_segment_is_recycled_loses_nothing() {
    cuts(Focus::Recycling, FOCUSED_IMAGES, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_a_cut_while_history_is_compacted_loses_nothing() {
    cuts(Focus::Compaction, FOCUSED_IMAGES, 3).await;
}

/// The long form; the seed is the time, so that no two runs look at the same images.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask power-cut --images 300"]
async fn nothing_acknowledged_is_lost_in_many_power_cuts() {
    let images = std::env::var(IMAGES_VARIABLE).map_or(300, |text| text.parse().unwrap());
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    eprintln!("  seed {seed}");
    cuts(Focus::Mixed, images, seed).await;
}

/// How many of some images lose something if syncs of such files say that they are done, and are not.
async fn losses_of_a_liar(lie: &str, rounds: u64, images: usize) -> Option<usize> {
    let dir = scratch();
    let shim = shim(dir.path())?;
    let recording = record(&shim, lie, rounds).await;
    describe(&recording);
    let losses = replay(Arc::new(recording), Focus::Mixed, images, 1).await;
    eprintln!(
        "  {} of {images} images lost something:\n{}",
        losses.len(),
        losses.join("\n")
    );
    Some(losses.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_drops_the_logs_syncs_is_found_out() {
    let Some(losses) = losses_of_a_liar("/wal/", 30, 12).await else {
        return;
    };
    assert!(losses >= 5, "only {losses} of 12 images lost something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_drops_the_syncs_of_the_logs_directory_is_found_out() {
    // What is in a new segment is durable, and its name is not.
    let Some(losses) = losses_of_a_liar("/wal$", 60, 12).await else {
        return;
    };
    assert!(losses >= 3, "only {losses} of 12 images lost something");
}

/// A promise that a follower made: at this length of its trace, everything up to this index was committed, and the two voters'
/// majority is both of them.
struct Promise {
    at: usize,
    index: u64,
}

/// A member that joins late gets a snapshot. Its power is cut while it takes it in, makes it its state, and goes on from it.
async fn follower_cuts(images: usize, seed: u64) {
    let dir = scratch();
    let Some(shim) = shim(dir.path()) else { return };
    let mut leader = Node::prepare("a-0", scratch(), &FLAGS);
    leader.run();
    leader.bootstrap().await;
    let unused = dir.path().join("no trace");
    std::fs::write(&unused, b"").unwrap();
    load(&leader, &unused, 0..400, &Arc::default()).await;

    let trace_path = dir.path().join("trace");
    let mut follower = Node::prepare("a-1", scratch(), &FLAGS);
    let root = follower.data_dir();
    follower.with_env(recorded(&shim, &root, &trace_path, ""));
    follower.run();
    leader.add(&follower).await;
    let joined = std::fs::metadata(&trace_path).unwrap().len() as usize;
    let mut promises = Vec::new();
    for number in 0..200 {
        leader.put(&format!("late/{number}"), "v").await.unwrap();
        let index = support::shard(&leader.status().await, 1).commit_index;
        let at = std::fs::metadata(&trace_path).unwrap().len() as usize;
        promises.push(Promise { at, index });
    }
    let log = std::fs::read_to_string(follower.log_path()).unwrap();
    assert!(
        log.contains("installed a snapshot"),
        "the scenario needs a snapshot:\n{log}"
    );
    follower.kill();
    leader.kill();

    let trace = std::fs::read(&trace_path).unwrap();
    let events = parse(&trace, &root);
    let end = events.partition_point(|event| event.at < joined);
    let mut random = Random(seed);
    // Three quarters while it joins.
    let mut moments: Vec<_> = (0..images)
        .map(|number| {
            let range = if number % 4 == 3 { end..events.len() } else { 0..end };
            range.start + random.below(range.len() as u64) as usize
        })
        .collect();
    moments.sort_unstable();
    let mut disk = Disk::default();
    let mut next = 0;
    let mut losses = Vec::new();
    for (number, at) in moments.into_iter().enumerate() {
        while next < at {
            disk.step(&events[next], &trace);
            next += 1;
        }
        let cut = events[at].at;
        let mood = if random.below(2) == 0 { Mood::None } else { Mood::Half };
        let mut image = Node::prepare("a-1", scratch(), &FLAGS);
        image.in_place_of(&follower);
        disk.materialise(&trace, &image.data_dir(), mood, &mut random);
        let promised = promises.iter().rev().find(|promise| promise.at <= cut);
        let held = althing_wal::inspect::inspect(&image.data_dir().join("wal")).unwrap();
        let last = held.recovered.groups.values().map(|group| group.last().index.0).max();
        let mut fate = match promised {
            Some(promise) if last.is_none_or(|last| last < promise.index) => Err(format!(
                "its log ends at {last:?} and {} was acknowledged",
                promise.index
            )),
            Some(_) | None => Ok(()),
        };
        // Its leader's power went too, so nobody tells it more than it knows: it must start from that.
        image.run();
        let until = Instant::now() + START_LIMIT;
        while fate.is_ok() && image.admin().status().await.is_err() {
            if image.has_ended() {
                let log = std::fs::read_to_string(image.log_path()).unwrap_or_default();
                fate = Err(format!("it does not start: {}", log.lines().last().unwrap_or_default()));
            } else if Instant::now() > until {
                fate = Err("it does not answer".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if let Err(what) = fate {
            losses.push(format!("image {number} of seed {seed}: cut at {cut}, {mood:?}: {what}"));
        }
        eprint!(
            "\r  {} of {images} images of a joining follower, {} losses ",
            number + 1,
            losses.len()
        );
    }
    eprintln!();
    assert!(losses.is_empty(), "{}", losses.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cut_while_it_takes_in_a_snapshot_comes_back_with_all_it_acknowledged() {
    follower_cuts(8, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask power-cut"]
async fn a_follower_survives_many_power_cuts() {
    follower_cuts(60, 7).await;
}
