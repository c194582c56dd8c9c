//! Transport sockets. Everything here is security: what is not understood is a fault.

#![expect(deprecated, reason = "deprecated fields of TLS must be refused too")]

use std::{collections::BTreeSet, sync::Arc};

use heddle_proto::xds::{
    FromWire,
    envoy::{
        config::core::v3::{TransportSocket, transport_socket},
        extensions::transport_sockets::{
            raw_buffer::v3::RawBuffer,
            tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
                SdsSecretConfig, SubjectAltNameMatcher, UpstreamTlsContext,
                common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
            },
        },
        r#type::matcher::v3::string_matcher::MatchPattern,
    },
};
use prost::{Message, Name};

use crate::spiffe::SpiffeId;

use super::{
    fault::{Faults, Path},
    unpack,
};

/// SDS name of the workload's own certificate.
const OWN_CERTIFICATE: &str = "default";
/// SDS name of the trust bundle.
const TRUST_BUNDLE: &str = "ROOTCA";

/// Requires plaintext: no socket, or an explicit raw buffer.
pub(super) fn plain(socket: Option<&TransportSocket>, at: &Path<'_>, faults: &mut Faults) {
    let Some(socket) = socket else { return };
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any))
            if any.type_url == RawBuffer::type_url() => {}
        Some(transport_socket::ConfigType::TypedConfig(_)) | None => {
            faults.refuse(at, "is not a raw buffer");
        }
    }
}

