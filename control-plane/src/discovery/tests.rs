//! Raw clients of both forms against the service, in process and without TLS.

use std::collections::BTreeMap;

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_proto::xds::{
    envoy::{
        config::core::v3::Node as WireNode,
        service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    google::protobuf::{Struct, Value, value},
};
use heddle_shell::{publish::Published, tls::TrustBundle};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server},
};

use super::*;
use crate::{
    authn::{Caller, Proof, Workload as Proven},
    discovery::proxies::Reported,
    model::Spec,
    store::redb::{RedbStore, Retention},
    traffic_api::Activation,
    world::tests::{Fixture, USER, canary},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A session of `web` whose proof ends after `left`.
fn session(left: Duration, bundle: &Arc<Published<TrustBundle>>) -> Session {
    let workload = Proven {
        id: WEB.parse().unwrap(),
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        proof_expires: clock::wall() + left,
        token_proven_at: clock::wall(),
        via: Proof::Token,
    };
    let peer = "127.0.0.1:1".parse().unwrap();
    Session::new(
        Caller::Workload(Arc::new(workload)),
        peer,
        Arc::clone(bundle),
    )
}

/// Serves with everyone proven as `web`.
async fn serve(discovery: &Arc<Discovery>) -> AggregatedDiscoveryServiceClient<Channel> {
    let bundle = Published::new(TrustBundle::default());
    serve_as(discovery, session(Duration::from_secs(3600), &bundle)).await
}

async fn serve_as(
    discovery: &Arc<Discovery>,
    session: Session,
) -> AggregatedDiscoveryServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&directory.path().join("store"), Retention::default()).unwrap();
    let sidecars = Sidecars::new(Arc::new(store), Duration::ZERO);
    let service = discovery.service(sidecars, Streams::default());
    let gate = tower::ServiceBuilder::new().map_request(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(session.clone());
        request
    });
    let serving = Server::builder()
        .layer(gate)
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    #[expect(
        clippy::disallowed_methods,
        reason = "lives as long as the test's runtime"
    )]
    tokio::spawn(async move {
        serving.await.unwrap();
        drop(directory);
    });
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    AggregatedDiscoveryServiceClient::new(channel)
}

fn node(id: &str, agent: &str) -> Option<WireNode> {
    let features = Value {
        kind: Some(value::Kind::NumberValue(1.0)),
    };
    Some(WireNode {
        id: id.to_owned(),
        user_agent_name: agent.to_owned(),
        metadata: Some(Struct {
            fields: HashMap::from([("heddle.features".to_owned(), features)]),
        }),
        ..WireNode::default()
    })
}

fn shop() -> (Arc<Discovery>, Fixture) {
    let discovery = Discovery::new(Metrics::new());
    let fixture = Fixture::shop();
    discovery.publish(fixture.world());
    (discovery, fixture)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), Box::pin(future))
        .await
        .expect("within 10 s")
}

