//! Heddle's sidecar.
//!
//! ```text
//! outbound:  accept ─ original destination ─ lookup ─┐
//!                                                    ├─ HTTP ─► driver ◄─► heddle-relay
//! inbound:   accept ─ TLS or plaintext ─ peer ───────┤
//!                                                    └─ bytes ─► relay
//! ```
//!
//! Read `outbound`, then `inbound`, then `driver`; what happens to a request is in
//! `heddle-relay`'s `relay`. Every policy is a pure value of `heddle-policy`; this crate is the I/O
//! around both.

pub mod admin;
pub mod app;
pub mod backoff;
pub mod capacity;
pub mod config;
pub mod demand;
pub mod detect;
pub mod dial;
pub mod dns;
pub mod drain;
pub mod driver;
pub mod error;
pub mod exchange;
pub mod health;
pub mod identity;
pub mod inbound;
pub mod init;
pub mod intercept;
pub mod listener;
pub mod machine;
pub mod outbound;
pub mod register;
pub mod relay;
pub mod report;
pub mod session;
pub mod settings;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod uplink;
pub mod worker;
pub mod xds;
