//! The client's half of delta ADS, without I/O: messages in, messages and updates out.
//!
//! It knows what is wanted, what the control plane was told of that on this stream, and which
//! version of each resource was accepted. It does not know what a resource means: `decode` is a
//! parameter.
//!
//! ```text
//!            want / unwant                    receive
//!                 │                              │
//!  connected ──► told nothing ──outgoing──► subscribed ──► accepted (ACK) or kept as it was (NACK)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_proto::xds::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    },
    google::rpc::Status,
};
use thiserror::Error;

/// Resources held at once; what comes unasked beyond it is refused. 4096 destinations with a
/// listener, a route and three clusters with endpoints each.
const HELD_MAX: usize = 4096 * 8;

/// Resources in one response: an honest server splits at 1 MB.
const RESPONSE_RESOURCES_MAX: usize = 16_384;

/// Ended subscriptions of a type that are remembered; an update that crosses the end of an older
/// one is a fault.
const ENDED_MAX: usize = 4096;

/// Longest NACK text, so that a control plane that talks nonsense cannot make us send more of it.
const NACK_BYTES_MAX: usize = 4096;

/// Invalid argument, the code of every NACK.
const INVALID_ARGUMENT: i32 = 3;

/// What the client wants, and what the control plane knows of it.
#[derive(Debug, Default)]
pub struct Stream {
    kinds: BTreeMap<ResourceType, Subscriptions>,
}

/// One resource type.
#[derive(Debug, Default)]
struct Subscriptions {
    wanted: BTreeSet<Arc<str>>,
    /// Of wanted resources that were accepted; told on the next stream, so that only what changed
    /// is sent there.
    versions: HashMap<Arc<str>, Arc<str>>,
    /// Not told on this stream yet.
    added: BTreeSet<Arc<str>>,
    /// Not told on this stream yet.
    dropped: BTreeSet<Arc<str>>,
    /// Ended on this stream, the oldest first: the control plane may not have heard when it sends.
    ended: VecDeque<Arc<str>>,
    /// Whether this stream has seen a request of this type. The first one carries the versions.
    is_open: bool,
}

/// What a response changes.
#[derive(Debug)]
pub struct Update<P> {
    /// Valid resources.
    pub accepted: Vec<Accepted<P>>,
    /// Wanted resources that the control plane does not have (any more).
    pub removed: Vec<ResourceName>,
    /// Why resources were refused; their last accepted version stays.
    pub faults: Vec<String>,
    /// The ACK or NACK.
    pub reply: DeltaDiscoveryRequest,
}

/// One accepted resource.
#[derive(Debug)]
pub struct Accepted<P> {
    /// Its name.
    pub name: ResourceName,
    /// As the control plane calls it: a content hash.
    pub version: Arc<str>,
    /// As it came, for the state directory.
    pub raw: Vec<u8>,
    /// As `decode` read it.
    pub piece: P,
}

/// The control plane broke the protocol in a way that leaves nothing to answer: the stream must
/// end.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A response that cannot be acknowledged.
    #[error("the control plane sent a response without a nonce")]
    NoNonce,
    /// More than any honest server puts into one response.
    #[error("the control plane sent {0} resources in one response")]
    TooMany(usize),
}

impl Stream {
    /// Subscribes; told to the control plane by the next [`Stream::outgoing`].
    pub fn want(&mut self, name: &ResourceName) {
        let kind = self.kinds.entry(name.kind).or_default();
        if kind.wanted.insert(Arc::clone(&name.name)) {
            // Also when its end was not told yet: asking again makes the control plane send it
            // again, and the resource itself is gone here.
            kind.dropped.remove(&name.name);
            kind.added.insert(Arc::clone(&name.name));
        }
    }

