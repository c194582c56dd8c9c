//! Admission: how much of a cluster's limits is in use, over all workers of this sidecar.
//!
//! The shell keeps one [`Admission`] per cluster name across snapshots and passes the limits
//! of the current snapshot with each call, so a changed limit applies at once and what is in
//! use is never forgotten. A [`Slot`] gives back what it holds when it is dropped.
//!
//! ```
//! use std::{num::NonZeroU32, sync::Arc};
//! use heddle_policy::admission::{Admission, Resource};
//!
//! let cluster = Arc::new(Admission::default());
//! let one = NonZeroU32::new(1);
//! let slot = cluster.acquire(Resource::Requests, one).unwrap();
//! assert!(cluster.acquire(Resource::Requests, one).is_err());
//! drop(slot);
//! assert!(cluster.acquire(Resource::Requests, one).is_ok());
//! ```

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use thiserror::Error;

use crate::{retry, snapshot::Limits};

/// What is in use of one cluster.
#[derive(Debug, Default)]
pub struct Admission {
    in_use: [Counter; RESOURCES],
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open connections, those being made included.
    Connections,
    /// Requests that wait for a connection or a stream.
    Pending,
    /// Requests in flight, until the end of their responses.
    Requests,
    /// Retries in flight.
    Retries,
}

/// Permission to be in flight; released on drop.
#[derive(Debug)]
#[must_use = "a slot is released when it is dropped"]
pub struct Slot {
    admission: Arc<Admission>,
    resource: Resource,
}

/// The limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the limit of {} is reached", resource.word())]
pub struct Full {
    /// Which one.
    pub resource: Resource,
}

/// One count on a cache line of its own: workers that count requests do not slow down those
/// that count connections.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicU32);

impl Admission {
    /// Takes one, unless `max` are in use. Exact: never more than `max` at any moment,
    /// whatever the number of workers. `None` is unlimited.
    ///
    /// # Errors
    /// [`Full`] at the limit.
    pub fn acquire(
        self: &Arc<Self>,
        resource: Resource,
        max: Option<NonZeroU32>,
    ) -> Result<Slot, Full> {
        let max = max.map_or(u32::MAX, NonZeroU32::get);
        self.take(resource, max)
    }

    /// Takes permission for one retry: within the cluster's own limit and within the retry
    /// budget, [`retry::budget`] of the requests in flight.
    ///
    /// # Errors
    /// [`Full`] at either.
    pub fn acquire_retry(self: &Arc<Self>, limits: &Limits) -> Result<Slot, Full> {
        let budget = retry::budget(self.in_use(Resource::Requests));
        let max = limits.retries_max.map_or(u32::MAX, NonZeroU32::get);
        self.take(Resource::Retries, budget.min(max))
    }

    /// How many are in use now.
    pub fn in_use(&self, resource: Resource) -> u32 {
        self.counter(resource).load(Ordering::Relaxed)
    }

    /// Relaxed throughout: the counter orders nothing but itself.
    fn take(self: &Arc<Self>, resource: Resource, max: u32) -> Result<Slot, Full> {
        self.counter(resource)
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < max).then(|| used + 1)
            })
            .map_err(|_used| Full { resource })?;
        Ok(Slot {
            admission: self.clone(),
            resource,
        })
    }

    fn counter(&self, resource: Resource) -> &AtomicU32 {
        &self.in_use[resource as usize].0
    }
}

impl Slot {
    /// What it is a part of.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }
}

impl Resource {
    /// For metrics and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending requests",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission
            .counter(self.resource)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

const RESOURCES: usize = Resource::Retries as usize + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_exact_under_concurrent_workers() {
        let cluster = Arc::new(Admission::default());
        let max = NonZeroU32::new(7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let slot = cluster.acquire(Resource::Requests, max);
                        assert!(cluster.in_use(Resource::Requests) <= 7);
                        let other = cluster.acquire(Resource::Requests, max);
                        drop((slot, other));
                    }
                });
            }
        });
        assert_eq!(cluster.in_use(Resource::Requests), 0);
    }

    #[test]
    fn retries_are_bound_by_the_budget_and_by_the_limit() {
        let cluster = Arc::new(Admission::default());
        let granted = |limits: &Limits| {
            let slots: Vec<Slot> = std::iter::from_fn(|| cluster.acquire_retry(limits).ok())
                .take(1_000)
                .collect();
            slots.len()
        };
        assert_eq!(granted(&Limits::UNLIMITED), 3);
        let requests: Vec<Slot> = (0..100)
            .map(|_| cluster.acquire(Resource::Requests, None).unwrap())
            .collect();
        assert_eq!(granted(&Limits::UNLIMITED), 20);
        let limits = Limits {
            retries_max: NonZeroU32::new(5),
            ..Limits::UNLIMITED
        };
        assert_eq!(granted(&limits), 5);
        drop(requests);
        assert_eq!(granted(&limits), 3);
    }
}
