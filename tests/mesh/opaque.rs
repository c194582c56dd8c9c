//! Opaque connections.

use heddle_policy::snapshot::Protocol;
use heddle_tests::{
    echo::{App, Speaks},
    mesh::{Pair, Plan},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn plan() -> Plan {
    Plan {
        protocol: Protocol::Tcp,
        ..Plan::default()
    }
}

#[tokio::test]
async fn bytes_and_the_half_close_pass() {
    let app = App::good(Speaks::Bytes).await;
    let mut pair = Pair::start(app.address, &plan());
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    let sent = vec![7; 300_000];
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let (wrote, got) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    wrote.unwrap();
    got.unwrap();
    assert_eq!(back, sent);
    let record = pair.client.record().await;
    assert_eq!(
        (record.bytes_received, record.bytes_sent),
        (300_000, 300_000)
    );
    assert_eq!(record.reason, None);
}

#[tokio::test]
async fn an_application_that_speaks_first_is_heard() {
    let app = App::good(Speaks::BytesServerFirst).await;
    let pair = Pair::start(app.address, &plan());
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello\n");
}
