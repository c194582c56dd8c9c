//! The relay core: bytes of connections in, bytes of other connections out.
//!
//! Nothing here performs I/O, reads a clock or draws from a random source: `now` is an argument,
//! and a driver carries the bytes. So the whole of it runs in a simulation as it runs in a
//! sidecar. No tokio, hyper, http, tonic or rustls item is named in this crate (the `tidy` test
//! reads the paths).
//!
//! ```text
//!              Input                Event                                     Output
//! driver ────────────► connection ────────────► (exchange) ──► connection ────────────► driver
//!   bytes that came    h2, h1        Head, Data, Trailers        h2, h1     bytes to send
//! ```
//!
//! A connection turns bytes into events and what is sent into bytes, whatever it speaks: a
//! [`head::Head`] is the same for HTTP/1.1 and HTTP/2. Everything from the network is hostile
//! here; what is wrong gets the error that the RFC names, and every buffer has a bound.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![warn(clippy::wildcard_enum_match_arm)]

pub mod budget;
pub mod cluster;
pub mod error;
pub mod event;
pub mod h2;
pub mod head;
pub mod hpack;
pub mod input;
pub mod meshed;
pub mod output;
pub mod record;
pub mod request;
pub mod timer;
pub mod token;
pub mod view;
