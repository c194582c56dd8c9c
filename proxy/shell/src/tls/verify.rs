//! Verification of the other side: path to a root of its own trust domain, one SPIFFE id, not
//! denied, and the one we expect.

use std::sync::Arc;

use heddle_policy::spiffe::{Malformed, Peer, SpiffeId};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use thiserror::Error as ThisError;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::{Accept, Clients, Trust};

/// Longest chain accepted, leaf included: an honest one has three certificates.
const CHAIN_LENGTH_MAX: usize = 6;

/// Why a verified-looking certificate does not name a peer we accept.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum PeerError {
    /// Not X.509, or trailing bytes.
    #[error("the certificate does not parse")]
    Encoding,
    /// A SPIFFE certificate has exactly one URI name (X.509-SVID section 2).
    #[error("the certificate has {0} URI names instead of one")]
    UriNames(usize),
    /// The URI is not an id of ours.
    #[error("the certificate's URI {0}")]
    Id(#[from] Malformed),
    /// On the deny list.
    #[error("{0} is denied")]
    Denied(SpiffeId),
    /// A valid certificate of somebody else.
    #[error("the certificate is for {found}, expected {expected}")]
    Unexpected {
        /// Who answered.
        found: SpiffeId,
        /// Who should have.
        expected: String,
    },
    /// More certificates than any honest peer sends.
    #[error("the chain has {0} certificates, at most {CHAIN_LENGTH_MAX} are accepted")]
    ChainLength(usize),
}

/// Both sides of a handshake verify with this.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    accept: Accept,
    clients: Clients,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        trust: Trust,
        accept: Accept,
        clients: Clients,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        Self {
            trust,
            accept,
            clients,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        if chain.len() >= CHAIN_LENGTH_MAX {
            return Err(refuse(PeerError::ChainLength(chain.len() + 1)));
        }
        let id = spiffe_id(leaf).map_err(refuse)?;
        let roots = self.trust.roots(id.trust_domain(), chain);
        EndEntityCert::try_from(leaf)
            .map_err(|error| path_error(&error))?
            .verify_for_usage(self.algorithms.all, &roots, chain, now, usage, None, None)
            .map_err(|error| path_error(&error))?;
        if self.trust.denies(&id) {
            return Err(refuse(PeerError::Denied(id)));
        }
        self.accept.check(&id).map_err(refuse)
    }
}

impl Accept {
    fn check(&self, id: &SpiffeId) -> Result<(), PeerError> {
        let (accepted, expected) = match self {
            Self::Mesh => (true, String::new()),
            Self::OneOf(ids) => {
                if ids.contains(id) {
                    return Ok(());
                }
                let names: Vec<&str> = ids.iter().map(SpiffeId::as_str).collect();
                (false, names.join(" or "))
            }
            Self::ControlPlane => (id.is_control_plane(), "the control plane".to_owned()),
        };
        if accepted {
            return Ok(());
        }
        Err(PeerError::Unexpected {
            found: id.clone(),
            expected,
        })
    }
}

/// The one SPIFFE id of a certificate. Says nothing about its validity.
///
/// # Errors
/// [`PeerError`] when there is not exactly one URI name, or it is not an id of ours.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let (rest, certificate) =
        X509Certificate::from_der(leaf).map_err(|_detail| PeerError::Encoding)?;
    if !rest.is_empty() {
        return Err(PeerError::Encoding);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_detail| PeerError::Encoding)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri.parse()?),
        _ => Err(PeerError::UriNames(uris.len())),
    }
}

/// Who is on the other side of a finished handshake, from the chain it presented.
///
/// # Errors
/// [`PeerError`]; cannot happen for a connection that our own configurations accepted.
pub fn peer(chain: Option<&[CertificateDer<'_>]>) -> Result<Peer, PeerError> {
    match chain.and_then(<[_]>::first) {
        Some(leaf) => spiffe_id(leaf).map(Peer::Meshed),
        None => Ok(Peer::Anonymous),
    }
}

fn refuse(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Path errors in the words (and so the TLS alerts) of rustls.
fn path_error(error: &webpki::Error) -> Error {
    let error = match error {
        webpki::Error::CertExpired { time, not_after } => CertificateError::ExpiredContext {
            time: *time,
            not_after: *not_after,
        },
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext {
                time: *time,
                not_before: *not_before,
            }
        }
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::BadDer | webpki::Error::TrailingData(_) => CertificateError::BadEncoding,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other.clone()))),
    };
    Error::InvalidCertificate(error)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The name dialled says nothing here: the SPIFFE id does.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Certified
    }

    /// None: a hint would tell strangers whom we trust, and our clients have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}
