//! What the relay of a test knows.

use std::{collections::HashMap, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use heddle_policy::{
    path::Strictness,
    retry::RetryPolicy,
    route::{PathMatch, Route, RouteMatch, RouteTable, VirtualHost},
    snapshot::{
        Balancing, Cluster, ClusterName, ClusterProtocol, Destination, DestinationKey, Endpoint,
        Health, Limits, Protocol, Snapshot, Target, Transport, WeightedClusters,
    },
    spiffe::Peer,
};
use heddle_relay::{
    budget::Budget,
    h1, h2,
    relay::{Bounds, Caller, Dialled, Settings, Speaks},
    request::Terms,
};

pub(crate) fn settings() -> Settings {
    Settings {
        terms: Terms {
            paths: Strictness::default(),
            sampled_share: 0.5,
        },
        mesh: h2::Limits::of_mesh(),
        workload: h2::Limits::of_application(),
        http1: h1::Limits::default(),
        replay_bytes_max: 64 * 1024,
        lookup_wait: Duration::from_secs(2),
        bounds: Bounds {
            idle: Duration::from_hours(1),
            endpoint_idle: Duration::from_mins(5),
            unrepeatable_idle: Duration::from_secs(1),
            connection_age: Duration::from_hours(1),
        },
        budget: Budget::new(32 * 1024 * 1024),
    }
}

/// One that dials the destination.
pub(crate) fn caller() -> Caller {
    Caller {
        address: ([127, 0, 0, 1], 40_000).into(),
        peer: Peer::Anonymous,
        is_sidecar: false,
        dialled: Dialled::Destination(key()),
        speaks: Speaks::Http2,
    }
}

fn key() -> DestinationKey {
    DestinationKey::Host("echo.shop".into(), 80)
}

/// One destination with one route to one cluster of these endpoints.
pub(crate) fn snapshot(
    endpoints: &[SocketAddr],
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
) -> Snapshot {
    let endpoints = endpoints.iter().map(|address| {
        Arc::new(Endpoint {
            address: *address,
            transport: Transport::Plain,
            weight: NonZeroU32::MIN,
            health: Health::Healthy,
        })
    });
    let name = ClusterName("echo".into());
    let cluster = Cluster {
        name: name.clone(),
        endpoints: endpoints.collect(),
        balancing: Balancing::LeastRequest,
        outlier: None,
        limits: Limits::UNLIMITED,
        connect_timeout: Duration::from_secs(2),
        protocol: ClusterProtocol::AsClient,
    };
    let route = Route {
        name: "all".into(),
        matches: RouteMatch {
            path: PathMatch::Any,
            headers: vec![],
        },
        clusters: WeightedClusters::single(name.clone()),
        timeout,
        retry,
    };
    let host = VirtualHost {
        domains: vec!["*".into()],
        routes: vec![Arc::new(route)],
    };
    let routes = RouteTable::new("echo", vec![host]);
    let destination = Destination {
        name: "echo.shop:80".into(),
        protocol: Protocol::Http2,
        target: Target::Http(Arc::new(routes)),
        clusters: HashMap::from([(name, Arc::new(cluster))]),
    };
    Snapshot {
        destinations: HashMap::from([(key(), Arc::new(destination))]),
        ..Snapshot::default()
    }
}
