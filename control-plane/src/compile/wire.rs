//! Constructors of the xDS messages we emit.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use heddle_proto::xds::{
    envoy::{
        config::{
            core::v3::{
                Address, AggregatedConfigSource, ApiVersion, ConfigSource, Metadata, SocketAddress,
                TypedExtensionConfig, address, config_source, socket_address,
            },
            listener::v3::{Filter, filter},
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, http_connection_manager::CodecType, http_filter,
            },
        },
    },
    google::protobuf::{
        Any, BoolValue, Duration as WireDuration, Struct, UInt32Value, Value, value,
    },
};
use prost::{Message, Name};

use crate::model::PortProtocol;

/// A message with its type.
pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// One of our own messages, under our key.
pub(super) fn our_metadata(name: &str, message: &impl Message) -> HashMap<String, Any> {
    let any = Any {
        type_url: format!("type.googleapis.com/heddle.v1.{name}"),
        value: message.encode_to_vec(),
    };
    HashMap::from([(heddle_policy::snapshot::xds::METADATA_KEY.to_owned(), any)])
}

/// Metadata with one of our own messages.
pub(super) fn metadata(name: &str, message: &impl Message) -> Metadata {
    Metadata {
        typed_filter_metadata: our_metadata(name, message),
        ..Metadata::default()
    }
}

/// `{heddle: mtls}`: what meshed endpoints say and their transport socket asks for.
pub(super) fn meshed() -> Struct {
    let value = Value {
        kind: Some(value::Kind::StringValue("mtls".to_owned())),
    };
    Struct {
        fields: HashMap::from([("heddle".to_owned(), value)]),
    }
}

/// From the same stream.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource {},
        )),
        ..ConfigSource::default()
    }
}

pub(super) fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(super) fn duration(duration: Duration) -> Option<WireDuration> {
    Some(WireDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below 10^9"),
    })
}

pub(super) fn address(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(
                address.port().into(),
            )),
            // Else `::` is IPv6 alone; elsewhere it says nothing.
            ipv4_compat: address.ip() == Ipv6Addr::UNSPECIFIED,
            ..SocketAddress::default()
        })),
    }
}

pub(super) fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}

pub(super) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

pub(super) fn extension<M: Message + Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pack(config)),
    }
}

/// An HTTP filter chain's one filter, with the router behind `filters`.
pub(super) fn http_manager(
    name: &str,
    codec: CodecType,
    mut filters: Vec<HttpFilter>,
) -> HttpConnectionManager {
    filters.push(http_filter(
        "envoy.filters.http.router",
        pack(&Router::default()),
    ));
    HttpConnectionManager {
        codec_type: codec.into(),
        stat_prefix: name.to_owned(),
        http_filters: filters,
        ..HttpConnectionManager::default()
    }
}

/// How a declared protocol is spoken; `None` is opaque.
pub(super) fn codec(protocol: Option<PortProtocol>) -> Option<CodecType> {
    match protocol {
        None => Some(CodecType::Auto),
        Some(PortProtocol::Http) => Some(CodecType::Http1),
        Some(PortProtocol::Http2 | PortProtocol::Grpc) => Some(CodecType::Http2),
        Some(PortProtocol::Https | PortProtocol::Tls | PortProtocol::Tcp) => None,
    }
}

/// One protocol for ports that several services declare: theirs if they agree, else detected.
pub(super) fn agreed<'a>(
    protocols: impl IntoIterator<Item = &'a Option<PortProtocol>>,
) -> Option<CodecType> {
    let mut codecs = protocols.into_iter().map(|protocol| codec(*protocol));
    let first = codecs.next()?;
    if codecs.all(|other| other == first) {
        first
    } else {
        Some(CodecType::Auto)
    }
}
