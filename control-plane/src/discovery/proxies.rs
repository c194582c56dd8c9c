//! Who is connected, and what each proxy was sent, accepted, refused and made active.
//!
//! A stream writes what it sent and what was answered; `Status.Report` writes what is active.
//! Both are keyed by node id and go with their connection.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::SystemTime,
};

use heddle_policy::{
    snapshot::xds::{ResourceName, ResourceType},
    spiffe::SpiffeId,
};
use heddle_proto::v1;
use heddle_shell::clock;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

/// All of them.
#[derive(Debug, Default)]
pub struct Proxies {
    state: Mutex<State>,
    /// Tells those who wait for something to become active.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    next_stream: u64,
    streams: BTreeMap<StreamId, Connected>,
    next_report: u64,
    /// By node id, with the stream that reports.
    reports: HashMap<Arc<str>, (u64, Reported)>,
}

/// Names one ADS stream of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// What a stream is.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// `Node.id`.
    pub node_id: Arc<str>,
    /// Of the caller; `None` for the administrator.
    pub identity: Option<SpiffeId>,
    /// `heddle`, `envoy` or `grpc`.
    pub flavour: &'static str,
    /// `Node.user_agent_version`.
    pub build: String,
}

#[derive(Debug)]
struct Connected {
    introduction: Introduction,
    since: SystemTime,
    /// By name: the newest version sent and the newest accepted.
    held: HashMap<ResourceName, Versions>,
    /// The last refusals, newest last.
    rejections: VecDeque<v1::Rejection>,
}

#[derive(Clone, Debug, Default)]
struct Versions {
    sent: Option<Arc<str>>,
    accepted: Option<Arc<str>>,
}

/// What a sidecar reports of itself.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    /// Active version by resource.
    pub active: HashMap<ResourceName, Arc<str>>,
    /// Of the names in it.
    pub name_bytes: usize,
    /// Build version.
    pub build: String,
    /// When its leaf ends, in milliseconds since the Unix epoch.
    pub certificate_not_after_ms: i64,
    /// Revision of its trust bundle.
    pub trust_bundle_revision: u64,
}

/// Names one report stream of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportId {
    node_id: Arc<str>,
    number: u64,
}

/// How far one client is with one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The client's node id.
    pub node_id: Arc<str>,
    /// `heddle`, `envoy` or `grpc`.
    pub flavour: &'static str,
    /// The resource.
    pub name: ResourceName,
    /// The version it was sent last; never "does not exist".
    pub sent: Arc<str>,
    /// The version it goes by: what a sidecar reports as active, what others have accepted.
    pub in_force: Option<Arc<str>>,
    /// Whether that is known: a sidecar without a report may go by any version it ever had.
    pub is_known: bool,
}

impl Proxies {
    /// A stream begins.
    pub fn connect(&self, introduction: Introduction) -> StreamId {
        let mut state = self.state.lock();
        state.next_stream += 1;
        let id = StreamId(state.next_stream);
        state.streams.insert(
            id,
            Connected {
                introduction,
                since: clock::wall(),
                held: HashMap::new(),
                rejections: VecDeque::new(),
            },
        );
        id
    }

    /// A stream has ended.
    pub fn disconnect(&self, id: StreamId) {
        self.state.lock().streams.remove(&id);
        self.changed();
    }

    /// Names a stream holds no longer are forgotten.
    pub fn retain(&self, id: StreamId, holds: impl Fn(&ResourceName) -> bool) {
        if let Some(stream) = self.state.lock().streams.get_mut(&id) {
            stream.held.retain(|name, _| holds(name));
        }
    }

    /// A response was sent; `None` is "does not exist".
    pub fn sent(&self, id: StreamId, kind: ResourceType, what: &[(Arc<str>, Option<Arc<str>>)]) {
        self.each(id, kind, what, |versions, version| {
            versions.sent.clone_from(version);
        });
    }

    /// A response was accepted.
    pub fn accepted(
        &self,
        id: StreamId,
        kind: ResourceType,
        what: &[(Arc<str>, Option<Arc<str>>)],
    ) {
        self.each(id, kind, what, |versions, version| {
            versions.accepted.clone_from(version);
        });
    }

