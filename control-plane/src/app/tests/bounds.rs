//! What one party may occupy, and what the control plane does when something of it fails.

use heddle_proto::v1::{
    RegisterRequest, ReportRequest, WorkloadState, registry_client::RegistryClient,
    status_client::StatusClient,
};
use tonic::Streaming;

use super::*;
use crate::{authn::STREAMS_PER_IDENTITY_MAX, ca::Record, store::Outcome, store::Transaction};

/// So that nothing waits for the time limit of handshakes, which is 5 s.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let running = Running::start("{}").await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        let stream = TcpStream::connect(running.control_plane.grpc).await;
        silent.push(stream.unwrap());
    }
    let begin = clock::now();
    running.identity("web").await;
    let took = clock::now() - begin;
    assert!(took < SOON, "{took:?}");
    drop(silent);
}

#[tokio::test]
async fn strangers_with_idle_connections_keep_nobody_out() {
    let running = Running::start("{}").await;
    let mut first = running.tls(None).await;
    let mut others = Vec::new();
    for _ in 0..64 {
        others.push(running.tls(None).await);
    }
    // The oldest gave way; what it still hears is HTTP/2 settings and the end.
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(SOON, first.read_to_end(&mut heard)).await;
    drop(ended.expect("closed at once, not after its idle time"));
    let begin = clock::now();
    running.identity("web").await;
    let took = clock::now() - begin;
    assert!(took < SOON, "{took:?}");
}

type Reporting = (mpsc::Sender<ReportRequest>, Streaming<v1::ReportResponse>);

async fn report(channel: &Channel) -> Result<Reporting, Status> {
    let (reports, queue) = mpsc::channel(1);
    let mut status = StatusClient::new(channel.clone());
    let answers = status.report(ReceiverStream::new(queue)).await?;
    Ok((reports, answers.into_inner()))
}

#[tokio::test]
async fn the_streams_of_an_identity_are_bounded() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let anchor = || Anchor::Roots(vec![running.root()]);
    let mut open = Vec::new();
    let mut channel = running.channel(Some(&web), anchor()).await;
    for i in 0..STREAMS_PER_IDENTITY_MAX {
        if i % 200 == 199 {
            channel = running.channel(Some(&web), anchor()).await;
        }
        open.push(report(&channel).await.unwrap());
    }
    channel = running.channel(Some(&web), anchor()).await;
    let refusal = report(&channel).await.map(drop);
    refused(refusal, Code::ResourceExhausted, "streams open");
    // Another kind, and another identity.
    let mut authority = CertificateAuthorityClient::new(channel.clone());
    let watch = authority.watch_trust_bundle(WatchTrustBundleRequest::default());
    watch.await.unwrap();
    let user = running.identity("user-service").await;
    let others = running.channel(Some(&user), anchor()).await;
    report(&others).await.unwrap();
    // What has ended is given back.
    open.pop();
    let deadline = clock::now() + Duration::from_secs(10);
    while let Err(status) = report(&channel).await {
        assert!(clock::now() < deadline, "{status:?}");
        tokio::task::yield_now().await;
    }
    let metrics = running.get("/metrics").await;
    assert!(metrics.contains("reason=\"too_many_streams\""), "{metrics}");
    let events = running.eventually_audited("heddle.v1.Status/Report", 1);
    let events = events.await;
    assert!(events.iter().all(|event| event.who == WEB), "{events:?}");
}

#[tokio::test]
async fn the_live_certificates_of_an_identity_are_bounded_also_after_a_restart() {
    let running = Running::start("authority: {issue_burst: 100000}").await;
    let store = running.control_plane.store.clone();
    let web: heddle_policy::spiffe::SpiffeId = WEB.parse().unwrap();
    let ledger = Ledger::new(Arc::clone(&store) as Arc<dyn Store>);
    let record = Record {
        id: web.clone(),
        fingerprint: crate::ca::Fingerprint::default(),
        not_after: clock::wall() + Duration::from_secs(3600),
        token_proven_at: clock::wall(),
        labels: [].into(),
        addresses: Vec::new(),
    };
    // As `record` writes them, many in one commit.
    let (_, serial) = crate::ca::Serial::random(&mut rand::make_rng::<StdRng>());
    ledger.record(&serial, &record).await.unwrap();
    let written = store
        .get(&format!("issued/{serial}"))
        .await
        .unwrap()
        .unwrap();
    for batch in 0..5 {
        let write = (0..2000).fold(Transaction::default(), |write, i| {
            write.put(format!("issued/{batch}-{i}"), written.value.clone())
        });
        let outcome = store.commit(write).await.unwrap();
        assert!(matches!(outcome, Outcome::Applied(_)));
    }
    drop((ledger, store));
    let running = running.restart().await;
    let token = running.token("web").await;
    let refusal = running.issue(None, Some(&token)).await.0;
    refused(refusal, Code::ResourceExhausted, "not expired");
    running.identity("user-service").await;
}

