//! What is listed comes a page at a time, and what is kept is bounded.

use prost::Message;

use super::*;

#[tokio::test]
async fn lists_come_in_pages() {
    let fixture = Fixture::new();
    let text: String = (0..5)
        .map(|number| service(&format!("s{number}")))
        .collect();
    fixture.apply(&(text + &rule("s0"))).await.unwrap();
    fixture.delete("ServiceEntry", "s3").await.unwrap();
    let mut token = String::new();
    let mut pages = Vec::new();
    loop {
        let request = v1::ListRequest {
            kind: "ServiceEntry".to_owned(),
            namespace: "default".to_owned(),
            page_size: 2,
            page_token: token,
        };
        let page = fixture
            .service
            .list(by_admin(request))
            .await
            .unwrap()
            .into_inner();
        let names = page
            .resources
            .into_iter()
            .map(|one| one.r#ref.unwrap().name);
        pages.push(names.collect::<Vec<_>>());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [vec!["s0", "s1"], vec!["s2", "s4"]]);
}

#[tokio::test]
async fn a_history_comes_in_pages_newest_first() {
    let fixture = Fixture::new();
    let filler = "x".repeat(700_000);
    let mut revisions = Vec::new();
    for number in 80..83 {
        let large = format!("metadata: {{name: web, annotations: {{a: {filler}}}}}");
        let text = service("web").replace("metadata: {name: web}", &large);
        let text = text.replace("number: 80", &format!("number: {number}"));
        revisions.push(fixture.apply(&text).await.unwrap().revision);
    }
    revisions.push(fixture.delete("ServiceEntry", "web").await.unwrap());
    let ask = async |limit, page_token: &str| {
        let request = v1::HistoryRequest {
            r#ref: Some(named("ServiceEntry", "web")),
            limit,
            page_token: page_token.to_owned(),
        };
        let page = fixture.service.history(by_admin(request)).await;
        page.map(Response::into_inner)
    };
    for (limit, counts) in [(0, [2, 1, 1].as_slice()), (1, &[1, 1, 1, 1])] {
        let (mut found, mut told) = (Vec::new(), Vec::new());
        let mut token = String::new();
        loop {
            let page = ask(limit, &token).await.unwrap();
            told.push(page.changes.len());
            let changes = page.changes.into_iter();
            found.extend(changes.map(|change| change.resource.unwrap().revision));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(told, counts);
        assert!(found.iter().rev().eq(&revisions), "{found:?}");
    }
    let refusal = ask(0, "x").await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal:?}");
}

#[tokio::test]
async fn the_audit_comes_in_pages_newest_first() {
    let fixture = Fixture::new();
    let store = fixture.desired.store();
    // As large as changes of the largest resources; the older one of another subject.
    let large = "x".repeat(900_000);
    let event = |at_ms, subject: &str| audit::Event {
        at_ms,
        before: Some(large.clone()),
        ..audit::Event::now("administrator", audit::Action::Deleted, subject)
    };
    let written = [
        (1, "Workload"),
        (2, "ServiceEntry"),
        (3, "ServiceEntry"),
        (4, "ServiceEntry"),
    ];
    for (at_ms, subject) in written {
        let write = Audit::write(Transaction::default(), &event(at_ms, subject));
        store.commit(write).await.unwrap();
    }
    let pages = async |subject: &str, limit| {
        let mut pages = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::AuditRequest {
                limit,
                subject: subject.to_owned(),
                page_token,
            };
            let page = fixture.service.audit(by_admin(request)).await.unwrap();
            let page = page.into_inner();
            assert!(page.encoded_len() < 2 << 20, "{}", page.encoded_len());
            let times: Vec<_> = page.events.iter().map(|event| event.at_ms).collect();
            pages.push(times);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return pages;
            }
        }
    };
    assert_eq!(pages("", 0).await, [[4], [3], [2], [1]]);
    assert_eq!(pages("Service", 1).await, [[4], [3], [2]]);
    assert_eq!(pages("Nothing", 0).await, [[0_i64; 0]]);
    let request = v1::AuditRequest {
        page_token: "3".to_owned(),
        ..v1::AuditRequest::default()
    };
    let refusal = fixture.service.audit(by_admin(request)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal:?}");
}

#[tokio::test]
async fn the_audit_is_bounded() {
    let fixture = Fixture::new();
    let store: &Arc<dyn Store> = fixture.desired.store();
    let event = |why| audit::Event::refused("spiffe://x/ns/a/sa/b", "Workload a/b", why);
    let old = event("not yours");
    for _ in 0..3 {
        let fill = (0..2000).fold(Transaction::default(), |fill, _| Audit::write(fill, &old));
        store.commit(fill).await.unwrap();
    }
    let audit = Audit::new(store.clone());
    let newest = event("still not yours");
    audit.record(&newest).await.unwrap();
    assert_eq!(
        store.list("audit/").await.unwrap().entries.len(),
        audit::EVENTS_MAX
    );
    let mut events = audit.newest("", "").await.unwrap();
    assert_eq!(events.next().unwrap().1, newest);
}
