//! Registrations as an administrator lists them.

use super::*;
use crate::{
    registry::WORKLOADS,
    store::{Outcome, Transaction},
};

#[tokio::test]
async fn workloads_are_listed_a_page_at_a_time() {
    let running = Running::shop("{}").await;
    let user = running.user().await;
    let mut registering = running.register(&user, workload("user-1")).await;
    registering.registered().await;
    // As registrations are written, many in one commit.
    let store = &running.control_plane.store;
    let key = |name: &str| format!("{WORKLOADS}shop/{name}");
    let written = store.get(&key("user-1")).await.unwrap().unwrap().value;
    let write = (1000..2000).fold(Transaction::default(), |write, i| {
        write.put(key(&format!("more-{i}")), written.clone())
    });
    let outcome = store.commit(write).await.unwrap();
    assert!(matches!(outcome, Outcome::Applied(_)));
    let mut registry = RegistryClient::new(running.as_administrator().await);
    let mut request = ListWorkloadsRequest::default();
    let (mut counts, mut names) = (Vec::new(), Vec::new());
    loop {
        let page = registry.list(request.clone()).await.unwrap().into_inner();
        counts.push(page.workloads.len());
        names.extend(page.workloads.into_iter().map(|workload| workload.name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(counts, [500, 500, 1]);
    assert!(names.is_sorted() && names[1000] == "user-1", "{names:?}");
    request.page_token = key("more-1001");
    request.namespace = "other".to_owned();
    let refusal = registry.list(request).await;
    refused(refusal, Code::InvalidArgument, "page token");
}
