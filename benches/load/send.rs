//! Our own generator: `load send`, a process beside the backend.

mod http2;
mod pace;
mod tcp;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use crate::{generator::Answers, scenario::Load};

/// What to send, where and how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    pub(crate) load: Load,
    pub(crate) seconds: u32,
}

/// Carries an order out, on this thread.
pub(crate) fn run(order: &Order) -> anyhow::Result<Answers> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        match &order.load {
            Load::Http(http) => http2::run(http, order).await,
            Load::Stream(stream) => tcp::stream(stream, order).await,
            Load::Connect(stream) => tcp::connect(stream, order).await,
        }
    }))
}
