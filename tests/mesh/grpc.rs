//! gRPC of every kind through two sidecars.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use heddle_policy::spiffe::SpiffeId;
use heddle_proxy::{exchange::Spoken, settings::Bounds};
use heddle_shell::task::Tasks;
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc},
    echo::{App, Speaks},
    eventually,
    fault::{Fault, Script},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use http::Request;
use http_body_util::BodyExt;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    WORKERS,
    wire::{
        DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, Wire, answer, frame,
        grpc_head, literal,
    },
};

#[tokio::test]
async fn a_unary_call_passes_with_its_trailers_and_both_identities() {
    for workers in WORKERS {
        let app = App::good(Speaks::Http2).await;
        let plan = Plan {
            workers,
            ..Plan::default()
        };
        let mut pair = Pair::start(app.address, &plan);
        let mut caller = Caller::http2(pair.entry).await;
        for _ in 0..20 {
            let answer = caller.unary("ping").await;
            assert_eq!((answer.status, answer.grpc_status()), (200, Some("0")));
            assert_eq!(answer.body, b"ping");
        }
        assert_eq!(app.script.calls(), 20);
        let (out, inn) = (pair.client.record().await, pair.server.record().await);
        assert_eq!(out.spoken, Spoken::Grpc);
        assert_eq!(
            (out.attempts, out.grpc_status, out.reason),
            (1, Some(0), None)
        );
        assert_eq!(out.peer.id().map(SpiffeId::as_str), Some(ECHO));
        assert_eq!(inn.peer.id().map(SpiffeId::as_str), Some(WEB));
        assert_eq!(out.request_id, inn.request_id);
        let (ours, theirs) = (out.trace.unwrap(), inn.trace.unwrap());
        assert_eq!(ours.trace_id, theirs.trace_id);
        assert_eq!(theirs.parent_id, Some(ours.span_id));
    }
}

#[tokio::test]
async fn the_first_sidecar_samples_and_those_behind_it_follow() {
    let app = App::good(Speaks::Http2).await;
    for (sampled_share, is_sampled) in [(0.0, false), (1.0, true)] {
        let bounds = Bounds {
            sampled_share,
            ..Bounds::default()
        };
        let mut pair = Pair::start(
            app.address,
            &Plan {
                bounds,
                ..Plan::default()
            },
        );
        let mut caller = Caller::http2(pair.entry).await;
        for _ in 0..20 {
            caller.unary("ping").await;
            for sidecar in [&mut pair.client, &mut pair.server] {
                let trace = sidecar.record().await.trace.unwrap();
                assert_eq!(trace.is_sampled, is_sampled);
            }
        }
    }
}

