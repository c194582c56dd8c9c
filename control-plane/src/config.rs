//! Settings: what the file and the environment say ([`RawConfig`]) becomes what the program
//! runs on ([`Config`]), or the list of everything that is wrong with it.

mod mesh;
mod span;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use heddle_policy::spiffe::TrustDomain;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use crate::world::Mesh;

use mesh::RawMesh;
use span::{HOUR, MINUTE, Span};

/// Settings as written. Everything has a default; `heddle-control-plane config --print` shows
/// the result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    data_directory: Option<PathBuf>,
    trust_domain: Option<String>,
    mesh: Option<RawMesh>,
    listen: Option<RawListen>,
    authority: Option<RawAuthority>,
    tokens: Option<RawTokens>,
    registry: Option<RawRegistry>,
    drain: Option<String>,
    log: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListen {
    grpc: Option<String>,
    http: Option<String>,
    names: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAuthority {
    root_certificate: Option<PathBuf>,
    root_key: Option<PathBuf>,
    intermediate_certificate: Option<PathBuf>,
    intermediate_key: Option<PathBuf>,
    root_lifetime: Option<String>,
    intermediate_lifetime: Option<String>,
    leaf_lifetime: Option<String>,
    leaf_lifetime_max: Option<String>,
    backdate: Option<String>,
    issue_interval: Option<String>,
    issue_burst: Option<u32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTokens {
    lifetime: Option<String>,
    lifetime_max: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRegistry {
    grace: Option<String>,
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys, certificates and the store.
    pub data_directory: PathBuf,
    /// Of every identity it issues. Not of host names: short ones end in `svc.cluster.local`
    /// whatever this is.
    pub trust_domain: TrustDomain,
    /// The mesh as a whole.
    pub mesh: Mesh,
    /// gRPC over TLS. Loopback unless told.
    pub grpc: SocketAddr,
    /// Health and metrics, plain HTTP. Loopback unless told.
    pub http: SocketAddr,
    /// Names and addresses by which clients dial gRPC; in its certificate, for those that check
    /// host names.
    pub names: Vec<ServerName<'static>>,
    /// The certificate authority.
    pub authority: Authority,
    /// Workload tokens.
    pub tokens: Tokens,
    /// How long a registration outlives its stream; at least 1 s, or nothing.
    pub registration_grace: Duration,
    /// How long a stop waits for streams to end.
    pub drain: Duration,
    /// Log filter, such as `info,heddle_control_plane=debug`.
    pub log: String,
}

/// Settings of the certificate authority.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Where root and intermediate come from.
    pub source: Source,
    /// Of a root made here.
    pub root_lifetime: Duration,
    /// Of an intermediate made here.
    pub intermediate_lifetime: Duration,
    /// Of a leaf whose request names none.
    pub leaf_lifetime: Duration,
    /// Longest leaf; longer wishes are shortened.
    pub leaf_lifetime_max: Duration,
    /// How far before its making a certificate begins, for clocks that lag.
    pub backdate: Duration,
    /// One certificate per identity in this time, after the burst.
    pub issue_interval: Duration,
    /// So many at once per identity: its replicas start together.
    pub issue_burst: NonZeroU32,
}

/// Where root and intermediate come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Both made at the first start.
    Generated,
    /// The root is the user's, the intermediate is made and renewed here.
    Root {
        /// PEM.
        certificate: PathBuf,
        /// PEM, PKCS #8.
        key: PathBuf,
    },
    /// Both are the user's; the root's key stays elsewhere.
    Intermediate {
        /// The root, PEM.
        root: PathBuf,
        /// PEM.
        certificate: PathBuf,
        /// PEM, PKCS #8.
        key: PathBuf,
    },
}

/// Settings of workload tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Of a token whose request names none.
    pub lifetime: Duration,
    /// Longer wishes are refused.
    pub lifetime_max: Duration,
}

/// One thing wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting, such as `authority.leaf_lifetime`.
    pub setting: &'static str,
    /// What is wrong.
    pub message: String,
}

/// Everything that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Faults(pub Vec<Fault>);

/// Shortest leaf: certificates count in seconds, and a renewal needs a few of them.
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(5);

