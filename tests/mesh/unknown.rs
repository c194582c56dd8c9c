//! What becomes of connections to what nobody has described: not yet, not at all, or no longer as
//! meshed.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use heddle_policy::snapshot::{
    Destination, DestinationKey, Outbound, Protocol, Snapshot, Target, UnknownDestination,
};
use heddle_proxy::settings::{Bounds, InboundListeners, OutboundListeners, OutboundPort, Settings};
use heddle_tests::{
    call::Caller,
    echo::{App, Speaks},
    mesh::{self, Authority, Pair, Plan, Sidecar, WEB},
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
    let mut back = Vec::new();
    let said = async {
        // The reset may come before the kernel says that it is connected.
        let mut stream = TcpStream::connect(entry).await?;
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

/// The one destination of `snapshot`, changed.
fn changed(mut snapshot: Snapshot, change: impl FnOnce(&mut Destination)) -> Snapshot {
    let destination = snapshot.destinations.get_mut(&mesh::key()).unwrap();
    change(Arc::make_mut(destination));
    snapshot
}

const DAY: Duration = Duration::from_hours(24);

/// A registration that lapses says nothing about who listens there.
#[tokio::test]
async fn an_endpoint_that_was_meshed_is_not_called_in_plaintext() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan::default();
    let mut pair = Pair::start(app.address, &plan);
    let call = async || Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(call().await.grpc_status(), Some("0"));
    // The application itself: it would take plaintext.
    let described = mesh::snapshot(&[app.address], &plan);
    pair.client.configure(described.clone());
    pair.client.configure(mesh::in_plaintext(described.clone()));
    let answer = call().await;
    assert_eq!(
        (answer.grpc_status(), answer.reason()),
        (Some("14"), Some("no_endpoint"))
    );
    // Also when it was gone in between, and as one of several.
    pair.client.configure(Snapshot::default());
    let mut both = mesh::snapshot(&[pair.inbound], &plan);
    both = changed(both, |destination| {
        let flipped = mesh::in_plaintext(described.clone());
        let flipped = &flipped.destinations[&mesh::key()].clusters;
        for (name, cluster) in &mut destination.clusters {
            let more = flipped[name].endpoints.iter().cloned();
            Arc::make_mut(cluster).endpoints.extend(more);
        }
    });
    pair.client.configure(both);
    for _ in 0..10 {
        assert_eq!(call().await.grpc_status(), Some("0"));
    }
    for _ in 0..11 {
        assert_eq!(pair.server.record().await.reason, None);
    }
    assert_eq!(app.script.calls(), 11);
    // A sidecar can be taken away for good.
    pair.client.configure(mesh::in_plaintext(described));
    pair.client.views.load().age_meshed(DAY);
    assert_eq!(call().await.grpc_status(), Some("0"));
    assert_eq!(app.script.calls(), 12);
}

#[tokio::test]
async fn an_address_that_was_meshed_is_not_passed_through() {
    let app = App::good(Speaks::Bytes).await;
    let known = knowing(&[], UnknownDestination::AllowAny);
    let mut sidecar = leading_to(app.address, known.clone(), LONG);
    let plan = Plan {
        protocol: Protocol::Tcp,
        ..Plan::default()
    };
    let meshed = mesh::snapshot(&[app.address], &plan);
    let passthrough = changed(meshed.clone(), |destination| {
        destination.target = Target::Passthrough;
        destination.clusters.clear();
    });
    let address = DestinationKey::Address(app.address);
    let by_address = Snapshot {
        destinations: [(address, Arc::clone(&passthrough.destinations[&mesh::key()]))].into(),
        ..known.clone()
    };
    for snapshot in [&known, &by_address] {
        sidecar.configure(snapshot.clone());
        assert_eq!(say_hello(&sidecar).await.unwrap(), b"hello");
        assert_eq!(sidecar.record().await.reason, None);
    }
    sidecar.configure(meshed);
    for snapshot in [known, by_address] {
        sidecar.configure(snapshot);
        assert_eq!(say_hello(&sidecar).await, None);
        assert_eq!(sidecar.record().await.reason, Some("once_meshed"));
    }
    assert_eq!(app.script.calls(), 2);
    sidecar.views.load().age_meshed(DAY);
    assert_eq!(say_hello(&sidecar).await.unwrap(), b"hello");
}
