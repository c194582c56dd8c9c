//! HAProxy, one thread: connections to the next hop are shared by all clients. Streams have a window
//! of 1 MiB: at the default, 64 KiB, a pair resets some uploads of 1 MiB.

use std::{fmt::Write, fs, net::SocketAddr};

use super::{AUTHORITY, Place, Running, authority::Pair};
use crate::{
    process::{PROXY_CORE, Process, free_address},
    scenario::Way,
};

pub(super) fn start(place: &Place<'_>) -> anyhow::Result<Running> {
    let outbound = free_address()?;
    let mut processes = Vec::new();
    match place.scenario.way {
        Way::Hop => processes.push(run(
            place,
            "haproxy",
            &outbound.to_string(),
            &[place.backend],
            "",
        )?),
        Way::Pair => {
            let port = free_address()?.port();
            Pair::issue(place.work)?;
            let work = place.work.display();
            let alpn = if place.scenario.is_opaque() {
                ""
            } else if place.scenario.is_http1() {
                "alpn http/1.1"
            } else {
                "alpn h2"
            };
            let listen = format!(
                "0.0.0.0:{port} ssl crt {work}/server.both {alpn} verify required \
                 ca-file {work}/root.pem ssl-min-ver TLSv1.3 curves X25519 no-tls-tickets"
            );
            processes.push(run(
                place,
                "haproxy-inbound",
                &listen,
                &[place.backend],
                "",
            )?);
            let client = format!(
                "ssl crt {work}/client.both {alpn} verify required ca-file {work}/root.pem \
                 ssl-min-ver TLSv1.3 no-ssl-reuse"
            );
            let to = place.scenario.endpoints_at(port);
            let listen = outbound.to_string();
            let outer = run(place, "haproxy-outbound", &listen, &to, &client)?;
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

fn run(
    place: &Place<'_>,
    name: &str,
    listen: &str,
    to: &[SocketAddr],
    client: &str,
) -> anyhow::Result<Process> {
    let (mode, proto) = if place.scenario.is_opaque() {
        ("tcp", "")
    } else if place.scenario.is_http1() {
        ("http", "proto h1")
    } else {
        ("http", "proto h2")
    };
    // The protocol of a TLS listener is what ALPN says.
    let bind = if listen.contains(" ssl ") { "" } else { proto };
    let mut servers = String::new();
    for (i, address) in to.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(servers, "    server s{i} {address} {proto} {client}");
    }
    let config = format!(
        "global
    nbthread 1
    maxconn 8192
    tune.h2.initial-window-size 1048576
defaults
    mode {mode}
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend in
    bind {listen} {bind}
    default_backend next
backend next
    balance leastconn
    {reuse}
{servers}",
        reuse = if mode == "http" {
            "http-reuse always"
        } else {
            ""
        },
    );
    let file = place.work.join(format!("{name}.cfg"));
    fs::write(&file, config)?;
    let file = file.display().to_string();
    Process::start(
        name,
        PROXY_CORE,
        place.work,
        "haproxy",
        ["-db", "-f", &file],
    )
}
