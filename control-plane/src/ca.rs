//! The certificate authority: root -> intermediate -> leaf, ECDSA P-256.
//!
//! ```text
//! proof (token, certificate) ─► who      ┐
//! request (PKCS #10) ─────────► the key  ├─► Authority::issue ─► chain
//! settings ───────────────────► how long ┘
//! ```
//!
//! The authority decides nothing about identities: callers pass the proven one.

mod administrators;
mod bundle;
mod csr;
mod fingerprint;
mod ledger;
mod material;
mod own;
mod pace;
mod serial;
mod service;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::publish::Published;
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use thiserror::Error;

pub use administrators::{Accepted, Administrators, AdministratorsError};
pub use bundle::{Bundle, BundleError, Change, to_proto};
pub use csr::{CsrError, public_key};
pub use fingerprint::Fingerprint;
pub use ledger::{LIVE_PER_IDENTITY_MAX, Ledger, LedgerError, Record};
pub use material::MaterialError;
pub use own::{Administrator, Own, OwnError};
pub use pace::Pace;
pub use serial::Serial;
pub use service::{CertificateService, Parts};

use crate::config;
use material::{Issuing, Material};

/// Signs leaves.
#[derive(Debug)]
pub struct Authority {
    settings: config::Authority,
    /// Where root and intermediate come from, for renewing the latter.
    material: Material,
    issuing: Arc<Published<Issuing>>,
    /// For serials. Locked for as long as 16 octets take.
    rng: Mutex<StdRng>,
}

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf, then intermediate; the root is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its name in the ledger.
    pub serial: Serial,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why a leaf was not signed.
#[derive(Debug, Error)]
pub enum CaError {
    /// Whatever it signed now, nobody would accept.
    #[error("the authority's {0} certificate is not valid now; is the clock right?")]
    IssuerNotValid(&'static str),
    /// The key or the library failed.
    #[error("signing failed")]
    Signing(#[from] rcgen::Error),
}

impl Authority {
    /// Reads root and intermediate, or makes them.
    ///
    /// # Errors
    /// [`MaterialError`], with what to do about it.
    pub fn open(
        settings: &config::Authority,
        data_directory: &std::path::Path,
        mut rng: StdRng,
        wall: SystemTime,
    ) -> Result<Self, MaterialError> {
        let material = Material::new(settings, data_directory);
        let issuing = material.open(&mut rng, wall)?;
        Ok(Self {
            settings: settings.clone(),
            material,
            issuing: Published::new(issuing),
            rng: Mutex::new(rng),
        })
    }

    /// Writes `root.pem`, the root's public copy in the data directory.
    ///
    /// # Errors
    /// [`MaterialError::File`].
    pub fn write_root(&self) -> Result<(), MaterialError> {
        self.material.write_root(&self.root())
    }

    /// Where root and intermediate come from, for a person.
    fn origin(&self) -> String {
        match &self.settings.source {
            config::Source::Generated => "made here".to_owned(),
            config::Source::Root { certificate, .. } => format!("root {}", certificate.display()),
            config::Source::Intermediate {
                root, certificate, ..
            } => format!(
                "root {}, intermediate {}",
                root.display(),
                certificate.display()
            ),
        }
    }

    /// The root.
    pub fn root(&self) -> CertificateDer<'static> {
        self.issuing.load().root.clone()
    }

    /// Signs a leaf for a proven identity. Takes some 0.1 ms of CPU.
    ///
    /// # Errors
    /// [`CaError`]; never signs what its own issuer would make invalid.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        lifetime: Option<Duration>,
        wall: SystemTime,
    ) -> Result<Issued, CaError> {
        self.issue_named(id, &[], key, lifetime, wall)
    }

    /// As [`Authority::issue`], with host names beside the id (X.509-SVID section 2 allows them).
    fn issue_named(
        &self,
        id: &SpiffeId,
        names: &[SanType],
        key: &impl PublicKeyData,
        lifetime: Option<Duration>,
        wall: SystemTime,
    ) -> Result<Issued, CaError> {
        let issuing = self.issuing.load();
        issuing.check(wall)?;
        let lifetime = lifetime
            .unwrap_or(self.settings.leaf_lifetime)
            .min(self.settings.leaf_lifetime_max);
        // Not further back than forward: with clocks more apart than a lifetime the leaf is of
        // no use anyhow, and a clock that is set back should not revive it for longer.
        let backdate = self.settings.backdate.min(lifetime);
        let not_after = whole_seconds((wall + lifetime).min(issuing.not_after));
        let (octets, serial) = Serial::random(&mut *self.rng.lock());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&octets));
        params.not_before = (wall - backdate).max(issuing.not_before).into();
        params.not_after = not_after.into();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.subject_alt_names.extend_from_slice(names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &issuing.issuer)?;
        Ok(Issued {
            chain: vec![leaf.der().clone(), issuing.intermediate.clone()],
            serial,
            not_after,
        })
    }

    /// Replaces the intermediate when half of its life is over; whether it did. Writes files.
    ///
    /// # Errors
    /// [`MaterialError`]; the old one stays in use.
    pub fn renew(&self, wall: SystemTime) -> Result<Renewal, MaterialError> {
        let issuing = self.issuing.load();
        if !issuing.is_due(wall) {
            return Ok(Renewal::NotDue);
        }
        // Its own generator: files are written meanwhile, and serials must not wait for them.
        let mut rng = StdRng::from_rng(&mut *self.rng.lock());
        match self.material.renew(&issuing, &mut rng, wall)? {
            Some(renewed) => {
                self.issuing.publish(Arc::new(renewed));
                Ok(Renewal::Renewed)
            }
            None => Ok(Renewal::NotOurs),
        }
    }

    /// When root or intermediate ends, whichever is first.
    pub fn not_after(&self) -> SystemTime {
        let issuing = self.issuing.load();
        issuing.not_after.min(issuing.root_not_after)
    }
}

/// What [`Authority::renew`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing: there is time.
    NotDue,
    /// There is a new intermediate.
    Renewed,
    /// The intermediate was given as a file, and so must be the next one.
    NotOurs,
}

/// X.509 counts in seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests;
