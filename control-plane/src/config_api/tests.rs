//! The service over a real store: what is refused, what is stored, what is told afterwards.

mod paged;
mod warned;

use std::collections::BTreeMap;

use heddle_shell::{publish::Published, tls::TrustBundle};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::Code;

use super::*;
use crate::{
    audit::{self, Audit},
    authn::Caller,
    model::{Catalog, check::Finding},
    store::{
        Store, Transaction,
        redb::{RedbStore, Retention},
    },
};

/// A service of its own, and what keeps its file.
pub(crate) struct Fixture {
    pub(crate) desired: Arc<Desired>,
    service: ConfigService,
    _directory: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::judged_by(Arc::new(|_| Vec::new()))
    }

    fn judged_by(validate: Validate) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("store.redb");
        let store = Arc::new(RedbStore::open(&path, Retention::default()).unwrap());
        let desired = Arc::new(Desired::new(store, validate));
        Self {
            service: ConfigService::new(desired.clone()),
            desired,
            _directory: directory,
        }
    }

    pub(crate) async fn apply(&self, text: &str) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            documents: vec![v1::Document {
                file: "f.yaml".to_owned(),
                text: text.to_owned(),
            }],
            ..v1::ApplyRequest::default()
        };
        Ok(self.service.apply(by_admin(request)).await?.into_inner())
    }

    async fn delete(&self, kind: &str, name: &str) -> Result<u64, Status> {
        let request = v1::DeleteRequest {
            r#ref: Some(named(kind, name)),
            expected_revision: 0,
        };
        let response = self.service.delete(by_admin(request)).await?;
        Ok(response.into_inner().revision)
    }
}

pub(crate) fn by_admin<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bundle = Published::new(TrustBundle::default());
    let peer = "127.0.0.1:1".parse().unwrap();
    let session = Session::new(Caller::Administrator, peer, bundle);
    request.extensions_mut().insert(session);
    request
}

fn named(kind: &str, name: &str) -> v1::ResourceRef {
    v1::ResourceRef {
        kind: kind.to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
    }
}

pub(crate) fn service(name: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{name}]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints: [{{address: 10.0.0.1}}]\n"
    )
}

pub(crate) fn rule(name: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec:\n  host: {name}\n  subsets: [{{name: v1}}, {{name: v2}}]\n"
    )
}

pub(crate) fn routes(name: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{name}]\n  http:\n  - name: main\n    route:\n    - destination: {{host: {name}, subset: v1}}\n      weight: 90\n    - destination: {{host: {name}, subset: v2}}\n      weight: 10\n"
    )
}

#[tokio::test]
async fn the_order_of_documents_does_not_matter() {
    for text in [
        routes("web") + &rule("web") + &service("web"),
        service("web") + &rule("web") + &routes("web"),
    ] {
        let fixture = Fixture::new();
        let applied = fixture.apply(&text).await.unwrap().applied;
        assert_eq!(applied.len(), 3);
        assert!(
            applied
                .iter()
                .all(|one| one.outcome() == v1::applied::Outcome::Created)
        );
        assert!(
            applied.iter().all(|one| one.warnings.is_empty()),
            "{applied:?}"
        );
        let again = fixture.apply(&text).await.unwrap();
        let unchanged = v1::applied::Outcome::Unchanged;
        assert!(again.applied.iter().all(|one| one.outcome() == unchanged));
        assert!(
            again
                .applied
                .iter()
                .all(|one| one.revision == again.revision)
        );
    }
}

#[tokio::test]
async fn faults_ride_in_the_details_and_nothing_is_applied() {
    let fixture = Fixture::new();
    let text = service("web") + &routes("web").replace("weight: 10", "weight: 11");
    let status = fixture.apply(&text).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let why = "spec.http[0].route: weights sum to 101, not to 100";
    assert_eq!(status.message(), format!("f.yaml:19:7: {why}"));
    let faults = faults_of(&status).unwrap().faults;
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].line, faults[0].column), (19, 7));
    assert_eq!(
        (faults[0].file.as_str(), faults[0].path.as_str()),
        ("f.yaml", "spec.http[0].route")
    );
    assert_eq!(
        fixture.desired.store().revision().await.unwrap(),
        Revision(0)
    );
}

