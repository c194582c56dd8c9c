//! Bootstrap settings: a YAML file, an environment variable for each field, and defaults.
//!
//! [`RawConfig`] is what users write; [`Config`] is what the program uses. Everything that can
//! change at run time comes from the control plane instead.
//!
//! ```yaml
//! control_plane: {addresses: [control-plane:15012], trust_anchor: /etc/heddle/root.pem, token_file: /run/heddle/token}
//! workload: {namespace: shop, service_account: web, name: web-1}
//! ports:
//!   inbound: [{listen: 0.0.0.0:18080, forward: 127.0.0.1:8080, protocol: http2}]
//! ```

mod raw;
mod show;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use heddle_policy::{
    path::{EmptySegments, EscapedSlashes, Strictness},
    snapshot::{DestinationKey, Protocol},
    spiffe::{SpiffeId, TrustDomain},
};
use heddle_shell::{causes, settings, tls::Anchor};

use crate::{
    machine::Machine,
    settings::{Bounds, InboundForward, OutboundPort},
};

pub use raw::{RawConfig, RawInbound, RawOutbound};
pub use show::show;

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the control plane is found and recognised.
    pub control_plane: ControlPlane,
    /// Who this sidecar serves.
    pub workload: Workload,
    /// Where what must survive a restart is kept.
    pub state_directory: PathBuf,
    /// How traffic gets here.
    pub mode: Mode,
    /// Threads of the data path.
    pub workers: NonZeroUsize,
    /// DNS for mesh names. `None` in mode `ports` unless asked for.
    pub dns: Option<Dns>,
    /// What is let through of paths that servers disagree about.
    pub paths: Strictness,
    /// `/health/*` and `/metrics`.
    pub health_listen: SocketAddr,
    /// The admin interface; always loopback.
    pub admin_listen: SocketAddr,
    /// Log filter directives.
    pub log: String,
    /// One JSON line per exchange on standard output.
    pub access_log: AccessLog,
    /// OTLP collector (`http://host:4317`). `None`: no spans.
    pub otlp_endpoint: Option<http::Uri>,
    /// Share of the traces begun here that are sampled, 0 to 1.
    pub sampled_share: f64,
    /// The longest a graceful stop takes.
    pub drain_limit: Duration,
}

/// How the control plane is found and recognised.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `host:port`, tried in turn.
    pub addresses: Vec<Authority>,
    /// What its first certificate is checked against.
    pub anchor: Anchor,
    /// Where the workload's token is; read again for each use. `None`: renewal by certificate
    /// only.
    pub token_file: Option<PathBuf>,
    /// Ours.
    pub trust_domain: TrustDomain,
}

/// A host, name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Without brackets.
    pub host: String,
    /// Not zero.
    pub port: u16,
}

/// Who this sidecar serves. Labels are those of the token.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Of the token.
    pub id: SpiffeId,
    /// Unique in the namespace.
    pub name: String,
    /// What is registered instead of the address the control plane sees; the token must allow it.
    pub address: Option<IpAddr>,
    /// Relative share among equals; 0 leaves it to the control plane.
    pub weight: u32,
}

/// How traffic gets here.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Redirect rules lead every connection here.
    Intercept {
        /// Where redirected outbound connections arrive.
        outbound: SocketAddr,
        /// Where redirected inbound connections arrive.
        inbound: SocketAddr,
    },
    /// Every port is a setting; no privileges needed.
    Ports {
        /// Outbound HTTP, routed by authority.
        http: SocketAddr,
        /// The workload's own ports.
        inbound: Vec<InboundForward>,
        /// Outbound TCP, one listener per destination.
        outbound: Vec<OutboundPort>,
    },
}

/// Settings of the DNS server.
#[derive(Clone, Debug)]
pub struct Dns {
    /// UDP and TCP each; never empty.
    pub listen: Vec<SocketAddr>,
    /// Where everything that is not a mesh name goes.
    pub resolvers: Vec<SocketAddr>,
}

