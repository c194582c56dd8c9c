//! Certificate requests (PKCS #10): all that counts is the public key and the proof that the
//! caller has its private half. Subject, names and extensions are never looked at.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use rcgen::SubjectPublicKeyInfo;
use thiserror::Error;
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ED25519, Oid,
    },
    prelude::FromDer,
    x509::AlgorithmIdentifier,
};

/// A request of ours has some 200 bytes.
const BYTES_MAX: usize = 16 * 1024;

/// Why a request is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CsrError {
    /// Longer than any honest request.
    #[error("the certificate request is longer than {BYTES_MAX} bytes")]
    TooLong,
    /// Not PKCS #10 DER.
    #[error("the certificate request does not parse as PKCS #10 DER")]
    Encoding,
    /// Something follows the request.
    #[error("the certificate request has trailing bytes")]
    TrailingBytes,
    /// A key of another kind, or a signature algorithm that is not its own.
    #[error("the key of the certificate request must be ECDSA P-256 (SHA-256) or Ed25519")]
    Algorithm,
    /// The caller does not have the private key.
    #[error("the signature of the certificate request does not verify")]
    Signature,
}

/// The proven public key of a request.
///
/// # Errors
/// [`CsrError`].
pub fn public_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if csr_der.len() > BYTES_MAX {
        return Err(CsrError::TooLong);
    }
    let (rest, request) =
        X509CertificationRequest::from_der(csr_der).map_err(|_detail| CsrError::Encoding)?;
    if !rest.is_empty() {
        return Err(CsrError::TrailingBytes);
    }
    let info = &request.certification_request_info;
    let algorithm = algorithm(&info.subject_pki.algorithm, &request.signature_algorithm)
        .ok_or(CsrError::Algorithm)?;
    UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_unspecified| CsrError::Signature)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_detail| CsrError::Algorithm)
}

/// The verification that fits both the key and the signature's own name for itself.
fn algorithm(
    key: &AlgorithmIdentifier<'_>,
    signature: &AlgorithmIdentifier<'_>,
) -> Option<&'static dyn VerificationAlgorithm> {
    let curve: Option<Oid<'_>> = key
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    if key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve == Some(OID_EC_P256)
        && signature.algorithm == OID_SIG_ECDSA_WITH_SHA256
    {
        return Some(&ECDSA_P256_SHA256_ASN1);
    }
    (key.algorithm == OID_SIG_ED25519 && signature.algorithm == OID_SIG_ED25519)
        .then_some(&ED25519 as &dyn VerificationAlgorithm)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        SignatureAlgorithm,
    };

    use super::*;

    fn request(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["somebody.else".to_owned()]).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn two_kinds_of_keys_are_signed_for() {
        public_key(&request(&PKCS_ECDSA_P256_SHA256)).unwrap();
        public_key(&request(&PKCS_ED25519)).unwrap();
        let other = public_key(&request(&PKCS_ECDSA_P384_SHA384));
        assert_eq!(other, Err(CsrError::Algorithm));
    }

    #[test]
    fn a_request_is_proven_whole_and_alone() {
        let good = request(&PKCS_ECDSA_P256_SHA256);
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(public_key(&trailing), Err(CsrError::TrailingBytes));
        assert_eq!(public_key(&good[..good.len() - 1]), Err(CsrError::Encoding));
        assert_eq!(public_key(&[]), Err(CsrError::Encoding));
        assert_eq!(
            public_key(&vec![0x30; BYTES_MAX + 1]),
            Err(CsrError::TooLong)
        );
        // Each byte changed in turn: never a key that was not proven.
        let proven = public_key(&good).unwrap();
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 0x01;
            if let Ok(key) = public_key(&changed) {
                assert_eq!(key, proven, "byte {at}");
            }
        }
    }
}
