//! `heddle.v1.Traffic`: canary weights, without editing a `VirtualService` by hand.
//!
//! A split is the weights of the one HTTP route, in the one `VirtualService` of the host, whose
//! destinations are exactly the named subsets. It is changed through [`Desired`], as `Apply`
//! would: the same rules, audit and history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::v1::{self, traffic_server::Traffic};
use heddle_shell::clock;
use tonic::{Request, Response, Status, async_trait};

use crate::{
    authn::Session,
    config_api::{Change, DEFAULT_NAMESPACE, Desired, Refusal},
    model::{
        Catalog, Destination, Host, HttpRoute, Resource, ResourceId, Spec, VirtualService,
        WeightedDestination, document,
    },
    store::Revision,
};

/// Tells when sidecars have made a change their own, those included that exist and are not
/// connected.
#[async_trait]
pub trait Activation: fmt::Debug + Send + Sync + 'static {
    /// Waits until every sidecar that goes by routes of `host` reports them active in the version
    /// made of `revision` or later, at most until `deadline`, and tells how far they came. A
    /// sidecar that exists and does not report may go by them.
    async fn wait_active(&self, host: &Host, revision: Revision, deadline: Instant) -> Progress;
}

/// How far sidecars came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the change is served at all: before that, what is active is something older.
    pub is_served: bool,
    /// Sidecars that go by the host's routes, or may.
    pub affected: u32,
    /// Of those, the ones whose active version is new enough.
    pub active: u32,
    /// Node ids of the others; those not connected say so.
    pub behind: Vec<String>,
}

/// The service.
#[derive(Debug)]
pub struct TrafficService {
    desired: Arc<Desired>,
    activation: Arc<dyn Activation>,
}

impl TrafficService {
    /// A service over desired state and the sidecars' reports.
    pub fn new(desired: Arc<Desired>, activation: Arc<dyn Activation>) -> Self {
        Self {
            desired,
            activation,
        }
    }

    /// Stores a split; answers it with the revision of its `VirtualService`.
    async fn set(&self, wanted: &Wanted, who: &str) -> Result<v1::Split, Status> {
        let catalog = self.desired.catalog().await.map_err(Refusal::from)?;
        wanted.check_subsets(&catalog)?;
        let (resource, read_at) = wanted.edit(&catalog)?;
        if wanted.expected != Revision(0) && wanted.expected != read_at {
            return Err(Refusal::Changed {
                id: resource.id,
                revision: read_at,
            }
            .into());
        }
        let id = resource.id.clone();
        let change = Change {
            who: who.to_owned(),
            documents: vec![document::Document::made(resource)],
            deletions: Vec::new(),
            // What was read is what is replaced: an edit in between is never overwritten.
            expectations: vec![(id.clone(), read_at)],
            dry_run: false,
        };
        let changed = self.desired.change(&change).await?;
        let revision = changed
            .applied
            .first()
            .map_or(read_at, |applied| applied.revision);
        Ok(wanted.split(&id, revision))
    }
}

#[async_trait]
impl Traffic for TrafficService {
    async fn get_split(
        &self,
        request: Request<v1::GetSplitRequest>,
    ) -> Result<Response<v1::Split>, Status> {
        let request = request.into_inner();
        let host = host_of(&request.service, &request.namespace)?;
        let catalog = self.desired.catalog().await.map_err(Refusal::from)?;
        let Some((id, routes)) = catalog.routes(host.as_str()) else {
            return Err(Status::not_found(format!("`{host}` has no VirtualService")));
        };
        let splits: Vec<_> = routes
            .http
            .iter()
            .filter(|route| is_named(route, &request.route))
            .filter_map(|route| Some((route, weights(route, &host)?)))
            .collect();
        match splits.as_slice() {
            [] => Err(Status::not_found(format!(
                "no route of {id} splits `{host}`"
            ))),
            [(route, weights)] => Ok(Response::new(v1::Split {
                service: host.as_str().to_owned(),
                namespace: id.namespace.clone(),
                virtual_service: id.name.clone(),
                revision: catalog.get(id).map_or(0, |stored| stored.revision.0),
                route: route.name.clone().unwrap_or_default(),
                weights: weights
                    .iter()
                    .map(|(subset, percent)| weight(subset, *percent))
                    .collect(),
            })),
            several => Err(ambiguous(id, several.iter().map(|(route, _)| *route))),
        }
    }

