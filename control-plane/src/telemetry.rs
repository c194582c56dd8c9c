//! What the control plane counts, for Prometheus. Every label comes from a closed enum.

use std::{
    collections::HashSet,
    fmt::{self, Write},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use heddle_policy::snapshot::xds::ResourceType;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    certificates_issued: Family<ProofLabel, Counter>,
    issue_refusals: Family<IssueRefusalLabel, Counter>,
    requests_refused: Family<RequestRefusalLabel, Counter>,
    handshakes_failed: Family<HandshakeFailureLabel, Counter>,
    streams: Family<StreamLabel, Gauge>,
    xds_responses: Family<TypeLabel, Counter>,
    xds_rejections: Family<TypeLabel, Counter>,
    registration_refusals: Counter,
    pub(crate) connections: Gauge,
    pub(crate) registrations: Gauge,
    pub(crate) store_revision: Gauge<u64, AtomicU64>,
    pub(crate) store_latency: Histogram,
    first_expiry: Gauge<f64, AtomicU64>,
}

/// What a certificate was issued on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProofKind {
    /// A bearer token.
    Token,
    /// The current certificate.
    Certificate,
}

/// Why `Issue` refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IssueRefusal {
    /// The last token proof is too old.
    ProofTooOld,
    /// Too fast for one identity.
    Paced,
    /// The identity has as many live certificates as it may.
    TooMany,
    /// The request does not parse or verify.
    Request,
    /// The authority or the store failed.
    Internal,
}

/// Why the gate refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestRefusal {
    /// A token that is not good.
    Token,
    /// A certificate that proves nothing here.
    Certificate,
    /// Token and certificate of two identities.
    ProofsDiffer,
    /// A denied identity, or a proof at its end.
    ProofEnded,
    /// No proof, for something that needs one.
    Unproven,
    /// A proof, for something that needs another.
    NotPermitted,
    /// Not in the table.
    UnknownMethod,
    /// The ledger did not answer.
    Unavailable,
    /// Its identity has as many streams of the kind as it may.
    TooManyStreams,
}

/// Why a connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// It took too long.
    Timeout,
    /// Not TLS, or a certificate we do not trust.
    Tls,
    /// Too many connections.
    Overloaded,
}

/// Long streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// `WatchTrustBundle`.
    TrustBundle,
    /// `Register`.
    Registration,
    /// `Report`.
    Report,
    /// ADS, of either form.
    Discovery,
}

/// How a closed set reads in labels.
macro_rules! label_values {
    ($($set:ident { $($value:ident => $word:literal),+ $(,)? })+) => {$(
        impl EncodeLabelValue for $set {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(match self {
                    $(Self::$value => $word,)+
                })
            }
        }
    )+};
}

