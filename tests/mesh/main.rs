//! Two sidecars in this process, real TLS between them, real sockets: callers dial the one,
//! applications sit behind the other.

#![expect(
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "the functions beside the tests are tests too: they may panic, and their futures are few"
)]

mod bad_input;
mod between;
mod bounds;
mod change;
mod detect;
mod drain;
mod failures;
mod floods;
mod framing;
mod goodbye;
mod grpc;
mod hours;
mod http1;
mod identity;
mod memory;
mod opaque;
mod policies;
mod ports;
mod revocation;
mod state;
mod undeclared;
mod unknown;
mod uplink;
mod wire;

/// Workers of each sidecar: what is counted does not depend on them.
const WORKERS: [usize; 3] = [1, 2, 4];
