//! Workload tokens: JWTs (ES256) that this control plane signs and only it accepts. A token fixes
//! an identity, its labels and the addresses it may register.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use heddle_policy::spiffe::{SpiffeId, TrustDomain};
use ipnet::IpNet;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use rand::Rng;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    authn, config,
    files::{self, FileError, Mode},
};

/// Longest token looked at, in bytes.
const BYTES_MAX: usize = 8 * 1024;

/// How far ahead the clock of another replica may be. Not applied to the end of a token: who
/// presents it has had all its life to renew it.
const LEEWAY: Duration = Duration::from_secs(5);

/// Labels, and addresses, in one token.
const ITEMS_MAX: usize = 64;

/// Longest label name (Kubernetes: a prefix of 253, `/`, 63) and value.
const LABEL_NAME_BYTES_MAX: usize = 317;
const LABEL_VALUE_BYTES_MAX: usize = 63;

/// Signs and checks tokens.
pub struct Tokens {
    settings: config::Tokens,
    trust_domain: TrustDomain,
    signing: EncodingKey,
    verifying: DecodingKey,
    /// Names the key, so that a token of another control plane is told from a forged one.
    key_id: String,
    validation: Validation,
}

/// What a token is asked to prove.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Of the identity.
    pub namespace: String,
    /// Of the identity.
    pub service_account: String,
    /// Fixed in the token.
    pub labels: BTreeMap<String, String>,
    /// Fixed in the token: IPs or CIDRs.
    pub addresses: Vec<String>,
}

/// What a good token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Never a reserved one.
    pub id: SpiffeId,
    /// What selectors see.
    pub labels: BTreeMap<String, String>,
    /// What may be registered.
    pub addresses: Vec<IpNet>,
    /// When the token ends.
    pub expires: SystemTime,
}

/// A new token.
#[derive(Clone)]
pub struct Minted {
    /// The JWT.
    pub token: String,
    /// Names it (`jti`) without proving anything.
    pub token_id: String,
    /// Whom it proves.
    pub id: SpiffeId,
    /// When it ends.
    pub expires: SystemTime,
}

/// Why a token was not accepted. Says nothing that helps to make a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Longer than any honest token.
    #[error("the token is longer than {BYTES_MAX} bytes")]
    TooLong,
    /// Not a JWT of ours: form, algorithm, key, issuer or audience.
    #[error("the token was not issued by this control plane")]
    Foreign,
    /// The signature is wrong.
    #[error("the token's signature does not verify")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet; is the clock right?")]
    NotYetValid,
}

/// Why a token was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MintError {
    /// Not the name of a workload.
    #[error("namespace and service account {0}")]
    Identity(heddle_policy::spiffe::Malformed),
    /// The control plane's own, or the administrator's.
    #[error("{0} is reserved")]
    Reserved(SpiffeId),
    /// A label that no selector could ask for.
    #[error(
        "label \"{0}\" is not a name and value of letters, digits, '-', '_', '.' (and '/' in the name)"
    )]
    Label(String),
    /// Not an address.
    #[error("\"{0}\" is not an IP address or a CIDR")]
    Address(String),
    /// Too much for one token.
    #[error("a token holds at most {ITEMS_MAX} labels and {ITEMS_MAX} addresses")]
    TooMany,
    /// Nobody would accept it.
    #[error(
        "the token would have {0} bytes, of which {BYTES_MAX} are accepted; give it fewer or \
         shorter labels and addresses"
    )]
    TooLong(usize),
    /// Longer than the settings allow.
    #[error("a token lives at most {} hours", .0.as_secs() / 3600)]
    Lifetime(Duration),
    /// The library failed.
    #[error("signing the token failed")]
    Signing,
}

/// Why the key is not usable.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It holds something else.
    #[error("authority/tokens.pem does not hold an ECDSA P-256 key in PEM")]
    Content,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    addresses: Vec<String>,
}

