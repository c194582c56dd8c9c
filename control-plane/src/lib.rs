//! Heddle's control plane.

pub mod model;
pub mod store;
