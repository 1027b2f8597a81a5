//! Who proposed a command: what a member wraps around it, to know its own when it comes back committed.
//!
//! ```text
//! envelope := version u8 | proposer u64 | nonce u64 | sequence u64 | (version 2: stamp i64) | command
//! ```
//!
//! Little-endian. `nonce` is drawn at each boot, so that an entry of an earlier life never completes a request of this one.
//! Version 2 carries a revision that a sequencer gave out; what has none is written as version 1, which older builds read.

use althing_raft::ids::MemberId;
use althing_raft::roster::Footprint;
use althing_store::ops::Revision;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Of a command without a stamp.
const PLAIN: u8 = 1;
/// Of a command with one: the newest version that this build reads.
const STAMPED: u8 = 2;
/// Bytes around a command without a stamp.
pub const OVERHEAD_BYTES: usize = 25;
/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 8;

/// Drawn at random at every boot of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BootNonce(pub u64);

/// A command with its origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Member whose client asked.
    pub proposer: MemberId,
    /// That member's boot.
    pub nonce: BootNonce,
    /// The request of that boot.
    pub sequence: u64,
    /// The revision that the command takes, in a group that gets its revisions from a sequencer.
    pub stamp: Option<Revision>,
    /// What to do; the state machine knows how to read it.
    pub command: Bytes,
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Too few bytes.
    #[error("a command of version {version} needs {needed} bytes around it and has {found}")]
    Short {
        /// As it says; 1 if there is not even a version.
        version: u8,
        /// Bytes around a command of this version.
        needed: usize,
        /// Bytes in all.
        found: usize,
    },
    /// Not a version that this build reads.
    #[error("command version {0} is not known to this build, which reads versions up to {STAMPED}")]
    Version(u8),
}

impl Envelope {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(OVERHEAD_BYTES + STAMP_BYTES + self.command.len());
        out.put_u8(if self.stamp.is_some() { STAMPED } else { PLAIN });
        out.put_u64_le(self.proposer.0);
        out.put_u64_le(self.nonce.0);
        out.put_u64_le(self.sequence);
        if let Some(stamp) = self.stamp {
            out.put_i64_le(stamp.0);
        }
        out.put_slice(&self.command);
        out.freeze()
    }

    /// From bytes; the command shares their memory.
    ///
    /// # Errors
    /// If the bytes are too few or of another version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, EnvelopeError> {
        let found = bytes.len();
        let version = bytes.first().copied().unwrap_or(PLAIN);
        let needed = match version {
            PLAIN => OVERHEAD_BYTES,
            STAMPED => OVERHEAD_BYTES + STAMP_BYTES,
            version => return Err(EnvelopeError::Version(version)),
        };
        if found < needed {
            return Err(EnvelopeError::Short { version, needed, found });
        }
        bytes.advance(1);
        Ok(Self {
            proposer: MemberId(bytes.get_u64_le()),
            nonce: BootNonce(bytes.get_u64_le()),
            sequence: bytes.get_u64_le(),
            stamp: (version == STAMPED).then(|| Revision(bytes.get_i64_le())),
            command: bytes,
        })
    }
}

/// Which keys an enveloped command of the state machine writes; all of them if it cannot be read. For
/// [`althing_raft::io::Config::footprint`].
#[must_use]
pub fn footprint(entry: &Bytes) -> Footprint {
    Envelope::decode(entry.clone()).map_or(Footprint::All, |envelope| {
        althing_store::footprint::written_by(envelope.command)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_version_is_named() {
        let mut bytes = BytesMut::from(&[0; 40][..]);
        bytes[0] = 3;
        assert_eq!(Envelope::decode(bytes.freeze()), Err(EnvelopeError::Version(3)));
    }

    #[test]
    fn too_few_bytes_are_told_by_version() {
        for (version, needed) in [(PLAIN, 25), (STAMPED, 33)] {
            let mut bytes = vec![0; needed - 1];
            bytes[0] = version;
            let found = bytes.len();
            let expected = EnvelopeError::Short { version, needed, found };
            assert_eq!(Envelope::decode(bytes.into()), Err(expected));
        }
        assert!(Envelope::decode(Bytes::new()).is_err());
    }

    #[test]
    fn what_has_no_stamp_is_written_as_older_builds_read_it() {
        let plain = Envelope {
            proposer: MemberId(1),
            nonce: BootNonce(2),
            sequence: 3,
            stamp: None,
            command: Bytes::from_static(b"x"),
        };
        let expected = [&[1][..], &[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
        let expected = [&expected[..], &[3, 0, 0, 0, 0, 0, 0, 0], b"x"].concat();
        assert_eq!(plain.encode(), expected);
    }

    proptest! {
        #[test]
        fn an_envelope_comes_back(proposer: u64, nonce: u64, sequence: u64, stamp: Option<i64>, command: Vec<u8>) {
            let (proposer, nonce, stamp) = (MemberId(proposer), BootNonce(nonce), stamp.map(Revision));
            let envelope = Envelope { proposer, nonce, sequence, stamp, command: command.into() };
            let bytes = envelope.encode();
            let around = OVERHEAD_BYTES + if stamp.is_some() { STAMP_BYTES } else { 0 };
            prop_assert_eq!(bytes.len(), around + envelope.command.len());
            prop_assert_eq!(Envelope::decode(bytes), Ok(envelope));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Envelope::decode(bytes.into());
        }
    }
}
