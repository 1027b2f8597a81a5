//! Which part of a keyspace a group holds: partition keys, spans of them, and where a group's revisions come from.

use bytes::{BufMut, Bytes, BytesMut};

/// How keys become partition keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Partitioning {
    /// The key itself.
    #[default]
    Range,
    /// Four bytes of slot number, big-endian, then the key.
    Hash {
        /// Slots of the keyspace.
        slots: u32,
        /// Only so many `/`-separated segments of the key are hashed; `None`: all of it.
        prefix_segments: Option<u8>,
    },
}

/// Some partition keys that lie together: `[start, end)`; without an end, every one from `start` on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// The first one.
    pub start: Bytes,
    /// The first one behind it.
    pub end: Option<Bytes>,
}

/// What a group owns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Territory {
    /// How keys become partition keys.
    pub partitioning: Partitioning,
    /// Which ones.
    pub span: Span,
    /// Rises with every change.
    pub epoch: u64,
}

/// Where a group's revisions come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RevisionSource {
    /// It counts by itself, as etcd does.
    #[default]
    Dense,
    /// Every write carries one that the keyspace's sequencer gave out.
    Sequenced,
}

impl Partitioning {
    /// Where a key lies.
    #[must_use]
    pub fn partition_key(&self, key: &[u8]) -> Bytes {
        match self {
            Self::Range => Bytes::copy_from_slice(key),
            Self::Hash { slots, .. } => {
                let mut out = BytesMut::with_capacity(4 + key.len());
                out.put_u32(crc32c::crc32c(key) % slots.max(&1));
                out.put_slice(key);
                out.freeze()
            }
        }
    }

    /// Everything.
    #[must_use]
    pub fn whole(&self) -> Span {
        Span::default()
    }
}

impl Span {
    /// Whether a partition key lies in it.
    #[must_use]
    pub fn contains(&self, partition_key: &[u8]) -> bool {
        self.start <= partition_key && self.end.as_ref().is_none_or(|end| partition_key < &end[..])
    }
}

impl Territory {
    /// Whether a key lies in it.
    #[must_use]
    pub fn owns(&self, key: &[u8]) -> bool {
        self.span.contains(&self.partitioning.partition_key(key))
    }
}
