//! What the data path reports: one [`Record`] per finished exchange or connection, counted, and
//! logged and traced where configured. Takes the facts; decides nothing.

pub mod access_log;
pub mod metrics;
pub mod trace;

use std::sync::{atomic::Ordering::Relaxed, mpsc::SyncSender};

use heddle_relay::relay;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;

use crate::exchange::{Counted, Record};

use metrics::Metrics;

/// Where records go.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Always on.
    pub metrics: Metrics,
    /// Lines for the writer's thread.
    access_log: Option<SyncSender<String>>,
    /// Spans for the exporter's task.
    spans: Option<mpsc::Sender<SpanData>>,
    /// Copies of the records for somebody who watches; a full queue drops them.
    tap: Option<mpsc::Sender<Record>>,
}

impl Telemetry {
    /// Counts, and sends lines and spans where there is somebody to take them.
    pub fn new(
        access_log: Option<SyncSender<String>>,
        spans: Option<mpsc::Sender<SpanData>>,
    ) -> Self {
        Self {
            access_log,
            spans,
            ..Self::default()
        }
    }

    /// Reports, with a copy of each record to `tap`.
    pub fn with_tap(tap: mpsc::Sender<Record>) -> Self {
        Self {
            tap: Some(tap),
            ..Self::default()
        }
    }

    /// Takes the facts of one finished exchange; as [`Telemetry::record`].
    pub fn exchange(&self, record: &relay::Record) {
        self.record(&record.into(), || record.into());
    }

    /// Takes the facts of one finished exchange or connection. Called exactly once for each;
    /// `describe` only if somebody wants more than numbers.
    pub fn record(&self, counted: &Counted, describe: impl FnOnce() -> Record) {
        self.metrics.record(counted);
        let wants_span = self.spans.is_some() && counted.is_sampled;
        if self.access_log.is_none() && self.tap.is_none() && !wants_span {
            return;
        }
        let record = &describe();
        if let Some(lines) = &self.access_log
            && lines.try_send(access_log::line(record)).is_err()
        {
            self.metrics.dropped.access_log.fetch_add(1, Relaxed);
        }
        if let Some(spans) = &self.spans
            && let Some(span) = trace::span(record)
            && spans.try_send(span).is_err()
        {
            self.metrics.dropped.spans.fetch_add(1, Relaxed);
        }
        if let Some(tap) = &self.tap {
            _ = tap.try_send(record.clone());
        }
    }
}

#[cfg(test)]
mod tests;