#[tokio::test]
async fn another_root_is_refused_and_the_old_one_still_works() {
    let running = Running::start("{}").await;
    let (root, web) = (running.root(), running.identity("web").await);
    let directory = Arc::clone(&running.directory);
    running.control_plane.stop().await;
    let authority = directory.path().join("authority");
    let aside = directory.path().join("aside");
    fs::rename(&authority, &aside).unwrap();
    let refusal = ControlPlane::start(config(directory.path(), "{}"))
        .await
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("the mesh trusts"), "{refusal}");
    let copy = CertificateDer::from_pem_file(directory.path().join("root.pem"));
    assert_eq!(
        copy.unwrap(),
        root,
        "the public copy is still of the old one"
    );
    fs::remove_dir_all(&authority).unwrap();
    fs::rename(&aside, &authority).unwrap();
    let running = Running::start_in(directory, "{}").await;
    running.issue(Some(&web), None).await.0.unwrap();
}

#[tokio::test]
async fn the_end_of_a_background_task_is_told() {
    let mut running = Running::start("{}").await;
    let failed = tokio::time::timeout(Duration::from_millis(50), running.control_plane.failed());
    assert!(failed.await.is_err(), "everything runs");
    running
        .control_plane
        .background
        .spawn("broken", async { panic!("a test's") });
    let failed = tokio::time::timeout(SOON, running.control_plane.failed()).await;
    assert_eq!(failed.unwrap(), "a background task has ended");
}

#[tokio::test]
async fn slow_clients_of_the_http_port_keep_nobody_out() {
    let running = Running::start("{}").await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(running.control_plane.http)
            .await
            .unwrap();
        // It may have given way to the next ones already.
        drop(stream.write_all(b"GET /health/live HTTP/1.1\r\n").await);
        slow.push(stream);
    }
    let begin = clock::now();
    let live = running.get("/health/live").await;
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    assert!(clock::now() - begin < SOON);
    // Those that were cut are not held for ever: the first hears its end.
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(SOON, slow[0].read_to_end(&mut heard)).await;
    drop(ended.expect("the oldest gave way"));
    let long = "x".repeat(100_000);
    let refusal = running.get(&format!("/{long}")).await;
    assert!(!refusal.starts_with("HTTP/1.1 200"), "{refusal}");
}

#[tokio::test]
async fn a_registration_does_not_take_the_endpoint_of_another_service() {
    const DB: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: data}
spec:
  hosts: [db.data.svc.cluster.local]
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
";
    let running = Running::start("{}").await;
    running.apply(DB).await;
    let cron = running.identity("cron").await;
    let register = async |request: RegisterRequest| {
        let (requests, queue) = mpsc::channel(1);
        requests.send(request).await.unwrap();
        let channel = running.as_workload(&cron).await;
        let mut registry = RegistryClient::new(channel);
        let answers = registry.register(ReceiverStream::new(queue)).await.unwrap();
        let answer = answers.into_inner().message().await;
        drop(requests);
        answer
    };
    let mut request = RegisterRequest {
        name: "cron-1".to_owned(),
        is_meshed: true,
        state: WorkloadState::Ready.into(),
        ..RegisterRequest::default()
    };
    let refusal = register(request.clone()).await;
    refused(refusal, Code::PermissionDenied, "data/db");
    assert!(
        running.refusals().await.iter().any(|event| event
            .reason
            .as_deref()
            .is_some_and(|why| why.contains("data/db"))),
        "it is audited"
    );
    request.ports = [(80, 15080)].into();
    register(request).await.unwrap().unwrap();
}
