//! Envoy: one that talks to the backend, and before it, in a pair, one that speaks mutual TLS to
//! it.

mod istio;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{AUTHORITY, Place, Running, authority::Pair};
use crate::{
    process::{PROXY_CORE, Process, free_address},
    scenario::{Group, Pool, Scenario, Way},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Connection manager and router, nothing else; `tcp_proxy` for opaque bytes.
    Bare,
    /// `tcp_proxy` in any case.
    Opaque,
    Istio,
}

/// From the environment that `make bench` prepares, else the one on the path.
pub(super) fn program() -> PathBuf {
    match env::var_os("HEDDLE_PEERS") {
        Some(peers) => PathBuf::from(peers).join("bin/envoy"),
        None => PathBuf::from("envoy"),
    }
}

pub(super) fn start(place: &Place<'_>, kind: Kind) -> anyhow::Result<Running> {
    let outbound = free_address()?;
    let scenario = place.scenario;
    let backend_speaks = Speaks::of(scenario);
    let mut processes = Vec::new();
    match scenario.way {
        Way::Hop => {
            let hop = Proxy {
                name: "envoy",
                side: Side::Outbound,
                listen: outbound,
                listen_tls: None,
                to: vec![place.backend],
                to_speaks: backend_speaks,
                to_tls: None,
            };
            processes.push(hop.run(place, kind)?);
        }
        Way::Pair => {
            let inbound = free_address()?;
            Pair::issue(place.work)?;
            let inner = Proxy {
                name: "envoy-inbound",
                side: Side::Inbound,
                listen: ([0, 0, 0, 0], inbound.port()).into(),
                listen_tls: Some(server_tls(scenario, place.work)),
                to: vec![place.backend],
                to_speaks: backend_speaks,
                to_tls: None,
            };
            let outer = Proxy {
                name: "envoy-outbound",
                side: Side::Outbound,
                listen: outbound,
                listen_tls: None,
                to: scenario.endpoints_at(inbound.port()),
                to_speaks: Speaks::Http2,
                to_tls: Some(client_tls(scenario, place.work)),
            };
            processes.push(outer.run(place, kind)?);
            processes.push(inner.run(place, kind)?);
            processes[1].wait_for(inbound)?;
        }
    }
    processes[0].wait_for(outbound)?;
    Ok(Running {
        address: outbound,
        authority: AUTHORITY.to_owned(),
        processes,
    })
}

/// What goes over connections to the next hop, where they are not opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

impl Speaks {
    fn of(scenario: &Scenario) -> Self {
        if scenario.is_http1() {
            Self::Http1
        } else {
            Self::Http2
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Outbound,
    Inbound,
}

struct Proxy {
    name: &'static str,
    side: Side,
    listen: SocketAddr,
    listen_tls: Option<Value>,
    to: Vec<SocketAddr>,
    to_speaks: Speaks,
    to_tls: Option<Value>,
}

impl Proxy {
    fn run(self, place: &Place<'_>, kind: Kind) -> anyhow::Result<Process> {
        let is_opaque = kind == Kind::Opaque || place.scenario.is_opaque();
        let filter = if is_opaque {
            opaque_filter(self.name)
        } else {
            http_filter(self.name, self.side, kind)
        };
        let mut filter_chain = json!({ "filters": [filter] });
        if let Some(tls) = &self.listen_tls {
            filter_chain["transport_socket"] = tls.clone();
        }
        let mut cluster = self.cluster(place.scenario.pool.as_ref());
        if is_opaque {
            cluster["typed_extension_protocol_options"] = json!({});
        }
        if kind == Kind::Istio {
            cluster["outlier_detection"] = istio::ejection();
        }
        let config = json!({
            "static_resources": {
                "listeners": [{
                    "name": "in",
                    "address": address(self.listen),
                    "filter_chains": [filter_chain],
                }],
                "clusters": [cluster],
            },
        });
        let file = place.work.join(format!("{}.json", self.name));
        fs::write(&file, config.to_string())?;
        let file = file.display().to_string();
        let arguments = [
            ["--config-path", &file],
            ["--concurrency", "1"],
            ["--log-level", "error"],
        ];
        let arguments = arguments.into_iter().flatten();
        Process::start(
            self.name,
            PROXY_CORE,
            place.work,
            program(),
            arguments.chain(["--disable-hot-restart"]),
        )
    }

    fn cluster(&self, pool: Option<&Pool>) -> Value {
        let endpoints = self
            .to
            .iter()
            .map(|to| json!({ "endpoint": { "address": address(*to) } }));
        let http = match self.to_speaks {
            Speaks::Http1 => json!({ "http_protocol_options": {} }),
            Speaks::Http2 => json!({ "http2_protocol_options": {} }),
        };
        let mut options = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": http,
        });
        let mut cluster = json!({
            "name": "next",
            "type": "STATIC",
            "lb_policy": "LEAST_REQUEST",
            "connect_timeout": "2s",
            "load_assignment": {
                "cluster_name": "next",
                "endpoints": [{ "lb_endpoints": endpoints.collect::<Vec<_>>() }],
            },
        });
        // The limits are the destination's, not the workload's own.
        if let Some(pool) = pool.filter(|_| self.side == Side::Outbound) {
            options["common_http_protocol_options"] =
                json!({ "max_requests_per_connection": pool.requests_per_connection_max });
            cluster["circuit_breakers"] = json!({ "thresholds": [{
                "max_connections": pool.connections_max,
                "max_pending_requests": pool.pending_max,
                "max_requests": pool.requests_max,
            }]});
        }
        cluster["typed_extension_protocol_options"] =
            json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options });
        if let Some(tls) = &self.to_tls {
            cluster["transport_socket"] = tls.clone();
        }
        cluster
    }
}

fn opaque_filter(name: &str) -> Value {
    json!({
        "name": "tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": "next",
        },
    })
}

fn http_filter(name: &str, side: Side, kind: Kind) -> Value {
    let route = json!({ "cluster": "next", "timeout": "0s" });
    let any = json!({ "match": { "prefix": "/" }, "route": route });
    let router = json!({
        "name": "router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    });
    let (routes, mut filters, access_log) = match kind {
        Kind::Bare | Kind::Opaque => (vec![any], vec![], vec![]),
        Kind::Istio => (
            istio::routes(&any),
            istio::filters(side),
            vec![istio::access_log()],
        ),
    };
    filters.push(router);
    json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "route_config": {
                "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
            },
            "http_filters": filters,
            "access_log": access_log,
        },
    })
}

fn server_tls(scenario: &Scenario, work: &Path) -> Value {
    json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": tls(scenario, work, "server", Pair::CLIENT),
        },
    })
}

fn client_tls(scenario: &Scenario, work: &Path) -> Value {
    json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "max_session_keys": 0,
            "common_tls_context": tls(scenario, work, "client", Pair::SERVER),
        },
    })
}

fn tls(scenario: &Scenario, work: &Path, own: &str, peer: &str) -> Value {
    let file = |name: &str| json!({ "filename": work.join(name) });
    let group = match scenario.group {
        Group::X25519 => "X25519",
        Group::Hybrid => "X25519MLKEM768",
    };
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": [group],
        },
        "tls_certificates": [{
            "certificate_chain": file(&format!("{own}.pem")),
            "private_key": file(&format!("{own}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("root.pem"),
            "match_typed_subject_alt_names": [
                { "san_type": "URI", "matcher": { "exact": peer } },
            ],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({
        "socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        },
    })
}
