use heddle_shell::clock;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::*;

struct Fixture {
    key: KeyPair,
    tokens: Tokens,
}

impl Fixture {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let settings = config::Tokens {
            lifetime: Duration::from_secs(3600),
            lifetime_max: Duration::from_secs(7200),
        };
        let tokens = Tokens::new(&settings, &"td".parse().unwrap(), &key).unwrap();
        Self { key, tokens }
    }

    fn mint(&self) -> String {
        let mut rng = StdRng::seed_from_u64(1);
        let minted = self.tokens.mint(&web(), None, clock::wall(), &mut rng);
        minted.unwrap().token
    }

    /// A token with one thing changed, signed with the right key.
    #[track_caller]
    fn check(&self, change: &[(&str, Value)], expected: Result<(), TokenError>) {
        let now = unix_seconds(clock::wall());
        let mut claims = json!({
            "iss": "spiffe://td/ns/heddle-system/sa/heddle-control-plane",
            "aud": "heddle.v1/td",
            "sub": "spiffe://td/ns/shop/sa/web",
            "iat": now, "nbf": now, "exp": now + 60, "jti": "1",
        });
        for (name, value) in change {
            claims[name] = value.clone();
        }
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.tokens.key_id.clone());
        let token = encode(&header, &claims, &self.tokens.signing).unwrap();
        let verified = self.tokens.verify(&token, clock::wall());
        assert_eq!(verified.map(|_| ()), expected, "{change:?}");
    }
}

fn web() -> Subject {
    Subject {
        namespace: "shop".to_owned(),
        service_account: "web".to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        addresses: vec!["10.1.0.0/16".to_owned(), "fd00::1".to_owned()],
    }
}

#[test]
fn a_token_proves_what_it_was_minted_for() {
    let fixture = Fixture::new();
    let grant = fixture
        .tokens
        .verify(&fixture.mint(), clock::wall())
        .unwrap();
    assert_eq!(grant.id.as_str(), "spiffe://td/ns/shop/sa/web");
    assert_eq!(grant.labels, web().labels);
    let addresses: Vec<_> = grant.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.0/16", "fd00::1/128"]);
}

#[test]
fn claims_of_somebody_else_are_foreign() {
    let fixture = Fixture::new();
    let check = |name, value| fixture.check(&[(name, value)], Err(TokenError::Foreign));
    fixture.check(&[], Ok(()));
    check("aud", json!("heddle.v1/other"));
    check("aud", json!(["heddle.v1/td", "heddle.v1/other"]));
    check("aud", Value::Null);
    check(
        "iss",
        json!("spiffe://other/ns/heddle-system/sa/heddle-control-plane"),
    );
    check("iss", Value::Null);
    check("sub", json!("spiffe://other/ns/shop/sa/web"));
    check("sub", json!("web"));
    check(
        "sub",
        json!("spiffe://td/ns/heddle-system/sa/heddle-control-plane"),
    );
    check(
        "sub",
        json!("spiffe://td/ns/heddle-system/sa/heddle-administrator"),
    );
    check("exp", Value::Null);
    check("exp", json!("tomorrow"));
    check("nbf", Value::Null);
    check("addresses", json!(["everywhere"]));
}

#[test]
fn times_are_checked_with_little_leeway() {
    let fixture = Fixture::new();
    let now = unix_seconds(clock::wall());
    let check = |name, at: u64, expected| fixture.check(&[(name, json!(at))], expected);
    check("exp", now - 1, Err(TokenError::Expired));
    check("exp", now.saturating_sub(100_000), Err(TokenError::Expired));
    check("exp", u64::MAX, Err(TokenError::Foreign));
    check("nbf", now + 2, Ok(()));
    check("nbf", now + 60, Err(TokenError::NotYetValid));
}

#[test]
fn the_algorithm_is_ours_to_choose() {
    let fixture = Fixture::new();
    let (_, rest) = {
        let token = fixture.mint();
        let (head, rest) = token.split_once('.').unwrap();
        (head.to_owned(), rest.to_owned())
    };
    let payload = rest.split_once('.').unwrap().0;
    let verify = |token: &str| fixture.tokens.verify(token, clock::wall()).unwrap_err();
    let header = |alg: &str| {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let kid = &fixture.tokens.key_id;
        URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT", "kid": kid}).to_string())
    };
    assert_eq!(
        verify(&format!("{}.{payload}.", header("none"))),
        TokenError::Foreign
    );
    assert_eq!(
        verify(&format!("{}.{rest}", header("none"))),
        TokenError::Foreign
    );
    assert_eq!(
        verify(&format!("{}.{rest}", header("ES384"))),
        TokenError::Foreign
    );
    // The public key as a shared secret, in each form an attacker could have it.
    let public_pem = fixture.key.public_key_pem();
    for secret in [public_pem.as_bytes(), fixture.key.public_key_raw()] {
        let mut hs256 = Header::new(Algorithm::HS256);
        hs256.kid = Some(fixture.tokens.key_id.clone());
        let claims: Value = json!({"sub": "spiffe://td/ns/shop/sa/web"});
        let token = encode(&hs256, &claims, &EncodingKey::from_secret(secret)).unwrap();
        assert_eq!(verify(&token), TokenError::Foreign);
    }
}

