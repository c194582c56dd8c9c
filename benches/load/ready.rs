//! Waiting for the first right answer: what listens may not lead anywhere yet, and a load that
//! came too early would be judged by it, as by an ejection.

use std::{
    io::{Read, Write},
    net::TcpStream,
    num::NonZeroU32,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{
    generator::{self, METHOD},
    scenario::{Http, Load, Scenario, Stream, Version},
    send::{self, Order},
    subject::Running,
};

const TRIES_MAX: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

pub(crate) fn wait(scenario: &Scenario, running: &Running, work: &Path) -> anyhow::Result<()> {
    let order = |load| Order {
        address: running.address,
        authority: running.authority.clone(),
        load,
        seconds: 0,
    };
    let mut tried = 0;
    loop {
        let one = match &scenario.load {
            Load::Http(http) => match http.version {
                Version::Http1 => http1(running),
                Version::Http2 => send::run(&order(http2(http))).map(drop),
            },
            Load::Grpcio(_) => {
                // Each of its loops makes one call.
                let (address, authority) = (running.address, &running.authority);
                generator::run(scenario, 0, address, authority, work).map(drop)
            }
            Load::Stream(_) | Load::Connect(_) => send::run(&order(opaque())).map(drop),
        };
        tried += 1;
        match one {
            Err(error) if tried == TRIES_MAX => return Err(error).context("nothing gets through"),
            Err(_) => thread::sleep(BETWEEN_TRIES),
            Ok(()) => return Ok(()),
        }
    }
}

/// As the scenario's, once.
fn http2(http: &Http) -> Load {
    Load::Http(Http {
        connections: NonZeroU32::MIN,
        streams: NonZeroU32::MIN,
        requests_per_s: None,
        ..http.clone()
    })
}

fn opaque() -> Load {
    Load::Connect(Stream {
        connections: NonZeroU32::MIN,
        bytes: 1,
    })
}

/// Our own generator speaks no HTTP/1.1.
fn http1(running: &Running) -> anyhow::Result<()> {
    let patience = Duration::from_secs(2);
    let mut socket = TcpStream::connect_timeout(&running.address, patience)?;
    socket.set_read_timeout(Some(patience))?;
    write!(
        socket,
        "GET {METHOD} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        running.authority
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}
