//! The gate: what every request passes before a service sees it. It makes the caller out of the
//! connection's certificate and the request's token, asks the table, and puts the [`Session`]
//! into the request's extensions.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::future::{Either, Ready, ready};
use heddle_policy::spiffe::SpiffeId;
use heddle_shell::{clock, publish::Published, tls::TrustBundle};
use http::{HeaderMap, header::AUTHORIZATION};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::{debug, warn};

use super::{
    Access, Caller, Held, Proof, Session, Usage, Workload, access, is_administrator, is_reserved,
    not_accepted, stream,
};
use crate::{
    ca::{Accepted, Fingerprint, Pace, Record, Serial},
    shares::Shares,
    telemetry::{Metrics, RequestRefusal, StreamKind},
    token::Tokens,
};

/// What a connection says about its other end; in the extensions of its requests.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// Its certificate, verified in the handshake.
    pub certificate: Option<Arc<Certificate>>,
    /// Without a certificate: what is proven on it otherwise.
    pub usage: Option<Arc<Usage>>,
}

/// A verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it certifies.
    pub id: SpiffeId,
    /// Its name in the ledger.
    pub serial: Serial,
    /// Which certificate it is, whoever issued it.
    pub fingerprint: Fingerprint,
    /// When it ends.
    pub not_after: SystemTime,
    /// What the ledger said when the connection was made.
    pub record: Recorded,
}

/// What the ledger said about a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Issued here, with this.
    Found(Record),
    /// Not issued here, or purged: whatever its id and serial, nobody's.
    Absent,
    /// No answer.
    Unavailable,
}

/// Makes sessions.
#[derive(Debug)]
pub struct Gate {
    /// Checks tokens.
    pub tokens: Arc<Tokens>,
    /// Tells who is denied.
    pub bundle: Arc<Published<TrustBundle>>,
    /// Tells which certificates are the administrator's.
    pub administrators: Arc<Published<Accepted>>,
    /// To be audited: who was refused what, and why. What finds no room is only logged.
    pub refusals: mpsc::Sender<Refusal>,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
    /// Ends every session when it turns true.
    pub stopping: watch::Receiver<bool>,
    /// Bounds the streams of each identity, kind by kind.
    pub streams: Shares<(SpiffeId, StreamKind)>,
    /// Paces warnings about each peer.
    pub warnings: Mutex<Pace<IpAddr>>,
}

/// What somebody with a proof asked for and may not have.
#[derive(Debug)]
pub struct Refusal {
    /// Who.
    pub who: SpiffeId,
    /// The method.
    pub method: String,
    /// Why not.
    pub why: String,
}

/// A refusal, and its label.
type Refused = (RequestRefusal, Status);

impl Gate {
    /// The session of a request, if the table permits it.
    fn admit(
        &self,
        path: &str,
        connection: &Connection,
        headers: &HeaderMap,
        wall: SystemTime,
    ) -> Result<Session, Refused> {
        let Some(access) = access(path) else {
            let status = Status::unimplemented("no such method");
            return Err((RequestRefusal::UnknownMethod, status));
        };
        let session = self.session(path, connection, headers, wall)?;
        session
            .check(wall)
            .map_err(|status| (RequestRefusal::ProofEnded, status))?;
        if access.permits(&session.caller) {
            return self.hold(path, connection, session);
        }
        let refused = refuse(access, &session.caller);
        if let Caller::Workload(workload) = &session.caller {
            self.audit(&workload.id, path, &refused);
        }
        Err(refused)
    }

    /// Takes what a permitted request occupies.
    fn hold(
        &self,
        path: &str,
        connection: &Connection,
        session: Session,
    ) -> Result<Session, Refused> {
        let Caller::Workload(workload) = &session.caller else {
            return Ok(session);
        };
        let mut held = Held {
            stream: None,
            connection: connection.usage.as_ref().map(Usage::begin),
        };
        if let Some(kind) = stream(path) {
            held.stream = self.streams.take(&(workload.id.clone(), kind));
            if held.stream.is_none() {
                let status = Status::resource_exhausted(format!(
                    "{} has {STREAMS_PER_IDENTITY_MAX} such streams open; is something opening \
                     them without end?",
                    workload.id
                ));
                let refused = (RequestRefusal::TooManyStreams, status);
                self.audit(&workload.id, path, &refused);
                return Err(refused);
            }
        }
        Ok(session.holding(held))
    }

    fn is_news(&self, peer: IpAddr) -> bool {
        let mut warnings = self.warnings.lock();
        warnings.take(&peer.to_canonical(), clock::now()).is_ok()
    }

    fn session(
        &self,
        path: &str,
        connection: &Connection,
        headers: &HeaderMap,
        wall: SystemTime,
    ) -> Result<Session, Refused> {
        let session = |caller| {
            Session::new(caller, connection.peer, Arc::clone(&self.bundle))
                .until_stopping(self.stopping.clone())
        };
        let certificate = connection.certificate.as_deref();
        let token = self.token(headers, wall)?;
        if let (Some(certificate), Some(token)) = (certificate, &token)
            && certificate.id != token.id
        {
            let status = Status::unauthenticated(format!(
                "the certificate is for {}, the token for {}",
                certificate.id, token.id
            ));
            let refused = (RequestRefusal::ProofsDiffer, status);
            self.audit(&certificate.id, path, &refused);
            return Err(refused);
        }
        // The token is the newer proof: it says what labels the workload has from now on.
        if let Some(workload) = token {
            return Ok(session(Caller::Workload(Arc::new(workload))));
        }
        let Some(certificate) = certificate else {
            return Ok(session(Caller::Anonymous));
        };
        if is_administrator(&certificate.id) {
            return self.administrator(certificate, session(Caller::Administrator));
        }
        let workload = by_certificate(certificate)?;
        Ok(session(Caller::Workload(Arc::new(workload))))
    }

