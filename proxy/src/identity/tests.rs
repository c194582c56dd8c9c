use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;

fn root() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn bundle(revision: u64, domain: &str, denied: &[&str]) -> v1::TrustBundle {
    v1::TrustBundle {
        revision,
        trust_domains: [(
            domain.to_owned(),
            v1::TrustDomainRoots {
                roots_der: vec![root()],
            },
        )]
        .into(),
        denied_identities: denied.iter().map(|id| (*id).to_owned()).collect(),
    }
}

fn keyring() -> Keyring {
    Keyring::new("td".parse().unwrap())
}

const BAD: &str = "spiffe://td/ns/a/sa/bad";

#[test]
fn a_denial_is_never_forgotten_by_an_older_bundle() {
    let keyring = keyring();
    keyring.set_bundle(bundle(5, "td", &[BAD])).unwrap();
    assert_eq!(
        keyring.set_bundle(bundle(4, "td", &[])),
        Err(BundleError::Older {
            offered: 4,
            held: 5
        })
    );
    // Same number, other content: the first one stays.
    keyring.set_bundle(bundle(5, "td", &[])).unwrap();
    let denied = |keyring: &Keyring| keyring.held().load().trust.as_ref().unwrap().denied.len();
    assert_eq!(denied(&keyring), 1);
    keyring.set_bundle(bundle(6, "td", &[])).unwrap();
    assert_eq!(denied(&keyring), 0);
}

#[test]
fn a_bundle_that_would_cut_us_off_is_refused() {
    let keyring = keyring();
    assert_eq!(
        keyring.set_bundle(bundle(1, "elsewhere", &[])),
        Err(BundleError::NoRoot)
    );
    for (wrong, part) in [
        (bundle(1, "TD", &[]), "TD"),
        (bundle(1, "td", &["bad"]), "bad"),
        (
            v1::TrustBundle {
                trust_domains: [(
                    "td".to_owned(),
                    v1::TrustDomainRoots {
                        roots_der: vec![vec![1]],
                    },
                )]
                .into(),
                ..Default::default()
            },
            "does not parse",
        ),
    ] {
        let error = keyring.set_bundle(wrong).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(keyring.held().load().trust.is_none());
}

#[test]
fn the_data_path_sees_nothing_before_both_halves_are_there() {
    let keyring = keyring();
    keyring.set_bundle(bundle(1, "td", &[])).unwrap();
    assert!(keyring.credentials().load().is_none());
}
