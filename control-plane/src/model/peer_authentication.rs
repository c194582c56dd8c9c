//! `PeerAuthentication`: which connections a workload takes.

use std::{collections::BTreeMap, num::NonZeroU16};

use heddle_policy::snapshot;
use serde::Serialize;

use super::{
    Selector,
    decode::{Decode, Decoder},
    yaml::Node,
};

/// Which connections workloads take. Port, then workload, then namespace, then root namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// Of its namespace. `None`: all of them (of the mesh, in the root namespace).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For every port. `None`: inherited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// For one port of the workload; needs a selector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<NonZeroU16, Mtls>,
}

/// `mtls` and the values of `portLevelMtls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mtls {
    /// The mode.
    pub mode: MtlsMode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Inherited.
    Unset,
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Plaintext only.
    Disable,
}

impl MtlsMode {
    /// The sidecar's word for it. `None`: inherited.
    pub fn mode(self) -> Option<snapshot::MtlsMode> {
        match self {
            Self::Unset => None,
            Self::Strict => Some(snapshot::MtlsMode::Strict),
            Self::Permissive => Some(snapshot::MtlsMode::Permissive),
            Self::Disable => Some(snapshot::MtlsMode::Disable),
        }
    }
}

impl Decode for PeerAuthentication {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let selector = fields.optional::<Selector>(decoder, "selector");
        let mtls = fields.optional(decoder, "mtls");
        let ports = fields.or_default::<Ports>(decoder, "portLevelMtls");
        fields.close(decoder);
        let (selector, ports) = (selector?, ports?.0);
        if selector.is_none() && !ports.is_empty() {
            return decoder.within(format_args!(".portLevelMtls"), |decoder| {
                let message = "needs a selector: ports belong to a workload";
                decoder.refuse(node.nearest("portLevelMtls"), message)
            });
        }
        Some(Self {
            selector,
            mtls: mtls?,
            port_level_mtls: ports,
        })
    }
}

#[derive(Default)]
struct Ports(BTreeMap<NonZeroU16, Mtls>);

impl Decode for Ports {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let ports = decoder.entries(node, |field, decoder| {
            let port = field.name.parse::<NonZeroU16>().ok();
            let port = port.filter(|port| port.to_string() == field.name);
            if port.is_none() {
                let message = "is not a port: must be 1 to 65535, without a leading zero or sign";
                decoder.fault(field.at, message);
            }
            let mtls = Mtls::decode(&field.node, decoder);
            Some((port?, mtls?))
        });
        ports.map(Self)
    }
}

impl Decode for Mtls {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let mode = fields.required(decoder, "mode");
        fields.close(decoder);
        Some(Self { mode: mode? })
    }
}

impl Decode for MtlsMode {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.word(
            node,
            &[
                ("UNSET", Self::Unset),
                ("STRICT", Self::Strict),
                ("PERMISSIVE", Self::Permissive),
                ("DISABLE", Self::Disable),
            ],
        )
    }
}
