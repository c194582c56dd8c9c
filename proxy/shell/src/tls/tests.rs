use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_policy::spiffe::{Peer, SpiffeId};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    CipherSuite, SupportedCipherSuite,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::clock;

/// A root with an intermediate.
struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf says; each test changes one thing.
#[derive(Clone)]
struct Leaf {
    uris: Vec<String>,
    from: SystemTime,
    to: SystemTime,
    usages: Vec<ExtendedKeyUsagePurpose>,
    is_ca: bool,
}

impl Authority {
    fn new(name: &str) -> Self {
        let ca = |common_name: String| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(ca(format!("{name} root")), key()).unwrap();
        let intermediate =
            CertifiedIssuer::signed_by(ca(format!("{name} intermediate")), key(), &root).unwrap();
        Self { root, intermediate }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    fn issue(&self, leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = leaf
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.not_before = leaf.from.into();
        params.not_after = leaf.to.into();
        params.extended_key_usages.clone_from(&leaf.usages);
        if leaf.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.signed_by(&key, &self.intermediate).unwrap();
        let chain = vec![
            certificate.der().clone(),
            self.intermediate.der().clone(),
            self.root(),
        ];
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()))
    }

    fn identity(&self, leaf: &Leaf) -> Identity {
        let (chain, key) = self.issue(leaf);
        Identity::new(chain, key).unwrap()
    }

    fn trust(&self, denied: &[&str]) -> Trust {
        Trust::Bundle(Arc::new(TrustBundle {
            revision: 1,
            roots: [("td".parse().unwrap(), vec![self.root()])].into(),
            denied: denied.iter().map(|id| id.parse().unwrap()).collect(),
        }))
    }
}

fn leaf(uri: &str) -> Leaf {
    Leaf {
        uris: vec![uri.to_owned()],
        from: clock::wall() - Duration::from_secs(60),
        to: clock::wall() + Duration::from_secs(600),
        usages: vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        is_ca: false,
    }
}

/// Whom the server saw, or what each side said instead.
type Seen = Result<Peer, (String, String)>;

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const USER: &str = "spiffe://td/ns/shop/sa/user";
const CONTROL_PLANE: &str = "spiffe://td/ns/heddle-system/sa/heddle-control-plane";

fn one_of(id: &str) -> Accept {
    Accept::OneOf(Arc::new([id.parse().unwrap()]))
}

/// One handshake and one byte each way. Says whom the server saw, or both sides' errors.
///
/// Boxed: a handshake's state is larger than what a future may hold by value.
fn handshake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> Pin<Box<dyn Future<Output = Seen>>> {
    Box::pin(exchange_byte(server, client))
}

async fn exchange_byte(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Seen {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        Ok::<_, std::io::Error>(peer(stream.get_ref().1.peer_certificates()).unwrap())
    };
    let call = async {
        let name = ServerName::try_from("user.shop").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_u8(7).await?;
        stream.read_u8().await
    };
    match tokio::join!(serve, call) {
        (Ok(peer), Ok(7)) => Ok(peer),
        (served, called) => Err((format!("{served:?}"), format!("{called:?}"))),
    }
}

/// A server with `USER` and a client that presents `presented`; the server's error must contain
/// `refusal`.
async fn check_client(presented: &Leaf, denied: &[&str], refusal: Option<&str>) {
    let authority = Authority::new("ours");
    let server = server(
        &authority.identity(&leaf(USER)),
        authority.trust(denied),
        Accept::Mesh,
        Clients::Certified,
        &[],
    )
    .unwrap();
    let (chain, key) = authority.issue(presented);
    let verifier = verify::Verifier::new(
        authority.trust(&[]),
        one_of(USER),
        Clients::Certified,
        &provider(),
    );
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key.into())
        .unwrap();
    let outcome = handshake(server, Arc::new(client)).await;
    match refusal {
        None => assert_eq!(
            outcome,
            Ok(Peer::Meshed(presented.uris[0].parse().unwrap()))
        ),
        Some(refusal) => {
            let (served, _) = outcome.unwrap_err();
            assert!(served.contains(refusal), "{served}");
        }
    }
}

