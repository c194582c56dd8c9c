//! Root and intermediate: made at the first start, read from the data directory afterwards, or
//! given as files.
//!
//! `authority/root.pem` and `authority/intermediate.pem` hold a certificate and its key, in one
//! file each so that a crash never separates them; mode 0600. `root.pem` beside them is the
//! public copy.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CaError, Serial, whole_seconds};
use crate::{
    config::{self, Source},
    files::{self, FileError, Mode},
};

/// How root and intermediate are come by.
#[derive(Debug)]
pub(super) struct Material {
    settings: config::Authority,
    directory: PathBuf,
}

/// What leaves are signed with. Immutable; a renewal makes a new one.
pub(super) struct Issuing {
    pub(super) root: CertificateDer<'static>,
    pub(super) intermediate: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// Of the intermediate.
    pub(super) not_before: SystemTime,
    /// Of the intermediate.
    pub(super) not_after: SystemTime,
    pub(super) root_not_before: SystemTime,
    pub(super) root_not_after: SystemTime,
}

/// Why there is no usable authority.
#[derive(Debug, Error)]
pub enum MaterialError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that the settings name is not there.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// A file holds something else than it should.
    #[error("{}: {why}", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Making keys or certificates failed.
    #[error("making the {what} certificate")]
    Making {
        /// Which.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
}

/// A certificate with its key.
struct Pair {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Material {
    pub(super) fn new(settings: &config::Authority, data_directory: &Path) -> Self {
        Self {
            settings: settings.clone(),
            directory: data_directory.to_owned(),
        }
    }

    /// Reads or makes everything.
    pub(super) fn open(
        &self,
        rng: &mut impl Rng,
        wall: SystemTime,
    ) -> Result<Issuing, MaterialError> {
        files::make_directory(&self.directory.join("authority"))?;
        let (root, pair) = match &self.settings.source {
            Source::Intermediate {
                root,
                certificate,
                key,
            } => {
                let root = given_certificate(root, Below::Intermediate, wall)?;
                (root, given_pair(certificate, key, Below::Leaves, wall)?)
            }
            Source::Generated | Source::Root { .. } => {
                let root = self.root(rng, wall)?;
                let stored = read_pair(&self.intermediate_file())?;
                let stored = stored.filter(|stored| is_usable(stored, &root.certificate, wall));
                let pair = match stored {
                    Some(stored) => stored,
                    None => self.make_intermediate(&root, rng, wall)?,
                };
                (root.certificate, pair)
            }
        };
        Issuing::new(root, pair)
    }

    /// Writes the public copy of the root.
    pub(super) fn write_root(&self, root: &CertificateDer<'_>) -> Result<(), MaterialError> {
        let public = pem("CERTIFICATE", root);
        let file = self.directory.join("root.pem");
        Ok(files::write(&file, public.as_bytes(), Mode::Public)?)
    }

    /// A new intermediate, if it is ours to make.
    pub(super) fn renew(
        &self,
        current: &Issuing,
        rng: &mut impl Rng,
        wall: SystemTime,
    ) -> Result<Option<Issuing>, MaterialError> {
        if matches!(self.settings.source, Source::Intermediate { .. }) {
            return Ok(None);
        }
        let root = self.root(rng, wall)?;
        debug_assert_eq!(root.certificate, current.root, "the root never changes");
        let pair = self.make_intermediate(&root, rng, wall)?;
        Issuing::new(root.certificate, pair).map(Some)
    }

    fn root(&self, rng: &mut impl Rng, wall: SystemTime) -> Result<Pair, MaterialError> {
        if let Source::Root { certificate, key } = &self.settings.source {
            return given_pair(certificate, key, Below::Intermediate, wall);
        }
        let file = self.directory.join("authority").join("root.pem");
        if let Some(stored) = read_pair(&file)? {
            return Ok(stored);
        }
        let key = new_key("root")?;
        // Of unconstrained depth would be one more than is ever used: root, intermediate, leaf.
        let params = self.authority_params("root", 1, self.settings.root_lifetime, rng, wall);
        let certificate = params
            .self_signed(&key)
            .map_err(|source| MaterialError::Making {
                what: "root",
                source,
            })?;
        let pair = Pair {
            certificate: certificate.der().clone(),
            key,
        };
        write_pair(&file, &pair)?;
        Ok(pair)
    }

