//! A denial cuts what is open, on either side, whatever it carries.

use bytes::Bytes;
use heddle_policy::snapshot::Protocol;
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc, http1_request},
    echo::{App, Speaks},
    mesh::{ECHO, Pair, Plan, Sidecar, WEB},
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Who learns of the denial, and of whom.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Client, Self::Server];

    fn deny(self, pair: &Pair, id: [&str; 2]) {
        let (sidecar, id): (&Sidecar, _) = match self {
            Self::Client => (&pair.client, id[0]),
            Self::Server => (&pair.server, id[1]),
        };
        sidecar.deny(id);
    }
}

/// The other side of each.
const OTHERS: [&str; 2] = [ECHO, WEB];
/// Nobody on this connection.
const STRANGERS: [&str; 2] = ["spiffe://td/ns/shop/sa/stranger"; 2];

#[tokio::test]
async fn an_open_stream_ends_and_the_next_request_is_refused() {
    for side in Side::BOTH {
        let app = App::good(Speaks::Http2).await;
        let pair = Pair::start(app.address, &Plan::default());
        let mut caller = Caller::http2(pair.entry).await;
        let (feed, body) = Feed::channel();
        let mut response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
        // Somebody else's denial is no business of this stream.
        side.deny(&pair, STRANGERS);
        for _ in 0..3 {
            feed.send(Bytes::from("still here")).await.unwrap();
            response.body_mut().frame().await.unwrap().unwrap();
        }
        side.deny(&pair, OTHERS);
        let answer = Answer::read(response).await.unwrap();
        assert_eq!(answer.grpc_status(), Some("14"));
        assert_eq!(answer.reason(), Some("reset"));
        let answer = caller.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("14"), "{answer:?}");
        assert_eq!(app.script.calls(), 1);
    }
}

#[tokio::test]
async fn an_idle_connection_ends_and_leaves_a_record() {
    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    assert_eq!(pair.server.record().await.reason, None);
    Side::Server.deny(&pair, STRANGERS);
    Side::Server.deny(&pair, OTHERS);
    let record = pair.server.record().await;
    assert_eq!(record.reason, Some("denied"), "{record:?}");
    assert!(record.path.is_empty(), "{record:?}");
}

#[tokio::test]
async fn an_opaque_connection_ends() {
    for side in Side::BOTH {
        let app = App::good(Speaks::Bytes).await;
        let plan = Plan {
            protocol: Protocol::Tcp,
            ..Plan::default()
        };
        let mut pair = Pair::start(app.address, &plan);
        let mut stream = TcpStream::connect(pair.entry).await.unwrap();
        let mut back = [0; 4];
        side.deny(&pair, STRANGERS);
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
        side.deny(&pair, OTHERS);
        assert!(matches!(stream.read(&mut back).await, Ok(0) | Err(_)));
        let sidecar = match side {
            Side::Client => &mut pair.client,
            Side::Server => &mut pair.server,
        };
        assert_eq!(sidecar.record().await.reason, Some("denied"));
    }
}

#[tokio::test]
async fn an_upgraded_connection_ends() {
    for side in Side::BOTH {
        let app = App::good(Speaks::Http1).await;
        let plan = Plan {
            protocol: Protocol::Http1,
            ..Plan::default()
        };
        let pair = Pair::start(app.address, &plan);
        let mut caller = Caller::http1(pair.entry).await;
        let mut request = http1_request("GET", "/socket", Feed::empty());
        let headers = request.headers_mut();
        headers.insert("connection", "Upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        let mut response = caller.send(request).await.unwrap();
        let stream = hyper::upgrade::on(&mut response).await.unwrap();
        let mut stream = TokioIo::new(stream);
        let mut back = [0; 4];
        side.deny(&pair, STRANGERS);
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
        side.deny(&pair, OTHERS);
        assert!(matches!(stream.read(&mut back).await, Ok(0) | Err(_)));
    }
}
