//! The `h2` crate's server, polled by hand over a pipe in memory.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};

use crate::{Heard, Stream};

/// A request whose body is being read. What answers it is kept: without it the stream is reset.
struct Open {
    id: u32,
    body: RecvStream,
    _answer: SendResponse<Bytes>,
}

pub(crate) fn hear(bytes: &[u8]) -> Heard {
    let mut context = Context::from_waker(Waker::noop());
    let (mut client, server) = tokio::io::duplex(PIPE_BYTES);
    let written = Pin::new(&mut client).poll_write(&mut context, bytes);
    assert!(matches!(written, Poll::Ready(Ok(n)) if n == bytes.len()));
    let mut builder = h2::server::Builder::new();
    builder
        .enable_connect_protocol()
        .max_header_list_size(65_536);
    let handshake = pin!(builder.handshake::<_, Bytes>(server));
    let mut heard = Heard::default();
    let Poll::Ready(Ok(mut connection)) = Future::poll(handshake, &mut context) else {
        return heard;
    };
    let mut open = Vec::new();
    let mut is_over = false;
    for _ in 0..ROUNDS {
        if !is_over {
            match connection.poll_accept(&mut context) {
                Poll::Ready(Some(Ok((request, answer)))) => {
                    open.push(accept(&mut heard, request, answer));
                }
                Poll::Ready(Some(Err(_)) | None) => is_over = true,
                Poll::Pending => {}
            }
        }
        for open in &mut open {
            read(&mut heard, open, &mut context);
        }
    }
    // What it has to say about its end.
    let _ = connection.poll_closed(&mut context);
    heard.frames(&output(&mut client, &mut context));
    heard
}

fn accept(heard: &mut Heard, request: Request<RecvStream>, answer: SendResponse<Bytes>) -> Open {
    let id = answer.stream_id().as_u32();
    let (parts, body) = request.into_parts();
    let mut head = fields(&parts.headers);
    let mut pseudo = |name: &str, value: &str| {
        head.push((name.to_owned(), value.as_bytes().to_vec()));
    };
    pseudo(":method", parts.method.as_str());
    if let Some(scheme) = parts.uri.scheme_str() {
        pseudo(":scheme", scheme);
    }
    if let Some(authority) = parts.uri.authority() {
        pseudo(":authority", authority.as_str());
    }
    if let Some(path) = parts.uri.path_and_query() {
        pseudo(":path", path.as_str());
    }
    head.sort();
    let stream = Stream {
        head,
        is_ended: body.is_end_stream(),
        ..Stream::default()
    };
    heard.streams.insert(id, stream);
    Open {
        id,
        body,
        _answer: answer,
    }
}

fn read(heard: &mut Heard, open: &mut Open, context: &mut Context<'_>) {
    let it = heard.streams.get_mut(&open.id).expect("it was accepted");
    while let Poll::Ready(Some(Ok(data))) = open.body.poll_data(context) {
        it.body.extend_from_slice(&data);
        let _ = open.body.flow_control().release_capacity(data.len());
    }
    if let Poll::Ready(Ok(Some(trailers))) = open.body.poll_trailers(context) {
        it.trailers = Some(fields(&trailers));
    }
    it.is_ended |= open.body.is_end_stream();
}

fn fields(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let fields = map
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let mut fields: Vec<_> = fields.collect();
    fields.sort();
    fields
}

fn output(client: &mut DuplexStream, context: &mut Context<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let mut buffer = ReadBuf::new(&mut chunk);
        let read = Pin::new(&mut *client).poll_read(context, &mut buffer);
        if !matches!(read, Poll::Ready(Ok(()))) || buffer.filled().is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(buffer.filled());
    }
}

/// Larger than any script, and than any answer to it.
const PIPE_BYTES: usize = 1 << 20;
/// Polls after which nothing changes any more.
const ROUNDS: usize = 60;
