//! Transport sockets of both directions.

#![expect(deprecated, reason = "deprecated fields of TLS must be refused too")]

use heddle_proto::xds::envoy::{
    config::listener::v3::Listener as WireListener,
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            SubjectAltNameMatcher, UpstreamTlsContext,
            common_tls_context::{
                CertificateProvider, CertificateProviderInstance,
                CombinedCertificateValidationContext, ValidationContextType,
            },
            downstream_tls_context::SessionTicketKeysType,
            subject_alt_name_matcher::SanType,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::*;

pub(super) const ECHO: &str = "spiffe://td/ns/shop/sa/echo";

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: None,
    }
}

fn exact_uri(id: &str) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(id.to_owned())),
            ignore_case: false,
        }),
        oid: String::new(),
    }
}

fn combined(ids: &[&str]) -> CombinedCertificateValidationContext {
    CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: ids.iter().copied().map(exact_uri).collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    }
}

fn common(ids: &[&str]) -> Option<CommonTlsContext> {
    Some(CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        alpn_protocols: vec!["h2".to_owned()],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined(
            ids,
        ))),
        ..Default::default()
    })
}

pub(super) fn upstream() -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: common(&[ECHO]),
        ..Default::default()
    }
}

pub(super) fn downstream() -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: common(&[]),
        require_client_certificate: bool_value(true),
        ..Default::default()
    }
}

/// A cluster with this socket for its meshed endpoints.
fn to_endpoints(socket: Option<TransportSocket>) -> WireCluster {
    let mut cluster = cluster::good();
    cluster.transport_socket_matches[0].transport_socket = socket;
    cluster
}

/// The inbound listener with this socket on its first chain.
fn from_callers(socket: Option<TransportSocket>) -> WireListener {
    let mut listener = listener::inbound();
    listener.filter_chains[0].transport_socket = socket;
    listener
}

const TO_ENDPOINTS: &str = "transport_socket_matches[0].transport_socket.typed_config";
const FROM_CALLERS: &str = "filter_chains[0].transport_socket.typed_config";

#[test]
fn what_upstream_tls_does_not_support_is_refused() {
    check_refused(
        &upstream(),
        |context| to_endpoints(socket(pack(&context))),
        TO_ENDPOINTS,
        &[
            ("auto_host_sni", |c| c.auto_host_sni = true),
            ("auto_sni_san_validation", |c| {
                c.auto_sni_san_validation = true;
            }),
            ("allow_renegotiation", |c| c.allow_renegotiation = true),
            ("enforce_rsa_key_usage", |c| {
                c.enforce_rsa_key_usage = bool_value(false);
            }),
        ],
    );
}

#[test]
fn what_downstream_tls_does_not_support_is_refused() {
    check_refused(
        &downstream(),
        |context| from_callers(socket(pack(&context))),
        FROM_CALLERS,
        &[
            ("require_client_certificate", |c| {
                c.require_client_certificate = None;
            }),
            ("require_client_certificate", |c| {
                c.require_client_certificate = bool_value(false);
            }),
            ("require_sni", |c| c.require_sni = bool_value(true)),
            ("ocsp_staple_policy", |c| c.ocsp_staple_policy = 1),
            ("session_timeout", |c| {
                c.session_timeout = Some(Default::default());
            }),
            ("session_ticket_keys_type", |c| {
                c.session_ticket_keys_type = Some(
                    SessionTicketKeysType::DisableStatelessSessionResumption(true),
                );
            }),
            ("full_scan_certs_on_sni_mismatch", |c| {
                c.full_scan_certs_on_sni_mismatch = bool_value(true);
            }),
            ("prefer_client_ciphers", |c| c.prefer_client_ciphers = true),
            (
                "common_tls_context.combined_validation_context.default_validation_context.match_typed_subject_alt_names",
                |c| c.common_tls_context = common(&[ECHO]),
            ),
        ],
    );
}

/// The part that both directions share, in each of them.
fn check_common(at: &str, rows: &[Row<CommonTlsContext>]) {
    let at = if at.is_empty() {
        ""
    } else {
        &*format!(".{at}")
    };
    check_refused(
        &common(&[ECHO]).unwrap(),
        |common| {
            let mut context = upstream();
            context.common_tls_context = Some(common);
            to_endpoints(socket(pack(&context)))
        },
        &format!("{TO_ENDPOINTS}.common_tls_context{at}"),
        rows,
    );
    check_refused(
        &common(&[]).unwrap(),
        |common| {
            let mut context = downstream();
            context.common_tls_context = Some(common);
            from_callers(socket(pack(&context)))
        },
        &format!("{FROM_CALLERS}.common_tls_context{at}"),
        rows,
    );
}

