use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use heddle_shell::clock;
use rand::SeedableRng;
use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::*;
use crate::{
    config::{Config, RawConfig, Source},
    store::redb::{RedbStore, Retention},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn settings(yaml: &str) -> config::Authority {
    let raw: RawConfig = serde_saphyr::from_str(yaml).unwrap();
    Config::new(&raw).unwrap().authority
}

fn open(settings: &config::Authority, directory: &Path, wall: SystemTime) -> Authority {
    let authority = try_open(settings, directory, wall).unwrap();
    authority.write_root().unwrap();
    authority
}

fn try_open(
    settings: &config::Authority,
    directory: &Path,
    wall: SystemTime,
) -> Result<Authority, MaterialError> {
    Authority::open(settings, directory, StdRng::seed_from_u64(1), wall)
}

fn web(authority: &Authority, lifetime: Option<Duration>, wall: SystemTime) -> Issued {
    let key = KeyPair::generate().unwrap();
    let id = WEB.parse().unwrap();
    authority.issue(&id, &key, lifetime, wall).unwrap()
}

#[test]
fn a_leaf_says_who_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let authority = open(&settings("{}"), directory.path(), wall);
    let issued = web(&authority, None, wall);
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(Serial::of(leaf.raw_serial()), issued.serial);
    let name = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(name.critical, "RFC 5280 section 4.1.2.6");
    assert_eq!(name.value.general_names, [GeneralName::URI(WEB)]);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1, "digitalSignature only");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(
        leaf.basic_constraints()
            .unwrap()
            .is_none_or(|basic| !basic.value.ca)
    );
    let has_authority_key = leaf.extensions().iter().any(|extension| {
        matches!(
            extension.parsed_extension(),
            ParsedExtension::AuthorityKeyIdentifier(_)
        )
    });
    assert!(has_authority_key);
    let seconds = |time: x509_parser::time::ASN1Time| time.timestamp();
    let now = wall
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .cast_signed();
    assert_eq!(seconds(leaf.validity().not_before), now - 600);
    assert_eq!(seconds(leaf.validity().not_after), now + 24 * 3600);
}

#[test]
fn lifetimes_are_wishes_within_limits() {
    let directory = tempfile::tempdir().unwrap();
    let wall = whole_seconds(clock::wall());
    let settings = settings("authority: {leaf_lifetime: 20s, leaf_lifetime_max: 1m}");
    let authority = open(&settings, directory.path(), wall);
    let lifetime = |wish| {
        let issued = web(&authority, wish, wall);
        issued.not_after.duration_since(wall).unwrap().as_secs()
    };
    assert_eq!(lifetime(None), 20);
    assert_eq!(lifetime(Some(Duration::from_secs(40))), 40);
    assert_eq!(lifetime(Some(DAY)), 60);
    let issued = web(&authority, None, wall);
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let validity = leaf.validity();
    let span = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(span, 40, "backdated by no more than it lives");
}

