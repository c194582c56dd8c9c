//! The certificates that the control plane issues to itself: its server identity, kept in
//! memory, and the administrator's, kept in files. Both are renewed at half of their life.

use std::{
    ffi::OsStr,
    fs, io,
    ops::Range,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_policy::spiffe::{SpiffeId, TrustDomain};
use heddle_shell::tls::{Identity, IdentityError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, TrustAnchor};
use thiserror::Error;
use tokio::sync::Mutex;
use webpki::{EndEntityCert, KeyUsage};

use super::{Administrators, AdministratorsError, Authority, CaError, Fingerprint, material::pem};
use crate::{
    authn,
    files::{self, FileError, Mode},
};

/// The administrator's certificate: long enough for a working day without the control plane.
const ADMINISTRATOR_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How the names of its generations begin.
const GENERATION: &str = "administrator-";

/// The control plane's server identity.
#[derive(Debug)]
pub struct Own {
    authority: Arc<Authority>,
    id: SpiffeId,
    /// Our own clients ask for the id; a gRPC client checks the name it dialled and nothing else,
    /// and its bootstrap file has no word to change that (gRFC A65).
    names: Vec<SanType>,
}

/// The administrator's files.
#[derive(Debug)]
pub struct Administrator {
    authority: Arc<Authority>,
    id: SpiffeId,
    /// `administrator` in the data directory: a symbolic link to the newest generation.
    link: PathBuf,
    accepted: Arc<Administrators>,
    /// The first half of the newest generation's life; locked while one is made. Before it, too,
    /// there is need of a new one: the clock was ahead.
    fresh: Mutex<Option<Range<SystemTime>>>,
}

/// What is written: a key with its certificate.
struct Generation {
    name: String,
    certificate_pem: String,
    key_pem: String,
    root_pem: String,
    fingerprint: Fingerprint,
    not_after: SystemTime,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum OwnError {
    /// The authority refused.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// No key could be made, or a name is none.
    #[error("making a key for its names")]
    Key(#[source] rcgen::Error),
    /// Certificate and key do not fit.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A path that the authority's own clients would refuse, such as a given intermediate that
    /// the given root did not sign.
    #[error("certificates of this authority ({origin}) do not verify against its root: {why}")]
    Path {
        /// Where root and intermediate come from.
        origin: String,
        /// What a client would say.
        why: String,
    },
    /// The list of the administrator's certificates.
    #[error(transparent)]
    Administrators(#[from] AdministratorsError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A link could not be made.
    #[error("linking {}", .link.display())]
    Link {
        /// The link.
        link: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Own {
    /// Of the control plane of a trust domain, dialled by these names and addresses.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn new(
        authority: Arc<Authority>,
        trust_domain: &TrustDomain,
        names: &[ServerName<'_>],
    ) -> Result<Self, OwnError> {
        let names = names.iter().filter_map(|name| match name {
            ServerName::DnsName(name) => Some(name.as_ref().try_into().map(SanType::DnsName)),
            ServerName::IpAddress(address) => Some(Ok(SanType::IpAddress((*address).into()))),
            // The enum is open; there are no others.
            _ => None,
        });
        Ok(Self {
            authority,
            id: SpiffeId::control_plane(trust_domain),
            names: names
                .collect::<Result<_, rcgen::Error>>()
                .map_err(OwnError::Key)?,
        })
    }

    /// A new key and certificate. The chain ends with the root, so that a client that holds only
    /// the root's hash can check it.
    ///
    /// # Errors
    /// [`OwnError`]; also when the chain does not verify as a client would verify it.
    pub fn issue(&self, wall: SystemTime) -> Result<Identity, OwnError> {
        let (chain, key, _) = issue(&self.authority, &self.id, &self.names, None, wall)?;
        verify(&chain, wall).map_err(|error| OwnError::Path {
            origin: self.authority.origin(),
            why: match error {
                webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                    "the root did not sign the intermediate".to_owned()
                }
                error => error.to_string(),
            },
        })?;
        Ok(Identity::new(
            chain,
            PrivatePkcs8KeyDer::from(key.serialize_der()),
        )?)
    }
}

impl Administrator {
    /// Of the data directory's control plane.
    pub fn new(
        authority: Arc<Authority>,
        trust_domain: &TrustDomain,
        data_directory: &Path,
        accepted: Arc<Administrators>,
    ) -> Self {
        Self {
            authority,
            id: authn::administrator(trust_domain),
            link: data_directory.join("administrator"),
            accepted,
            fresh: Mutex::new(None),
        }
    }

    /// Writes `certificate.pem`, `key.pem` and `root.pem` when the newest ones are half over (or
    /// from an earlier run). All three appear at once.
    ///
    /// # Errors
    /// [`OwnError`]; the old files stay.
    pub async fn renew(&self, wall: SystemTime) -> Result<(), OwnError> {
        let mut fresh = self.fresh.lock().await;
        if fresh.as_ref().is_some_and(|fresh| fresh.contains(&wall)) {
            return Ok(());
        }
        self.make(&mut fresh, wall).await.map(drop)
    }

    /// Writes new files and refuses every certificate from before. Audited as done by `who`.
    /// Returns how many were revoked, and when the new one ends.
    ///
    /// # Errors
    /// [`OwnError`]; the old certificates are still accepted, so that nobody is locked out.
    pub async fn replace(
        &self,
        who: &str,
        wall: SystemTime,
    ) -> Result<(usize, SystemTime), OwnError> {
        let mut fresh = self.fresh.lock().await;
        let (fingerprint, not_after) = self.make(&mut fresh, wall).await?;
        let revoked = self.accepted.keep_only(&fingerprint, who, wall).await?;
        Ok((revoked, not_after))
    }

    async fn make(
        &self,
        fresh: &mut Option<Range<SystemTime>>,
        wall: SystemTime,
    ) -> Result<(Fingerprint, SystemTime), OwnError> {
        let generation = Generation::new(&self.authority, &self.id, wall)?;
        let (fingerprint, not_after) = (generation.fingerprint.clone(), generation.not_after);
        // Before it can be used.
        self.accepted.add(&fingerprint, not_after, wall).await?;
        let link = self.link.clone();
        // Off the async threads: it writes and syncs files.
        tokio::task::spawn_blocking(move || generation.write(&link))
            .await
            .expect("writing files does not panic")?;
        let life = not_after.duration_since(wall).unwrap_or_default();
        *fresh = Some(wall..wall + life / 2);
        Ok((fingerprint, not_after))
    }
}

impl Generation {
    fn new(authority: &Authority, id: &SpiffeId, wall: SystemTime) -> Result<Self, OwnError> {
        let lifetime = Some(ADMINISTRATOR_LIFETIME);
        let (mut chain, key, not_after) = issue(authority, id, &[], lifetime, wall)?;
        let root = chain.pop().expect("the chain ends with the root");
        // The hash as well: two may be made in one millisecond.
        let fingerprint = Fingerprint::of(&chain[0]);
        let name = format!(
            "{GENERATION}{}-{:.8}",
            heddle_shell::clock::unix_ms(wall),
            fingerprint.to_string()
        );
        Ok(Self {
            name,
            certificate_pem: chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
            key_pem: key.serialize_pem(),
            root_pem: pem("CERTIFICATE", &root),
            fingerprint,
            not_after,
        })
    }

    fn write(&self, link: &Path) -> Result<(), OwnError> {
        let directory = link.with_file_name(&self.name);
        files::make_directory(&directory)?;
        for (name, text) in [
            ("certificate.pem", &self.certificate_pem),
            ("key.pem", &self.key_pem),
            ("root.pem", &self.root_pem),
        ] {
            files::write(&directory.join(name), text.as_bytes(), Mode::Secret)?;
        }
        swap(link, &self.name)
    }
}

/// Points the link at a generation, and removes all but it and the one before, which somebody
/// may be reading.
fn swap(link: &Path, generation: &str) -> Result<(), OwnError> {
    let fault = |source| OwnError::Link {
        link: link.to_owned(),
        source,
    };
    let old = fs::read_link(link).ok();
    let aside = link.with_file_name("administrator.new");
    if let Err(error) = fs::remove_file(&aside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(fault(error));
    }
    symlink(generation, &aside).map_err(fault)?;
    fs::rename(&aside, link).map_err(fault)?;
    let is_kept = |name: &OsStr| {
        name == generation || old.as_ref().is_some_and(|old| old.as_os_str() == name)
    };
    sweep(link, is_kept).map_err(fault)
}

/// Removes the generations beside a link that are not kept, also what a crash has left.
fn sweep(link: &Path, is_kept: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    let directory = link.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_generation = name.as_encoded_bytes().starts_with(GENERATION.as_bytes());
        if is_generation && entry.file_type()?.is_dir() && !is_kept(&name) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A new key with leaf, intermediate and root, and when the leaf ends.
fn issue(
    authority: &Authority,
    id: &SpiffeId,
    names: &[SanType],
    lifetime: Option<Duration>,
    wall: SystemTime,
) -> Result<(Vec<CertificateDer<'static>>, KeyPair, SystemTime), OwnError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(OwnError::Key)?;
    let mut issued = authority.issue_named(id, names, &key, lifetime, wall)?;
    issued.chain.push(authority.root());
    Ok((issued.chain, key, issued.not_after))
}

/// The check that every sidecar makes: signatures, constraints, usages and times of the path.
fn verify(chain: &[CertificateDer<'static>], wall: SystemTime) -> Result<(), webpki::Error> {
    let [leaf, intermediates @ .., root] = chain else {
        return Err(webpki::Error::UnknownIssuer);
    };
    let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(root)?;
    let now = rustls::pki_types::UnixTime::since_unix_epoch(
        wall.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    EndEntityCert::try_from(leaf).and_then(|leaf| {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            intermediates,
            now,
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map(|_path| ())
    })
}
