//! Our own generator: `load send`, a process beside the backend.

mod http2;
mod pace;
mod tcp;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::{task::LocalSet, time};

use crate::{generator::Answers, scenario::Load};

/// What to send, where and how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    pub(crate) load: Load,
    /// A closed loop sends at least one of each connection and stream.
    pub(crate) seconds: u32,
}

/// For the answers to what was sent last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Carries an order out, on this thread.
pub(crate) fn run(order: &Order) -> anyhow::Result<Answers> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let send = async {
        match &order.load {
            Load::Http(http) => http2::run(http, order).await,
            Load::Stream(stream) => tcp::stream(stream, order).await,
            Load::Connect(stream) => tcp::connect(stream, order).await,
            Load::Grpcio(_) => bail!("grpcio sends its calls itself"),
        }
    };
    let patience = Duration::from_secs(order.seconds.into()) + PATIENCE;
    let tasks = LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        let sent = time::timeout(patience, send).await;
        sent.context("an answer has not come")?
    }))
}

#[cfg(test)]
mod tests;