    /// Has a refusal written down.
    fn audit(&self, who: &SpiffeId, path: &str, (_, status): &Refused) {
        let refusal = Refusal {
            who: who.clone(),
            method: path.trim_start_matches('/').to_owned(),
            why: status.message().to_owned(),
        };
        if self.refusals.try_send(refusal).is_err() {
            debug!("a refusal is logged but not audited: too many at once");
        }
    }

    /// The id alone is not enough: whoever else signs under the root can certify it.
    fn administrator(
        &self,
        certificate: &Certificate,
        session: Session,
    ) -> Result<Session, Refused> {
        let session = session.of_administrator(
            certificate.not_after,
            Arc::clone(&self.administrators),
            certificate.fingerprint.clone(),
        );
        match session.is_accepted() {
            true => Ok(session),
            false => Err((RequestRefusal::Certificate, not_accepted())),
        }
    }

    fn token(&self, headers: &HeaderMap, wall: SystemTime) -> Result<Option<Workload>, Refused> {
        let unusable = |why: String| (RequestRefusal::Token, Status::unauthenticated(why));
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(unusable("more than one authorization header".to_owned()));
        }
        // RFC 7235 section 2.1: the scheme is case insensitive.
        let token = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token)
            .ok_or_else(|| unusable("authorization is not \"Bearer <token>\"".to_owned()))?;
        let grant = self
            .tokens
            .verify(token, wall)
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Some(Workload {
            id: grant.id,
            labels: grant.labels,
            addresses: grant.addresses,
            proof_expires: grant.expires,
            token_proven_at: wall,
            via: Proof::Token,
        }))
    }
}

fn by_certificate(certificate: &Certificate) -> Result<Workload, Refused> {
    let unusable = |status| (RequestRefusal::Certificate, status);
    if is_reserved(&certificate.id) {
        return Err(unusable(Status::unauthenticated(format!(
            "{} is no caller",
            certificate.id
        ))));
    }
    match &certificate.record {
        Recorded::Found(record) if record.id == certificate.id => Ok(Workload {
            id: certificate.id.clone(),
            labels: record.labels.clone(),
            addresses: record.addresses.clone(),
            proof_expires: certificate.not_after,
            token_proven_at: record.token_proven_at,
            via: Proof::Certificate {
                serial: certificate.serial.clone(),
            },
        }),
        Recorded::Found(_) | Recorded::Absent => Err(unusable(Status::unauthenticated(
            "this control plane has no record of the certificate; present a token",
        ))),
        Recorded::Unavailable => {
            let status = Status::unavailable("the issuance ledger is not available; connect again");
            Err((RequestRefusal::Unavailable, status))
        }
    }
}

fn refuse(access: Access, caller: &Caller) -> Refused {
    let meant = access.as_words();
    match caller {
        Caller::Anonymous => (
            RequestRefusal::Unproven,
            Status::unauthenticated(format!(
                "this is for {meant}; present a token or a client certificate"
            )),
        ),
        Caller::Administrator | Caller::Workload(_) => (
            RequestRefusal::NotPermitted,
            Status::permission_denied(format!("this is for {meant}, not for {}", caller.name())),
        ),
    }
}

/// Open streams of one kind of one identity: its replicas, each of which may have an old one
/// beside the one it opened instead.
pub const STREAMS_PER_IDENTITY_MAX: usize = 2048;
/// Warnings about one peer: some at once, then one in a while; what is left out is counted.
pub const WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// See [`WARNING_INTERVAL`].
pub const WARNINGS_BURST: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Arc<Gate>,
    inner: S,
}

/// Puts services behind the gate.
#[derive(Clone, Debug)]
pub struct GateLayer(pub Arc<Gate>);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: Arc::clone(&self.0),
            inner,
        }
    }
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let Some(connection) = request.extensions().get::<Connection>().cloned() else {
            let status = Status::internal("the connection is unknown");
            return Either::Left(ready(Ok(status.into_http())));
        };
        let path = request.uri().path();
        match self
            .gate
            .admit(path, &connection, request.headers(), clock::wall())
        {
            Ok(session) => {
                // The token has been used; no service can log it by mistake.
                request.headers_mut().remove(AUTHORIZATION);
                request.extensions_mut().insert(session);
                Either::Right(self.inner.call(request))
            }
            Err((reason, status)) => {
                self.gate.metrics.request_refused(reason);
                let is_remarkable = matches!(
                    reason,
                    RequestRefusal::NotPermitted
                        | RequestRefusal::ProofsDiffer
                        | RequestRefusal::TooManyStreams
                );
                if is_remarkable && self.gate.is_news(connection.peer.ip()) {
                    warn!(peer = %connection.peer, why = status.message(), "refused a request");
                } else {
                    debug!(peer = %connection.peer, ?reason, "refused a request");
                }
                Either::Left(ready(Ok(status.into_http())))
            }
        }
    }
}
