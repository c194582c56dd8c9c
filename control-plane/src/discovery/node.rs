//! Who a stream is: what the node says, checked against what the caller proved.

use std::sync::Arc;

use heddle_proto::xds::{
    envoy::config::core::v3::{Node as WireNode, node::UserAgentVersionType},
    google::protobuf::value,
};
use tonic::Status;

use super::proxies::{HEDDLE, Introduction};
use crate::{
    authn::Session,
    compile::{Flavour, Node},
};

/// The features that all of our security fields need (`proto/README.md`, Node).
const FEATURES_NEEDED: f64 = 1.0;
/// Where `heddle certs issue` writes unless told otherwise.
const CERTIFICATES: &str = "/etc/heddle/certificates";

/// Checks a node.
///
/// # Errors
/// INVALID_ARGUMENT for an id of another form, PERMISSION_DENIED for somebody else's,
/// FAILED_PRECONDITION for a sidecar that could not enforce what it would be told.
pub(super) fn check(wire: &WireNode, session: &Session) -> Result<(Node, Introduction), Status> {
    let parts: Vec<_> = wire.id.split('/').collect();
    let [namespace, account, instance] = parts[..] else {
        return Err(malformed(&wire.id));
    };
    // Of the names, since only the instance is of few characters.
    let is_printable = wire.id.bytes().all(|byte| byte.is_ascii_graphic());
    if [namespace, account].contains(&"")
        || !is_instance(instance)
        || wire.id.len() > NODE_ID_BYTES_MAX
        || !is_printable
    {
        return Err(malformed(&wire.id));
    }
    let workload = session.workload()?;
    let id = &workload.id;
    if id.namespace() != namespace || id.service_account() != account {
        return Err(Status::permission_denied(format!(
            "{id} may not call itself {namespace}/{account}"
        )));
    }
    let (flavour, word) = flavour(wire)?;
    let node = Node {
        flavour,
        namespace: namespace.into(),
        labels: Arc::new(workload.labels.clone()),
    };
    let introduction = Introduction {
        node_id: wire.id.as_str().into(),
        identity: id.clone(),
        flavour: word,
        build: build(wire),
    };
    Ok((node, introduction))
}

fn flavour(wire: &WireNode) -> Result<(Flavour, &'static str), Status> {
    let agent = wire.user_agent_name.as_str();
    let metadata = |key: &str| wire.metadata.as_ref()?.fields.get(key)?.kind.as_ref();
    if agent == "heddle-proxy" {
        let features = match metadata("heddle.features") {
            Some(value::Kind::NumberValue(features)) => *features,
            _ => 0.0,
        };
        if features < FEATURES_NEEDED {
            return Err(Status::failed_precondition(format!(
                "this sidecar understands features {features}, policies need {FEATURES_NEEDED}: \
                 upgrade it"
            )));
        }
        return Ok((Flavour::Sidecar, HEDDLE));
    }
    if !agent.starts_with("envoy") {
        return Ok((Flavour::Grpc, "grpc"));
    }
    let certificates = match metadata("heddle.certificates") {
        Some(value::Kind::StringValue(directory)) => directory.as_str(),
        _ => CERTIFICATES,
    };
    // It is in every cluster of the client, several times.
    let is_path = certificates.starts_with('/')
        && certificates
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !is_path || certificates.len() > CERTIFICATES_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "heddle.certificates must be an absolute path in ASCII, at most \
             {CERTIFICATES_BYTES_MAX} bytes"
        )));
    }
    let certificates = certificates.into();
    Ok((Flavour::Envoy { certificates }, "envoy"))
}

fn build(wire: &WireNode) -> String {
    match &wire.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => {
            let printable = version.chars().filter(char::is_ascii_graphic);
            printable.take(BUILD_CHARS_MAX).collect()
        }
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    }
}

/// The last part of a node id. It is shown to people: nothing that a terminal would obey.
pub fn is_instance(text: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !text.is_empty() && text.bytes().all(is_good)
}

fn malformed(id: &str) -> Status {
    let id: String = id.chars().take(64).collect();
    Status::invalid_argument(format!(
        "node id {id:?} is not <namespace>/<service-account>/<instance>, the last of letters, \
         digits, '.', '_' and '-'"
    ))
}

const NODE_ID_BYTES_MAX: usize = 512;
const CERTIFICATES_BYTES_MAX: usize = 256;
const BUILD_CHARS_MAX: usize = 64;
