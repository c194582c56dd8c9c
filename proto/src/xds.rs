//! The modules of `envoy-types` that Heddle uses. Everything else in the workspace names
//! xDS types through here, so that the crate can be replaced in one place.

pub use envoy_types::pb::{envoy, google, xds};

/// Envoy's HTTP filters, under a name that is no crate's.
pub use envoy_types::pb::envoy::extensions::filters::http as http_filters;

use prost::{DecodeError, Message};

use crate::v1;

/// Decoding of what the sidecar is told. Compiled in this crate, for size (`Cargo.toml`), and not
/// in each crate that decodes: the types of xDS are many and large, and their decoders generic.
pub trait FromWire: Sized {
    /// Decodes a whole message.
    ///
    /// # Errors
    /// When the bytes are no protobuf of this type.
    fn from_wire(bytes: &[u8]) -> Result<Self, DecodeError>;
}

macro_rules! from_wire {
    ($($message:ty),+ $(,)?) => {
        $(impl FromWire for $message {
            fn from_wire(bytes: &[u8]) -> Result<Self, DecodeError> {
                Self::decode(bytes)
            }
        })+
    };
}

from_wire!(
    envoy::config::cluster::v3::Cluster,
    envoy::config::endpoint::v3::ClusterLoadAssignment,
    envoy::config::listener::v3::Listener,
    envoy::config::route::v3::RouteConfiguration,
    http_filters::rbac::v3::Rbac,
    envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    envoy::extensions::filters::network::rbac::v3::Rbac,
    envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy,
    envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext,
    envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext,
    envoy::extensions::upstreams::http::v3::HttpProtocolOptions,
    v1::ClusterPolicy,
    v1::EndpointPolicy,
    v1::OutboundPolicy,
);
