//! HTTP/2 frame by frame (RFC 9113), for what no library would send and to see what is sent.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// Of no version.
pub(crate) const UNKNOWN: u8 = 0xbe;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The greatest stream id: in a GOAWAY, "nothing new from you soon, but I take it still".
pub(crate) const NO_STREAM_YET: u32 = 0x7fff_ffff;

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `POST http://echo.shop:80/` in indexes and one literal (RFC 7541 section 6).
pub(crate) fn head() -> Vec<u8> {
    [&[0x83, 0x86, 0x84, 0x01, 12][..], b"echo.shop:80"].concat()
}

/// A gRPC call of this path.
pub(crate) fn grpc_head(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.bytes());
    block.extend([0x01, 12]);
    block.extend(b"echo.shop:80");
    block.extend(literal("content-type", "application/grpc"));
    block.extend(literal("te", "trailers"));
    block
}

/// A literal header without indexing.
pub(crate) fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|n| *n < 127).unwrap();
    let mut header = vec![0, length(name)];
    header.extend(name.bytes());
    header.push(length(value));
    header.extend(value.bytes());
    header
}

/// A whole gRPC answer of one message.
pub(crate) fn answer(stream: u32, message: &[u8]) -> Vec<Vec<u8>> {
    const STATUS_200: u8 = 0x88;
    let head = [
        vec![STATUS_200],
        literal("content-type", "application/grpc"),
    ]
    .concat();
    let trailers = literal("grpc-status", "0");
    vec![
        frame(HEADERS, END_HEADERS, stream, &head),
        frame(DATA, 0, stream, message),
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers),
    ]
}

/// GOAWAY.
pub(crate) fn goaway(last: u32, code: u32) -> Vec<u8> {
    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
    frame(GOAWAY, 0, 0, &payload)
}

/// A frame that came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether it is the last of its stream.
    pub(crate) fn ends(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// Last stream and code of a GOAWAY.
    pub(crate) fn goodbye(&self) -> (u32, u32) {
        let number = |at: usize| u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        (number(0), number(4))
    }
}

/// One side of a connection.
pub(crate) struct Wire<S> {
    stream: S,
    /// Came while another was waited for.
    passed: Vec<Frame>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// The client's side.
    pub(crate) async fn client(stream: S) -> Self {
        let mut wire = Self {
            stream,
            passed: Vec::new(),
        };
        wire.send(&[PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])])
            .await;
        wire
    }

    /// The server's side.
    pub(crate) async fn server(mut stream: S) -> Self {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let mut wire = Self {
            stream,
            passed: Vec::new(),
        };
        wire.send(&[frame(SETTINGS, 0, 0, &[])]).await;
        wire
    }

    pub(crate) async fn send(&mut self, frames: &[Vec<u8>]) {
        self.stream.write_all(&frames.concat()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Data of a stream that came and was not asked for.
    pub(crate) fn data_bytes(&self, stream: u32) -> usize {
        let frames = self.passed.iter();
        let frames = frames.filter(|frame| frame.kind == DATA && frame.stream == stream);
        frames.map(|frame| frame.payload.len()).sum()
    }

    /// The connection itself; what was read is lost.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// The next frame, or `None` when the other side has closed. Settings are acknowledged.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        let frame_read = Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
            payload,
        };
        if frame_read.kind == SETTINGS && frame_read.flags & ACK == 0 {
            self.send(&[frame(SETTINGS, ACK, 0, &[])]).await;
        }
        Some(frame_read)
    }

    /// The first frame like this, whatever comes before it.
    pub(crate) async fn until(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(at) = self.passed.iter().position(&is_wanted) {
            return self.passed.remove(at);
        }
        loop {
            let frame = self.next().await;
            assert!(frame.is_some(), "closed after {:?}", self.passed);
            let frame = frame.unwrap();
            if is_wanted(&frame) {
                return frame;
            }
            self.passed.push(frame);
        }
    }
}

/// The error codes of frames of this kind, in bytes that came.
pub(crate) fn codes(answer: &[u8], kind: u8) -> Vec<u32> {
    let mut codes = Vec::new();
    let mut rest = answer;
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, after)) = after.split_at_checked(length) else {
            break;
        };
        if head[3] == kind {
            let at = if kind == GOAWAY { 4 } else { 0 };
            let code = payload[at..at + 4].try_into().unwrap();
            codes.push(u32::from_be_bytes(code));
        }
        rest = after;
    }
    codes
}
