//! `PeerAuthentication`: which connections a workload takes.

use std::{collections::BTreeMap, num::NonZeroU16};

use heddle_policy::snapshot;
use serde::Serialize;

use super::Selector;

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