    async fn set_split(
        &self,
        request: Request<v1::SetSplitRequest>,
    ) -> Result<Response<v1::SetSplitResponse>, Status> {
        let who = Session::of(&request)?.caller.name().to_owned();
        let request = request.into_inner();
        let wait = Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        let deadline = clock::now() + wait;
        let wanted = Wanted::new(request)?;
        let split = self.set(&wanted, &who).await?;
        let revision = Revision(split.revision);
        let progress = self
            .activation
            .wait_active(&wanted.host, revision, deadline)
            .await;
        if !wait.is_zero() {
            progress.check(split.revision)?;
        }
        Ok(Response::new(v1::SetSplitResponse {
            split: Some(split),
            sidecars_affected: progress.affected,
            sidecars_active: progress.active,
        }))
    }
}

/// A valid request for a split.
#[derive(Debug)]
struct Wanted {
    host: Host,
    namespace: String,
    /// Of the `VirtualService` that is created if there is none.
    name: String,
    route: String,
    weights: BTreeMap<String, u32>,
    expected: Revision,
}

impl Wanted {
    fn new(request: v1::SetSplitRequest) -> Result<Self, Status> {
        let host = host_of(&request.service, &request.namespace)?;
        let mut weights = BTreeMap::new();
        for weight in request.weights {
            if weight.subset.is_empty() || weight.percent > 100 {
                return Err(Status::invalid_argument(format!(
                    "weight `{}={}` must be a subset and 0 to 100",
                    weight.subset, weight.percent
                )));
            }
            if let Some(first) = weights.insert(weight.subset.clone(), weight.percent) {
                return Err(Status::invalid_argument(format!(
                    "subset `{}` has two weights: {first} and {}",
                    weight.subset, weight.percent
                )));
            }
        }
        let sum: u32 = weights.values().sum();
        if sum != 100 {
            return Err(Status::invalid_argument(format!(
                "weights sum to {sum}, not to 100"
            )));
        }
        let mut labels = host.as_str().split('.');
        let name = labels.next().unwrap_or_default().to_owned();
        // `<name>.<namespace>.svc..` has a namespace of its own; other hosts have the caller's.
        let own = labels.next().filter(|_| labels.next() == Some("svc"));
        let namespace = own.map_or_else(|| namespace_of(&request.namespace), ToOwned::to_owned);
        Ok(Self {
            host,
            namespace,
            name,
            route: request.route,
            weights,
            expected: Revision(request.expected_revision),
        })
    }

    fn check_subsets(&self, catalog: &Catalog) -> Result<(), Status> {
        let rule = catalog.rule(self.host.as_str());
        for subset in self.weights.keys() {
            if rule.is_none_or(|(_, rule)| rule.subset(subset).is_none()) {
                let defined = rule.map_or_else(
                    || "it has no DestinationRule".to_owned(),
                    |(id, rule)| {
                        let names: Vec<_> =
                            rule.subsets.iter().map(|subset| &*subset.name).collect();
                        format!("{id} has {}", names.join(", "))
                    },
                );
                return Err(Status::invalid_argument(format!(
                    "`{}` has no subset `{subset}`; {defined}",
                    self.host
                )));
            }
        }
        Ok(())
    }

    /// The `VirtualService` as it should be, and the revision of what it is made from.
    fn edit(&self, catalog: &Catalog) -> Result<(Resource, Revision), Status> {
        let Some((id, _)) = catalog.routes(self.host.as_str()) else {
            return self.create(catalog);
        };
        let stored = catalog
            .get(id)
            .ok_or_else(|| Status::internal("index without resource"))?;
        let mut resource = stored.resource.as_ref().clone();
        let Spec::VirtualService(routes) = &mut resource.spec else {
            return Err(Status::internal("the index of routes names another kind"));
        };
        let subsets: BTreeSet<_> = self.weights.keys().map(String::as_str).collect();
        let mut matching: Vec<_> = routes
            .http
            .iter_mut()
            .filter(|route| is_named(route, &self.route))
            .filter(|route| {
                weights(route, &self.host)
                    .is_some_and(|weights| weights.keys().copied().eq(subsets.iter().copied()))
            })
            .collect();
        match matching.as_mut_slice() {
            [] => Err(Status::failed_precondition(format!(
                "no http route of {id} has exactly the subsets {}",
                subsets.into_iter().collect::<Vec<_>>().join(", ")
            ))),
            [route] => {
                for part in &mut route.route {
                    let subset = part.destination.subset.as_deref().unwrap_or_default();
                    part.weight = self.weights.get(subset).copied().unwrap_or(0);
                }
                Ok((resource, stored.revision))
            }
            several => Err(ambiguous(id, several.iter().map(|route| &**route))),
        }
    }

