//! Counters and their text form (Prometheus exposition format 0.0.4).
//!
//! Every label comes from a closed set, so a metric is an array of atomics indexed by its labels:
//! recording takes no lock and looks nothing up. Written by hand because the metric crates take a
//! lock for each observation and write OpenMetrics names that `promtool check metrics` refuses.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::exchange::{Counted, Direction, Spoken};

/// Upper bounds of `http_request_duration_seconds`, in microseconds and as text.
const BUCKETS: [(u64, &str); 16] = [
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_000_000, "2"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];

const DIRECTIONS: [&str; 2] = ["outbound", "inbound"];
const SPOKEN: [&str; 4] = ["http1", "http2", "grpc", "tcp"];
/// By the hundreds; `none` when nothing was sent.
const CODES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// gRPC statuses 0 to 16; `none` for others.
const GRPC: [&str; 18] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
    "none",
];
/// Different reason words of the proxy's own answers; beyond it they count as `other`.
const REASONS_MAX: usize = 64;

/// Counters of the data path and of the DNS server.
#[derive(Debug)]
pub struct Metrics {
    requests: Vec<AtomicU64>,
    durations: Vec<Histogram>,
    connections: [AtomicU64; 2],
    /// Exchanges and opaque connections, per direction, and how many of them have ended.
    begun: [AtomicU64; 2],
    ended: [AtomicU64; 2],
    /// From clients, to clients; per direction.
    bytes: [[AtomicU64; 2]; 2],
    /// Attempts beyond the first, per direction.
    attempts: [AtomicU64; 2],
    /// Words are constants of `error.rs`; the list grows to their number and no further.
    reasons: parking_lot::RwLock<Vec<(usize, &'static str, AtomicU64)>>,
    /// Answered here, forwarded, refused, failed.
    pub dns: DnsMetrics,
    /// Access log lines and spans that found their queue full.
    pub dropped: Dropped,
    /// Tasks and workers that panicked; each is a bug.
    pub panics: AtomicU64,
}

/// Queries of the DNS server by what became of them.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    /// Mesh names.
    pub answered: AtomicU64,
    /// Passed on.
    pub forwarded: AtomicU64,
    /// Passed on without an answer.
    pub failed: AtomicU64,
    /// Not DNS, or too many at once.
    pub refused: AtomicU64,
}

