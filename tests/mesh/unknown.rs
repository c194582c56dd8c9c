//! What becomes of connections to what nobody has described: not yet, or not at all.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use heddle_policy::snapshot::{DestinationKey, Outbound, Snapshot, UnknownDestination};
use heddle_proxy::settings::{Bounds, InboundListeners, OutboundListeners, OutboundPort, Settings};
use heddle_tests::{
    echo::{App, Speaks},
    mesh::{self, Authority, Sidecar, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Enough to be sure that nobody answers, and for whoever does on a busy machine.
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(30);

/// A sidecar whose one listener leads to `address`.
fn leading_to(address: SocketAddr, snapshot: Snapshot, lookup_wait: Duration) -> Sidecar {
    let settings = Settings {
        workers: NonZeroUsize::MIN,
        outbound: OutboundListeners {
            fixed: vec![OutboundPort {
                listen: mesh::any(),
                destination: DestinationKey::Address(address),
            }],
            ..OutboundListeners::default()
        },
        inbound: InboundListeners::default(),
        bounds: Bounds {
            lookup_wait,
            ..Bounds::default()
        },
    };
    Sidecar::start(Authority::new().credentials(WEB), snapshot, settings)
}

/// Loopback is `mesh` or not.
fn knowing(mesh: &[&str], unknown: UnknownDestination) -> Snapshot {
    let outbound = Outbound {
        mesh_cidrs: mesh.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        unknown,
        ..Outbound::default()
    };
    Snapshot {
        outbound: Some(Arc::new(outbound)),
        ..Snapshot::default()
    }
}

/// What the application echoes; `None` when the connection is reset.
async fn say_hello(sidecar: &Sidecar) -> Option<Vec<u8>> {
    let entry = sidecar.plane.bound.outbound_fixed[0];
    let mut stream = TcpStream::connect(entry).await.unwrap();
    let mut back = Vec::new();
    let said = async {
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut back).await
    };
    let said = said.await;
    said.is_ok().then_some(back)
}

#[tokio::test]
async fn nothing_goes_out_in_plaintext_before_it_is_known_what_is_mesh() {
    let app = App::good(Speaks::Bytes).await;
    let mut sidecar = leading_to(app.address, Snapshot::default(), SHORT);
    assert_eq!(say_hello(&sidecar).await, None);
    let record = sidecar.record().await;
    assert_eq!(
        (record.reason, &*record.destination),
        (Some("undescribed"), &*app.address.to_string())
    );
    assert_eq!(app.script.calls(), 0);
    sidecar.configure(knowing(&[], UnknownDestination::AllowAny));
    assert_eq!(say_hello(&sidecar).await.unwrap(), b"hello");
    assert_eq!(sidecar.record().await.reason, None);
}

/// It is asked for once it is known to be inside the mesh, and judged by what came meanwhile.
#[tokio::test]
async fn a_connection_of_the_first_moment_waits_for_the_answer() {
    let app = App::good(Speaks::Bytes).await;
    for (unknown, passes) in [
        (UnknownDestination::AllowAny, true),
        (UnknownDestination::RegistryOnly, false),
    ] {
        let mut sidecar = leading_to(app.address, Snapshot::default(), LONG);
        let entry = sidecar.plane.bound.outbound_fixed[0];
        let mut stream = TcpStream::connect(entry).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        sidecar.configure(knowing(&["127.0.0.0/8"], UnknownDestination::AllowAny));
        let key = sidecar.asks.keys.recv().await.unwrap();
        let mut answered = knowing(&["127.0.0.0/8"], unknown);
        answered.absent.insert(key);
        sidecar.configure(answered);
        let mut back = [0; 5];
        let read = stream.read_exact(&mut back).await;
        assert_eq!(read.is_ok(), passes, "{unknown:?}");
        assert_eq!(app.script.calls(), 1);
        drop(stream);
        let reason = (!passes).then_some("unknown_destination");
        assert_eq!(sidecar.record().await.reason, reason);
    }
}
