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
use webpki::{EndEntityCert, KeyUsage};

use super::{Authority, CaError, material::pem};
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
    /// The first half of the newest generation's life. Before it, too, there is need of a new one:
    /// the clock was ahead.
    fresh: Option<Range<SystemTime>>,
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
    #[error("certificates of this authority do not verify against its root: {0}")]
    Path(webpki::Error),
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
        verify(&chain, wall)?;
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
    ) -> Self {
        Self {
            authority,
            id: authn::administrator(trust_domain),
            link: data_directory.join("administrator"),
            fresh: None,
        }
    }

    /// Writes `certificate.pem`, `key.pem` and `root.pem` when the newest ones are half over (or
    /// from an earlier run). All three appear at once.
    ///
    /// # Errors
    /// [`OwnError`]; the old files stay.
    pub fn renew(&mut self, wall: SystemTime) -> Result<(), OwnError> {
        if self
            .fresh
            .as_ref()
            .is_some_and(|fresh| fresh.contains(&wall))
        {
            return Ok(());
        }
        let (mut chain, key, not_after) = issue(
            &self.authority,
            &self.id,
            &[],
            Some(ADMINISTRATOR_LIFETIME),
            wall,
        )?;
        let root = chain.pop().expect("the chain ends with the root");
        let generation = format!("{GENERATION}{}", heddle_shell::clock::unix_ms(wall));
        let directory = self.link.with_file_name(&generation);
        files::make_directory(&directory)?;
        let chain_pem: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let key_pem = key.serialize_pem();
        for (name, text) in [
            ("certificate.pem", &chain_pem),
            ("key.pem", &key_pem),
            ("root.pem", &pem("CERTIFICATE", &root)),
        ] {
            files::write(&directory.join(name), text.as_bytes(), Mode::Secret)?;
        }
        self.swap(&generation)?;
        let life = not_after.duration_since(wall).unwrap_or_default();
        self.fresh = Some(wall..wall + life / 2);
        Ok(())
    }

    /// Points the link at a generation, and removes all but it and the one before, which
    /// somebody may be reading.
    fn swap(&self, generation: &str) -> Result<(), OwnError> {
        let fault = |source| OwnError::Link {
            link: self.link.clone(),
            source,
        };
        let old = fs::read_link(&self.link).ok();
        let aside = self.link.with_file_name("administrator.new");
        if let Err(error) = fs::remove_file(&aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(fault(error));
        }
        symlink(generation, &aside).map_err(fault)?;
        fs::rename(&aside, &self.link).map_err(fault)?;
        let is_kept = |name: &OsStr| {
            name == generation || old.as_ref().is_some_and(|old| old.as_os_str() == name)
        };
        sweep(&self.link, is_kept).map_err(fault)
    }
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
fn verify(chain: &[CertificateDer<'static>], wall: SystemTime) -> Result<(), OwnError> {
    let [leaf, intermediates @ .., root] = chain else {
        return Err(OwnError::Path(webpki::Error::UnknownIssuer));
    };
    let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(root).map_err(OwnError::Path)?;
    let now = rustls::pki_types::UnixTime::since_unix_epoch(
        wall.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
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
        .map_err(OwnError::Path)
}
