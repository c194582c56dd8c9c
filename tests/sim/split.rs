//! Weighted splits: the share of a cluster over many requests.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_policy::snapshot::{ClusterName, WeightedClusters};
use rand::RngExt as _;

use crate::seeds::{chance, run};

/// Requests that the split is measured over.
const REQUESTS: u32 = 5_000;

/// After so many it is looked at, each time.
const LOOK: u32 = 500;

#[test]
fn a_split_is_as_accurate_as_chance_allows() {
    run(|sim| {
        let clusters = (0..sim.rng.random_range(2..5)).map(|i| {
            let weight = sim.rng.random_range(0..=100);
            (ClusterName(format!("v{i}").into()), weight)
        });
        let Some(split) = WeightedClusters::new(clusters.collect()) else {
            return Ok(());
        };
        let total: u32 = split.iter().map(|(_, weight)| weight).sum();
        let mut counts = vec![0u32; split.iter().count()];
        for request in 1..=REQUESTS {
            sim.pass(Duration::from_millis(2));
            let picked = split.at(sim.rng.random());
            let picked = split.iter().position(|(name, _)| name == picked);
            counts[picked.context("it is none of them")?] += 1;
            if request % LOOK != 0 {
                continue;
            }
            for ((name, weight), count) in split.iter().zip(&counts) {
                let share = f64::from(weight) / f64::from(total);
                let measured = f64::from(*count) / f64::from(request);
                ensure!(
                    (measured - share).abs() <= chance(share, request),
                    "{name} got {measured:.4} of {request} instead of {share:.4}"
                );
                ensure!(weight > 0 || *count == 0, "{name} has no weight");
            }
        }
        Ok(())
    });
}
