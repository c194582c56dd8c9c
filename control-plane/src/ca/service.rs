//! `heddle.v1.CertificateAuthority`.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::Stream;
use heddle_policy::spiffe::SpiffeId;
use heddle_proto::v1::{
    AllowRequest, AllowResponse, DenyRequest, DenyResponse, IssueRequest, IssueResponse,
    MintTokenRequest, MintTokenResponse, RevokeAdministratorsRequest, RevokeAdministratorsResponse,
    TrustBundle, WatchTrustBundleRequest, certificate_authority_server::CertificateAuthority,
};
use heddle_shell::clock;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tonic::{Code, Request, Response, Status, async_trait, metadata::MetadataMap};
use tracing::{error, info, warn};

use super::{
    Administrator, Authority, Bundle, BundleError, Change, Fingerprint, LIVE_PER_IDENTITY_MAX,
    Ledger, OwnError, Pace, Record, public_key, to_proto,
};
use crate::{
    audit::{Action, Audit, Event},
    authn::{self, Proof, Session, Workload},
    telemetry::{IssueRefusal, Metrics, ProofKind, StreamKind},
    token::{MintError, Minted, Subject, Tokens},
};

/// How long certificates may be renewed by certificates alone.
const TOKEN_PROOF_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CertificateService(Arc<Parts>);

/// What the service is made of.
#[derive(Debug)]
pub struct Parts {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Remembers.
    pub ledger: Ledger,
    /// Tells whom to trust.
    pub bundle: Arc<Bundle>,
    /// Mints.
    pub tokens: Arc<Tokens>,
    /// The administrator's files.
    pub administrator: Arc<Administrator>,
    /// For tokens; other changes write their events themselves.
    pub audit: Audit,
    /// Slows down. Locked for one look-up.
    pub pace: Mutex<Pace>,
    /// For token ids.
    pub rng: Mutex<StdRng>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl CertificateService {
    /// Made of its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Everything between the proof and the signature that can refuse.
    fn admit(&self, workload: &Workload, wall: SystemTime) -> Result<(), (IssueRefusal, Status)> {
        let proof_age = wall
            .duration_since(workload.token_proven_at)
            .unwrap_or_default();
        if proof_age > TOKEN_PROOF_AGE_MAX {
            let status = Status::permission_denied(
                "the last token proof is more than 7 days old; present a token",
            );
            return Err((IssueRefusal::ProofTooOld, status));
        }
        if !self.0.ledger.has_room(&workload.id, wall) {
            let status = Status::resource_exhausted(format!(
                "{} has {LIVE_PER_IDENTITY_MAX} certificates that have not expired; is something \
                 asking for them without end?",
                workload.id
            ));
            return Err((IssueRefusal::TooMany, status));
        }
        let paced = self.0.pace.lock().take(&workload.id, clock::now());
        paced.map_err(|wait| (IssueRefusal::Paced, retry_after(wait)))
    }

    async fn issue_to(
        &self,
        workload: &Workload,
        request: &IssueRequest,
    ) -> Result<IssueResponse, (IssueRefusal, Status)> {
        let wall = clock::wall();
        self.admit(workload, wall)?;
        let key = public_key(&request.csr_der).map_err(|error| {
            let status = Status::invalid_argument(error.to_string());
            (IssueRefusal::Request, status)
        })?;
        let lifetime =
            (request.lifetime_ms > 0).then(|| Duration::from_millis(request.lifetime_ms));
        let internal = |error: &dyn Error| {
            let cause = error.source().map(ToString::to_string);
            error!(%error, cause, id = %workload.id, "issuing failed");
            let status = Status::unavailable("the authority cannot issue now; see its log");
            (IssueRefusal::Internal, status)
        };
        let issued = self
            .0
            .authority
            .issue(&workload.id, &key, lifetime, wall)
            .map_err(|error| internal(&error))?;
        let record = Record {
            id: workload.id.clone(),
            fingerprint: Fingerprint::of(&issued.chain[0]),
            not_after: issued.not_after,
            token_proven_at: workload.token_proven_at,
            labels: workload.labels.clone(),
            addresses: workload.addresses.clone(),
        };
        // Before the answer: a certificate that is not in the ledger proves nothing.
        self.0
            .ledger
            .record(&issued.serial, &record)
            .await
            .map_err(|error| internal(&error))?;
        info!(id = %workload.id, serial = %issued.serial, "issued a certificate");
        Ok(IssueResponse {
            chain_der: issued.chain.iter().map(|der| der.to_vec()).collect(),
            not_after_ms: clock::unix_ms(issued.not_after),
            trust_bundle: Some(to_proto(&self.0.bundle.published().load())),
            identity: workload.id.to_string(),
        })
    }

    async fn change(&self, change: Change, identity: &str, who: &str) -> Result<u64, Status> {
        let id: SpiffeId = identity
            .parse()
            .map_err(|error| Status::invalid_argument(format!("\"{identity}\" {error}")))?;
        // Denying ourselves would end the mesh, and with it the way back.
        if authn::is_reserved(&id) {
            return Err(Status::invalid_argument(format!(
                "{id} is reserved; an administrator's certificate is taken back by \
                 RevokeAdministrators (heddle certs revoke-administrators)"
            )));
        }
        let changed = self.0.bundle.change(change, &id, who, clock::wall());
        let revision = changed.await;
        let revision = revision.map_err(|error| match error {
            BundleError::Full => Status::resource_exhausted(error.to_string()),
            BundleError::Store(_)
            | BundleError::Malformed(_)
            | BundleError::OtherRoot { .. }
            | BundleError::Contended => {
                error!(%error, "changing the deny list failed");
                Status::unavailable(error.to_string())
            }
        })?;
        warn!(%id, ?change, revision, "deny list changed");
        Ok(revision)
    }
}

#[async_trait]
impl CertificateAuthority for CertificateService {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let session = Session::of(&request)?;
        let workload = session.workload()?;
        match self.issue_to(workload, request.get_ref()).await {
            Ok(response) => {
                let proof = match workload.via {
                    Proof::Token => ProofKind::Token,
                    Proof::Certificate { .. } => ProofKind::Certificate,
                };
                self.0.metrics.issued(proof);
                Ok(Response::new(response))
            }
            Err((reason, status)) => {
                self.0.metrics.issue_refused(reason);
                Err(status)
            }
        }
    }

