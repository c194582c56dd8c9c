//! Values that several kinds share.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

/// Labels of a workload, or those a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// A host: fully qualified, lower case, without a final dot. A name written without a dot
/// stands for `<name>.<namespace>.svc.cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

/// Which workloads a security policy is about. None at all: those of its namespace, or of the
/// mesh in the root namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// All of them must be there. Not empty.
    pub match_labels: Labels,
}

/// Which workloads of its namespace serve a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadSelector {
    /// All of them must be there. Not empty.
    pub labels: Labels,
}

/// A duration as users write it, such as `1.5s` or `100ms`; at least 1 ms, at most 24 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub Duration);

impl Host {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shared name.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1000 == 0 => write!(f, "{}s", millis / 1000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether `labels` has all that `wanted` asks for.
fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

impl Selector {
    /// Whether a workload with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.match_labels, labels)
    }
}

impl WorkloadSelector {
    /// Whether a workload with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.labels, labels)
    }
}