/// What our server agrees on with a client that offers this; the client's order counts.
async fn check_suite(offered: Vec<SupportedCipherSuite>, expected: CipherSuite) {
    let authority = Authority::new("ours");
    let (identity, trust) = (authority.identity(&leaf(USER)), authority.trust(&[]));
    let server = server(&identity, trust.clone(), Accept::Mesh, Clients::Anyone, &[]).unwrap();
    let offering = Arc::new(CryptoProvider {
        cipher_suites: offered,
        ..provider().as_ref().clone()
    });
    let verifier = verify::Verifier::new(trust, one_of(USER), Clients::Certified, &offering);
    let client = ClientConfig::builder_with_provider(offering)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("user.shop").unwrap();
    let (accepted, connected) = tokio::join!(
        TlsAcceptor::from(server).accept(far),
        TlsConnector::from(Arc::new(client)).connect(name, near),
    );
    accepted.unwrap();
    let connected = connected.unwrap();
    let agreed = connected.get_ref().1.negotiated_cipher_suite().unwrap();
    assert_eq!(agreed.suite(), expected);
}

#[tokio::test]
async fn aes_with_128_bits_comes_first_and_the_others_are_offered_too() {
    let ours = provider().cipher_suites.clone();
    check_suite(ours, CipherSuite::TLS13_AES_128_GCM_SHA256).await;
    for only in [TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256] {
        check_suite(vec![only], only.suite()).await;
    }
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    check_client(&leaf(WEB), &[], None).await;
}

#[tokio::test]
async fn a_client_with_a_bad_certificate_is_refused_with_the_reason() {
    let good = leaf(WEB);
    let hour = Duration::from_secs(3600);
    let expired = Leaf {
        from: good.from - hour,
        to: clock::wall() - Duration::from_secs(5),
        ..good.clone()
    };
    check_client(&expired, &[], Some("Expired")).await;
    let early = Leaf {
        from: clock::wall() + hour,
        to: clock::wall() + 2 * hour,
        ..good.clone()
    };
    check_client(&early, &[], Some("NotValidYet")).await;
    let authority = Leaf {
        is_ca: true,
        ..good.clone()
    };
    check_client(&authority, &[], Some("CaUsedAsEndEntity")).await;
    let server_only = Leaf {
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..good.clone()
    };
    check_client(&server_only, &[], Some("RequiredEkuNotFound")).await;
    let nameless = Leaf {
        uris: vec![],
        ..good.clone()
    };
    check_client(&nameless, &[], Some("UriNames(0)")).await;
    let two = Leaf {
        uris: vec![WEB.into(), USER.into()],
        ..good.clone()
    };
    check_client(&two, &[], Some("UriNames(2)")).await;
    check_client(&leaf("https://td/ns/shop/sa/web"), &[], Some("Id(Scheme)")).await;
    check_client(
        &leaf("spiffe://other/ns/shop/sa/web"),
        &[],
        Some("UnknownIssuer"),
    )
    .await;
    check_client(&good, &[WEB], Some("Denied")).await;
}

#[tokio::test]
async fn a_client_of_another_authority_or_without_certificate_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let user = ours.identity(&leaf(USER));
    let web = theirs.identity(&leaf(WEB));
    let server = server(
        &user,
        ours.trust(&[]),
        Accept::Mesh,
        Clients::Certified,
        &[],
    )
    .unwrap();
    let stranger = client(Some(&web), ours.trust(&[]), one_of(USER), &[]).unwrap();
    let (served, _) = handshake(server.clone(), stranger).await.unwrap_err();
    assert!(served.contains("UnknownIssuer"), "{served}");
    let nobody = client(None, ours.trust(&[]), one_of(USER), &[]).unwrap();
    let (served, _) = handshake(server, nobody).await.unwrap_err();
    assert!(served.contains("NoCertificatesPresented"), "{served}");
}

#[tokio::test]
async fn anyone_may_come_without_a_certificate_but_not_with_a_bad_one() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let user = ours.identity(&leaf(USER));
    let server = server(&user, ours.trust(&[]), Accept::Mesh, Clients::Anyone, &[]).unwrap();
    let nobody = client(None, ours.trust(&[]), one_of(USER), &[]).unwrap();
    assert_eq!(handshake(server.clone(), nobody).await, Ok(Peer::Anonymous));
    let web = theirs.identity(&leaf(WEB));
    let stranger = client(Some(&web), ours.trust(&[]), one_of(USER), &[]).unwrap();
    assert!(handshake(server, stranger).await.is_err());
}

