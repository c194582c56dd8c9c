mod administrator;
mod audited;
mod bounds;
mod given;
mod pki;
mod plane;
mod proof_age;

use std::{fs, path::Path};

use heddle_proto::v1::{
    AllowRequest, DenyRequest, IssueRequest, IssueResponse, MintTokenRequest,
    WatchTrustBundleRequest, certificate_authority_client::CertificateAuthorityClient,
};
use heddle_shell::tls::{Anchor, KeyRequest};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::config::RawConfig;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A running control plane in a directory of its own.
struct Running {
    directory: Arc<tempfile::TempDir>,
    yaml: String,
    control_plane: ControlPlane,
}

impl Running {
    async fn start(yaml: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::start_in(directory, yaml).await
    }

    async fn start_in(directory: Arc<tempfile::TempDir>, yaml: &str) -> Self {
        let control_plane = ControlPlane::start(config(directory.path(), yaml))
            .await
            .unwrap();
        Self {
            directory,
            yaml: yaml.to_owned(),
            control_plane,
        }
    }

    async fn restart(self) -> Self {
        self.control_plane.stop().await;
        Self::start_in(self.directory, &self.yaml).await
    }

    fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.directory.path().join("root.pem")).unwrap()
    }

    fn administrator(&self) -> Identity {
        let directory = self.directory.path().join("administrator");
        let chain = CertificateDer::pem_file_iter(directory.join("certificate.pem"));
        let key = PrivatePkcs8KeyDer::from_pem_file(directory.join("key.pem")).unwrap();
        Identity::new(chain.unwrap().map(Result::unwrap).collect(), key).unwrap()
    }

    async fn channel(&self, identity: Option<&Identity>, anchor: Anchor) -> Channel {
        let trust = Trust::Anchor(anchor);
        let config = tls::client(identity, trust, Accept::ControlPlane, &[b"h2"]).unwrap();
        connect(self.control_plane.grpc, config).await.unwrap()
    }

    /// A connection on which nothing is said yet.
    async fn tls(&self, identity: Option<&Identity>) -> TlsStream<TcpStream> {
        let trust = Trust::Anchor(Anchor::Roots(vec![self.root()]));
        let config = tls::client(identity, trust, Accept::ControlPlane, &[b"h2"]).unwrap();
        let stream = TcpStream::connect(self.control_plane.grpc).await.unwrap();
        let name = ServerName::try_from("control-plane").unwrap();
        let connector = TlsConnector::from(config);
        connector.connect(name, stream).await.unwrap()
    }

    async fn authority(&self, identity: Option<&Identity>) -> CertificateAuthorityClient<Channel> {
        let anchor = Anchor::Roots(vec![self.root()]);
        CertificateAuthorityClient::new(self.channel(identity, anchor).await)
    }

    async fn token(&self, service_account: &str) -> String {
        let request = MintTokenRequest {
            namespace: "shop".to_owned(),
            service_account: service_account.to_owned(),
            labels: [("app".to_owned(), service_account.to_owned())].into(),
            ..MintTokenRequest::default()
        };
        let administrator = self.administrator();
        let mut authority = self.authority(Some(&administrator)).await;
        authority
            .mint_token(request)
            .await
            .unwrap()
            .into_inner()
            .token
    }

    async fn identity(&self, service_account: &str) -> Identity {
        let token = self.token(service_account).await;
        let (issued, key) = self.issue(None, Some(&token)).await;
        key.certified(chain(&issued.unwrap())).unwrap()
    }

    async fn issue(
        &self,
        identity: Option<&Identity>,
        token: Option<&str>,
    ) -> (Result<IssueResponse, Status>, KeyRequest) {
        let key = KeyRequest::generate().unwrap();
        let csr_der = key.csr_der().unwrap();
        let issued = self.issue_csr(identity, token, csr_der).await;
        (issued, key)
    }

    async fn issue_csr(
        &self,
        identity: Option<&Identity>,
        token: Option<&str>,
        csr_der: Vec<u8>,
    ) -> Result<IssueResponse, Status> {
        let request = IssueRequest {
            csr_der,
            lifetime_ms: 0,
        };
        let request = with_token(request, token);
        let mut authority = self.authority(identity).await;
        authority
            .issue(request)
            .await
            .map(tonic::Response::into_inner)
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.control_plane.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn config(directory: &Path, yaml: &str) -> Config {
    let raw: RawConfig = serde_saphyr::from_str(yaml).unwrap();
    let mut config = Config::new(&raw).unwrap();
    config.data_directory = directory.to_owned();
    config.grpc.set_port(0);
    config.http.set_port(0);
    config.drain = Duration::from_secs(2);
    config
}

async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let config = Arc::clone(&config);
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("control-plane").unwrap();
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://control-plane")
        .connect_with_connector(connector)
        .await
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

fn chain(issued: &IssueResponse) -> Vec<CertificateDer<'static>> {
    let chain = issued.chain_der.iter().cloned();
    chain.map(CertificateDer::from).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, part: &str) -> Status {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "{status:?}");
    status
}