#[tokio::test]
async fn very_many_faults_still_fit_the_headers_of_an_answer() {
    let fixture = Fixture::new();
    let unknown: String = (0..300)
        .map(|i| format!("  ünknown-`field`-{i}: 1\n"))
        .collect();
    let status = fixture
        .apply(&(service("web") + &unknown))
        .await
        .unwrap_err();
    let faults = faults_of(&status).unwrap().faults;
    let last = faults.last().unwrap();
    // The decoder stops at a hundred.
    assert_eq!(
        last.message,
        format!("and {} more faults", 101 - faults.len())
    );
    let mut headers = http::HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32)
        .sum();
    assert!((8 * 1024..15 * 1024).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn resources_that_do_not_fit_together_are_refused() {
    let fixture = Fixture::new();
    fixture
        .apply(&(service("web") + &rule("web")))
        .await
        .unwrap();
    let web = "web.default.svc.cluster.local";
    for (text, fault) in [
        (
            routes("web").replace("v2", "v3"),
            "f.yaml:12:40: spec.http[0].route[1].destination.subset: DestinationRule default/web has no subset `v3`".to_owned(),
        ),
        (
            routes("web").replace("host: web, subset: v2", "host: api"),
            "f.yaml:12:27: spec.http[0].route[1].destination.host: no ServiceEntry has the host `api.default.svc.cluster.local`".to_owned(),
        ),
        (
            service("web").replace("name: web", "name: zweb"),
            format!("f.yaml:6:11: spec.hosts[0]: `{web}` already belongs to ServiceEntry default/web"),
        ),
        (
            service("a").replace("  ports", "  addresses: [10.9.0.1]\n  ports")
                + &service("b").replace("  ports", "  addresses: [10.9.0.1]\n  ports"),
            "f.yaml:18:15: spec.addresses[0]: port 80 of 10.9.0.1 already belongs to ServiceEntry default/a".to_owned(),
        ),
        (
            rule("web").replace(", {name: v2}", "") + &routes("web"),
            "f.yaml:19:40: spec.http[0].route[1].destination.subset: DestinationRule default/web has no subset `v2`".to_owned(),
        ),
        (
            service("api") + &service("api"),
            "f.yaml:13:18: metadata.name: ServiceEntry default/api is in this request twice".to_owned(),
        ),
    ] {
        let status = fixture.apply(&text).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), fault);
    }
}

#[tokio::test]
async fn what_is_in_use_is_not_deleted() {
    let fixture = Fixture::new();
    fixture
        .apply(&(service("web") + &rule("web") + &routes("web")))
        .await
        .unwrap();
    let status = fixture.delete("DestinationRule", "web").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let first = "spec.http[0].route[0].destination.subset: no DestinationRule of `web.default.svc.cluster.local` defines the subset `v1`, of stored VirtualService default/web";
    assert_eq!(status.message().lines().next(), Some(first));
    assert_eq!(faults_of(&status).unwrap().faults.len(), 2);
    for kind in ["VirtualService", "DestinationRule", "ServiceEntry"] {
        fixture.delete(kind, "web").await.unwrap();
        let again = fixture.delete(kind, "web").await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
    }
}

#[tokio::test]
async fn the_compiler_has_the_last_word() {
    let fixture = Fixture::judged_by(Arc::new(|catalog| {
        let refuse = |id: &ResourceId| Finding {
            id: id.clone(),
            path: "spec.ports[0]".to_owned(),
            message: "cannot be sent".to_owned(),
        };
        catalog.iter().map(|(id, _)| refuse(id)).collect()
    }));
    let status = fixture.apply(&service("web")).await.unwrap_err();
    assert_eq!(
        status.message(),
        "f.yaml:8:11: spec.ports[0]: cannot be sent"
    );
    assert_eq!(fixture.desired.catalog().await.unwrap().iter().count(), 0);
}

