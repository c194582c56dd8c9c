//! Outlier ejection: an endpoint that keeps failing is set aside for a while.

use std::{num::NonZeroU32, time::Duration};

/// `outlierDetection` of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row that eject.
    pub failures_in_a_row: NonZeroU32,
    /// What counts as a failure.
    pub counts: FailureKind,
    /// How often an endpoint's ejection count shrinks by one while it behaves.
    pub interval: Duration,
    /// Ejection time is this times the number of ejections.
    pub base_ejection_time: Duration,
    /// Longest ejection time.
    pub max_ejection_time: Duration,
    /// At most this share of endpoints is ejected, percent; one is always allowed.
    pub max_ejection_percent: u32,
    /// Ejection stops while only this share would remain, percent.
    pub min_health_percent: u32,
}

/// What counts against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// 502, 503, 504, connect failure, timeout, gRPC UNAVAILABLE and DEADLINE_EXCEEDED
    /// (`consecutiveGatewayErrors`).
    GatewayErrors,
    /// Any 5xx as well (`consecutive5xxErrors`).
    ServerErrors,
}
