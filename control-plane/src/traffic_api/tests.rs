//! Splits through the service, over a real store.

use parking_lot::Mutex;
use tonic::Code;

use super::*;
use crate::config_api::tests::{Fixture, by_admin, routes, rule, service};

/// Sidecars that came as far as they are told, and what they were asked.
#[derive(Debug, Default)]
struct Scripted {
    progress: Progress,
    /// Host, revision, and whether to wait.
    asked: Mutex<Vec<(String, Revision, bool)>>,
}

#[async_trait]
impl Activation for Scripted {
    async fn wait_active(&self, host: &Host, revision: Revision, until: Instant) -> Progress {
        let waits = until > clock::now();
        let asked = (host.as_str().to_owned(), revision, waits);
        self.asked.lock().push(asked);
        self.progress.clone()
    }
}

struct Subject {
    fixture: Fixture,
    service: TrafficService,
    sidecars: Arc<Scripted>,
}

impl Subject {
    async fn new(text: &str, progress: Progress) -> Self {
        let fixture = Fixture::new();
        fixture.apply(text).await.unwrap();
        let sidecars = Arc::new(Scripted {
            progress,
            ..Scripted::default()
        });
        let service = TrafficService::new(fixture.desired.clone(), sidecars.clone());
        Self {
            fixture,
            service,
            sidecars,
        }
    }

    async fn set(&self, request: v1::SetSplitRequest) -> Result<v1::SetSplitResponse, Status> {
        let response = self.service.set_split(by_admin(request)).await?;
        Ok(response.into_inner())
    }

    async fn get(&self) -> Result<v1::Split, Status> {
        let request = v1::GetSplitRequest {
            service: "web".to_owned(),
            ..v1::GetSplitRequest::default()
        };
        Ok(self
            .service
            .get_split(by_admin(request))
            .await?
            .into_inner())
    }
}

fn split(weights: &[(&str, u32)]) -> v1::SetSplitRequest {
    v1::SetSplitRequest {
        service: "web".to_owned(),
        weights: weights
            .iter()
            .map(|(subset, percent)| weight(subset, *percent))
            .collect(),
        ..v1::SetSplitRequest::default()
    }
}

fn all(name: &str) -> String {
    service(name) + &rule(name) + &routes(name)
}

#[tokio::test]
async fn a_split_edits_the_weights_and_nothing_else() {
    let subject = Subject::new(&all("web"), Progress::default()).await;
    let before = subject.get().await.unwrap();
    assert_eq!(before.weights, [weight("v1", 90), weight("v2", 10)]);
    assert_eq!(
        (before.route.as_str(), before.virtual_service.as_str()),
        ("main", "web")
    );
    let response = subject.set(split(&[("v2", 100), ("v1", 0)])).await.unwrap();
    let after = subject.get().await.unwrap();
    assert_eq!(after.weights, [weight("v1", 0), weight("v2", 100)]);
    assert!(after.revision > before.revision);
    assert_eq!(response.split.unwrap().revision, after.revision);
    let catalog = subject.fixture.desired.catalog().await.unwrap();
    let (_, routes) = catalog.routes("web.default.svc.cluster.local").unwrap();
    assert_eq!(routes.http.len(), 1);
    let asked = subject.sidecars.asked.lock().clone();
    assert!(asked.iter().all(|(_, _, waits)| !waits), "{asked:?}");
}

#[tokio::test]
async fn without_a_virtual_service_one_is_made() {
    let subject = Subject::new(&(service("web") + &rule("web")), Progress::default()).await;
    assert_eq!(subject.get().await.unwrap_err().code(), Code::NotFound);
    subject.set(split(&[("v1", 95), ("v2", 5)])).await.unwrap();
    let made = subject.get().await.unwrap();
    assert_eq!(
        (made.virtual_service.as_str(), made.namespace.as_str()),
        ("web", "default")
    );
    assert_eq!(made.weights, [weight("v1", 95), weight("v2", 5)]);
}

#[tokio::test]
async fn splits_that_cannot_be_are_refused() {
    let subject = Subject::new(&all("web"), Progress::default()).await;
    let late = v1::SetSplitRequest {
        expected_revision: 999,
        ..split(&[("v1", 50), ("v2", 50)])
    };
    for (request, code, why) in [
        (
            split(&[("v1", 50), ("v2", 51)]),
            Code::InvalidArgument,
            "weights sum to 101, not to 100",
        ),
        (
            split(&[]),
            Code::InvalidArgument,
            "weights sum to 0, not to 100",
        ),
        (
            split(&[("v1", 50), ("v1", 50)]),
            Code::InvalidArgument,
            "subset `v1` has two weights: 50 and 50",
        ),
        (
            split(&[("v1", 50), ("v3", 50)]),
            Code::InvalidArgument,
            "`web.default.svc.cluster.local` has no subset `v3`; DestinationRule default/web has v1, v2",
        ),
        (
            split(&[("v1", 100)]),
            Code::FailedPrecondition,
            "no http route of VirtualService default/web has exactly the subsets v1",
        ),
        (
            late,
            Code::Aborted,
            "VirtualService default/web is at revision 1, not at the expected one; read it again",
        ),
    ] {
        let status = subject.set(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, why));
    }
}

#[tokio::test]
async fn of_several_routes_one_must_be_named() {
    let second = "  - name: second\n    match: [{uri: {prefix: /b}}]\n    route:\n    - destination: {host: web, subset: v1}\n      weight: 50\n    - destination: {host: web, subset: v2}\n      weight: 50\n";
    let subject = Subject::new(&(all("web") + second), Progress::default()).await;
    let status = subject
        .set(split(&[("v1", 1), ("v2", 99)]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let why = "VirtualService default/web has several such routes: main, second; name one of them";
    assert_eq!(status.message(), why);
    assert_eq!(subject.get().await.unwrap_err().message(), why);
    let named = v1::SetSplitRequest {
        route: "second".to_owned(),
        ..split(&[("v1", 1), ("v2", 99)])
    };
    subject.set(named).await.unwrap();
    let catalog = subject.fixture.desired.catalog().await.unwrap();
    let (_, routes) = catalog.routes("web.default.svc.cluster.local").unwrap();
    let weights: Vec<_> = routes
        .http
        .iter()
        .map(|route| route.route[0].weight)
        .collect();
    assert_eq!(weights, [90, 1]);
}

#[tokio::test]
async fn waiting_tells_who_is_behind() {
    let progress = Progress {
        is_served: true,
        affected: 3,
        active: 2,
        behind: vec!["shop/web/web-1".to_owned()],
    };
    let subject = Subject::new(&all("web"), progress).await;
    let request = v1::SetSplitRequest {
        wait_ms: 5000,
        ..split(&[("v1", 50), ("v2", 50)])
    };
    let status = subject.set(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let revision = subject.get().await.unwrap().revision;
    assert_eq!(
        status.message(),
        format!(
            "the split is stored at revision {revision} and active in 2 of 3 sidecars; behind: shop/web/web-1"
        )
    );
    let asked = subject.sidecars.asked.lock().clone();
    let host = "web.default.svc.cluster.local".to_owned();
    assert_eq!(asked, [(host, Revision(revision), true)]);
}

#[tokio::test]
async fn a_split_that_is_not_served_is_active_nowhere() {
    let subject = Subject::new(&all("web"), Progress::default()).await;
    let request = v1::SetSplitRequest {
        wait_ms: 5000,
        ..split(&[("v1", 50), ("v2", 50)])
    };
    let status = subject.set(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("not served yet"), "{status:?}");
}
