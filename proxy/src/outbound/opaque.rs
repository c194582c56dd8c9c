//! Connections of the workload that are not HTTP: to an endpoint, or past the mesh.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use heddle_policy::{
    admission::{Full, Resource, Slot},
    outcome::Outcome,
    retry::{Attempted, Retry, RetryDecision},
    snapshot::{CONNECT_TIMEOUT, DestinationKey, WeightedClusters},
};
use heddle_relay::{
    cluster::LiveCluster,
    error::{ConnectError, ProxyError},
    relay::Speaks,
    view::LiveDestination,
};
use heddle_shell::clock;
use rand::RngExt;
use tokio::net::TcpStream;

use super::{name_of, refuse};
use crate::{
    detect::{Rewound, Told},
    dial::Target,
    error::of_io,
    exchange::{Attempt, Direction, Exchange, Record, Spoken},
    intercept::{self, Leg},
    session::Session,
    tls::{AsSocket, Carries, Stream},
    worker::Worker,
};

/// An endpoint that takes the bytes.
struct Connected {
    stream: Stream,
    attempt: Attempt,
    /// The connection and its one request.
    _slots: [Slot; 2],
}

/// Bytes to one endpoint of `clusters`; another is picked while none answers.
pub(super) async fn relay_to_endpoint(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    destination: &LiveDestination,
    clusters: &WeightedClusters,
) {
    let mut exchange = exchange(worker, client, destination);
    let connected = connect(worker, &mut exchange, destination, clusters).await;
    relay_to(worker, stream, connected, exchange).await;
}

/// As [`relay_to_endpoint`], unless the first bytes are HTTP: then they are given back.
pub(super) async fn relay_unless_http(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    destination: &LiveDestination,
    clusters: &WeightedClusters,
) -> Option<(Rewound<TcpStream>, Speaks)> {
    let mut stream = Rewound::new(stream);
    let mut exchange = exchange(worker, client, destination);
    let told = {
        let connecting = connect(worker, &mut exchange, destination, clusters);
        let wait = worker.settings.bounds.detect_wait;
        stream.tell(wait, Box::pin(connecting)).await
    };
    match told {
        Told::Http(speaks) => {
            exchange.retract();
            Some((stream, speaks))
        }
        Told::Bytes(connected) => {
            relay_to(worker, stream, connected, exchange).await;
            None
        }
        Told::Nothing => {
            exchange.retract();
            None
        }
    }
}

fn exchange(worker: &Worker, client: SocketAddr, destination: &LiveDestination) -> Exchange {
    let name = Arc::clone(&destination.config.name);
    let record = Record::new(Direction::Outbound, Spoken::Tcp, name, client);
    Exchange::start(record, Arc::clone(&worker.telemetry))
}

async fn relay_to(
    worker: &Worker,
    stream: impl Into<Session> + AsSocket,
    connected: Result<Connected, ProxyError>,
    mut exchange: Exchange,
) {
    let mut connected = match connected {
        Ok(connected) => connected,
        Err(error) => {
            exchange.failed(&error);
            intercept::reset(stream.socket());
            return;
        }
    };
    // It answered; how the conversation ends is the two sides' business.
    connected.attempt.report(Outcome::Response {
        status: 200,
        grpc: None,
    });
    worker.relay(stream, connected.stream, &mut exchange).await;
}

async fn connect(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    destination: &LiveDestination,
    clusters: &WeightedClusters,
) -> Result<Connected, ProxyError> {
    let cluster = cluster(worker, destination, clusters)?;
    exchange.record.cluster = Some(cluster.config.name.clone());
    let (admission, limits) = (&cluster.state.admission, &cluster.config.limits);
    let overloaded = |full: Full| ProxyError::Overloaded(full.to_string());
    let connection = admission
        .acquire(Resource::Connections, limits.connections_max)
        .map_err(overloaded)?;
    let request = admission
        .acquire(Resource::Requests, limits.requests_max)
        .map_err(overloaded)?;
    let terms = cluster.retry_terms(None);
    let mut retry = Retry::new("", None);
    loop {
        let mut attempt = pick(worker, &cluster, &mut retry)?;
        exchange.attempted(&attempt);
        let target = target(&attempt, destination);
        let source = match worker.dialler.dial(&target).await {
            Ok(established) if worker.is_revoked(&established.peer) => {
                ConnectError::Tls("the endpoint's identity is denied".into())
            }
            Ok(established) => {
                exchange.record.peer = established.peer;
                return Ok(Connected {
                    stream: established.stream,
                    attempt,
                    _slots: [connection, request],
                });
            }
            Err(source) => source,
        };
        let outcome = source.outcome();
        attempt.report(outcome);
        let attempted = Attempted {
            outcome,
            is_replayable: true,
            endpoints: cluster.serving(),
            pushback: None,
        };
        let decision = {
            let mut rng = worker.rng.borrow_mut();
            retry.after(&attempted, &terms, clock::now(), &mut *rng)
        };
        match decision {
            RetryDecision::Repick => {}
            RetryDecision::After(_) | RetryDecision::Stop(_) => {
                let endpoint = attempt.endpoint.config.address;
                return Err(ProxyError::Connect { endpoint, source });
            }
        }
    }
}

fn cluster(
    worker: &Worker,
    destination: &LiveDestination,
    clusters: &WeightedClusters,
) -> Result<Arc<LiveCluster>, ProxyError> {
    let name = clusters.at(worker.rng.borrow_mut().random());
    let cluster = destination.clusters.get(name);
    cluster
        .cloned()
        .ok_or_else(|| ProxyError::NoEndpoint(name.clone()))
}

fn pick(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    retry: &mut Retry,
) -> Result<Attempt, ProxyError> {
    let index = worker
        .pick(cluster, retry.tried())
        .ok_or_else(|| ProxyError::NoEndpoint(cluster.config.name.clone()))?;
    retry.picked(index);
    Ok(Attempt::start(cluster, index))
}

fn target(attempt: &Attempt, destination: &LiveDestination) -> Target {
    Target {
        endpoint: attempt.endpoint.state.key.clone(),
        name: Arc::clone(&destination.config.name),
        carries: Carries::Tcp,
        timeout: attempt.cluster().config.connect_timeout,
        leg: Leg::Outbound,
    }
}

/// To where the workload wanted, in plaintext, unseen.
pub(super) async fn pass_through(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    key: &DestinationKey,
) {
    let DestinationKey::Address(address) = *key else {
        refuse(
            worker,
            stream,
            client,
            &name_of(Some(key)),
            &ProxyError::UnknownDestination,
        );
        return;
    };
    let record = Record::new(Direction::Outbound, Spoken::Tcp, name_of(Some(key)), client);
    let mut exchange = Exchange::start(record, Arc::clone(&worker.telemetry));
    exchange.record.endpoint = Some(address);
    exchange.record.attempts = 1;
    let connected =
        tokio::time::timeout(CONNECT_TIMEOUT, intercept::connect(address, Leg::Outbound));
    let connected = match connected.await {
        Ok(connected) => connected.map_err(|error| of_io(&error)),
        Err(_elapsed) => Err(ConnectError::Timeout(CONNECT_TIMEOUT)),
    };
    match connected {
        Ok(endpoint) => {
            worker.relay(stream, endpoint, &mut exchange).await;
        }
        Err(source) => {
            exchange.failed(&ProxyError::Connect {
                endpoint: address,
                source,
            });
            intercept::reset(&stream);
        }
    }
}
