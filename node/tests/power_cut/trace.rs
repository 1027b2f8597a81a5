//! What the shim recorded, and the disk that it describes.
//!
//! Strict where POSIX is: a write is durable after a sync of its file that began later, a name after a sync of its own directory. Of
//! the names that are not, a crash keeps those up to some point, as journaling file systems do.
#![allow(unreachable_pub, reason = "one file of a test, used by the other")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const MAGIC: u32 = 0x5043_4c47;
const HEAD_BYTES: usize = 48;
const SECTOR_BYTES: u64 = 512;

/// One recorded operation; `at` is where its record begins.
pub struct Event {
    pub at: usize,
    pub op: Op,
}

pub enum Op {
    Create {
        inode: u64,
        path: PathBuf,
    },
    Write {
        inode: u64,
        offset: u64,
        data: std::ops::Range<usize>,
    },
    Truncate {
        inode: u64,
        len: u64,
    },
    /// What was recorded before `began` is durable.
    Sync {
        inode: u64,
        began: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Mkdir {
        inode: u64,
        path: PathBuf,
    },
}

/// Bytes of the whole records at the trace's beginning: a kill may cut the last one short.
pub fn whole_bytes(trace: &[u8]) -> usize {
    let mut at = 0;
    while let Some(head) = trace.get(at..at + HEAD_BYTES) {
        let word = |n: usize| u64::from_le_bytes(head[n * 8..n * 8 + 8].try_into().unwrap()) as usize;
        let end = at + HEAD_BYTES + word(4) + word(5);
        if end > trace.len() {
            break;
        }
        at = end;
    }
    at
}

/// A whole recording. A record that a kill cut short ends it.
pub fn parse(trace: &[u8], root: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = 0;
    while let Some(head) = trace.get(at..at + HEAD_BYTES) {
        let word = |n: usize| u64::from_le_bytes(head[n * 8..n * 8 + 8].try_into().unwrap());
        assert_eq!(word(0) as u32, MAGIC, "the trace is broken at {at}");
        let (path_len, data_len) = (word(4) as usize, word(5) as usize);
        let path_at = at + HEAD_BYTES;
        let data = path_at + path_len..path_at + path_len + data_len;
        let (Some(path), Some(bytes)) = (trace.get(path_at..data.start), trace.get(data.clone())) else {
            break;
        };
        let below = |bytes: &[u8]| {
            let path = PathBuf::from(std::str::from_utf8(bytes).unwrap());
            path.strip_prefix(root).unwrap().to_owned()
        };
        let inode = word(1);
        let end = data.end;
        let op = match word(0) >> 32 {
            1 => Op::Create {
                inode,
                path: below(path),
            },
            2 => Op::Write {
                inode,
                offset: word(2),
                data,
            },
            3 => Op::Truncate { inode, len: word(2) },
            4 => Op::Sync {
                inode,
                began: word(2) as usize,
            },
            5 => Op::Rename {
                from: below(path),
                to: below(bytes),
            },
            6 => Op::Unlink { path: below(path) },
            7 => Op::Mkdir {
                inode,
                path: below(path),
            },
            op => panic!("operation {op} in the trace"),
        };
        events.push(Event { at, op });
        at = end;
    }
    events
}

/// What an image keeps of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Mood {
    /// Nothing.
    None,
    /// Half of the writes, some torn at a sector, and a prefix of the names.
    Half,
    /// Everything: a kill, not a power cut.
    All,
}

#[derive(Default, Clone)]
struct File {
    durable: Vec<u8>,
    pending: Vec<(usize, Change)>,
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, data: std::ops::Range<usize> },
    Truncate(u64),
}

/// A directory, by a number of its own: inode numbers are used again, and paths change.
type Dir = usize;

const ROOT: Dir = 0;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Node {
    File(usize),
    Dir(Dir),
}

/// One change of names. Which directories must be synced before it is durable is where the names stand.
#[derive(Clone)]
enum NameChange {
    Link(Place, Node),
    Unlink(Place),
    Rename(Place, Place),
}

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    dir: Dir,
    name: OsString,
}

