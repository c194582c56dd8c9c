//! The task of one stream: reads requests, asks the machine, writes responses.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_shell::clock;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    Discovery, Wake, node,
    proxies::{HEDDLE, StreamId, printable},
    sidecars::{Presence, Sidecars},
    stream::{Answer, Dependents, Form, Request, Resources, Stream, Violation},
    wire::Dialect,
};
use crate::{
    authn::Session,
    compile::{Compiled, Compiler, Flavour, Node},
    telemetry::OpenStream,
    world::Topic,
};

/// What a stream is served with.
pub(super) struct Serve<D: Dialect> {
    pub(super) discovery: Arc<Discovery>,
    pub(super) compiler: Arc<Compiler>,
    pub(super) sidecars: Sidecars,
    pub(super) session: Session,
    pub(super) form: Form,
    pub(super) requests: Streaming<D::Request>,
    pub(super) responses: mpsc::Sender<Result<D::Response, Status>>,
    #[expect(dead_code, reason = "counts the stream for as long as it lives")]
    pub(super) counted: OpenStream,
}

impl<D: Dialect> Serve<D> {
    /// Runs until the client goes, its proof ends or it breaks a rule.
    pub(super) async fn run(mut self) {
        if let Err(status) = Box::pin(self.serve()).await {
            info!(code = ?status.code(), reason = status.message(), "an xDS stream ends");
            // The client may have gone already.
            let _gone = self.responses.try_send(Err(status));
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let session = self.session.clone();
        let mut ended = std::pin::pin!(session.ended());
        let introduction = clock::now() + INTRODUCTION;
        let introduced = tokio::select! {
            biased; // A proof that has ended outranks what is asked on it.
            status = &mut ended => return Err(status),
            () = self.responses.closed() => return Ok(()),
            () = clock::sleep_until(introduction) => {
                return Err(Status::deadline_exceeded("the first request did not come"));
            }
            request = self.requests.message() => introduced::<D>(request?)?,
        };
        let Some((first, node)) = introduced else {
            return Ok(());
        };
        let (node, introduction) = node::check(&node, &self.session)?;
        // Before it is told anything.
        let mut presence = match introduction.flavour {
            HEDDLE => Some(self.sidecars.arrived(&introduction.node_id).await),
            _ => None,
        };
        info!(
            node = &*introduction.node_id,
            flavour = introduction.flavour,
            "an xDS stream begins"
        );
        let connected = Connected::new(&self.discovery, introduction);
        let served = self.exchange(first, &node, &connected, &mut presence).await;
        let proxies = &self.discovery.proxies;
        let is_denied = matches!(&served, Err(end) if end.code() == Code::PermissionDenied);
        let is_for_good = is_denied || proxies.is_leaving(&connected.node_id);
        drop(connected);
        if let Some(presence) = presence {
            presence.end(is_for_good).await;
        }
        served
    }

    async fn exchange(
        &mut self,
        first: D::Request,
        node: &Node,
        connected: &Connected,
        presence: &mut Option<Presence>,
    ) -> Result<(), Status> {
        let dependents = match (&node.flavour, self.form) {
            (Flavour::Sidecar, Form::Delta) => Dependents::Unasked,
            _ => Dependents::Asked,
        };
        let mut stream = Stream::new(self.form, dependents);
        let mut due = self.take(&mut stream, connected, first)?;
        let session = self.session.clone();
        let mut ended = std::pin::pin!(session.ended());
        loop {
            if due.is_some_and(|due| due <= clock::now()) {
                // Also when both came at once: whoever may not go on hears nothing more.
                session.check(clock::wall())?;
                self.round(&mut stream, node, connected)?;
                due = stream.warming_until();
            }
            let beat = presence.as_ref().map(|presence| presence.beat);
            tokio::select! {
                // A proof that has ended outranks everything; requests outrank pushes, since an
                // answer or an unsubscription changes what is pushed.
                biased;
                status = &mut ended => return Err(status),
                () = self.responses.closed() => return Ok(()),
                () = clock::sleep_until(beat.unwrap_or_else(far)), if beat.is_some() => {
                    if let Some(presence) = presence { presence.beat().await }
                }
                request = self.requests.message() => match request? {
                    None => return Ok(()),
                    Some(request) => {
                        due = earlier(due, self.take(&mut stream, connected, request)?);
                    }
                },
                at = connected.wake.woken() => due = earlier(due, Some(at)),
                () = clock::sleep_until(due.unwrap_or_else(far)), if due.is_some() => {}
            }
        }
    }

    /// Takes a request. Returns when to look for responses, if it may have made any.
    fn take(
        &self,
        stream: &mut Stream,
        connected: &Connected,
        request: D::Request,
    ) -> Result<Option<Instant>, Status> {
        let (type_url, request) = D::read(request);
        let Some(kind) = ResourceType::from_type_url(&type_url) else {
            // Not ours to serve, such as runtime or secrets: the client lives without.
            debug!(type_url, "a type that is not served");
            return Ok(None);
        };
        let resumed = versions(&request);
        let answer = stream
            .request(kind, request)
            .map_err(|violation| match violation {
                Violation::TooManySubscriptions | Violation::NamesTooLong => {
                    Status::resource_exhausted(violation.to_string())
                }
                Violation::NameTooLong => Status::invalid_argument(violation.to_string()),
            })?;
        let proxies = &self.discovery.proxies;
        if !resumed.is_empty() {
            // From an earlier stream: held and accepted, though this one may never send it.
            proxies.sent(connected.id, kind, &resumed);
            proxies.accepted(connected.id, kind, &resumed);
        }
        match answer {
            None => {}
            Some(Answer::Accepted(resources)) => {
                proxies.accepted(connected.id, kind, &resources);
            }
            Some(Answer::Refused { resources, message }) => {
                let who = self.session.caller.name().to_owned();
                if self
                    .discovery
                    .warnings
                    .lock()
                    .take(&who, clock::now())
                    .is_ok()
                {
                    let reason = printable(&message, LOGGED_CHARS_MAX);
                    warn!(node = &*connected.node_id, r#type = %kind, reason, "a configuration was refused");
                }
                // Counted by the time it is listed.
                self.discovery.metrics.rejected(kind);
                proxies.refused(connected.id, kind, &resources, &message);
            }
        }
        Ok(stream.has_news().then(clock::now))
    }

    /// Sends all there is to send.
    fn round(&self, stream: &mut Stream, node: &Node, connected: &Connected) -> Result<(), Status> {
        let now = clock::now();
        let world = self.compiler.world();
        let mut round = Round {
            compiler: &self.compiler,
            node,
            seen: HashMap::new(),
            topics: HashSet::new(),
        };
        while let Some(response) = stream.next(now, &mut round) {
            let sent: Vec<_> = response
                .resources
                .iter()
                .map(|compiled| {
                    (
                        Arc::clone(&compiled.name),
                        Some(Arc::clone(&compiled.version)),
                    )
                })
                .chain(response.absent.iter().map(|name| (Arc::clone(name), None)))
                .collect();
            self.discovery
                .proxies
                .sent(connected.id, response.kind, &sent);
            self.discovery.metrics.pushed(response.kind);
            self.responses
                .try_send(Ok(D::write(&response)))
                .map_err(|_full_or_closed| Status::unavailable("the client does not read"))?;
        }
        let names: HashSet<ResourceName> = stream.names().collect();
        for name in &names {
            round.get(name);
        }
        if stream.has_wildcard() {
            round.topics.insert(Topic::Anything);
        }
        let mut index = self.discovery.index.lock();
        index.depend(connected.id, round.topics);
        drop(index);
        self.discovery
            .proxies
            .retain(connected.id, |name| names.contains(name));
        // The world may have moved on before what this stream depends on was known.
        if !Arc::ptr_eq(&world, &self.compiler.world()) {
            connected.wake.within(super::ENDPOINTS_PATIENCE);
        }
        Ok(())
    }
}

type Introduced<R> = Option<(R, heddle_proto::xds::envoy::config::core::v3::Node)>;

/// The first request, with its node.
fn introduced<D: Dialect>(request: Option<D::Request>) -> Result<Introduced<D::Request>, Status> {
    let Some(request) = request else {
        return Ok(None);
    };
    let node = D::node(&request)
        .ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    Ok(Some((request, node)))
}

/// What resources are during one round: each name has one state from beginning to end, so that
/// routes and the clusters they name are of one world.
struct Round<'a> {
    compiler: &'a Compiler,
    node: &'a Node,
    seen: HashMap<ResourceName, Option<Arc<Compiled>>>,
    topics: HashSet<Topic>,
}

impl Resources for Round<'_> {
    fn get(&mut self, name: &ResourceName) -> Option<Arc<Compiled>> {
        if let Some(seen) = self.seen.get(name) {
            return seen.clone();
        }
        let (compiled, topics) = self.compiler.get(self.node, name);
        self.topics.extend(topics.iter().cloned());
        self.seen.insert(name.clone(), compiled.clone());
        compiled
    }

