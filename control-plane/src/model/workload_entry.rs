//! `WorkloadEntry`: one endpoint, written in a `ServiceEntry` or as a resource of its own.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use serde::Serialize;

use super::{
    Labels,
    decode::{Decode, Decoder},
    values::{DnsLabel, decode_labels},
    yaml::Node,
};

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

impl Decode for WorkloadEntry {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let address = fields.required(decoder, "address");
        let ports = fields.or_default(decoder, "ports");
        let labels = fields.or_default::<LabelSet>(decoder, "labels");
        let service_account = fields.optional::<DnsLabel>(decoder, "serviceAccount");
        let weight = fields.optional::<Weight>(decoder, "weight");
        fields.close(decoder);
        Some(Self {
            address: address?,
            ports: ports?,
            labels: labels?.0,
            service_account: service_account?.map(|account| account.0),
            weight: weight?.map(|weight| weight.0),
        })
    }
}

#[derive(Default)]
pub(super) struct LabelSet(pub(super) Labels);

impl Decode for LabelSet {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decode_labels(node, decoder).map(Self)
    }
}

struct Weight(NonZeroU32);

impl Decode for Weight {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let weight = decoder.number(node, 1, WEIGHT_MAX)?;
        NonZeroU32::new(weight).map(Self)
    }
}

/// Largest weight: sums over any number of endpoints that we serve stay within `u32`.
const WEIGHT_MAX: u32 = 1000;

/// Label that marks an endpoint as meshed, with the value `istio`.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
