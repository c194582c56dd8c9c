//! Waiting for the first right answer: what listens may not lead anywhere yet, and a load that
//! came too early would be judged by it, as by an ejection.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    num::NonZeroU32,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{
    generator::METHOD,
    scenario::{Http, Load, Scenario, Version},
    send::{self, Order},
    subject::Running,
};

const TRIES_MAX: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

pub(crate) fn wait(scenario: &Scenario, running: &Running) -> anyhow::Result<()> {
    let mut tried = 0;
    loop {
        let one = match &scenario.load {
            Load::Http(http) => match http.version {
                Version::Http1 => http1(running),
                Version::Http2 => http2(http, running),
            },
            Load::Stream(_) | Load::Connect(_) => opaque(running),
        };
        tried += 1;
        match one {
            Err(error) if tried == TRIES_MAX => return Err(error).context("nothing gets through"),
            Err(_) => thread::sleep(BETWEEN_TRIES),
            Ok(()) => return Ok(()),
        }
    }
}

fn http2(http: &Http, running: &Running) -> anyhow::Result<()> {
    let one = Http {
        connections: NonZeroU32::MIN,
        requests_per_s: Some(NonZeroU32::MIN),
        ..http.clone()
    };
    let order = Order {
        address: running.address,
        authority: running.authority.clone(),
        load: Load::Http(one),
        seconds: 1,
    };
    send::run(&order).map(drop)
}

fn http1(running: &Running) -> anyhow::Result<()> {
    let request = format!(
        "GET {METHOD} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        running.authority
    );
    let answer = exchange(running, request.as_bytes())?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

fn opaque(running: &Running) -> anyhow::Result<()> {
    let sent = b"is anyone there";
    let answer = exchange(running, sent)?;
    ensure!(answer == sent, "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn exchange(running: &Running, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let patience = Duration::from_secs(2);
    let mut socket = TcpStream::connect_timeout(&running.address, patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.write_all(bytes)?;
    if !bytes.starts_with(b"GET ") {
        socket.shutdown(Shutdown::Write)?;
    }
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    Ok(answer)
}
