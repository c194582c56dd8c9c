//! Tells the control plane which versions are in force here. An xDS ACK says only that they are
//! valid.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use heddle_policy::snapshot::xds::ResourceName;
use heddle_proto::v1::{self, ActiveResource, ReportRequest, status_client::StatusClient};
use heddle_shell::{causes::chain, clock, publish::Published};
use rand::rngs::StdRng;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use crate::{
    backoff::Backoff,
    identity::Held,
    uplink::{Uplink, received, words},
};

/// A report is due after this also when nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Versions in force.
pub type Active = BTreeMap<ResourceName, Arc<str>>;

/// The reporter.
#[derive(Debug)]
pub struct Reporter {
    /// As on the xDS stream.
    pub node_id: String,
    /// Published by the configuration client.
    pub active: Arc<Published<Active>>,
    /// Certificate and bundle.
    pub held: Arc<Published<Held>>,
    /// The way to the control plane.
    pub uplink: Arc<Uplink>,
}

impl Reporter {
    /// Reports, forever.
    pub async fn run(self, rng: StdRng) {
        let mut backoff = Backoff::reconnecting(rng);
        loop {
            self.uplink.certified().await;
            match Box::pin(self.stream(&mut backoff)).await {
                Ok(()) => {}
                Err(why) => {
                    let wait = backoff.failed();
                    debug!(%why, seconds = wait.as_secs_f32(), "no status stream");
                    sleep(wait).await;
                }
            }
        }
    }

    /// `Ok` when there is a new certificate to open the stream with.
    async fn stream(&self, backoff: &mut Backoff) -> Result<(), String> {
        let link = self.uplink.link().map_err(|error| chain(&error))?;
        let mut active = self.active.subscribe();
        let mut held = self.held.subscribe();
        let (requests, queue) = mpsc::channel(4);
        let mut told = Active::new();
        let send = |request| {
            requests
                .try_send(request)
                .map_err(|error| error.to_string())
        };
        send(self.report(&mut told))?;
        let mut responses = StatusClient::new(link.channel.clone())
            .report(ReceiverStream::new(queue))
            .await
            .map_err(|status| words(&status))?
            .into_inner();
        backoff.succeeded();
        loop {
            tokio::select! {
                biased; // The old stream's end must not count as a failure.
                () = self.uplink.superseded(&link) => return Ok(()),
                response = responses.message() => {
                    received(response)?;
                }
                Ok(()) = active.changed() => send(self.report(&mut told))?,
                Ok(()) = held.changed() => send(self.report(&mut told))?,
                () = sleep(HEARTBEAT) => send(self.report(&mut told))?,
            }
        }
    }

    /// What changed since `told`, which is then up to date.
    fn report(&self, told: &mut Active) -> ReportRequest {
        let active = self.active.load();
        let held = self.held.load();
        let changed = active
            .iter()
            .filter(|(name, version)| told.get(*name) != Some(*version));
        let changed = changed
            .map(|(name, version)| ActiveResource {
                resource: Some(wire_name(name)),
                version: version.to_string(),
            })
            .collect();
        let gone = told
            .keys()
            .filter(|name| !active.contains_key(*name))
            .map(wire_name)
            .collect();
        told.clone_from(&active);
        ReportRequest {
            node_id: self.node_id.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            active: changed,
            gone,
            certificate_not_after_ms: held
                .identity
                .as_ref()
                .map_or(0, |identity| clock::unix_ms(identity.not_after())),
            trust_bundle_revision: held.trust.as_ref().map_or(0, |bundle| bundle.revision),
        }
    }
}

fn wire_name(name: &ResourceName) -> v1::ResourceName {
    v1::ResourceName {
        r#type: name.kind.word().to_owned(),
        name: name.name.to_string(),
    }
}