impl Config {
    /// Checks all settings before it fails.
    ///
    /// # Errors
    /// Every fault, in the order of the settings.
    pub fn new(raw: &RawConfig) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let f = &mut faults;
        let listen = raw.listen.clone().unwrap_or_default();
        let registry = raw.registry.clone().unwrap_or_default();
        let trust_domain = trust_domain(f, raw.trust_domain.as_deref());
        let config = Self {
            data_directory: raw
                .data_directory
                .clone()
                .unwrap_or_else(|| "heddle-data".into()),
            mesh: mesh::check(f, &raw.mesh.clone().unwrap_or_default(), &trust_domain),
            trust_domain,
            grpc: address(f, "listen.grpc", listen.grpc.as_deref(), 15012),
            http: address(f, "listen.http", listen.http.as_deref(), 15014),
            names: names(f, listen.names.as_deref()),
            authority: Authority::new(f, &raw.authority.clone().unwrap_or_default()),
            tokens: Tokens::new(f, &raw.tokens.clone().unwrap_or_default()),
            registration_grace: span(
                f,
                "registry.grace",
                registry.grace.as_deref(),
                Duration::from_secs(10),
            ),
            drain: span(f, "drain", raw.drain.as_deref(), Duration::from_secs(10)),
            log: raw.log.clone().unwrap_or_else(|| "info".to_owned()),
        };
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(Faults(faults))
        }
    }

    /// The settings in force, as a settings file.
    pub fn to_raw(&self) -> RawConfig {
        let text = |span: Duration| Some(Span(span).to_string());
        let (root_certificate, root_key, intermediate_certificate, intermediate_key) =
            match self.authority.source.clone() {
                Source::Generated => (None, None, None, None),
                Source::Root { certificate, key } => (Some(certificate), Some(key), None, None),
                Source::Intermediate {
                    root,
                    certificate,
                    key,
                } => (Some(root), None, Some(certificate), Some(key)),
            };
        RawConfig {
            data_directory: Some(self.data_directory.clone()),
            trust_domain: Some(self.trust_domain.to_string()),
            mesh: Some(mesh::to_raw(&self.mesh)),
            listen: Some(RawListen {
                grpc: Some(self.grpc.to_string()),
                http: Some(self.http.to_string()),
                names: Some(self.names.iter().map(|name| name.to_str().into()).collect()),
            }),
            authority: Some(RawAuthority {
                root_certificate,
                root_key,
                intermediate_certificate,
                intermediate_key,
                root_lifetime: text(self.authority.root_lifetime),
                intermediate_lifetime: text(self.authority.intermediate_lifetime),
                leaf_lifetime: text(self.authority.leaf_lifetime),
                leaf_lifetime_max: text(self.authority.leaf_lifetime_max),
                backdate: text(self.authority.backdate),
                issue_interval: text(self.authority.issue_interval),
                issue_burst: Some(self.authority.issue_burst.get()),
            }),
            tokens: Some(RawTokens {
                lifetime: text(self.tokens.lifetime),
                lifetime_max: text(self.tokens.lifetime_max),
            }),
            registry: Some(RawRegistry {
                grace: text(self.registration_grace),
            }),
            drain: text(self.drain),
            log: Some(self.log.clone()),
        }
    }
}

impl Authority {
    fn new(f: &mut Vec<Fault>, raw: &RawAuthority) -> Self {
        let leaf_lifetime = span(
            f,
            "authority.leaf_lifetime",
            raw.leaf_lifetime.as_deref(),
            24 * HOUR,
        );
        let leaf_lifetime_max = span(
            f,
            "authority.leaf_lifetime_max",
            raw.leaf_lifetime_max.as_deref(),
            leaf_lifetime.max(24 * HOUR),
        );
        let intermediate_lifetime = span(
            f,
            "authority.intermediate_lifetime",
            raw.intermediate_lifetime.as_deref(),
            (365 * 24 * HOUR).max(2 * leaf_lifetime_max),
        );
        let root_lifetime = span(
            f,
            "authority.root_lifetime",
            raw.root_lifetime.as_deref(),
            (3650 * 24 * HOUR).max(2 * intermediate_lifetime),
        );
        let issue_burst = NonZeroU32::new(raw.issue_burst.unwrap_or(50));
        let authority = Self {
            source: source(f, raw),
            root_lifetime,
            intermediate_lifetime,
            leaf_lifetime,
            leaf_lifetime_max,
            backdate: span(
                f,
                "authority.backdate",
                raw.backdate.as_deref(),
                10 * MINUTE,
            ),
            issue_interval: span(
                f,
                "authority.issue_interval",
                raw.issue_interval.as_deref(),
                Duration::from_millis(100),
            ),
            issue_burst: issue_burst.unwrap_or(NonZeroU32::MIN),
        };
        authority.check(f);
        if issue_burst.is_none() {
            f.push(Fault {
                setting: "authority.issue_burst",
                message: "must be at least 1".to_owned(),
            });
        }
        authority
    }

    /// Lifetimes against each other.
    fn check(&self, f: &mut Vec<Fault>) {
        let mut require = |setting, holds: bool, message: &str| {
            if !holds {
                let message = message.to_owned();
                f.push(Fault { setting, message });
            }
        };
        require(
            "authority.leaf_lifetime",
            self.leaf_lifetime >= LEAF_LIFETIME_MIN,
            "must be at least 5s",
        );
        require(
            "authority.leaf_lifetime_max",
            self.leaf_lifetime_max >= self.leaf_lifetime,
            "must not be shorter than leaf_lifetime",
        );
        // The intermediate is renewed at half of its life; every leaf must end before it does.
        require(
            "authority.intermediate_lifetime",
            self.intermediate_lifetime >= 2 * self.leaf_lifetime_max,
            "must be at least twice leaf_lifetime_max",
        );
        require(
            "authority.root_lifetime",
            self.root_lifetime >= self.intermediate_lifetime,
            "must not be shorter than intermediate_lifetime",
        );
    }
}