impl NameChange {
    fn places(&self) -> Vec<&Place> {
        match self {
            Self::Link(place, _) | Self::Unlink(place) => vec![place],
            Self::Rename(from, to) => vec![from, to],
        }
    }
}

/// Who is where.
#[derive(Default, Clone)]
struct Names(BTreeMap<Place, Node>);

impl Names {
    fn apply(&mut self, change: NameChange) {
        match change {
            NameChange::Link(place, node) => {
                self.0.insert(place, node);
            }
            NameChange::Unlink(place) => {
                self.0.remove(&place);
            }
            NameChange::Rename(from, to) => {
                if let Some(node) = self.0.remove(&from) {
                    self.0.insert(to, node);
                }
            }
        }
    }

    /// Where a path leads to; all its directories are there.
    fn place(&self, path: &Path) -> Place {
        let mut dir = ROOT;
        for name in path.parent().unwrap() {
            let name = name.to_owned();
            match self.0.get(&Place { dir, name }) {
                Some(Node::Dir(inner)) => dir = *inner,
                other => panic!("{} leads over {other:?}", path.display()),
            }
        }
        let name = path.file_name().unwrap().to_owned();
        Place { dir, name }
    }

    fn of(&self, dir: Dir) -> impl Iterator<Item = (&OsStr, Node)> {
        let places = self.0.iter().filter(move |(place, _)| place.dir == dir);
        places.map(|(place, node)| (place.name.as_os_str(), *node))
    }
}

/// The disk as of some point of the trace.
#[derive(Default, Clone)]
pub struct Disk {
    files: Vec<File>,
    /// Which file or directory an inode number means now; numbers are used again. Whoever was there before the recording is the root.
    inodes: BTreeMap<u64, Node>,
    /// Directories so far, beside the root.
    dirs: usize,
    /// As the process sees them.
    names: Names,
    /// As a power cut leaves them at least.
    durable_names: Names,
    pending_names: Vec<(usize, NameChange)>,
    pub syncs: usize,
}

impl Disk {
    fn name(&mut self, at: usize, change: NameChange) {
        self.names.apply(change.clone());
        self.pending_names.push((at, change));
    }

    fn link(&mut self, at: usize, path: &Path, inode: u64, node: Node) {
        self.inodes.insert(inode, node);
        self.name(at, NameChange::Link(self.names.place(path), node));
    }

    pub fn step(&mut self, event: &Event, trace: &[u8]) {
        let at = event.at;
        match &event.op {
            Op::Create { inode, path } => {
                self.files.push(File::default());
                self.link(at, path, *inode, Node::File(self.files.len() - 1));
            }
            Op::Mkdir { inode, path } if path.as_os_str().is_empty() => {
                // The root has no name here: whoever keeps a volume there keeps the directory.
                self.inodes.insert(*inode, Node::Dir(ROOT));
            }
            Op::Mkdir { inode, path } => {
                self.dirs += 1;
                self.link(at, path, *inode, Node::Dir(ROOT + self.dirs));
            }
            Op::Write { inode, offset, data } => {
                let (offset, data) = (*offset, data.clone());
                self.change(*inode, at, Change::Write { offset, data });
            }
            Op::Truncate { inode, len } => self.change(*inode, at, Change::Truncate(*len)),
            Op::Rename { from, to } => {
                let (from, to) = (self.names.place(from), self.names.place(to));
                self.name(at, NameChange::Rename(from, to));
            }
            Op::Unlink { path } => self.name(at, NameChange::Unlink(self.names.place(path))),
            Op::Sync { inode, began } => {
                self.syncs += 1;
                match self.inodes.get(inode).copied().unwrap_or(Node::Dir(ROOT)) {
                    Node::File(file) => {
                        let file = &mut self.files[file];
                        let done = file.pending.iter().take_while(|(at, _)| at < began).count();
                        for (_, change) in file.pending.drain(..done) {
                            change.apply(&mut file.durable, trace, None);
                        }
                    }
                    Node::Dir(dir) => self.sync_names(dir, *began),
                }
            }
        }
    }