#[tokio::test]
async fn messages_stream_both_ways_as_they_come() {
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let (feed, body) = Feed::channel();
    let mut response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
    for message in ["one", "two", "three"] {
        feed.send(Bytes::from(message)).await.unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(feed);
    let answer = Answer::read(response).await.unwrap();
    assert_eq!(answer.grpc_status(), Some("0"));
}

#[tokio::test]
async fn a_client_streams_and_gets_one_answer() {
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let (feed, body) = Feed::channel();
    let feeding = async move {
        for _ in 0..1000 {
            feed.send(Bytes::from_static(b"twelve bytes"))
                .await
                .unwrap();
        }
    };
    let ((), answer) = tokio::join!(feeding, caller.call(grpc("/echo.Echo/Sum", body)));
    assert_eq!(
        (answer.grpc_status(), answer.body.as_slice()),
        (Some("0"), &b"12000"[..])
    );
}

#[tokio::test]
async fn a_server_streams_its_answers() {
    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let mut request = grpc("/echo.Echo/Repeat", Feed::of("twelve bytes"));
    request
        .headers_mut()
        .insert("x-repeat", "1000".parse().unwrap());
    let answer = caller.call(request).await;
    assert_eq!(
        (answer.grpc_status(), answer.body.len()),
        (Some("0"), 12_000)
    );
    assert_eq!(pair.client.record().await.bytes_sent, 12_000);
}

#[tokio::test]
async fn a_trailers_only_error_stays_trailers_only() {
    let app = App::start(Speaks::Http2, Script::new([Fault::GrpcStatus(5)])).await;
    let pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let answer = caller.unary("ping").await;
    assert_eq!(answer.headers["grpc-status"], "5");
    assert!(answer.trailers.is_empty());
    assert_eq!(answer.reason(), None);
}

#[tokio::test]
async fn a_cancellation_reaches_the_application() {
    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let (feed, body) = Feed::channel();
    let mut response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
    feed.send(Bytes::from("one")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(app.script.cancelled(), 0);
    drop(response);
    drop(feed);
    eventually(|| app.script.cancelled() == 1).await;
    assert_eq!(pair.client.record().await.reason, Some("cancelled"));
    assert_eq!(pair.server.record().await.reason, Some("cancelled"));
}

#[tokio::test]
async fn a_cancelled_wait_for_the_head_reaches_the_application_too() {
    let app = App::start(Speaks::Http2, Script::new([Fault::Hang])).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    {
        let mut calling = std::pin::pin!(caller.unary("ping"));
        tokio::select! {
            _ = calling.as_mut() => panic!("the application hangs"),
            () = eventually(|| app.script.calls() == 1) => {}
        }
    }
    eventually(|| app.script.cancelled() == 1).await;
    assert_eq!(pair.client.record().await.reason, Some("cancelled"));
}

/// Some callers stop reading; all requests to the endpoint share one connection.
#[tokio::test]
async fn stalled_readers_do_not_stop_the_others() {
    const STALLED: usize = 2;
    /// Far more than all windows and buffers on the way hold.
    const BLOCKS: usize = 1024;
    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    let block = Bytes::from(vec![7; 64 * 1024]);
    let (mut stalled, mut feeding) = (Vec::new(), Tasks::new());
    let fed = Arc::<AtomicUsize>::default();
    for _ in 0..STALLED {
        let (feed, body) = Feed::channel();
        stalled.push(caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap());
        let (fed, block) = (Arc::clone(&fed), block.clone());
        feeding.spawn("feed", async move {
            for _ in 0..BLOCKS {
                feed.send(block.clone()).await.unwrap();
                fed.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    // Until every window and buffer on the way is full: nothing more goes in during many calls.
    let mut other = Caller::http2(pair.entry).await;
    let mut before = usize::MAX;
    while before != fed.load(Ordering::SeqCst) {
        before = fed.load(Ordering::SeqCst);
        for _ in 0..100 {
            assert_eq!(other.unary("ping").await.grpc_status(), Some("0"));
        }
    }
    assert!((1..STALLED * BLOCKS).contains(&before), "{before}");
    for _ in 0..20 {
        // Over the very connection of those who stall, and over another.
        assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
        assert_eq!(other.unary("ping").await.grpc_status(), Some("0"));
    }
    while let Ok(record) = pair.client.records.try_recv() {
        assert_eq!(record.attempts, 1);
    }
    // What they did not read was held, not lost.
    for response in stalled {
        let answer = Answer::read(response).await.unwrap();
        assert_eq!(answer.grpc_status(), Some("0"));
        assert_eq!(answer.body.len(), BLOCKS * block.len());
    }
}

/// A call whose answer is a MiB.
fn large_answer() -> Request<Feed> {
    let mut request = grpc("/echo.Echo/Repeat", Feed::of(vec![7; 1024]));
    let headers = request.headers_mut();
    headers.insert("x-repeat", "1024".parse().unwrap());
    request
}

/// Callers share the connection from their endpoint's sidecar to the application. Some of them do
/// not read at all, and what is kept for them would fill several such connections.
#[tokio::test]
async fn stalled_readers_of_many_callers_do_not_starve_those_who_read() {
    const STALLED: u32 = 8;
    const STREAMS: u32 = 32;
    let app = App::good(Speaks::Http2).await;
    let authority = Authority::new();
    let web = authority.credentials(WEB);
    let plan = Plan::default();
    let pair = Pair::with(web.clone(), authority.credentials(ECHO), app.address, &plan);
    let mut caller = Caller::http2(pair.entry).await;
    // This one was there before them.
    let (feed, body) = Feed::channel();
    let mut begun = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
    let mut stalled = Vec::new();
    let nothing = [&[0, 4][..], &0u32.to_be_bytes()].concat();
    let mut block = grpc_head("/echo.Echo/Repeat");
    block.extend(literal("x-repeat", "1024"));
    for _ in 0..STALLED {
        let stream = mesh::dial_as(&web, pair.inbound, b"heddle-h2").await;
        let mut wire = Wire::client(stream).await;
        wire.send(&[frame(SETTINGS, 0, 0, &nothing)]).await;
        for n in 0..STREAMS {
            wire.send(&[
                frame(HEADERS, END_HEADERS, 2 * n + 1, &block),
                frame(DATA, END_STREAM, 2 * n + 1, &[7; 1024]),
            ])
            .await;
        }
        stalled.push(wire);
    }
    eventually(|| app.script.calls() == 1 + (STALLED * STREAMS) as usize).await;
    let reading = async {
        for _ in 0..30 {
            let answer = caller.call(large_answer()).await;
            assert_eq!(answer.grpc_status(), Some("0"));
            feed.send(Bytes::from("more")).await.unwrap();
            let frame = begun.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "more");
        }
    };
    let read = tokio::time::timeout(Duration::from_mins(1), reading);
    read.await.expect("nobody waits for those who stall");
    // They did not read, and get it all when they do.
    for wire in &mut stalled {
        let window = (1u32 << 20).to_be_bytes();
        wire.send(&[
            frame(WINDOW_UPDATE, 0, 0, &window),
            frame(WINDOW_UPDATE, 0, 1, &window),
        ])
        .await;
        let last = wire.until(|frame| frame.stream == 1 && frame.ends()).await;
        assert_eq!(last.kind, HEADERS, "trailers");
        assert_eq!(wire.data_bytes(1), 1 << 20);
    }
}

/// Where the application takes no further connection, its callers share the one that there is.
#[tokio::test]
async fn an_application_with_one_connection_takes_every_call_over_it() {
    const CALLS: usize = 80;
    let listener = TcpListener::bind(mesh::any()).await.unwrap();
    let pair = Pair::start(listener.local_addr().unwrap(), &Plan::default());
    let call = async || {
        let answer = Caller::http2(pair.entry).await.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("0"), "{answer:?}");
    };
    let (connected, is_connected) = oneshot::channel();
    let answering = async {
        let (stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut wire = Wire::server(stream).await;
        let mut open = Vec::new();
        open.push(wire.until(|frame| frame.kind == HEADERS).await.stream);
        connected.send(()).unwrap();
        // None is answered before all are there.
        while open.len() < CALLS {
            open.push(wire.until(|frame| frame.kind == HEADERS).await.stream);
        }
        for stream in open {
            wire.send(&answer(stream, b"pong")).await;
        }
        wire
    };
    let others = async {
        is_connected.await.unwrap();
        join_all((1..CALLS).map(async |_| call().await)).await
    };
    let calling = async { tokio::join!(call(), others) };
    tokio::join!(answering, calling);
}
