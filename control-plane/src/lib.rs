//! Heddle's control plane.

pub mod authn;
pub mod ca;
pub mod model;
pub mod store;
