//! Read specifications and responder ranges as bytes: one form for the log, snapshots and peers.
//!
//! ```text
//! spec   := mode u8 | revisions u8 | lease ns u64 | responders
//! responders := 0 (none) | 1 (all) | 2, ranges
//! ranges := count u32, then each: span, member count u32, member u64 ...
//! span   := 0, key | 1, start | 2, start, end        (byte strings as len u32 | bytes)
//! ```
//!
//! Little-endian. Decoding takes nothing on trust: lists grow by what was really read, and keys are slices of the input.

use crate::ids::MemberId;
use crate::roster::{ReadMode, ReadSpec, ResponderRange, Responders, Revisions, Span};
use bytes::{Buf, BufMut, Bytes};
use std::time::Duration;

/// Why bytes are no read specification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecCodecError {
    /// The bytes end inside a value.
    #[error("a read specification needs {needed} bytes and {left} are left")]
    Short {
        /// Bytes that the value takes.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// A tag that this version does not know.
    #[error("a read specification has the unknown tag {0}; it may come from a newer version")]
    Tag(u8),
}

fn need(buf: &Bytes, needed: usize) -> Result<(), SpecCodecError> {
    if buf.len() < needed {
        Err(SpecCodecError::Short {
            needed,
            left: buf.len(),
        })
    } else {
        Ok(())
    }
}

fn put_len(len: usize, out: &mut impl BufMut) {
    out.put_u32_le(u32::try_from(len).expect("invariant: specifications are far below 4 GiB"));
}

fn put_bytes(bytes: &[u8], out: &mut impl BufMut) {
    put_len(bytes.len(), out);
    out.put_slice(bytes);
}

fn get_u8(buf: &mut Bytes) -> Result<u8, SpecCodecError> {
    need(buf, 1)?;
    Ok(buf.get_u8())
}

fn get_len(buf: &mut Bytes) -> Result<usize, SpecCodecError> {
    need(buf, 4)?;
    Ok(buf.get_u32_le() as usize)
}

fn get_u64(buf: &mut Bytes) -> Result<u64, SpecCodecError> {
    need(buf, 8)?;
    Ok(buf.get_u64_le())
}

fn get_bytes(buf: &mut Bytes) -> Result<Bytes, SpecCodecError> {
    let len = get_len(buf)?;
    need(buf, len)?;
    Ok(buf.split_to(len))
}

/// Nanoseconds on the wire; a lease of 584 years is refused long before.
#[must_use]
pub fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends responder ranges.
pub fn encode_ranges(ranges: &[ResponderRange], out: &mut impl BufMut) {
    put_len(ranges.len(), out);
    for range in ranges {
        match &range.span {
            Span::Key(key) => {
                out.put_u8(0);
                put_bytes(key, out);
            }
            Span::Range { start, end: None } => {
                out.put_u8(1);
                put_bytes(start, out);
            }
            Span::Range { start, end: Some(end) } => {
                out.put_u8(2);
                put_bytes(start, out);
                put_bytes(end, out);
            }
        }
        put_len(range.members.len(), out);
        range.members.iter().for_each(|member| out.put_u64_le(member.0));
    }
}

/// Takes responder ranges off the front of `buf`.
///
/// # Errors
/// If the bytes end early or hold an unknown tag.
pub fn decode_ranges(buf: &mut Bytes) -> Result<Vec<ResponderRange>, SpecCodecError> {
    let range = |buf: &mut Bytes| {
        let span = match get_u8(buf)? {
            0 => Span::Key(get_bytes(buf)?),
            1 => Span::Range {
                start: get_bytes(buf)?,
                end: None,
            },
            2 => Span::Range {
                start: get_bytes(buf)?,
                end: Some(get_bytes(buf)?),
            },
            tag => return Err(SpecCodecError::Tag(tag)),
        };
        let members = (0..get_len(buf)?)
            .map(|_| get_u64(buf).map(MemberId))
            .collect::<Result<_, _>>()?;
        Ok(ResponderRange { span, members })
    };
    (0..get_len(buf)?).map(|_| range(buf)).collect()
}

/// Appends what revisions tell.
pub fn encode_revisions(revisions: Revisions, out: &mut impl BufMut) {
    out.put_u8(match revisions {
        Revisions::Current => 0,
        Revisions::OfKeys => 1,
    });
}

