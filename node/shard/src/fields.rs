//! Numbers, flags, counts and texts within a frame's body.

use crate::frame::{FrameError, TEXT_BYTES_MAX};
use althing_wal::codec::CodecError;
use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(crate) fn need(buf: &Bytes, what: &'static str, needed: usize) -> Result<(), CodecError> {
    if buf.len() < needed {
        Err(CodecError::Short {
            what,
            needed,
            left: buf.len(),
        })
    } else {
        Ok(())
    }
}

pub(crate) fn get_u64(buf: &mut Bytes, what: &'static str) -> Result<u64, CodecError> {
    need(buf, what, 8)?;
    Ok(buf.get_u64_le())
}

pub(crate) fn get_u8(buf: &mut Bytes, what: &'static str) -> Result<u8, CodecError> {
    need(buf, what, 1)?;
    Ok(buf.get_u8())
}

pub(crate) fn get_bool(buf: &mut Bytes) -> Result<bool, CodecError> {
    match get_u8(buf, "flag")? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(CodecError::Tag { what: "flag", tag }),
    }
}

/// A count or length. Nothing is reserved by it: the items are read one by one, and missing ones end the decoding.
pub(crate) fn get_count(buf: &mut Bytes, what: &'static str) -> Result<usize, CodecError> {
    need(buf, what, 4)?;
    Ok(buf.get_u32_le() as usize)
}

pub(crate) fn put_count(count: usize, out: &mut BytesMut) {
    out.put_u32_le(u32::try_from(count).expect("invariant: counts and lengths in a frame are far below 2^32"));
}

pub(crate) fn get_text(buf: &mut Bytes, what: &'static str) -> Result<String, FrameError> {
    let len = get_count(buf, what)?;
    need(buf, what, len)?;
    if len > TEXT_BYTES_MAX {
        return Err(FrameError::Text(what));
    }
    String::from_utf8(buf.split_to(len).into()).map_err(|_| FrameError::Text(what))
}

/// Writes a text, cut at the limit.
pub(crate) fn put_text(text: &str, out: &mut BytesMut) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_count(end, out);
    out.put_slice(&text.as_bytes()[..end]);
}
