use heddle_proto::v1::{OutboundPolicy, outbound_policy};
use heddle_proto::xds::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{Address, Metadata, SocketAddress, address, socket_address::PortSpecifier},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter},
        },
        extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
        service::discovery::v3::Resource,
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use super::*;

use ResourceType::{Cluster as Cds, Endpoints as Eds, Listener as Lds};

/// The client without a network: what is dialled, what it tells the server, what comes.
struct Script {
    client: Client,
    nonce: u32,
}

#[derive(Clone, Copy)]
enum Uplinked {
    Yes,
    No,
}

impl Script {
    fn new() -> Self {
        let mut client = Client::new(Node::default(), Outputs::new());
        client.stream.connected();
        let mut script = Self { client, nonce: 0 };
        assert_eq!(script.told().len(), 2);
        script
    }

    fn dial(&mut self, address: &str, uplinked: Uplinked) -> &mut Self {
        let is_connected = matches!(uplinked, Uplinked::Yes);
        self.client.asked(&key(address), is_connected);
        self
    }

    /// `+subscribed` and `-unsubscribed`, of all types, sorted.
    fn told(&mut self) -> Vec<String> {
        let requests = self.client.stream.outgoing(&mut None);
        let mut told: Vec<String> = requests
            .iter()
            .flat_map(|request| {
                let subscribe = request.resource_names_subscribe.iter();
                let unsubscribe = request.resource_names_unsubscribe.iter();
                let subscribe = subscribe.map(|name| format!("+{name}"));
                subscribe.chain(unsubscribe.map(|name| format!("-{name}")))
            })
            .collect();
        told.sort_unstable();
        told
    }

    /// Says what the answer complains about.
    fn take(&mut self, kind: ResourceType, sent: Vec<Resource>, removed: &[&str]) -> Vec<String> {
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            resources: sent,
            removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let reply = self.client.take(response).unwrap();
        self.client.settle(clock::now());
        let told = reply.error_detail.into_iter();
        told.map(|status| status.message).collect()
    }

    /// A destination of bytes with one cluster of one endpoint.
    fn describe(&mut self, address: &str, cluster: &str, endpoint: &str) -> &mut Self {
        for (kind, resource) in [
            (Lds, listener(address, cluster)),
            (Cds, cluster_of(cluster)),
        ] {
            assert_eq!(self.take(kind, vec![resource], &[]), [""; 0]);
        }
        self.fill(cluster, "1", endpoint)
    }

    fn fill(&mut self, cluster: &str, version: &str, endpoint: &str) -> &mut Self {
        let endpoints = endpoints(cluster, version, endpoint);
        assert_eq!(self.take(Eds, vec![endpoints], &[]), [""; 0]);
        self
    }

    fn forget(&mut self, address: &str) -> &mut Self {
        self.client.evict(&key(address));
        self.client.settle(clock::now());
        self
    }

    async fn wait(&mut self, seconds: u64) -> &mut Self {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.client.settle(clock::now());
        self
    }

    /// The endpoints that a destination in force leads to.
    fn leads(&self, address: &str) -> Vec<String> {
        let view = self.client.outputs.views.load();
        let destination = view.destinations.get(&key(address));
        let clusters = destination.into_iter().flat_map(|d| d.clusters.values());
        clusters
            .flat_map(|cluster| &cluster.endpoints)
            .map(|endpoint| endpoint.config.address.to_string())
            .collect()
    }
}

fn key(address: &str) -> DestinationKey {
    DestinationKey::Address(address.parse().unwrap())
}

fn resource<M: Message + Name>(name: &str, version: &str, message: &M) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(pack(message)),
        ..Resource::default()
    }
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn listener(address: &str, cluster: &str) -> Resource {
    let proxy = TcpProxy {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    let filter = Filter {
        name: "tcp".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))),
    };
    let name = format!("out/{address}");
    let message = Listener {
        name: name.clone(),
        default_filter_chain: Some(FilterChain {
            filters: vec![filter],
            ..FilterChain::default()
        }),
        ..Listener::default()
    };
    resource(&name, "1", &message)
}

fn cluster_of(name: &str) -> Resource {
    let message = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig::default()),
        ..Cluster::default()
    };
    resource(name, "1", &message)
}

fn endpoints(cluster: &str, version: &str, endpoint: &str) -> Resource {
    let endpoint: std::net::SocketAddr = endpoint.parse().unwrap();
    let socket = SocketAddress {
        address: endpoint.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(endpoint.port().into())),
        ..SocketAddress::default()
    };
    let endpoint = Endpoint {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(socket)),
        }),
        ..Endpoint::default()
    };
    let message = ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..LbEndpoint::default()
            }],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    resource(cluster, version, &message)
}

const WEB: &str = "10.0.0.1:80";
const API: &str = "10.0.0.2:80";

/// `mesh/outbound`.
fn outbound(mesh: &str) -> Resource {
    let policy = OutboundPolicy {
        mesh_cidrs: vec![mesh.to_owned()],
        unknown: outbound_policy::Unknown::AllowAny.into(),
        hosts: Vec::new(),
    };
    let policy = Any {
        type_url: "type.googleapis.com/heddle.v1.OutboundPolicy".to_owned(),
        value: policy.encode_to_vec(),
    };
    let metadata = Metadata {
        typed_filter_metadata: [("heddle.v1".to_owned(), policy)].into(),
        ..Metadata::default()
    };
    let message = Listener {
        name: MESH_OUTBOUND.to_owned(),
        metadata: Some(metadata),
        ..Listener::default()
    };
    resource(MESH_OUTBOUND, "1", &message)
}