impl Tokens {
    /// Reads the key, or makes it at the first start.
    ///
    /// # Errors
    /// [`TokenKeyError`].
    pub fn open(
        settings: &config::Tokens,
        trust_domain: &TrustDomain,
        data_directory: &Path,
    ) -> Result<Self, TokenKeyError> {
        let directory = data_directory.join("authority");
        files::make_directory(&directory)?;
        let file = directory.join("tokens.pem");
        let key = match files::read_secret(&file)? {
            Some(pem) => KeyPair::from_pem_and_sign_algo(&pem, &PKCS_ECDSA_P256_SHA256)
                .map_err(|_may_quote_the_key| TokenKeyError::Content)?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(|_no_randomness| TokenKeyError::Content)?;
                files::write(&file, key.serialize_pem().as_bytes(), Mode::Secret)?;
                key
            }
        };
        Self::new(settings, trust_domain, &key)
    }

    fn new(
        settings: &config::Tokens,
        trust_domain: &TrustDomain,
        key: &KeyPair,
    ) -> Result<Self, TokenKeyError> {
        let verifying = DecodingKey::from_ec_pem(key.public_key_pem().as_bytes())
            .map_err(|_detail| TokenKeyError::Content)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[issuer(trust_domain)]);
        validation.set_audience(&[audience(trust_domain)]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp", "nbf"]);
        // Times are checked here, by the clock that is passed in.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let key_id = digest(&SHA256, key.public_key_raw()).as_ref()[..8]
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        Ok(Self {
            settings: settings.clone(),
            trust_domain: trust_domain.clone(),
            signing: EncodingKey::from_ec_der(key.serialized_der()),
            verifying,
            key_id,
            validation,
        })
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`MintError`].
    pub fn mint(
        &self,
        subject: &Subject,
        lifetime: Option<Duration>,
        wall: SystemTime,
        rng: &mut impl Rng,
    ) -> Result<Minted, MintError> {
        let id = SpiffeId::new(
            &self.trust_domain,
            &subject.namespace,
            &subject.service_account,
        )
        .map_err(MintError::Identity)?;
        if authn::is_reserved(&id) {
            return Err(MintError::Reserved(id));
        }
        subject.check()?;
        let lifetime = lifetime.unwrap_or(self.settings.lifetime);
        if lifetime > self.settings.lifetime_max {
            return Err(MintError::Lifetime(self.settings.lifetime_max));
        }
        let token_id = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
        let now = unix_seconds(wall);
        let exp = now + lifetime.as_secs().max(1);
        let claims = Claims {
            iss: issuer(&self.trust_domain),
            aud: audience(&self.trust_domain),
            sub: id.to_string(),
            iat: now,
            nbf: now,
            exp,
            jti: token_id.clone(),
            labels: subject.labels.clone(),
            addresses: subject.addresses.clone(),
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let token = encode(&header, &claims, &self.signing)
            .map_err(|_may_quote_the_key| MintError::Signing)?;
        if token.len() > BYTES_MAX {
            return Err(MintError::TooLong(token.len()));
        }
        Ok(Minted {
            token,
            token_id,
            id,
            expires: UNIX_EPOCH + Duration::from_secs(exp),
        })
    }

    /// What a token proves at `wall`.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, wall: SystemTime) -> Result<Grant, TokenError> {
        if token.len() > BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_detail| TokenError::Foreign)?;
        if header.alg != Algorithm::ES256 || header.kid.as_deref() != Some(self.key_id.as_str()) {
            return Err(TokenError::Foreign);
        }
        let claims = decode::<Claims>(token, &self.verifying, &self.validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::Signature,
                _ => TokenError::Foreign,
            })?
            .claims;
        let now = unix_seconds(wall);
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now + LEEWAY.as_secs() {
            return Err(TokenError::NotYetValid);
        }
        let foreign = || TokenError::Foreign;
        let id: SpiffeId = claims.sub.parse().map_err(|_malformed| foreign())?;
        if id.trust_domain() != self.trust_domain.as_str() || authn::is_reserved(&id) {
            return Err(TokenError::Foreign);
        }
        // A time beyond what the system can count is none that we wrote.
        let expires = UNIX_EPOCH
            .checked_add(Duration::from_secs(claims.exp))
            .ok_or_else(foreign)?;
        let addresses = claims
            .addresses
            .iter()
            .map(|text| network(text).ok_or_else(foreign));
        Ok(Grant {
            id,
            labels: claims.labels,
            addresses: addresses.collect::<Result<_, _>>()?,
            expires,
        })
    }
}

impl Subject {
    fn check(&self) -> Result<(), MintError> {
        if self.labels.len() > ITEMS_MAX || self.addresses.len() > ITEMS_MAX {
            return Err(MintError::TooMany);
        }
        let is_word = |text: &str, extra: &BTreeSet<u8>| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b) || extra.contains(&b))
        };
        for (name, value) in &self.labels {
            let is_good = !name.is_empty()
                && name.len() <= LABEL_NAME_BYTES_MAX
                && value.len() <= LABEL_VALUE_BYTES_MAX
                && is_word(name, &[b'/'].into())
                && is_word(value, &BTreeSet::new());
            if !is_good {
                return Err(MintError::Label(format!("{name}={value}")));
            }
        }
        match self.addresses.iter().find(|text| network(text).is_none()) {
            Some(text) => Err(MintError::Address(text.clone())),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A CIDR, or an address as a network of one.
fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn issuer(trust_domain: &TrustDomain) -> String {
    SpiffeId::control_plane(trust_domain).to_string()
}

/// A token is for the control plane of its own trust domain and for nobody else.
fn audience(trust_domain: &TrustDomain) -> String {
    format!("heddle.v1/{trust_domain}")
}

fn unix_seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests;
