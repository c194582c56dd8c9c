//! The program against a control plane: what it prints, and how it exits.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the functions beside the tests are tests too: they may panic"
)]

use std::{path::Path, process::Output};

use heddle_control_plane::{
    app::ControlPlane,
    config::{Config, RawConfig},
};
use heddle_proto::v1::{
    IssueRequest, RegisterRequest, WorkloadState,
    certificate_authority_client::CertificateAuthorityClient, registry_client::RegistryClient,
};
use heddle_shell::tls::{self, Accept, Anchor, Identity, KeyRequest, Trust};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

const SHOP: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: user-service}
spec:
  hosts: [user-service]
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: user-service}}
  subjectAltNames: ['spiffe://cluster.local/ns/default/sa/user-service']
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: user-service}
spec:
  host: user-service
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";

struct Lab {
    directory: tempfile::TempDir,
    control_plane: ControlPlane,
}

impl Lab {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let yaml = format!(
            "{{data_directory: '{}', listen: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0'}}, \
             registry: {{grace: 60s}}}}",
            directory.path().join("data").display()
        );
        let raw: RawConfig = serde_saphyr::from_str(&yaml).unwrap();
        let control_plane = ControlPlane::start(Config::new(&raw).unwrap()).await;
        let control_plane = control_plane.unwrap();
        std::fs::write(directory.path().join("shop.yaml"), SHOP).unwrap();
        Self {
            directory,
            control_plane,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Runs it as the administrator.
    async fn heddle(&self, words: &[&str]) -> Output {
        let credentials = self.path("data/administrator");
        self.heddle_as(Path::new(&credentials), words).await
    }

    async fn heddle_as(&self, credentials: &Path, words: &[&str]) -> Output {
        let mut heddle = std::process::Command::new(env!("CARGO_BIN_EXE_heddle"));
        heddle
            .args(["--server", &self.control_plane.grpc.to_string()])
            .arg("--credentials")
            .arg(credentials)
            .args(words);
        let ran = tokio::task::spawn_blocking(move || heddle.output());
        ran.await.unwrap().unwrap()
    }

    async fn channel(&self, identity: Option<&Identity>) -> Channel {
        let root = CertificateDer::from_pem_file(self.path("data/root.pem")).unwrap();
        let trust = Trust::Anchor(Anchor::Roots(vec![root]));
        let config = tls::client(identity, trust, Accept::ControlPlane, &[b"h2"]).unwrap();
        let server = self.control_plane.grpc.to_string();
        let dial = tower::service_fn(move |_uri| {
            let (server, config) = (server.clone(), config.clone());
            async move {
                let stream = tls::dial(&server, config).await;
                stream.map(hyper_util::rt::TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        endpoint.connect_with_connector(dial).await.unwrap()
    }

    /// What a sidecar leaves that registered and went: its registration, awaiting it.
    async fn registered_and_gone(&self) {
        let token = self.heddle(&["token", "web"]).await;
        let token = String::from_utf8(token.stdout).unwrap();
        let key = KeyRequest::generate().unwrap();
        let mut issue = Request::new(IssueRequest {
            csr_der: key.csr_der().unwrap(),
            lifetime_ms: 0,
        });
        let bearer = format!("Bearer {}", token.trim()).parse().unwrap();
        issue.metadata_mut().insert("authorization", bearer);
        let mut authority = CertificateAuthorityClient::new(self.channel(None).await);
        let issued = authority.issue(issue).await.unwrap().into_inner();
        let chain = issued.chain_der.into_iter().map(CertificateDer::from);
        let web = key.certified(chain.collect()).unwrap();
        let request = RegisterRequest {
            name: "web-1".to_owned(),
            state: WorkloadState::Ready.into(),
            is_meshed: true,
            ..RegisterRequest::default()
        };
        let mut registry = RegistryClient::new(self.channel(Some(&web)).await);
        // One request, and the end of the stream.
        let registered = registry.register(tokio_stream::once(request)).await;
        let mut registered = registered.unwrap().into_inner();
        while registered.message().await.unwrap().is_some() {}
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn exits(output: &Output, code: i32) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

#[track_caller]
fn json(output: &Output) -> Value {
    let (out, _) = exits(output, 0);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_names_who_did_not_come_and_exits_with_4() {
    let lab = Lab::start().await;
    exits(
        &lab.heddle(&["apply", "-f", &lab.path("shop.yaml")]).await,
        0,
    );
    let set = ["traffic", "set", "user-service", "v1=90", "v2=10"];
    let waiting = |timeout| [&set[..], &["--wait", "--timeout", timeout]].concat();
    let (out, err) = exits(&lab.heddle(&waiting("20")).await, 0);
    assert!(out.contains("active in 0 of 0 sidecars"), "{out}");
    assert!(err.contains("waiting for 0 of 0 sidecars"), "{err}");
    lab.registered_and_gone().await;
    let (out, err) = exits(&lab.heddle(&waiting("1")).await, 4);
    assert!(out.is_empty(), "nothing is called done: {out}");
    assert!(err.contains("waiting for 1 of 1 sidecars"), "{err}");
    assert!(err.contains("default/web/web-1 (not connected)"), "{err}");
    // Stored it is all the same, and without a wait that is all.
    let data = json(&lab.heddle(&[&set[..], &["-o", "json"]].concat()).await);
    assert_eq!(data["progress"]["sidecarsAffected"], 1, "{data}");
    assert_eq!(data["progress"]["sidecarsActive"], 0, "{data}");
    // Other ends have other codes.
    exits(
        &lab.heddle(&["traffic", "set", "user-service", "v1=1", "v2=1"])
            .await,
        1,
    );
    exits(
        &lab.heddle(&["traffic", "set", "user-service", "v1"]).await,
        2,
    );
    lab.control_plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_told_in_words_and_as_data_and_is_audited() {
    let lab = Lab::start().await;
    exits(
        &lab.heddle(&["apply", "-f", &lab.path("shop.yaml")]).await,
        0,
    );
    exits(&lab.heddle(&["token", "web"]).await, 0);
    let web = "spiffe://cluster.local/ns/default/sa/web";
    let denied = json(&lab.heddle(&["certs", "deny", web, "-o", "json"]).await);
    assert_eq!(denied["outcome"], "denied", "{denied}");
    let (said, _) = exits(&lab.heddle(&["certs", "allow", web]).await, 0);
    assert!(said.contains("is allowed"), "{said}");
    let delete = ["delete", "dr", "user-service", "-o", "json"];
    let deleted = json(&lab.heddle(&delete).await);
    assert_eq!(deleted["outcome"], "deleted", "{deleted}");
    let audit = json(&lab.heddle(&["audit", "-o", "json"]).await);
    let actions: Vec<&str> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions[..4],
        ["deleted", "allowed", "denied", "minted"],
        "{audit}"
    );
    assert_eq!(actions[4..], ["created", "created"], "{audit}");
    let (table, _) = exits(&lab.heddle(&["audit", "--subject", web]).await, 0);
    assert_eq!(
        table.lines().count(),
        4,
        "a heading and three events: {table}"
    );
    lab.control_plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_is_read_page_by_page_up_to_its_limit() {
    let lab = Lab::start().await;
    // Changes so large that a page holds one.
    let large = format!("annotations: {{note: {}}}}}", "x".repeat(600_000));
    let shop = SHOP.replacen(
        "name: user-service}",
        &format!("name: user-service, {large}"),
        1,
    );
    for number in 80..83 {
        let text = shop.replace("number: 80", &format!("number: {number}"));
        std::fs::write(lab.path("large.yaml"), text).unwrap();
        exits(
            &lab.heddle(&["apply", "-f", &lab.path("large.yaml")]).await,
            0,
        );
    }
    for (limit, expected) in [
        ("2", &["updated", "updated"][..]),
        ("100", &["updated", "updated", "created"]),
    ] {
        let audit = ["audit", "--subject", "ServiceEntry", "-o", "json"];
        let events = json(
            &lab.heddle(&[&audit[..], &["--limit", limit]].concat())
                .await,
        );
        let events = events.as_array().unwrap().iter();
        let actions: Vec<_> = events.map(|event| event["action"].clone()).collect();
        assert_eq!(actions, expected);
    }
    lab.control_plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_administrators_files_is_good_until_it_is_revoked() {
    let lab = Lab::start().await;
    let copy = lab.directory.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["certificate.pem", "key.pem", "root.pem"] {
        let from = lab.path(&format!("data/administrator/{name}"));
        std::fs::copy(from, copy.join(name)).unwrap();
    }
    exits(&lab.heddle_as(&copy, &["get"]).await, 0);
    let (said, _) = exits(&lab.heddle(&["certs", "revoke-administrators"]).await, 0);
    assert!(said.contains("revoked 1 "), "{said}");
    let (_, why) = exits(&lab.heddle_as(&copy, &["get"]).await, 1);
    assert!(why.contains("revoked"), "{why}");
    exits(&lab.heddle(&["get"]).await, 0);
    lab.control_plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_that_token_prints_is_a_trust_anchor() {
    let lab = Lab::start().await;
    let minted = lab.heddle(&["token", "web"]).await;
    let (token, said) = exits(&minted, 0);
    std::fs::write(lab.path("token"), token).unwrap();
    let data = json(&lab.heddle(&["token", "web", "-o", "json"]).await);
    let printed = said.split([' ', ';']).find(|word| word.len() >= 64);
    let printed = printed.unwrap_or_else(|| panic!("no hash in {said}"));
    let (token, out) = (lab.path("token"), lab.path("web"));
    let other = "0".repeat(64);
    let issue = |anchor| {
        let files = ["certs", "issue", "--token", &token, "--out", &out];
        [&files[..], &["--trust-anchor", anchor]].concat()
    };
    for anchor in [printed, data["rootSha256"].as_str().unwrap()] {
        exits(&lab.heddle(&issue(anchor)).await, 0);
    }
    // It is what proves the control plane.
    let (_, why) = exits(&lab.heddle(&issue(&other)).await, 3);
    assert!(why.contains("cannot be reached"), "{why}");
    let (_, why) = exits(&lab.heddle(&issue("sha256:ff")).await, 2);
    assert!(why.contains("64 hexadecimal digits"), "{why}");
    lab.control_plane.stop().await;
}
