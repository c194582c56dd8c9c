//! The table: who may call what (fail closed; one row per method).

use super::Caller;
use crate::telemetry::StreamKind;

/// Whom a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Without any proof.
    Anyone,
    /// Workloads, each for itself.
    Workload,
    /// Workloads for themselves, administrators for everybody.
    Proven,
    /// Administrators.
    Administrator,
}

/// Every method that is served, and whom it is for.
pub fn methods() -> impl Iterator<Item = (&'static str, Access)> {
    TABLE.into_iter()
}

/// Whom the method at a gRPC path is for; none for a path that is not in the table.
pub fn access(path: &str) -> Option<Access> {
    methods()
        .find(|(method, _)| *method == path)
        .map(|(_, access)| access)
}

/// What kind of long stream of a workload a method is; none for one that answers once.
pub fn stream(path: &str) -> Option<StreamKind> {
    match path.strip_prefix('/')? {
        "envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        | "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources" => {
            Some(StreamKind::Discovery)
        }
        "heddle.v1.CertificateAuthority/WatchTrustBundle" => Some(StreamKind::TrustBundle),
        "heddle.v1.Registry/Register" => Some(StreamKind::Registration),
        "heddle.v1.Status/Report" => Some(StreamKind::Report),
        _ => None,
    }
}

impl Access {
    /// Whether `caller` is meant.
    pub fn permits(self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Anyone, _)
            | (Self::Workload | Self::Proven, Caller::Workload(_))
            | (Self::Administrator | Self::Proven, Caller::Administrator) => true,
            (Self::Workload, Caller::Administrator)
            | (Self::Administrator, Caller::Workload(_))
            | (Self::Workload | Self::Proven | Self::Administrator, Caller::Anonymous) => false,
        }
    }

    /// For a refusal.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Workload => "workloads",
            Self::Proven => "workloads and administrators",
            Self::Administrator => "administrators",
        }
    }
}

/// Health is for anyone, because what asks for it (a kubelet, a load balancer) has no proof;
/// reflection is not, because the API is nobody else's business.
const TABLE: [(&str, Access); 26] = [
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", Access::Anyone),
    ("/grpc.health.v1.Health/List", Access::Anyone),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Access::Administrator,
    ),
    (
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        Access::Workload,
    ),
    (
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        Access::Workload,
    ),
    ("/heddle.v1.CertificateAuthority/Issue", Access::Workload),
    (
        "/heddle.v1.CertificateAuthority/WatchTrustBundle",
        Access::Proven,
    ),
    (
        "/heddle.v1.CertificateAuthority/MintToken",
        Access::Administrator,
    ),
    (
        "/heddle.v1.CertificateAuthority/Deny",
        Access::Administrator,
    ),
    (
        "/heddle.v1.CertificateAuthority/Allow",
        Access::Administrator,
    ),
    (
        "/heddle.v1.CertificateAuthority/RevokeAdministrators",
        Access::Administrator,
    ),
    ("/heddle.v1.Registry/Register", Access::Workload),
    ("/heddle.v1.Registry/Deregister", Access::Proven),
    ("/heddle.v1.Registry/List", Access::Administrator),
    ("/heddle.v1.Status/Report", Access::Workload),
    ("/heddle.v1.Status/ListProxies", Access::Administrator),
    ("/heddle.v1.Config/Apply", Access::Administrator),
    ("/heddle.v1.Config/Get", Access::Administrator),
    ("/heddle.v1.Config/List", Access::Administrator),
    ("/heddle.v1.Config/Delete", Access::Administrator),
    ("/heddle.v1.Config/Watch", Access::Administrator),
    ("/heddle.v1.Config/History", Access::Administrator),
    ("/heddle.v1.Config/Audit", Access::Administrator),
    ("/heddle.v1.Traffic/GetSplit", Access::Administrator),
    ("/heddle.v1.Traffic/SetSplit", Access::Administrator),
];

#[cfg(test)]
mod tests {
    use heddle_proto::{v1::FILE_DESCRIPTOR_SET, xds::google::protobuf::FileDescriptorSet};
    use prost::Message;

    use super::*;

    /// Every method of our own API, from its descriptors.
    fn described() -> Vec<String> {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = Vec::new();
        for service in set.file.iter().flat_map(|file| &file.service) {
            for method in &service.method {
                methods.push(format!("/heddle.v1.{}/{}", service.name(), method.name()));
            }
        }
        methods
    }

    #[test]
    fn every_method_of_ours_has_a_row_and_every_row_of_ours_a_method() {
        let methods = described();
        assert!(methods.len() > 10, "{methods:?}");
        for method in &methods {
            assert!(access(method).is_some(), "{method} has no row");
        }
        for (path, _) in TABLE {
            assert!(
                !path.starts_with("/heddle.v1.") || methods.iter().any(|method| method == path),
                "{path} does not exist"
            );
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_for_nobody() {
        for path in [
            "",
            "/",
            "/heddle.v1.Config/apply",
            "/heddle.v1.Config/Apply/",
        ] {
            assert_eq!(access(path), None, "{path}");
        }
    }

    #[test]
    fn an_anonymous_caller_may_only_ask_for_health() {
        for (path, access) in TABLE {
            let is_health = path.starts_with("/grpc.health.v1.Health/");
            assert_eq!(access.permits(&Caller::Anonymous), is_health, "{path}");
        }
    }

    #[test]
    fn only_the_administrator_changes_configuration() {
        for path in ["Config/Apply", "Config/Delete", "Traffic/SetSplit"] {
            let row = access(&format!("/heddle.v1.{path}"));
            assert_eq!(row, Some(Access::Administrator), "{path}");
        }
    }
}
