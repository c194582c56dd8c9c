//! Who calls, and who may call what.
//!
//! A caller proves itself by the client certificate of its connection or by a bearer token.
//! Every request passes the table of this module before a service sees it; what is not in the
//! table is refused. Services find the [`Session`] in the request's extensions.

mod access;
mod gate;
mod usage;

use std::{
    collections::BTreeMap,
    future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_policy::spiffe::{CONTROL_PLANE_NAMESPACE, SpiffeId, TrustDomain};
use heddle_shell::{clock, publish::Published, tls::TrustBundle};
use ipnet::IpNet;
use tokio::sync::watch;
use tonic::Status;

pub use access::{Access, access, methods, stream};
pub use gate::{
    Certificate, Connection, Gate, GateLayer, Gated, Recorded, Refusal, STREAMS_PER_IDENTITY_MAX,
    WARNING_INTERVAL, WARNINGS_BURST,
};
pub use usage::{InUse, Usage};

use crate::{
    ca::{Accepted, Fingerprint, Serial},
    shares::Share,
    telemetry::StreamKind,
};

/// The service account of the administrator, in the control plane's own namespace. Never
/// issued on a workload's proof.
pub const ADMINISTRATOR_SERVICE_ACCOUNT: &str = "heddle-administrator";

/// Longest sleep of [`Session::ended`] between two looks at the wall clock: a clock that jumped
/// ends a stream at most this late.
const WALL_CLOCK_STEP: Duration = Duration::from_secs(10);

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The holder of the administrator's certificate.
    Administrator,
    /// A workload, by its token or its certificate.
    Workload(Arc<Workload>),
    /// Nobody in particular.
    Anonymous,
}

/// A proven workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its identity; never a reserved one.
    pub id: SpiffeId,
    /// The labels fixed in its token; what selectors of policies see.
    pub labels: BTreeMap<String, String>,
    /// What it may register besides the address it calls from.
    pub addresses: Vec<IpNet>,
    /// When the proof ends, and with it every stream that was opened on it.
    pub proof_expires: SystemTime,
    /// When a token was last presented, now or for the chain of certificates up to this one.
    pub token_proven_at: SystemTime,
    /// What the proof is.
    pub via: Proof,
}

/// What a workload proves itself by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A bearer token.
    Token,
    /// The client certificate of the connection.
    Certificate {
        /// Its name in the issuance ledger.
        serial: Serial,
    },
}

/// One request's caller, where it calls from, and when its proof ends.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who calls.
    pub caller: Caller,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// When the proof ends; never for a caller without one.
    proof_expires: Option<SystemTime>,
    /// For the deny list.
    bundle: Arc<Published<TrustBundle>>,
    /// For an administrator: what certificate, and where to see that it is still one.
    administrator: Option<(Arc<Published<Accepted>>, Fingerprint)>,
    /// Turns true when the control plane stops; without it a session never ends for that.
    stopping: Option<watch::Receiver<bool>>,
    /// Given back with the last copy.
    held: Option<Arc<Held>>,
}

/// What a request occupies for as long as its session lives.
#[derive(Debug, Default)]
pub struct Held {
    /// Of the streams of its identity.
    pub stream: Option<Share<(SpiffeId, StreamKind)>>,
    /// Of a connection without a certificate.
    pub connection: Option<InUse>,
}

impl Session {
    /// A session of `caller`; `bundle` tells of denials.
    pub fn new(caller: Caller, peer: SocketAddr, bundle: Arc<Published<TrustBundle>>) -> Self {
        let proof_expires = match &caller {
            Caller::Workload(workload) => Some(workload.proof_expires),
            Caller::Administrator | Caller::Anonymous => None,
        };
        Self {
            caller,
            peer,
            proof_expires,
            bundle,
            administrator: None,
            stopping: None,
            held: None,
        }
    }

    /// The same, occupying something.
    #[must_use]
    pub fn holding(mut self, held: Held) -> Self {
        self.held = Some(Arc::new(held));
        self
    }

    /// The same, ending when the control plane stops.
    #[must_use]
    pub fn until_stopping(mut self, stopping: watch::Receiver<bool>) -> Self {
        self.stopping = Some(stopping);
        self
    }

    /// The same, of an administrator's certificate: until its end, or until it is revoked.
    #[must_use]
    pub fn of_administrator(
        mut self,
        expires: SystemTime,
        accepted: Arc<Published<Accepted>>,
        fingerprint: Fingerprint,
    ) -> Self {
        self.proof_expires = Some(expires);
        self.administrator = Some((accepted, fingerprint));
        self
    }

    /// Whether an administrator's certificate is one of ours and not revoked.
    fn is_accepted(&self) -> bool {
        let administrator = self.administrator.as_ref();
        administrator.is_none_or(|(accepted, name)| accepted.load().contains(name))
    }

