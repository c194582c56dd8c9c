//! What an application does instead of answering properly.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// One misbehaviour, used up by one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Trailers-only with this `grpc-status`.
    GrpcStatus(u16),
    /// The same, after the whole request has been read.
    GrpcStatusAfterBody(u16),
    /// The same as `GrpcStatus`, once [`Script::gate`] lets it pass.
    GrpcStatusAtTheGate(u16),
    /// This HTTP status.
    Status(u16),
    /// The response head and one message; the stream is reset when the second arrives.
    BreakAfterFirstMessage,
    /// No answer until the caller gives up.
    Hang,
}

/// What an application did and will do.
#[derive(Debug, Default)]
pub struct Script {
    /// Used up front to back; then the application behaves.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Requests or connections that arrived.
    pub calls: AtomicUsize,
    /// Requests whose caller went away before the end.
    pub cancelled: AtomicUsize,
    /// Lets through whoever waits at it, one for each permit.
    pub gate: Gate,
    /// The heads that arrived.
    pub heads: Mutex<Vec<http::request::Parts>>,
}

/// A semaphore that begins with nothing.
#[derive(Debug)]
pub struct Gate(pub Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Script {
    /// Misbehaves as `faults` say, one request each.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Arc<Self> {
        Arc::new(Self {
            faults: Mutex::new(faults.into_iter().collect()),
            ..Self::default()
        })
    }

    /// How many calls arrived.
    pub fn calls(&self) -> usize {
        self.calls.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// How many were cancelled.
    pub fn cancelled(&self) -> usize {
        self.cancelled.load(std::sync::atomic::Ordering::SeqCst)
    }
}