#[tokio::test]
async fn a_token_becomes_a_certificate_and_a_certificate_the_next() {
    let running = Running::start("{}").await;
    let token = running.token("web").await;
    let (issued, key) = running.issue(None, Some(&token)).await;
    let issued = issued.unwrap();
    assert_eq!(issued.identity, WEB);
    assert_eq!(issued.chain_der.len(), 2, "the root is not in it");
    let bundle = issued.trust_bundle.clone().unwrap();
    assert_eq!(
        bundle.trust_domains["cluster.local"].roots_der,
        [running.root().to_vec()]
    );
    let identity = key.certified(chain(&issued)).unwrap();
    let (renewed, key) = running.issue(Some(&identity), None).await;
    let renewed = key.certified(chain(&renewed.unwrap())).unwrap();
    assert_eq!(renewed.id().as_str(), WEB);
    assert!(renewed.not_after() > clock::wall() + Duration::from_secs(23 * 3600));
}

#[tokio::test]
async fn the_hash_of_the_root_is_enough_for_first_contact() {
    let running = Running::start("{}").await;
    let hash = crate::ca::Fingerprint::of(&running.root()).to_string();
    let octets: Vec<u8> = (0..32)
        .map(|at| u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let anchor = Anchor::Sha256(octets.try_into().unwrap());
    let mut health = HealthClient::new(running.channel(None, anchor).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    let other = Trust::Anchor(Anchor::Sha256([7; 32]));
    let config = tls::client(None, other, Accept::ControlPlane, &[b"h2"]).unwrap();
    connect(running.control_plane.grpc, config)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn the_request_does_not_choose_the_identity() {
    let running = Running::start("{}").await;
    let token = running.token("web").await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let other = "spiffe://cluster.local/ns/shop/sa/user-service";
    params.subject_alt_names = vec![rcgen::SanType::URI(other.try_into().unwrap())];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let issued = running.issue_csr(None, Some(&token), csr).await.unwrap();
    let leaf = CertificateDer::from(issued.chain_der[0].clone());
    assert_eq!(tls::spiffe_id(&leaf).unwrap().as_str(), WEB);
    for csr in [vec![], vec![0x30, 0x80], vec![0; 100_000]] {
        let refusal = running.issue_csr(None, Some(&token), csr).await;
        refused(refusal, Code::InvalidArgument, "certificate request");
    }
}

#[tokio::test]
async fn without_a_proof_there_is_only_health() {
    let running = Running::start("{}").await;
    let anchor = Anchor::Roots(vec![running.root()]);
    let mut health = HealthClient::new(running.channel(None, anchor).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    refused(
        running.issue(None, None).await.0,
        Code::Unauthenticated,
        "token",
    );
    let mut authority = running.authority(None).await;
    let watch = authority
        .watch_trust_bundle(WatchTrustBundleRequest::default())
        .await;
    assert_eq!(watch.unwrap_err().code(), Code::Unauthenticated);
    let mint = authority.mint_token(MintTokenRequest::default()).await;
    refused(mint, Code::Unauthenticated, "administrators");
    for token in ["", "x", "a.b.c", &"a".repeat(9000)] {
        refused(
            running.issue(None, Some(token)).await.0,
            Code::Unauthenticated,
            "",
        );
    }
}

#[tokio::test]
async fn a_workload_is_no_administrator_and_an_administrator_no_workload() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let mut authority = running.authority(Some(&web)).await;
    let mint = authority.mint_token(MintTokenRequest::default()).await;
    refused(mint, Code::PermissionDenied, "administrators");
    let deny = authority
        .deny(DenyRequest {
            identity: WEB.to_owned(),
        })
        .await;
    refused(deny, Code::PermissionDenied, "administrators");
    let administrator = running.administrator();
    let issue = running.issue(Some(&administrator), None).await.0;
    refused(issue, Code::PermissionDenied, "workloads");
    // Two proofs of two identities are none.
    let token = running.token("user-service").await;
    let issue = running.issue(Some(&web), Some(&token)).await.0;
    refused(issue, Code::Unauthenticated, "user-service");
}

#[tokio::test]
async fn reserved_identities_have_no_tokens() {
    let running = Running::start("{}").await;
    let administrator = running.administrator();
    let mut authority = running.authority(Some(&administrator)).await;
    for service_account in ["heddle-control-plane", "heddle-administrator"] {
        let request = MintTokenRequest {
            namespace: "heddle-system".to_owned(),
            service_account: service_account.to_owned(),
            ..MintTokenRequest::default()
        };
        let mint = authority.mint_token(request).await;
        refused(mint, Code::InvalidArgument, "reserved");
    }
}

#[tokio::test]
async fn certificates_are_paced_per_identity() {
    let running = Running::start("authority: {issue_interval: 60s, issue_burst: 2}").await;
    let token = running.token("web").await;
    for _ in 0..2 {
        running.issue(None, Some(&token)).await.0.unwrap();
    }
    let refusal = running.issue(None, Some(&token)).await.0;
    let status = refused(refusal, Code::ResourceExhausted, "too fast");
    let wait = status
        .metadata()
        .get("retry-after-ms")
        .unwrap()
        .to_str()
        .unwrap();
    let wait: u64 = wait.parse().unwrap();
    assert!((1..=60_000).contains(&wait), "{wait}");
    let other = running.token("user-service").await;
    running.issue(None, Some(&other)).await.0.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_authority_tokens_and_ledger() {
    let running = Running::start("{}").await;
    let (root, token) = (running.root(), running.token("web").await);
    let web = running.identity("web").await;
    let running = running.restart().await;
    assert_eq!(running.root(), root);
    running.issue(Some(&web), None).await.0.unwrap();
    running.issue(None, Some(&token)).await.0.unwrap();
}

#[tokio::test]
async fn a_certificate_that_the_ledger_does_not_know_proves_nothing() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let store = running.control_plane.store.clone();
    let ledger = Ledger::new(store);
    let purged = ledger
        .purge(clock::wall() + Duration::from_secs(48 * 3600))
        .await;
    assert_eq!(
        purged.unwrap(),
        0,
        "kept for the case that the clock is wrong"
    );
    let purged = ledger
        .purge(clock::wall() + Duration::from_secs(9 * 24 * 3600))
        .await;
    assert_eq!(purged.unwrap(), 1);
    drop(ledger);
    let refusal = running.issue(Some(&web), None).await.0;
    refused(refusal, Code::Unauthenticated, "present a token");
}

#[tokio::test]
async fn a_denied_identity_is_cut_off_and_comes_back_when_allowed() {
    let running = Running::start("{}").await;
    let (web, token) = (running.identity("web").await, running.token("web").await);
    let mut watch = running
        .authority(Some(&web))
        .await
        .watch_trust_bundle(WatchTrustBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap();
    let administrator = running.administrator();
    let mut authority = running.authority(Some(&administrator)).await;
    let identity = WEB.to_owned();
    let denied = authority.deny(DenyRequest { identity }).await.unwrap();
    assert!(denied.get_ref().trust_bundle_revision > first.revision);
    let status = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    assert_eq!(status.unwrap().code(), Code::PermissionDenied);
    refused(
        running.issue(None, Some(&token)).await.0,
        Code::PermissionDenied,
        "denied",
    );
    let running = running.restart().await;
    refused(
        running.issue(None, Some(&token)).await.0,
        Code::PermissionDenied,
        "denied",
    );
    let mut authority = running.authority(Some(&administrator)).await;
    let identity = WEB.to_owned();
    let allowed = authority.allow(AllowRequest { identity }).await.unwrap();
    assert!(allowed.get_ref().trust_bundle_revision > denied.get_ref().trust_bundle_revision);
    running.issue(None, Some(&token)).await.0.unwrap();
    for account in ["heddle-control-plane", "heddle-administrator"] {
        let identity = format!("spiffe://cluster.local/ns/heddle-system/sa/{account}");
        let deny = authority.deny(DenyRequest { identity }).await;
        refused(deny, Code::InvalidArgument, "reserved");
    }
}

#[tokio::test]
async fn garbage_is_closed_and_others_are_served() {
    let running = Running::start("{}").await;
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        vec![0x16, 0x03, 0x01, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(running.control_plane.grpc)
            .await
            .unwrap();
        // It may be closed before all of it is written.
        drop(stream.write_all(&garbage).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
    }
    // Not HTTP/2 inside good TLS.
    let mut stream = running.tls(None).await;
    stream.write_all(&[0x55; 4096]).await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    running.identity("web").await;
    let metrics = running.get("/metrics").await;
    assert!(
        metrics.contains("handshakes_failed_total{reason=\"tls\"} 3"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_directory_has_one_control_plane() {
    let running = Running::start("{}").await;
    let second = ControlPlane::start(config(running.directory.path(), "{}")).await;
    let refusal = second.unwrap_err().to_string();
    assert!(refusal.contains("another control plane"), "{refusal}");
}

#[tokio::test]
async fn certificates_of_seconds_are_renewed_in_time() {
    let running = Running::start("authority: {leaf_lifetime: 5s, leaf_lifetime_max: 5s}").await;
    let leaf = || async {
        let stream = running.tls(None).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(chain.len(), 3, "the root is last");
        chain[0].clone().into_owned()
    };
    let first = leaf().await;
    let deadline = clock::now() + Duration::from_secs(20);
    while leaf().await == first {
        assert!(clock::now() < deadline, "never renewed");
        clock::sleep_until(clock::now() + Duration::from_millis(50)).await;
    }
    let administrator = running.administrator();
    assert!(administrator.not_after() < clock::wall() + Duration::from_secs(6));
    running.identity("web").await;
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let running = Running::start("{}").await;
    running.identity("web").await;
    assert!(
        running
            .get("/health/live")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        running
            .get("/health/ready")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let detailed = running.get("/health/detailed").await;
    assert!(
        detailed.contains("\"hoursUntilFirstCertificateExpiry\":87"),
        "{detailed}"
    );
    let metrics = running.get("/metrics").await;
    let issued = "heddle_control_plane_certificates_issued_total{proof=\"token\"} 1";
    assert!(metrics.contains(issued), "{metrics}");
    assert!(running.get("/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_stop_ends_with_streams_open() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let mut authority = running.authority(Some(&web)).await;
    let watch = authority
        .watch_trust_bundle(WatchTrustBundleRequest::default())
        .await;
    let mut watch = watch.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let before = clock::now();
    running.control_plane.stop().await;
    assert!(clock::now() - before < Duration::from_secs(5));
    assert!(!matches!(watch.message().await, Ok(Some(_))));
    let lock = fs::File::open(running.directory.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
}
