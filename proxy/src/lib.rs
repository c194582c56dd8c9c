//! Heddle's sidecar.
//!
//! ```text
//! outbound:  accept ─ original destination ─ lookup ─ route ─ admit ─ deadline ─┐
//!              commit ◄─ decide ◄─ send (mTLS) ◄─ pick ◄────────────────────────┘
//! inbound:   accept ─ TLS or plaintext ─ peer ─ authz ─ the workload's own port
//! ```
//!
//! Read `outbound`, then `inbound`, then `exchange`. Every policy is a pure value of
//! `heddle-policy`; this crate is the I/O around it.

pub mod admin;
pub mod app;
pub mod backoff;
pub mod body;
pub mod capacity;
pub mod channel;
pub mod config;
pub mod demand;
pub mod detect;
pub mod dns;
pub mod drain;
pub mod error;
pub mod exchange;
pub mod head;
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
pub mod reply;
pub mod report;
pub mod serve;
pub mod session;
pub mod settings;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod uplink;
pub mod worker;
pub mod xds;