label_values! {
    ProofKind { Token => "token", Certificate => "certificate" }
    IssueRefusal {
        ProofTooOld => "proof_too_old",
        Paced => "paced",
        TooMany => "too_many",
        Request => "request",
        Internal => "internal",
    }
    RequestRefusal {
        Token => "token",
        Certificate => "certificate",
        ProofsDiffer => "proofs_differ",
        ProofEnded => "proof_ended",
        Unproven => "unproven",
        NotPermitted => "not_permitted",
        UnknownMethod => "unknown_method",
        Unavailable => "unavailable",
        TooManyStreams => "too_many_streams",
    }
    HandshakeFailure { Timeout => "timeout", Tls => "tls", Overloaded => "overloaded" }
    StreamKind {
        TrustBundle => "trust_bundle",
        Registration => "registration",
        Report => "report",
        Discovery => "discovery",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProofLabel {
    proof: ProofKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssueRefusalLabel {
    reason: IssueRefusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestRefusalLabel {
    reason: RequestRefusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeFailureLabel {
    reason: HandshakeFailure,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabel {
    kind: StreamKind,
}

/// Label of what is counted by xDS type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

/// Counts a stream for as long as it lives.
#[derive(Debug)]
pub struct OpenStream(Gauge);

/// Seconds; a redb commit takes one to ten milliseconds.
const STORE_BUCKETS: [f64; 8] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

impl Metrics {
    /// All at zero.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("heddle_control_plane"),
            certificates_issued: Family::default(),
            issue_refusals: Family::default(),
            requests_refused: Family::default(),
            handshakes_failed: Family::default(),
            streams: Family::default(),
            xds_responses: Family::default(),
            xds_rejections: Family::default(),
            registration_refusals: Counter::default(),
            connections: Gauge::default(),
            registrations: Gauge::default(),
            store_revision: Gauge::default(),
            store_latency: Histogram::new(STORE_BUCKETS),
            first_expiry: Gauge::default(),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "certificates_issued",
            "Certificates issued, by what the caller proved itself with",
            self.certificates_issued.clone(),
        );
        r.register(
            "certificate_refusals",
            "Certificate requests refused, by reason",
            self.issue_refusals.clone(),
        );
        r.register(
            "requests_refused",
            "Requests refused before a service saw them, by reason",
            self.requests_refused.clone(),
        );
        r.register(
            "handshakes_failed",
            "Connections that came to nothing, by reason",
            self.handshakes_failed.clone(),
        );
        r.register("streams", "Open streams, by kind", self.streams.clone());
        r.register(
            "xds_responses",
            "Responses sent over ADS, by type",
            self.xds_responses.clone(),
        );
        r.register(
            "xds_rejections",
            "Responses that clients refused (NACK), by type",
            self.xds_rejections.clone(),
        );
        r.register(
            "registration_refusals",
            "Registrations refused",
            self.registration_refusals.clone(),
        );
        r.register("connections", "Open connections", self.connections.clone());
        r.register(
            "registrations",
            "Registered workloads",
            self.registrations.clone(),
        );
        r.register(
            "store_revision",
            "Newest revision of the store",
            self.store_revision.clone(),
        );
        r.register_with_unit(
            "store_commit",
            "How long the store takes to make a change durable",
            Unit::Seconds,
            self.store_latency.clone(),
        );
        r.register_with_unit(
            "first_certificate_expiry",
            "Time left to the authority's first certificate that expires",
            Unit::Seconds,
            self.first_expiry.clone(),
        );
    }

    /// In the text format of Prometheus.
    pub fn encoded(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes any text");
        classic(&text)
    }

    /// A certificate was issued.
    pub fn issued(&self, proof: ProofKind) {
        self.certificates_issued
            .get_or_create(&ProofLabel { proof })
            .inc();
    }

    /// A certificate was refused.
    pub fn issue_refused(&self, reason: IssueRefusal) {
        self.issue_refusals
            .get_or_create(&IssueRefusalLabel { reason })
            .inc();
    }

    /// The gate refused a request.
    pub fn request_refused(&self, reason: RequestRefusal) {
        self.requests_refused
            .get_or_create(&RequestRefusalLabel { reason })
            .inc();
    }

    /// A connection came to nothing.
    pub fn handshake_failed(&self, reason: HandshakeFailure) {
        self.handshakes_failed
            .get_or_create(&HandshakeFailureLabel { reason })
            .inc();
    }

    /// A response was sent over ADS.
    pub fn pushed(&self, kind: ResourceType) {
        let label = TypeLabel {
            r#type: kind.word(),
        };
        self.xds_responses.get_or_create(&label).inc();
    }

    /// A response was refused by its client.
    pub fn rejected(&self, kind: ResourceType) {
        let label = TypeLabel {
            r#type: kind.word(),
        };
        self.xds_rejections.get_or_create(&label).inc();
    }

    /// A registration was refused.
    pub fn registration_refused(&self) {
        self.registration_refusals.inc();
    }

    /// A stream has opened.
    pub fn stream(&self, kind: StreamKind) -> OpenStream {
        let gauge = self.streams.get_or_create(&StreamLabel { kind }).clone();
        gauge.inc();
        OpenStream(gauge)
    }

    /// When the authority's first certificate expires.
    pub fn expires(&self, not_after: SystemTime, wall: SystemTime) {
        let left = not_after.duration_since(wall).unwrap_or(Duration::ZERO);
        self.first_expiry.set(left.as_secs_f64());
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// OpenMetrics as the older text format, which every scraper and `promtool` reads: there a
/// counter's family has its samples' name, and there are neither units nor an end.
fn classic(text: &str) -> String {
    let counters: HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut classic = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (mark, word, name) = (words.next(), words.next(), words.next());
        match (mark, word, name) {
            (Some("#"), Some("EOF" | "UNIT"), _) => {}
            (Some("#"), Some(word), Some(name)) if counters.contains(name) => {
                let rest = words.next().unwrap_or_default();
                _ = writeln!(classic, "# {word} {name}_total {rest}");
            }
            _ => _ = writeln!(classic, "{line}"),
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let text = "# HELP a_b Some thing.\n# TYPE a_b counter\n# UNIT a_b bytes\na_b_total 1\n\
                    # HELP c Other.\n# TYPE c gauge\nc 2\n# EOF\n";
        assert_eq!(
            classic(text),
            "# HELP a_b_total Some thing.\n# TYPE a_b_total counter\na_b_total 1\n\
             # HELP c Other.\n# TYPE c gauge\nc 2\n"
        );
    }
}
