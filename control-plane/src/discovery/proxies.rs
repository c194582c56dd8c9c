//! Who is connected, and what each proxy was sent, accepted, refused and made active.
//!
//! A stream writes what it sent and what was answered; `Status.Report` writes what is active.
//! Both are keyed by node id and go with their connection.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
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
use tokio::sync::watch;

use crate::page;

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
    /// Node id -> its streams.
    by_node: HashMap<Arc<str>, u32>,
    /// Which streams hold a name.
    by_name: HashMap<ResourceName, HashSet<StreamId>>,
    next_report: u64,
    /// By node id, with the stream that reports.
    reports: HashMap<Arc<str>, (u64, Reported)>,
    /// Node ids of the sidecars that exist, as the store knows them.
    known: Arc<BTreeSet<Arc<str>>>,
    /// Of those that do not report now: routes that they may still go by.
    departed: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Node ids of sidecars that drain: their end is for good.
    leaving: HashSet<Arc<str>>,
}

/// Names one ADS stream of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// What a stream is.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// `Node.id`.
    pub node_id: Arc<str>,
    /// Of the caller.
    pub identity: SpiffeId,
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

/// How far a sidecar is with routes, the worse the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Reports the newest version as active.
    Active,
    /// Does not report it.
    Behind,
    /// Exists, and is not connected.
    Away,
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
        let node_id = Arc::clone(&introduction.node_id);
        *state.by_node.entry(node_id).or_default() += 1;
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
        let mut state = self.state.lock();
        if let Some(stream) = state.streams.remove(&id) {
            for name in stream.held.keys() {
                state.let_go(name, id);
            }
            let node_id = stream.introduction.node_id;
            if stream.introduction.flavour == HEDDLE {
                let held = stream.held.into_iter();
                let sent = held.filter(|(_, versions)| versions.sent.is_some());
                state.remember(&node_id, sent.map(|(name, _)| name));
            }
            state
                .by_node
                .entry(Arc::clone(&node_id))
                .and_modify(|n| *n -= 1);
            if state.by_node.get(&node_id) == Some(&0) {
                state.by_node.remove(&node_id);
                state.leaving.remove(&node_id);
            }
        }
        drop(state);
        self.changed();
    }

    /// The sidecars that the store knows.
    pub fn know(&self, node_ids: Arc<BTreeSet<Arc<str>>>) {
        let mut state = self.state.lock();
        state
            .departed
            .retain(|node_id, _| node_ids.contains(node_id));
        state.known = node_ids;
        drop(state);
        self.changed();
    }

    /// A node's workload drains, or serves (again).
    pub fn drains(&self, node_id: Arc<str>, is_leaving: bool) {
        let mut state = self.state.lock();
        if is_leaving {
            state.leaving.insert(node_id);
        } else {
            state.leaving.remove(&node_id);
        }
    }

    /// A node's registration has ended. What is known of a connected one goes with its stream.
    pub fn registration_ended(&self, node_id: &str) {
        let mut state = self.state.lock();
        if !state.is_connected(node_id) {
            state.leaving.remove(node_id);
        }
    }

    /// Whether the end of a node's streams is for good.
    pub fn is_leaving(&self, node_id: &str) -> bool {
        self.state.lock().leaving.contains(node_id)
    }

    /// The sidecars that go by one of `routes`, or may do so: those that hold them, those that
    /// report them as active, and those that exist and do not report now. `awaited` names further
    /// ones that exist.
    pub fn standings(
        &self,
        routes: &HashMap<ResourceName, Option<Arc<str>>>,
        awaited: impl IntoIterator<Item = Arc<str>>,
    ) -> BTreeMap<Arc<str>, Standing> {
        let state = self.state.lock();
        let mut held: HashMap<&Arc<str>, HashSet<&ResourceName>> = HashMap::new();
        // Others do not report.
        for name in routes.keys() {
            let streams = state.by_name.get(name).into_iter().flatten();
            let streams = streams.filter_map(|id| state.streams.get(id));
            for stream in streams.filter(|stream| stream.introduction.flavour == HEDDLE) {
                if stream.holds(name) {
                    let of_node = held.entry(&stream.introduction.node_id).or_default();
                    of_node.insert(name);
                }
            }
        }
        let awaited: Vec<_> = awaited.into_iter().collect();
        let nodes = held.keys().copied().chain(state.reports.keys());
        let exist = state.known.iter().chain(&awaited);
        let exist: HashSet<&Arc<str>> = exist.collect();
        nodes
            .chain(exist.iter().copied())
            .filter_map(|node_id| {
                let names = held.get(node_id);
                let standing = state.standing(node_id, names, exist.contains(node_id), routes)?;
                Some((Arc::clone(node_id), standing))
            })
            .collect()
    }

    /// Names a stream holds no longer are forgotten.
    pub fn retain(&self, id: StreamId, holds: impl Fn(&ResourceName) -> bool) {
        let mut state = self.state.lock();
        let Some(stream) = state.streams.get_mut(&id) else {
            return;
        };
        let gone: Vec<_> = stream.held.extract_if(|name, _| !holds(name)).collect();
        for (name, _) in &gone {
            state.let_go(name, id);
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
            message: printable(message, REJECTION_CHARS_MAX),
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
        let State {
            streams, by_name, ..
        } = &mut *state;
        let Some(stream) = streams.get_mut(&id) else {
            return;
        };
        for (name, version) in what {
            let name = ResourceName {
                kind,
                name: Arc::clone(name),
            };
            if !stream.held.contains_key(&name) {
                by_name.entry(name.clone()).or_default().insert(id);
            }
            note(stream.held.entry(name).or_default(), version);
        }
        drop(state);
        self.changed();
    }

    /// Wakes whoever waits for a change.
    pub(crate) fn changed(&self) {
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
        state.departed.remove(&id.node_id);
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
        if last.is_some_and(|(number, _)| *number == id.number)
            && let Some((_, report)) = state.reports.remove(&id.node_id)
        {
            state.remember(&id.node_id, report.active.into_keys());
        }
        drop(state);
        self.changed();
    }

    /// What clients hold of the resources that `concerns` picks, which is asked once for each name
    /// that anybody holds.
    pub fn held(&self, concerns: impl Fn(&ResourceName) -> bool) -> Vec<Held> {
        let state = self.state.lock();
        let names = state.by_name.keys().filter(|name| concerns(name));
        names.flat_map(|name| state.holders(name)).collect()
    }

    /// For `Status.ListProxies`: a page of those that connected after stream `after`, of all
    /// namespaces when `namespace` is empty; and after which stream the next page begins.
    pub fn page(&self, namespace: &str, after: u64) -> (Vec<v1::Proxy>, Option<u64>) {
        let state = self.state.lock();
        let after = (Bound::Excluded(StreamId(after)), Bound::Unbounded);
        let wanted = state.streams.range(after).filter(|(_, stream)| {
            let of = stream.introduction.node_id.split('/').next();
            namespace.is_empty() || of == Some(namespace)
        });
        page::fill(
            usize::MAX,
            wanted.map(|(id, stream)| {
                let report = state.reports.get(&stream.introduction.node_id);
                (id.0, stream.describe(report.map(|(_, report)| report)))
            }),
        )
    }
}

