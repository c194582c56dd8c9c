//! What the suites share, and no test: a certificate authority, sidecars in this process,
//! scripted applications, callers, network namespaces, and the real programs inside them.

pub mod call;
pub mod echo;
pub mod fault;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod process;

use std::time::Duration;

/// Waits until `condition` holds, at most ten seconds of real time.
///
/// # Panics
/// When it does not hold in time.
#[track_caller]
pub fn eventually(condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        for _ in 0..2000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(condition(), "did not come true in time: {place}");
    }
}
