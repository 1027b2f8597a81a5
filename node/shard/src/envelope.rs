//! Who proposed a command: what a member wraps around it, to know its own when it comes back committed.
//!
//! ```text
//! envelope := version u8 | proposer u64 | nonce u64 | sequence u64 | command
//! ```
//!
//! Little-endian. `nonce` is drawn at each boot, so that an entry of an earlier life never completes a request of this one.

use althing_raft::ids::MemberId;
use althing_raft::roster::Footprint;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Version that this build writes.
const VERSION: u8 = 1;
/// Bytes around the command.
pub const OVERHEAD_BYTES: usize = 25;

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
    /// What to do; the state machine knows how to read it.
    pub command: Bytes,
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Too few bytes.
    #[error("a command needs {OVERHEAD_BYTES} bytes around it and has {0}")]
    Short(usize),
    /// Not a version that this build reads.
    #[error("command version {0} is not known to this build, which reads version {VERSION}")]
    Version(u8),
}

impl Envelope {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(OVERHEAD_BYTES + self.command.len());
        out.put_u8(VERSION);
        out.put_u64_le(self.proposer.0);
        out.put_u64_le(self.nonce.0);
        out.put_u64_le(self.sequence);
        out.put_slice(&self.command);
        out.freeze()
    }

    /// From bytes; the command shares their memory.
    ///
    /// # Errors
    /// If the bytes are too few or of another version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, EnvelopeError> {
        if bytes.len() < OVERHEAD_BYTES {
            return Err(EnvelopeError::Short(bytes.len()));
        }
        let version = bytes.get_u8();
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        Ok(Self {
            proposer: MemberId(bytes.get_u64_le()),
            nonce: BootNonce(bytes.get_u64_le()),
            sequence: bytes.get_u64_le(),
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
        let mut bytes = BytesMut::from(&[0; 30][..]);
        bytes[0] = 2;
        assert_eq!(Envelope::decode(bytes.freeze()), Err(EnvelopeError::Version(2)));
        assert_eq!(
            Envelope::decode(Bytes::from_static(b"abc")),
            Err(EnvelopeError::Short(3))
        );
    }

    proptest! {
        #[test]
        fn an_envelope_comes_back(proposer: u64, nonce: u64, sequence: u64, command: Vec<u8>) {
            let envelope = Envelope { proposer: MemberId(proposer), nonce: BootNonce(nonce), sequence, command: command.into() };
            let bytes = envelope.encode();
            prop_assert_eq!(bytes.len(), OVERHEAD_BYTES + envelope.command.len());
            prop_assert_eq!(Envelope::decode(bytes), Ok(envelope));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Envelope::decode(bytes.into());
        }
    }
}
