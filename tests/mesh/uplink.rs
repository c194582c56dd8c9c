//! Who may be the control plane.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_policy::spiffe::SpiffeId;
use heddle_proto::v1::{
    self, WatchTrustBundleRequest, certificate_authority_client::CertificateAuthorityClient,
};
use heddle_proxy::{
    config::{Authority as Address, ControlPlane},
    identity::Keyring,
    tls::Credentials,
    uplink::Uplink,
};
use heddle_shell::{
    clock,
    task::Tasks,
    tls::{self, Accept, Anchor, Clients, Trust, TrustBundle},
};
use heddle_tests::{
    echo::{App, Speaks},
    fault::{Fault, Script},
    mesh::{Authority, ECHO, WEB},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};

/// TLS in front of `to` under these credentials.
async fn serve(credentials: Credentials, to: SocketAddr) -> (SocketAddr, Tasks) {
    let trust = Trust::Bundle(Arc::clone(&credentials.trust));
    let config = tls::server(
        &credentials.identity,
        trust,
        Accept::Mesh,
        Clients::Anyone,
        &[b"h2"],
    );
    let acceptor = TlsAcceptor::from(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("tls", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut near) = acceptor.accept(stream).await
                && let Ok(mut far) = TcpStream::connect(to).await
            {
                // How the conversation ends is seen by the client.
                _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        }
    });
    (address, tasks)
}

/// What a sidecar of `WEB` gets from a control plane that is `id`, with and without having a
/// trust bundle, and how many requests it let out.
async fn check(id: &str, calls: usize) -> [Status; 2] {
    let app = App::start(Speaks::Http2, Script::new([Fault::GrpcStatus(12); 2])).await;
    let authority = Authority::new();
    let (address, _tasks) = serve(authority.credentials(id), app.address).await;
    let ours = authority.credentials(WEB);
    let roots = ours.trust.roots.values().flatten().cloned().collect();
    let settings = ControlPlane {
        addresses: vec![Address {
            host: address.ip().to_string(),
            port: address.port(),
        }],
        anchor: Anchor::Roots(roots),
        token_file: None,
        trust_domain: "td".parse().unwrap(),
    };
    let keyring = Keyring::new("td".parse().unwrap());
    let uplink = Uplink::new(settings, Arc::clone(keyring.held()));
    let first = refused(uplink.anonymous().unwrap()).await;
    let not_after = clock::wall() + Duration::from_hours(1);
    keyring.set_identity(authority.issue(WEB, not_after));
    keyring.set_bundle(bundle(&ours.trust)).unwrap();
    let later = refused(uplink.link().unwrap().channel).await;
    assert_eq!(app.script.calls(), calls);
    [first, later]
}

/// As it comes from a control plane.
fn bundle(trust: &TrustBundle) -> v1::TrustBundle {
    let roots_der = trust.roots.values().flatten().map(|root| root.to_vec());
    let roots = v1::TrustDomainRoots {
        roots_der: roots_der.collect(),
    };
    v1::TrustBundle {
        revision: 1,
        trust_domains: [("td".to_owned(), roots)].into(),
        denied_identities: vec![],
    }
}

async fn refused(channel: tonic::transport::Channel) -> Status {
    let mut client = CertificateAuthorityClient::new(channel);
    let request = WatchTrustBundleRequest { revision: 0 };
    client.watch_trust_bundle(request).await.unwrap_err()
}

#[tokio::test]
async fn a_workloads_certificate_does_not_make_a_control_plane() {
    for id in [WEB, ECHO] {
        for status in check(id, 0).await {
            let text = heddle_shell::causes::chain(&status);
            assert!(text.contains("spiffe://td/ns/heddle-system/"), "{text}");
            assert!(text.contains(id), "{text}");
        }
    }
    // The same with the reserved id gets an answer.
    let id = SpiffeId::control_plane(&"td".parse().unwrap());
    for status in check(id.as_str(), 2).await {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
}
