//! A small HTTP client that can also say what no client should.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::netns::Namespace;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(8);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head: head.to_owned(), body: body.to_owned() })
    }
}

/// Asks a control socket. `None` if nobody answers.
pub fn get_unix(socket: &Path, path: &str) -> Option<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: marengo\r\nconnection: close\r\n\r\n");
    raw_unix(socket, request.as_bytes())
}

/// Sends these bytes to a control socket, and reads until the end.
pub fn raw_unix(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(WITHIN)).ok()?;
    stream.set_write_timeout(Some(WITHIN)).ok()?;
    exchange(stream, bytes)
}

/// Sends these bytes to an address from inside a namespace, and reads until the end.
pub fn raw_tcp(namespace: &Namespace, address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    namespace.inside(|| {
        let stream = TcpStream::connect_timeout(&address, WITHIN).ok()?;
        stream.set_read_timeout(Some(WITHIN)).ok()?;
        stream.set_write_timeout(Some(WITHIN)).ok()?;
        exchange(stream, bytes)
    })
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Option<Answer> {
    // Whoever refuses a request may close before all of it was sent.
    stream.write_all(bytes).ok();
    let deadline = Instant::now() + WITHIN;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
        }
        if is_complete(&answer) {
            break;
        }
    }
    Answer::parse(&answer)
}

/// Whether the body is as long as the head says.
fn is_complete(bytes: &[u8]) -> bool {
    let Some(answer) = Answer::parse(bytes) else { return false };
    answer
        .head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse::<usize>().ok())
        .is_some_and(|length| answer.body.len() >= length)
}