/// Telemetry that was lost rather than let it hold up traffic.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Access log lines.
    pub access_log: AtomicU64,
    /// Spans.
    pub spans: AtomicU64,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last one is `+Inf`.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            requests: zeros(DIRECTIONS.len() * SPOKEN.len() * CODES.len() * GRPC.len()),
            durations: (0..DIRECTIONS.len() * SPOKEN.len())
                .map(|_| Histogram::default())
                .collect(),
            connections: Default::default(),
            begun: Default::default(),
            ended: Default::default(),
            bytes: Default::default(),
            attempts: Default::default(),
            reasons: Default::default(),
            dns: DnsMetrics::default(),
            dropped: Dropped::default(),
            panics: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// As many exchanges or opaque connections more are under way.
    pub fn begin(&self, direction: Direction, count: u64) {
        self.begun[index(direction)].fetch_add(count, Relaxed);
    }

    /// One no longer is.
    pub fn end(&self, direction: Direction) {
        self.ended[index(direction)].fetch_add(1, Relaxed);
    }

    /// How many have ever begun, and how many of those are under way.
    pub fn activity(&self, direction: Direction) -> (u64, u64) {
        // In this order: what ends between the two loads counts as under way, nothing is missed.
        let ended = self.ended[index(direction)].load(Relaxed);
        let begun = self.begun[index(direction)].load(Relaxed);
        (begun, begun.saturating_sub(ended))
    }

    /// Counts one finished exchange or connection.
    pub fn record(&self, record: &Counted) {
        let direction = index(record.direction);
        let spoken = match record.spoken {
            Spoken::Http1 => 0,
            Spoken::Http2 => 1,
            Spoken::Grpc => 2,
            Spoken::Tcp => 3,
        };
        self.bytes[direction][0].fetch_add(record.bytes_received, Relaxed);
        self.bytes[direction][1].fetch_add(record.bytes_sent, Relaxed);
        self.attempts[direction].fetch_add(u64::from(record.attempts.saturating_sub(1)), Relaxed);
        if let Some(reason) = record.reason {
            self.reason(direction, reason);
        }
        if record.spoken == Spoken::Tcp {
            self.connections[direction].fetch_add(1, Relaxed);
            return;
        }
        let code = match record.status {
            Some(status @ 100..600) => usize::from(status / 100),
            Some(_) | None => 0,
        };
        let none = GRPC.len() - 1;
        let grpc = match record.grpc_status.map(usize::try_from) {
            Some(Ok(status)) => status.min(none),
            Some(Err(_)) | None => none,
        };
        let kind = direction * SPOKEN.len() + spoken;
        self.requests[(kind * CODES.len() + code) * GRPC.len() + grpc].fetch_add(1, Relaxed);
        self.durations[kind].observe(record.duration);
    }

    fn reason(&self, direction: usize, reason: &'static str) {
        let is_it = |one: &&(usize, &'static str, AtomicU64)| one.0 == direction && one.1 == reason;
        if let Some(known) = self.reasons.read().iter().find(is_it) {
            known.2.fetch_add(1, Relaxed);
            return;
        }
        let mut reasons = self.reasons.write();
        // Another worker may have been faster.
        if let Some(known) = reasons.iter().find(is_it) {
            known.2.fetch_add(1, Relaxed);
        } else if reasons.len() < REASONS_MAX {
            reasons.push((direction, reason, AtomicU64::new(1)));
        }
    }

    /// Appends everything that has happened at least once, and the rest as zero where it has no
    /// labels.
    pub fn write(&self, text: &mut Text) {
        text.family("http_requests_total", "counter", "Finished HTTP exchanges.");
        for (i, count) in self.requests.iter().enumerate() {
            let count = count.load(Relaxed);
            if count > 0 {
                let (kind, grpc) = (i / GRPC.len() / CODES.len(), i % GRPC.len());
                let labels = [
                    ("direction", DIRECTIONS[kind / SPOKEN.len()]),
                    ("protocol", SPOKEN[kind % SPOKEN.len()]),
                    ("code", CODES[i / GRPC.len() % CODES.len()]),
                    ("grpc_status", GRPC[grpc]),
                ];
                text.sample("http_requests_total", &labels, count);
            }
        }
        let name = "http_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "Time from the request head to the end of the response.",
        );
        for (kind, histogram) in self.durations.iter().enumerate() {
            let labels = [
                ("direction", DIRECTIONS[kind / SPOKEN.len()]),
                ("protocol", SPOKEN[kind % SPOKEN.len()]),
            ];
            histogram.write(text, name, labels);
        }
        let by_direction = |text: &mut Text, name: &str, help: &str, counts: [&AtomicU64; 2]| {
            text.family(name, "counter", help);
            for (direction, count) in DIRECTIONS.iter().zip(counts) {
                text.sample(name, &[("direction", direction)], count.load(Relaxed));
            }
        };
        let [out, inward] = &self.connections;
        let help = "Finished opaque connections.";
        by_direction(text, "heddle_tcp_connections_total", help, [out, inward]);
        let [out, inward] = &self.bytes;
        let help = "Body bytes from clients.";
        by_direction(
            text,
            "heddle_received_bytes_total",
            help,
            [&out[0], &inward[0]],
        );
        let help = "Body bytes to clients.";
        by_direction(text, "heddle_sent_bytes_total", help, [&out[1], &inward[1]]);
        let [out, inward] = &self.attempts;
        let help = "Attempts beyond the first, re-picks included.";
        by_direction(text, "heddle_extra_attempts_total", help, [out, inward]);
        let name = "heddle_own_answers_total";
        text.family(
            name,
            "counter",
            "Exchanges that the sidecar itself answered or cut, by reason.",
        );
        for (direction, reason, count) in self.reasons.read().iter() {
            let labels = [("direction", DIRECTIONS[*direction]), ("reason", reason)];
            text.sample(name, &labels, count.load(Relaxed));
        }
        self.write_own(text);
    }

    fn write_own(&self, text: &mut Text) {
        let name = "heddle_exchanges_active";
        text.family(
            name,
            "gauge",
            "HTTP exchanges and opaque connections under way.",
        );
        for direction in [Direction::Outbound, Direction::Inbound] {
            let (_, active) = self.activity(direction);
            let labels = [("direction", DIRECTIONS[index(direction)])];
            text.sample(name, &labels, active);
        }
        let name = "heddle_dns_queries_total";
        let help =
            "DNS queries, and TCP connections over the limit (refused), by what became of them.";
        text.family(name, "counter", help);
        for (result, count) in [
            ("answered", &self.dns.answered),
            ("forwarded", &self.dns.forwarded),
            ("failed", &self.dns.failed),
            ("refused", &self.dns.refused),
        ] {
            text.sample(name, &[("result", result)], count.load(Relaxed));
        }
        let name = "heddle_telemetry_dropped_total";
        text.family(
            name,
            "counter",
            "Access log lines and spans lost to a full queue.",
        );
        for (kind, count) in [
            ("access_log", &self.dropped.access_log),
            ("span", &self.dropped.spans),
        ] {
            text.sample(name, &[("kind", kind)], count.load(Relaxed));
        }
        let name = "heddle_panics_total";
        text.family(name, "counter", "Panics; each is a bug.");
        text.sample(name, &[], self.panics.load(Relaxed));
    }
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Outbound => 0,
        Direction::Inbound => 1,
    }
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let at = BUCKETS.partition_point(|(bound, _)| *bound < us);
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn write(&self, text: &mut Text, name: &str, [direction, protocol]: [(&str, &str); 2]) {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|count| count.load(Relaxed))
            .collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let mut below = 0;
        let bounds = BUCKETS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (bound, count) in bounds.zip(counts) {
            below += count;
            let labels = [direction, protocol, ("le", bound)];
            text.sample(&format!("{name}_bucket"), &labels, below);
        }
        let sum = Duration::from_micros(self.sum_us.load(Relaxed)).as_secs_f64();
        text.sample(&format!("{name}_sum"), &[direction, protocol], sum);
        text.sample(&format!("{name}_count"), &[direction, protocol], total);
    }
}

/// Text exposition in the making.
#[derive(Debug, Default)]
pub struct Text(pub String);

impl Text {
    /// Begins a family. `help` has no backslash and no line break: it is ours.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value. Labels are ours: words without quotes.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        _ = writeln!(self.0, "{close} {value}");
    }

    /// A family with one value and no labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// As [`Text::gauge`], for what only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }
}
