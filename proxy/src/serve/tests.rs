use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::LocalSet,
};

use super::*;
use crate::intercept::Leg;

/// Never ends, and counts what was taken from it.
struct Endless(Rc<Cell<usize>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.set(self.0.get() + FRAME_BYTES);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; FRAME_BYTES])))))
    }
}

/// What an endpoint sends in one frame.
const FRAME_BYTES: usize = 16 * 1024;
/// Between the sidecar and its caller, standing for the socket's own buffers.
const PIPE_BYTES: usize = 64 * 1024;

/// On one thread whose clock goes on only when nothing else does: [`settled`] then waits for all.
fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn settled() {
    sleep(Duration::from_millis(1)).await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A caller that grants the largest windows, asks for this many endless answers, and reads
/// nothing.
fn greedy(streams: u32) -> Vec<u8> {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const LARGEST: u32 = 0x7fff_ffff;
    let window = [&[0, 4][..], &LARGEST.to_be_bytes()].concat();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &window));
    bytes.extend(frame(
        WINDOW_UPDATE,
        0,
        0,
        &(LARGEST - 65_535).to_be_bytes(),
    ));
    for n in 0..streams {
        // GET http://a/ by indexes and one literal (RFC 7541 section 6); end of head and stream.
        bytes.extend(frame(
            HEADERS,
            5,
            2 * n + 1,
            &[0x82, 0x86, 0x84, 0x01, 1, b'a'],
        ));
    }
    bytes
}

