//! TLS by SPIFFE id: who we are ([`Identity`]), whom we trust ([`TrustBundle`]), and rustls
//! configurations made of both.
//!
//! TLS 1.3 only, no tickets, no early data. A configuration belongs to one identity and one
//! bundle; when either changes, build a new one and publish it. Established connections keep
//! theirs.

mod dial;
mod identity;
mod trust;
mod verify;

use std::sync::Arc;

use heddle_policy::spiffe::SpiffeId;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            self,
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
        },
    },
    version::TLS13,
};

pub use dial::dial;
pub use identity::{Identity, IdentityError, KeyRequest};
pub use trust::{Anchor, AnchorError, Trust, TrustBundle};
pub use verify::{PeerError, peer, spiffe_id};

/// Which certificates a side accepts from the other.
#[derive(Clone, Debug)]
pub enum Accept {
    /// Any identity of the trust bundle.
    Mesh,
    /// Exactly one of these.
    OneOf(Arc<[SpiffeId]>),
    /// The reserved id of the control plane, in any trust domain of the trust.
    ControlPlane,
}

/// Whether clients must present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// A handshake without one fails.
    Certified,
    /// A certificate is verified when there is one.
    Anyone,
}

/// A server's side.
///
/// # Errors
/// When the identity's key and certificate do not fit rustls.
pub fn server(
    identity: &Identity,
    trust: Trust,
    accept: Accept,
    clients: Clients,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    let verifier = verify::Verifier::new(trust, accept, clients, &provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain().to_vec(), identity.key())?;
    config.alpn_protocols = alpn.iter().map(|token| token.to_vec()).collect();
    // A ticket would skip the certificate exchange, and with it denial and expiry.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// A client's side; without an identity it presents no certificate.
///
/// # Errors
/// When the identity's key and certificate do not fit rustls.
pub fn client(
    identity: Option<&Identity>,
    trust: Trust,
    accept: Accept,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = provider();
    let verifier = verify::Verifier::new(trust, accept, Clients::Certified, &provider);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain().to_vec(), identity.key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|token| token.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The workspace's one crypto provider. Of its suites AES with 128 bits comes before that with 256:
/// the key exchange gives no more than 128, and each record costs less.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

#[cfg(test)]
mod tests;