#[tokio::test]
async fn a_sidecar_gets_a_destination_in_one_burst_and_a_weight_change_live() {
    let (discovery, mut fixture) = shop();
    let mut client = serve(&discovery).await;
    let (requests, outgoing) = mpsc::channel(16);
    let first = DeltaDiscoveryRequest {
        node: node("shop/web/web-1", "heddle-proxy"),
        type_url: ResourceType::Listener.type_url().to_owned(),
        resource_names_subscribe: vec!["out/240.240.0.1:8080".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.unwrap();
    let response = within(client.delta_aggregated_resources(ReceiverStream::new(outgoing))).await;
    let mut incoming = response.unwrap().into_inner();
    let mut versions = BTreeMap::new();
    // No answer in between: the burst does not wait for one.
    let mut burst = Vec::new();
    for _ in 0..4 {
        let response = within(incoming.message()).await.unwrap().unwrap();
        for resource in &response.resources {
            let kind = ResourceType::from_type_url(&response.type_url).unwrap();
            versions.insert((kind, resource.name.clone()), resource.version.clone());
        }
        burst.push(response);
    }
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        for subset in ["v1", "v2"] {
            assert!(
                versions.contains_key(&(kind, format!("{USER}:8080#{subset}"))),
                "{versions:?}"
            );
        }
    }
    for response in burst {
        let acknowledged = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(acknowledged).await.unwrap();
    }
    fixture.put("shop", "user-service", Spec::VirtualService(canary(50)));
    discovery.publish(fixture.world());
    let change = within(incoming.message()).await.unwrap().unwrap();
    let route = (ResourceType::Route, format!("{USER}:8080"));
    assert_eq!(change.type_url, ResourceType::Route.type_url());
    assert_eq!(change.resources.len(), 1, "nothing else has changed");
    assert_ne!(change.resources[0].version, versions[&route]);
    becomes_active(&discovery, &fixture, &change.resources[0].version).await;
    let listed = discovery.proxies.page("shop", 0).0;
    assert_eq!(listed[0].node_id, "shop/web/web-1");
    assert!(listed[0].resources_acknowledged >= 5, "{listed:?}");
}

/// Sees `version` of the canary's routes through from sent to active.
async fn becomes_active(discovery: &Arc<Discovery>, fixture: &Fixture, version: &str) {
    // Sent is not active: that is what the sidecar reports.
    let host = crate::world::tests::host(USER);
    let revision = fixture.catalog.revision;
    let fleet = Fleet {
        discovery: Arc::clone(discovery),
        holds: Arc::default(),
    };
    // Registered, with nobody there: each could be a sidecar that goes by these routes.
    let progress = fleet.wait_active(&host, revision, clock::now()).await;
    assert_eq!((progress.affected, progress.active), (4, 0), "{progress:?}");
    assert_eq!(progress.behind[0], "shop/user/v1-a (not connected)");
    let world = discovery.compiler().unwrap().world();
    let registered = world.workloads.iter();
    let streams = registered.map(|(name, workload)| fleet.holds.take(name, &workload.identity));
    let _streams: Vec<_> = streams.map(Result::unwrap).collect();
    let progress = fleet.wait_active(&host, revision, clock::now()).await;
    assert_eq!((progress.affected, progress.active), (1, 0), "{progress:?}");
    assert_eq!(progress.behind, ["shop/web/web-1"]);
    let waiting = fleet.wait_active(&host, revision, clock::now() + Duration::from_secs(10));
    let report = async {
        tokio::task::yield_now().await;
        let name = ResourceName {
            kind: ResourceType::Route,
            name: format!("{USER}:8080").into(),
        };
        let report = Reported {
            active: HashMap::from([(name, version.into())]),
            ..Reported::default()
        };
        discovery.proxies.report_first("shop/web/web-1", report);
    };
    let (progress, ()) = tokio::join!(waiting, report);
    assert_eq!((progress.affected, progress.active), (1, 1), "{progress:?}");
    let later = crate::store::Revision(revision.0 + 1);
    let progress = fleet.wait_active(&host, later, clock::now()).await;
    assert_eq!(
        progress.active, 0,
        "a world that is not published is active nowhere"
    );
}

#[tokio::test]
async fn a_grpc_client_walks_from_listener_to_endpoints() {
    let (discovery, _) = shop();
    let mut client = serve(&discovery).await;
    let (requests, outgoing) = mpsc::channel(16);
    let target = format!("{USER}:8080");
    let mut next = vec![(ResourceType::Listener, "user-service:8080".to_owned())];
    next.push((ResourceType::Route, target.clone()));
    next.push((ResourceType::Cluster, target.clone()));
    next.push((ResourceType::Endpoints, target));
    let ask = |kind: ResourceType, name: &str| DiscoveryRequest {
        node: node("shop/web/web-1", "gRPC C-core"),
        type_url: kind.type_url().to_owned(),
        resource_names: vec![name.to_owned()],
        ..DiscoveryRequest::default()
    };
    requests.send(ask(next[0].0, &next[0].1)).await.unwrap();
    let response = within(client.stream_aggregated_resources(ReceiverStream::new(outgoing))).await;
    let mut incoming = response.unwrap().into_inner();
    for (i, (kind, name)) in next.iter().enumerate() {
        if i > 0 {
            requests.send(ask(*kind, name)).await.unwrap();
        }
        let response = within(incoming.message()).await.unwrap().unwrap();
        assert_eq!(response.type_url, kind.type_url());
        assert_eq!(response.resources.len(), 1, "{kind} {name}");
        let mut acknowledged = ask(*kind, name);
        acknowledged.response_nonce = response.nonce;
        acknowledged.version_info = response.version_info;
        requests.send(acknowledged).await.unwrap();
    }
    requests
        .send(ask(ResourceType::Endpoints, "nobody:1"))
        .await
        .unwrap();
    let response = within(incoming.message()).await.unwrap().unwrap();
    assert_eq!(response.resource_errors.len(), 1);
}

/// The code a first request ends its stream with.
async fn refused(discovery: &Arc<Discovery>, node: Option<WireNode>) -> Code {
    let mut client = serve(discovery).await;
    let first = DeltaDiscoveryRequest {
        node,
        type_url: ResourceType::Listener.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests = tokio_stream::once(first);
    let answered = Box::pin(client.delta_aggregated_resources(requests));
    match within(answered).await {
        Err(status) => status.code(),
        Ok(response) => match within(response.into_inner().message()).await {
            Err(status) => status.code(),
            Ok(_) => Code::Ok,
        },
    }
}

#[tokio::test]
async fn nobody_is_served_before_the_first_world_or_under_another_name() {
    let sidecar = node("shop/web/web-1", "heddle-proxy");
    assert_eq!(
        refused(&Discovery::new(Metrics::new()), sidecar.clone()).await,
        Code::Unavailable
    );
    let (discovery, _) = shop();
    assert_eq!(refused(&discovery, sidecar).await, Code::Ok);
    let user = node("shop/user/web-1", "heddle-proxy");
    assert_eq!(refused(&discovery, user).await, Code::PermissionDenied);
    assert_eq!(
        refused(&discovery, node("web-1", "gRPC")).await,
        Code::InvalidArgument
    );
    assert_eq!(refused(&discovery, None).await, Code::InvalidArgument);
    let mut old = node("shop/web/web-1", "heddle-proxy").unwrap();
    old.metadata = None;
    assert_eq!(
        refused(&discovery, Some(old)).await,
        Code::FailedPrecondition
    );
}

#[tokio::test]
async fn what_a_node_says_of_itself_is_bounded() {
    let (discovery, _) = shop();
    let envoy = |directory: &str| {
        let mut node = node("shop/web/web-1", "envoy").unwrap();
        let directory = Value {
            kind: Some(value::Kind::StringValue(directory.to_owned())),
        };
        let fields = HashMap::from([("heddle.certificates".to_owned(), directory)]);
        node.metadata = Some(Struct { fields });
        Some(node)
    };
    let longest = format!("/{}", "a".repeat(255));
    for directory in ["/etc/certificates", longest.as_str()] {
        assert_eq!(refused(&discovery, envoy(directory)).await, Code::Ok);
    }
    for directory in [
        "",
        "certificates",
        "/a\nb",
        "/\u{e9}",
        &format!("{longest}a"),
    ] {
        let code = refused(&discovery, envoy(directory)).await;
        assert_eq!(code, Code::InvalidArgument, "{directory:?}");
    }
    for id in ["shop/web/a b", "shop/web/\u{1b}[2J", "shop/web/\u{202e}"] {
        let code = refused(&discovery, node(id, "heddle-proxy")).await;
        assert_eq!(code, Code::InvalidArgument, "{id:?}");
    }
}

#[test]
fn a_clients_words_carry_no_control_characters() {
    let (discovery, _) = shop();
    let introduction = proxies::Introduction {
        node_id: "shop/web/web-1".into(),
        identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
        flavour: "envoy",
        build: String::new(),
    };
    let id = discovery.proxies.connect(introduction);
    let text = "bad\u{1b}[2J\nroute";
    discovery
        .proxies
        .refused(id, ResourceType::Route, &[], text);
    let listed = discovery.proxies.page("shop", 0).0;
    assert_eq!(listed[0].rejections[0].message, "bad [2J route");
}

#[test]
fn a_refused_deletion_is_blamed_on_what_is_deleted() {
    let (discovery, mut fixture) = shop();
    let mesh = Arc::new(fixture.mesh.clone());
    // Already there and bad; hidden by its service's own protocol until that goes.
    let mut routes = canary(50);
    let too_big = crate::model::StringMatch::Regex(".{1000}".repeat(20));
    routes.http[0].matches[0].uri = Some(too_big);
    fixture.put("shop", "user-service", Spec::VirtualService(routes));
    discovery.publish(fixture.world());
    let id = crate::model::ResourceId {
        kind: crate::model::Kind::DestinationRule,
        namespace: "shop".to_owned(),
        name: "user-service".to_owned(),
    };
    fixture.catalog.remove(&id).unwrap();
    let findings = discovery.validate(&mesh, &fixture.catalog);
    assert_eq!(findings[0].id, id, "{findings:?}");
}

#[test]
fn a_candidate_that_sidecars_would_refuse_is_blamed_on_what_changed() {
    let (discovery, mut fixture) = shop();
    let mesh = Arc::new(fixture.mesh.clone());
    assert_eq!(discovery.validate(&mesh, &fixture.catalog), []);
    let mut routes = canary(50);
    let too_big = crate::model::StringMatch::Regex(".{1000}".repeat(20));
    routes.http[0].matches[0].uri = Some(too_big);
    fixture.put("shop", "user-service", Spec::VirtualService(routes));
    let findings = discovery.validate(&mesh, &fixture.catalog);
    assert_eq!(
        findings[0].id.to_string(),
        "VirtualService shop/user-service"
    );
    assert!(findings[0].message.contains("safe_regex"), "{findings:?}");
}

#[tokio::test]
async fn a_silent_stream_ends_with_its_proof() {
    let (discovery, _) = shop();
    let bundle = Published::new(TrustBundle::default());
    let mut client = serve_as(&discovery, session(Duration::from_millis(50), &bundle)).await;
    let (_requests, outgoing) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let response = within(client.delta_aggregated_resources(ReceiverStream::new(outgoing))).await;
    let mut incoming = response.unwrap().into_inner();
    let ended = within(incoming.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
}

/// The request and the denial are there when the stream's task looks: on one thread it runs only
/// after both.
#[tokio::test]
async fn a_denied_caller_gets_no_more_round() {
    let (discovery, _) = shop();
    let bundle = Published::new(TrustBundle::default());
    let mut client = serve_as(&discovery, session(Duration::from_secs(3600), &bundle)).await;
    let (requests, outgoing) = mpsc::channel(1);
    let response = within(client.delta_aggregated_resources(ReceiverStream::new(outgoing))).await;
    let mut incoming = response.unwrap().into_inner();
    bundle.publish(Arc::new(TrustBundle {
        denied: [WEB.parse().unwrap()].into(),
        ..TrustBundle::default()
    }));
    let first = DeltaDiscoveryRequest {
        node: node("shop/web/web-1", "envoy"),
        type_url: ResourceType::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // The stream may have ended already.
    drop(requests.try_send(first));
    let ended = within(incoming.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn proxies_are_listed_in_pages() {
    let proxies = Proxies::default();
    let long = "x".repeat(200_000);
    let connect = |instance: &str, namespace: &str| {
        proxies.connect(proxies::Introduction {
            node_id: format!("{namespace}/web/{instance}").into(),
            identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            flavour: "envoy",
            build: long.clone(),
        })
    };
    for i in 0..12 {
        connect(&i.to_string(), "shop");
        connect(&i.to_string(), "other");
    }
    let mut found = Vec::new();
    let mut pages = 0;
    let mut after = 0;
    loop {
        let (page, next) = proxies.page("shop", after);
        pages += 1;
        found.extend(page.into_iter().map(|proxy| proxy.node_id));
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(pages, 3, "five of 200 kB fit into a page");
    let expected: Vec<_> = (0..12).map(|i| format!("shop/web/{i}")).collect();
    assert_eq!(found, expected);
}
