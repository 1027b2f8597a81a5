//! Frames over a socket.

use althing_shard::frame::{Frame, FrameError, HEADER_BYTES, Header};
use bytes::BytesMut;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes that are read from a socket at once: small frames come in groups.
pub const READ_BUFFER_BYTES: usize = 64 << 10;

/// Why a peer connection ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The bytes.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side said something that does not belong here.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    /// The other side said no.
    #[error("{0}")]
    Refused(String),
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
}

/// Reads one frame; says how many bytes it had.
///
/// # Errors
/// If the connection ends or the bytes are no frame.
pub async fn read_frame(socket: &mut (impl AsyncRead + Unpin)) -> Result<(Frame, usize), WireError> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).await?;
    read_body(socket, Header::decode(header)?).await
}

/// Bytes of a first frame: nobody gets more memory before it has said who it is.
const HELLO_BYTES_MAX: usize = 4 << 10;

/// Reads the first frame of a connection.
///
/// # Errors
/// As `read_frame`, and if it is far too long for a hello.
pub async fn read_hello(socket: &mut (impl AsyncRead + Unpin)) -> Result<Frame, WireError> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).await?;
    let header = Header::decode(header)?;
    if header.len > HELLO_BYTES_MAX {
        return Err(FrameError::TooLong(header.len).into());
    }
    read_body(socket, header).await.map(|(frame, _)| frame)
}

async fn read_body(socket: &mut (impl AsyncRead + Unpin), header: Header) -> Result<(Frame, usize), WireError> {
    let mut body = BytesMut::zeroed(header.len);
    socket.read_exact(&mut body).await?;
    Ok((header.decode_body(body.freeze())?, HEADER_BYTES + header.len))
}

/// Writes one frame.
///
/// # Errors
/// If the connection ends.
pub async fn write_frame(socket: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<usize, WireError> {
    let bytes = frame.encode();
    socket.write_all(&bytes).await?;
    Ok(bytes.len())
}
