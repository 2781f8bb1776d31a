//! Bodies for the errors that hyper answers by itself.
//!
//! What is no HTTP never reaches a handler: hyper answers a bare `400` (or 414, 431, 505) with
//! `content-length: 0`. No handler of ours answers an error without a body, so such a head is
//! hyper's, and here it gets one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};

const EMPTY: &[u8] = b"content-length: 0\r\n";

/// A stream whose bare error answers get a JSON body.
#[derive(Debug)]
pub(super) struct ExplainedErrors<S> {
    stream: S,
    /// What is still to be written in place of a bare answer.
    explained: Vec<u8>,
}

impl<S> ExplainedErrors<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, explained: Vec::new() }
    }
}

/// The answer with a body, if `head` is a whole bare answer of an error.
fn explain(head: &[u8]) -> Option<Vec<u8>> {
    if !head.starts_with(b"HTTP/1.1 4") && !head.starts_with(b"HTTP/1.1 5") {
        return None;
    }
    let at = head.windows(EMPTY.len()).position(|window| window.eq_ignore_ascii_case(EMPTY))?;
    let status_line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let reason = String::from_utf8_lossy(status_line.get(13..).unwrap_or_default()).to_lowercase();
    let body = format!("{{\"error\":\"the request is no valid HTTP: {reason}\"}}");
    let mut answer = head[..at].to_vec();
    answer.extend(b"content-type: application/json\r\n");
    answer.extend(format!("content-length: {}\r\n", body.len()).into_bytes());
    answer.extend(&head[at + EMPTY.len()..]);
    answer.extend(body.into_bytes());
    Some(answer)
}

impl<S: Write + Unpin> ExplainedErrors<S> {
    fn poll_explained(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.explained.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.explained) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => drop(self.explained.drain(..written)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Write + Unpin> Write for ExplainedErrors<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_explained(cx))?;
        let Some(answer) = explain(bytes) else {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        };
        self.explained = answer;
        // What does not fit the socket now is written by the flush that follows.
        match self.poll_explained(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_explained(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_explained(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Read + Unpin> Read for ExplainedErrors<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_error_gets_a_body() {
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

        let answer = String::from_utf8(explain(bare).unwrap()).unwrap();

        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, r#"{"error":"the request is no valid HTTP: bad request"}"#);
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.ends_with("date: x"));
    }

    #[test]
    fn other_answers_pass() {
        assert_eq!(explain(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(explain(b"HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n{}"), None);
    }
}