    fn create(&self, catalog: &Catalog) -> Result<(Resource, Revision), Status> {
        let id = ResourceId {
            kind: crate::model::Kind::VirtualService,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        };
        if catalog.get(&id).is_some() {
            return Err(Status::failed_precondition(format!(
                "{id} exists and is not of `{}`; add the host to it or write another one",
                self.host
            )));
        }
        let parts = self
            .weights
            .iter()
            .map(|(subset, percent)| WeightedDestination {
                destination: Destination {
                    host: self.host.clone(),
                    subset: Some(subset.clone()),
                    port: None,
                },
                weight: *percent,
            });
        let route = HttpRoute {
            name: (!self.route.is_empty()).then(|| self.route.clone()),
            matches: Vec::new(),
            route: parts.collect(),
            timeout: None,
            retries: None,
        };
        let resource = Resource {
            id,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: Spec::VirtualService(VirtualService {
                hosts: vec![self.host.clone()],
                http: vec![route],
                tcp: Vec::new(),
            }),
        };
        Ok((resource, Revision(0)))
    }

    fn split(&self, id: &ResourceId, revision: Revision) -> v1::Split {
        v1::Split {
            service: self.host.as_str().to_owned(),
            namespace: id.namespace.clone(),
            virtual_service: id.name.clone(),
            revision: revision.0,
            route: self.route.clone(),
            weights: self
                .weights
                .iter()
                .map(|(subset, percent)| weight(subset, *percent))
                .collect(),
        }
    }
}

/// The weights of a route that leads to subsets of `host` and nowhere else.
fn weights<'a>(route: &'a HttpRoute, host: &Host) -> Option<BTreeMap<&'a str, u32>> {
    let mut weights = BTreeMap::new();
    for part in &route.route {
        let subset = part.destination.subset.as_deref()?;
        if part.destination.host != *host || weights.insert(subset, part.weight).is_some() {
            return None;
        }
    }
    Some(weights)
}

fn is_named(route: &HttpRoute, name: &str) -> bool {
    name.is_empty() || route.name.as_deref() == Some(name)
}

fn ambiguous<'a>(id: &ResourceId, routes: impl Iterator<Item = &'a HttpRoute>) -> Status {
    let names: Vec<_> = routes
        .map(|route| route.name.as_deref().unwrap_or("(without a name)"))
        .collect();
    Status::failed_precondition(format!(
        "{id} has several such routes: {}; name one of them",
        names.join(", ")
    ))
}

impl Progress {
    /// DEADLINE_EXCEEDED with what is missing, unless nothing is.
    fn check(&self, revision: u64) -> Result<(), Status> {
        if !self.is_served {
            return Err(Status::deadline_exceeded(format!(
                "the split is stored at revision {revision} and not served yet; see the log of \
                 the control plane"
            )));
        }
        if self.behind.is_empty() {
            return Ok(());
        }
        let mut names: Vec<_> = self.behind.iter().take(NAMES_MAX).cloned().collect();
        if self.behind.len() > NAMES_MAX {
            names.push(format!("and {} more", self.behind.len() - NAMES_MAX));
        }
        Err(Status::deadline_exceeded(format!(
            "the split is stored at revision {revision} and active in {} of {} sidecars; behind: {}",
            self.active,
            self.affected,
            names.join(", ")
        )))
    }
}

fn weight(subset: &str, percent: u32) -> v1::Weight {
    v1::Weight {
        subset: subset.to_owned(),
        percent,
    }
}

fn host_of(service: &str, namespace: &str) -> Result<Host, Status> {
    Host::qualified(service, &namespace_of(namespace))
        .ok_or_else(|| Status::invalid_argument(format!("service `{service}` is not a DNS name")))
}

fn namespace_of(namespace: &str) -> String {
    match namespace {
        "" => DEFAULT_NAMESPACE.to_owned(),
        namespace => namespace.to_owned(),
    }
}

/// Longest wait of one call.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Sidecars named in a message.
const NAMES_MAX: usize = 20;

#[cfg(test)]
mod tests;
