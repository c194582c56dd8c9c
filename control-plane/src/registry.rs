//! `heddle.v1.Registry`: workloads that announce themselves. Registration is not permission: who
//! may serve a service is configuration, judged in [`World`](crate::world::World).
//!
//! ```text
//! stream ──► request (pure check against the proof) ──► store: key on a lease ──► world ──► EDS
//!    │ lives: the lease is kept alive
//!    └ gone: the lease runs out after the grace
//! ```
//!
//! A name belongs to the identity that registered it until it is gone. One stream holds a name;
//! a newer one of the same identity takes it over without a gap.

mod hold;
mod record;
mod request;
mod stream;
mod withdrawal;

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::spiffe::SpiffeId;
use heddle_proto::v1;
use heddle_shell::clock;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::{error, info, warn};

use crate::{
    audit::{self, Audit, Refusals},
    authn::{Caller, Session, Workload as Proven},
    ca::Pace,
    discovery::{Discovery, sidecars::RETURN},
    model::Unreadable,
    page,
    store::{Lease, Outcome, Store, StoreError, Transaction},
    streams::Streams,
    telemetry::{Metrics, StreamKind},
    world::{Services, Workload, WorkloadName},
};

pub use record::{Record, WORKLOADS, read};

pub use hold::Holds;

use hold::Hold;

/// The service.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    streams: Streams,
}

/// What every stream needs.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    discovery: Arc<Discovery>,
    metrics: Arc<Metrics>,
    /// How long a registration outlives its stream.
    grace: Duration,
    holds: Arc<Holds>,
    /// Of writes, per identity.
    writes: Mutex<Pace>,
    refusals: Arc<Refusals>,
}

impl Registry {
    /// A registry in `store`; registrations outlive their streams by `grace`.
    pub fn new(
        store: Arc<dyn Store>,
        discovery: Arc<Discovery>,
        metrics: Arc<Metrics>,
        refusals: Arc<Refusals>,
        grace: Duration,
        streams: Streams,
    ) -> Self {
        let shared = Shared {
            store,
            discovery,
            metrics,
            grace,
            holds: Arc::default(),
            writes: Mutex::new(Pace::new(WRITE_INTERVAL, WRITES_BURST)),
            refusals,
        };
        Self {
            shared: Arc::new(shared),
            streams,
        }
    }

    /// Which registrations have a stream in this process.
    pub fn holds(&self) -> Arc<Holds> {
        Arc::clone(&self.shared.holds)
    }

    /// Keeps what is registered alive until the workloads had the time to come back: their
    /// streams ended with the process before this one, and they wait between attempts.
    pub fn await_return(&self) {
        let shared = Arc::clone(&self.shared);
        self.streams.spawn("registry-return", async move {
            if let Err(error) = shared.await_return().await {
                warn!(%error, "registrations of before the start are not kept for longer");
            }
        });
    }
}

#[async_trait]
impl v1::registry_server::Registry for Registry {
    type RegisterStream = ReceiverStream<Result<v1::RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let session = Session::of(&request)?;
        let proven = Arc::clone(session.workload()?);
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let registration = stream::Registration {
            shared: Arc::clone(&self.shared),
            proven,
            session,
            requests: request.into_inner(),
            responses,
            counted: self.shared.metrics.stream(StreamKind::Registration),
        };
        self.streams.spawn("registration", registration.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        let session = Session::of(&request)?;
        let request = request.into_inner();
        let namespace = match (&session.caller, request.namespace.as_str()) {
            (Caller::Workload(workload), "") => workload.id.namespace().to_owned(),
            (_, namespace) => namespace.to_owned(),
        };
        let name = (namespace.into(), request.name.into());
        let removed = self.shared.deregister(&name, &session.caller).await;
        if let Err(status) = &removed
            && status.code() == tonic::Code::PermissionDenied
            && let Caller::Workload(workload) = &session.caller
        {
            let refused = self.shared.refused(&workload.id, &name, status.message());
            refused.await;
        }
        removed.map(|()| Response::new(v1::DeregisterResponse {}))
    }

    async fn list(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let v1::ListWorkloadsRequest {
            namespace,
            page_token,
        } = request.get_ref();
        let prefix = match namespace.as_str() {
            "" => WORKLOADS.to_owned(),
            namespace => format!("{WORKLOADS}{namespace}/"),
        };
        let after = page::key(page_token, &prefix)?;
        // One more, to know whether there are more.
        let listing = self.shared.store.page(&prefix, after, PAGE_MAX + 1).await;
        let mut all = Vec::new();
        for entry in &listing.map_err(failed)?.entries {
            let (name, record) = Record::read(entry).map_err(unreadable)?;
            let (_, workload) = read(entry).map_err(unreadable)?;
            let services = self.shared.services_of(&workload);
            all.push((Arc::clone(&entry.key), record.describe(&name, services)));
        }
        let (workloads, next) = page::fill(PAGE_MAX, all);
        Ok(Response::new(v1::ListWorkloadsResponse {
            workloads,
            next_page_token: page::token(next),
        }))
    }
}

