//! The registration of this workload: a stream that is its lease.

use std::{collections::HashMap, sync::Arc, time::Duration};

use heddle_proto::v1::{
    RegisterRequest, RegisterResponse, WorkloadState, register_response::Event,
    registry_client::RegistryClient,
};
use heddle_shell::causes::chain;
use rand::rngs::StdRng;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::{
    backoff::Backoff,
    config::Workload,
    uplink::{Link, Uplink, received, words},
};

/// How long an old stream is kept for the new one to be confirmed.
const HANDOVER: Duration = Duration::from_secs(5);

/// Where the registration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Serving.
    Ready,
    /// Asks every sidecar to go elsewhere.
    Draining,
}

/// The registration's task and those who steer it.
#[derive(Debug)]
pub struct Registration {
    request: RegisterRequest,
    uplink: Arc<Uplink>,
    stage: watch::Receiver<Stage>,
    /// Turns true when no affected sidecar routes here any more.
    withdrawn: watch::Sender<bool>,
}

/// One stream.
struct Lease {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
    link: Link,
}

impl Registration {
    /// Registers `workload` with its ports (the application's, where it is taken), steered by
    /// `stage`.
    pub fn new(
        workload: &Workload,
        ports: &[(u16, u16)],
        uplink: Arc<Uplink>,
        stage: watch::Receiver<Stage>,
        withdrawn: watch::Sender<bool>,
    ) -> Self {
        let request = RegisterRequest {
            name: workload.name.clone(),
            address: workload
                .address
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            ports: ports
                .iter()
                .map(|(service, taken)| (u32::from(*service), u32::from(*taken)))
                .collect(),
            // All those of the token.
            labels: HashMap::new(),
            state: WorkloadState::Ready.into(),
            weight: workload.weight,
            is_meshed: true,
        };
        Self {
            request,
            uplink,
            stage,
            withdrawn,
        }
    }

    /// Keeps the registration alive, forever. After a renewal the new stream is opened before the
    /// old one ends, so that the workload is registered throughout.
    pub async fn run(mut self, rng: StdRng) {
        let mut backoff = Backoff::reconnecting(rng);
        let mut previous: Option<Lease> = None;
        loop {
            self.uplink.certified().await;
            let why = match Box::pin(self.open()).await {
                Ok(mut lease) => {
                    let confirmed = timeout(HANDOVER, lease.responses.message()).await;
                    previous = None;
                    match confirmed {
                        Ok(message) => match received(message) {
                            Ok(response) => {
                                backoff.succeeded();
                                self.told(response);
                                match Box::pin(self.hold(&mut lease)).await {
                                    Ok(()) => {
                                        previous = Some(lease);
                                        continue;
                                    }
                                    Err(why) => why,
                                }
                            }
                            Err(why) => why,
                        },
                        Err(_elapsed) => "the control plane does not answer".to_owned(),
                    }
                }
                Err(why) => why,
            };
            drop(previous.take());
            let wait = backoff.failed();
            warn!(%why, seconds = wait.as_secs_f32(), "not registered; trying again");
            sleep(wait).await;
        }
    }

    async fn open(&mut self) -> Result<Lease, String> {
        let link = self.uplink.link().map_err(|error| chain(&error))?;
        let (requests, queue) = mpsc::channel(4);
        requests
            .try_send(self.current())
            .map_err(|error| error.to_string())?;
        let responses = RegistryClient::new(link.channel.clone())
            .register(ReceiverStream::new(queue))
            .await
            .map_err(|status| words(&status))?
            .into_inner();
        Ok(Lease {
            requests,
            responses,
            link,
        })
    }

    /// The request in the state of this moment.
    fn current(&mut self) -> RegisterRequest {
        let state = match *self.stage.borrow_and_update() {
            Stage::Ready => WorkloadState::Ready,
            Stage::Draining => WorkloadState::Draining,
        };
        RegisterRequest {
            state: state.into(),
            ..self.request.clone()
        }
    }

    /// `Ok` when there is a new certificate to register with.
    async fn hold(&mut self, lease: &mut Lease) -> Result<(), String> {
        loop {
            let response = tokio::select! {
                biased; // A stop waits for its confirmation: its news goes first.
                Ok(()) = self.stage.changed() => {
                    let request = self.current();
                    lease.requests.try_send(request).map_err(|error| error.to_string())?;
                    continue;
                }
                () = self.uplink.superseded(&lease.link) => return Ok(()),
                response = lease.responses.message() => response,
            };
            self.told(received(response)?);
        }
    }

    fn told(&self, response: RegisterResponse) {
        match response.event {
            Some(Event::Registered(registered)) => {
                info!(address = registered.address, services = ?registered.services, "registered");
                for refusal in &registered.refusals {
                    warn!(%refusal, "a service does not include this workload");
                }
            }
            Some(Event::Withdrawn(_)) => {
                info!("withdrawn: no sidecar routes here any more");
                self.withdrawn.send_replace(true);
            }
            None => {}
        }
    }
}
