//! `heddle` as a user runs it, over a control plane of its own on loopback: what it prints in each
//! format, how it exits, and what it says when it is refused.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use heddle_policy::snapshot::xds::ResourceType;
use heddle_proto::{
    v1::{MintTokenRequest, certificate_authority_client::CertificateAuthorityClient},
    xds::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse,
                aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
            },
        },
        google::protobuf::{Struct, Value as Wire, value},
    },
};
use heddle_shell::{
    clock,
    tls::{self, Accept, Anchor, Identity, Trust},
};
use heddle_tests::{
    netns::Family,
    node::{ControlPlane, Place, program},
    process::{PATIENCE, Process, eventually},
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

const HOST: &str = "users.shop.svc.cluster.local";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SHOP: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: users, namespace: shop}
spec:
  hosts: [users.shop.svc.cluster.local]
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: users}}
  subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/users']
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: users, namespace: shop}
spec:
  host: users.shop.svc.cluster.local
  subsets: [{name: stable, labels: {version: v1}}, {name: canary, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: users, namespace: shop}
spec:
  hosts: [users.shop.svc.cluster.local]
  http:
    - route:
        - {destination: {host: users.shop.svc.cluster.local, subset: stable}, weight: 90}
        - {destination: {host: users.shop.svc.cluster.local, subset: canary}, weight: 10}
";

/// A control plane, and where files of the test are.
pub(crate) struct Bench<'a> {
    directory: &'a Path,
    pub(crate) plane: ControlPlane<'a>,
}

/// What a run of the program was.
struct Run {
    code: Option<i32>,
    out: String,
    complaint: String,
}

impl<'a> Bench<'a> {
    pub(crate) async fn start(directory: &'a TempDir, settings: Value) -> Result<Self> {
        Ok(Self {
            directory: directory.path(),
            plane: ControlPlane::start(Place::Loopback(directory.path()), settings).await?,
        })
    }