impl Shared {
    /// Writes a registration on a lease of its own, or keeps the very same one alive.
    ///
    /// # Errors
    /// PERMISSION_DENIED when the name is another identity's, ABORTED when the hold was lost.
    async fn claim(
        &self,
        name: &WorkloadName,
        record: &mut Record,
        hold: &Hold<'_>,
    ) -> Result<Lease, Status> {
        let key = Record::key(name);
        let mut granted = None;
        for _ in 0..ATTEMPTS_MAX {
            if !hold.is_held() {
                return Err(Status::aborted("a newer stream holds the registration"));
            }
            let entry = self.store.get(&key).await.map_err(failed)?;
            let guarded = match &entry {
                None => Transaction::default().if_absent(&key),
                Some(entry) => {
                    let (_, known) = Record::read(entry).map_err(unreadable)?;
                    if known.identity != record.identity {
                        return Err(taken(name, &known.identity));
                    }
                    record.registered_at_ms = known.registered_at_ms;
                    // Whoever held it before may be about to end its lease.
                    if hold.is_first
                        && known == *record
                        && let Some(lease) = entry.lease
                        && self.store.keep_alive(lease).await.is_ok()
                    {
                        return Ok(lease);
                    }
                    Transaction::default().if_modified_at(&key, entry.modified)
                }
            };
            let lease = match granted {
                Some(lease) => lease,
                None => self.store.grant(record.ttl()).await.map_err(failed)?,
            };
            granted = Some(lease);
            let write = guarded.put_leased(&key, record.to_bytes(), lease);
            match self.store.commit(write).await {
                Ok(Outcome::Applied(_)) => return Ok(lease),
                Ok(Outcome::Conflict) => {}
                Err(StoreError::LeaseGone) => granted = None,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Status::unavailable(
            "others change this registration again and again",
        ))
    }

    /// Before anything of another's stream is touched.
    async fn is_free(&self, name: &WorkloadName, identity: &SpiffeId) -> Result<(), Status> {
        let entry = self.store.get(&Record::key(name)).await.map_err(failed)?;
        let Some(entry) = entry else {
            return Ok(());
        };
        let (_, record) = Record::read(&entry).map_err(unreadable)?;
        if record.identity == identity.as_str() {
            Ok(())
        } else {
            Err(taken(name, &record.identity))
        }
    }

    /// Nobody takes an endpoint away that somebody else wrote, unless the token says that the
    /// address is its own.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    fn may_claim(
        &self,
        name: &WorkloadName,
        record: &Record,
        proven: &Proven,
    ) -> Result<(), Status> {
        let Some(compiler) = self.discovery.compiler() else {
            return Ok(());
        };
        let is_listed = |address| proven.addresses.iter().any(|net| net.contains(&address));
        let Some(workload) = record.workload(name).filter(|w| !is_listed(w.address)) else {
            return Ok(());
        };
        match compiler.world().written_for_another(&workload) {
            None => Ok(()),
            Some(service) => Err(Status::permission_denied(format!(
                "{service} has an endpoint at {} that {} would take away; list the identity in \
                 its subjectAltNames, or the address in the token",
                workload.address, proven.id
            ))),
        }
    }

    /// Room for one more registration of an identity.
    fn room(&self, name: &WorkloadName, identity: &SpiffeId) -> Result<(), Status> {
        let Some(compiler) = self.discovery.compiler() else {
            return Ok(());
        };
        let world = compiler.world();
        let full = |whose: &str, max: usize| {
            Err(Status::resource_exhausted(format!(
                "{whose} has {max} registrations already; is something registering under ever \
                 new names?"
            )))
        };
        if world.workloads.contains_key(name) {
            return Ok(());
        }
        if world.workloads.len() >= REGISTRATIONS_MAX {
            return full("the mesh", REGISTRATIONS_MAX);
        }
        let own = world.workloads.values();
        if own.filter(|other| other.identity == *identity).count() >= PER_IDENTITY_MAX {
            return full(identity.as_str(), PER_IDENTITY_MAX);
        }
        Ok(())
    }