/// Whether exchanges are logged one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// They are not.
    Off,
    /// One JSON line each.
    Json,
}

/// Reads `file` and the environment.
///
/// # Errors
/// With every fault, one per line.
pub fn read(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> anyhow::Result<Config> {
    let raw: RawConfig = settings::read(file, environment)?;
    Config::new(&raw.filled(&Machine::this()))
}

impl Config {
    /// Validates settings that have their defaults.
    ///
    /// # Errors
    /// With every fault, one per line.
    pub fn new(raw: &RawConfig) -> anyhow::Result<Self> {
        let mut faults = Faults::default();
        let control_plane = faults.control_plane(raw);
        let workload = faults.workload(raw, control_plane.as_ref());
        let mode = faults.mode(raw);
        let workers = raw.runtime.workers.and_then(NonZeroUsize::new);
        faults.require(workers.is_some(), "runtime.workers", "must be at least 1");
        let dns = faults.dns(raw, mode.as_ref());
        let paths = faults.paths(raw);
        let health_listen = faults.address("telemetry.listen", raw.telemetry.listen.as_deref());
        let admin_listen = faults.address("admin.listen", raw.admin.listen.as_deref());
        if let Some(address) = admin_listen {
            let why = "must be a loopback address: the admin interface has no other protection";
            faults.require(address.ip().is_loopback(), "admin.listen", why);
        }
        let drain_limit = raw.drain.limit_s.filter(|limit| DRAIN_S.contains(limit));
        let why = "must be between 1 and 2592000 (30 days)";
        faults.require(drain_limit.is_some(), "drain.limit_s", why);
        let otlp_endpoint = match raw.telemetry.otlp_endpoint.as_deref() {
            None | Some("") => None,
            Some(text) => {
                let uri = text.parse::<http::Uri>().ok();
                let uri =
                    uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
                let why = "must be http://host:port of a gRPC collector";
                faults.require(uri.is_some(), "telemetry.otlp_endpoint", why);
                uri
            }
        };
        let sampled_share = raw.telemetry.sampled_share;
        let sampled_share = sampled_share.filter(|share| (0.0..=1.0).contains(share));
        faults.require(
            sampled_share.is_some(),
            "telemetry.sampled_share",
            "must be a number from 0 to 1",
        );
        let built = (|| {
            Some(Self {
                control_plane: control_plane?,
                workload: workload?,
                state_directory: raw.state.directory.clone()?,
                mode: mode?,
                workers: workers?,
                dns: dns?,
                paths: paths?,
                health_listen: health_listen?,
                admin_listen: admin_listen?,
                log: raw.telemetry.log.clone()?,
                access_log: match raw.telemetry.access_log {
                    Some(true) => AccessLog::Json,
                    Some(false) | None => AccessLog::Off,
                },
                otlp_endpoint,
                sampled_share: sampled_share?,
                drain_limit: Duration::from_secs(drain_limit?.into()),
            })
        })();
        built
            .filter(|_| faults.0.is_empty())
            .ok_or_else(|| faults.into_error())
    }

    /// Bounds of the data path: those of `Default`, but for what is a setting.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            sampled_share: self.sampled_share,
            paths: self.paths,
            ..Bounds::default()
        }
    }
}

