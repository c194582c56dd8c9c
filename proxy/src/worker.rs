//! The threads that carry traffic, and the handle on them.

use std::{net::SocketAddr, sync::Arc};

use heddle_shell::publish::Published;

use crate::{
    demand::Demand, drain::Draining, settings::Settings, telemetry::Telemetry, tls::Credentials,
    view::View,
};

/// Everything the data plane is given.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Fixed at start.
    pub settings: Arc<Settings>,
    /// What the request path loads.
    pub views: Arc<Published<View>>,
    /// Who we are and whom we trust.
    pub credentials: Arc<Published<Option<Credentials>>>,
    /// Asks for unknown destinations.
    pub demand: Demand,
    /// Takes the records.
    pub telemetry: Arc<Telemetry>,
    /// Watched by every connection.
    pub draining: Draining,
}

/// Where the listeners ended up, in the order of the settings (ports of `:0` are known now).
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// `outbound.intercepted`.
    pub outbound_intercepted: Option<SocketAddr>,
    /// `outbound.http`.
    pub outbound_http: Option<SocketAddr>,
    /// `outbound.fixed`.
    pub outbound_fixed: Vec<SocketAddr>,
    /// `inbound.intercepted`.
    pub inbound_intercepted: Option<SocketAddr>,
    /// `inbound.ports`.
    pub inbound_ports: Vec<SocketAddr>,
}