#[tokio::test(start_paused = true)]
async fn what_is_mesh_is_known_from_the_control_plane_or_from_the_state_directory() {
    let mut script = Script::new();
    let known = |script: &Script| script.client.outputs.views.load().outbound.is_some();
    assert!(!known(&script));
    assert_eq!(script.take(Lds, vec![outbound("10.0.0.0/8")], &[]), [""; 0]);
    assert!(known(&script));
    let saved = script.client.outputs.resources.load();
    let mut restarted = Script::new();
    restarted.client.restore(saved.as_ref().clone());
    assert!(known(&restarted));
}

#[tokio::test(start_paused = true)]
async fn a_destination_dialled_again_right_after_it_was_forgotten_is_fetched_again() {
    let mut script = Script::new();
    assert_eq!(script.dial(WEB, Uplinked::Yes).told(), ["+out/10.0.0.1:80"]);
    script.describe(WEB, "web", "10.1.0.1:8080").told();
    script.forget(WEB).dial(WEB, Uplinked::Yes);
    assert_eq!(script.told(), ["+out/10.0.0.1:80"]);
    script.wait(1).await;
    script.describe(WEB, "web", "10.1.0.2:8080");
    assert_eq!(script.leads(WEB), ["10.1.0.2:8080"]);
}

#[tokio::test(start_paused = true)]
async fn a_destination_dialled_again_right_after_its_absence_is_fetched_again() {
    let mut script = Script::new();
    script.dial(WEB, Uplinked::Yes).told();
    assert_eq!(script.take(Lds, vec![], &["out/10.0.0.1:80"]), [""; 0]);
    script.wait(30).await.dial(WEB, Uplinked::Yes);
    assert_eq!(script.told(), [""; 0]);
    script.wait(31).await.dial(WEB, Uplinked::Yes);
    assert_eq!(script.told(), ["+out/10.0.0.1:80"]);
}

/// The next stream would otherwise present a version of what is no longer here.
#[tokio::test(start_paused = true)]
async fn a_new_stream_presents_no_version_of_what_was_forgotten() {
    let mut script = Script::new();
    script.dial(WEB, Uplinked::Yes).told();
    script.describe(WEB, "web", "10.1.0.1:8080").told();
    script.forget(WEB).dial(WEB, Uplinked::Yes);
    script.client.stream.connected();
    let requests = script.client.stream.outgoing(&mut None);
    let listeners = requests
        .iter()
        .find(|request| request.type_url == Lds.type_url());
    let listeners = listeners.unwrap();
    let name = "out/10.0.0.1:80".to_owned();
    assert!(listeners.resource_names_subscribe.contains(&name));
    assert!(!listeners.initial_resource_versions.contains_key(&name));
}

#[tokio::test(start_paused = true)]
async fn a_recalled_destination_brings_no_older_version_of_what_others_use() {
    let mut script = Script::new();
    script.dial(WEB, Uplinked::Yes).dial(API, Uplinked::Yes);
    script.describe(WEB, "shared", "10.1.0.1:8080");
    script.describe(API, "shared", "10.1.0.1:8080");
    script.forget(WEB).fill("shared", "5", "10.1.0.5:8080");
    script.wait(60).await.dial(WEB, Uplinked::No);
    assert_eq!(script.leads(API), ["10.1.0.5:8080"]);
    assert_eq!(script.leads(WEB), ["10.1.0.5:8080"]);
    let saved = script.client.outputs.resources.load();
    let shared = saved.iter().find(|saved| saved.type_url == Eds.type_url());
    assert_eq!(shared.unwrap().version, "5");
}

/// The last that the control plane said counts, also that there is nothing.
#[tokio::test(start_paused = true)]
async fn a_destination_is_recalled_as_it_was_last_described() {
    let mut script = Script::new();
    script.dial(WEB, Uplinked::Yes);
    script.describe(WEB, "web", "10.1.0.1:8080").forget(WEB);
    script.wait(60).await.dial(WEB, Uplinked::Yes);
    script.describe(WEB, "web", "10.1.0.2:8080").forget(WEB);
    script.wait(60).await.dial(WEB, Uplinked::No);
    assert_eq!(script.leads(WEB), ["10.1.0.2:8080"]);

    script.forget(WEB).wait(60).await.dial(WEB, Uplinked::Yes);
    script.take(Lds, vec![], &["out/10.0.0.1:80"]);
    script.wait(61).await.dial(WEB, Uplinked::No);
    assert_eq!(script.leads(WEB), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_crosses_the_end_of_its_subscription_is_no_fault() {
    let mut script = Script::new();
    script.dial(WEB, Uplinked::Yes).told();
    script.describe(WEB, "web", "10.1.0.1:8080").told();
    script.forget(WEB);
    let late = vec![listener(WEB, "web")];
    assert_eq!(script.take(Lds, late.clone(), &[]), [""; 0]);
    assert_eq!(script.leads(WEB), [""; 0]);
    let unasked = script.take(Lds, vec![listener(API, "web")], &[]);
    assert_eq!(unasked, ["out/10.0.0.2:80: was not asked for"]);
    // Asked for once more it is taken.
    script.dial(WEB, Uplinked::Yes);
    assert_eq!(script.take(Lds, late, &[]), [""; 0]);
}
