//! Whether this sidecar can serve, from what the others publish.

use std::sync::Arc;

use heddle_relay::view::View;
use heddle_shell::{clock, publish::Published};
use serde_json::{Value, json};

use crate::{
    drain::{Draining, Phase},
    identity::Held,
    xds::ClientState,
};

/// Published state of the parts.
#[derive(Clone, Debug)]
pub struct Health {
    /// Certificate and bundle.
    pub held: Arc<Published<Held>>,
    /// What the data path uses.
    pub views: Arc<Published<View>>,
    /// The configuration client.
    pub client: Arc<Published<ClientState>>,
    /// Whether the process stops.
    pub draining: Draining,
}

impl Health {
    /// Why the sidecar is not ready; empty when it is. A lost control plane is no reason: what is
    /// held serves on.
    pub fn obstacles(&self) -> Vec<&'static str> {
        let mut obstacles = Vec::new();
        match &self.held.load().identity {
            None => obstacles.push("no certificate yet"),
            Some(identity) if clock::wall() >= identity.not_after() => {
                obstacles.push("certificate_expired");
            }
            Some(_) => {}
        }
        let view = self.views.load();
        if view.inbound.is_none() || view.outbound.is_none() {
            obstacles.push("no configuration yet");
        }
        if self.draining.phase() > Phase::Running {
            obstacles.push("draining");
        }
        obstacles
    }

    /// Everything, for people on this machine.
    pub fn detailed(&self) -> Value {
        let held = self.held.load();
        let view = self.views.load();
        let client = self.client.load();
        let identity = held.identity.as_ref().map(|identity| {
            json!({
                "id": identity.id().as_str(),
                "not_after_ms": clock::unix_ms(identity.not_after()),
                "seconds_left": identity
                    .not_after()
                    .duration_since(clock::wall())
                    .map_or(0, |left| left.as_secs()),
            })
        });
        json!({
            "obstacles": self.obstacles(),
            "certificate": identity,
            "trust_bundle_revision": held.trust.as_ref().map(|bundle| bundle.revision),
            "configuration": {
                "generation": view.generation,
                "destinations": view.destinations.len(),
                "absent": view.absent.len(),
                "stream_is_open": client.is_connected,
                "subscribed": client.subscribed,
                "held": client.held,
                "acknowledged": client.acknowledged,
                "refused": client.refused,
                "ignored": client.ignored,
                "faults": client.faults,
            },
        })
    }
}
