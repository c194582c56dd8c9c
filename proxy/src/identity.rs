//! Our certificate and trust bundle: obtained, renewed, watched and published.
//!
//! A new key is made here for each renewal. Renewal is due at 50 to 60 % of the life that
//! remained when the certificate came, by the wall clock, which is read once a second because it
//! can jump. A failed renewal keeps the certificate that is valid.

mod renewal;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use heddle_policy::spiffe::{SpiffeId, TrustDomain};
use heddle_proto::v1::{
    self, IssueRequest, IssueResponse, WatchTrustBundleRequest,
    certificate_authority_client::CertificateAuthorityClient,
};
use heddle_shell::{
    causes::chain,
    clock,
    publish::Published,
    tls::{Identity, IdentityError, KeyRequest, TrustBundle},
};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::{Code, Request, Status, transport::Channel};
use tracing::{error, info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    backoff::Backoff,
    state::SavedIdentity,
    tls::Credentials,
    uplink::{Uplink, UplinkError, received, words},
};

use renewal::Renewal;

/// For one call of `Issue`, connection included.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the wall clock is read.
const TICK: Duration = Duration::from_secs(1);

/// What was obtained so far.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Our certificate and key.
    pub identity: Option<Arc<Identity>>,
    /// Roots and deny list.
    pub trust: Option<Arc<TrustBundle>>,
    /// The bundle as it came, for the state directory.
    wire: Option<v1::TrustBundle>,
}

/// The one writer of [`Held`] and of what the data path sees of it.
#[derive(Debug)]
pub struct Keyring {
    trust_domain: TrustDomain,
    held: Arc<Published<Held>>,
    credentials: Arc<Published<Option<Credentials>>>,
    /// Two tasks write; each changes one half.
    writing: Mutex<()>,
}

/// Why a bundle was refused. The one in force stays.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// A denial could be forgotten.
    #[error("revision {offered} is older than revision {held}, which is in force")]
    Older {
        /// Of the refused bundle.
        offered: u64,
        /// Of ours.
        held: u64,
    },
    /// We could not verify anybody any more.
    #[error("it has no root of our own trust domain")]
    NoRoot,
    /// A name, a root or an identity does not parse.
    #[error("{0}")]
    Malformed(String),
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error("reading the token file {}", .0.display())]
    Token(PathBuf, #[source] std::io::Error),
    #[error("there is neither a token file nor a valid certificate to prove who we are")]
    NoProof,
    #[error("reaching the control plane")]
    Uplink(#[from] UplinkError),
    #[error("the control plane did not answer in {} s", ISSUE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the control plane gave none: {}", words(.0))]
    Refused(Box<Status>),
    #[error("what was issued is not usable")]
    Identity(#[from] IdentityError),
    #[error("the token proves {found}, the settings say {expected}")]
    Somebody { found: SpiffeId, expected: SpiffeId },
}

impl Keyring {
    /// Holds nothing yet.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            held: Published::new(Held::default()),
            credentials: Published::new(None),
            writing: Mutex::new(()),
        }
    }

    /// Certificate and bundle.
    pub fn held(&self) -> &Arc<Published<Held>> {
        &self.held
    }

    /// Both together, for the data path.
    pub fn credentials(&self) -> &Arc<Published<Option<Credentials>>> {
        &self.credentials
    }

    /// Takes a new certificate into use.
    pub fn set_identity(&self, identity: Identity) {
        self.change(|held| held.identity = Some(Arc::new(identity)));
    }

    /// Takes a new bundle into use; one of the same revision changes nothing.
    ///
    /// # Errors
    /// [`BundleError`]; the bundle in force stays.
    pub fn set_bundle(&self, wire: v1::TrustBundle) -> Result<(), BundleError> {
        let bundle = Arc::new(read_bundle(&wire, &self.trust_domain)?);
        let held = self
            .held
            .load()
            .trust
            .as_ref()
            .map(|bundle| bundle.revision);
        match held {
            Some(held) if bundle.revision < held => {
                let offered = bundle.revision;
                return Err(BundleError::Older { offered, held });
            }
            Some(held) if bundle.revision == held => return Ok(()),
            Some(_) | None => {}
        }
        self.change(|held| {
            held.trust = Some(bundle);
            held.wire = Some(wire);
        });
        Ok(())
    }

    fn change(&self, apply: impl FnOnce(&mut Held)) {
        let _writing = self.writing.lock();
        let mut held = self.held.load().as_ref().clone();
        apply(&mut held);
        let credentials = match (&held.identity, &held.trust) {
            (Some(identity), Some(trust)) => Some(Credentials {
                identity: Arc::clone(identity),
                trust: Arc::clone(trust),
            }),
            _ => None,
        };
        self.held.publish(Arc::new(held));
        self.credentials.publish(Arc::new(credentials));
    }
}