impl Tokens {
    fn new(f: &mut Vec<Fault>, raw: &RawTokens) -> Self {
        let tokens = Self {
            lifetime: span(f, "tokens.lifetime", raw.lifetime.as_deref(), 24 * HOUR),
            lifetime_max: span(
                f,
                "tokens.lifetime_max",
                raw.lifetime_max.as_deref(),
                365 * 24 * HOUR,
            ),
        };
        if tokens.lifetime > tokens.lifetime_max {
            f.push(Fault {
                setting: "tokens.lifetime",
                message: "must not be longer than lifetime_max".to_owned(),
            });
        }
        tokens
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}

fn source(f: &mut Vec<Fault>, raw: &RawAuthority) -> Source {
    match (
        raw.root_certificate.clone(),
        raw.root_key.clone(),
        raw.intermediate_certificate.clone(),
        raw.intermediate_key.clone(),
    ) {
        (None, None, None, None) => Source::Generated,
        (Some(certificate), Some(key), None, None) => Source::Root { certificate, key },
        (Some(root), None, Some(certificate), Some(key)) => Source::Intermediate {
            root,
            certificate,
            key,
        },
        _ => {
            f.push(Fault {
                setting: "authority",
                message: "give nothing, or root_certificate with root_key, or root_certificate \
                          with intermediate_certificate and intermediate_key"
                    .to_owned(),
            });
            Source::Generated
        }
    }
}

fn trust_domain(f: &mut Vec<Fault>, text: Option<&str>) -> TrustDomain {
    let text = text.unwrap_or("cluster.local");
    text.parse().unwrap_or_else(|malformed| {
        f.push(Fault {
            setting: "trust_domain",
            message: format!("\"{text}\" {malformed}"),
        });
        "invalid".parse().expect("a valid name")
    })
}

fn address(f: &mut Vec<Fault>, setting: &'static str, text: Option<&str>, port: u16) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(text) = text else {
        return default;
    };
    text.parse().unwrap_or_else(|_malformed| {
        f.push(Fault {
            setting,
            message: format!("\"{text}\" is not an address and port such as {default}"),
        });
        default
    })
}

/// Every way to say "here", unless told.
fn names(f: &mut Vec<Fault>, texts: Option<&[String]>) -> Vec<ServerName<'static>> {
    let here = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut names = Vec::new();
    for text in texts.unwrap_or(&here) {
        match ServerName::try_from(text.clone()) {
            Ok(name) => names.push(name),
            Err(_invalid) => f.push(Fault {
                setting: "listen.names",
                message: format!("{text:?} is neither a host name nor an IP address"),
            }),
        }
    }
    names
}

fn span(
    f: &mut Vec<Fault>,
    setting: &'static str,
    text: Option<&str>,
    default: Duration,
) -> Duration {
    let Some(text) = text else {
        return default;
    };
    match text.parse::<Span>() {
        Ok(Span(span)) => span,
        Err(message) => {
            f.push(Fault { setting, message });
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(yaml: &str) -> RawConfig {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn without_settings_it_listens_on_loopback_only() {
        let config = Config::new(&RawConfig::default()).unwrap();
        assert!(config.grpc.ip().is_loopback() && config.http.ip().is_loopback());
        assert_eq!((config.grpc.port(), config.http.port()), (15012, 15014));
        assert_eq!(config.authority.leaf_lifetime, 24 * HOUR);
        assert_eq!(config.authority.source, Source::Generated);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let faults = Config::new(&raw(
            "trust_domain: A\nlisten: {grpc: nowhere, names: ['a b']}\nregistry: {grace: soon}\nauthority: {root_key: x, leaf_lifetime: 1s}",
        ))
        .unwrap_err();
        let settings: Vec<_> = faults.0.iter().map(|fault| fault.setting).collect();
        assert_eq!(
            settings,
            [
                "trust_domain",
                "listen.grpc",
                "listen.names",
                "authority",
                "authority.leaf_lifetime",
                "registry.grace"
            ]
        );
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let faults = Config::new(&raw(
            "authority: {leaf_lifetime: 20s, leaf_lifetime_max: 1m, intermediate_lifetime: 100s}",
        ))
        .unwrap_err();
        assert!(faults.to_string().contains("twice"), "{faults}");
    }

    #[test]
    fn what_is_printed_is_what_was_read() {
        let config = Config::new(&raw(
            "authority: {leaf_lifetime: 20s, root_certificate: a, root_key: b}\ndrain: 1500ms\nmesh: {cidrs: [10.0.0.0/8], unknown_destinations: registry_only}",
        ))
        .unwrap();
        let printed = serde_saphyr::to_string(&config.to_raw()).unwrap();
        let again = Config::new(&raw(&printed)).unwrap();
        assert_eq!(format!("{config:?}"), format!("{again:?}"), "{printed}");
    }
}
