//! The two forms of ADS on the wire, to and from the machine's words.

use aws_lc_rs::digest;
use heddle_policy::snapshot::xds::ResourceType;
use heddle_proto::xds::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource, ResourceError, ResourceName as WireName,
        },
    },
    google::{protobuf::Any, rpc::Status as RpcStatus},
};
use tonic::Code;

use super::stream::{Request, Response};
use crate::compile::Compiled;

/// One form of ADS.
pub(super) trait Dialect: Send + 'static {
    /// What clients send.
    type Request: Send + 'static;
    /// What they get.
    type Response: Send + 'static;

    /// Who sends; in the first request.
    fn node(request: &Self::Request) -> Option<Node>;

    /// Type, and the machine's request.
    fn read(request: Self::Request) -> (String, Request);

    /// The machine's response.
    fn write(response: &Response) -> Self::Response;
}

pub(super) struct Delta;
pub(super) struct StateOfTheWorld;

impl Dialect for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &Self::Request) -> Option<Node> {
        request.node.clone()
    }

    fn read(request: Self::Request) -> (String, Request) {
        let read = Request {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial_versions: request.initial_resource_versions.into_iter().collect(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        };
        (request.type_url, read)
    }

    fn write(response: &Response) -> Self::Response {
        DeltaDiscoveryResponse {
            type_url: response.kind.type_url().to_owned(),
            nonce: response.nonce.clone(),
            resources: response
                .resources
                .iter()
                .map(|compiled| Resource {
                    name: compiled.name.to_string(),
                    version: compiled.version.to_string(),
                    resource: Some(any(response.kind, compiled)),
                    ..Resource::default()
                })
                .collect(),
            removed_resources: response.absent.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

impl Dialect for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &Self::Request) -> Option<Node> {
        request.node.clone()
    }

    fn read(request: Self::Request) -> (String, Request) {
        let read = Request {
            subscribe: request.resource_names,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            ..Request::default()
        };
        (request.type_url, read)
    }

    fn write(response: &Response) -> Self::Response {
        DiscoveryResponse {
            version_info: version(response),
            type_url: response.kind.type_url().to_owned(),
            nonce: response.nonce.clone(),
            resources: response
                .resources
                .iter()
                .map(|compiled| any(response.kind, compiled))
                .collect(),
            // gRFC A88: without it a client waits 15 s for what does not exist.
            resource_errors: response
                .absent
                .iter()
                .map(|name| ResourceError {
                    resource_name: Some(WireName {
                        name: name.to_string(),
                        ..WireName::default()
                    }),
                    error_detail: Some(RpcStatus {
                        code: Code::NotFound.into(),
                        message: format!("there is no {} {name}", response.kind),
                        ..RpcStatus::default()
                    }),
                })
                .collect(),
            ..DiscoveryResponse::default()
        }
    }
}

fn any(kind: ResourceType, compiled: &Compiled) -> Any {
    Any {
        type_url: kind.type_url().to_owned(),
        value: compiled.value.clone(),
    }
}

/// Of all that is in a response: equal content has an equal version on every replica.
fn version(response: &Response) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for compiled in &response.resources {
        context.update(compiled.name.as_bytes());
        context.update(&[0]);
        context.update(compiled.version.as_bytes());
        context.update(&[0]);
    }
    let hash = context.finish();
    hash.as_ref()[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
