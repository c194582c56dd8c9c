use std::{sync::Arc, time::Duration};

use heddle_policy::spiffe::Peer;

use crate::exchange::{Direction, Spoken, Trace};

use super::{metrics::Text, *};

fn record() -> Record {
    Record {
        direction: Direction::Outbound,
        spoken: Spoken::Grpc,
        destination: "user.shop:80".into(),
        route: Arc::default(),
        cluster: None,
        endpoint: Some("10.0.0.1:80".parse().unwrap()),
        peer: Peer::Anonymous,
        client: "127.0.0.1:1".parse().unwrap(),
        method: "POST".into(),
        path: "/a\"b\n".into(),
        status: Some(200),
        grpc_status: Some(14),
        reason: Some("connect"),
        attempts: 3,
        bytes_received: 10,
        bytes_sent: 20,
        duration: Duration::from_millis(1),
        first_response: None,
        request_id: "r".into(),
        trace: Some(Trace {
            trace_id: 0xabc,
            span_id: 0xde,
            parent_id: None,
            is_sampled: true,
        }),
    }
}

#[test]
fn an_exchange_is_counted_by_closed_labels() {
    let telemetry = Telemetry::default();
    telemetry.record(&record().counted(), record);
    telemetry.record(&record().counted(), record);
    let mut text = Text::default();
    telemetry.metrics.write(&mut text);
    let labels = "direction=\"outbound\",protocol=\"grpc\"";
    for line in [
        format!("http_requests_total{{{labels},code=\"2xx\",grpc_status=\"14\"}} 2"),
        // A bound belongs to its own bucket.
        format!("http_request_duration_seconds_bucket{{{labels},le=\"0.001\"}} 2"),
        format!("http_request_duration_seconds_bucket{{{labels},le=\"0.0005\"}} 0"),
        format!("http_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("http_request_duration_seconds_sum{{{labels}}} 0.002"),
        format!("http_request_duration_seconds_count{{{labels}}} 2"),
        "heddle_own_answers_total{direction=\"outbound\",reason=\"connect\"} 2".to_owned(),
        "heddle_extra_attempts_total{direction=\"outbound\"} 4".to_owned(),
        "heddle_sent_bytes_total{direction=\"outbound\"} 40".to_owned(),
    ] {
        assert!(
            text.0.lines().any(|found| found == line),
            "{line} is not in:\n{}",
            text.0
        );
    }
}

#[test]
fn odd_statuses_are_counted_as_none() {
    let telemetry = Telemetry::default();
    let odd = Record {
        status: Some(999),
        grpc_status: Some(77),
        ..record()
    };
    telemetry.record(&odd.counted(), || odd.clone());
    let mut text = Text::default();
    telemetry.metrics.write(&mut text);
    assert!(
        text.0.contains("code=\"none\",grpc_status=\"none\"} 1"),
        "{}",
        text.0
    );
}

#[test]
fn an_access_log_line_is_one_line_of_json() {
    let line = access_log::line(&Record {
        path: "x".repeat(5000).into(),
        ..record()
    });
    assert_eq!(line.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["path"].as_str().unwrap().len(), 1024);
    assert_eq!(value["trace_id"], "00000000000000000000000000000abc");
    let line = access_log::line(&record());
    assert_eq!(line.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["path"], "/a\"b\n");
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (lines, _queue) = std::sync::mpsc::sync_channel(1);
    let (spans, _queue_of_spans) = mpsc::channel(1);
    let telemetry = Telemetry::new(Some(lines), Some(spans));
    for _ in 0..3 {
        telemetry.record(&record().counted(), record);
    }
    assert_eq!(telemetry.metrics.dropped.access_log.load(Relaxed), 2);
    assert_eq!(telemetry.metrics.dropped.spans.load(Relaxed), 2);
}

#[test]
fn a_span_has_the_ids_that_were_propagated() {
    let span = trace::span(&record()).unwrap();
    assert_eq!(
        span.span_context.trace_id().to_string(),
        format!("{:032x}", 0xabc)
    );
    assert_eq!(
        span.span_context.span_id().to_string(),
        format!("{:016x}", 0xde)
    );
    let unsampled = Trace {
        is_sampled: false,
        ..record().trace.unwrap()
    };
    assert!(
        trace::span(&Record {
            trace: Some(unsampled),
            ..record()
        })
        .is_none()
    );
}
