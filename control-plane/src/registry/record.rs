//! A registration as the store keeps it: under `workloads/<namespace>/<name>`, on a lease.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32, time::Duration};

use heddle_policy::{snapshot::Health, spiffe::SpiffeId};
use heddle_proto::v1::{self, WorkloadState};
use serde::{Deserialize, Serialize};

use crate::{
    model::{Labels, Unreadable},
    store::Entry,
    world::{Services, Workload, WorkloadName},
};

/// Prefix of every registration's key.
pub const WORKLOADS: &str = "workloads/";

/// One registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub(super) identity: String,
    pub(super) address: IpAddr,
    pub(super) ports: BTreeMap<u16, u16>,
    pub(super) labels: Labels,
    pub(super) state: State,
    pub(super) weight: NonZeroU32,
    pub(super) is_meshed: bool,
    pub(super) registered_at_ms: i64,
    /// What its lease was granted for: with another grace it needs another lease.
    pub(super) grace_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    Ready,
    Draining,
}

/// The workload behind an entry of the store.
///
/// # Errors
/// [`Unreadable::Record`].
pub fn read(entry: &Entry) -> Result<(WorkloadName, Workload), Unreadable> {
    let (name, record) = Record::read(entry)?;
    let workload = record.workload(&name).ok_or_else(|| Unreadable::Record {
        key: entry.key.to_string(),
        why: format!(
            "\"{}\" is not an identity of its namespace",
            record.identity
        ),
    })?;
    Ok((name, workload))
}

impl Record {
    /// The name in a key; none for a key of something else.
    pub fn name(key: &str) -> Option<WorkloadName> {
        let (namespace, name) = key.strip_prefix(WORKLOADS)?.split_once('/')?;
        Some((namespace.into(), name.into()))
    }

    pub(super) fn key(name: &WorkloadName) -> String {
        format!("{WORKLOADS}{}/{}", name.0, name.1)
    }

    pub(super) fn read(entry: &Entry) -> Result<(WorkloadName, Self), Unreadable> {
        let unreadable = |why: String| Unreadable::Record {
            key: entry.key.to_string(),
            why,
        };
        let name = Self::name(&entry.key).ok_or_else(|| unreadable("not a name".to_owned()))?;
        let record =
            serde_json::from_slice(&entry.value).map_err(|error| unreadable(error.to_string()))?;
        Ok((name, record))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers always serialize")
    }

    /// `None` when the identity is not one of the name's namespace.
    pub(super) fn workload(&self, name: &WorkloadName) -> Option<Workload> {
        let identity: SpiffeId = self.identity.parse().ok()?;
        (identity.namespace() == &*name.0).then(|| Workload {
            identity,
            name: name.1.clone(),
            address: self.address,
            ports: self.ports.clone(),
            labels: self.labels.clone(),
            health: match self.state {
                State::Ready => Health::Healthy,
                State::Draining => Health::Draining,
            },
            weight: self.weight,
            is_meshed: self.is_meshed,
        })
    }

    pub(super) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(super) fn describe(self, name: &WorkloadName, services: Services) -> v1::Workload {
        let state = match self.state {
            State::Ready => WorkloadState::Ready,
            State::Draining => WorkloadState::Draining,
        };
        let ports = self.ports.into_iter();
        v1::Workload {
            namespace: name.0.to_string(),
            name: name.1.to_string(),
            identity: self.identity,
            address: self.address.to_string(),
            ports: ports.map(|(port, at)| (port.into(), at.into())).collect(),
            labels: self.labels.into_iter().collect(),
            state: state.into(),
            is_meshed: self.is_meshed,
            services: services.serves.iter().map(ToString::to_string).collect(),
            refusals: services.refusals,
            registered_at_ms: self.registered_at_ms,
        }
    }
}
