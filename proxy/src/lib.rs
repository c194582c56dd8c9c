//! Heddle's sidecar.

pub mod intercept;