#[tokio::test]
async fn a_server_must_be_exactly_the_one_expected() {
    let authority = Authority::new("ours");
    let web = authority.identity(&leaf(WEB));
    let user = authority.identity(&leaf(USER));
    let server = server(
        &user,
        authority.trust(&[]),
        Accept::Mesh,
        Clients::Certified,
        &[],
    )
    .unwrap();
    let expecting = |accept| client(Some(&web), authority.trust(&[]), accept, &[]).unwrap();
    let outcome = handshake(server.clone(), expecting(one_of(USER))).await;
    assert_eq!(outcome, Ok(Peer::Meshed(WEB.parse().unwrap())));
    let (_, called) = handshake(server.clone(), expecting(one_of(WEB)))
        .await
        .unwrap_err();
    assert!(called.contains("Unexpected"), "{called}");
    let (_, called) = handshake(server, expecting(Accept::ControlPlane))
        .await
        .unwrap_err();
    assert!(called.contains("the control plane"), "{called}");
}

#[test]
fn an_anchor_is_a_hash_or_a_file_of_roots() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let root = Authority::new("ours").root;
    let good = file("root.pem", &root.pem());
    let (digits, hash) = ("Ff".repeat(32), Anchor::Sha256([0xff; 32]));
    for (text, anchor) in [
        (&good, &Anchor::Roots(vec![root.der().clone()])),
        (&digits, &hash),
        (&format!("sha256:{digits}"), &hash),
    ] {
        assert_eq!(&Anchor::read(text).unwrap(), anchor, "{text}");
    }
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for (text, why) in [
        (format!("sha256:{}", &digits[1..]), "64 hexadecimal digits"),
        (format!("sha256:{good}"), "64 hexadecimal digits"),
        (digits[1..].to_owned(), "64 hexadecimal digits"),
        ("é".repeat(32), "No such file"),
        (file("empty.pem", ""), "has no certificate"),
        (file("broken.pem", broken), "broken.pem"),
    ] {
        let refusal = crate::causes::chain(&Anchor::read(&text).unwrap_err());
        assert!(refusal.contains(why), "{text}: {refusal}");
    }
}

#[tokio::test]
async fn first_contact_needs_the_root_or_its_hash() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let hash = |root: CertificateDer<'_>| {
        let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, &root);
        Anchor::Sha256(digest.as_ref().try_into().unwrap())
    };
    let control_plane = ours.identity(&leaf(CONTROL_PLANE));
    let server = server(
        &control_plane,
        ours.trust(&[]),
        Accept::Mesh,
        Clients::Anyone,
        &[],
    )
    .unwrap();
    for (anchor, is_accepted) in [
        (Anchor::Roots(vec![ours.root()]), true),
        (Anchor::Roots(vec![theirs.root()]), false),
        (hash(ours.root()), true),
        (hash(theirs.root()), false),
    ] {
        let client = client(
            None,
            Trust::Anchor(anchor.clone()),
            Accept::ControlPlane,
            &[],
        )
        .unwrap();
        let outcome = handshake(server.clone(), client).await;
        assert_eq!(outcome.is_ok(), is_accepted, "{anchor:?}: {outcome:?}");
    }
}

#[test]
fn a_request_becomes_an_identity_only_with_its_own_certificate() {
    let authority = Authority::new("ours");
    let request = KeyRequest::generate().unwrap();
    assert!(!request.csr_der().unwrap().is_empty());
    let (chain, _key) = authority.issue(&leaf(WEB));
    let error = request.certified(chain).unwrap_err();
    assert!(matches!(error, IdentityError::KeyMismatch(_)), "{error:?}");
}

#[test]
fn debug_output_has_no_key() {
    let identity = Authority::new("ours").identity(&leaf(WEB));
    let key = identity.key();
    let shown = format!("{identity:?} {:?}", KeyRequest::generate().unwrap());
    let bytes = format!("{:?}", &key.secret_der()[40..48]);
    assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    assert!(identity.is_valid_at(clock::wall()));
    assert_eq!(identity.id(), &WEB.parse::<SpiffeId>().unwrap());
}