#[tokio::test]
async fn history_and_watch_tell_who_and_when_also_of_deletions() {
    let fixture = Fixture::new();
    let created = fixture.apply(&service("web")).await.unwrap().revision;
    let watch = |from_revision| v1::WatchRequest {
        kind: "ServiceEntry".to_owned(),
        from_revision,
    };
    let changed = service("web").replace("number: 80", "number: 81");
    let updated = fixture.apply(&changed).await.unwrap().revision;
    let deleted = fixture.delete("ServiceEntry", "web").await.unwrap();
    let request = v1::HistoryRequest {
        r#ref: Some(named("ServiceEntry", "web")),
        ..v1::HistoryRequest::default()
    };
    let history = fixture
        .service
        .history(by_admin(request))
        .await
        .unwrap()
        .into_inner()
        .changes;
    let summary: Vec<_> = history
        .iter()
        .map(|change| {
            (
                change.resource.as_ref().unwrap().revision,
                change.is_deletion,
            )
        })
        .collect();
    assert_eq!(
        summary,
        [(deleted, true), (updated, false), (created, false)]
    );
    for change in &history {
        let resource = change.resource.as_ref().unwrap();
        assert_eq!(resource.written_by, "administrator");
        assert!(resource.written_at_ms > 0);
        assert_eq!(resource.json.is_empty(), change.is_deletion);
    }
    let mut stream = fixture
        .service
        .watch(by_admin(watch(created)))
        .await
        .unwrap()
        .into_inner();
    let mut watched = Vec::new();
    while watched.len() < 2 {
        watched.push(stream.next().await.unwrap().unwrap());
    }
    watched.reverse();
    assert_eq!(watched, history[..2]);

    let audit = Audit::new(fixture.desired.store().clone());
    let events = audit.newest("", "").await.unwrap();
    let events: Vec<_> = events.map(|(_, event)| event).collect();
    let mut actions: Vec<_> = events.iter().map(|event| event.action).collect();
    actions.sort_by_key(|action| *action as u8);
    assert_eq!(
        actions,
        [
            audit::Action::Created,
            audit::Action::Updated,
            audit::Action::Deleted
        ]
    );
    assert!(
        events
            .iter()
            .all(|event| event.subject == "ServiceEntry default/web")
    );
}

