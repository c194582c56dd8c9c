//! One `Register` stream: a registration that is alive for as long as the stream is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::v1::{
    RegisterRequest, RegisterResponse, Registered, Withdrawn, register_response::Event,
};
use heddle_shell::clock;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    BEATS, Shared,
    hold::Hold,
    record::{Record, State},
    request, subject,
    withdrawal::Withdrawal,
};
use crate::{
    authn::{Session, Workload as Proven},
    store::{Lease, StoreError},
    telemetry::OpenStream,
    world::{Services, WorkloadName},
};

/// For the first request.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Between two looks at whether a workload is withdrawn; reports come in bursts.
const LOOK: Duration = Duration::from_millis(10);

/// A stream before its first request.
pub(super) struct Registration {
    pub(super) shared: Arc<Shared>,
    pub(super) proven: Arc<Proven>,
    pub(super) session: Session,
    pub(super) requests: Streaming<RegisterRequest>,
    pub(super) responses: mpsc::Sender<Result<RegisterResponse, Status>>,
    #[expect(dead_code, reason = "counts the stream for as long as it lives")]
    pub(super) counted: OpenStream,
}

/// What a stream has registered.
struct Held<'a> {
    shared: &'a Shared,
    name: WorkloadName,
    record: Record,
    lease: Lease,
    hold: Hold<'a>,
    /// What the workload was told of its services.
    told: Services,
    withdrawal: Withdrawal,
    beat: Instant,
}

/// Why a stream ends.
enum End {
    /// The client closed it, or is not there any more.
    Gone,
    /// What the client sent cannot be read, or did not come whole: told to it if it is still
    /// there, and else as if it had gone.
    Broken(Status),
    /// It has to be told.
    Told(Status),
}