impl State {
    fn is_connected(&self, node_id: &str) -> bool {
        self.by_node.contains_key(node_id)
    }

    /// Routes that a sidecar had when a stream of it ended.
    fn remember(&mut self, node_id: &Arc<str>, names: impl Iterator<Item = ResourceName>) {
        if self.known.contains(node_id) {
            let routes = self.departed.entry(Arc::clone(node_id)).or_default();
            let of_routes = names.filter(|name| name.kind == ResourceType::Route);
            routes.extend(of_routes.map(|name| name.name));
        }
    }

    /// `None` when `routes` are none of the node's. One that does not report may go by what it had
    /// before; of one that this process never heard of that is unknown.
    fn standing(
        &self,
        node_id: &Arc<str>,
        held: Option<&HashSet<&ResourceName>>,
        exists: bool,
        routes: &HashMap<ResourceName, Option<Arc<str>>>,
    ) -> Option<Standing> {
        let holds = |name: &ResourceName| held.is_some_and(|held| held.contains(name));
        let Some((_, report)) = self.reports.get(node_id) else {
            let had = self.departed.get(node_id);
            let may_have_had =
                || had.is_none_or(|had| routes.keys().any(|name| had.contains(&name.name)));
            let concerns = routes.keys().any(holds) || (exists && may_have_had());
            return concerns.then(|| match self.is_connected(node_id) {
                true => Standing::Behind,
                false => Standing::Away,
            });
        };
        let standing = |(name, newest): (&ResourceName, &Option<Arc<str>>)| {
            let active = report.active.get(name);
            (active.is_some() || holds(name)).then(|| match active == newest.as_ref() {
                true => Standing::Active,
                false => Standing::Behind,
            })
        };
        routes.iter().filter_map(standing).max()
    }
}

impl State {
    /// A stream holds a name no longer.
    fn let_go(&mut self, name: &ResourceName, id: StreamId) {
        if let Some(streams) = self.by_name.get_mut(name) {
            streams.remove(&id);
            if streams.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    fn holders<'a>(&'a self, name: &'a ResourceName) -> impl Iterator<Item = Held> + 'a {
        let ids = self.by_name.get(name).into_iter().flatten();
        ids.filter_map(move |id| {
            let stream = self.streams.get(id)?;
            let introduction = &stream.introduction;
            let versions = stream.held.get(name)?;
            let sent = versions.sent.as_ref()?;
            let report = self.reports.get(&introduction.node_id);
            let is_reporting = report.is_some();
            let in_force = if introduction.flavour == HEDDLE {
                report.and_then(|(_, report)| report.active.get(name))
            } else {
                versions.accepted.as_ref()
            };
            Some(Held {
                node_id: Arc::clone(&introduction.node_id),
                flavour: introduction.flavour,
                name: name.clone(),
                sent: Arc::clone(sent),
                in_force: in_force.cloned(),
                is_known: introduction.flavour != HEDDLE || is_reporting,
            })
        })
    }
}

impl Connected {
    fn holds(&self, name: &ResourceName) -> bool {
        self.held.get(name).is_some_and(|held| held.sent.is_some())
    }

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
            identity: self.introduction.identity.to_string(),
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

/// The beginning of a client's text, without what a terminal or a log would take for its own.
pub(super) fn printable(text: &str, chars_max: usize) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(chars_max).map(printable).collect()
}
/// The flavour that reports.
pub const HEDDLE: &str = "heddle";
/// Of a client's text, so that it cannot fill our memory.
const REJECTION_CHARS_MAX: usize = 4096;

#[cfg(test)]
mod tests;
