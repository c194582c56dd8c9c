//! Settings of the mesh as a whole.

use heddle_policy::{
    snapshot::UnknownDestination,
    spiffe::{CONTROL_PLANE_NAMESPACE, TrustDomain},
};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::world::Mesh;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMesh {
    root_namespace: Option<String>,
    cidrs: Option<Vec<String>>,
    unknown_destinations: Option<String>,
}

const UNKNOWN: [(&str, UnknownDestination); 2] = [
    ("allow_any", UnknownDestination::AllowAny),
    ("registry_only", UnknownDestination::RegistryOnly),
];

pub(super) fn check(f: &mut Vec<Fault>, raw: &RawMesh, trust_domain: &TrustDomain) -> Mesh {
    let mut cidrs = Vec::new();
    for text in raw.cidrs.iter().flatten() {
        match text.parse() {
            Ok(cidr) => cidrs.push(cidr),
            Err(_malformed) => f.push(Fault {
                setting: "mesh.cidrs",
                message: format!("\"{text}\" is not a range such as 10.0.0.0/8"),
            }),
        }
    }
    let unknown = raw.unknown_destinations.as_deref().unwrap_or(UNKNOWN[0].0);
    let known = UNKNOWN.iter().find(|(word, _)| *word == unknown);
    if known.is_none() {
        f.push(Fault {
            setting: "mesh.unknown_destinations",
            message: format!("\"{unknown}\" is neither allow_any nor registry_only"),
        });
    }
    Mesh {
        trust_domain: trust_domain.clone(),
        root_namespace: raw
            .root_namespace
            .as_deref()
            .unwrap_or(CONTROL_PLANE_NAMESPACE)
            .into(),
        cidrs,
        unknown: known.map_or_else(UnknownDestination::default, |(_, unknown)| *unknown),
    }
}

pub(super) fn to_raw(mesh: &Mesh) -> RawMesh {
    let unknown = UNKNOWN.iter().find(|(_, unknown)| *unknown == mesh.unknown);
    RawMesh {
        root_namespace: Some(mesh.root_namespace.to_string()),
        cidrs: Some(mesh.cidrs.iter().map(ToString::to_string).collect()),
        unknown_destinations: unknown.map(|(word, _)| (*word).to_owned()),
    }
}