    type WatchTrustBundleStream =
        Pin<Box<dyn Stream<Item = Result<TrustBundle, Status>> + Send + 'static>>;

    async fn watch_trust_bundle(
        &self,
        request: Request<WatchTrustBundleRequest>,
    ) -> Result<Response<Self::WatchTrustBundleStream>, Status> {
        let session = Session::of(&request)?;
        let watching = Watching {
            counted: self.0.metrics.stream(StreamKind::TrustBundle),
            bundle: Arc::clone(&self.0.bundle),
            changed: self.0.bundle.published().subscribe(),
            session,
            sent: request.get_ref().revision,
            has_ended: false,
        };
        let stream = futures_util::stream::unfold(watching, Watching::next);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn mint_token(
        &self,
        request: Request<MintTokenRequest>,
    ) -> Result<Response<MintTokenResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let request = request.into_inner();
        let lifetime =
            (request.lifetime_ms > 0).then(|| Duration::from_millis(request.lifetime_ms));
        let subject = Subject {
            namespace: request.namespace,
            service_account: request.service_account,
            labels: request.labels.into_iter().collect(),
            addresses: request.addresses,
        };
        let minted = self
            .0
            .tokens
            .mint(&subject, lifetime, clock::wall(), &mut *self.0.rng.lock())
            .map_err(|error| match error {
                MintError::Signing => Status::internal(error.to_string()),
                _ => Status::invalid_argument(error.to_string()),
            })?;
        // Before the answer: there is no token of which the audit does not know.
        let event = minting(&who, &minted, &subject);
        self.0.audit.record(&event).await.map_err(|error| {
            error!(%error, "a token was not audited and is not handed out");
            Status::unavailable(error.to_string())
        })?;
        info!(id = %minted.id, token = minted.token_id, "minted a token");
        Ok(Response::new(MintTokenResponse {
            token: minted.token,
            root_sha256: self.0.bundle.root_sha256(),
            not_after_ms: clock::unix_ms(minted.expires),
        }))
    }

