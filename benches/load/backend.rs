//! What the proxies are in front of, beside the generator.

use std::{env, fs, net::SocketAddr, path::Path};

use anyhow::Context;

use crate::{
    generator::{METHOD, grpcio},
    process::{LOAD_CORE, Process, free_address},
    scenario::{Http, Load, Scenario, Version},
};

/// Starts it and waits until it listens.
pub(crate) fn start(scenario: &Scenario, work: &Path) -> anyhow::Result<(SocketAddr, Process)> {
    let address = free_address()?;
    let mut process = match &scenario.load {
        Load::Http(http) => match http.version {
            Version::Http1 => http1(http, address, work)?,
            Version::Http2 => http2(http, address, work)?,
        },
        Load::Grpcio(calls) => grpcio::serve(address, calls.response_bytes, LOAD_CORE, work)?,
        Load::Stream(_) | Load::Connect(_) => Process::start(
            "backend",
            LOAD_CORE,
            work,
            env::current_exe()?,
            ["answer", &address.to_string()],
        )?,
    };
    process.wait_for(address)?;
    Ok((address, process))
}

/// nghttpd with a file of the response's size and a gRPC status in its trailers. Its windows and
/// streams are never what a proxy waits for.
fn http2(http: &Http, address: SocketAddr, work: &Path) -> anyhow::Result<Process> {
    let documents = work.join("documents");
    let file = documents.join(METHOD.trim_start_matches('/'));
    fs::create_dir_all(file.parent().context("a method has a service")?)?;
    fs::write(&file, vec![b'y'; http.response_bytes])?;
    Process::start(
        "backend",
        LOAD_CORE,
        work,
        "nghttpd",
        [
            "--no-tls",
            "--address=127.0.0.1",
            "--max-concurrent-streams=1000",
            "--window-bits=24",
            "--connection-window-bits=28",
            "--trailer=grpc-status: 0",
            &format!("--htdocs={}", documents.display()),
            &address.port().to_string(),
        ],
    )
}

/// nginx with a constant; nghttpd speaks no HTTP/1.1.
fn http1(http: &Http, address: SocketAddr, work: &Path) -> anyhow::Result<Process> {
    let body = "y".repeat(http.response_bytes);
    let server = format!(
        "keepalive_requests 1000000000;
        server {{ listen {address}; location / {{ return 200 {body}; }} }}"
    );
    crate::subject::nginx::run("backend", LOAD_CORE, &server, work)
}