/// Collects, so that a user sees everything at once.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, field: &str, why: impl std::fmt::Display) {
        self.0.push(format!("{field}: {why}"));
    }

    fn require(&mut self, holds: bool, field: &str, why: &str) {
        if !holds {
            self.add(field, why);
        }
    }

    fn into_error(self) -> anyhow::Error {
        anyhow::anyhow!(self.0.join("\n")).context("the settings have faults")
    }

    fn address(&mut self, field: &str, text: Option<&str>) -> Option<SocketAddr> {
        let address = text.and_then(|text| text.parse().ok());
        self.require(
            address.is_some(),
            field,
            "must be <ip>:<port>, IPv6 in brackets",
        );
        address
    }

    fn authority(&mut self, field: &str, text: &str) -> Option<Authority> {
        let authority = Authority::parse(text);
        self.require(authority.is_some(), field, "must be <host>:<port>");
        authority
    }

    fn control_plane(&mut self, raw: &RawConfig) -> Option<ControlPlane> {
        let section = &raw.control_plane;
        let texts = section.addresses.as_deref().unwrap_or_default();
        self.require(
            !texts.is_empty(),
            "control_plane.addresses",
            "at least one <host>:<port> is needed, such as control-plane.heddle-system:15012",
        );
        let addresses = texts
            .iter()
            .enumerate()
            .filter_map(|(i, text)| self.authority(&format!("control_plane.addresses[{i}]"), text))
            .collect();
        let anchor = match section.trust_anchor.as_deref() {
            None | Some("") => {
                self.add(
                    "control_plane.trust_anchor",
                    "is needed: the root's PEM file or its SHA-256 (`heddle token` prints it); \
                     nothing is trusted on first use",
                );
                None
            }
            Some(text) => match Anchor::read(text) {
                Ok(anchor) => Some(anchor),
                Err(error) => {
                    self.add("control_plane.trust_anchor", causes::chain(&error));
                    None
                }
            },
        };
        let trust_domain = match section.trust_domain.as_deref().unwrap_or_default().parse() {
            Ok(trust_domain) => Some(trust_domain),
            Err(error) => {
                self.add("control_plane.trust_domain", error);
                None
            }
        };
        Some(ControlPlane {
            addresses,
            anchor: anchor?,
            token_file: section.token_file.clone(),
            trust_domain: trust_domain?,
        })
    }

    fn workload(
        &mut self,
        raw: &RawConfig,
        control_plane: Option<&ControlPlane>,
    ) -> Option<Workload> {
        let section = &raw.workload;
        let id = SpiffeId::new(
            &control_plane?.trust_domain,
            section.namespace.as_deref().unwrap_or_default(),
            section.service_account.as_deref().unwrap_or_default(),
        );
        let id = match id {
            Ok(id) if id.is_control_plane() => {
                self.add(
                    "workload",
                    "names the reserved identity of the control plane",
                );
                None
            }
            Ok(id) => Some(id),
            Err(error) => {
                self.add(
                    "workload.namespace, workload.service_account",
                    format!("the id {error}"),
                );
                None
            }
        };
        let name = section.name.clone().unwrap_or_default();
        let is_name = !name.is_empty() && name.len() <= 253 && !name.contains(['/', ' ']);
        self.require(
            is_name,
            "workload.name",
            "must be 1 to 253 characters without `/`",
        );
        let weight = section.weight.unwrap_or(0);
        self.require(weight <= 1000, "workload.weight", "must be at most 1000");
        Some(Workload {
            id: id?,
            name,
            address: section.address,
            weight,
        })
    }

    fn mode(&mut self, raw: &RawConfig) -> Option<Mode> {
        match raw.traffic.mode.as_deref() {
            Some("intercept") => {
                let outbound = self.address("traffic.outbound", raw.traffic.outbound.as_deref());
                let inbound = self.address("traffic.inbound", raw.traffic.inbound.as_deref());
                let no_ports = raw.ports.inbound.is_empty() && raw.ports.outbound.is_empty();
                self.require(no_ports, "ports", "belongs to `traffic.mode: ports`");
                Some(Mode::Intercept {
                    outbound: outbound?,
                    inbound: inbound?,
                })
            }
            Some("ports") => {
                let http = self.address("ports.http", raw.ports.http.as_deref());
                let inbound = raw.ports.inbound.iter().enumerate();
                let inbound = inbound
                    .filter_map(|(i, port)| self.inbound(&format!("ports.inbound[{i}]"), port))
                    .collect();
                let outbound = raw.ports.outbound.iter().enumerate();
                let outbound = outbound
                    .filter_map(|(i, port)| self.outbound(&format!("ports.outbound[{i}]"), port))
                    .collect();
                Some(Mode::Ports {
                    http: http?,
                    inbound,
                    outbound,
                })
            }
            _ => {
                self.add("traffic.mode", "must be `intercept` or `ports`");
                None
            }
        }
    }

    fn inbound(&mut self, field: &str, raw: &RawInbound) -> Option<InboundForward> {
        let listen = self.address(&format!("{field}.listen"), Some(&raw.listen));
        let forward = self.address(&format!("{field}.forward"), Some(&raw.forward));
        let protocol = match raw.protocol.as_deref() {
            None | Some("detect") => Some(Protocol::Detect),
            Some("http2" | "grpc") => Some(Protocol::Http2),
            Some("http1") => Some(Protocol::Http1),
            Some("tcp") => Some(Protocol::Tcp),
            Some(_) => {
                let why = "must be http2, grpc, http1, tcp or detect";
                self.add(&format!("{field}.protocol"), why);
                None
            }
        };
        let forward = forward?;
        Some(InboundForward {
            port: raw.port.unwrap_or(forward.port()),
            listen: listen?,
            forward,
            protocol: protocol?,
        })
    }

    fn outbound(&mut self, field: &str, raw: &RawOutbound) -> Option<OutboundPort> {
        let listen = self.address(&format!("{field}.listen"), Some(&raw.listen));
        let destination = self.authority(&format!("{field}.destination"), &raw.destination);
        let Authority { host, port } = destination?;
        Some(OutboundPort {
            listen: listen?,
            destination: DestinationKey::new(&host, port),
        })
    }

    fn paths(&mut self, raw: &RawConfig) -> Option<Strictness> {
        let escaped_slashes = match raw.paths.encoded_slash.as_deref() {
            Some("refuse") => Some(EscapedSlashes::Refuse),
            Some("keep") => Some(EscapedSlashes::Keep),
            Some(_) | None => {
                self.add("paths.encoded_slash", "must be `refuse` or `keep`");
                None
            }
        };
        let empty_segments = match raw.paths.merge_slashes {
            Some(false) => EmptySegments::Keep,
            Some(true) | None => EmptySegments::Merge,
        };
        Some(Strictness {
            escaped_slashes: escaped_slashes?,
            empty_segments,
        })
    }

    /// The outer `None` is a fault.
    fn dns(&mut self, raw: &RawConfig, mode: Option<&Mode>) -> Option<Option<Dns>> {
        let is_on = raw
            .dns
            .enabled
            .unwrap_or(matches!(mode, Some(Mode::Intercept { .. })));
        if !is_on {
            return Some(None);
        }
        let listen = raw.dns.listen.as_deref().unwrap_or_default();
        self.require(!listen.is_empty(), "dns.listen", "must have an address");
        let listen = listen.iter().enumerate();
        let listen = listen
            .filter_map(|(i, text)| self.address(&format!("dns.listen[{i}]"), Some(text)))
            .collect();
        let resolvers = raw.dns.resolvers.iter().flatten().enumerate();
        let resolvers = resolvers
            .filter_map(|(i, text)| {
                let with_port = text.parse().ok().or_else(|| {
                    text.parse::<IpAddr>()
                        .ok()
                        .map(|ip| SocketAddr::new(ip, 53))
                });
                let why = "must be an IP address, with or without a port";
                self.require(with_port.is_some(), &format!("dns.resolvers[{i}]"), why);
                with_port
            })
            .collect();
        Some(Some(Dns { listen, resolvers }))
    }
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']);
        is_host.then(|| Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Longer than a certificate can be renewed without a token.
const DRAIN_S: RangeInclusive<u32> = 1..=30 * 24 * 60 * 60;

#[cfg(test)]
mod tests;