    fn all(&mut self, kind: ResourceType) -> Vec<Arc<str>> {
        self.compiler.all(self.node, kind)
    }
}

/// Registered for as long as the stream lives.
struct Connected {
    discovery: Arc<Discovery>,
    id: StreamId,
    node_id: Arc<str>,
    wake: Arc<Wake>,
}

impl Connected {
    fn new(discovery: &Arc<Discovery>, introduction: super::proxies::Introduction) -> Self {
        let node_id = Arc::clone(&introduction.node_id);
        let wake = Arc::new(Wake::default());
        let id = discovery.proxies.connect(introduction);
        discovery.index.lock().insert(id, Arc::clone(&wake));
        Self {
            discovery: Arc::clone(discovery),
            id,
            node_id,
            wake,
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.discovery.index.lock().remove(self.id);
        self.discovery.proxies.disconnect(self.id);
    }
}

/// What a client says it has from an earlier stream.
fn versions(request: &Request) -> Vec<(Arc<str>, Option<Arc<str>>)> {
    let versions = request.initial_versions.iter();
    versions
        .map(|(name, version)| (name.as_str().into(), Some(version.as_str().into())))
        .collect()
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Of a refusal; the whole is in what `Status.ListProxies` tells.
const LOGGED_CHARS_MAX: usize = 256;

/// For a branch that is not polled then.
fn far() -> Instant {
    clock::now()
}

/// For the first request.
const INTRODUCTION: Duration = Duration::from_secs(10);
