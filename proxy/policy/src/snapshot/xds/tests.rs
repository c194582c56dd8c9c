use heddle_proto::xds::{
    envoy::config::core::v3::{TransportSocket, transport_socket},
    google::protobuf::{BoolValue, Struct, UInt32Value, Value, value},
};

use super::*;

mod cluster;
mod endpoints;
mod listener;
mod rbac;
mod route;
mod tls;

/// A change of a message, and what it changes.
type Row<M> = (&'static str, fn(&mut M));

/// The paths of a resource's faults; none when it is accepted.
fn faults<R: Message + Name>(resource: &R) -> Vec<String> {
    match decode(&R::type_url(), &resource.encode_to_vec()) {
        Ok(_) => Vec::new(),
        Err(rejected) => rejected
            .faults
            .into_iter()
            .map(|fault| fault.path)
            .collect(),
    }
}

fn accepted<R: Message + Name>(resource: &R) -> Decoded {
    decode(&R::type_url(), &resource.encode_to_vec()).unwrap()
}

/// Each change of `good` is refused with exactly this field, which is below `at`.
fn check_refused<M: Clone, R: Message + Name>(
    good: &M,
    resource: impl Fn(M) -> R,
    at: &str,
    rows: &[Row<M>],
) {
    assert_eq!(faults(&resource(good.clone())), [""; 0], "{at}");
    for (field, change) in rows {
        let mut changed = good.clone();
        change(&mut changed);
        let separator = if at.is_empty() || field.is_empty() || field.starts_with('[') {
            ""
        } else {
            "."
        };
        assert_eq!(
            faults(&resource(changed)),
            [format!("{at}{separator}{field}")]
        );
    }
}

/// Each change of `good` is counted, and means nothing.
fn check_ignored<M: Clone, R: Message + Name>(
    good: &M,
    resource: impl Fn(M) -> R,
    rows: &[Row<M>],
) {
    let before = accepted(&resource(good.clone()));
    assert_eq!(before.ignored, 0);
    for (field, change) in rows {
        let mut changed = good.clone();
        change(&mut changed);
        let after = accepted(&resource(changed));
        assert_eq!(after.ignored, 1, "{field}");
        let [before, after] = [&before, &after].map(|decoded| format!("{:?}", decoded.piece));
        assert_eq!(before, after, "{field}");
    }
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// One of our own messages.
fn pack_own(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/heddle.v1.{name}"),
        value: message.encode_to_vec(),
    }
}

/// With a field that no version has.
fn with_unknown(mut any: Any) -> Any {
    any.value.extend(UNKNOWN);
    any
}

fn u32_value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn bool_value(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

fn word(word: &str) -> Value {
    Value {
        kind: Some(value::Kind::StringValue(word.to_owned())),
    }
}

/// `{key: word}`.
fn fields(key: &str, text: &str) -> Struct {
    Struct {
        fields: [(key.to_owned(), word(text))].into(),
    }
}

fn socket(any: Any) -> Option<TransportSocket> {
    Some(TransportSocket {
        name: String::new(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any)),
    })
}

/// Field 9999 is 1.
const UNKNOWN: [u8; 4] = [0xf8, 0xf0, 0x04, 1];

#[test]
fn listener_names_have_one_form() {
    for name in ["out/10.0.0.1:80", "out/[fd00::1]:80", "host/web.shop:80"] {
        let key = DestinationKey::from_listener_name(name).unwrap();
        assert_eq!(key.listener_name(), name);
    }
    for name in [
        "out/10.0.0.1",
        "out/[fd00:0::1]:80",
        "out/10.0.0.1:080",
        "host/Web:80",
        "host/:80",
        "web:80",
        "",
    ] {
        assert_eq!(DestinationKey::from_listener_name(name), None, "{name}");
    }
}

/// What is no resource of ours is refused as a whole.
#[test]
fn a_resource_that_cannot_be_read_is_one_fault_without_a_path() {
    let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let refused = decode(secret, b"").unwrap_err();
    assert_eq!(refused.resource, secret);
    assert_eq!(refused.faults[0].path, "");
    for kind in ResourceType::ALL {
        for bytes in [&b"\xff"[..], b"\x0a\x05ab", b"\x0a\x01\xff"] {
            let refused = decode(kind.type_url(), bytes).unwrap_err();
            assert_eq!(refused.faults.len(), 1, "{kind} {bytes:?}");
            assert_eq!(refused.faults[0].path, "", "{kind} {bytes:?}");
        }
    }
}

#[test]
fn a_nack_names_every_fault_up_to_its_bound() {
    let host = |n: usize| heddle_proto::xds::envoy::config::route::v3::VirtualHost {
        domains: vec![format!("Upper{n}")],
        ..Default::default()
    };
    let table = |hosts: usize| RouteConfiguration {
        name: "echo:80".to_owned(),
        virtual_hosts: (0..hosts).map(host).collect(),
        ..Default::default()
    };
    let expected: Vec<_> = (0..fault::FAULTS_MAX)
        .map(|n| format!("virtual_hosts[{n}].domains[0]"))
        .collect();
    assert_eq!(faults(&table(3)), expected[..3]);
    assert_eq!(faults(&table(fault::FAULTS_MAX)), expected);
    assert_eq!(faults(&table(fault::FAULTS_MAX + 1)), expected);
}
