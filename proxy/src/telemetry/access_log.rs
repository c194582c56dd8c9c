//! The access log: one JSON object per exchange on standard output, written by a thread of its
//! own. A full queue drops lines and counts them: a slow reader never holds up traffic.
//!
//! No query, no header value but the request id, no credentials: they are not in a [`Record`].

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use heddle_shell::clock;
use serde_json::{Value, json};

use crate::exchange::{Direction, Record, Spoken};

/// Lines that wait for the writer.
const LINES_MAX: usize = 4096;

/// Longest text of a field taken from a request.
const FIELD_BYTES_MAX: usize = 1024;

/// Starts the writer.
///
/// # Errors
/// When no thread can be made.
pub fn start() -> io::Result<SyncSender<String>> {
    let (lines, queue) = sync_channel(LINES_MAX);
    thread::Builder::new()
        .name("access-log".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || write(&queue))?;
    Ok(lines)
}

fn write(queue: &Receiver<String>) {
    let mut out = io::stdout().lock();
    while let Ok(line) = queue.recv() {
        if out
            .write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            // Nobody reads; lines are then dropped at the queue.
            return;
        }
    }
}

/// One line, its end included.
pub fn line(record: &Record) -> String {
    let trace = record.trace.as_ref();
    let object = json!({
        "time_ms": clock::unix_ms(clock::wall()),
        "direction": direction(record.direction),
        "protocol": protocol(record.spoken),
        "destination": cut(&record.destination),
        "route": &*record.route,
        "cluster": record.cluster.as_ref().map(|cluster| &*cluster.0),
        "endpoint": record.endpoint.map(|endpoint| endpoint.to_string()),
        "peer": record.peer.id().map(heddle_policy::spiffe::SpiffeId::as_str),
        "client": record.client.to_string(),
        "method": cut(&record.method),
        "path": cut(&record.path),
        "status": record.status,
        "grpc_status": record.grpc_status,
        "reason": record.reason,
        "attempts": record.attempts,
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "duration_ms": millis(record.duration),
        "first_response_ms": record.first_response.map_or(Value::Null, millis),
        "request_id": cut(&record.request_id),
        "trace_id": trace.map(|trace| format!("{:032x}", trace.trace_id)),
        "span_id": trace.map(|trace| format!("{:016x}", trace.span_id)),
    });
    format!("{object}\n")
}

/// As the labels of the metrics.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

/// As the labels of the metrics.
pub fn protocol(spoken: Spoken) -> &'static str {
    match spoken {
        Spoken::Http1 => "http1",
        Spoken::Http2 => "http2",
        Spoken::Grpc => "grpc",
        Spoken::Tcp => "tcp",
    }
}

/// At most [`FIELD_BYTES_MAX`] of it.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(FIELD_BYTES_MAX)]
}

fn millis(duration: std::time::Duration) -> Value {
    json!(duration.as_secs_f64() * 1e3)
}
