//! What is sent: a scenario file.

use std::{fs, num::NonZeroU32, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One load, the same for every subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// Client connections.
    pub(crate) connections: NonZeroU32,
    /// Streams in flight on each connection, at most.
    pub(crate) streams: NonZeroU32,
    /// Fixed rate over all connections. Without it the loop is closed: a stream is reused as
    /// soon as its response has ended.
    pub(crate) requests_per_s: Option<NonZeroU32>,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
    pub(crate) warm_up_s: u32,
    pub(crate) duration_s: NonZeroU32,
}

impl Scenario {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("in {}", file.display()))
    }
}
