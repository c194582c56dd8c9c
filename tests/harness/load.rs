//! Unary calls without a pause, from several callers, until the test has seen enough.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use heddle_shell::task::Tasks;
use parking_lot::Mutex;

use crate::{
    call::{Answer, Caller, Feed, grpc},
    eventually,
};

/// Callers at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    calls: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts `callers`, each with a connection of its own.
    pub async fn start(to: SocketAddr, callers: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = Tasks::new();
        for _ in 0..callers {
            let (shared, mut caller) = (Arc::clone(&shared), Caller::http2(to).await);
            tasks.spawn("load", async move {
                while !shared.is_over.load(Ordering::Relaxed) {
                    match call(&mut caller).await {
                        Called::Well => _ = shared.calls.fetch_add(1, Ordering::Relaxed),
                        Called::Badly(failure) => shared.failures.lock().push(failure),
                        // It had said goodbye: whoever calls takes another connection.
                        Called::Unsent => caller = Caller::http2(to).await,
                    }
                }
            });
        }
        Self { shared, tasks }
    }

    /// Waits until another `more` calls have succeeded.
    pub async fn goes_on(&self, more: usize) {
        let enough = self.calls() + more;
        eventually(|| self.calls() >= enough).await;
    }

    /// Calls that have succeeded.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Stops and says how many calls there were.
    ///
    /// # Panics
    /// When one of them failed.
    pub async fn all_succeeded(mut self) -> usize {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while !self.tasks.is_empty() {
            self.tasks.reap().await;
        }
        let failures = self.shared.failures.lock();
        let (calls, failed) = (self.calls(), failures.len());
        assert!(
            failures.is_empty(),
            "{failed} of {calls}: {:?}",
            failures.first()
        );
        calls
    }
}

/// What became of a call.
enum Called {
    Well,
    Badly(String),
    Unsent,
}

async fn call(caller: &mut Caller) -> Called {
    let sent = caller
        .send(grpc("/echo.Echo/Unary", Feed::of("ping")))
        .await;
    let read = match sent {
        Ok(response) => Answer::read(response).await,
        Err(error) if error.is_canceled() || error.is_closed() => return Called::Unsent,
        Err(error) => Err(error),
    };
    match read {
        Ok(answer) if answer.grpc_status() == Some("0") && answer.body == b"ping" => Called::Well,
        Ok(answer) => Called::Badly(format!("{answer:?}")),
        Err(error) => Called::Badly(format!("{error:?}")),
    }
}
