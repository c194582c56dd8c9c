//! What each of Heddle's programs needs around its I/O, written once: the clock, named tasks,
//! values with one writer and many readers, TLS by SPIFFE id, settings files, logs and errors in
//! words.
//!
//! No policy, no protocol, no request path: those are the programs' own.

pub mod causes;
pub mod clock;
pub mod log;
pub mod publish;
pub mod settings;
pub mod task;
pub mod tls;
