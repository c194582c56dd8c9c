//! Root and intermediate given as files, from the settings to a client that trusts the root.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::UnixTime,
};

use super::{
    pki::{Pki, authority},
    *,
};
use crate::files::{self, Mode};

/// What a client makes of the control plane and of what it issues, that holds nothing but the
/// user's root.
async fn serves_under(running: &Running, root: CertificateDer<'static>) {
    let anchor = || Anchor::Roots(vec![root.clone()]);
    let mut health = HealthClient::new(running.channel(None, anchor()).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(running.root(), root, "the public copy");
    let token = running.token("web").await;
    let (issued, key) = running.issue(None, Some(&token)).await;
    let issued = issued.unwrap();
    let bundle = issued.trust_bundle.clone().unwrap();
    assert_eq!(
        bundle.trust_domains["cluster.local"].roots_der,
        [root.to_vec()]
    );
    let web = key.certified(chain(&issued)).unwrap();
    running.issue(Some(&web), None).await.0.unwrap();
    // Another implementation of the path: rustls by host name, which is in no leaf of a workload,
    // so that only the name is wrong with it.
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let verified = verifier.build().unwrap().verify_server_cert(
        &web.chain()[0],
        &web.chain()[1..],
        &"web.shop".try_into().unwrap(),
        &[],
        UnixTime::now(),
    );
    let fault = verified.unwrap_err();
    assert!(
        matches!(
            fault,
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForNameContext { .. }
            )
        ),
        "{fault:?}"
    );
}

#[tokio::test]
async fn a_given_root_signs_an_intermediate_made_here() {
    let pki = Pki::new();
    let root = pki.make("root", &authority("corporate"), None);
    let running = Running::start(&pki.root("root", "root-key")).await;
    serves_under(&running, root.certificate.clone()).await;
    let running = running.restart().await;
    serves_under(&running, root.certificate).await;
}

#[tokio::test]
async fn a_given_intermediate_needs_no_key_of_the_root() {
    let pki = Pki::new();
    let root = pki.make("root", &authority("corporate"), None);
    let mut params = authority("mesh");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    pki.make("mesh", &params, Some(&root));
    fs::remove_file(pki.file("root-key")).unwrap();
    let running = Running::start(&pki.intermediate("root", "mesh", "mesh-key")).await;
    serves_under(&running, root.certificate).await;
}

/// Starts, which must fail, and say this about this file.
async fn refuses(yaml: &str, file: PathBuf, why: &str) {
    let directory = tempfile::tempdir().unwrap();
    let started = ControlPlane::start(config(directory.path(), yaml)).await;
    let mut fault: Option<&dyn std::error::Error> = Some(started.as_ref().expect_err("it starts"));
    let mut said = String::new();
    while let Some(error) = fault {
        said += &format!("{error}: ");
        fault = error.source();
    }
    let file = file.display().to_string();
    assert!(
        said.contains(&file) && said.contains(why),
        "{file} {why}: {said}"
    );
    assert!(
        !directory.path().join("administrator").exists(),
        "certified somebody: {said}"
    );
}

#[tokio::test]
async fn a_wrong_root_is_refused_at_the_start_with_its_file_and_the_reason() {
    let pki = Pki::new();
    pki.make("good", &authority("good"), None);
    let with = |name: &str, edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = authority(name);
        edit(&mut params);
        pki.make(name, &params, None);
    };
    let hour = Duration::from_secs(3600);
    with("expired", &|params| {
        params.not_after = (clock::wall() - hour / 2).into();
    });
    with("early", &|params| {
        params.not_before = (clock::wall() + hour).into();
    });
    with("leaf", &|params| params.is_ca = IsCa::ExplicitNoCa);
    with("crls", &|params| {
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    with("last", &|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    for (name, why) in [
        ("expired", "expired"),
        ("early", "not valid yet"),
        ("leaf", "not the certificate of an authority"),
        ("crls", "not the certificate of an authority"),
        ("last", "path length"),
    ] {
        let key = format!("{name}-key");
        refuses(&pki.root(name, &key), pki.file(name), why).await;
    }
    let other = pki.file("expired-key");
    refuses(
        &pki.root("good", "expired-key"),
        other,
        "not the certificate's",
    )
    .await;
    refuses(
        &pki.root("good", "none"),
        pki.file("none"),
        "does not exist",
    )
    .await;
    refuses(
        &pki.root("none", "good-key"),
        pki.file("none"),
        "does not exist",
    )
    .await;
    for (name, bytes, why) in [
        ("text", &b"hello"[..], "0 certificates"),
        ("binary", &[0xff; 64], "UTF-8"),
        ("cut", b"-----BEGIN CERTIFICATE-----\nMIIB", "PEM"),
        (
            "false",
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "X.509",
        ),
    ] {
        files::write(&pki.file(name), bytes, Mode::Secret).unwrap();
        refuses(&pki.root(name, "good-key"), pki.file(name), why).await;
    }
    let no_key = "holds no private key";
    refuses(&pki.root("good", "text"), pki.file("text"), no_key).await;
    refuses(&pki.root("good", "false"), pki.file("false"), no_key).await;
    let open = pki.file("good-key");
    let exposed = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(&open, exposed).unwrap();
    refuses(&pki.root("good", "good-key"), open, "make it 0600").await;
}

#[tokio::test]
async fn a_wrong_intermediate_is_refused_at_the_start_with_its_file_and_the_reason() {
    let pki = Pki::new();
    let root = pki.make("root", &authority("root"), None);
    let other = pki.make("other", &authority("root"), None);
    pki.make("good", &authority("good"), Some(&root));
    pki.make("stranger", &authority("stranger"), Some(&other));
    let given = |name: &str| pki.intermediate("root", name, &format!("{name}-key"));
    // Of the same name as ours, but of another key.
    refuses(&given("stranger"), pki.file("stranger"), "did not sign").await;
    refuses(&given("stranger"), pki.file("root"), "did not sign").await;
    let mut expired = authority("expired");
    expired.not_after = (clock::wall() - Duration::from_secs(60)).into();
    pki.make("expired", &expired, Some(&root));
    refuses(&given("expired"), pki.file("expired"), "expired").await;
    let wrong_key = pki.intermediate("root", "good", "root-key");
    refuses(&wrong_key, pki.file("root-key"), "not the certificate's").await;
    let mut last = authority("last");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let last = pki.make("last", &last, None);
    pki.make("below", &authority("below"), Some(&last));
    let below = pki.intermediate("last", "below", "below-key");
    refuses(&below, pki.file("last"), "path length").await;
}