#[test]
fn own_secrets_and_nothing_else_are_taken() {
    check_common(
        "",
        &[
            ("tls_params", |c| c.tls_params = Some(Default::default())),
            ("tls_certificates", |c| {
                c.tls_certificates = vec![Default::default()];
            }),
            ("tls_certificate_sds_secret_configs", |c| {
                c.tls_certificate_sds_secret_configs.clear();
            }),
            ("tls_certificate_sds_secret_configs", |c| {
                c.tls_certificate_sds_secret_configs = vec![secret("other")];
            }),
            ("tls_certificate_sds_secret_configs", |c| {
                c.tls_certificate_sds_secret_configs = vec![secret("default"), secret("other")];
            }),
            ("tls_certificate_provider_instance", |c| {
                c.tls_certificate_provider_instance = Some(Default::default());
            }),
            ("custom_tls_certificate_selector", |c| {
                c.custom_tls_certificate_selector = Some(Default::default());
            }),
            ("tls_certificate_certificate_provider", |c| {
                c.tls_certificate_certificate_provider = Some(Default::default());
            }),
            ("tls_certificate_certificate_provider_instance", |c| {
                c.tls_certificate_certificate_provider_instance = Some(Default::default());
            }),
            ("custom_handshaker", |c| {
                c.custom_handshaker = Some(Default::default());
            }),
            ("key_log", |c| c.key_log = Some(Default::default())),
            ("validation_context_type", |c| {
                c.validation_context_type = None;
            }),
            ("validation_context_type", |c| {
                let inline = ValidationContextType::ValidationContext(Default::default());
                c.validation_context_type = Some(inline);
            }),
            ("validation_context_type", |c| {
                let provider = CertificateProvider::default();
                c.validation_context_type = Some(
                    ValidationContextType::ValidationContextCertificateProvider(provider),
                );
            }),
            ("validation_context_type", |c| {
                let instance = CertificateProviderInstance::default();
                c.validation_context_type = Some(
                    ValidationContextType::ValidationContextCertificateProviderInstance(instance),
                );
            }),
        ],
    );
}

fn of_combined(common: &mut CommonTlsContext) -> &mut CombinedCertificateValidationContext {
    match &mut common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => combined,
        other => panic!("{other:?}"),
    }
}

fn of_default(common: &mut CommonTlsContext) -> &mut CertificateValidationContext {
    of_combined(common)
        .default_validation_context
        .as_mut()
        .unwrap()
}

#[test]
fn the_trust_bundle_is_our_own() {
    check_common(
        "combined_validation_context",
        &[
            ("validation_context_sds_secret_config", |c| {
                of_combined(c).validation_context_sds_secret_config = None;
            }),
            ("validation_context_sds_secret_config", |c| {
                of_combined(c).validation_context_sds_secret_config = Some(secret("other"));
            }),
            ("validation_context_certificate_provider", |c| {
                of_combined(c).validation_context_certificate_provider = Some(Default::default());
            }),
            ("validation_context_certificate_provider_instance", |c| {
                of_combined(c).validation_context_certificate_provider_instance =
                    Some(Default::default());
            }),
        ],
    );
}

#[test]
fn validation_says_nothing_but_identities() {
    const WHOLE: &str = "";
    check_common(
        "combined_validation_context.default_validation_context",
        &[
            (WHOLE, |c| {
                of_default(c).trusted_ca = Some(Default::default());
            }),
            (WHOLE, |c| {
                of_default(c).ca_certificate_provider_instance = Some(Default::default());
            }),
            (WHOLE, |c| {
                of_default(c).system_root_certs = Some(Default::default());
            }),
            (WHOLE, |c| {
                of_default(c).watched_directory = Some(Default::default());
            }),
            (WHOLE, |c| {
                of_default(c).verify_certificate_spki = vec![String::new()];
            }),
            (WHOLE, |c| {
                of_default(c).verify_certificate_hash = vec![String::new()];
            }),
            (WHOLE, |c| {
                of_default(c).match_subject_alt_names = vec![Default::default()];
            }),
            (WHOLE, |c| {
                of_default(c).require_signed_certificate_timestamp = bool_value(true);
            }),
            (WHOLE, |c| of_default(c).crl = Some(Default::default())),
            (WHOLE, |c| of_default(c).allow_expired_certificate = true),
            (WHOLE, |c| of_default(c).trust_chain_verification = 1),
            (WHOLE, |c| {
                of_default(c).custom_validator_config = Some(Default::default());
            }),
            (WHOLE, |c| of_default(c).only_verify_leaf_cert_crl = true),
            (WHOLE, |c| of_default(c).max_verify_depth = u32_value(1)),
            (WHOLE, |c| of_default(c).suppress_client_ca_list = true),
        ],
    );
}

