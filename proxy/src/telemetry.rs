//! What the data path reports: one [`Record`] per finished exchange or connection.

use tokio::sync::mpsc;
use tracing::debug;

use crate::exchange::Record;

/// Takes the facts; decides nothing.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Copies of the records for somebody who watches; a full queue drops them.
    tap: Option<mpsc::Sender<Record>>,
}

impl Telemetry {
    /// Reports, with a copy of each record to `tap`.
    pub fn with_tap(tap: mpsc::Sender<Record>) -> Self {
        Self { tap: Some(tap) }
    }

    /// Takes the facts of one finished exchange or connection. Called exactly once for each.
    pub fn record(&self, record: &Record) {
        debug!(?record, "finished");
        if let Some(tap) = &self.tap {
            _ = tap.try_send(record.clone());
        }
    }
}