#[test]
fn bytes_are_not_negotiable() {
    let fixture = Fixture::new();
    let token = fixture.mint();
    let verify = |token: &str| fixture.tokens.verify(token, clock::wall()).unwrap_err();
    assert_eq!(verify(""), TokenError::Foreign);
    assert_eq!(verify("a.b.c"), TokenError::Foreign);
    assert_eq!(verify(&"a".repeat(BYTES_MAX + 1)), TokenError::TooLong);
    // Cut short it may or may not still be base64.
    assert!(matches!(
        verify(&token[..token.len() - 4]),
        TokenError::Foreign | TokenError::Signature
    ));
    let mut changed = token.clone().into_bytes();
    let at = changed.len() - 10;
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    assert_eq!(verify(&changed), TokenError::Signature);
    // A claim changed under a signature that stays.
    let other = Fixture::new();
    let mut forged =
        Tokens::new(&fixture.tokens.settings, &"td".parse().unwrap(), &other.key).unwrap();
    assert_eq!(
        forged.verify(&token, clock::wall()),
        Err(TokenError::Foreign),
        "another control plane's"
    );
    forged.key_id = fixture.tokens.key_id.clone();
    let minted = forged.mint(&web(), None, clock::wall(), &mut StdRng::seed_from_u64(2));
    assert_eq!(verify(&minted.unwrap().token), TokenError::Signature);
}

#[test]
fn what_cannot_be_a_workload_gets_no_token() {
    let fixture = Fixture::new();
    let mint = |change: &dyn Fn(&mut Subject), lifetime| {
        let mut subject = web();
        change(&mut subject);
        let mut rng = StdRng::seed_from_u64(3);
        fixture
            .tokens
            .mint(&subject, lifetime, clock::wall(), &mut rng)
            .map(|_| ())
            .unwrap_err()
    };
    for account in ["heddle-control-plane", "heddle-administrator"] {
        let reserved = mint(
            &|subject| {
                subject.namespace = "heddle-system".to_owned();
                subject.service_account = account.to_owned();
            },
            None,
        );
        assert!(matches!(reserved, MintError::Reserved(_)), "{reserved:?}");
    }
    let malformed = mint(&|subject| subject.namespace = "a/sa/b".to_owned(), None);
    assert!(matches!(malformed, MintError::Identity(_)), "{malformed:?}");
    let label = mint(
        &|subject| {
            subject.labels.insert("a b".to_owned(), "c".to_owned());
        },
        None,
    );
    assert!(matches!(label, MintError::Label(_)), "{label:?}");
    let address = mint(&|subject| subject.addresses.push("here".to_owned()), None);
    assert!(matches!(address, MintError::Address(_)), "{address:?}");
    let long = mint(&|_| {}, Some(Duration::from_secs(7201)));
    assert!(matches!(long, MintError::Lifetime(_)), "{long:?}");
}

#[test]
fn the_key_is_made_once_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Fixture::new().tokens.settings;
    let open = || Tokens::open(&settings, &"td".parse().unwrap(), directory.path()).unwrap();
    let minted = open()
        .mint(&web(), None, clock::wall(), &mut StdRng::seed_from_u64(4))
        .unwrap();
    assert!(open().verify(&minted.token, clock::wall()).is_ok());
    assert!(!format!("{minted:?} {:?}", open()).contains(&minted.token));
}

#[test]
fn a_token_that_would_be_refused_for_its_length_is_not_minted() {
    let fixture = Fixture::new();
    let subject = Subject {
        labels: (0..64)
            .map(|i| (format!("{i:0>250}"), "v".repeat(60)))
            .collect(),
        ..web()
    };
    let mut rng = StdRng::seed_from_u64(1);
    let minted = fixture
        .tokens
        .mint(&subject, None, clock::wall(), &mut rng)
        .map(|minted| minted.token.len());
    assert!(matches!(minted, Err(MintError::TooLong(_))), "{minted:?}");
}
