//! Heddle's control plane.

pub mod addresses;
pub mod app;
pub mod audit;
pub mod authn;
pub mod ca;
pub mod compile;
pub mod config;
pub mod config_api;
pub mod discovery;
pub mod files;
pub mod follow;
pub mod health;
pub mod model;
pub mod page;
pub mod registry;
pub mod room;
pub mod shares;
pub mod status;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod tls_listener;
pub mod token;
pub mod traffic_api;
pub mod world;
