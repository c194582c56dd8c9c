//! The subscribe / ACK / NACK / nonce machine of one ADS stream, delta or state of the world.
//! Pure: requests in, responses out; what a resource is now is asked of the caller.
//!
//! ```text
//! request ──► names, ACK or NACK                    next() ──► CDS ► EDS ► LDS ► RDS ► removals
//!                  │                                  ▲              (one in flight per type)
//!                  └──────────── Held per name ───────┘
//! ```
//!
//! Rules that are easy to break:
//! * a response waits for the answer to the one before it, per type; what waits is re-read when
//!   it is sent, so a slow client skips versions and nothing queues up;
//! * listeners and routes wait until every cluster and its endpoints are on their way; a client
//!   of everything asks for the endpoints of a new cluster itself, so they wait for that too;
//! * endpoints are sent again after their cluster changed: Envoy waits for them;
//! * what was delivered is removed only when nothing else is waiting;
//! * a version that was refused is not sent again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use thiserror::Error;

use crate::compile::Compiled;

/// Where the machine asks what a resource is now.
pub trait Resources {
    /// `None`: there is none of that name.
    fn get(&mut self, name: &ResourceName) -> Option<Arc<Compiled>>;

    /// What a subscription to everything means.
    fn all(&mut self, kind: ResourceType) -> Vec<Arc<str>>;
}

/// The two forms of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `DeltaAggregatedResources`.
    Delta,
    /// `StreamAggregatedResources`.
    StateOfTheWorld,
}

/// Whether what a listener needs follows it unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependents {
    /// For the sidecar, in delta.
    Unasked,
    /// For everyone else.
    Asked,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    form: Form,
    dependents: Dependents,
    types: BTreeMap<ResourceType, Subscription>,
    nonce: u64,
    warming: Option<Warming>,
    /// Whether there may be something to send that there was not before.
    has_news: bool,
    /// Whether something waits for an answer.
    is_blocked: bool,
}

/// New clusters that a client of everything was sent. It uses them when it has their endpoints,
/// which it asks for when it has them.
#[derive(Debug)]
struct Warming {
    /// Not longer than this.
    until: Instant,
    /// That were not sent yet.
    endpoints: BTreeSet<Arc<str>>,
}

/// A request, delta or state of the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Names to add (delta), or all names (state of the world).
    pub subscribe: Vec<String>,
    /// Names to drop; only delta.
    pub unsubscribe: Vec<String>,
    /// What the client has from an earlier stream; only delta.
    pub initial_versions: BTreeMap<String, String>,
    /// The nonce of the response this answers; empty: none.
    pub nonce: String,
    /// Why that response was refused.
    pub error: Option<String>,
}

/// A response, delta or state of the world.
#[derive(Clone, Debug)]
pub struct Response {
    /// Of what type.
    pub kind: ResourceType,
    /// To be answered with.
    pub nonce: String,
    /// In the order of their names.
    pub resources: Vec<Arc<Compiled>>,
    /// Names that do not exist (any more).
    pub absent: Vec<Arc<str>>,
}

/// An answer to a response, for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everything in it was accepted.
    Accepted(Vec<(Arc<str>, Option<Arc<str>>)>),
    /// Something in it was refused.
    Refused {
        /// The versions in it.
        resources: Vec<(Arc<str>, Option<Arc<str>>)>,
        /// The client's words.
        message: String,
    },
}

/// Why a stream has to end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// More than [`SUBSCRIPTIONS_MAX`].
    #[error("a stream may hold {SUBSCRIPTIONS_MAX} subscriptions of a type")]
    TooManySubscriptions,
    /// More than [`NAMES_BYTES_MAX`].
    #[error("the names a stream holds may have {NAMES_BYTES_MAX} bytes together")]
    NamesTooLong,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a resource name may have {NAME_BYTES_MAX} bytes")]
    NameTooLong,
}

/// One type's subscriptions.
#[derive(Debug, Default)]
struct Subscription {
    /// Whether a request was seen.
    has_begun: bool,
    /// Subscribed to everything.
    is_wildcard: bool,
    held: BTreeMap<Arc<str>, Held>,
    in_flight: Option<InFlight>,
    /// State of the world: the next response is due although nothing changed.
    is_due: bool,
}

/// What a client has of one name.
#[derive(Clone, Debug, Default)]
struct Held {
    why: Why,
    told: Told,
    refused: Option<Arc<str>>,
    /// Whether a client ever had it, so that its removal can break something.
    was_delivered: bool,
    /// What was delivered, where a response has to repeat it (state of the world).
    last: Option<Arc<Compiled>>,
}

