//! Whom to trust: roots by trust domain and the identities denied in spite of them, or, before
//! the first bundle, one anchor given by the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use heddle_policy::spiffe::{SpiffeId, TrustDomain};
use rustls::pki_types::{
    CertificateDer, TrustAnchor,
    pem::{self, PemObject},
};
use thiserror::Error;

/// The bundle the control plane hands out.
#[derive(Clone, Debug, Default)]
pub struct TrustBundle {
    /// Grows with every change.
    pub revision: u64,
    /// Roots by trust domain.
    pub roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// Refused although their certificates are valid.
    pub denied: BTreeSet<SpiffeId>,
}

/// What a first contact with the control plane is checked against. There is no trust on first
/// use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Root certificates.
    Roots(Vec<CertificateDer<'static>>),
    /// SHA-256 of the root's DER; the control plane presents the root as the last certificate
    /// of its chain.
    Sha256([u8; 32]),
}

/// The source of roots for one TLS configuration.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Roots of the peer's own trust domain.
    Bundle(Arc<TrustBundle>),
    /// First contact: the anchor, whatever the peer's trust domain.
    Anchor(Anchor),
}

/// Why a text is no anchor.
#[derive(Debug, Error)]
pub enum AnchorError {
    /// Looks like a hash, and is none.
    #[error("a root's hash is written sha256: and 64 hexadecimal digits")]
    Hash,
    /// Neither a hash nor a file that can be read.
    #[error("reading {file} as a PEM file")]
    File {
        /// What was taken for a file.
        file: String,
        /// Why not.
        source: pem::Error,
    },
    /// A file of something else.
    #[error("{0} has no certificate")]
    Empty(String),
}

impl Anchor {
    /// Reads what settings and command lines name an anchor by: the hash that `heddle token`
    /// prints, with or without `sha256:`, or the name of a PEM file.
    ///
    /// # Errors
    /// [`AnchorError`].
    pub fn read(text: &str) -> Result<Self, AnchorError> {
        let digits = text.strip_prefix("sha256:");
        match hash(digits.unwrap_or(text)) {
            Some(hash) => Ok(Self::Sha256(hash)),
            None if digits.is_some() || is_mistyped(text) => Err(AnchorError::Hash),
            None => Self::from_pem_file(Path::new(text)),
        }
    }

    /// The roots in a PEM file.
    ///
    /// # Errors
    /// [`AnchorError`], but for [`AnchorError::Hash`].
    pub fn from_pem_file(file: &Path) -> Result<Self, AnchorError> {
        let name = || file.display().to_string();
        let roots = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| AnchorError::File {
                file: name(),
                source,
            })?;
        match roots.is_empty() {
            true => Err(AnchorError::Empty(name())),
            false => Ok(Self::Roots(roots)),
        }
    }
}

/// Whether it is more like a hash, with digits too few or too many, than like a file's name.
fn is_mistyped(text: &str) -> bool {
    text.len() > 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn hash(digits: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if digits.len() != 2 * hash.len() {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let value = nibble(pair[0])? * 16 + nibble(pair[1])?;
        *byte = u8::try_from(value).ok()?;
    }
    Some(hash)
}

impl Trust {
    /// Roots for a peer of `trust_domain` that presented `chain` (leaf excluded).
    pub(super) fn roots<'a>(
        &'a self,
        trust_domain: &str,
        chain: &'a [CertificateDer<'a>],
    ) -> Vec<TrustAnchor<'a>> {
        let anchors = |roots: &'a [CertificateDer<'a>]| {
            roots
                .iter()
                .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
                .collect()
        };
        match self {
            Self::Bundle(bundle) => bundle
                .roots
                .iter()
                .find(|(domain, _)| domain.as_str() == trust_domain)
                .map_or_else(Vec::new, |(_, roots)| anchors(roots)),
            Self::Anchor(Anchor::Roots(roots)) => anchors(roots),
            Self::Anchor(Anchor::Sha256(expected)) => chain
                .last()
                .filter(|root| digest(&SHA256, root).as_ref() == expected)
                .map_or_else(Vec::new, |root| anchors(std::slice::from_ref(root))),
        }
    }

    /// Whether `id` is on the deny list.
    pub(super) fn denies(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Bundle(bundle) => bundle.denied.contains(id),
            Self::Anchor(_) => false,
        }
    }
}