impl Held {
    /// The bundle as it came.
    pub fn wire_bundle(&self) -> Option<v1::TrustBundle> {
        self.wire.clone()
    }

    /// Certificate and key; the state directory decides whether it may hold the key.
    pub fn saved_identity(&self) -> Option<SavedIdentity> {
        let identity = self.identity.as_ref()?;
        Some(SavedIdentity {
            chain: identity.chain().iter().map(|der| der.to_vec()).collect(),
            key: identity.key().secret_der().to_vec(),
        })
    }
}

/// The identity of a state directory, if its key was kept and it is ours and still valid.
pub fn restored(saved: SavedIdentity, id: &SpiffeId) -> Option<Identity> {
    if saved.key.is_empty() {
        return None;
    }
    let chain = saved.chain.into_iter().map(CertificateDer::from).collect();
    let identity = Identity::new(chain, PrivatePkcs8KeyDer::from(saved.key)).ok()?;
    let is_ours = identity.id() == id && identity.is_valid_at(clock::wall());
    is_ours.then_some(identity)
}

/// What the loops need.
#[derive(Debug)]
pub struct Issuer {
    /// The way to the authority.
    pub uplink: Arc<Uplink>,
    /// What is written.
    pub keyring: Arc<Keyring>,
    /// Read again for each use: projected tokens are replaced.
    pub token_file: Option<PathBuf>,
    /// Who we expect to be.
    pub id: SpiffeId,
}

/// Obtains a certificate and renews it, forever.
pub async fn renew(issuer: Arc<Issuer>, mut rng: StdRng) {
    let mut backoff = |base, max| Backoff::new(base, max, StdRng::from_rng(&mut rng));
    let mut renewal = Renewal::new(backoff(BACKOFF_BASE, BACKOFF_MAX), backoff(HASTE, HASTE));
    if let Some(identity) = &issuer.keyring.held.load().identity {
        let (from, to) = (identity.not_before(), identity.not_after());
        renewal.received(from, to, (clock::wall(), clock::now()), &mut rng);
    }
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_expiry_told = false;
    loop {
        let retry_at = renewal.retry_at();
        tokio::select! {
            biased; // Both lead to the same look.
            _ = ticks.tick() => {}
            () = clock::sleep_until(retry_at.unwrap_or_else(clock::now)), if retry_at.is_some() => {}
        }
        if !renewal.is_due(clock::wall(), clock::now()) {
            continue;
        }
        info!("asking for a certificate");
        match Box::pin(issuer.issue()).await {
            Ok((identity, bundle)) => {
                // The bundle first, so that nobody verifies against an older one.
                if let Err(error) =
                    bundle.map_or(Ok(()), |bundle| issuer.keyring.set_bundle(bundle))
                {
                    warn!(%error, "a trust bundle was refused");
                }
                let (from, to) = (identity.not_before(), identity.not_after());
                let seconds_left = to
                    .duration_since(clock::wall())
                    .unwrap_or_default()
                    .as_secs();
                info!(id = %identity.id(), seconds_left, "certificate issued");
                issuer.keyring.set_identity(identity);
                renewal.received(from, to, (clock::wall(), clock::now()), &mut rng);
                is_expiry_told = false;
            }
            Err(failure) => {
                let wait = renewal.failed(clock::now(), failure.retry_after());
                let has_expired = renewal.has_expired(clock::wall());
                let why = chain(&failure);
                if has_expired && !is_expiry_told {
                    is_expiry_told = true;
                    error!(reason = "certificate_expired", %why, "the certificate has ended and cannot be renewed; meshed connections are refused until the control plane answers");
                } else {
                    warn!(%why, seconds = wait.as_secs_f32(), "no new certificate; trying again");
                }
            }
        }
    }
}

/// Keeps the bundle stream open, forever.
pub async fn watch_bundle(issuer: Arc<Issuer>, rng: StdRng) {
    let mut backoff = Backoff::reconnecting(rng);
    loop {
        issuer.uplink.certified().await;
        match Box::pin(issuer.follow_bundle(&mut backoff)).await {
            Ok(()) => {}
            Err(why) => {
                let wait = backoff.failed();
                info!(%why, seconds = wait.as_secs_f32(), "no trust bundle stream; the bundle at hand stays in force");
                sleep(wait).await;
            }
        }
    }
}