impl Registration {
    /// Runs until the stream's end.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let end = Box::pin(self.serve(&shared)).await;
        if let End::Told(status) | End::Broken(status) = end {
            debug!(who = %self.proven.id, code = ?status.code(), why = status.message(), "a registration stream ends");
            // The client may have gone already.
            let _gone = self.responses.try_send(Err(status));
        }
    }

    async fn serve(&mut self, shared: &Shared) -> End {
        let session = self.session.clone();
        let mut proof = std::pin::pin!(session.ended());
        let introduction = clock::now() + INTRODUCTION;
        let first = tokio::select! {
            biased; // A proof that has ended outranks what is asked on it.
            status = &mut proof => return End::Told(status),
            () = clock::sleep_until(introduction) => {
                return End::Told(Status::deadline_exceeded("the first request did not come"));
            }
            request = self.requests.message() => match request {
                Ok(Some(request)) => request,
                Ok(None) => return End::Gone,
                Err(status) => return End::Broken(status),
            },
        };
        let (mut held, mut replaced) = match self.begin(shared, first).await {
            Ok(begun) => begun,
            Err(status) => return End::Told(status),
        };
        let mut worlds = shared.discovery.worlds();
        let mut reports = shared.discovery.proxies.changes();
        let mut look = None;
        let end = loop {
            let is_waiting = held.withdrawal.is_waiting();
            tokio::select! {
                // Ends first; then the sign of life, which must not wait for a client that asks
                // without pause.
                biased;
                status = &mut proof => break End::Told(status),
                status = &mut replaced => break End::Told(status.unwrap_or_else(|_dropped| {
                    Status::aborted("the registration has ended")
                })),
                () = self.responses.closed() => break End::Gone,
                () = clock::sleep_until(held.beat) => {
                    if let Err(status) = held.beat().await { break End::Told(status) }
                }
                request = self.requests.message() => match request {
                    Ok(None) => break End::Gone,
                    Err(status) => break End::Broken(status),
                    Ok(Some(request)) => {
                        if let Err(status) = self.update(&mut held, request).await {
                            break End::Told(status);
                        }
                        look = Some(clock::now());
                    }
                },
                () = clock::sleep_until(look.unwrap_or(held.beat)), if look.is_some() => {
                    look = None;
                    if let Err(status) = self.tell(&mut held) { break End::Told(status) }
                }
                Ok(()) = worlds.changed() => look = look.or(Some(clock::now() + LOOK)),
                Ok(()) = reports.changed(), if is_waiting => {
                    look = look.or(Some(clock::now() + LOOK));
                }
            }
        };
        held.end(&end).await;
        end
    }

    /// Takes the first request.
    async fn begin<'a>(
        &mut self,
        shared: &'a Shared,
        request: RegisterRequest,
    ) -> Result<(Held<'a>, oneshot::Receiver<Status>), Status> {
        let named = (
            self.proven.id.namespace().into(),
            request.name.chars().take(64).collect::<String>().into(),
        );
        let begun = self.try_begin(shared, request).await;
        if let Err(status) = &begun {
            self.note_refusal(&named, status).await;
        }
        let (mut held, replaced) = begun?;
        info!(workload = %subject(&held.name), identity = %self.proven.id, address = %held.record.address, "registered");
        self.tell_registered(&mut held).await?;
        Ok((held, replaced))
    }

    async fn try_begin<'a>(
        &self,
        shared: &'a Shared,
        request: RegisterRequest,
    ) -> Result<(Held<'a>, oneshot::Receiver<Status>), Status> {
        let (name, mut record) = self.checked(request)?;
        shared.may_claim(&name, &record, &self.proven)?;
        shared.room(&name, &self.proven.id)?;
        shared.is_free(&name, &self.proven.id).await?;
        let (hold, replaced) = shared.holds.take(&name, &self.proven.id)?;
        shared.pace(&self.proven.id).await;
        let lease = shared.claim(&name, &mut record, &hold).await?;
        let held = Held {
            shared,
            withdrawal: Withdrawal::new(record.state),
            beat: clock::now() + record.ttl() / BEATS,
            name,
            record,
            lease,
            hold,
            told: Services::default(),
        };
        held.tell_fleet();
        Ok((held, replaced))
    }

    /// Takes a later request.
    async fn update(
        &mut self,
        held: &mut Held<'_>,
        request: RegisterRequest,
    ) -> Result<(), Status> {
        let updated = self.try_update(held, request).await;
        match &updated {
            Ok(()) => self.tell_registered(held).await,
            Err(status) => {
                self.note_refusal(&held.name, status).await;
                updated
            }
        }
    }

    async fn try_update(
        &self,
        held: &mut Held<'_>,
        request: RegisterRequest,
    ) -> Result<(), Status> {
        let (name, mut record) = self.checked(request)?;
        if name != held.name {
            return Err(Status::invalid_argument(format!(
                "this stream registers {}; open another one for {}",
                held.name.1, name.1
            )));
        }
        record.registered_at_ms = held.record.registered_at_ms;
        if record == held.record {
            return Ok(());
        }
        held.shared.may_claim(&name, &record, &self.proven)?;
        held.shared.pace(&self.proven.id).await;
        held.write(record).await
    }

    fn checked(&self, request: RegisterRequest) -> Result<(WorkloadName, Record), Status> {
        let now = clock::unix_ms(clock::wall());
        let peer = self.session.peer.ip();
        request::check(request, &self.proven, peer, self.shared.grace, now)
    }

    /// Counts what was refused, and audits what the caller may not have.
    async fn note_refusal(&self, name: &WorkloadName, status: &Status) {
        match status.code() {
            Code::PermissionDenied => {
                let refused = self.shared.refused(&self.proven.id, name, status.message());
                refused.await;
            }
            Code::InvalidArgument | Code::ResourceExhausted => {
                warn!(who = %self.proven.id, workload = %subject(name), why = status.message(), "a registration was refused");
                self.shared.metrics.registration_refused();
            }
            // Of the store's or of a race's making.
            _ => {}
        }
    }

    /// Confirms a registration, and audits what services refuse it.
    async fn tell_registered(&self, held: &mut Held<'_>) -> Result<(), Status> {
        let services = held.services();
        for refusal in &services.refusals {
            if !held.told.refusals.contains(refusal) {
                let refused = held.shared.refused(&self.proven.id, &held.name, refusal);
                refused.await;
            }
        }
        held.told = services;
        self.send(held.registered())
    }

    /// Tells what has changed for the workload: its services, or that it is withdrawn.
    fn tell(&self, held: &mut Held<'_>) -> Result<(), Status> {
        let services = held.services();
        if services != held.told {
            held.told = services;
            self.send(held.registered())?;
        }
        if held.withdrawal.look(&held.shared.discovery, &held.name) {
            info!(workload = %subject(&held.name), "withdrawn: no client goes by endpoints that have it");
            self.send(Event::Withdrawn(Withdrawn {}))?;
        }
        Ok(())
    }

    fn send(&self, event: Event) -> Result<(), Status> {
        let response = RegisterResponse { event: Some(event) };
        self.responses
            .try_send(Ok(response))
            .map_err(|_full_or_closed| Status::unavailable("the client does not read"))
    }
}

