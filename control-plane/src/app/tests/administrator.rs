//! Who is taken as the administrator, and how that ends.

use std::collections::BTreeSet;

use heddle_proto::v1::{
    AuditRequest, ListRequest, RevokeAdministratorsRequest, WatchRequest, audit_event::Action,
    config_client::ConfigClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{
    pki::{Pki, authority},
    *,
};

const ADMINISTRATOR: &str = "spiffe://cluster.local/ns/heddle-system/sa/heddle-administrator";

impl Running {
    async fn config(&self, identity: &Identity) -> ConfigClient<Channel> {
        let anchor = Anchor::Roots(vec![self.root()]);
        ConfigClient::new(self.channel(Some(identity), anchor).await)
    }

    async fn lists(&self, identity: &Identity) -> Result<(), Status> {
        let mut config = self.config(identity).await;
        config.list(ListRequest::default()).await.map(drop)
    }
}

#[tokio::test]
async fn another_intermediate_under_the_users_root_certifies_nobody_here() {
    let pki = Pki::new();
    let root = pki.make("root", &authority("corporate"), None);
    let other = pki.make("other", &authority("another team"), Some(&root));
    let running = Running::start(&pki.root("root", "root-key")).await;
    let ours = running.administrator();
    running.lists(&ours).await.unwrap();
    // The mesh trusts the root, so the handshake succeeds; that is all.
    let theirs = other.certify(ADMINISTRATOR, None);
    let refusal = running.lists(&theirs).await;
    refused(
        refusal,
        Code::Unauthenticated,
        "not one of this control plane's",
    );
    // Also not by repeating the serial number of one that we made.
    let repeated = other.certify(ADMINISTRATOR, Some(&serial(&ours)));
    assert_eq!(serial(&repeated), serial(&ours));
    let refusal = running.lists(&repeated).await;
    refused(
        refusal,
        Code::Unauthenticated,
        "not one of this control plane's",
    );
    // Nor as a workload: its serial number is seen by everyone it talks to.
    let web = running.identity("web").await;
    running.issue(Some(&web), None).await.0.unwrap();
    for serial in [None, Some(serial(&web))] {
        let theirs = other.certify(WEB, serial.as_deref());
        let refusal = running.issue(Some(&theirs), None).await.0;
        refused(
            refusal,
            Code::Unauthenticated,
            "no record of the certificate",
        );
    }
    let control_plane = "spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane";
    let theirs = other.certify(control_plane, None);
    refused(
        running.lists(&theirs).await,
        Code::Unauthenticated,
        "no caller",
    );
}

#[tokio::test]
async fn a_certificate_of_a_foreign_authority_ends_the_handshake() {
    let running = Running::start("{}").await;
    let foreign = Pki::new().make("root", &authority("somebody else"), None);
    for (id, failed) in [(ADMINISTRATOR, 1), (WEB, 2)] {
        let theirs = foreign.certify(id, None);
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let mut stream = running.tls(Some(&theirs)).await;
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).await.unwrap_err();
        assert!(end.to_string().contains("fatal alert"), "{id}: {end}");
        assert!(heard.is_empty(), "{id} was told something");
        let metrics = running.get("/metrics").await;
        let line = format!("handshakes_failed_total{{reason=\"tls\"}} {failed}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    running.lists(&running.administrator()).await.unwrap();
}

#[tokio::test]
async fn reflection_lists_the_services_to_administrators_only() {
    let running = Running::start("{}").await;
    let services = async |identity: Option<&Identity>| {
        let anchor = Anchor::Roots(vec![running.root()]);
        let channel = running.channel(identity, anchor).await;
        let ask = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..ServerReflectionRequest::default()
        };
        let answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(ask))
            .await?;
        let answer = answers.into_inner().message().await?.unwrap();
        let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
            panic!("no list: {answer:?}");
        };
        let names = listed.service.into_iter().map(|service| service.name);
        Ok::<_, Status>(BTreeSet::from_iter(names))
    };
    let administrator = running.administrator();
    let listed = services(Some(&administrator)).await.unwrap();
    assert_eq!(
        Vec::from_iter(listed),
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "heddle.v1.CertificateAuthority",
            "heddle.v1.Config",
            "heddle.v1.Registry",
            "heddle.v1.Status",
            "heddle.v1.Traffic",
        ]
    );
    let web = running.identity("web").await;
    let refusal = services(Some(&web)).await;
    refused(refusal, Code::PermissionDenied, "administrators");
    let refusal = services(None).await;
    refused(refusal, Code::Unauthenticated, "administrators");
}

#[tokio::test]
async fn revoked_administrators_are_cut_off_and_there_is_a_new_one() {
    let running = Running::start("{}").await;
    let old = running.administrator();
    let mut config = running.config(&old).await;
    let watch = config.watch(WatchRequest::default()).await;
    let mut watch = watch.unwrap().into_inner();
    let mut authority = running.authority(Some(&old)).await;
    let revoked = authority.revoke_administrators(RevokeAdministratorsRequest {});
    let revoked = revoked.await.unwrap().into_inner();
    assert_eq!(revoked.revoked, 1);
    // Streams end, requests on open connections are refused, and so are new connections.
    let ended = tokio::time::timeout(Duration::from_secs(20), watch.message());
    refused(ended.await.unwrap(), Code::Unauthenticated, "revoked");
    let refusal = config.list(ListRequest::default()).await;
    refused(refusal, Code::Unauthenticated, "revoked");
    refused(running.lists(&old).await, Code::Unauthenticated, "revoked");
    // The files hold the new one already.
    let new = running.administrator();
    assert_ne!(new.chain()[0], old.chain()[0]);
    running.lists(&new).await.unwrap();
    let request = AuditRequest::default();
    let audited = running.config(&new).await.audit(request).await.unwrap();
    let [event] = &audited.get_ref().events[..] else {
        panic!("{audited:?}");
    };
    assert_eq!(event.action(), Action::Revoked);
    assert_eq!(event.who, "administrator");
    let names = [&old, &new].map(|of| crate::ca::Fingerprint::of(&of.chain()[0]).to_string());
    let holds = |text: &Option<String>| {
        let text = text.as_deref().unwrap();
        names.each_ref().map(|name| text.contains(name.as_str()))
    };
    assert_eq!(holds(&event.before), [true, true], "{event:?}");
    assert_eq!(holds(&event.after), [false, true], "{event:?}");

    // It stays so, and whoever has lost every file gets one by a start.
    fs::remove_dir_all(running.directory.path().join("administrator")).unwrap_or_default();
    let running = running.restart().await;
    refused(running.lists(&old).await, Code::Unauthenticated, "revoked");
    running.lists(&running.administrator()).await.unwrap();
    running.lists(&new).await.unwrap();
}

#[tokio::test]
async fn a_workload_does_not_revoke_administrators() {
    let running = Running::start("{}").await;
    let web = running.identity("web").await;
    let mut authority = running.authority(Some(&web)).await;
    let refusal = authority.revoke_administrators(RevokeAdministratorsRequest {});
    refused(refusal.await, Code::PermissionDenied, "administrators");
    running.lists(&running.administrator()).await.unwrap();
}

fn serial(of: &Identity) -> Vec<u8> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(&of.chain()[0]).unwrap();
    parsed.raw_serial().to_vec()
}
