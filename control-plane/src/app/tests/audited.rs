//! What the certificate authority and the gate leave in the audit.

use heddle_proto::v1::{
    AuditEvent, AuditRequest, audit_event::Action, config_client::ConfigClient,
};

use super::*;

const USER: &str = "spiffe://cluster.local/ns/shop/sa/user-service";

impl Running {
    /// The newest first.
    async fn audited(&self, subject: &str) -> Vec<AuditEvent> {
        let anchor = Anchor::Roots(vec![self.root()]);
        let channel = self.channel(Some(&self.administrator()), anchor).await;
        let request = AuditRequest {
            subject: subject.to_owned(),
            ..AuditRequest::default()
        };
        let events = ConfigClient::new(channel).audit(request).await;
        events.unwrap().into_inner().events
    }

    /// Once there are so many: what the gate refuses is written aside.
    pub(super) async fn eventually_audited(&self, subject: &str, count: usize) -> Vec<AuditEvent> {
        let deadline = clock::now() + Duration::from_secs(20);
        loop {
            let events = self.audited(subject).await;
            if events.len() >= count {
                return events;
            }
            assert!(clock::now() < deadline, "{events:?}");
        }
    }
}

#[tokio::test]
async fn changes_of_the_authority_are_audited_with_who_before_and_after() {
    let running = Running::start("{}").await;
    let token = running.token("web").await;
    let administrator = running.administrator();
    let mut authority = running.authority(Some(&administrator)).await;
    let identity = || WEB.to_owned();
    for _ in 0..2 {
        let deny = DenyRequest {
            identity: identity(),
        };
        authority.deny(deny).await.unwrap();
    }
    let allow = AllowRequest {
        identity: identity(),
    };
    authority.allow(allow).await.unwrap();
    // What is issued is in the ledger, not here.
    running.issue(None, Some(&token)).await.0.unwrap();
    let running = running.restart().await;
    let events = running.audited(WEB).await;
    let [allowed, denied, minted] = &events[..] else {
        panic!("one of each: {events:?}");
    };
    assert!(events.iter().all(|event| event.who == "administrator"));
    assert!(events.iter().all(|event| event.at_ms > 0));
    assert_eq!(allowed.action(), Action::Allowed);
    assert_eq!(denied.action(), Action::Denied);
    let change = |event: &AuditEvent| (event.before.clone(), event.after.clone());
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(change(denied), (text("allowed"), text("denied")));
    assert_eq!(change(allowed), (text("denied"), text("allowed")));
    assert_eq!(minted.action(), Action::Minted);
    let after: serde_json::Value = serde_json::from_str(minted.after.as_ref().unwrap()).unwrap();
    assert_eq!(after["labels"]["app"], "web", "{after}");
    assert_eq!(after["tokenId"].as_str().unwrap().len(), 32, "{after}");
    for part in token.split('.') {
        assert!(!minted.after.as_ref().unwrap().contains(part), "{after}");
    }
    assert!(
        running
            .audited("spiffe://cluster.local/ns/nobody")
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn whoever_asks_for_what_is_anothers_is_audited() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let token = running.token("user-service").await;
    let issue = "heddle.v1.CertificateAuthority/Issue";
    refused(
        running.issue(Some(&web), Some(&token)).await.0,
        Code::Unauthenticated,
        USER,
    );
    let events = running.eventually_audited(issue, 1).await;
    assert_eq!(events[0].action(), Action::Refused);
    assert_eq!(events[0].who, WEB);
    assert!(
        events[0].reason.as_ref().unwrap().contains(USER),
        "{events:?}"
    );
    // With a token alone, for what is the administrator's; beyond a burst only logged.
    for _ in 0..30 {
        let mut authority = running.authority(None).await;
        let mint = with_token(MintTokenRequest::default(), Some(&token));
        let refusal = authority.mint_token(mint).await;
        refused(refusal, Code::PermissionDenied, "administrators");
    }
    let mint = "heddle.v1.CertificateAuthority/MintToken";
    let events = running.eventually_audited(mint, 20).await;
    assert!(events.iter().all(|event| event.who == USER));
    assert_eq!(events.len(), 20, "paced");
}
