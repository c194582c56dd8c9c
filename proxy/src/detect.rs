//! What a client speaks, told from its first bytes, and a stream that gives those bytes back.
//!
//! Only bytes decide, each connection's own: nothing is remembered, silence least of all.

use std::{
    fmt, io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};

use heddle_relay::relay::Speaks;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A request line of HTTP/1.0 or 1.1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// The beginning of a TLS handshake.
    Tls,
    /// Something else, or the beginning of something that did not go on in time.
    Other,
    /// Nothing in time.
    Silence,
    /// The client closed its side without a byte.
    Closed,
}

/// What a connection of undeclared protocol carries.
#[derive(Debug)]
pub enum Told<T> {
    /// HTTP.
    Http(Speaks),
    /// Anything else, or nothing so far; with what was dialled for it.
    Bytes(T),
    /// Nothing any more: the client has left without a byte.
    Nothing,
}

/// A stream with the bytes that were read ahead of their reader.
pub struct Rewound<S> {
    ahead: BytesMut,
    stream: S,
}

impl<S: AsyncRead + Unpin> Rewound<S> {
    /// Nothing read yet.
    pub fn new(stream: S) -> Self {
        Self {
            ahead: BytesMut::new(),
            stream,
        }
    }

    /// What is below.
    pub fn inner(&self) -> &S {
        &self.stream
    }

    /// The bytes read ahead, and what is below.
    pub fn into_parts(self) -> (BytesMut, S) {
        (self.ahead, self.stream)
    }

    /// The bytes read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads more ahead; 0 is the end, also when [`AHEAD_BYTES_MAX`] is reached.
    pub async fn read_ahead(&mut self) -> io::Result<usize> {
        let left = AHEAD_BYTES_MAX.saturating_sub(self.ahead.len());
        if left == 0 {
            return Ok(0);
        }
        self.ahead.reserve(left.min(READ_BYTES));
        self.stream.read_buf(&mut self.ahead).await
    }

    /// Whether a first byte comes within `wait`.
    pub async fn begins_within(&mut self, wait: Duration) -> bool {
        let began = timeout(wait, self.read_ahead()).await;
        matches!(began, Ok(Ok(1..)))
    }

    /// What the client speaks, within `wait`. Takes nothing from the stream.
    pub async fn sniff(&mut self, wait: Duration) -> io::Result<Seen> {
        let decided = timeout(wait, async {
            loop {
                if let Some(seen) = classify(&self.ahead) {
                    return Ok(seen);
                }
                if self.read_ahead().await? == 0 {
                    return Ok(if self.ahead.is_empty() {
                        Seen::Closed
                    } else {
                        Seen::Other
                    });
                }
            }
        })
        .await;
        match decided {
            Ok(seen) => seen,
            Err(_late) if self.ahead.is_empty() => Ok(Seen::Silence),
            Err(_late) => Ok(Seen::Other),
        }
    }

    /// What the client speaks, when nobody has declared it. The other side may be the one to
    /// speak first, so after a moment it is dialled beside the waiting; for HTTP that dial is
    /// given up.
    pub async fn tell<T>(&mut self, wait: Duration, dial: impl Future<Output = T>) -> Told<T> {
        let mut dial = pin!(dial);
        let mut dialled = None;
        let seen = {
            let mut seeing = pin!(self.sniff(wait));
            tokio::select! {
                biased; // Bytes that are there already need no dial.
                seen = seeing.as_mut() => seen,
                done = async {
                    sleep(HEAD_START).await;
                    dial.as_mut().await
                } => {
                    dialled = Some(done);
                    seeing.await
                }
            }
        };
        match seen {
            Ok(Seen::Http1) => Told::Http(Speaks::Http1),
            Ok(Seen::Http2) => Told::Http(Speaks::Http2),
            Ok(Seen::Tls | Seen::Other | Seen::Silence) => Told::Bytes(match dialled {
                Some(dialled) => dialled,
                None => dial.await,
            }),
            Ok(Seen::Closed) | Err(_) => Told::Nothing,
        }
    }
}

/// `None` while more bytes are needed.
fn classify(bytes: &[u8]) -> Option<Seen> {
    if PREFACE.starts_with(bytes) || bytes.starts_with(PREFACE) {
        return (bytes.len() >= PREFACE.len()).then_some(Seen::Http2);
    }
    // Handshake record of SSL 3.0 or later (RFC 8446 section 5.1).
    if bytes[0] == 0x16 {
        return match bytes.get(1) {
            None => None,
            Some(3) => Some(Seen::Tls),
            Some(_) => Some(Seen::Other),
        };
    }
    classify_request_line(bytes)
}

/// A method in capitals, a target, and `HTTP/1.`: without the version at the end of the line it
/// is not taken for HTTP, because many text protocols start with an upper-case word.
fn classify_request_line(bytes: &[u8]) -> Option<Seen> {
    let method = bytes
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'))
        .count();
    if method > METHOD_BYTES_MAX || (method < bytes.len() && (method == 0 || bytes[method] != b' '))
    {
        return Some(Seen::Other);
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return (bytes.len() >= AHEAD_BYTES_MAX).then_some(Seen::Other);
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let is_http = line.len() > VERSION.len() + 1
        && line[..line.len() - 1].ends_with(VERSION)
        && matches!(line.last(), Some(b'0' | b'1'));
    Some(if is_http { Seen::Http1 } else { Seen::Other })
}

/// What was read is nobody's business.
impl<S: fmt::Debug> fmt::Debug for Rewound<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Rewound");
        shown
            .field("ahead_bytes", &self.ahead.len())
            .field("stream", &self.stream)
            .finish()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let n = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const VERSION: &[u8] = b" HTTP/1.";
/// Longest method that is taken for one; the registry's longest has 17 letters.
const METHOD_BYTES_MAX: usize = 32;
/// Most bytes read ahead: a long request line, or a ClientHello with post-quantum key shares.
pub const AHEAD_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 4096;
/// For the bytes of a client that speaks first: they follow its handshake at once. It costs
/// nobody anything, as long as a dial is faster than the rest of the wait.
const HEAD_START: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<Seen>) {
        assert_eq!(classify(bytes), expected, "{}", bytes.escape_ascii());
    }

    #[test]
    fn a_protocol_is_told_from_the_earliest_bytes_that_prove_it() {
        check(b"", None);
        check(b"P", None);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(Seen::Http2));
        check(b"GET / HTTP/1.1", None);
        check(b"GET / HTTP/1.1\r\nHost: a", Some(Seen::Http1));
        check(b"VERSION-CONTROL /x HTTP/1.0\n", Some(Seen::Http1));
        check(&[0x16], None);
        check(&[0x16, 3, 1], Some(Seen::Tls));
    }

    #[test]
    fn what_only_resembles_http_is_not_http() {
        check(b"GET /\r\n", Some(Seen::Other));
        check(b"SELECT 1\n", Some(Seen::Other));
        check(b"GET / HTTP/2.0\r\n", Some(Seen::Other));
        check(b"GET / HTTP/1.12\r\n", Some(Seen::Other));
        check(b"get / HTTP/1.1\r\n", Some(Seen::Other));
        check(b"HTTP/1.1\r\n", Some(Seen::Other));
        check(b" GET / HTTP/1.1\r\n", Some(Seen::Other));
        check(&[0x16, 2], Some(Seen::Other));
        check(&[b'A'; 40], Some(Seen::Other));
        check(&[0], Some(Seen::Other));
    }
}
