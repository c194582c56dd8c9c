//! Two sidecars in this process, real TLS between them, real sockets: callers dial the one,
//! applications sit behind the other.

mod bad_input;
mod change;
mod detect;
mod failures;
mod grpc;
mod http1;
mod identity;
mod memory;
mod opaque;
mod policies;
mod revocation;
mod uplink;
