//! Envoy as a pair: an outbound one that speaks mutual TLS to an inbound one.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Running, authority::Authority};
use crate::process::{PROXY_CORE, Process, free_address};

const CLIENT: &str = "spiffe://cluster.local/ns/bench/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/bench/sa/server";

/// From the environment that `make bench` prepares, else the one on the path.
pub(super) fn program() -> PathBuf {
    match env::var_os("HEDDLE_PEERS") {
        Some(peers) => PathBuf::from(peers).join("bin/envoy"),
        None => PathBuf::from("envoy"),
    }
}

pub(super) fn start(backend: SocketAddr, work: &Path) -> anyhow::Result<Running> {
    let authority = Authority::new()?;
    authority.issue("client", CLIENT, work)?;
    authority.issue("server", SERVER, work)?;
    let (outbound, inbound) = (free_address()?, free_address()?);
    let server_tls = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "common_tls_context": tls(work, "server", CLIENT),
        },
    });
    let client_tls = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "max_session_keys": 0,
            "common_tls_context": tls(work, "client", SERVER),
        },
    });
    let mut inbound_proxy = run(
        "envoy-inbound",
        inbound,
        Some(server_tls),
        backend,
        None,
        work,
    )?;
    let mut outbound_proxy = run(
        "envoy-outbound",
        outbound,
        None,
        inbound,
        Some(client_tls),
        work,
    )?;
    inbound_proxy.wait_for(inbound)?;
    outbound_proxy.wait_for(outbound)?;
    Ok(Running {
        address: outbound,
        authority: "echo.bench:80".to_owned(),
        processes: vec![outbound_proxy, inbound_proxy],
    })
}

fn run(
    name: &str,
    listen: SocketAddr,
    listen_tls: Option<Value>,
    forward: SocketAddr,
    forward_tls: Option<Value>,
    work: &Path,
) -> anyhow::Result<Process> {
    let mut filter_chain = json!({ "filters": [http_filter(name)] });
    if let Some(tls) = listen_tls {
        filter_chain["transport_socket"] = tls;
    }
    let mut cluster = json!({
        "name": "next",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(forward) } }] }],
        },
    });
    if let Some(tls) = forward_tls {
        cluster["transport_socket"] = tls;
    }
    let config = json!({
        "static_resources": {
            "listeners": [{
                "name": "in",
                "address": address(listen),
                "filter_chains": [filter_chain],
            }],
            "clusters": [cluster],
        },
    });
    let file = work.join(format!("{name}.json"));
    fs::write(&file, config.to_string())?;
    Process::start(
        name,
        PROXY_CORE,
        work,
        program(),
        [
            "--config-path",
            &file.display().to_string(),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ],
    )
}

fn http_filter(name: &str) -> Value {
    json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "HTTP2",
            "route_config": {
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "next", "timeout": "0s" } }],
                }],
            },
            "http_filters": [{
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}

fn tls(work: &Path, own: &str, peer: &str) -> Value {
    let file = |name: &str| json!({ "filename": work.join(name) });
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
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
