//! Spans by OTLP, when a collector is configured: one per exchange and side, under the ids that
//! the data path propagated (W3C trace context).
//!
//! The queue and the batches are bounded; what does not fit is dropped and counted.

use std::{borrow::Cow, time::Duration};

use heddle_shell::clock;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use crate::exchange::{Direction, Record};

use super::access_log::{cut, protocol};

/// Spans that wait for a batch.
pub const SPANS_MAX: usize = 2048;

/// Spans in one export.
const BATCH_MAX: usize = 512;

/// Longest wait of a span for its batch.
const BATCH_WAIT: Duration = Duration::from_secs(2);

/// For one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what comes through `spans` to `endpoint` until the senders are gone.
pub async fn export(
    endpoint: String,
    service: String,
    instance: String,
    mut spans: mpsc::Receiver<SpanData>,
) {
    let built = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint.clone())
        .with_timeout(EXPORT_TIMEOUT)
        .build();
    let mut exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => {
            warn!(%error, endpoint, "no spans are exported; is telemetry.otlp_endpoint right?");
            return;
        }
    };
    let resource = Resource::builder_empty()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .build();
    exporter.set_resource(&resource);
    let mut is_failing = false;
    while let Some(first) = spans.recv().await {
        let mut batch = vec![first];
        let until = Instant::now() + BATCH_WAIT;
        while batch.len() < BATCH_MAX {
            match timeout_at(until, spans.recv()).await {
                Ok(Some(span)) => batch.push(span),
                Ok(None) | Err(_) => break,
            }
        }
        match exporter.export(batch).await {
            Ok(()) if is_failing => {
                is_failing = false;
                info!(endpoint, "spans are exported again");
            }
            Err(error) if !is_failing => {
                is_failing = true;
                warn!(%error, endpoint, "exporting spans failed; is the collector reachable?");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// The span of an exchange; `None` when it has no trace or the caller chose not to sample.
pub fn span(record: &Record) -> Option<SpanData> {
    let trace = record.trace.filter(|trace| trace.is_sampled)?;
    let end_time = clock::wall();
    let has_failed = record.status.is_none_or(|status| status >= 500)
        || record.grpc_status.is_some_and(|status| status != 0);
    let (span_kind, name) = match record.direction {
        Direction::Outbound => (SpanKind::Client, "outbound"),
        Direction::Inbound => (SpanKind::Server, "inbound"),
    };
    Some(SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(trace.trace_id.to_be_bytes()),
            SpanId::from_bytes(trace.span_id.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: trace.parent_id.map_or(SpanId::INVALID, |parent| {
            SpanId::from_bytes(parent.to_be_bytes())
        }),
        parent_span_is_remote: true,
        span_kind,
        name: Cow::Owned(format!("{name} {}", cut(&record.destination))),
        start_time: end_time.checked_sub(record.duration).unwrap_or(end_time),
        end_time,
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if has_failed {
            Status::error(record.reason.unwrap_or_default())
        } else {
            Status::Unset
        },
        instrumentation_scope: InstrumentationScope::builder("heddle-proxy").build(),
    })
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let text = |key, value: &str| KeyValue::new(key, cut(value).to_owned());
    let mut attributes = vec![
        KeyValue::new("network.protocol.name", protocol(record.spoken)),
        text("http.request.method", &record.method),
        text("url.path", &record.path),
        text("heddle.destination", &record.destination),
        text("heddle.request_id", &record.request_id),
        KeyValue::new("heddle.attempts", i64::from(record.attempts)),
    ];
    attributes.extend(
        record
            .status
            .map(|status| KeyValue::new("http.response.status_code", i64::from(status))),
    );
    attributes.extend(
        record
            .grpc_status
            .map(|status| KeyValue::new("rpc.grpc.status_code", i64::from(status))),
    );
    attributes.extend(
        record
            .reason
            .map(|reason| KeyValue::new("heddle.reason", reason)),
    );
    attributes.extend(
        record
            .cluster
            .as_ref()
            .map(|cluster| text("heddle.cluster", &cluster.0)),
    );
    attributes.extend(
        record
            .peer
            .id()
            .map(|peer| text("heddle.peer", peer.as_str())),
    );
    attributes
}