    /// Unsubscribes and forgets the version.
    pub fn unwant(&mut self, name: &ResourceName) {
        let kind = self.kinds.entry(name.kind).or_default();
        kind.versions.remove(&name.name);
        if kind.wanted.remove(&name.name) && !kind.added.remove(&name.name) {
            kind.dropped.insert(Arc::clone(&name.name));
            kind.ended.push_back(Arc::clone(&name.name));
            if kind.ended.len() > ENDED_MAX {
                kind.ended.pop_front();
            }
        }
    }

    /// The accepted version of a resource.
    pub fn version(&self, name: &ResourceName) -> Option<&Arc<str>> {
        self.kinds.get(&name.kind)?.versions.get(&name.name)
    }

    /// Every subscribed resource.
    pub fn subscribed(&self) -> BTreeSet<ResourceName> {
        self.kinds
            .iter()
            .flat_map(|(kind, subscriptions)| {
                subscriptions.wanted.iter().map(|name| ResourceName {
                    kind: *kind,
                    name: Arc::clone(name),
                })
            })
            .collect()
    }

    /// Number of subscribed resources.
    pub fn len(&self) -> usize {
        self.kinds.values().map(|kind| kind.wanted.len()).sum()
    }

    /// Whether nothing is subscribed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a version from the state directory, as if it had been accepted on a stream.
    pub fn restore(&mut self, name: &ResourceName, version: Arc<str>) {
        self.want(name);
        let kind = self.kinds.entry(name.kind).or_default();
        kind.versions.insert(Arc::clone(&name.name), version);
    }

    /// A new stream: the control plane knows nothing yet.
    pub fn connected(&mut self) {
        for kind in self.kinds.values_mut() {
            kind.added.clone_from(&kind.wanted);
            kind.dropped.clear();
            kind.ended.clear();
            kind.is_open = false;
        }
    }

    /// What the control plane has to be told; at most one message per type. `node` is taken by the
    /// first message of a stream.
    pub fn outgoing(&mut self, node: &mut Option<Node>) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (kind, subscriptions) in &mut self.kinds {
            // An unopened type without names would mean a wildcard to LDS and CDS.
            let is_told = subscriptions.added.is_empty()
                && (subscriptions.dropped.is_empty() || !subscriptions.is_open);
            if !is_told {
                let mut request = subscriptions.request(*kind);
                request.node = node.take();
                requests.push(request);
            }
        }
        requests
    }

    /// Judges a response. `decode` reads one resource of a type URL and says its name, or lists
    /// its faults.
    ///
    /// Good resources are taken and bad ones refused, one by one (gRFC A46): a fault costs its
    /// own resource only.
    ///
    /// # Errors
    /// [`Violation`] ends the stream; nothing of the response was applied.
    pub fn receive<P>(
        &mut self,
        response: DeltaDiscoveryResponse,
        decode: impl Fn(&str, &[u8]) -> Result<(ResourceName, P), String>,
    ) -> Result<Update<P>, Violation> {
        if response.nonce.is_empty() {
            return Err(Violation::NoNonce);
        }
        let count = response.resources.len() + response.removed_resources.len();
        if count > RESPONSE_RESOURCES_MAX {
            return Err(Violation::TooMany(count));
        }
        let Some(kind) = ResourceType::from_type_url(&response.type_url) else {
            let fault = format!("{} is not a type this sidecar uses", response.type_url);
            return Ok(Update {
                accepted: Vec::new(),
                removed: Vec::new(),
                reply: reply(
                    response.type_url,
                    response.nonce,
                    std::slice::from_ref(&fault),
                ),
                faults: vec![fault],
            });
        };
        let room = HELD_MAX.saturating_sub(self.len());
        let subscriptions = self.kinds.entry(kind).or_default();
        let mut accepted = Vec::new();
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        let mut unasked = 0;
        for resource in response.resources {
            let is_wanted = subscriptions.wanted.contains(resource.name.as_str());
            if !is_wanted && (kind == ResourceType::Listener || unasked >= room) {
                if subscriptions.has_ended(&resource.name) {
                    continue;
                }
                // A listener stands for a wish of the workload's; nobody else may add one.
                faults.push(format!("{}: was not asked for", resource.name));
                continue;
            }
            match judge(kind, resource, &mut seen, &decode) {
                Ok(judged) => {
                    unasked += usize::from(!is_wanted);
                    subscriptions.accept(&judged);
                    accepted.push(judged);
                }
                Err(fault) => faults.push(fault),
            }
        }
        let mut removed = Vec::new();
        for name in response.removed_resources {
            if seen.contains(name.as_str()) {
                faults.push(format!("{name}: is both sent and removed"));
            } else if let Some(name) = subscriptions.remove(&name) {
                removed.push(ResourceName { kind, name });
            }
        }
        let mut request = subscriptions.request(kind);
        let answer = reply(String::new(), response.nonce, &faults);
        request.response_nonce = answer.response_nonce;
        request.error_detail = answer.error_detail;
        Ok(Update {
            accepted,
            removed,
            faults,
            reply: request,
        })
    }
}

