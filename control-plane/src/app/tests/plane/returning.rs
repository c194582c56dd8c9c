//! `--wait` and sidecars that exist and are not connected: a change is not active where nobody
//! has heard of it.

use super::*;

const WEB_NODE: &str = "shop/web/web-1";

/// A report stream, for as long as it is held.
struct Reporting {
    _requests: mpsc::Sender<ReportRequest>,
    _answers: Streaming<v1::ReportResponse>,
}

impl Running {
    /// Sets 50 : 50 and waits; how many sidecars are affected, and how many active.
    async fn split(&self, wait: Duration) -> Result<(u32, u32), Status> {
        let weight = |subset: &str| Weight {
            subset: subset.to_owned(),
            percent: 50,
        };
        let request = SetSplitRequest {
            service: "user-service".to_owned(),
            namespace: "shop".to_owned(),
            weights: vec![weight("stable"), weight("canary")],
            wait_ms: u64::try_from(wait.as_millis()).unwrap(),
            ..SetSplitRequest::default()
        };
        let mut traffic = TrafficClient::new(self.as_administrator().await);
        let set = within(traffic.set_split(request)).await?.into_inner();
        Ok((set.sidecars_affected, set.sidecars_active))
    }

    async fn reports(&self, report: ReportRequest) -> Reporting {
        let web = self.identity("web").await;
        let (requests, queue) = mpsc::channel(4);
        requests.send(report).await.unwrap();
        let mut status = StatusClient::new(self.as_workload(&web).await);
        let answers = status.report(ReceiverStream::new(queue)).await.unwrap();
        let mut answers = answers.into_inner();
        within(answers.message()).await.unwrap().unwrap();
        Reporting {
            _requests: requests,
            _answers: answers,
        }
    }
}

/// Long enough for what is about to come, far too short for a time to run out by itself.
const SOON: Duration = Duration::from_secs(10);
const BRIEFLY: Duration = Duration::from_millis(200);

#[tokio::test]
async fn after_a_restart_sidecars_from_before_are_waited_for() {
    let running = Running::shop("{}").await;
    let mut sidecar = running.sidecar().await;
    let reporting = running.reports(sidecar.report()).await;
    let running = running.restart().await;
    drop((sidecar, reporting));
    let away = format!("0 of 1 sidecars; behind: {WEB_NODE} (not connected)");
    refused(running.split(BRIEFLY).await, Code::DeadlineExceeded, &away);
    // Its stream is back. What it has made active is what it reports.
    sidecar = running.sidecar().await;
    let behind = format!("0 of 1 sidecars; behind: {WEB_NODE}");
    let refusal = running.split(BRIEFLY).await;
    let status = refused(refusal, Code::DeadlineExceeded, &behind);
    assert!(!status.message().contains("not connected"), "{status:?}");
    let waiting = running.split(SOON);
    let reporting = running.reports(sidecar.report());
    let (split, _reporting) = Box::pin(async { tokio::join!(waiting, reporting) }).await;
    assert_eq!(split.unwrap(), (1, 1));
    // Without a wait it is counted and not waited for.
    assert_eq!(running.split(Duration::ZERO).await.unwrap(), (1, 1));
}

#[tokio::test]
async fn after_a_crash_as_well() {
    let running = Running::shop("{}").await;
    let sidecar = running.sidecar().await;
    let Running {
        directory,
        yaml,
        control_plane,
    } = running;
    // Dropped, it stops at once: nothing is written any more, streams end with their sockets.
    drop(control_plane);
    drop(sidecar);
    let deadline = clock::now() + Duration::from_secs(20);
    let again = loop {
        match ControlPlane::start(config(directory.path(), &yaml)).await {
            Ok(control_plane) => break control_plane,
            Err(error) => assert!(clock::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let running = Running {
        directory,
        yaml,
        control_plane: again,
    };
    let refusal = running.split(BRIEFLY).await;
    refused(refusal, Code::DeadlineExceeded, "(not connected)");
}

#[tokio::test]
async fn one_whose_connection_broke_is_waited_for() {
    let running = Running::shop("{}").await;
    let sidecar = running.sidecar().await;
    let reporting = running.reports(sidecar.report()).await;
    drop((sidecar, reporting));
    let mut status = StatusClient::new(running.as_administrator().await);
    let deadline = clock::now() + Duration::from_secs(20);
    loop {
        let listed = status.list_proxies(ListProxiesRequest::default()).await;
        if listed.unwrap().into_inner().proxies.is_empty() {
            break;
        }
        assert!(clock::now() < deadline, "the stream never ended");
    }
    let refusal = running.split(BRIEFLY).await;
    refused(refusal, Code::DeadlineExceeded, "(not connected)");
    let sidecar = running.sidecar().await;
    let _reporting = running.reports(sidecar.report()).await;
    assert_eq!(running.split(SOON).await.unwrap(), (1, 1));
}

#[tokio::test]
async fn a_sidecar_that_drains_is_not_waited_for() {
    let running = Running::shop("{}").await;
    let sidecar = running.sidecar().await;
    let reporting = running.reports(sidecar.report()).await;
    let web = running.identity("web").await;
    let draining = RegisterRequest {
        address: String::new(),
        state: WorkloadState::Draining.into(),
        ..workload("web-1")
    };
    let mut registering = running.register(&web, draining).await;
    registering.registered().await;
    drop((registering, sidecar, reporting));
    // It would be awaited for 15 s.
    assert_eq!(running.split(SOON).await.unwrap(), (0, 0));
    let running = running.restart().await;
    assert_eq!(running.split(SOON).await.unwrap(), (0, 0));
}

#[tokio::test]
async fn a_registration_is_waited_for_in_its_grace_and_no_longer() {
    let running = Running::shop("registry: {grace: 2s}").await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    // While its stream is there it is a registration like any other.
    assert_eq!(running.split(SOON).await.unwrap(), (0, 0));
    drop(registering);
    let named = "shop/user-service/user-1 (not connected)";
    let deadline = clock::now() + Duration::from_secs(20);
    // Until the end of its stream is noticed.
    while let Ok(split) = running.split(Duration::ZERO).await
        && split == (0, 0)
    {
        assert!(clock::now() < deadline, "never awaited");
    }
    let refusal = running.split(BRIEFLY).await;
    refused(refusal, Code::DeadlineExceeded, named);
    assert_eq!(running.split(SOON).await.unwrap(), (0, 0));
}

#[tokio::test]
async fn after_a_restart_registrations_are_waited_for() {
    let running = Running::shop("registry: {grace: 60s}").await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    let running = running.restart().await;
    let named = "0 of 1 sidecars; behind: shop/user-service/user-1 (not connected)";
    refused(running.split(BRIEFLY).await, Code::DeadlineExceeded, named);
    let waiting = running.split(SOON);
    let returning = async {
        let mut registering = running.register(&user, workload("user-1")).await;
        registering.registered().await;
        registering
    };
    let (split, _registering) = Box::pin(async { tokio::join!(waiting, returning) }).await;
    assert_eq!(split.unwrap(), (0, 0));
}