    fn make_intermediate(
        &self,
        root: &Pair,
        rng: &mut impl Rng,
        wall: SystemTime,
    ) -> Result<Pair, MaterialError> {
        let making = |source| MaterialError::Making {
            what: "intermediate",
            source,
        };
        let (root_not_before, root_not_after) = validity(&root.certificate)
            .ok_or_else(|| making(rcgen::Error::CouldNotParseCertificate))?;
        let key = new_key("intermediate")?;
        let lifetime = self.settings.intermediate_lifetime;
        let mut params = self.authority_params("intermediate", 0, lifetime, rng, wall);
        params.not_before = params.not_before.max(root_not_before.into());
        params.not_after = params.not_after.min(root_not_after.into());
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&root.certificate, &root.key).map_err(making)?;
        let certificate = params.signed_by(&key, &issuer).map_err(making)?;
        let pair = Pair {
            certificate: certificate.der().clone(),
            key,
        };
        write_pair(&self.intermediate_file(), &pair)?;
        Ok(pair)
    }

    fn authority_params(
        &self,
        what: &str,
        path_length: u8,
        lifetime: Duration,
        rng: &mut impl Rng,
        wall: SystemTime,
    ) -> CertificateParams {
        let (octets, serial) = Serial::random(rng);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Heddle");
        // Unique, so that nobody mistakes one authority's root for another's.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Heddle {what} {serial}"));
        params.serial_number = Some(SerialNumber::from_slice(&octets));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (wall - self.settings.backdate).into();
        params.not_after = whole_seconds(wall + lifetime).into();
        params
    }

    fn intermediate_file(&self) -> PathBuf {
        self.directory.join("authority").join("intermediate.pem")
    }
}

impl Issuing {
    fn new(root: CertificateDer<'static>, pair: Pair) -> Result<Self, MaterialError> {
        let unusable = |source| MaterialError::Making {
            what: "intermediate",
            source,
        };
        let unreadable = || unusable(rcgen::Error::CouldNotParseCertificate);
        let (not_before, not_after) = validity(&pair.certificate).ok_or_else(unreadable)?;
        let (root_not_before, root_not_after) = validity(&root).ok_or_else(unreadable)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&pair.certificate, pair.key).map_err(unusable)?,
            intermediate: pair.certificate,
            root,
            not_before,
            not_after,
            root_not_before,
            root_not_after,
        })
    }

    /// Whether a leaf signed now could be valid.
    pub(super) fn check(&self, wall: SystemTime) -> Result<(), CaError> {
        if !(self.root_not_before <= wall && wall < self.root_not_after) {
            return Err(CaError::IssuerNotValid("root"));
        }
        if !(self.not_before <= wall && wall < self.not_after) {
            return Err(CaError::IssuerNotValid("intermediate"));
        }
        Ok(())
    }

    /// Whether half of the intermediate's life is over, or has not begun: the clock was ahead when
    /// it was made.
    pub(super) fn is_due(&self, wall: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        wall < self.not_before || wall >= self.not_before + life.unwrap_or_default() / 2
    }
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuing")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Whether a stored intermediate belongs to the root and is not due for renewal.
fn is_usable(stored: &Pair, root: &CertificateDer<'static>, wall: SystemTime) -> bool {
    let parsed = (
        X509Certificate::from_der(&stored.certificate),
        X509Certificate::from_der(root),
    );
    let (Ok((_, intermediate)), Ok((_, root))) = parsed else {
        return false;
    };
    let Some((not_before, not_after)) = validity(&stored.certificate) else {
        return false;
    };
    let life = not_after.duration_since(not_before).unwrap_or_default();
    // By its signature: another root may have the same name.
    intermediate.issuer() == root.subject()
        && intermediate
            .verify_signature(Some(root.public_key()))
            .is_ok()
        && not_before <= wall
        && wall < not_before + life / 2
}

/// What a given certificate has to sign.
#[derive(Clone, Copy)]
enum Below {
    Intermediate,
    Leaves,
}