/// Takes what revisions tell off the front of `buf`.
///
/// # Errors
/// If the bytes end early or hold an unknown tag.
pub fn decode_revisions(buf: &mut Bytes) -> Result<Revisions, SpecCodecError> {
    match get_u8(buf)? {
        0 => Ok(Revisions::Current),
        1 => Ok(Revisions::OfKeys),
        tag => Err(SpecCodecError::Tag(tag)),
    }
}

/// Appends a specification.
pub fn encode_spec(spec: &ReadSpec, out: &mut impl BufMut) {
    out.put_u8(match spec.mode {
        ReadMode::ReadIndex => 0,
        ReadMode::LeaderLease => 1,
        ReadMode::RosterLease => 2,
    });
    encode_revisions(spec.revisions, out);
    out.put_u64_le(nanos(spec.lease));
    match &spec.responders {
        Responders::None => out.put_u8(0),
        Responders::All => out.put_u8(1),
        Responders::Ranges(ranges) => {
            out.put_u8(2);
            encode_ranges(ranges, out);
        }
    }
}

/// Takes a specification off the front of `buf`.
///
/// # Errors
/// If the bytes end early or hold an unknown tag.
pub fn decode_spec(buf: &mut Bytes) -> Result<ReadSpec, SpecCodecError> {
    let mode = match get_u8(buf)? {
        0 => ReadMode::ReadIndex,
        1 => ReadMode::LeaderLease,
        2 => ReadMode::RosterLease,
        tag => return Err(SpecCodecError::Tag(tag)),
    };
    let revisions = decode_revisions(buf)?;
    let lease = Duration::from_nanos(get_u64(buf)?);
    let responders = match get_u8(buf)? {
        0 => Responders::None,
        1 => Responders::All,
        2 => Responders::Ranges(decode_ranges(buf)?),
        tag => return Err(SpecCodecError::Tag(tag)),
    };
    Ok(ReadSpec {
        mode,
        responders,
        revisions,
        lease,
    })
}

/// Bytes that [`encode_spec`] appends.
#[must_use]
pub fn spec_len(spec: &ReadSpec) -> usize {
    let mut count = Vec::new();
    encode_spec(spec, &mut count);
    count.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn spec() -> impl Strategy<Value = ReadSpec> {
        let bytes = || vec(any::<u8>(), 0..6).prop_map(Bytes::from);
        let span = prop_oneof![
            bytes().prop_map(Span::Key),
            (bytes(), proptest::option::of(bytes())).prop_map(|(start, end)| Span::Range { start, end }),
        ];
        let range = (span, btree_set(any::<u64>().prop_map(MemberId), 0..4))
            .prop_map(|(span, members)| ResponderRange { span, members });
        let responders = prop_oneof![
            Just(Responders::None),
            Just(Responders::All),
            vec(range, 0..4).prop_map(Responders::Ranges),
        ];
        let mode = prop_oneof![
            Just(ReadMode::ReadIndex),
            Just(ReadMode::LeaderLease),
            Just(ReadMode::RosterLease)
        ];
        let revisions = prop_oneof![Just(Revisions::Current), Just(Revisions::OfKeys)];
        (mode, responders, revisions, any::<u64>()).prop_map(|(mode, responders, revisions, lease)| ReadSpec {
            mode,
            responders,
            revisions,
            lease: Duration::from_nanos(lease),
        })
    }

    proptest! {
        #[test]
        fn a_specification_comes_back(spec in spec()) {
            let mut out = Vec::new();
            encode_spec(&spec, &mut out);
            prop_assert_eq!(out.len(), spec_len(&spec));
            let mut buf = Bytes::from(out);
            prop_assert_eq!(decode_spec(&mut buf), Ok(spec));
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn a_cut_or_arbitrary_specification_never_panics(spec in spec(), cut: prop::sample::Index, noise in vec(0..4u8, 0..60)) {
            let mut out = Vec::new();
            encode_spec(&spec, &mut out);
            out.truncate(cut.index(out.len()));
            prop_assert!(decode_spec(&mut Bytes::from(out)).is_err());
            let _ = decode_spec(&mut Bytes::from(noise));
        }
    }
}