impl Subscriptions {
    /// Everything not told yet; afterwards it is.
    fn request(&mut self, kind: ResourceType) -> DeltaDiscoveryRequest {
        let initial_resource_versions = if self.is_open {
            HashMap::new()
        } else {
            self.versions
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect()
        };
        let dropped = std::mem::take(&mut self.dropped);
        let is_first = !std::mem::replace(&mut self.is_open, true);
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: texts(&std::mem::take(&mut self.added)),
            // A new stream has no subscriptions to take back.
            resource_names_unsubscribe: if is_first {
                Vec::new()
            } else {
                texts(&dropped)
            },
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn has_ended(&self, name: &str) -> bool {
        self.ended.iter().any(|ended| **ended == *name)
    }

    fn accept<P>(&mut self, accepted: &Accepted<P>) {
        let name = &accepted.name.name;
        if self.wanted.insert(Arc::clone(name)) {
            // Sent ahead of our asking, as what a listener depends on is: subscribe, else the
            // server owes us no updates.
            self.dropped.remove(name);
            self.added.insert(Arc::clone(name));
        }
        self.versions
            .insert(Arc::clone(name), Arc::clone(&accepted.version));
    }

    /// The resource's name if it was wanted. It stays subscribed: its creation will be told.
    fn remove(&mut self, name: &str) -> Option<Arc<str>> {
        self.versions.remove(name);
        self.wanted.get(name).cloned()
    }
}

fn judge<P>(
    kind: ResourceType,
    resource: Resource,
    seen: &mut BTreeSet<String>,
    decode: impl Fn(&str, &[u8]) -> Result<(ResourceName, P), String>,
) -> Result<Accepted<P>, String> {
    let name = resource.name;
    if !seen.insert(name.clone()) {
        return Err(format!("{name}: is in the response twice"));
    }
    let any = resource
        .resource
        .ok_or_else(|| format!("{name}: has no content"))?;
    if any.type_url != kind.type_url() {
        let found = any.type_url;
        return Err(format!("{name}: is {found} in a response of {kind}s"));
    }
    let (decoded, piece) = decode(&any.type_url, &any.value)?;
    if decoded.kind != kind || *decoded.name != *name {
        return Err(format!("{name}: contains {decoded}"));
    }
    Ok(Accepted {
        name: decoded,
        version: resource.version.into(),
        raw: any.value,
        piece,
    })
}

fn reply(type_url: String, nonce: String, faults: &[String]) -> DeltaDiscoveryRequest {
    let error_detail = (!faults.is_empty()).then(|| {
        let mut message = faults.join("\n");
        if message.len() > NACK_BYTES_MAX {
            message.truncate(message.floor_char_boundary(NACK_BYTES_MAX));
            message.push_str(" ..");
        }
        Status {
            code: INVALID_ARGUMENT,
            message,
            details: Vec::new(),
        }
    });
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail,
        ..DeltaDiscoveryRequest::default()
    }
}

fn texts(names: &BTreeSet<Arc<str>>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