    /// The session of a request that came through the gate.
    ///
    /// # Errors
    /// UNAUTHENTICATED when it did not: a service wired past the gate refuses everybody.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get()
            .cloned()
            .ok_or_else(|| Status::unauthenticated("the request was not authenticated"))
    }

    /// The calling workload.
    ///
    /// # Errors
    /// PERMISSION_DENIED for the administrator, who is none.
    pub fn workload(&self) -> Result<&Arc<Workload>, Status> {
        match &self.caller {
            Caller::Workload(workload) => Ok(workload),
            Caller::Administrator | Caller::Anonymous => Err(Status::permission_denied(
                "only a workload may call this; the caller is none",
            )),
        }
    }

    /// Whether the proof still holds.
    ///
    /// # Errors
    /// UNAUTHENTICATED after its end or revocation, PERMISSION_DENIED for a denied identity.
    pub fn check(&self, wall: SystemTime) -> Result<(), Status> {
        if let Caller::Workload(workload) = &self.caller
            && self.bundle.load().denied.contains(&workload.id)
        {
            return Err(Status::permission_denied(format!(
                "{} is denied",
                workload.id
            )));
        }
        if !self.is_accepted() {
            return Err(not_accepted());
        }
        if self.proof_expires.is_some_and(|expires| expires <= wall) {
            return Err(Status::unauthenticated(format!(
                "the proof of {} has expired; connect with a new one",
                self.caller.name()
            )));
        }
        Ok(())
    }

    /// Resolves when the proof has expired or was revoked, its identity was denied or the control plane stops,
    /// with the status to end a stream with. Pending for as long as the caller may go on. Cancel
    /// safe.
    pub async fn ended(&self) -> Status {
        tokio::select! {
            // Order does not matter: each of them is an end.
            biased;
            status = self.proof_ended() => status,
            () = self.stopped() => {
                Status::unavailable("the control plane is stopping; connect again")
            }
        }
    }

    async fn stopped(&self) {
        let Some(mut stopping) = self.stopping.clone() else {
            return future::pending().await;
        };
        // An error is the end of the control plane, which is the same.
        drop(stopping.wait_for(|is_stopping| *is_stopping).await);
    }

    async fn proof_ended(&self) -> Status {
        let Some(expires) = self.proof_expires else {
            return future::pending().await;
        };
        let mut changed = self.bundle.subscribe();
        let administrator = self.administrator.as_ref();
        let mut revoked = administrator.map(|(accepted, _)| accepted.subscribe());
        loop {
            let wall = clock::wall();
            if let Err(refused) = self.check(wall) {
                return refused;
            }
            let left = expires.duration_since(wall).unwrap_or_default();
            let wake = clock::now() + left.min(WALL_CLOCK_STEP);
            tokio::select! {
                // Order does not matter: all lead to the same look.
                biased;
                Ok(()) = changed.changed() => {}
                Some(Ok(())) = async { Some(revoked.as_mut()?.changed().await) } => {}
                () = clock::sleep_until(wake) => {}
            }
        }
    }
}

impl Caller {
    /// Who did it, as change records name people: a SPIFFE id, `administrator` or `anonymous`.
    pub fn name(&self) -> &str {
        match self {
            Self::Administrator => "administrator",
            Self::Workload(workload) => workload.id.as_str(),
            Self::Anonymous => "anonymous",
        }
    }
}

/// The administrator's reserved id.
pub fn administrator(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(
        trust_domain,
        CONTROL_PLANE_NAMESPACE,
        ADMINISTRATOR_SERVICE_ACCOUNT,
    )
    .expect("both parts are constants of the allowed alphabet")
}

fn not_accepted() -> Status {
    Status::unauthenticated(
        "this administrator's certificate is not one of this control plane's, or was revoked; the \
         newest is in its data directory",
    )
}

/// Whether an id is never given to a workload.
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.is_control_plane() || is_administrator(id)
}

/// Whether an id is the administrator's.
pub fn is_administrator(id: &SpiffeId) -> bool {
    id.namespace() == CONTROL_PLANE_NAMESPACE
        && id.service_account() == ADMINISTRATOR_SERVICE_ACCOUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(expires_in: Duration) -> Caller {
        Caller::Workload(Arc::new(Workload {
            id: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            proof_expires: clock::wall() + expires_in,
            token_proven_at: clock::wall(),
            via: Proof::Token,
        }))
    }

    fn session(caller: Caller) -> Session {
        let peer = "127.0.0.1:1".parse().unwrap();
        Session::new(caller, peer, Published::new(TrustBundle::default()))
    }

    #[tokio::test]
    async fn a_session_ends_with_its_proof() {
        let ended = session(workload(Duration::from_millis(20))).ended().await;
        assert_eq!(ended.code(), tonic::Code::Unauthenticated, "{ended:?}");
    }

    #[tokio::test]
    async fn a_session_ends_when_its_identity_is_denied() {
        let session = session(workload(Duration::from_secs(3600)));
        let waiting = tokio::time::timeout(Duration::from_millis(20), session.ended()).await;
        assert!(waiting.is_err(), "ended early: {waiting:?}");
        let denied = TrustBundle {
            denied: ["spiffe://td/ns/shop/sa/web".parse().unwrap()].into(),
            ..TrustBundle::default()
        };
        session.bundle.publish(Arc::new(denied));
        assert_eq!(session.ended().await.code(), tonic::Code::PermissionDenied);
    }

    #[test]
    fn a_request_past_the_gate_is_refused() {
        let refused = Session::of(&tonic::Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn both_ids_of_the_control_plane_are_reserved() {
        let domain: TrustDomain = "td".parse().unwrap();
        assert!(is_reserved(&administrator(&domain)));
        assert!(is_reserved(&SpiffeId::control_plane(&domain)));
        assert!(!is_reserved(
            &"spiffe://td/ns/shop/sa/heddle-administrator"
                .parse()
                .unwrap()
        ));
    }
}
