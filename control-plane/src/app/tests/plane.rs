//! The whole plane over real TLS: a token becomes a certificate, documents become resources, a
//! registration becomes an endpoint, and a report lets a change count as active.

mod listed;
mod refusing;
mod returning;

use std::collections::{BTreeMap, HashMap};

use heddle_policy::snapshot::xds::{self, Piece, ResourceType};
use heddle_proto::{
    v1::{
        ActiveResource, ApplyRequest, DeregisterRequest, Document, ListProxiesRequest,
        ListWorkloadsRequest, MintTokenRequest, RegisterRequest, RegisterResponse, Registered,
        ReportRequest, ResourceName as WireName, SetSplitRequest, Weight, WorkloadState,
        config_client::ConfigClient, register_response::Event, registry_client::RegistryClient,
        status_client::StatusClient, traffic_client::TrafficClient,
    },
    xds::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse,
                aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
            },
        },
        google::protobuf::{Struct, Value, value},
    },
};
use tonic::Streaming;

use super::*;
use crate::audit::{self, Audit};

const HOST: &str = "user-service.shop.svc.cluster.local";
const SHOP: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: user-service, namespace: shop}
spec:
  hosts: [user-service.shop.svc.cluster.local]
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: user-service}}
  subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/user-service']
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user-service, namespace: shop}
spec:
  host: user-service.shop.svc.cluster.local
  subsets: [{name: stable, labels: {version: v1}}, {name: canary, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: user-service, namespace: shop}
spec:
  hosts: [user-service.shop.svc.cluster.local]
  http:
    - route:
        - {destination: {host: user-service.shop.svc.cluster.local, subset: stable}, weight: 90}
        - {destination: {host: user-service.shop.svc.cluster.local, subset: canary}, weight: 10}
";

/// A sidecar's streams, by hand: one ADS stream that accepts everything.
struct Sidecar {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    incoming: Streaming<DeltaDiscoveryResponse>,
    held: BTreeMap<(ResourceType, String), (String, Vec<u8>)>,
}

/// One `Register` stream.
struct Registering {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
}

impl Running {
    async fn shop(yaml: &str) -> Self {
        let running = Self::start(yaml).await;
        assert_eq!(running.apply(SHOP).await, 3);
        running
    }

    /// How many resources there were.
    pub(super) async fn apply(&self, yaml: &str) -> usize {
        let document = Document {
            file: "shop.yaml".to_owned(),
            text: yaml.to_owned(),
        };
        let apply = ApplyRequest {
            documents: vec![document],
            ..ApplyRequest::default()
        };
        let mut config = ConfigClient::new(self.as_administrator().await);
        let applied = config.apply(apply).await.unwrap().into_inner();
        applied.applied.len()
    }

    async fn as_administrator(&self) -> Channel {
        self.as_workload(&self.administrator()).await
    }

    pub(super) async fn as_workload(&self, identity: &Identity) -> Channel {
        let anchor = Anchor::Roots(vec![self.root()]);
        self.channel(Some(identity), anchor).await
    }

    /// An identity whose token has these labels.
    async fn labelled(&self, service_account: &str, labels: &[(&str, &str)]) -> Identity {
        let labels = labels.iter();
        let request = MintTokenRequest {
            namespace: "shop".to_owned(),
            service_account: service_account.to_owned(),
            labels: labels
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            addresses: vec!["10.1.0.0/16".to_owned()],
            ..MintTokenRequest::default()
        };
        let administrator = self.administrator();
        let mut authority = self.authority(Some(&administrator)).await;
        let minted = authority.mint_token(request).await.unwrap().into_inner();
        let (issued, key) = self.issue(None, Some(&minted.token)).await;
        key.certified(chain(&issued.unwrap())).unwrap()
    }

    /// What a v1 of the user service has in its token.
    async fn user(&self) -> Identity {
        let labels = [("app", "user-service"), ("version", "v1")];
        self.labelled("user-service", &labels).await
    }

    async fn register(&self, identity: &Identity, request: RegisterRequest) -> Registering {
        let channel = self.as_workload(identity).await;
        let (requests, queue) = mpsc::channel(4);
        requests.send(request).await.unwrap();
        let mut registry = RegistryClient::new(channel);
        let responses = registry.register(ReceiverStream::new(queue)).await.unwrap();
        Registering {
            requests,
            responses: responses.into_inner(),
        }
    }

    /// A sidecar of `web` that holds the user service's routes and endpoints.
    async fn sidecar(&self) -> Sidecar {
        Box::pin(self.connected()).await
    }

    async fn connected(&self) -> Sidecar {
        let web = self.identity("web").await;
        let features = Value {
            kind: Some(value::Kind::NumberValue(1.0)),
        };
        let node = Node {
            id: "shop/web/web-1".to_owned(),
            user_agent_name: "heddle-proxy".to_owned(),
            metadata: Some(Struct {
                fields: HashMap::from([("heddle.features".to_owned(), features)]),
            }),
            ..Node::default()
        };
        let (requests, queue) = mpsc::channel(64);
        for kind in [ResourceType::Route, ResourceType::Endpoints] {
            let subscribe = DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: vec![format!("{HOST}:8080")],
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(subscribe).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(self.as_workload(&web).await);
        let incoming = client
            .delta_aggregated_resources(ReceiverStream::new(queue))
            .await
            .unwrap();
        let mut sidecar = Sidecar {
            requests,
            incoming: incoming.into_inner(),
            held: BTreeMap::new(),
        };
        sidecar.until(|sidecar| sidecar.held.len() == 2).await;
        sidecar
    }

    pub(super) async fn refusals(&self) -> Vec<audit::Event> {
        let audit = Audit::new(self.control_plane.store.clone());
        let events = audit.newest("", "").await.unwrap();
        events
            .map(|(_, event)| event)
            .filter(|event| event.action == audit::Action::Refused)
            .collect()
    }
}

impl Sidecar {
    /// Reads and accepts until `is_done`.
    async fn until(&mut self, is_done: impl Fn(&Self) -> bool) {
        while !is_done(self) {
            let response = within(self.incoming.message()).await.unwrap().unwrap();
            let kind = ResourceType::from_type_url(&response.type_url).unwrap();
            for resource in response.resources {
                let value = resource.resource.unwrap().value;
                self.held
                    .insert((kind, resource.name), (resource.version, value));
            }
            let accept = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(accept).await.unwrap();
        }
    }

    fn version(&self, kind: ResourceType) -> String {
        self.held[&(kind, format!("{HOST}:8080"))].0.clone()
    }

    /// Addresses of the user service, as the sidecar's own decoder reads them.
    fn endpoints(&self) -> Vec<String> {
        let (_, value) = &self.held[&(ResourceType::Endpoints, format!("{HOST}:8080"))];
        let decoded = xds::decode(ResourceType::Endpoints.type_url(), value).unwrap();
        let Piece::Endpoints(endpoints) = decoded.piece else {
            panic!("not endpoints");
        };
        let list = endpoints.list.iter();
        list.map(|endpoint| endpoint.address.to_string()).collect()
    }

    /// A report of both resources as they are now.
    fn report(&self) -> ReportRequest {
        let active = self.held.iter().map(|((kind, name), (version, _))| {
            let resource = WireName {
                r#type: kind.word().to_owned(),
                name: name.clone(),
            };
            ActiveResource {
                resource: Some(resource),
                version: version.clone(),
            }
        });
        ReportRequest {
            node_id: "shop/web/web-1".to_owned(),
            build: "test".to_owned(),
            active: active.collect(),
            ..ReportRequest::default()
        }
    }
}

impl Registering {
    async fn event(&mut self) -> Result<Event, Status> {
        let response = within(self.responses.message()).await?;
        Ok(response.unwrap().event.unwrap())
    }

    async fn registered(&mut self) -> Registered {
        match self.event().await.unwrap() {
            Event::Registered(registered) => registered,
            Event::Withdrawn(_) => panic!("withdrawn instead of registered"),
        }
    }
}

fn workload(name: &str) -> RegisterRequest {
    RegisterRequest {
        name: name.to_owned(),
        address: "10.1.0.1".to_owned(),
        state: WorkloadState::Ready.into(),
        is_meshed: true,
        ..RegisterRequest::default()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), Box::pin(future))
        .await
        .expect("within 20 s")
}

#[tokio::test]
async fn a_registration_is_an_endpoint_until_the_grace_after_its_stream() {
    let running = Running::shop("registry: {grace: 1s}").await;
    let mut sidecar = running.sidecar().await;
    assert_eq!(sidecar.endpoints(), [""; 0]);
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    let registered = registering.registered().await;
    assert_eq!(registered.services, [HOST], "{registered:?}");
    sidecar
        .until(|now| now.endpoints() == ["10.1.0.1:8080"])
        .await;
    let before = clock::now();
    drop(registering);
    sidecar.until(|now| now.endpoints().is_empty()).await;
    assert!(clock::now() - before >= Duration::from_secs(1));
    let metrics = running.get("/metrics").await;
    for line in [
        "heddle_control_plane_registrations 0",
        "heddle_control_plane_streams{kind=\"discovery\"} 1",
        "heddle_control_plane_xds_responses_total{type=\"endpoints\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(
        !metrics.contains("store_commit_seconds_count 0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_workload_that_poses_as_another_is_refused_audited_and_not_served() {
    let running = Running::shop("registry: {grace: 1s}").await;
    let mut sidecar = running.sidecar().await;
    let user = running.user().await;
    let mut honest = running.register(&user, workload("user-1")).await;
    honest.registered().await;
    // Labels that its token does not have.
    let web = running.identity("web").await;
    let app = HashMap::from([("app".to_owned(), "user-service".to_owned())]);
    let posing = RegisterRequest {
        labels: app,
        address: String::new(),
        ..workload("web-1")
    };
    let refusal = running.register(&web, posing).await.event().await;
    refused(refusal, Code::PermissionDenied, "app=user-service");
    // Labels that its token has by mistake: it is registered, and serves nothing.
    let labels = [("app", "user-service"), ("version", "v1")];
    let posing = running.labelled("web", &labels).await;
    let at = |name: &str| RegisterRequest {
        address: "10.1.0.66".to_owned(),
        ..workload(name)
    };
    let mut registering = running.register(&posing, at("web-2")).await;
    let registered = registering.registered().await;
    assert_eq!(registered.services, [""; 0]);
    assert!(registered.refusals[0].contains("sa/web"), "{registered:?}");
    // The name of somebody else.
    let refusal = running.register(&posing, at("user-1")).await.event().await;
    refused(refusal, Code::PermissionDenied, "sa/user-service");
    let refusal = RegistryClient::new(running.as_workload(&posing).await)
        .deregister(DeregisterRequest {
            namespace: "shop".to_owned(),
            name: "user-1".to_owned(),
        })
        .await;
    refused(refusal, Code::PermissionDenied, "sa/user-service");
    let audited = running.refusals().await;
    assert_eq!(audited.len(), 4, "{audited:?}");
    assert!(audited.iter().all(|event| event.who.ends_with("/sa/web")));
    // Everything above is served by now: one more registration comes after it.
    let last = RegisterRequest {
        address: "10.1.0.2".to_owned(),
        ..workload("user-2")
    };
    let mut second = running.register(&user, last).await;
    second.registered().await;
    sidecar.until(|now| now.endpoints().len() == 2).await;
    assert_eq!(sidecar.endpoints(), ["10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[tokio::test]
async fn a_newer_stream_takes_over_without_a_gap() {
    let running = Running::shop("registry: {grace: 1s}").await;
    let mut sidecar = running.sidecar().await;
    let user = running.user().await;
    let mut old = running.register(&user, workload("user-1")).await;
    old.registered().await;
    sidecar.until(|now| now.endpoints().len() == 1).await;
    let version = sidecar.version(ResourceType::Endpoints);
    let mut new = running.register(&user, workload("user-1")).await;
    new.registered().await;
    refused(old.event().await, Code::Aborted, "newer stream");
    drop(old);
    // Another's grace begins after the old stream's: when it has gone, that one's is over.
    let other = RegisterRequest {
        address: "10.1.0.2".to_owned(),
        ..workload("user-2")
    };
    let mut other = running.register(&user, other).await;
    other.registered().await;
    sidecar.until(|now| now.endpoints().len() == 2).await;
    drop(other);
    sidecar
        .until(|now| {
            let endpoints = now.endpoints();
            assert!(endpoints.contains(&"10.1.0.1:8080".to_owned()));
            endpoints.len() == 1
        })
        .await;
    assert_eq!(sidecar.version(ResourceType::Endpoints), version);
}

#[tokio::test]
async fn a_registration_outlives_a_restart_of_the_control_plane() {
    let running = Running::shop("registry: {grace: 2s}").await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    let running = running.restart().await;
    let sidecar = running.sidecar().await;
    assert_eq!(sidecar.endpoints(), ["10.1.0.1:8080"]);
    let mut registry = RegistryClient::new(running.as_administrator().await);
    let listed = registry
        .list(ListWorkloadsRequest::default())
        .await
        .unwrap();
    let listed = listed.into_inner().workloads;
    assert_eq!(listed[0].identity, user.id().as_str());
    assert_eq!(listed[0].services, [HOST]);
    let named = DeregisterRequest {
        namespace: "shop".to_owned(),
        name: "user-1".to_owned(),
    };
    registry.deregister(named.clone()).await.unwrap();
    refused(registry.deregister(named).await, Code::NotFound, "user-1");
}

#[tokio::test]
async fn a_draining_workload_is_withdrawn_when_no_sidecar_goes_by_older_endpoints() {
    let running = Running::shop("registry: {grace: 60s}").await;
    let mut sidecar = running.sidecar().await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    sidecar.until(|now| now.endpoints().len() == 1).await;
    let ready = sidecar.version(ResourceType::Endpoints);
    let web = running.identity("web").await;
    let (reports, queue) = mpsc::channel(4);
    reports.send(sidecar.report()).await.unwrap();
    let mut status = StatusClient::new(running.as_workload(&web).await);
    let answers = status.report(ReceiverStream::new(queue)).await.unwrap();
    let mut answers = answers.into_inner();
    within(answers.message()).await.unwrap().unwrap();
    let draining = RegisterRequest {
        state: WorkloadState::Draining.into(),
        ..workload("user-1")
    };
    registering.requests.send(draining).await.unwrap();
    registering.registered().await;
    sidecar
        .until(|now| now.version(ResourceType::Endpoints) != ready)
        .await;
    // Sent and accepted is not active.
    let early = tokio::time::timeout(Duration::from_millis(200), registering.event()).await;
    assert!(early.is_err(), "{early:?}");
    reports.send(sidecar.report()).await.unwrap();
    let event = registering.event().await.unwrap();
    assert!(matches!(event, Event::Withdrawn(_)), "{event:?}");
    // It has left: no grace.
    drop(registering);
    sidecar.until(|now| now.endpoints().is_empty()).await;
}

#[tokio::test]
async fn a_sidecar_that_does_not_report_holds_up_the_withdrawal() {
    let running = Running::shop("registry: {grace: 60s}").await;
    let mut sidecar = running.sidecar().await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    sidecar.until(|now| now.endpoints().len() == 1).await;
    let ready = sidecar.version(ResourceType::Endpoints);
    let draining = RegisterRequest {
        state: WorkloadState::Draining.into(),
        ..workload("user-1")
    };
    registering.requests.send(draining).await.unwrap();
    registering.registered().await;
    sidecar
        .until(|now| now.version(ResourceType::Endpoints) != ready)
        .await;
    // Its report stream is just reconnecting.
    let early = tokio::time::timeout(Duration::from_millis(200), registering.event()).await;
    assert!(early.is_err(), "{early:?}");
    let web = running.identity("web").await;
    let (reports, queue) = mpsc::channel(4);
    reports.send(sidecar.report()).await.unwrap();
    let mut status = StatusClient::new(running.as_workload(&web).await);
    let _answers = status.report(ReceiverStream::new(queue)).await.unwrap();
    let event = registering.event().await.unwrap();
    assert!(matches!(event, Event::Withdrawn(_)), "{event:?}");
}

#[tokio::test]
async fn a_split_is_waited_for_until_it_is_reported_active() {
    let running = Running::shop("{}").await;
    let mut sidecar = running.sidecar().await;
    let old = sidecar.version(ResourceType::Route);
    let set = |wait_ms| {
        let weight = |subset: &str, percent| Weight {
            subset: subset.to_owned(),
            percent,
        };
        SetSplitRequest {
            service: "user-service".to_owned(),
            namespace: "shop".to_owned(),
            weights: vec![weight("stable", 50), weight("canary", 50)],
            wait_ms,
            ..SetSplitRequest::default()
        }
    };
    let mut traffic = TrafficClient::new(running.as_administrator().await);
    // Nobody reports: it is stored, and said to be behind.
    refused(
        traffic.set_split(set(100)).await,
        Code::DeadlineExceeded,
        "shop/web/web-1",
    );
    sidecar
        .until(|now| now.version(ResourceType::Route) != old)
        .await;
    let web = running.identity("web").await;
    let mut status = StatusClient::new(running.as_workload(&web).await);
    let (reports, queue) = mpsc::channel(4);
    let reporting = async {
        reports.send(sidecar.report()).await.unwrap();
        let answers = status.report(ReceiverStream::new(queue)).await.unwrap();
        let mut answers = answers.into_inner();
        answers.message().await.unwrap().unwrap();
        answers
    };
    let waiting = traffic.set_split(set(10_000));
    let (split, answers) = Box::pin(within(async { tokio::join!(waiting, reporting) })).await;
    let split = split.unwrap().into_inner();
    assert_eq!((split.sidecars_affected, split.sidecars_active), (1, 1));
    let mut proxies = StatusClient::new(running.as_administrator().await);
    let listed = proxies.list_proxies(ListProxiesRequest::default()).await;
    let listed = listed.unwrap().into_inner().proxies;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].build, "test");
    assert_eq!(
        (listed[0].resources_subscribed, listed[0].resources_active),
        (2, 2)
    );
    drop(answers);
}

#[tokio::test]
async fn nobody_reports_for_another() {
    let running = Running::start("{}").await;
    let user = running.user().await;
    let mut status = StatusClient::new(running.as_workload(&user).await);
    for node_id in [
        "shop/web/web-1",
        "shop/user-service/",
        "shop/user-service/a/b",
        "",
    ] {
        let report = ReportRequest {
            node_id: node_id.to_owned(),
            ..ReportRequest::default()
        };
        let answers = status.report(tokio_stream::once(report)).await.unwrap();
        let refusal = within(answers.into_inner().message()).await;
        refused(refusal, Code::PermissionDenied, "may not report");
    }
}