    pub(crate) async fn shop(directory: &'a TempDir) -> Result<Self> {
        let bench = Self::start(directory, json!({})).await?;
        let file = bench.file("shop.yaml", SHOP)?;
        let applied = bench.ok(&["apply", "-f", &file])?;
        ensure!(applied.matches("created").count() == 3, "{applied}");
        Ok(bench)
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("heddle")?);
        command
            .args(["--server", &self.plane.address(Family::V4).to_string()])
            .arg("--credentials")
            .arg(self.plane.data().join("administrator"))
            .args(words)
            .stdin(Stdio::null());
        Ok(command)
    }

    fn run(&self, words: &[&str]) -> Result<Run> {
        Ok(self.command(words)?.output()?.into())
    }

    /// What a run that succeeds prints.
    fn ok(&self, words: &[&str]) -> Result<String> {
        let run = self.run(words)?;
        ensure!(run.code == Some(0), "{words:?}: {}", run.complaint);
        Ok(run.out)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let all = [words, &["-o", "json"]].concat();
        let text = self.ok(&all)?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// What a run that exits with `code` complains of.
    fn fails(&self, code: i32, words: &[&str]) -> Result<String> {
        let run = self.run(words)?;
        let Run { out, complaint, .. } = run;
        ensure!(
            run.code == Some(code),
            "{words:?}: {:?} instead of {code}: {complaint}",
            run.code
        );
        ensure!(out.is_empty(), "{words:?} printed a result: {out}");
        Ok(complaint)
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let file = self.directory.join(name);
        fs::write(&file, text)?;
        Ok(file.display().to_string())
    }

    /// A token of `web` in a file.
    fn token(&self) -> Result<String> {
        let token = self.ok(&["token", "web", "--namespace", "shop"])?;
        self.file("token", &token)
    }

    fn root(&self) -> String {
        self.plane.root().display().to_string()
    }

    /// A directory with a certificate of `web`.
    pub(crate) fn web(&self) -> Result<PathBuf> {
        let (token, out) = (self.token()?, self.directory.join("web"));
        self.ok(&issue(&token, &out.display().to_string(), &self.root()))?;
        Ok(out)
    }

    pub(crate) async fn as_administrator(&self) -> Result<Channel> {
        self.channel(&self.plane.data().join("administrator")).await
    }

    /// A channel that presents what is in a directory.
    pub(crate) async fn channel(&self, credentials: &Path) -> Result<Channel> {
        let identity = identity(credentials)?;
        let root = CertificateDer::from_pem_file(self.plane.root())?;
        let trust = Trust::Anchor(Anchor::Roots(vec![root]));
        let config = tls::client(Some(&identity), trust, Accept::ControlPlane, &[b"h2"])?;
        let server = self.plane.address(Family::V4).to_string();
        let dial = tower::service_fn(move |_uri| {
            let (server, config) = (server.clone(), Arc::clone(&config));
            async move {
                tls::dial(&server, config)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        Ok(endpoint.connect_with_connector(dial).await?)
    }

    /// A token of a life that the program does not offer, and its end.
    async fn short_token(&self, life: Duration) -> Result<(String, SystemTime)> {
        let channel = self.as_administrator().await?;
        let request = MintTokenRequest {
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
            lifetime_ms: u64::try_from(life.as_millis())?,
            ..MintTokenRequest::default()
        };
        let minted = CertificateAuthorityClient::new(channel)
            .mint_token(request)
            .await?
            .into_inner();
        let file = self.file("token", &minted.token)?;
        Ok((file, clock::from_unix_ms(minted.not_after_ms)))
    }
}

/// The words that issue a certificate.
fn issue<'w>(token: &'w str, out: &'w str, root: &'w str) -> [&'w str; 8] {
    let [certs, issue] = ["certs", "issue"];
    [
        certs,
        issue,
        "--token",
        token,
        "--out",
        out,
        "--trust-anchor",
        root,
    ]
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            complaint: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn identity(directory: &Path) -> Result<Identity> {
    let chain = CertificateDer::pem_file_iter(directory.join("certificate.pem"))?;
    let key = PrivatePkcs8KeyDer::from_pem_file(directory.join("key.pem"))?;
    Ok(Identity::new(chain.collect::<Result<_, _>>()?, key)?)
}

#[tokio::test]
async fn resources_are_shown_in_every_format_and_deleted() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::shop(&directory).await?;
    let table = bench.ok(&["get"])?;
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default();
    ensure!(heading.starts_with("KIND"), "{table}");
    ensure!(lines.count() == 3, "{table}");
    let list = bench.json(&["get", "vs", "--namespace", "shop"])?;
    ensure!(list[0]["metadata"]["name"] == "users", "{list}");
    ensure!(bench.json(&["get", "vs", "--namespace", "other"])? == json!([]));
    let one = bench.json(&["get", "ServiceEntry", "users", "--namespace", "shop"])?;
    ensure!(one["spec"]["hosts"] == json!([HOST]), "{one}");
    // What is shown as YAML can be applied again, and changes nothing.
    let yaml = bench.ok(&["get", "se", "users", "-n", "shop", "-o", "yaml"])?;
    ensure!(yaml.contains("kind: ServiceEntry"), "{yaml}");
    let file = bench.file("again.yaml", &yaml)?;
    let again = bench.json(&["apply", "-f", &file])?;
    ensure!(again[0]["outcome"] == "unchanged", "{again}");

    let vs = ["virtualservice", "users", "--namespace", "shop"];
    let deleted = bench.json(&[&["delete"], &vs[..]].concat())?;
    ensure!(
        deleted["resource"] == "VirtualService shop/users" && deleted["outcome"] == "deleted",
        "{deleted}"
    );
    let complaint = bench.fails(1, &[&["get"], &vs[..]].concat())?;
    ensure!(complaint.contains("there is no"), "{complaint}");
    let complaint = bench.fails(1, &[&["delete"], &vs[..]].concat())?;
    ensure!(complaint.contains("there is no"), "{complaint}");
    Ok(())
}

#[tokio::test]
async fn proxies_their_certificates_and_splits_are_shown_as_tables_and_yaml() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::shop(&directory).await?;
    for list in [["proxies"], ["certs"]] {
        let empty = bench.ok(&list)?;
        ensure!(empty == "no proxies are connected\n", "{list:?}: {empty}");
    }
    let sidecar = lazy_sidecar(&bench).await?;
    // Subscribed to routes, neither acknowledged nor active; without reports nobody knows more.
    let none = ["shop/web/web-1", "heddle", "1", "0", "0", "unknown"];
    for (list, heading, row) in [
        ("proxies", "NODE", &none[..]),
        ("certs", "IDENTITY", &[WEB, "shop/web/web-1", "unknown"]),
    ] {
        let table = bench.ok(&[list])?;
        let mut lines = table.lines();
        ensure!(lines.next().is_some_and(|line| line.starts_with(heading)));
        let words: Vec<_> = lines
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(words == row, "{list}: {table}");
        ensure!(lines.next().is_none(), "{list}: {table}");
    }
    drop(sidecar);
    let yaml = bench.ok(&["traffic", "get", HOST, "-n", "shop", "-o", "yaml"])?;
    ensure!(yaml.contains("\n  stable: 90"), "{yaml}");
    ensure!(yaml.contains("\n  canary: 10"), "{yaml}");
    Ok(())
}

#[tokio::test]
async fn demo_runs_the_script_of_a_checkout() -> Result<()> {
    let directory = TempDir::new()?;
    let demo = |words: &[&str]| -> Result<Run> {
        let mut heddle = Command::new(program("heddle")?);
        let heddle = heddle.arg("demo").args(words);
        Ok(heddle.current_dir(directory.path()).output()?.into())
    };
    let nowhere = demo(&[])?;
    ensure!(nowhere.code == Some(1), "{}", nowhere.complaint);
    let hint = nowhere.complaint.contains("--repository");
    ensure!(hint, "{}", nowhere.complaint);
    let scripts = directory.path().join("checkout/tests/demo");
    fs::create_dir_all(&scripts)?;
    let script = "import sys\nprint(*sys.argv[1:])\nsys.exit(7)\n";
    fs::write(scripts.join("demo.py"), script)?;
    let named = ["--repository", "checkout"];
    let keep = demo(&[&named[..], &["--keep", "--ports"]].concat())?;
    ensure!(keep.out == "--keep --ports\n", "{}", keep.out);
    ensure!(keep.code == Some(7), "{:?}", keep.code);
    let stop = demo(&[&named[..], &["--stop"]].concat())?;
    ensure!(stop.out == "--stop\n", "{}", stop.out);
    Ok(())
}

#[tokio::test]
async fn the_exit_code_says_what_went_wrong() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::shop(&directory).await?;
    let split = bench.json(&["traffic", "get", HOST, "-n", "shop"])?;
    ensure!(split["weights"] == json!({ "stable": 90, "canary": 10 }));
    // Wrong usage.
    bench.fails(2, &["token", "web", "--hours", "0"])?;
    let set = ["traffic", "set", "users", "-n", "shop"];
    let with = |more: &[&'static str]| [&set[..], more].concat();
    bench.fails(2, &with(&["stable"]))?;
    for timeout in ["0", "601"] {
        let words = [
            &with(&["stable=100", "--wait", "--timeout"])[..],
            &[timeout],
        ]
        .concat();
        bench.fails(2, &words)?;
    }
    // Refused.
    let complaint = bench.fails(1, &with(&["stable=50", "nobody=50"]))?;
    ensure!(complaint.contains("nobody"), "{complaint}");
    // Not there.
    let nobody = heddle_tests::node::free_address()?.to_string();
    let unreachable = Command::new(program("heddle")?)
        .args(["--server", &nobody, "get", "--credentials"])
        .arg(bench.plane.data().join("administrator"))
        .output()?;
    let run = Run::from(unreachable);
    ensure!(run.code == Some(3), "{:?}: {}", run.code, run.complaint);
    ensure!(
        run.complaint.contains("cannot be reached"),
        "{}",
        run.complaint
    );
    // Active everywhere, which is nowhere.
    let words = with(&["stable=80", "canary=20", "--wait"]);
    let split = bench.json(&words)?;
    ensure!(split["progress"]["sidecarsAffected"] == 0, "{split}");
    // Stored, but a sidecar does not make it active.
    let sidecar = lazy_sidecar(&bench).await?;
    let words = with(&["stable=70", "canary=30", "--wait", "--timeout", "1"]);
    let complaint = bench.fails(4, &words)?;
    ensure!(complaint.contains("shop/web/web-1"), "{complaint}");
    drop(sidecar);
    let split = bench.json(&["traffic", "get", HOST, "-n", "shop"])?;
    ensure!(split["weights"]["canary"] == 30, "{split}");
    Ok(())
}

/// The streams of a sidecar that was given the routes of [`HOST`] and never reports.
pub(crate) type Lazy = (
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
);

pub(crate) async fn lazy_sidecar(bench: &Bench<'_>) -> Result<Lazy> {
    let web = bench.web()?;
    let features = Wire {
        kind: Some(value::Kind::NumberValue(1.0)),
    };
    let subscribe = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "shop/web/web-1".to_owned(),
            user_agent_name: "heddle-proxy".to_owned(),
            metadata: Some(Struct {
                fields: HashMap::from([("heddle.features".to_owned(), features)]),
            }),
            ..Node::default()
        }),
        type_url: ResourceType::Route.type_url().to_owned(),
        resource_names_subscribe: vec![format!("{HOST}:8080")],
        ..DeltaDiscoveryRequest::default()
    };
    let (requests, queue) = mpsc::channel(4);
    requests.send(subscribe).await?;
    let mut client = AggregatedDiscoveryServiceClient::new(bench.channel(&web).await?);
    let incoming = client.delta_aggregated_resources(ReceiverStream::new(queue));
    let mut incoming = incoming.await?.into_inner();
    incoming.message().await?.context("the first routes")?;
    Ok((requests, incoming))
}

