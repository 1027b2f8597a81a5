//! gRPC calls with one message each way, read and answered without tonic's machinery for streams.
//!
//! The calls that a key-value server spends its life with pay for generality in tonic: boxed services, boxed bodies and a codec for
//! streams, about a third of the processor time of a call. What is here is the same protocol
//! (gRPC over HTTP/2, PROTOCOL-HTTP2.md) for the simple case; compressed messages and everything unusual go to tonic.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use prost::Message;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Before each message: a flag for compression and the length.
const PREFIX_BYTES: usize = 5;
/// How a client says how long it will wait.
const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";
const ENCODING: &str = "grpc-encoding";

/// Whether a request is of the simple kind: gRPC, and not compressed.
pub(crate) fn is_simple<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let grpc = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let plain = headers.get(ENCODING).is_none_or(|encoding| encoding == "identity");
    request.method() == http::Method::POST && grpc && plain
}

/// How long the client waits, if it says so. What is no time is ignored, as tonic and Go's gRPC do.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    /// The protocol's own limit.
    const DIGITS_MAX: usize = 8;
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// Reads the one message of a request.
pub(crate) async fn read<B, M>(request: Request<B>, bytes_max: usize) -> Result<tonic::Request<M>, Status>
where
    B: Body<Data = Bytes> + Unpin,
    M: Message + Default,
{
    let (parts, mut body) = request.into_parts();
    let mut message = Gathered::default();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        // The connection broke, or the client gave up: nobody reads the answer.
        let frame = frame.map_err(|_| Status::cancelled("the request ended early"))?;
        if let Ok(data) = frame.into_data() {
            message.add(data, bytes_max)?;
        }
    }
    let message = M::decode(message.finish()?).map_err(|error| Status::internal(error.to_string()))?;
    Ok(tonic::Request::from_parts(
        MetadataMap::from_headers(parts.headers),
        tonic::Extensions::default(),
        message,
    ))
}

/// The bytes of a message as they come. Mostly they come at once, and are not copied then.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    rest: BytesMut,
}

impl Gathered {
    fn add(&mut self, data: Bytes, bytes_max: usize) -> Result<(), Status> {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = data;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.rest.extend_from_slice(&data);
        }
        // As soon as the length is known, before a byte more is taken.
        match self.announced() {
            // Go's gRPC, hence etcd, says it like this.
            Some(len) if len > bytes_max => Err(Status::resource_exhausted("grpc: received message larger than max")),
            Some(_) | None => Ok(()),
        }
    }

    fn bytes(&self) -> &[u8] {
        if self.rest.is_empty() { &self.first } else { &self.rest }
    }

    fn announced(&self) -> Option<usize> {
        let prefix = self.bytes().get(1..PREFIX_BYTES)?;
        let len = u32::from_be_bytes(prefix.try_into().expect("invariant: four bytes"));
        Some(len as usize)
    }

    fn finish(self) -> Result<Bytes, Status> {
        let announced = self.announced();
        let mut bytes = if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        };
        // Without a whole prefix nothing is announced.
        if announced.is_none() || announced != bytes.len().checked_sub(PREFIX_BYTES) {
            return Err(Status::internal("the request is not one message"));
        }
        if bytes.get_u8() != 0 {
            return Err(Status::internal(
                "the message is compressed and the request does not say how",
            ));
        }
        bytes.advance(PREFIX_BYTES - 1);
        Ok(bytes)
    }
}

/// An answer with its message, or with the refusal alone.
pub(crate) fn answer<M: Message>(outcome: Result<tonic::Response<M>, Status>) -> Response<Answer> {
    match outcome {
        Ok(response) => {
            let message = response.into_inner();
            let len = message.encoded_len();
            let mut out = BytesMut::with_capacity(PREFIX_BYTES + len);
            out.put_u8(0);
            match u32::try_from(len) {
                Ok(len) => out.put_u32(len),
                Err(_) => {
                    return refusal(&Status::resource_exhausted(
                        "grpc: trying to send message larger than max",
                    ));
                }
            }
            message.encode_raw(&mut out);
            let mut response = Response::new(Answer::Message(Some(out.freeze()), true));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => refusal(&status),
    }
}

/// An answer that is a status and nothing else.
pub(crate) fn refusal(status: &Status) -> Response<Answer> {
    status.clone().into_http::<tonic::body::Body>().map(Answer::Other)
}

/// The body of an answer.
pub enum Answer {
    /// One message that is still to be sent, and whether the trailers are.
    Message(Option<Bytes>, bool),
    /// Whatever tonic or axum made.
    Other(tonic::body::Body),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Message(message, trailers) => Poll::Ready(match message.take() {
                Some(message) => Some(Ok(Frame::data(message))),
                None if *trailers => {
                    *trailers = false;
                    let mut map = HeaderMap::with_capacity(1);
                    map.insert(STATUS, HeaderValue::from_static("0"));
                    Some(Ok(Frame::trailers(map)))
                }
                None => None,
            }),
            Self::Other(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_, trailers) => !trailers,
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Not exact: a length would be announced, and the trailers would not fit it.
            Self::Message(..) => SizeHint::default(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(pieces: &[&[u8]]) -> Result<Bytes, Status> {
        let mut gathered = Gathered::default();
        for piece in pieces {
            gathered.add(Bytes::copy_from_slice(piece), 10)?;
        }
        gathered.finish()
    }

    #[test]
    fn a_message_is_whole_however_it_was_cut() {
        let whole: &[u8] = &[0, 0, 0, 0, 3, 7, 8, 9];
        for at in 0..whole.len() {
            let (left, right) = whole.split_at(at);
            assert_eq!(gather(&[left, right]).unwrap()[..], [7, 8, 9], "cut at {at}");
        }
        assert_eq!(gather(&[&[0, 0, 0, 0, 0]]).unwrap().len(), 0);
    }

    #[test]
    fn what_is_no_single_plain_message_within_the_limit_is_refused() {
        for wrong in [
            &[][..],
            &[0, 0, 0],
            &[0, 0, 0, 0, 3, 7],
            &[0, 0, 0, 0, 1, 7, 8],
            &[1, 0, 0, 0, 1, 7],
            &[0, 0, 0, 0, 11],
            &[0, 255, 255, 255, 255],
        ] {
            assert!(gather(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "5", "5x", "-5S", "123456789S", "5é"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