/// The identities that endpoints may present.
pub(super) fn upstream(
    socket: Option<&TransportSocket>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Arc<[SpiffeId]>> {
    let at = at.field("typed_config");
    let context: UpstreamTlsContext = unpack_socket(socket, &at, faults)?;
    faults.refuse_set(&context.auto_host_sni, &at.field("auto_host_sni"));
    faults.refuse_set(
        &context.auto_sni_san_validation,
        &at.field("auto_sni_san_validation"),
    );
    faults.refuse_set(
        &context.allow_renegotiation,
        &at.field("allow_renegotiation"),
    );
    faults.refuse_set(
        &context.enforce_rsa_key_usage,
        &at.field("enforce_rsa_key_usage"),
    );
    // `max_session_keys` bounds a cache we do not have, and `sni` is told by the destination.
    let at = at.field("common_tls_context");
    let common = context.common_tls_context.unwrap_or_default();
    let validation = common_context(&common, &at, faults)?;
    let at = at.field("combined_validation_context");
    let at = at.field("default_validation_context");
    identities(&validation, &at, faults)
}

/// Requires mutual TLS with our own secrets.
pub(super) fn downstream(socket: Option<&TransportSocket>, at: &Path<'_>, faults: &mut Faults) {
    let at = at.field("typed_config");
    let Some(context) = unpack_socket::<DownstreamTlsContext>(socket, &at, faults) else {
        return;
    };
    if !context
        .require_client_certificate
        .is_some_and(|required| required.value)
    {
        faults.refuse(&at.field("require_client_certificate"), "is not true");
    }
    faults.refuse_set(&context.require_sni, &at.field("require_sni"));
    faults.refuse_set(&context.ocsp_staple_policy, &at.field("ocsp_staple_policy"));
    faults.refuse_set(&context.session_timeout, &at.field("session_timeout"));
    faults.refuse_set(
        &context.session_ticket_keys_type,
        &at.field("session_ticket_keys_type"),
    );
    faults.refuse_set(
        &context.full_scan_certs_on_sni_mismatch,
        &at.field("full_scan_certs_on_sni_mismatch"),
    );
    faults.refuse_set(
        &context.prefer_client_ciphers,
        &at.field("prefer_client_ciphers"),
    );
    let at = at.field("common_tls_context");
    let common = context.common_tls_context.unwrap_or_default();
    let Some(validation) = common_context(&common, &at, faults) else {
        return;
    };
    // Who may call is authorization's matter; a list here would be a second, unseen one.
    let at = at.field("combined_validation_context.default_validation_context");
    if !validation.match_typed_subject_alt_names.is_empty() {
        faults.refuse(
            &at.field("match_typed_subject_alt_names"),
            "is not supported",
        );
    }
}

fn unpack_socket<M: FromWire + Message + Name>(
    socket: Option<&TransportSocket>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<M> {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(transport_socket::ConfigType::TypedConfig(any)) => unpack(any, at, faults),
        None => {
            faults.refuse(at, "is missing");
            None
        }
    }
}

/// Certificate and trust bundle are the sidecar's own, under their SDS names. Returns the rest
/// of the validation, which the caller judges.
fn common_context(
    common: &CommonTlsContext,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<CertificateValidationContext> {
    // ALPN is ours (`proto/README.md`, "TLS between sidecars").
    let CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols: _,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = common;
    faults.refuse_set(tls_params, &at.field("tls_params"));
    faults.refuse_set(tls_certificates, &at.field("tls_certificates"));
    faults.refuse_set(
        tls_certificate_provider_instance,
        &at.field("tls_certificate_provider_instance"),
    );
    faults.refuse_set(
        custom_tls_certificate_selector,
        &at.field("custom_tls_certificate_selector"),
    );
    faults.refuse_set(
        tls_certificate_certificate_provider,
        &at.field("tls_certificate_certificate_provider"),
    );
    faults.refuse_set(
        tls_certificate_certificate_provider_instance,
        &at.field("tls_certificate_certificate_provider_instance"),
    );
    faults.refuse_set(custom_handshaker, &at.field("custom_handshaker"));
    faults.refuse_set(key_log, &at.field("key_log"));
    let names_own = matches!(
        tls_certificate_sds_secret_configs.as_slice(),
        [SdsSecretConfig { name, .. }] if name == OWN_CERTIFICATE
    );
    if !names_own {
        faults.refuse(
            &at.field("tls_certificate_sds_secret_configs"),
            "is not exactly the secret `default`",
        );
    }
    validation_context(validation_context_type.as_ref(), at, faults)
}

fn validation_context(
    context: Option<&ValidationContextType>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<CertificateValidationContext> {
    let (secret, validation, name) = match context {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            faults.refuse_set(
                &combined.validation_context_certificate_provider,
                &at.field("validation_context_certificate_provider"),
            );
            faults.refuse_set(
                &combined.validation_context_certificate_provider_instance,
                &at.field("validation_context_certificate_provider_instance"),
            );
            (
                combined.validation_context_sds_secret_config.as_ref(),
                combined
                    .default_validation_context
                    .clone()
                    .unwrap_or_default(),
                "combined_validation_context.validation_context_sds_secret_config",
            )
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => (
            Some(secret),
            Default::default(),
            "validation_context_sds_secret_config",
        ),
        Some(
            ValidationContextType::ValidationContext(_)
            | ValidationContextType::ValidationContextCertificateProvider(_)
            | ValidationContextType::ValidationContextCertificateProviderInstance(_),
        )
        | None => {
            faults.refuse(
                &at.field("validation_context_type"),
                "names no trust bundle by SDS",
            );
            return None;
        }
    };
    if secret.is_none_or(|secret| secret.name != TRUST_BUNDLE) {
        faults.refuse(&at.field(name), "is not the secret `ROOTCA`");
    }
    let rest = CertificateValidationContext {
        match_typed_subject_alt_names: Vec::new(),
        ..validation.clone()
    };
    if rest != CertificateValidationContext::default() {
        faults.refuse(
            &at.field("combined_validation_context.default_validation_context"),
            "has a field other than match_typed_subject_alt_names",
        );
    }
    Some(validation)
}

/// Sorted and without duplicates.
fn identities(
    validation: &CertificateValidationContext,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Arc<[SpiffeId]>> {
    let at = at.field("match_typed_subject_alt_names");
    let matchers = &validation.match_typed_subject_alt_names;
    if matchers.is_empty() {
        faults.refuse(&at, "is empty: any workload could answer");
        return None;
    }
    let found: Option<BTreeSet<SpiffeId>> = matchers
        .iter()
        .enumerate()
        .map(|(i, matcher)| identity(matcher, &at.index(i), faults))
        .collect();
    Some(found?.into_iter().collect())
}

fn identity(
    matcher: &SubjectAltNameMatcher,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<SpiffeId> {
    if matcher.san_type != i32::from(SanType::Uri) {
        faults.refuse(&at.field("san_type"), "is not URI");
        return None;
    }
    faults.refuse_set(&matcher.oid, &at.field("oid"));
    let matcher = matcher.matcher.as_ref();
    let Some((Some(MatchPattern::Exact(exact)), false)) =
        matcher.map(|m| (&m.match_pattern, m.ignore_case))
    else {
        faults.refuse(&at.field("matcher"), "is not exact");
        return None;
    };
    exact
        .parse()
        .map_err(|error| faults.refuse(&at.field("matcher.exact"), format!("{error}")))
        .ok()
}