    /// A response was refused.
    pub fn refused(
        &self,
        id: StreamId,
        kind: ResourceType,
        what: &[(Arc<str>, Option<Arc<str>>)],
        message: &str,
    ) {
        let rejection = v1::Rejection {
            r#type: kind.word().to_owned(),
            version: what
                .iter()
                .find_map(|(_, version)| version.as_deref())
                .unwrap_or_default()
                .to_owned(),
            message: message.chars().take(REJECTION_CHARS_MAX).collect(),
            at_ms: clock::unix_ms(clock::wall()),
        };
        if let Some(stream) = self.state.lock().streams.get_mut(&id) {
            stream
                .rejections
                .retain(|last| last.r#type != rejection.r#type);
            stream.rejections.push_back(rejection);
        }
    }

    fn each(
        &self,
        id: StreamId,
        kind: ResourceType,
        what: &[(Arc<str>, Option<Arc<str>>)],
        note: impl Fn(&mut Versions, &Option<Arc<str>>),
    ) {
        let mut state = self.state.lock();
        let Some(stream) = state.streams.get_mut(&id) else {
            return;
        };
        for (name, version) in what {
            let name = ResourceName {
                kind,
                name: Arc::clone(name),
            };
            note(stream.held.entry(name).or_default(), version);
        }
        drop(state);
        self.changed();
    }

    /// Wakes whoever waits for a change.
    pub(super) fn changed(&self) {
        self.changed.send_replace(());
    }

    /// Changes of what is served, held or active.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A report stream begins with its first report. It replaces an older one of the node. The
    /// caller has checked that `node_id` is the reporter's own.
    pub fn report_first(&self, node_id: &str, report: Reported) -> ReportId {
        let mut state = self.state.lock();
        state.next_report += 1;
        let id = ReportId {
            node_id: node_id.into(),
            number: state.next_report,
        };
        state
            .reports
            .insert(Arc::clone(&id.node_id), (id.number, report));
        drop(state);
        self.changed();
        id
    }

    /// A later report. `None`: a newer stream reports for the node.
    pub fn report<T>(&self, id: &ReportId, update: impl FnOnce(&mut Reported) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let (number, report) = state.reports.get_mut(&id.node_id)?;
        let result = (*number == id.number).then(|| update(report));
        drop(state);
        self.changed();
        result
    }

    /// A report stream has ended.
    pub fn forget_report(&self, id: &ReportId) {
        let mut state = self.state.lock();
        let last = state.reports.get(&id.node_id);
        if last.is_some_and(|(number, _)| *number == id.number) {
            state.reports.remove(&id.node_id);
        }
    }

    /// What clients hold of the resources that `concerns` picks.
    pub fn held(&self, concerns: impl Fn(&ResourceName) -> bool) -> Vec<Held> {
        let state = self.state.lock();
        let mut all = Vec::new();
        for stream in state.streams.values() {
            let introduction = &stream.introduction;
            let report = state.reports.get(&introduction.node_id);
            for (name, versions) in &stream.held {
                let Some(sent) = &versions.sent else {
                    continue;
                };
                if !concerns(name) {
                    continue;
                }
                let in_force = if introduction.flavour == HEDDLE {
                    report.and_then(|(_, report)| report.active.get(name))
                } else {
                    versions.accepted.as_ref()
                };
                all.push(Held {
                    node_id: Arc::clone(&introduction.node_id),
                    flavour: introduction.flavour,
                    name: name.clone(),
                    sent: Arc::clone(sent),
                    in_force: in_force.cloned(),
                    is_known: introduction.flavour != HEDDLE || report.is_some(),
                });
            }
        }
        all
    }

    /// For `Status.ListProxies`: a page of those that connected after stream `after`, of all
    /// namespaces when `namespace` is empty; and after which stream the next page begins.
    pub fn page(&self, namespace: &str, after: u64) -> (Vec<v1::Proxy>, Option<u64>) {
        let state = self.state.lock();
        let mut proxies = Vec::new();
        let mut bytes = 0;
        let mut last = after;
        let after = (Bound::Excluded(StreamId(after)), Bound::Unbounded);
        for (id, stream) in state.streams.range(after) {
            let node_id = &stream.introduction.node_id;
            if !namespace.is_empty() && node_id.split('/').next() != Some(namespace) {
                continue;
            }
            let report = state.reports.get(node_id);
            let proxy = stream.describe(report.map(|(_, report)| report));
            bytes += proxy.encoded_len();
            if bytes > PAGE_BYTES_MAX && !proxies.is_empty() {
                return (proxies, Some(last));
            }
            proxies.push(proxy);
            last = id.0;
        }
        (proxies, None)
    }
}

impl Connected {
    fn describe(&self, report: Option<&Reported>) -> v1::Proxy {
        let existing = || {
            self.held
                .iter()
                .filter(|(_, versions)| versions.sent.is_some())
        };
        let acknowledged = existing().filter(|(_, versions)| versions.accepted == versions.sent);
        let active = existing().filter(|(name, versions)| {
            report.is_some_and(|report| report.active.get(*name) == versions.sent.as_ref())
        });
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        v1::Proxy {
            node_id: self.introduction.node_id.to_string(),
            identity: self
                .introduction
                .identity
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            build: report
                .filter(|report| !report.build.is_empty())
                .map_or_else(
                    || self.introduction.build.clone(),
                    |report| report.build.clone(),
                ),
            flavour: self.introduction.flavour.to_owned(),
            connected_at_ms: clock::unix_ms(self.since),
            resources_subscribed: count(self.held.len()),
            resources_acknowledged: count(acknowledged.count()),
            resources_active: count(active.count()),
            rejections: self.rejections.iter().cloned().collect(),
            certificate_not_after_ms: report.map_or(0, |report| report.certificate_not_after_ms),
        }
    }
}

/// Of `Status.ListProxies`; clients take 4 MiB.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// The flavour that reports.
pub const HEDDLE: &str = "heddle";
/// Of a client's text, so that it cannot fill our memory.
const REJECTION_CHARS_MAX: usize = 4096;
