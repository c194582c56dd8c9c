//! Heddle's control plane.

pub mod addresses;
pub mod audit;
pub mod authn;
pub mod ca;
pub mod config_api;
pub mod model;
pub mod store;
pub mod traffic_api;