#[tokio::test]
async fn expectations_guard_against_concurrent_edits() {
    let fixture = Fixture::new();
    let request = |revision| v1::ApplyRequest {
        documents: vec![v1::Document {
            file: String::new(),
            text: service("web"),
        }],
        expectations: vec![v1::Expectation {
            r#ref: Some(named("ServiceEntry", "web")),
            revision,
        }],
        ..v1::ApplyRequest::default()
    };
    let status = fixture
        .service
        .apply(by_admin(request(7)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let created = fixture
        .service
        .apply(by_admin(request(0)))
        .await
        .unwrap()
        .into_inner();
    let status = fixture
        .service
        .apply(by_admin(request(0)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    fixture
        .service
        .apply(by_admin(request(created.revision)))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rival_changes_all_arrive_and_are_judged_together() {
    let fixture = Fixture::new();
    let texts: Vec<_> = (0..8)
        .map(|number| service(&format!("s{number}")))
        .collect();
    let applied =
        futures_util::future::join_all(texts.iter().map(|text| fixture.apply(text))).await;
    assert!(applied.iter().all(Result::is_ok), "{applied:?}");
    // Of rivals for one host exactly one wins.
    let rivals =
        ["x", "y", "z"].map(|name| service("one").replace("name: one", &format!("name: {name}")));
    let applied =
        futures_util::future::join_all(rivals.iter().map(|text| fixture.apply(text))).await;
    assert_eq!(applied.iter().filter(|one| one.is_ok()).count(), 1);
    let catalog = fixture.desired.catalog().await.unwrap();
    assert_eq!(catalog.iter().count(), 9);
    let numbers: std::collections::HashSet<_> =
        catalog.allotments().map(|(_, number)| number).collect();
    assert_eq!(numbers.len(), 9);
}

#[tokio::test]
async fn addresses_are_kept_and_given_back() {
    let fixture = Fixture::new();
    let host = "web.default.svc.cluster.local";
    fixture.apply(&service("web")).await.unwrap();
    let first = fixture
        .desired
        .catalog()
        .await
        .unwrap()
        .addresses_of(host)
        .to_vec();
    assert_eq!(first.len(), 2);
    fixture
        .apply(&service("web").replace("number: 80", "number: 81"))
        .await
        .unwrap();
    let catalog = fixture.desired.catalog().await.unwrap();
    assert_eq!(catalog.addresses_of(host), first);
    let own = service("web").replace("  ports", "  addresses: [10.9.0.1]\n  ports");
    fixture.apply(&own).await.unwrap();
    let catalog = fixture.desired.catalog().await.unwrap();
    assert_eq!(
        catalog.addresses_of(host),
        ["10.9.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(catalog.allotments().count(), 0);
    fixture.apply(&service("web")).await.unwrap();
    fixture.delete("ServiceEntry", "web").await.unwrap();
    let store = fixture.desired.store();
    assert_eq!(store.list("addresses/").await.unwrap().entries, []);
    assert_eq!(store.list("address-numbers/").await.unwrap().entries, []);
}

#[tokio::test]
async fn a_catalog_that_follows_a_watch_is_the_one_that_is_read() {
    let fixture = Fixture::new();
    let store = fixture.desired.store().clone();
    let mut followed = Catalog::load(store.as_ref(), &Catalog::default())
        .await
        .unwrap();
    let mut watch = store.watch("", followed.revision).await.unwrap();
    fixture
        .apply(&(service("web") + &rule("web") + &routes("web")))
        .await
        .unwrap();
    fixture.delete("VirtualService", "web").await.unwrap();
    let last = fixture.apply(&service("api")).await.unwrap().revision;
    while followed.revision < Revision(last) {
        followed.update(&watch.next().await.unwrap().unwrap());
    }
    let read = fixture.desired.catalog().await.unwrap();
    let ids = |catalog: &Catalog| {
        catalog
            .iter()
            .map(|(id, one)| (id.clone(), one.revision))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&followed), ids(&read));
    for name in ["web", "api"] {
        let host = format!("{name}.default.svc.cluster.local");
        assert_eq!(followed.addresses_of(&host), read.addresses_of(&host));
    }
    assert!(followed.routes("web.default.svc.cluster.local").is_none());
}

/// Stores what no version of ours would have written.
async fn damage(fixture: &Fixture, kind: &str, name: &str, value: &str) {
    let key = format!("config/{kind}/default/{name}");
    let write = Transaction::default().put(key, value.to_owned());
    fixture.desired.store().commit(write).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_can_be_deleted_and_stops_nothing_else() {
    let fixture = Fixture::new();
    fixture
        .apply(&(service("web") + &rule("web") + &routes("web")))
        .await
        .unwrap();
    let of_other_rules = r#"{"writtenAtMs":1,"writtenBy":"x","json":"{\"spec\":7}"}"#;
    damage(&fixture, "ServiceEntry", "web", of_other_rules).await;
    damage(&fixture, "PeerAuthentication", "torn", r#"{"wri"#).await;

    fixture.apply(&service("api")).await.unwrap();
    let list = v1::ListRequest::default();
    let listed = fixture.service.list(by_admin(list)).await.unwrap();
    let stored: BTreeMap<String, String> = listed
        .into_inner()
        .resources
        .into_iter()
        .map(|one| {
            let id = one.r#ref.unwrap();
            (format!("{}/{}", id.kind, id.name), one.json)
        })
        .collect();
    assert_eq!(stored.len(), 5, "{stored:?}");
    assert_eq!(stored["ServiceEntry/web"], r#"{"spec":7}"#);
    assert_eq!(stored["PeerAuthentication/torn"], r#"{"wri"#);

    fixture.delete("PeerAuthentication", "torn").await.unwrap();
    let again = fixture.delete("PeerAuthentication", "torn").await;
    assert_eq!(again.unwrap_err().code(), Code::NotFound);
    // Replaced as if it were another text of the same resource; its address stays its own.
    let address = |catalog: &Catalog| {
        let host = "web.default.svc.cluster.local";
        let mut all = catalog.allotments();
        all.find_map(|(known, number)| (known.as_str() == host).then_some(number))
    };
    let before = address(&fixture.desired.catalog().await.unwrap());
    assert!(before.is_some());
    let applied = fixture.apply(&service("web")).await.unwrap().applied;
    assert_eq!(applied[0].outcome(), v1::applied::Outcome::Updated);
    let after = fixture.desired.catalog().await.unwrap();
    assert_eq!(address(&after), before);
    assert_eq!(after.unread().count(), 0);
}

#[tokio::test]
async fn what_would_not_come_back_from_the_store_is_refused() {
    let fixture = Fixture::new();
    let mut faults = Vec::new();
    let text = service("web");
    let mut document = document::parse("f.yaml", &text, "default", &mut faults).remove(0);
    // No text of a user's says this, so no text can bring it back.
    document.resource.id.name = "Not A Name".to_owned();
    let change = |document| Change {
        who: "x".to_owned(),
        documents: vec![document],
        deletions: Vec::new(),
        expectations: Vec::new(),
        dry_run: false,
    };
    let refusal = fixture.desired.change(&change(document)).await.unwrap_err();
    let status = Status::from(refusal);
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        "f.yaml:4:18: metadata.name: cannot be stored: `Not A Name` is not a DNS name in lower case"
    );

    let mut document = document::parse("f.yaml", &text, "default", &mut faults).remove(0);
    let large = "v".repeat(1_000_000);
    document.resource.annotations.insert("k".to_owned(), large);
    let refusal = fixture.desired.change(&change(document)).await.unwrap_err();
    let status = Status::from(refusal);
    assert!(
        status
            .message()
            .starts_with("f.yaml:2:1: cannot be stored: with 1000"),
        "{}",
        status.message()
    );
}
