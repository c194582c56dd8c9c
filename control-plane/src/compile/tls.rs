//! Transport sockets by flavour. The sidecar's secrets are its own, Envoy's come from SDS files,
//! gRPC's from its certificate provider.

#![expect(deprecated, reason = "gRPC reads no other SAN matchers")]

use heddle_policy::spiffe::SpiffeId;
use heddle_proto::xds::envoy::{
    config::core::v3::{
        ApiVersion, ConfigSource, PathConfigSource, TransportSocket, WatchedDirectory,
        config_source, transport_socket,
    },
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
            DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
            UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use heddle_proto::xds::google::protobuf::Any;

use super::{Flavour, wire};

/// Towards endpoints that present one of `identities`. Never empty: an empty list would let
/// anyone answer.
pub(super) fn upstream(
    flavour: &Flavour,
    identities: &[SpiffeId],
    sni: &str,
    alpn: &[&str],
) -> TransportSocket {
    let matchers = identities
        .iter()
        .map(|identity| SubjectAltNameMatcher {
            san_type: SanType::Uri.into(),
            matcher: Some(exact(identity.as_str())),
            ..SubjectAltNameMatcher::default()
        })
        .collect();
    socket(wire::pack(&UpstreamTlsContext {
        common_tls_context: Some(common(flavour, matchers, alpn)),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    }))
}

/// From peers with a certificate of the mesh.
pub(super) fn downstream(flavour: &Flavour, alpn: &[&str]) -> TransportSocket {
    socket(wire::pack(&DownstreamTlsContext {
        common_tls_context: Some(common(flavour, Vec::new(), alpn)),
        require_client_certificate: wire::bool_value(true),
        ..DownstreamTlsContext::default()
    }))
}

pub(super) fn plain() -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(wire::pack(
            &RawBuffer::default(),
        ))),
    }
}

fn socket(config: Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn common(
    flavour: &Flavour,
    match_typed_subject_alt_names: Vec<SubjectAltNameMatcher>,
    alpn: &[&str],
) -> CommonTlsContext {
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names,
        ..CertificateValidationContext::default()
    };
    match flavour {
        Flavour::Sidecar => by_sds(None, validation),
        Flavour::Envoy { certificates } => CommonTlsContext {
            alpn_protocols: alpn.iter().map(|&token| token.to_owned()).collect(),
            // Envoy's default maximum towards endpoints is TLS 1.2.
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..TlsParameters::default()
            }),
            ..by_sds(Some(certificates), validation)
        },
        Flavour::Grpc => CommonTlsContext {
            tls_certificate_provider_instance: Some(provider()),
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    ca_certificate_provider_instance: Some(provider()),
                    // All that gRPC reads (gRFC A29): the typed ones alone would let every
                    // workload of the mesh answer.
                    match_subject_alt_names: strings(&validation),
                    ..validation
                },
            )),
            ..CommonTlsContext::default()
        },
    }
}

fn strings(validation: &CertificateValidationContext) -> Vec<StringMatcher> {
    let typed = validation.match_typed_subject_alt_names.iter();
    typed.filter_map(|typed| typed.matcher.clone()).collect()
}

fn by_sds(files: Option<&str>, validation: CertificateValidationContext) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default", files)],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(secret("ROOTCA", files)),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

fn secret(name: &str, files: Option<&str>) -> SdsSecretConfig {
    let from_file = |directory: &str| ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(
            PathConfigSource {
                path: format!("{directory}/{name}.yaml"),
                watched_directory: Some(WatchedDirectory {
                    path: directory.to_owned(),
                    ..WatchedDirectory::default()
                }),
                ..PathConfigSource::default()
            },
        )),
        ..ConfigSource::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: files.map(from_file),
    }
}

fn provider() -> CertificateProviderPluginInstance {
    CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        ..CertificateProviderPluginInstance::default()
    }
}

/// Equal, with case.
pub(super) fn exact(text: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text.to_owned())),
        ..StringMatcher::default()
    }
}