    async fn deny(&self, request: Request<DenyRequest>) -> Result<Response<DenyResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let identity = &request.get_ref().identity;
        let trust_bundle_revision = self.change(Change::Deny, identity, &who).await?;
        Ok(Response::new(DenyResponse {
            trust_bundle_revision,
        }))
    }

    async fn allow(
        &self,
        request: Request<AllowRequest>,
    ) -> Result<Response<AllowResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let identity = &request.get_ref().identity;
        let trust_bundle_revision = self.change(Change::Allow, identity, &who).await?;
        Ok(Response::new(AllowResponse {
            trust_bundle_revision,
        }))
    }

    async fn revoke_administrators(
        &self,
        request: Request<RevokeAdministratorsRequest>,
    ) -> Result<Response<RevokeAdministratorsResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let replaced = self.0.administrator.replace(&who, clock::wall()).await;
        let (revoked, not_after) = replaced.map_err(|error: OwnError| {
            error!(%error, "revoking administrators' certificates failed");
            Status::unavailable(error.to_string())
        })?;
        warn!(
            revoked,
            "administrators' certificates are revoked; there is a new one"
        );
        Ok(Response::new(RevokeAdministratorsResponse {
            revoked: u32::try_from(revoked).unwrap_or(u32::MAX),
            not_after_ms: clock::unix_ms(not_after),
        }))
    }
}

/// One `WatchTrustBundle` stream.
struct Watching {
    #[expect(dead_code, reason = "counts the stream for as long as it lives")]
    counted: crate::telemetry::OpenStream,
    bundle: Arc<Bundle>,
    changed: tokio::sync::watch::Receiver<u64>,
    session: Session,
    /// The revision the caller has.
    sent: u64,
    has_ended: bool,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<TrustBundle, Status>, Self)> {
        if self.has_ended {
            return None;
        }
        loop {
            self.changed.mark_unchanged();
            let current = self.bundle.published().load();
            // Another revision, not a higher one: who holds a revision from another life of this
            // control plane must hear of the present one, and judge it.
            if current.revision != self.sent {
                self.sent = current.revision;
                return Some((Ok(to_proto(&current)), self));
            }
            tokio::select! {
                // The end first: a denied caller learns nothing more.
                biased;
                status = self.session.ended() => {
                    self.has_ended = true;
                    return Some((Err(status), self));
                }
                changed = self.changed.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
            }
        }
    }
}

/// What a token proves, and which one it is; never the token.
fn minting(who: &str, minted: &Minted, subject: &Subject) -> Event {
    let after = serde_json::json!({
        "tokenId": minted.token_id,
        "labels": subject.labels,
        "addresses": subject.addresses,
        "notAfterMs": clock::unix_ms(minted.expires),
    });
    Event {
        after: Some(after.to_string()),
        ..Event::now(who, Action::Minted, minted.id.as_str())
    }
}

/// RESOURCE_EXHAUSTED, and when to come again.
fn retry_after(wait: Duration) -> Status {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut trailers = MetadataMap::new();
    trailers.insert("retry-after-ms", millis.into());
    Status::with_metadata(
        Code::ResourceExhausted,
        format!("certificates for this identity are issued too fast; again in {millis} ms"),
        trailers,
    )
}