impl Held<'_> {
    /// Gives a sign of life, or registers again when it came too late.
    async fn beat(&mut self) -> Result<(), Status> {
        self.beat = clock::now() + self.record.ttl() / BEATS;
        match self.shared.store.keep_alive(self.lease).await {
            Ok(()) => Ok(()),
            Err(StoreError::LeaseGone) => {
                warn!(workload = %subject(&self.name), "the lease ran out under an open stream; registering again");
                self.write(self.record.clone()).await
            }
            Err(error) => Err(super::failed(error)),
        }
    }

    async fn write(&mut self, mut record: Record) -> Result<(), Status> {
        // From here on the name is written by this stream: an unchanged entry proves nothing.
        self.hold.is_first = false;
        let shared = self.shared;
        self.lease = shared.claim(&self.name, &mut record, &self.hold).await?;
        if record.state != self.record.state {
            self.withdrawal = Withdrawal::new(record.state);
        }
        self.record = record;
        self.tell_fleet();
        self.beat = clock::now() + self.record.ttl() / BEATS;
        Ok(())
    }

    /// Lets those who wait for sidecars know that this one is here, and whether it comes back.
    fn tell_fleet(&self) {
        if let Some(workload) = self.record.workload(&self.name) {
            let is_leaving = self.record.state == State::Draining;
            let proxies = &self.shared.discovery.proxies;
            proxies.drains(workload.node_id().into(), is_leaving);
            proxies.changed();
        }
    }

    /// What is left of a registration whose stream has ended.
    async fn end(&self, end: &End) {
        if let Some(workload) = self.record.workload(&self.name) {
            let proxies = &self.shared.discovery.proxies;
            proxies.registration_ended(&workload.node_id());
        }
        if !self.hold.is_held() {
            return;
        }
        let is_over = match end {
            End::Gone | End::Broken(_) => {
                self.record.grace().is_zero() || self.record.state == State::Draining
            }
            End::Told(status) => status.code() == Code::PermissionDenied,
        };
        let ended = if is_over {
            self.shared.store.revoke(self.lease).await
        } else {
            // The grace counts from now.
            self.shared.store.keep_alive(self.lease).await
        };
        match ended {
            Ok(()) | Err(StoreError::LeaseGone | StoreError::Closed) => {}
            Err(error) => {
                warn!(%error, workload = %subject(&self.name), "a registration ends later than it should");
            }
        }
        info!(workload = %subject(&self.name), is_over, "the registration's stream has ended");
    }

    fn services(&self) -> Services {
        let workload = self.record.workload(&self.name);
        let services = workload.map(|workload| self.shared.services_of(&workload));
        services.unwrap_or_default()
    }

    fn registered(&self) -> Event {
        Event::Registered(Registered {
            namespace: self.name.0.to_string(),
            name: self.name.1.to_string(),
            address: self.record.address.to_string(),
            services: self.told.serves.iter().map(ToString::to_string).collect(),
            refusals: self.told.refusals.clone(),
        })
    }
}
