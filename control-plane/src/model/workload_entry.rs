//! `WorkloadEntry`: one endpoint, written in a `ServiceEntry` or as a resource of its own.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use serde::Serialize;

use super::Labels;

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// Where it is.
    pub address: IpAddr,
    /// Name of a service's port -> where this endpoint listens for it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, NonZeroU16>,
    /// What selectors and subsets look at.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Whose identity it presents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Relative share among equals. `None`: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<NonZeroU32>,
}

impl WorkloadEntry {
    /// Whether a sidecar speaks mutual TLS for it: Istio's label says so.
    pub fn is_meshed(&self) -> bool {
        self.labels
            .get(TLS_MODE)
            .is_some_and(|mode| mode == "istio")
    }
}

/// Label that marks an endpoint as meshed, with the value `istio`.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