impl Issuer {
    /// With the token if there is one, else, or when that has become useless, with the current
    /// certificate.
    async fn issue(&self) -> Result<(Identity, Option<v1::TrustBundle>), IssueError> {
        let by_certificate = self.uplink.link().map(|link| link.channel);
        let token = match &self.token_file {
            Some(file) => read_token(file)
                .map(Some)
                .map_err(|error| IssueError::Token(file.clone(), error)),
            None => Ok(None),
        };
        match (token, by_certificate) {
            (Ok(Some(token)), by_certificate) => {
                let channel = self.uplink.anonymous()?;
                match (self.call(channel, Some(&token)).await, by_certificate) {
                    (Err(IssueError::Refused(status)), Ok(channel))
                        if status.code() == Code::Unauthenticated =>
                    {
                        self.call(channel, None).await
                    }
                    (issued, _) => issued,
                }
            }
            (_, Ok(channel)) => self.call(channel, None).await,
            (Err(error), Err(_)) => Err(error),
            (Ok(None), Err(_)) => Err(IssueError::NoProof),
        }
    }

    async fn call(
        &self,
        channel: Channel,
        token: Option<&str>,
    ) -> Result<(Identity, Option<v1::TrustBundle>), IssueError> {
        let key = KeyRequest::generate()?;
        let mut request = Request::new(IssueRequest {
            csr_der: key.csr_der()?,
            lifetime_ms: 0,
        });
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse();
            let value = value.map_err(|_not_ascii| {
                let status = Status::unauthenticated("the token file is not a token");
                IssueError::Refused(Box::new(status))
            })?;
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = CertificateAuthorityClient::new(channel);
        let response = timeout(ISSUE_TIMEOUT, client.issue(request))
            .await
            .map_err(|_elapsed| IssueError::Timeout)?
            .map_err(|status| IssueError::Refused(Box::new(status)))?
            .into_inner();
        self.accept(key, response)
    }

    fn accept(
        &self,
        key: KeyRequest,
        response: IssueResponse,
    ) -> Result<(Identity, Option<v1::TrustBundle>), IssueError> {
        let chain = response
            .chain_der
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let identity = key.certified(chain)?;
        if *identity.id() != self.id {
            return Err(IssueError::Somebody {
                found: identity.id().clone(),
                expected: self.id.clone(),
            });
        }
        Ok((identity, response.trust_bundle))
    }

    /// `Ok` when there is a new certificate to open the stream with.
    async fn follow_bundle(&self, backoff: &mut Backoff) -> Result<(), String> {
        let link = self.uplink.link().map_err(|error| chain(&error))?;
        let revision = self
            .keyring
            .held
            .load()
            .trust
            .as_ref()
            .map_or(0, |bundle| bundle.revision);
        let mut client = CertificateAuthorityClient::new(link.channel.clone());
        let mut bundles = client
            .watch_trust_bundle(WatchTrustBundleRequest { revision })
            .await
            .map_err(|status| words(&status))?
            .into_inner();
        loop {
            let bundle = tokio::select! {
                biased; // The old stream's end must not count as a failure.
                () = self.uplink.superseded(&link) => return Ok(()),
                bundle = bundles.message() => received(bundle)?,
            };
            backoff.succeeded();
            let revision = bundle.revision;
            match self.keyring.set_bundle(bundle) {
                Ok(()) => info!(revision, "trust bundle in force"),
                Err(error) => warn!(%error, revision, "a trust bundle was refused"),
            }
        }
    }
}

impl IssueError {
    /// `retry-after-ms` of a refusal.
    fn retry_after(&self) -> Option<Duration> {
        let Self::Refused(status) = self else {
            return None;
        };
        let value = status.metadata().get("retry-after-ms")?.to_str().ok()?;
        Some(Duration::from_millis(value.parse().ok()?))
    }
}

fn read_token(file: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

fn read_bundle(wire: &v1::TrustBundle, ours: &TrustDomain) -> Result<TrustBundle, BundleError> {
    let malformed =
        |what: &str, why: &dyn std::fmt::Display| BundleError::Malformed(format!("{what} {why}"));
    let mut bundle = TrustBundle {
        revision: wire.revision,
        ..TrustBundle::default()
    };
    for (name, roots) in &wire.trust_domains {
        let domain: TrustDomain = name.parse().map_err(|why| malformed(name, &why))?;
        let mut ders = Vec::new();
        for der in &roots.roots_der {
            if X509Certificate::from_der(der).is_err() {
                return Err(malformed(name, &"has a root that does not parse"));
            }
            ders.push(CertificateDer::from(der.clone()));
        }
        bundle.roots.insert(domain, ders);
    }
    for id in &wire.denied_identities {
        bundle
            .denied
            .insert(id.parse().map_err(|why| malformed(id, &why))?);
    }
    if bundle.roots.get(ours).is_none_or(Vec::is_empty) {
        return Err(BundleError::NoRoot);
    }
    Ok(bundle)
}

/// Between attempts right after a jump of the clock, when everybody waits.
const HASTE: Duration = Duration::from_millis(250);

/// First wait after a failed renewal; doubles.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(150);

#[cfg(test)]
mod tests;
