//! As much HTTP as the members' admin API asks for: one request, one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One call; a membership change waits for a quorum at most this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// A status is some kilobytes, a layout some hundred bytes for each of its shards, of which there are 16384 at most.
const ANSWER_LIMIT: u64 = 16 << 20;

/// Calls and gives the body of a good answer.
///
/// # Errors
/// A sentence: no connection, or the status and body of a refusal.
pub(super) fn call(method: &str, addr: SocketAddr, path: &str, body: &str) -> Result<String, String> {
    let exchange = || {
        let mut socket = TcpStream::connect_timeout(&addr, CALL_LIMIT)?;
        socket.set_read_timeout(Some(CALL_LIMIT))?;
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.take(ANSWER_LIMIT).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error: std::io::Error| format!("{addr}{path}: {error}"))?;
    parse(&answer).map_err(|refusal| format!("{addr}{path}: {refusal}"))
}

fn parse(answer: &str) -> Result<String, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no body")?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code.starts_with('2') {
        Ok(body.to_owned())
    } else {
        Err(format!("{code} {body}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_answer_gives_its_body_and_a_refusal_its_words() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}"), Ok("{}".to_owned()));
        assert_eq!(
            parse("HTTP/1.1 409 Conflict\r\n\r\nnot caught up"),
            Err("409 not caught up".to_owned())
        );
    }
}