#[test]
fn a_leaf_ends_with_its_issuer_and_an_ended_issuer_signs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let wall = whole_seconds(clock::wall());
    let authority = open(&settings("{}"), directory.path(), wall);
    let end = authority.not_after();
    let issued = web(&authority, None, end - Duration::from_secs(60));
    assert_eq!(issued.not_after, end);
    let key = KeyPair::generate().unwrap();
    for outside in [end, wall - DAY] {
        let refused = authority.issue(&WEB.parse().unwrap(), &key, None, outside);
        assert!(
            matches!(refused, Err(CaError::IssuerNotValid(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn an_intermediate_is_renewed_at_half_of_its_life() {
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let settings = settings("{}");
    let authority = open(&settings, directory.path(), wall);
    let (root, first) = (authority.root(), web(&authority, None, wall).chain);
    assert_eq!(authority.renew(wall + 182 * DAY).unwrap(), Renewal::NotDue);
    let later = wall + 183 * DAY;
    assert_eq!(authority.renew(later).unwrap(), Renewal::Renewed);
    assert_eq!(authority.root(), root);
    let second = web(&authority, None, later).chain;
    assert_ne!(first[1], second[1]);
    let reopened = open(&settings, directory.path(), later);
    assert_eq!(
        web(&reopened, None, later).chain[1],
        second[1],
        "the new one was stored"
    );
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings("{}");
    open(&settings, directory.path(), clock::wall());
    for file in ["root.pem", "intermediate.pem"] {
        let path = directory.path().join("authority").join(file);
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = try_open(&settings, directory.path(), clock::wall()).unwrap_err();
        assert!(refused.to_string().contains("make it 0600"), "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A root and intermediate of our own making, as a user's files.
fn given() -> (tempfile::TempDir, config::Authority) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings("{}");
    open(&settings, directory.path(), clock::wall());
    let split = |what: &str| {
        let both = fs::read_to_string(directory.path().join(format!("authority/{what}.pem")));
        let both = both.unwrap();
        let key_at = both.find("-----BEGIN PRIVATE KEY").unwrap();
        let file = |kind: &str| directory.path().join(format!("{what}-{kind}.pem"));
        fs::write(file("certificate"), &both[..key_at]).unwrap();
        crate::files::write(
            &file("key"),
            &both.as_bytes()[key_at..],
            crate::files::Mode::Secret,
        )
        .unwrap();
        (file("certificate"), file("key"))
    };
    let (root, _) = split("root");
    let (certificate, key) = split("intermediate");
    settings.source = Source::Intermediate {
        root,
        certificate,
        key,
    };
    (directory, settings)
}

#[test]
fn a_root_without_its_key_works_with_a_given_intermediate() {
    let (files, settings) = given();
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let authority = Arc::new(open(&settings, directory.path(), wall));
    Own::new(
        Arc::clone(&authority),
        &"cluster.local".parse().unwrap(),
        &[],
    )
    .unwrap()
    .issue(wall)
    .unwrap();
    assert_eq!(authority.renew(wall + 300 * DAY).unwrap(), Renewal::NotOurs);
    let copy = fs::read(directory.path().join("root.pem")).unwrap();
    assert_eq!(
        copy,
        fs::read(files.path().join("root-certificate.pem")).unwrap()
    );
}

#[test]
fn the_control_plane_is_also_known_by_the_names_it_is_dialled_by() {
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let authority = Arc::new(open(&settings("{}"), directory.path(), wall));
    let [name, address, other] =
        ["cp.example", "10.1.2.3", "other.example"].map(|name| name.try_into().unwrap());
    let names = [name, address];
    let trust_domain = "cluster.local".parse().unwrap();
    let own = Own::new(authority, &trust_domain, &names).unwrap();
    let identity = own.issue(wall).unwrap();
    let leaf = webpki::EndEntityCert::try_from(&identity.chain()[0]).unwrap();
    for name in &names {
        leaf.verify_is_valid_for_subject_name(name).unwrap();
    }
    leaf.verify_is_valid_for_subject_name(&other).unwrap_err();
    assert_eq!(
        heddle_shell::tls::spiffe_id(&identity.chain()[0]).unwrap(),
        SpiffeId::control_plane(&trust_domain)
    );
}

#[test]
fn given_files_that_do_not_belong_together_are_refused() {
    let (files, good) = given();
    let (others, _) = given();
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let with = |root: &Path, key: &Path| {
        let mut settings = good.clone();
        settings.source = Source::Intermediate {
            root: root.to_owned(),
            certificate: files.path().join("intermediate-certificate.pem"),
            key: key.to_owned(),
        };
        settings
    };
    let (root, key) = ("root-certificate.pem", "intermediate-key.pem");
    let other_key = with(&files.path().join(root), &others.path().join(key));
    let refused = try_open(&other_key, directory.path(), wall).unwrap_err();
    assert!(
        refused.to_string().contains("not the certificate's"),
        "{refused}"
    );
    let missing = with(&files.path().join("nothing.pem"), &files.path().join(key));
    let refused = try_open(&missing, directory.path(), wall).unwrap_err();
    assert!(refused.to_string().contains("does not exist"), "{refused}");
    // Each file is good by itself; only a client's check of the path tells.
    let other_root = with(&others.path().join(root), &files.path().join(key));
    let authority = Arc::new(open(&other_root, directory.path(), wall));
    let own = Own::new(authority, &"cluster.local".parse().unwrap(), &[]).unwrap();
    let refused = own.issue(wall).unwrap_err();
    assert!(matches!(refused, OwnError::Path { .. }), "{refused}");
}

#[tokio::test]
async fn the_administrator_is_written_whole_and_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let authority = Arc::new(open(&settings("{}"), directory.path(), wall));
    let trust_domain = "cluster.local".parse().unwrap();
    let store = RedbStore::open(&directory.path().join("store"), Retention::default());
    let accepted = Arc::new(
        Administrators::open(Arc::new(store.unwrap()))
            .await
            .unwrap(),
    );
    let list = Arc::clone(&accepted);
    let administrator = Administrator::new(authority, &trust_domain, directory.path(), list);
    let certificate = || {
        let file = directory.path().join("administrator/certificate.pem");
        fs::read_to_string(file).unwrap()
    };
    let is_accepted = |text: &str| {
        let leaf = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        accepted.accepted().load().contains(&Fingerprint::of(&leaf))
    };
    administrator.renew(wall).await.unwrap();
    let first = certificate();
    assert!(is_accepted(&first));
    administrator.renew(wall + DAY / 3).await.unwrap();
    assert_eq!(certificate(), first);
    administrator.renew(wall + DAY / 2).await.unwrap();
    assert_ne!(certificate(), first);
    assert!(is_accepted(&certificate()) && is_accepted(&first));
    // Its end is its end: it leaves the list with the next change.
    administrator.renew(wall + DAY).await.unwrap();
    assert!(is_accepted(&certificate()) && !is_accepted(&first));
    let key = directory.path().join("administrator/key.pem");
    assert_eq!(
        fs::metadata(key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Left by a crash; nobody reads it any more.
    fs::create_dir(directory.path().join("administrator-0")).unwrap();
    administrator.renew(wall + 2 * DAY).await.unwrap();
    let generations = fs::read_dir(directory.path()).unwrap();
    let names = generations.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names
        .filter(|name| name.starts_with("administrator-"))
        .collect();
    assert_eq!(left.len(), 2, "the newest and the one before: {left:?}");
}

#[tokio::test]
async fn a_clock_that_was_ahead_leaves_nothing_that_is_not_valid_yet() {
    let directory = tempfile::tempdir().unwrap();
    let wall = whole_seconds(clock::wall());
    let authority = Arc::new(open(&settings("{}"), directory.path(), wall));
    let trust_domain = "cluster.local".parse().unwrap();
    let store = RedbStore::open(&directory.path().join("store"), Retention::default());
    let accepted = Administrators::open(Arc::new(store.unwrap()))
        .await
        .unwrap();
    let administrator = Administrator::new(
        Arc::clone(&authority),
        &trust_domain,
        directory.path(),
        Arc::new(accepted),
    );
    let administrators = || {
        let file = directory.path().join("administrator/certificate.pem");
        let leaf = CertificateDer::pem_file_iter(file).unwrap().next();
        let leaf = leaf.unwrap().unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        leaf.validity().not_before.timestamp()
    };
    let ahead = wall + 200 * DAY;
    assert_eq!(authority.renew(ahead).unwrap(), Renewal::Renewed);
    administrator.renew(ahead).await.unwrap();
    let unix = |time: SystemTime| clock::unix_ms(time) / 1000;
    assert!(administrators() > unix(wall));
    // It is set right.
    assert_eq!(authority.renew(wall).unwrap(), Renewal::Renewed);
    web(&authority, None, wall);
    administrator.renew(wall).await.unwrap();
    assert!(administrators() <= unix(wall));
}

#[test]
fn a_stored_intermediate_of_another_root_of_the_same_name_is_not_used() {
    let wall = clock::wall();
    let root = |directory: &Path| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "The Root");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (wall - DAY).into();
        params.not_after = (wall + 1000 * DAY).into();
        let certificate = params.self_signed(&key).unwrap();
        let file = |name: &str| directory.join(name);
        fs::write(file("given.pem"), certificate.pem()).unwrap();
        let pem = key.serialize_pem();
        crate::files::write(
            &file("given.key"),
            pem.as_bytes(),
            crate::files::Mode::Secret,
        )
        .unwrap();
        let mut settings = settings("{}");
        settings.source = Source::Root {
            certificate: file("given.pem"),
            key: file("given.key"),
        };
        settings
    };
    let directory = tempfile::tempdir().unwrap();
    let first = open(&root(directory.path()), directory.path(), wall);
    let second = Arc::new(open(&root(directory.path()), directory.path(), wall));
    assert_ne!(first.root(), second.root());
    let own = Own::new(second, &"cluster.local".parse().unwrap(), &[]).unwrap();
    own.issue(wall).unwrap();
}

/// What another implementation thinks of a chain.
#[test]
fn openssl_accepts_the_chain() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
        println!("SKIP: openssl is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wall = clock::wall();
    let authority = open(&settings("{}"), directory.path(), wall);
    let file = |name: &str| directory.path().join(name).display().to_string();
    for key in [
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
    ] {
        let issued = authority
            .issue(&WEB.parse().unwrap(), &key, None, wall)
            .unwrap();
        fs::write(file("leaf"), material::pem("CERTIFICATE", &issued.chain[0])).unwrap();
        fs::write(
            file("middle"),
            material::pem("CERTIFICATE", &issued.chain[1]),
        )
        .unwrap();
        for purpose in ["sslserver", "sslclient"] {
            let verified = Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", purpose])
                .args(["-CAfile", &file("root.pem"), "-untrusted", &file("middle")])
                .arg(file("leaf"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success(), "{purpose}: {said}");
        }
        let shown = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in", &file("leaf")])
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        for part in [
            "X509v3 Subject Alternative Name: critical",
            &format!("URI:{WEB}"),
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "Digital Signature",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }
}
