//! The workload's own connections: read this first.
//!
//! ```text
//! accept ─ key ─ lookup ─┬─ HTTP: serve ─► the relay (`heddle_relay::relay`), request by request
//!                        ├─ TCP: relay to an endpoint
//!                        ├─ undeclared: one of the two, by its first bytes
//!                        └─ unknown: relay to the original destination, or refuse
//! ```

mod opaque;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use heddle_policy::{
    snapshot::{DestinationKey, Target as Leads, UnknownDestination},
    spiffe::Peer,
};
use heddle_relay::{
    error::ProxyError,
    relay::{Caller, Dialled, Speaks},
    view::{LiveDestination, Lookup},
};
use heddle_shell::clock;
use tokio::net::TcpStream;

use self::opaque::{pass_through, relay_to_endpoint, relay_unless_http};
use crate::{
    detect::{Rewound, Seen},
    drain::Phase,
    exchange::{Direction, Exchange, Record, Spoken},
    intercept,
    tls::{AsSocket, Stream},
    worker::Worker,
};

/// Where a connection of the workload goes.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Redirected here: the kernel knows.
    Intercepted,
    /// The listener has one destination.
    Fixed(DestinationKey),
    /// HTTP, each request by its authority.
    ByAuthority,
}

/// Serves one connection of the workload.
pub async fn accept(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, origin: &Origin) {
    let key = match origin {
        Origin::ByAuthority => {
            serve_http(worker, Rewound::new(stream), client, None).await;
            return;
        }
        Origin::Fixed(key) => key.clone(),
        Origin::Intercepted => match intercept::original_dst(&stream) {
            Ok(Some(to)) if !worker.guard.refuses(to) => DestinationKey::Address(to.0),
            // Dialled the listener itself, or would come back to it.
            Ok(_) | Err(_) => {
                refuse(worker, stream, client, "", &ProxyError::UnknownDestination);
                return;
            }
        },
    };
    match lookup(worker, &key).await {
        Ok(Some(destination)) => {
            let _in_use = destination.touch(clock::now());
            serve_destination(worker, stream, client, key, &destination).await;
        }
        Ok(None) => pass_through(worker, stream, client, &key).await,
        Err(error) => refuse(worker, stream, client, &name_of(Some(&key)), &error),
    }
}

/// `None`: nothing is known and policy lets it pass.
async fn lookup(
    worker: &Worker,
    key: &DestinationKey,
) -> Result<Option<Arc<LiveDestination>>, ProxyError> {
    let wait = worker.settings.bounds.lookup_wait;
    let known = worker.view().lookup(key);
    let known = match known {
        Some(known) => known,
        None => worker.demand.lookup(&worker.views, key, wait).await,
    };
    let is_plain = match &known {
        Lookup::Found(found) => matches!(found.config.target, Leads::Passthrough),
        Lookup::Unknown(_) | Lookup::Unanswered => true,
    };
    match (known, key) {
        // It may well be meshed: nothing goes there in plaintext.
        (Lookup::Unanswered, _) => Err(ProxyError::Undescribed(wait)),
        (_, DestinationKey::Address(address))
            if is_plain && worker.view().meshed.contains(address) =>
        {
            Err(ProxyError::OnceMeshed(*address))
        }
        (Lookup::Found(destination), _) => Ok(Some(destination)),
        (Lookup::Unknown(UnknownDestination::AllowAny), DestinationKey::Address(_)) => Ok(None),
        (Lookup::Unknown(_), _) => Err(ProxyError::UnknownDestination),
    }
}

async fn serve_destination(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    key: DestinationKey,
    destination: &Arc<LiveDestination>,
) {
    match &destination.config.target {
        Leads::Http(_) => {
            let Some(clusters) = destination.config.undeclared() else {
                return serve_http(worker, Rewound::new(stream), client, Some(key)).await;
            };
            let http = relay_unless_http(worker, stream, client, destination, clusters).await;
            if let Some((stream, speaks)) = http {
                serve(worker, stream, speaks, client, Some(key)).await;
            }
        }
        Leads::Tcp(clusters) => {
            relay_to_endpoint(worker, stream, client, destination, clusters).await;
        }
        Leads::Passthrough => pass_through(worker, stream, client, &key).await,
    }
}

/// A destination with HTTP routes is never relayed opaque: bytes that are not HTTP, and silence,
/// are refused.
async fn serve_http(
    worker: &Rc<Worker>,
    mut stream: Rewound<TcpStream>,
    client: SocketAddr,
    dialled: Option<DestinationKey>,
) {
    let bounds = &worker.settings.bounds;
    let mut draining = worker.draining.clone();
    // A connection that was opened ahead and never used is no failure.
    let begins = tokio::select! {
        biased; // A request that has begun is still taken.
        begins = stream.begins_within(bounds.idle) => begins,
        () = draining.reached(Phase::All) => false,
    };
    if !begins {
        return;
    }
    match stream.sniff(bounds.header_wait).await {
        Ok(Seen::Http1) => serve(worker, stream, Speaks::Http1, client, dialled).await,
        Ok(Seen::Http2) => serve(worker, stream, Speaks::Http2, client, dialled).await,
        Ok(Seen::Tls | Seen::Other | Seen::Closed | Seen::Silence) | Err(_) => {
            let name = name_of(dialled.as_ref());
            refuse(worker, stream, client, &name, &NOT_HTTP);
        }
    }
}

/// Each request is the relay's from here on.
async fn serve(
    worker: &Worker,
    stream: Rewound<TcpStream>,
    speaks: Speaks,
    client: SocketAddr,
    dialled: Option<DestinationKey>,
) {
    let caller = Caller {
        address: client,
        peer: Peer::Anonymous,
        is_sidecar: false,
        dialled: dialled.map_or(Dialled::Authority, Dialled::Destination),
        speaks,
    };
    let stream = Rewound::new(Stream::plain(stream));
    worker.driver.serve(stream, caller).await;
}

/// Closes a connection for which there is no answer in its protocol.
pub fn refuse(
    worker: &Worker,
    stream: impl AsSocket,
    client: SocketAddr,
    name: &str,
    error: &ProxyError,
) {
    let record = Record::new(Direction::Outbound, Spoken::Tcp, name.into(), client);
    let mut exchange = Exchange::start(record, Arc::clone(&worker.telemetry));
    exchange.failed(error);
    intercept::reset(stream.socket());
}

/// What a record calls it.
fn name_of(key: Option<&DestinationKey>) -> Arc<str> {
    key.map_or_else(|| "".into(), |key| key.to_string().into())
}

const NOT_HTTP: ProxyError =
    ProxyError::BadRequest("this destination speaks HTTP; the client does not");
