//! What users write, and the default of each field.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::settings::Bounds;

/// The settings file. Unknown fields are refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// How the control plane is found and recognised.
    pub control_plane: RawControlPlane,
    /// Who this sidecar serves.
    pub workload: RawWorkload,
    /// What survives a restart.
    pub state: RawState,
    /// How traffic gets here.
    pub traffic: RawTraffic,
    /// Ports of `traffic.mode: ports`.
    pub ports: RawPorts,
    /// Paths that servers disagree about.
    pub paths: RawPaths,
    /// DNS for mesh names.
    pub dns: RawDns,
    /// Logs, metrics, spans.
    pub telemetry: RawTelemetry,
    /// The admin interface.
    pub admin: RawAdmin,
    /// Threads.
    pub runtime: RawRuntime,
    /// The graceful stop.
    pub drain: RawDrain,
}

/// See [`super::ControlPlane`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawControlPlane {
    /// `host:port` each.
    pub addresses: Option<Vec<String>>,
    /// PEM file or SHA-256 of the root.
    pub trust_anchor: Option<String>,
    /// File with the workload's token.
    pub token_file: Option<PathBuf>,
    /// `cluster.local` unless set.
    pub trust_domain: Option<String>,
}

/// See [`super::Workload`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWorkload {
    /// `default` unless set.
    pub namespace: Option<String>,
    /// `default` unless set.
    pub service_account: Option<String>,
    /// The host's name unless set.
    pub name: Option<String>,
    /// What to register instead of the address the control plane sees.
    pub address: Option<IpAddr>,
    /// 0 to 1000.
    pub weight: Option<u32>,
}

/// What survives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawState {
    /// `/var/lib/heddle` unless set. The private key is kept only when this is on tmpfs.
    pub directory: Option<PathBuf>,
}

/// See [`super::Mode`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTraffic {
    /// `intercept` unless set, or `ports`.
    pub mode: Option<String>,
    /// Where redirected outbound connections arrive.
    pub outbound: Option<String>,
    /// Where redirected inbound connections arrive.
    pub inbound: Option<String>,
}

/// Ports of `traffic.mode: ports`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPorts {
    /// Outbound HTTP, routed by authority.
    pub http: Option<String>,
    /// The workload's own ports.
    pub inbound: Vec<RawInbound>,
    /// Outbound TCP.
    pub outbound: Vec<RawOutbound>,
}

/// See [`InboundForward`](crate::settings::InboundForward).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawInbound {
    /// The application's port as services (`targetPort`), modes and rules name it; that of
    /// `forward` unless set.
    #[serde(default)]
    pub port: Option<u16>,
    /// Where the mesh dials.
    pub listen: String,
    /// Where the application is.
    pub forward: String,
    /// `http2`, `grpc`, `http1`, `tcp` or `detect` (the default).
    #[serde(default)]
    pub protocol: Option<String>,
}

/// See [`OutboundPort`](crate::settings::OutboundPort).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawOutbound {
    /// Where the application dials.
    pub listen: String,
    /// `host:port` it means.
    pub destination: String,
}

/// Paths that servers disagree about, of requests from and to the workload. What is let through
/// here is judged and routed as it is written: a rule for `/admin` does not hold for `//admin`
/// or `/x/..%2Fadmin` then, so the application must not take them for the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPaths {
    /// `%2f` and `%5c`: `refuse` (400, unless set) or `keep`.
    pub encoded_slash: Option<String>,
    /// Whether `//` becomes `/`. It does unless set.
    pub merge_slashes: Option<bool>,
}

/// See [`super::Dns`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDns {
    /// On with interception, off without, unless set.
    pub enabled: Option<bool>,
    /// UDP and TCP each; both loopback addresses unless set.
    pub listen: Option<Vec<String>>,
    /// Those of `/etc/resolv.conf` unless set.
    pub resolvers: Option<Vec<String>>,
}

/// Logs, metrics, spans.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTelemetry {
    /// `/health/*` and `/metrics`.
    pub listen: Option<String>,
    /// Filter directives, such as `info,heddle_proxy=debug`.
    pub log: Option<String>,
    /// One JSON line per exchange on standard output. Off unless set.
    pub access_log: Option<bool>,
    /// `http://host:4317`; no spans unless set.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces begun here that are sampled, 0 to 1; 0.01 unless set. Whoever calls
    /// with a trace has decided already.
    pub sampled_share: Option<f64>,
}

/// The admin interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// A loopback address.
    pub listen: Option<String>,
}

/// Threads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRuntime {
    /// The CPU limit, rounded up, unless set.
    pub workers: Option<usize>,
}

/// The graceful stop.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDrain {
    /// What is left after this many seconds is cut. 86400, the life of a certificate, unless set:
    /// streams end by themselves.
    pub limit_s: Option<u32>,
}

impl RawConfig {
    /// With the default of every field that has one.
    pub fn filled(mut self, machine: &Machine) -> Self {
        fill(&mut self.control_plane.trust_domain, "cluster.local");
        fill(&mut self.workload.namespace, "default");
        fill(&mut self.workload.service_account, "default");
        fill(&mut self.workload.name, &machine.host_name);
        self.state
            .directory
            .get_or_insert_with(|| PathBuf::from("/var/lib/heddle"));
        fill(&mut self.traffic.mode, "intercept");
        // Both families: the rules redirect both.
        fill(&mut self.traffic.outbound, "[::]:15001");
        fill(&mut self.traffic.inbound, "[::]:15006");
        fill(&mut self.ports.http, "127.0.0.1:15001");
        fill(&mut self.paths.encoded_slash, "refuse");
        self.paths.merge_slashes.get_or_insert(true);
        // Both families, as the rules redirect, but nobody from outside.
        self.dns.listen.get_or_insert_with(|| {
            let loopback = ["127.0.0.1:15053", "[::1]:15053"];
            loopback.map(str::to_owned).into()
        });
        let is_intercepted = self.traffic.mode.as_deref() == Some("intercept");
        self.dns.enabled.get_or_insert(is_intercepted);
        self.dns
            .resolvers
            .get_or_insert_with(|| name_servers(&machine.resolv_conf));
        fill(&mut self.telemetry.listen, "[::]:15020");
        fill(&mut self.telemetry.log, "info");
        self.telemetry.access_log.get_or_insert(false);
        let share = Bounds::default().sampled_share;
        self.telemetry.sampled_share.get_or_insert(share);
        fill(&mut self.admin.listen, "127.0.0.1:15000");
        self.runtime.workers.get_or_insert(machine.cpus.get());
        self.drain.limit_s.get_or_insert(24 * 60 * 60);
        self
    }
}

fn fill(field: &mut Option<String>, default: &str) {
    field.get_or_insert_with(|| default.to_owned());
}

/// `nameserver` lines of resolv.conf(5), without scope ids; at most three, as libc does.
fn name_servers(resolv_conf: &str) -> Vec<String> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter(|text| text.parse::<IpAddr>().is_ok())
        .take(3)
        .map(str::to_owned)
        .collect()
}
