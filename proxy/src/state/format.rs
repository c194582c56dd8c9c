//! The bytes of a generation.

use std::{fmt, net::SocketAddr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use heddle_proto::v1;
use heddle_shell::tls::Anchor;
use prost::Message;

use super::KeyStorage;

/// Whom a state belongs to. A state of somebody else is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The workload's id; it contains the trust domain.
    pub identity: String,
    /// SHA-256 over the configured trust anchor: a sidecar that is told to trust another root
    /// does not go on trusting the old one.
    pub anchor: [u8; 32],
}

/// What survives a restart.
#[derive(Clone, PartialEq, Message)]
pub struct Saved {
    /// Accepted xDS resources as they came, decoded again at the start.
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<SavedResource>,
    /// Roots and denials.
    #[prost(message, optional, tag = "2")]
    pub trust_bundle: Option<v1::TrustBundle>,
    /// Our own certificate.
    #[prost(message, optional, tag = "3")]
    pub identity: Option<SavedIdentity>,
    /// See [`heddle_relay::meshed`].
    #[prost(message, repeated, tag = "4")]
    pub meshed: Vec<SavedMeshed>,
}

/// An address that is not dialled in plaintext.
#[derive(Clone, PartialEq, Message)]
pub struct SavedMeshed {
    /// `ip:port`.
    #[prost(string, tag = "1")]
    pub address: String,
    /// How long a control plane has not described it as meshed.
    #[prost(uint64, tag = "2")]
    pub unseen_s: u64,
}

impl From<(SocketAddr, Duration)> for SavedMeshed {
    fn from((address, unseen): (SocketAddr, Duration)) -> Self {
        Self {
            address: address.to_string(),
            unseen_s: unseen.as_secs(),
        }
    }
}

impl Saved {
    /// The addresses that are not dialled in plaintext; those that cannot be read are none.
    pub fn meshed(&self) -> impl Iterator<Item = (SocketAddr, Duration)> {
        self.meshed.iter().filter_map(|saved| {
            let address = saved.address.parse().ok()?;
            Some((address, Duration::from_secs(saved.unseen_s)))
        })
    }
}

/// One xDS resource.
#[derive(Clone, PartialEq, Message)]
pub struct SavedResource {
    /// Type URL.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// As the control plane calls it.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Its protobuf encoding.
    #[prost(bytes = "vec", tag = "4")]
    pub raw: Vec<u8>,
}

/// A certificate chain and its key.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct SavedIdentity {
    /// Leaf first, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8 DER. Empty when the directory must not hold it.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
}

/// What a file holds: the state and whose it is.
#[derive(Clone, PartialEq, Message)]
struct Bound {
    #[prost(string, tag = "1")]
    identity: String,
    #[prost(bytes = "vec", tag = "2")]
    anchor: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    saved: Option<Saved>,
}

impl Binding {
    /// For `identity` under `anchor`.
    pub fn new(identity: &str, anchor: &Anchor) -> Self {
        let bytes = match anchor {
            Anchor::Sha256(hash) => hash.to_vec(),
            Anchor::Roots(roots) => roots.iter().flat_map(|root| root.to_vec()).collect(),
        };
        Self {
            identity: identity.to_owned(),
            anchor: sha256(&bytes),
        }
    }
}

impl fmt::Debug for SavedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SavedIdentity(..)")
    }
}

pub(super) fn encode(saved: &Saved, binding: &Binding, keys: KeyStorage) -> Vec<u8> {
    let mut saved = saved.clone();
    if let (Some(identity), KeyStorage::Never) = (&mut saved.identity, keys) {
        identity.key.clear();
    }
    let bound = Bound {
        identity: binding.identity.clone(),
        anchor: binding.anchor.to_vec(),
        saved: Some(saved),
    };
    let payload = bound.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 32 + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&sha256(&payload));
    bytes.extend_from_slice(&payload);
    bytes
}

/// The state, or why it is as good as absent.
pub(super) fn decode(bytes: &[u8], binding: &Binding) -> Result<Saved, &'static str> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("it is of another format or version")?;
    let (checksum, payload) = rest.split_at_checked(32).ok_or("it is torn")?;
    if sha256(payload) != checksum {
        return Err("its checksum does not fit: it is torn or was changed");
    }
    let bound = Bound::decode(payload).map_err(|_detail| "it does not decode")?;
    if bound.identity != binding.identity {
        return Err("it belongs to another identity");
    }
    if bound.anchor != binding.anchor {
        return Err("it was written under another trust anchor");
    }
    bound.saved.ok_or("it is empty")
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Ends with the version of the format.
const MAGIC: &[u8] = b"heddle-state\x00\x00\x00\x01";