#[test]
fn a_caller_that_grants_windows_and_does_not_read_holds_a_bounded_amount() {
    run(async {
        let taken = Rc::new(Cell::new(0));
        let counts = Rc::clone(&taken);
        let service = service_fn(move |_request| {
            let body = Endless(Rc::clone(&counts));
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let (mut caller, sidecar) = duplex(PIPE_BYTES);
        let connection =
            http2_builder(INBOUND_STREAMS_MAX).serve_connection(TokioIo::new(sidecar), service);
        tokio::task::spawn_local(async move {
            _ = connection.await;
        });
        caller
            .write_all(&greedy(INBOUND_STREAMS_MAX))
            .await
            .unwrap();
        settled().await;
        let stream_bytes = SEND_BUFFER_BYTES_MAX + FRAME_BYTES;
        let bytes_max = INBOUND_STREAMS_MAX as usize * stream_bytes + 2 * PIPE_BYTES;
        let held = taken.get();
        assert!(held <= bytes_max, "{held} of {bytes_max}");
        assert!(bytes_max < 16 * 1024 * 1024);
        // It is still served: what it reads makes room.
        caller
            .read_exact(&mut vec![0; 4 * PIPE_BYTES])
            .await
            .unwrap();
        settled().await;
        assert!(taken.get() > held);
    });
}

#[test]
fn an_endpoint_that_grants_windows_and_does_not_read_holds_a_bounded_amount() {
    run(async {
        let taken = Rc::new(Cell::new(0));
        let (mut endpoint, sidecar) = duplex(PIPE_BYTES);
        // It grants before the first request: no request, but settings and a window.
        let preface_bytes = 24;
        endpoint
            .write_all(&greedy(0)[preface_bytes..])
            .await
            .unwrap();
        let builder = crate::channel::http2_builder(Leg::Outbound);
        let handshake = builder.handshake(TokioIo::new(sidecar)).await;
        let (mut sender, connection) = handshake.unwrap();
        tokio::task::spawn_local(async move {
            _ = connection.await;
        });
        settled().await;
        let uploads = 64;
        for _ in 0..uploads {
            let body = Endless(Rc::clone(&taken));
            let request = Request::post("http://a/").body(body).unwrap();
            let sending = sender.send_request(request);
            tokio::task::spawn_local(async move {
                _ = sending.await;
            });
        }
        settled().await;
        let stream_bytes = SEND_BUFFER_BYTES_MAX + FRAME_BYTES;
        let bytes_max = uploads * stream_bytes + 2 * PIPE_BYTES;
        assert!(taken.get() <= bytes_max, "{} of {bytes_max}", taken.get());
        assert!(taken.get() >= uploads * FRAME_BYTES, "all of them went");
    });
}

#[test]
fn a_caller_of_http1_that_does_not_read_holds_a_bounded_amount() {
    run(async {
        let taken = Rc::new(Cell::new(0));
        let counts = Rc::clone(&taken);
        let mut caller = http1(move |_request| {
            let body = Endless(Rc::clone(&counts));
            async move { body }
        });
        caller.write_all(GET).await.unwrap();
        settled().await;
        let bytes_max = BUFFER_BYTES_MAX + FRAME_BYTES + PIPE_BYTES;
        assert!(taken.get() <= bytes_max, "{} of {bytes_max}", taken.get());
    });
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// The other side of a connection that this service answers, as [`serve`] does.
fn http1<S, F, B>(respond: S) -> DuplexStream
where
    S: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = B> + 'static,
    B: http_body::Body<Data = Bytes, Error = Infallible> + 'static,
{
    let (caller, sidecar) = duplex(PIPE_BYTES);
    let heard = Heard::default();
    let hears = heard.clone();
    let service = service_fn(move |request| {
        hears.took(&request);
        let body = respond(request);
        async move { Ok::<_, Infallible>(Response::new(body.await)) }
    });
    let sidecar = TokioIo::new(Listening::new(sidecar, heard.clone()));
    let connection = http1_builder(&Bounds::default(), &heard).serve_connection(sidecar, service);
    tokio::task::spawn_local(async move {
        _ = connection.await;
    });
    caller
}

/// Sends these pieces, each once the one before has been dealt with; how long it takes then until
/// the connection is closed.
async fn closed_after(pieces: &[&[u8]]) -> Duration {
    let mut caller = http1(|request: Request<Incoming>| async move {
        // Read whole, as an application does.
        _ = request.into_body().collect().await;
        Empty::<Bytes>::new()
    });
    for piece in pieces {
        caller.write_all(piece).await.unwrap();
        settled().await;
    }
    let began = tokio::time::Instant::now();
    caller.read_to_end(&mut Vec::new()).await.unwrap();
    began.elapsed()
}

#[test]
fn a_head_that_has_begun_must_go_on_and_an_idle_connection_need_not() {
    run(async {
        let bounds = Bounds::default();
        let post: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
        let chunked: &[u8] =
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        let begun: &[u8] = b"GET / HTTP/1.1\r\nhost:";
        let joined = |pieces: &[&[u8]]| pieces.concat();
        for (name, pieces, is_idle) in [
            ("nothing", vec![], true),
            ("a first head", vec![begun.to_vec()], false),
            ("one byte", vec![b"G".to_vec()], false),
            (
                "after an exchange",
                vec![GET.to_vec(), begun.to_vec()],
                false,
            ),
            ("with an exchange", vec![joined(&[GET, begun])], false),
            ("idle after an exchange", vec![GET.to_vec()], true),
            ("idle after a body", vec![post.to_vec()], true),
            ("with a body", vec![joined(&[post, begun])], false),
            ("after a body", vec![post.to_vec(), begun.to_vec()], false),
            ("idle after chunks", vec![chunked.to_vec()], true),
            ("with chunks", vec![joined(&[chunked, begun])], false),
            (
                "after chunks",
                vec![chunked.to_vec(), begun.to_vec()],
                false,
            ),
            ("empty lines", vec![joined(&[GET, b"\r\n"])], false),
            (
                "byte by byte",
                GET.iter().map(|byte| vec![*byte]).collect(),
                true,
            ),
            ("pipelined", vec![joined(&[GET, GET, begun])], false),
        ] {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let closed = closed_after(&pieces).await;
            let expected = if is_idle {
                bounds.idle
            } else {
                bounds.header_wait
            };
            let late = expected + Duration::from_millis(100);
            let early = expected - Duration::from_millis(100);
            assert!((early..late).contains(&closed), "{name}: {closed:?}");
        }
    });
}