#[tokio::test]
async fn every_fault_of_a_refusal_is_printed_with_file_line_and_field() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::start(&directory, json!({})).await?;
    let wrong = |i: usize| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: s{i}, namespace: shop}}
spec:
  hosts: [s{i}.shop.svc.cluster.local]
  resolution: STATIC
  ports: [{{number: 99999, name: grpc}}]
---
"
        )
    };
    let file = bench.file("wrong.yaml", &(0..30).map(wrong).collect::<String>())?;
    let complaint = bench.fails(1, &["apply", "-f", &file])?;
    for i in 0..30 {
        let at = format!("{file}:{}:", 8 * i + 7);
        let line = complaint.lines().find(|line| line.starts_with(&at));
        let line = line.with_context(|| format!("{at} is not in {complaint}"))?;
        ensure!(line.contains("spec.ports[0].number"), "{line}");
    }
    ensure!(bench.json(&["get"])? == json!([]), "nothing was stored");
    Ok(())
}

#[tokio::test]
async fn a_closed_pipe_is_no_failure() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::shop(&directory).await?;
    let mut child = bench
        .command(&["get", "-o", "yaml"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let run = Run::from(child.wait_with_output()?);
    ensure!(run.code == Some(0), "{:?}: {}", run.code, run.complaint);
    ensure!(run.complaint.is_empty(), "{}", run.complaint);
    Ok(())
}

#[tokio::test]
async fn an_identity_is_denied_and_allowed_again() -> Result<()> {
    let directory = TempDir::new()?;
    let bench = Bench::start(&directory, json!({})).await?;
    let (token, root) = (bench.token()?, bench.root());
    let out = directory.path().join("web").display().to_string();
    let issue = issue(&token, &out, &root);
    bench.ok(&issue)?;
    let denied = bench.json(&["certs", "deny", WEB])?;
    ensure!(denied["outcome"] == "denied" && denied["identity"] == WEB);
    let complaint = bench.fails(1, &issue)?;
    ensure!(complaint.contains("is denied"), "{complaint}");
    let allowed = bench.json(&["certs", "allow", WEB])?;
    let revision = |of: &Value| of["trustBundleRevision"].as_u64();
    ensure!(revision(&allowed) > revision(&denied), "{allowed}");
    bench.ok(&issue)?;
    for (identity, why) in [
        ("web", "web"),
        (
            "spiffe://cluster.local/ns/heddle-system/sa/heddle-administrator",
            "reserved",
        ),
    ] {
        let complaint = bench.fails(1, &["certs", "deny", identity])?;
        ensure!(complaint.contains(why), "{complaint}");
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_renews_itself_when_its_token_has_ended() -> Result<()> {
    let directory = TempDir::new()?;
    let settings = json!({ "authority": { "leaf_lifetime": "6s", "leaf_lifetime_max": "6s" } });
    let bench = Bench::start(&directory, settings).await?;
    let (token, ends) = bench.short_token(Duration::from_secs(2)).await?;
    let out: PathBuf = directory.path().join("web");
    let (words, root) = (out.display().to_string(), bench.root());
    let mut issue = bench.command(&issue(&token, &words, &root))?;
    issue.arg("--renew");
    let log = directory.path().join("renew.log");
    let mut renewing = Process::start("certs issue".to_owned(), &mut issue, log)?;
    renewing.says("valid for").await?;
    let first = identity(&out)?;
    // The certificates of two lives after the token's end.
    let beyond = ends.max(first.not_after()) + Duration::from_secs(1);
    eventually(PATIENCE, "it is renewed again and again", || {
        let newest = identity(&out).map_or(SystemTime::UNIX_EPOCH, |newest| newest.not_before());
        let is_beyond = newest + Duration::from_secs(6) > beyond && clock::wall() > beyond;
        async move { is_beyond }
    })
    .await
    .with_context(|| renewing.log())?;
    let newest = identity(&out)?;
    ensure!(newest.is_valid_at(clock::wall()) && newest.id().as_str() == WEB);
    ensure!(
        renewing.log().contains("asking by the current certificate"),
        "{}",
        renewing.log()
    );
    Ok(())
}
