//! nginx, one worker: `grpc_pass` with a kept connection per request in flight, since it does
//! not multiplex to the next hop.

use std::{fmt::Write, fs, path::Path};

use super::{AUTHORITY, Place, Running, authority::Pair};
use crate::{
    process::{PROXY_CORE, Process, free_address},
    scenario::Way,
};

pub(super) fn start(place: &Place<'_>) -> anyhow::Result<Running> {
    let outbound = free_address()?;
    let mut processes = Vec::new();
    match place.scenario.way {
        Way::Hop => {
            let to = place.backend.to_string();
            processes.push(proxy(place, "nginx", &outbound.to_string(), "", "", &[to])?);
        }
        Way::Pair => {
            let port = free_address()?.port();
            let work = place.work.display();
            Pair::issue(place.work)?;
            let server = format!(
                "ssl_certificate {work}/server.pem; ssl_certificate_key {work}/server.key;
                ssl_client_certificate {work}/root.pem; ssl_verify_client on; ssl_verify_depth 2;
                ssl_protocols TLSv1.3; ssl_ecdh_curve X25519; ssl_session_tickets off;
                ssl_session_cache off;"
            );
            let listen = format!("0.0.0.0:{port} ssl");
            let to = place.backend.to_string();
            processes.push(proxy(place, "nginx-inbound", &listen, &server, "", &[to])?);
            let word = word(place);
            let name = Pair::SERVER_NAME;
            let client = format!(
                "{word}_ssl_certificate {work}/client.pem;
                {word}_ssl_certificate_key {work}/client.key;
                {word}_ssl_trusted_certificate {work}/root.pem; {word}_ssl_verify on;
                {word}_ssl_verify_depth 2; {word}_ssl_name {name}; {word}_ssl_server_name on;
                {word}_ssl_protocols TLSv1.3; {word}_ssl_session_reuse off;"
            );
            let to = place.scenario.endpoints_at(port);
            let to: Vec<_> = to.iter().map(ToString::to_string).collect();
            let listen = outbound.to_string();
            let outer = proxy(place, "nginx-outbound", &listen, "", &client, &to)?;
            processes.insert(0, outer);
            processes[1].wait_for(([127, 0, 0, 1], port).into())?;
        }
    }
    processes[0].wait_for(outbound)?;
    Ok(Running {
        address: outbound,
        authority: AUTHORITY.to_owned(),
        processes,
    })
}

fn proxy(
    place: &Place<'_>,
    name: &str,
    listen: &str,
    server: &str,
    client: &str,
    to: &[String],
) -> anyhow::Result<Process> {
    let is_http1 = place.scenario.is_http1();
    let (word, http2) = (word(place), if is_http1 { "" } else { " http2" });
    let scheme = match (is_http1, client.is_empty()) {
        (true, true) => "http",
        (true, false) => "https",
        (false, true) => "grpc",
        (false, false) => "grpcs",
    };
    let extra = if is_http1 {
        "proxy_http_version 1.1; proxy_set_header Connection \"\";"
    } else {
        ""
    };
    let mut servers = String::new();
    for address in to {
        // Writing to a String cannot fail.
        let _ = write!(servers, "server {address}; ");
    }
    let config = format!(
        "client_body_buffer_size 2m; client_max_body_size 0; keepalive_requests 1000000000;
        upstream next {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000000; }}
        server {{ listen {listen}{http2}; {server}
            location / {{ {extra} {client} {word}_pass {scheme}://next; }} }}"
    );
    run(name, PROXY_CORE, &config, place.work)
}

fn word(place: &Place<'_>) -> &'static str {
    if place.scenario.is_http1() {
        "proxy"
    } else {
        "grpc"
    }
}

/// Starts it with what stands in `http`; its files are below `work`.
pub(crate) fn run(name: &str, core: &str, http: &str, work: &Path) -> anyhow::Result<Process> {
    let own = work.join(name);
    fs::create_dir_all(&own)?;
    let own = own.display();
    let file = work.join(format!("{name}.conf"));
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid {own}/pid; error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {own}/body; proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;
    {http}
}}
"
    );
    fs::write(&file, config)?;
    let file = file.display().to_string();
    Process::start(name, core, work, "nginx", ["-e", "stderr", "-c", &file])
}