    /// Waits until an identity may write once more.
    async fn pace(&self, identity: &SpiffeId) {
        loop {
            let taken = self.writes.lock().take(identity, clock::now());
            match taken {
                Ok(()) => return,
                Err(wait) => clock::sleep_until(clock::now() + wait).await,
            }
        }
    }

    async fn deregister(&self, name: &WorkloadName, caller: &Caller) -> Result<(), Status> {
        let key = Record::key(name);
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.store.get(&key).await.map_err(failed)?;
            let entry = entry.ok_or_else(|| {
                Status::not_found(format!("there is no workload {}/{}", name.0, name.1))
            })?;
            let (_, record) = Record::read(&entry).map_err(unreadable)?;
            if let Caller::Workload(workload) = caller
                && record.identity != workload.id.as_str()
            {
                return Err(taken(name, &record.identity));
            }
            let event = audit::Event {
                at_ms: clock::unix_ms(clock::wall()),
                who: caller.name().to_owned(),
                action: audit::Action::Deleted,
                subject: subject(name),
                before: Some(String::from_utf8_lossy(&entry.value).into_owned()),
                after: None,
                reason: None,
            };
            let delete = Transaction::default()
                .if_modified_at(&key, entry.modified)
                .delete(&key);
            let delete = Audit::write(delete, &event);
            if let Outcome::Applied(_) = self.store.commit(delete).await.map_err(failed)? {
                let by = caller.name();
                self.holds
                    .end(name, Status::aborted(format!("deregistered by {by}")));
                info!(workload = %subject(name), by, "deregistered");
                return Ok(());
            }
        }
        Err(Status::unavailable(
            "others change this registration again and again",
        ))
    }

    /// Counts and audits a refusal.
    async fn refused(&self, who: &SpiffeId, name: &WorkloadName, reason: &str) {
        self.metrics.registration_refused();
        warn!(%who, workload = %subject(name), reason, "a registration was refused");
        self.refusals.record(who, &subject(name), reason).await;
    }

    fn services_of(&self, workload: &Workload) -> Services {
        let compiler = self.discovery.compiler();
        compiler.map_or_else(Services::default, |compiler| {
            compiler.world().services_of(workload)
        })
    }

    async fn await_return(&self) -> Result<(), StoreError> {
        let end: Instant = clock::now() + RETURN;
        let mut left: Vec<_> = self
            .store
            .list(WORKLOADS)
            .await?
            .entries
            .iter()
            .filter_map(|entry| Some((Record::read(entry).ok()?, entry.lease?)))
            .collect();
        while !left.is_empty() && clock::now() < end {
            left.retain(|((name, _), _)| !self.holds.contains(name));
            let mut pause = RETURN;
            for ((_, record), lease) in &left {
                pause = pause.min(record.ttl() / BEATS);
                match self.store.keep_alive(*lease).await {
                    Ok(()) | Err(StoreError::LeaseGone) => {}
                    Err(error) => return Err(error),
                }
            }
            clock::sleep_until(clock::now() + pause).await;
        }
        Ok(())
    }
}

impl Record {
    /// Of its lease.
    fn ttl(&self) -> Duration {
        self.grace().max(TTL_MIN)
    }
}

fn subject(name: &WorkloadName) -> String {
    format!("Workload {}/{}", name.0, name.1)
}

fn taken(name: &WorkloadName, by: &str) -> Status {
    Status::permission_denied(format!(
        "workload {}/{} is registered by {by}",
        name.0, name.1
    ))
}

fn failed(error: StoreError) -> Status {
    error!(
        error = &error as &dyn std::error::Error,
        "the registry's store failed"
    );
    Status::unavailable(error.to_string())
}

fn unreadable(unreadable: Unreadable) -> Status {
    match unreadable {
        Unreadable::Store(error) => failed(error),
        record @ Unreadable::Record { .. } => {
            error!(error = %record, "a registration cannot be read");
            Status::data_loss(record.to_string())
        }
    }
}

/// Changes by others that one change waits out.
const ATTEMPTS_MAX: u32 = 16;
/// Registrations of one page of a listing.
const PAGE_MAX: usize = 500;
/// Responses that wait for a slow client; beyond it its stream ends.
const RESPONSES_MAX: usize = 16;
/// Registrations of one identity.
const PER_IDENTITY_MAX: usize = 1000;
/// Registrations of the mesh.
const REGISTRATIONS_MAX: usize = 50_000;
/// Shortest lease, so that a busy machine does not lose one; a shorter grace is rounded up to it,
/// but for none at all.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Signs of life per lease time.
const BEATS: u32 = 3;
/// Writes of one identity: its replicas come together.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
const WRITES_BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();