/// One matcher of endpoints' identities.
#[test]
fn an_identity_is_one_exact_spiffe_id() {
    fn string(matcher: &mut SubjectAltNameMatcher) -> &mut StringMatcher {
        matcher.matcher.as_mut().unwrap()
    }
    let with = |matchers: Vec<SubjectAltNameMatcher>| {
        let mut context = upstream();
        let common = context.common_tls_context.as_mut().unwrap();
        of_default(common).match_typed_subject_alt_names = matchers;
        to_endpoints(socket(pack(&context)))
    };
    let at = format!(
        "{TO_ENDPOINTS}.common_tls_context.combined_validation_context.default_validation_context.match_typed_subject_alt_names"
    );
    check_refused(
        &exact_uri(ECHO),
        |matcher| with(vec![exact_uri("spiffe://td/ns/shop/sa/a"), matcher]),
        &format!("{at}[1]"),
        &[
            ("san_type", |m| m.san_type = SanType::Dns.into()),
            ("san_type", |m| m.san_type = SanType::Unspecified.into()),
            ("san_type", |m| m.san_type = 99),
            ("oid", |m| m.oid = "1.2.3".to_owned()),
            ("matcher", |m| m.matcher = None),
            ("matcher", |m| string(m).match_pattern = None),
            ("matcher", |m| string(m).ignore_case = true),
            ("matcher", |m| {
                string(m).match_pattern = Some(MatchPattern::Prefix(ECHO.to_owned()));
            }),
            ("matcher", |m| {
                string(m).match_pattern = Some(MatchPattern::SafeRegex(Default::default()));
            }),
            ("matcher.exact", |m| {
                string(m).match_pattern = Some(MatchPattern::Exact("echo.shop".to_owned()));
            }),
            ("matcher.exact", |m| {
                string(m).match_pattern = Some(MatchPattern::Exact(String::new()));
            }),
        ],
    );
    // Without any, every workload of the mesh could answer.
    assert_eq!(faults(&with(vec![])), [at]);
    let Piece::Cluster(spec) = accepted(&with(vec![exact_uri(ECHO); 2])).piece else {
        panic!("it is a cluster");
    };
    assert_eq!(
        spec.identities.as_deref(),
        Some(&[ECHO.parse().unwrap()][..])
    );
}

#[test]
fn a_socket_is_tls_where_it_must_be_and_plain_elsewhere() {
    let plain_to_endpoints = |socket| {
        let mut cluster = cluster::good();
        cluster.transport_socket_matches[1].transport_socket = socket;
        cluster
    };
    let plain_from_callers = |socket| {
        let mut listener = listener::inbound();
        listener.filter_chains[1].transport_socket = socket;
        listener
    };
    let raw = || socket(pack(&RawBuffer::default()));
    let empty = Some(TransportSocket::default());
    for (socket, tls, plain) in [
        (None, false, true),
        (raw(), false, true),
        (empty, false, false),
        (socket(with_unknown(pack(&upstream()))), false, false),
        (socket(with_unknown(pack(&downstream()))), false, false),
        (socket(Any::default()), false, false),
    ] {
        let expected = |is_good: bool, path: &str| {
            let path = (!is_good).then(|| path.to_owned());
            path.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(
            faults(&to_endpoints(socket.clone())),
            expected(tls, TO_ENDPOINTS)
        );
        assert_eq!(
            faults(&from_callers(socket.clone())),
            expected(tls, FROM_CALLERS)
        );
        assert_eq!(
            faults(&plain_to_endpoints(socket.clone())),
            expected(plain, "transport_socket_matches[1].transport_socket")
        );
        assert_eq!(
            faults(&plain_from_callers(socket)),
            expected(plain, "filter_chains[1].transport_socket")
        );
    }
    // Each in the other's place.
    assert_eq!(
        faults(&to_endpoints(socket(pack(&downstream())))),
        [TO_ENDPOINTS]
    );
    assert_eq!(
        faults(&from_callers(socket(pack(&upstream())))),
        [FROM_CALLERS]
    );
}
