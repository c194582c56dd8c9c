//! A user's own root, made without our code.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};

use super::*;
use crate::files::{self, Mode};

/// A directory with `<name>.pem` and `<name>-key.pem` of each certificate in it.
pub(super) struct Pki {
    pub(super) directory: tempfile::TempDir,
}

/// A certificate with its key.
pub(super) struct Signer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

/// An authority's certificate, valid from an hour ago for a year, that may sign one more below.
pub(super) fn authority(name: &str) -> CertificateParams {
    let wall = clock::wall();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (wall - Duration::from_secs(3600)).into();
    params.not_after = (wall + Duration::from_secs(365 * 24 * 3600)).into();
    params
}

impl Pki {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    /// Makes a certificate, signed by another one or by itself, and writes it.
    pub(super) fn make(
        &self,
        name: &str,
        params: &CertificateParams,
        by: Option<&Signer>,
    ) -> Signer {
        let key = KeyPair::generate().unwrap();
        let certificate = match by {
            None => params.self_signed(&key).unwrap(),
            Some(by) => params.signed_by(&key, &by.issuer()).unwrap(),
        };
        let signer = Signer {
            certificate: certificate.der().clone(),
            key,
        };
        fs::write(self.file(name), certificate.pem()).unwrap();
        let key = signer.key.serialize_pem();
        let file = self.file(&format!("{name}-key"));
        files::write(&file, key.as_bytes(), Mode::Secret).unwrap();
        signer
    }

    pub(super) fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("{name}.pem"))
    }

    /// Settings whose root, with its key, are these files.
    pub(super) fn root(&self, certificate: &str, key: &str) -> String {
        let (certificate, key) = (self.file(certificate), self.file(key));
        let (certificate, key) = (certificate.display(), key.display());
        format!("authority: {{root_certificate: '{certificate}', root_key: '{key}'}}")
    }

    /// Settings whose root and intermediate are these files.
    pub(super) fn intermediate(&self, root: &str, certificate: &str, key: &str) -> String {
        let files = [root, certificate, key].map(|name| self.file(name));
        let [root, certificate, key] = files.each_ref().map(|file| file.display());
        format!(
            "authority: {{root_certificate: '{root}', intermediate_certificate: '{certificate}', \
             intermediate_key: '{key}'}}"
        )
    }
}

impl Signer {
    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap()
    }

    /// Certifies an id, as whoever has this key can; with a serial number of its choice.
    pub(super) fn certify(&self, id: &str, serial: Option<&[u8]>) -> Identity {
        let wall = clock::wall();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.serial_number = serial.map(SerialNumber::from_slice);
        params.not_before = (wall - Duration::from_secs(60)).into();
        params.not_after = (wall + Duration::from_secs(3600)).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer()).unwrap();
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        Identity::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der())).unwrap()
    }
}
