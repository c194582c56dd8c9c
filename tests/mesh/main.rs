//! Two sidecars in this process, real TLS between them, real sockets: callers dial the one,
//! applications sit behind the other.

mod failures;
mod grpc;
mod http1;
mod identity;
mod opaque;
