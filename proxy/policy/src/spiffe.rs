//! SPIFFE ids of the form `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`
//! (SPIFFE-ID specification, sections 2.1 and 2.2; the path is Istio's).

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// The namespace and service account of the control plane itself. Never issued on a
/// workload's proof; a sidecar accepts no other server as its control plane.
pub const CONTROL_PLANE_NAMESPACE: &str = "heddle-system";
/// See [`CONTROL_PLANE_NAMESPACE`].
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "heddle-control-plane";

/// Longest id accepted, in bytes (SPIFFE-ID section 2.3).
const ID_BYTES_MAX: usize = 2048;

/// A name such as `cluster.local`: lower-case letters, digits, `.`, `-` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Who a workload is. Cheap to clone and compare.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The whole id; the other fields are ranges of it.
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Verified identity of the other side of a connection, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Plaintext, or TLS without a client certificate.
    Anonymous,
    /// Proven by a certificate of our trust bundle.
    Meshed(SpiffeId),
}

/// Why a text is not a SPIFFE id of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The text is longer than the specification allows.
    #[error("is longer than {ID_BYTES_MAX} bytes")]
    TooLong,
    /// It does not start with `spiffe://`.
    #[error("does not start with spiffe://")]
    Scheme,
    /// The trust domain is empty or has a character outside `a-z 0-9 . - _`.
    #[error("has an invalid trust domain")]
    TrustDomain,
    /// The path is not `/ns/<namespace>/sa/<service-account>`.
    #[error("has a path other than /ns/<namespace>/sa/<service-account>")]
    Path,
}

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Composes an id from its parts.
    ///
    /// # Errors
    /// [`Malformed`] when a part has a character that SPIFFE does not allow.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, Malformed> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The reserved id of the control plane.
    pub fn control_plane(trust_domain: &TrustDomain) -> Self {
        Self::new(
            trust_domain,
            CONTROL_PLANE_NAMESPACE,
            CONTROL_PLANE_SERVICE_ACCOUNT,
        )
        .expect("both parts are constants of the allowed alphabet")
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + NS.len()..usize::from(self.namespace_end)]
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + SA.len()..]
    }

    /// Whether this is the reserved id of the control plane.
    pub fn is_control_plane(&self) -> bool {
        self.namespace() == CONTROL_PLANE_NAMESPACE
            && self.service_account() == CONTROL_PLANE_SERVICE_ACCOUNT
    }
}

impl Peer {
    /// The id, if there is one.
    pub fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Anonymous => None,
            Self::Meshed(id) => Some(id),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let is_valid = !text.is_empty()
            && text.len() <= 255
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        is_valid
            .then(|| Self(text.into()))
            .ok_or(Malformed::TrustDomain)
    }
}

impl FromStr for SpiffeId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > ID_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(Malformed::Scheme)?;
        let slash = rest.find('/').ok_or(Malformed::Path)?;
        rest[..slash].parse::<TrustDomain>()?;
        let (namespace, service_account) = rest[slash..]
            .strip_prefix(NS)
            .and_then(|path| path.split_once(SA))
            .ok_or(Malformed::Path)?;
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(Malformed::Path);
        }
        let end = |at: usize| u16::try_from(at).map_err(|_too_long| Malformed::TooLong);
        let trust_domain_end = SCHEME.len() + slash;
        Ok(Self {
            text: text.into(),
            trust_domain_end: end(trust_domain_end)?,
            namespace_end: end(trust_domain_end + NS.len() + namespace.len())?,
        })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Letters, digits, `.`, `-`, `_` (SPIFFE-ID section 2.2), and not a dot segment.
fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// What every id begins with.
pub const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str, &str), Malformed>) {
        let parsed: Result<SpiffeId, _> = text.parse();
        let parts = parsed
            .as_ref()
            .map(|id| (id.trust_domain(), id.namespace(), id.service_account()))
            .map_err(Clone::clone);
        assert_eq!(parts, expected, "{text}");
    }

    #[test]
    fn an_id_has_three_parts() {
        check(
            "spiffe://cluster.local/ns/shop/sa/web",
            Ok(("cluster.local", "shop", "web")),
        );
    }

    #[test]
    fn anything_else_is_refused() {
        check(
            "https://cluster.local/ns/shop/sa/web",
            Err(Malformed::Scheme),
        );
        check(
            "spiffe://Cluster.local/ns/a/sa/b",
            Err(Malformed::TrustDomain),
        );
        check("spiffe:///ns/a/sa/b", Err(Malformed::TrustDomain));
        check("spiffe://a:1/ns/a/sa/b", Err(Malformed::TrustDomain));
        check("spiffe://td", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/", Err(Malformed::Path));
        check("spiffe://td/ns//sa/b", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/b/c", Err(Malformed::Path));
        check("spiffe://td/ns/a/b/sa/c", Err(Malformed::Path));
        check("spiffe://td/ns/../sa/c", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/b?q", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/b#f", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/b\0", Err(Malformed::Path));
        check("spiffe://td/ns/a/sa/%61", Err(Malformed::Path));
        check(
            &format!("spiffe://td/ns/a/sa/{}", "b".repeat(3000)),
            Err(Malformed::TooLong),
        );
    }
}
