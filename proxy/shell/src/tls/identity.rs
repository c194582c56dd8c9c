//! Our side: key, certificate chain, and the request that leads from one to the other.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_policy::spiffe::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::{PeerError, spiffe_id};

/// A key and the certificate chain that certifies it.
#[derive(Debug)]
pub struct Identity {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A new key that waits for its certificate.
pub struct KeyRequest {
    key: KeyPair,
}

/// Why a chain and a key do not make an identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// The leaf does not parse as X.509.
    #[error("the leaf certificate does not parse")]
    Leaf,
    /// The leaf is not one of ours.
    #[error("the leaf certificate has no usable identity")]
    Peer(#[from] PeerError),
    /// Another key was certified.
    #[error("the leaf certificate certifies another key")]
    KeyMismatch(#[source] rustls::Error),
    /// The key could not be made or read.
    #[error("the private key is not usable")]
    Key(#[source] rcgen::Error),
}

impl Identity {
    /// Checks that chain (leaf first) and key (PKCS #8) belong together.
    ///
    /// # Errors
    /// [`IdentityError`]; the key never appears in it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::EmptyChain)?;
        let id = spiffe_id(leaf)?;
        let (not_before, not_after) = {
            let (_, parsed) =
                X509Certificate::from_der(leaf).map_err(|_detail| IdentityError::Leaf)?;
            let validity = parsed.validity();
            (
                at(validity.not_before.timestamp()),
                at(validity.not_after.timestamp()),
            )
        };
        CertifiedKey::from_der(
            chain.clone(),
            PrivateKeyDer::Pkcs8(key.clone_key()),
            &super::provider(),
        )
        .and_then(|certified| certified.keys_match())
        .map_err(IdentityError::KeyMismatch)?;
        Ok(Self {
            id,
            chain,
            key,
            not_before,
            not_after,
        })
    }

    /// Whose certificate it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// A copy of the key, for rustls and for the state directory.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// Start of the leaf's validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the leaf is valid at `wall`.
    pub fn is_valid_at(&self, wall: SystemTime) -> bool {
        self.not_before <= wall && wall < self.not_after
    }
}

impl KeyRequest {
    /// Makes a new ECDSA P-256 key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(|key| Self { key })
            .map_err(IdentityError::Key)
    }

    /// The request to sign, PKCS #10 DER: the public key and its proof of possession, nothing
    /// else, because the authority ignores everything else.
    ///
    /// # Errors
    /// When signing fails.
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&self.key)
            .map(|request| request.der().to_vec())
            .map_err(IdentityError::Key)
    }

    /// Joins the key with the chain it was certified by.
    ///
    /// # Errors
    /// [`IdentityError`] when the chain is for another key or not one of ours.
    pub fn certified(self, chain: Vec<CertificateDer<'static>>) -> Result<Identity, IdentityError> {
        Identity::new(chain, PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRequest(..)")
    }
}

fn at(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}