/// A certificate that is good for something at `wall`; made here, it would be.
fn given_certificate(
    file: &Path,
    below: Below,
    wall: SystemTime,
) -> Result<CertificateDer<'static>, MaterialError> {
    let text = files::read_public(file)?.ok_or_else(|| MaterialError::Missing(file.to_owned()))?;
    let certificate = parse_certificate(file, &text)?;
    let fault = |why: &str| MaterialError::Content {
        file: file.to_owned(),
        why: why.to_owned(),
    };
    let (not_before, not_after) =
        validity(&certificate).ok_or_else(|| fault("does not parse as X.509"))?;
    if wall < not_before {
        return Err(fault("is not valid yet; is the clock right?"));
    }
    if wall >= not_after {
        return Err(fault("has expired"));
    }
    if matches!(below, Below::Intermediate) && path_length(&certificate) == Some(0) {
        return Err(fault(
            "has path length 0 (pathlen:0), which leaves no room for an intermediate under it",
        ));
    }
    Ok(certificate)
}

fn given_pair(
    certificate: &Path,
    key: &Path,
    below: Below,
    wall: SystemTime,
) -> Result<Pair, MaterialError> {
    let certificate = given_certificate(certificate, below, wall)?;
    let text = files::read_secret(key)?.ok_or_else(|| MaterialError::Missing(key.to_owned()))?;
    pair(certificate, key, &text)
}

fn path_length(certificate: &CertificateDer<'_>) -> Option<u32> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let constraints = parsed.basic_constraints().ok()??;
    constraints.value.path_len_constraint
}

fn read_pair(file: &Path) -> Result<Option<Pair>, MaterialError> {
    let Some(text) = files::read_secret(file)? else {
        return Ok(None);
    };
    pair(parse_certificate(file, &text)?, file, &text).map(Some)
}

fn write_pair(file: &Path, pair: &Pair) -> Result<(), MaterialError> {
    let text = pem("CERTIFICATE", &pair.certificate) + &pair.key.serialize_pem();
    Ok(files::write(file, text.as_bytes(), Mode::Secret)?)
}

/// Exactly one certificate that may sign others.
fn parse_certificate(file: &Path, text: &str) -> Result<CertificateDer<'static>, MaterialError> {
    let fault = |why: &str| MaterialError::Content {
        file: file.to_owned(),
        why: why.to_owned(),
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = certificates.map_err(|error| fault(&format!("is not PEM: {error}")))?;
    let [certificate] = &certificates[..] else {
        return Err(fault(&format!(
            "holds {} certificates instead of one",
            certificates.len()
        )));
    };
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| fault(&format!("does not parse as X.509: {error}")))?;
    let is_authority = parsed
        .basic_constraints()
        .is_ok_and(|constraints| constraints.is_some_and(|constraints| constraints.value.ca));
    let may_sign = parsed
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    if !is_authority || !may_sign {
        return Err(fault(
            "is not the certificate of an authority (CA:TRUE, keyCertSign)",
        ));
    }
    Ok(certificate.clone())
}

/// Joins a certificate with the key in `text`, if it is its own.
fn pair(
    certificate: CertificateDer<'static>,
    file: &Path,
    text: &str,
) -> Result<Pair, MaterialError> {
    let fault = |why: String| MaterialError::Content {
        file: file.to_owned(),
        why,
    };
    // Never the library's own text about a key: it could quote it.
    let der = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_detail| fault("holds no private key in PEM".to_owned()))?;
    let key = KeyPair::try_from(&der).map_err(|_detail| {
        fault("holds a private key of a kind that is not supported".to_owned())
    })?;
    let certified = X509Certificate::from_der(&certificate)
        .map(|(_, parsed)| parsed.public_key().subject_public_key.data.to_vec());
    if certified.ok().as_deref() != Some(key.public_key_raw()) {
        return Err(fault("the key is not the certificate's".to_owned()));
    }
    Ok(Pair { certificate, key })
}

fn new_key(what: &'static str) -> Result<KeyPair, MaterialError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| MaterialError::Making { what, source })
}

fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = parsed.validity();
    Some((
        at(validity.not_before.timestamp()),
        at(validity.not_after.timestamp()),
    ))
}

/// DER as PEM (RFC 7468): lines of 64.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