    /// A sync of either directory takes a whole rename with it, since no file system leaves a file in both or in none, and so what was
    /// done to the same names before.
    fn sync_names(&mut self, dir: Dir, began: usize) {
        let mut taken = BTreeSet::new();
        let mut synced = Vec::new();
        let mut pending = Vec::new();
        for (at, change) in std::mem::take(&mut self.pending_names).into_iter().rev() {
            let places = change.places();
            if at < began && places.iter().any(|place| place.dir == dir || taken.contains(*place)) {
                taken.extend(places.into_iter().cloned());
                synced.push(change);
            } else {
                pending.push((at, change));
            }
        }
        pending.reverse();
        self.pending_names = pending;
        synced
            .into_iter()
            .rev()
            .for_each(|change| self.durable_names.apply(change));
    }

    fn change(&mut self, inode: u64, at: usize, change: Change) {
        let Some(Node::File(file)) = self.inodes.get(&inode) else {
            panic!("every file was created below the recorder's eyes");
        };
        self.files[*file].pending.push((at, change));
    }

    /// What a power cut at this point leaves, as files below `dir`.
    pub fn materialise(&self, trace: &[u8], dir: &Path, mood: Mood, random: &mut Random) {
        let kept = match mood {
            Mood::None => 0,
            Mood::Half => random.below(self.pending_names.len() as u64 + 1) as usize,
            Mood::All => self.pending_names.len(),
        };
        let mut names = self.durable_names.clone();
        for (_, change) in &self.pending_names[..kept] {
            names.apply(change.clone());
        }
        self.materialise_dir(&names, ROOT, trace, dir, mood, random);
    }

    /// What a lost directory holds is lost with it.
    fn materialise_dir(&self, names: &Names, of: Dir, trace: &[u8], dir: &Path, mood: Mood, random: &mut Random) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, node) in names.of(of) {
            let path = dir.join(name);
            match node {
                Node::Dir(inner) => self.materialise_dir(names, inner, trace, &path, mood, random),
                Node::File(file) => {
                    let file = &self.files[file];
                    if file.pending.is_empty() || matches!(mood, Mood::None) {
                        std::fs::write(path, &file.durable).unwrap();
                        continue;
                    }
                    let mut content = file.durable.clone();
                    for (_, change) in &file.pending {
                        let keep = match mood {
                            Mood::None => None,
                            Mood::All => Some(None),
                            Mood::Half if random.below(2) == 0 => None,
                            Mood::Half => Some((random.below(5) == 0).then(|| random.next())),
                        };
                        if let Some(torn) = keep {
                            change.clone().apply(&mut content, trace, torn);
                        }
                    }
                    std::fs::write(path, content).unwrap();
                }
            }
        }
    }
}

impl Change {
    /// `torn`: each sector decides for itself, by these bits.
    fn apply(self, content: &mut Vec<u8>, trace: &[u8], torn: Option<u64>) {
        match self {
            Self::Truncate(len) => content.resize(len as usize, 0),
            Self::Write { offset, data } => {
                let bytes = &trace[data];
                let mut done = 0;
                let mut sector = 0;
                while done < bytes.len() {
                    let at = offset + done as u64;
                    let len = ((SECTOR_BYTES - at % SECTOR_BYTES) as usize).min(bytes.len() - done);
                    let len = if torn.is_none() { bytes.len() } else { len };
                    if torn.is_none_or(|bits| bits >> (sector % 64) & 1 == 1) {
                        let end = at as usize + len;
                        if content.len() < end {
                            content.resize(end, 0);
                        }
                        content[at as usize..end].copy_from_slice(&bytes[done..done + len]);
                    }
                    done += len;
                    sector += 1;
                }
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): images can be made again from their number.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
