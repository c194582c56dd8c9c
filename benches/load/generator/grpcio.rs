//! grpcio, as `tests/interop/requirements.txt` pins it: a client and a server of gRPC that nobody
//! here has written.

use std::{env, net::SocketAddr, path::PathBuf, process::Command};

use super::{Answers, pinned};
use crate::{process::Process, send::Order};

/// Needs nothing beside it.
const PROGRAM: &str = include_str!("../grpcio.py");

pub(super) fn call(order: &Order) -> anyhow::Result<Answers> {
    let order = serde_json::to_string(order)?;
    pinned(Command::new(python()).args(["-c", PROGRAM, "call", &order]))
}

/// The server of answers of `bytes`.
pub(crate) fn serve(
    address: SocketAddr,
    bytes: usize,
    core: &str,
    work: &std::path::Path,
) -> anyhow::Result<Process> {
    let (port, bytes) = (address.port().to_string(), bytes.to_string());
    let arguments = ["-c", PROGRAM, "serve", &port, &bytes];
    Process::start("backend", core, work, python(), arguments)
}

/// From the environment that `make bench` prepares, else the one on the path.
fn python() -> PathBuf {
    match env::var_os("HEDDLE_PEERS") {
        Some(peers) => PathBuf::from(peers).join("bin/python"),
        None => PathBuf::from("python3"),
    }
}