/// Why a name is subscribed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Why {
    by_name: bool,
    by_wildcard: bool,
    as_dependent: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Absent,
    Version(Arc<str>),
}

/// Whether a response may take away what the client has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removals {
    Wait,
    Now,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    resources: Vec<(Arc<str>, Option<Arc<str>>)>,
}

impl Stream {
    /// A new stream.
    pub fn new(form: Form, dependents: Dependents) -> Self {
        let types = ResourceType::ALL.map(|kind| (kind, Subscription::default()));
        Self {
            form,
            dependents,
            types: types.into(),
            nonce: 0,
            warming: None,
            has_news: false,
            is_blocked: false,
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// The stream must end.
    pub fn request(
        &mut self,
        kind: ResourceType,
        mut request: Request,
    ) -> Result<Option<Answer>, Violation> {
        if request
            .subscribe
            .iter()
            .any(|name| name.len() > NAME_BYTES_MAX)
        {
            return Err(Violation::NameTooLong);
        }
        if request.initial_versions.len() > SUBSCRIPTIONS_MAX {
            return Err(Violation::TooManySubscriptions);
        }
        let form = self.form;
        let subscription = self.subscription(kind);
        let answer = subscription.answer(&request.nonce, request.error.take());
        let is_changed = match form {
            Form::Delta => subscription.change(kind, &request),
            Form::StateOfTheWorld => subscription.replace(kind, &request.subscribe),
        };
        self.has_news |= is_changed || (answer.is_some() && self.is_blocked);
        if kind == ResourceType::Cluster && matches!(answer, Some(Answer::Refused { .. })) {
            // What it refused it does not warm.
            self.warming = None;
        }
        if self.types[&kind].asked() > SUBSCRIPTIONS_MAX {
            return Err(Violation::TooManySubscriptions);
        }
        if self
            .types
            .values()
            .map(Subscription::asked_bytes)
            .sum::<usize>()
            > NAMES_BYTES_MAX
        {
            return Err(Violation::NamesTooLong);
        }
        Ok(answer)
    }

    /// Whether requests since the last [`Stream::next`] may have made something to send: most only
    /// say that all is well.
    pub fn has_news(&self) -> bool {
        self.has_news
    }

    /// When to call [`Stream::next`] again although nothing happened.
    pub fn warming_until(&self) -> Option<Instant> {
        self.warming.as_ref().map(|warming| warming.until)
    }

    /// The next response, if there is one to send. Call until there is none.
    pub fn next(&mut self, now: Instant, resources: &mut impl Resources) -> Option<Response> {
        self.is_blocked = false;
        let response = self.look(now, resources);
        self.has_news = response.is_some();
        response
    }

    fn look(&mut self, now: Instant, resources: &mut impl Resources) -> Option<Response> {
        self.expand_wildcards(resources);
        if self.dependents == Dependents::Unasked {
            self.follow_dependents(resources);
        }
        let mut is_waiting = false;
        for kind in ResourceType::ALL {
            // Clusters and endpoints first; those two do not wait for each other, since Envoy
            // answers a cluster only when it has its endpoints.
            let is_last = matches!(kind, ResourceType::Listener | ResourceType::Route);
            if is_last && (self.is_warming(now) || is_waiting) {
                self.is_blocked = true;
                return None;
            }
            let Some(pending) = self.pending(kind, resources) else {
                continue;
            };
            if self.types[&kind].in_flight.is_some() {
                is_waiting = true;
                continue;
            }
            let new = self.new_clusters(kind, &pending);
            let response = self.respond(kind, pending, Removals::Wait, resources);
            self.warm(&new, &response, now);
            return Some(response);
        }
        if is_waiting {
            self.is_blocked = true;
            return None;
        }
        self.remove(resources)
    }

    /// Of clusters that are to be sent, those that a client of everything does not have.
    fn new_clusters(&self, kind: ResourceType, names: &[Arc<str>]) -> BTreeSet<Arc<str>> {
        let subscription = &self.types[&kind];
        let is_warmed = self.dependents == Dependents::Asked
            && kind == ResourceType::Cluster
            && subscription.is_wildcard;
        let is_new = |name: &&Arc<str>| {
            let held = subscription.held.get(*name);
            is_warmed && held.is_none_or(|held| !held.was_delivered)
        };
        names.iter().filter(is_new).map(Arc::clone).collect()
    }

    fn warm(&mut self, new: &BTreeSet<Arc<str>>, sent: &Response, now: Instant) {
        let endpoints: Vec<_> = sent
            .resources
            .iter()
            .filter(|compiled| new.contains(&compiled.name))
            .flat_map(|compiled| &compiled.dependents)
            .map(|dependent| Arc::clone(&dependent.name))
            .collect();
        if !endpoints.is_empty() {
            let warming = self.warming.get_or_insert_with(|| Warming {
                until: now + WARMING_MAX,
                endpoints: BTreeSet::new(),
            });
            warming.endpoints.extend(endpoints);
        }
    }

    fn is_warming(&mut self, now: Instant) -> bool {
        let Some(warming) = &mut self.warming else {
            return false;
        };
        let endpoints = &self.types[&ResourceType::Endpoints].held;
        warming.endpoints.retain(|name| {
            let held = endpoints.get(name);
            held.is_none_or(|held| held.told == Told::Nothing)
        });
        let is_warming = !warming.endpoints.is_empty() && now < warming.until;
        if !is_warming {
            self.warming = None;
        }
        is_warming
    }

    /// Every name that is held, for the index of who holds what.
    pub fn names(&self) -> impl Iterator<Item = ResourceName> {
        self.types.iter().flat_map(|(kind, subscription)| {
            subscription.held.keys().map(|name| ResourceName {
                kind: *kind,
                name: Arc::clone(name),
            })
        })
    }

    /// Whether anything is subscribed as a whole.
    pub fn has_wildcard(&self) -> bool {
        self.types
            .values()
            .any(|subscription| subscription.is_wildcard)
    }

    fn subscription(&mut self, kind: ResourceType) -> &mut Subscription {
        self.types.entry(kind).or_default()
    }

    fn expand_wildcards(&mut self, resources: &mut impl Resources) {
        for (kind, subscription) in &mut self.types {
            if !subscription.is_wildcard {
                continue;
            }
            let all: BTreeSet<Arc<str>> = resources.all(*kind).into_iter().collect();
            for name in &all {
                let resource = ResourceName {
                    kind: *kind,
                    name: Arc::clone(name),
                };
                if resources.get(&resource).is_some() {
                    let held = subscription.held.entry(Arc::clone(name)).or_default();
                    held.why.by_wildcard = true;
                }
            }
            subscription.held.retain(|name, held| {
                held.why.by_wildcard &= all.contains(name) || held.was_delivered;
                held.why != Why::default()
            });
        }
    }

    /// Marks what listeners lead to, and forgets what they no longer do: the client drops what
    /// it does not use by itself.
    fn follow_dependents(&mut self, resources: &mut impl Resources) {
        let mut reached = BTreeSet::new();
        let listeners = self.types[&ResourceType::Listener].held.keys();
        let mut open: Vec<ResourceName> = listeners
            .map(|name| ResourceName {
                kind: ResourceType::Listener,
                name: Arc::clone(name),
            })
            .collect();
        while let Some(name) = open.pop() {
            let Some(compiled) = resources.get(&name) else {
                continue;
            };
            for dependent in &compiled.dependents {
                if reached.insert(dependent.clone()) {
                    open.push(dependent.clone());
                }
            }
        }
        for (kind, subscription) in &mut self.types {
            for held in subscription.held.values_mut() {
                held.why.as_dependent = false;
            }
            for dependent in reached.iter().filter(|name| name.kind == *kind) {
                let held = subscription
                    .held
                    .entry(Arc::clone(&dependent.name))
                    .or_default();
                held.why.as_dependent = true;
            }
            subscription
                .held
                .retain(|_, held| held.why != Why::default());
        }
    }

    /// Names whose state the client was not told, but for removals that can wait. May be empty
    /// when an answer is due: "there is nothing". `None`: there is nothing to say.
    fn pending(&self, kind: ResourceType, resources: &mut impl Resources) -> Option<Vec<Arc<str>>> {
        let subscription = &self.types[&kind];
        let names = subscription.held.iter().filter(|(name, held)| {
            let name = ResourceName {
                kind,
                name: Arc::clone(name),
            };
            match resources.get(&name) {
                Some(compiled) => held.needs(&compiled.version),
                None => held.told != Told::Absent && !held.was_delivered,
            }
        });
        let pending: Vec<_> = names.map(|(name, _)| Arc::clone(name)).collect();
        (subscription.is_due || !pending.is_empty()).then_some(pending)
    }

    /// Delivered resources that are gone. Listeners first, so that nothing is left without its
    /// cluster.
    fn remove(&mut self, resources: &mut impl Resources) -> Option<Response> {
        let mut is_waiting = false;
        for kind in REMOVED_IN_ORDER {
            // Until the client has the new routes it may use the old clusters.
            is_waiting |= self.types[&kind].in_flight.is_some();
            let gone: Vec<_> = self.types[&kind]
                .held
                .iter()
                .filter(|(name, held)| {
                    let name = ResourceName {
                        kind,
                        name: Arc::clone(name),
                    };
                    held.told != Told::Absent && resources.get(&name).is_none()
                })
                .map(|(name, _)| Arc::clone(name))
                .collect();
            if !gone.is_empty() && is_waiting {
                self.is_blocked = true;
                return None;
            }
            if !gone.is_empty() {
                return Some(self.respond(kind, gone, Removals::Now, resources));
            }
        }
        None
    }

    fn respond(
        &mut self,
        kind: ResourceType,
        names: Vec<Arc<str>>,
        removals: Removals,
        resources: &mut impl Resources,
    ) -> Response {
        // State of the world: a listener or cluster that is left out is deleted.
        let is_whole = self.form == Form::StateOfTheWorld
            && matches!(kind, ResourceType::Listener | ResourceType::Cluster);
        let names = if is_whole {
            self.types[&kind].held.keys().cloned().collect()
        } else {
            names
        };
        self.nonce += 1;
        let mut response = Response {
            kind,
            nonce: self.nonce.to_string(),
            resources: Vec::new(),
            absent: Vec::new(),
        };
        let mut sent = Vec::new();
        let mut endpoints = Vec::new();
        let mut bytes = 0;
        for name in names {
            let mut compiled = resources.get(&ResourceName {
                kind,
                name: Arc::clone(&name),
            });
            if is_whole && removals == Removals::Wait && compiled.is_none() {
                // Leaving it out would delete it before its users are gone.
                compiled = self.types[&kind]
                    .held
                    .get(&name)
                    .and_then(|held| held.last.clone());
            }
            let size = compiled.as_ref().map_or(0, |c| c.value.len()) + name.len();
            if !is_whole && bytes > 0 && bytes + size > CHUNK_BYTES {
                break;
            }
            bytes += size;
            let held = self
                .subscription(kind)
                .held
                .entry(Arc::clone(&name))
                .or_default();
            let version = compiled.as_ref().map(|c| Arc::clone(&c.version));
            match compiled {
                Some(compiled) => {
                    if kind == ResourceType::Cluster && held.needs(&compiled.version) {
                        endpoints.extend(compiled.dependents.iter().cloned());
                    }
                    held.told = Told::Version(Arc::clone(&compiled.version));
                    held.was_delivered = true;
                    held.last = is_whole.then(|| Arc::clone(&compiled));
                    response.resources.push(compiled);
                }
                None => {
                    held.told = Told::Absent;
                    held.was_delivered = false;
                    held.last = None;
                    response.absent.push(Arc::clone(&name));
                }
            }
            sent.push((name, version));
        }
        self.resend(&endpoints);
        let subscription = self.subscription(kind);
        subscription.is_due = false;
        subscription.in_flight = Some(InFlight {
            nonce: response.nonce.clone(),
            resources: sent,
        });
        // What only a wildcard held is forgotten with its removal.
        subscription.held.retain(|_, held| {
            held.told != Told::Absent || held.why.by_name || held.why.as_dependent
        });
        response
    }

    /// Endpoints follow their cluster, changed or not.
    fn resend(&mut self, endpoints: &[ResourceName]) {
        for name in endpoints {
            let subscription = self.subscription(name.kind);
            if let Some(held) = subscription.held.get_mut(&name.name)
                && matches!(held.told, Told::Version(_))
            {
                held.told = Told::Nothing;
                held.refused = None;
            }
        }
    }
}

impl Subscription {
    fn answer(&mut self, nonce: &str, error: Option<String>) -> Option<Answer> {
        // An answer to an older response says nothing about the one in flight.
        let in_flight = self
            .in_flight
            .take_if(|in_flight| in_flight.nonce == nonce)?;
        let resources = in_flight.resources;
        let Some(message) = error else {
            return Some(Answer::Accepted(resources));
        };
        for (name, version) in &resources {
            if let Some(held) = self.held.get_mut(name) {
                held.refused.clone_from(version);
            }
        }
        Some(Answer::Refused { resources, message })
    }

    /// Delta. Whether it changes anything.
    fn change(&mut self, kind: ResourceType, request: &Request) -> bool {
        let is_first = !self.has_begun;
        self.has_begun = true;
        if is_first {
            for (name, version) in &request.initial_versions {
                if name.len() > NAME_BYTES_MAX || self.held.len() >= SUBSCRIPTIONS_MAX {
                    continue;
                }
                // Only what is subscribed again in this request stays (see below), or what a
                // wildcard or a listener still leads to.
                let held = self.held.entry(name.as_str().into()).or_default();
                held.told = Told::Version(version.as_str().into());
                held.was_delivered = true;
                held.why.by_wildcard = true;
            }
            // The old form of "everything": a first request that names nothing.
            let has_wildcard_form = matches!(kind, ResourceType::Listener | ResourceType::Cluster);
            // (Not when it answers what was sent unasked.)
            self.is_wildcard =
                has_wildcard_form && request.subscribe.is_empty() && request.nonce.is_empty();
            self.is_due = self.is_wildcard;
        }
        for name in &request.subscribe {
            if name == WILDCARD {
                self.is_due |= !self.is_wildcard;
                self.is_wildcard = true;
                continue;
            }
            let held = self.held.entry(name.as_str().into()).or_default();
            // Asked for again by name: the client may have lost it. What came unasked it has.
            if held.why.by_name && !is_first {
                held.told = Told::Nothing;
                // It may have been refused for another one in the same response.
                held.refused = None;
            }
            held.why.by_name = true;
        }
        for name in &request.unsubscribe {
            if name == WILDCARD {
                self.is_wildcard = false;
                continue;
            }
            if let Some(held) = self.held.get_mut(name.as_str()) {
                held.why.by_name = false;
            }
        }
        let is_wildcard = self.is_wildcard;
        self.held.retain(|_, held| {
            held.why.by_wildcard &= is_wildcard;
            held.why != Why::default()
        });
        is_first || !(request.subscribe.is_empty() && request.unsubscribe.is_empty())
    }

    /// State of the world: the list is all there is. Whether it is another one than before.
    fn replace(&mut self, kind: ResourceType, names: &[String]) -> bool {
        let has_wildcard_form = matches!(kind, ResourceType::Listener | ResourceType::Cluster);
        let was_wildcard = self.is_wildcard || !self.has_begun;
        let is_first = !self.has_begun;
        let had_wildcard = self.is_wildcard;
        self.has_begun = true;
        self.is_wildcard = names.iter().any(|name| name == WILDCARD)
            || (has_wildcard_form && names.is_empty() && was_wildcard);
        let names: BTreeSet<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| *name != WILDCARD)
            .collect();
        let mut is_changed = is_first || had_wildcard != self.is_wildcard;
        for name in &names {
            let held = self.held.entry((*name).into()).or_default();
            is_changed |= !held.why.by_name;
            held.why.by_name = true;
        }
        let is_wildcard = self.is_wildcard;
        self.held.retain(|name, held| {
            let is_named = names.contains(&**name);
            is_changed |= held.why.by_name != is_named;
            held.why.by_name = is_named;
            held.why.by_wildcard &= is_wildcard;
            held.why != Why::default()
        });
        self.is_due |= is_first && (self.is_wildcard || !self.held.is_empty());
        is_changed
    }

    /// Names the client asked for itself.
    fn asked(&self) -> usize {
        self.held.values().filter(|held| held.why.by_name).count()
    }

    /// Bytes of those names.
    fn asked_bytes(&self) -> usize {
        let asked = self.held.iter().filter(|(_, held)| held.why.by_name);
        asked.map(|(name, _)| name.len()).sum()
    }
}

impl Held {
    /// Whether the client should be sent this version.
    fn needs(&self, version: &Arc<str>) -> bool {
        self.told != Told::Version(Arc::clone(version)) && self.refused.as_ref() != Some(version)
    }
}

/// How long a new cluster may keep listeners and routes waiting: a client that never asks for its
/// endpoints does not use it.
const WARMING_MAX: Duration = Duration::from_secs(5);
/// Users go before what they use.
const REMOVED_IN_ORDER: [ResourceType; 4] = [
    ResourceType::Listener,
    ResourceType::Route,
    ResourceType::Endpoints,
    ResourceType::Cluster,
];
/// Subscribes to everything.
const WILDCARD: &str = "*";
/// Names one stream may ask for, of each type: a sidecar's 4096 destinations, with room for the
/// names it asked for in vain and for subsets.
pub const SUBSCRIPTIONS_MAX: usize = 8192;
/// Names of all types together: those of 4096 destinations with their subsets have some 1.5 MB.
pub const NAMES_BYTES_MAX: usize = 2 << 20;
/// Longest name of a resource: a host of 253 bytes, a port and a subset.
pub const NAME_BYTES_MAX: usize = 512;
/// Responses are cut at this size: receivers take at most 4 MB by default.
const CHUNK_BYTES: usize = 1_000_000;

#[cfg(test)]
mod tests;
