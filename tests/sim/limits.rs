//! Admission limits that change while they are in use.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::ensure;
use heddle_policy::admission::{Admission, Resource, Slot};
use rand::RngExt as _;

use crate::seeds::run;

#[test]
fn a_limit_is_never_exceeded_and_never_refuses_below_it() {
    run(|sim| {
        let cluster: Arc<Admission> = Arc::default();
        let mut held: Vec<Slot> = Vec::new();
        let mut max = NonZeroU32::new(sim.rng.random_range(1..20));
        for _ in 0..500 {
            sim.pass(Duration::from_millis(1));
            if sim.rng.random_ratio(1, 50) {
                max = NonZeroU32::new(sim.rng.random_range(0..20));
            }
            let before = held.len();
            if before > 0 && sim.rng.random_ratio(2, 5) {
                drop(held.swap_remove(sim.rng.random_range(0..before)));
            } else {
                let slot = cluster.acquire(Resource::Requests, max).ok();
                let has_room = max.is_none_or(|max| before < max.get() as usize);
                ensure!(slot.is_some() == has_room, "{before} held of {max:?}");
                held.extend(slot);
            }
            let in_use = cluster.in_use(Resource::Requests) as usize;
            ensure!(
                in_use == held.len(),
                "{in_use} counted, {} held",
                held.len()
            );
        }
        Ok(())
    });
}
