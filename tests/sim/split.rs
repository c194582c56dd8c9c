//! Weighted splits: the share of a cluster over many requests.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, ensure};
use heddle_policy::snapshot::{ClusterName, WeightedClusters};
use rand::RngExt as _;

use crate::seeds::run_long;

/// Requests that the split is measured over.
const REQUESTS: u32 = 5_000;

#[test]
fn a_split_is_as_accurate_as_chance_allows() {
    run_long(|sim| {
        let clusters = (0..sim.rng.random_range(2..5)).map(|i| {
            let weight = sim.rng.random_range(0..=100);
            (ClusterName(format!("v{i}").into()), weight)
        });
        let Some(split) = WeightedClusters::new(clusters.collect()) else {
            return Ok(());
        };
        let mut counts: HashMap<ClusterName, u32> = HashMap::new();
        for _ in 0..REQUESTS {
            sim.pass(Duration::from_millis(2));
            *counts
                .entry(split.at(sim.rng.random()).clone())
                .or_default() += 1;
        }
        let total: u32 = split.iter().map(|(_, weight)| weight).sum();
        for (name, weight) in split.iter() {
            let count = counts.get(name).copied().unwrap_or(0);
            let share = f64::from(weight) / f64::from(total);
            let measured = f64::from(count) / f64::from(REQUESTS);
            // Six standard deviations of a binomial count: 2 in a thousand million.
            let deviation = (share * (1.0 - share) / f64::from(REQUESTS)).sqrt();
            ensure!(
                (measured - share).abs() <= 6.0 * deviation,
                "{name} got {measured:.4} instead of {share:.4}"
            );
        }
        let known = split.iter().next().context("it has clusters")?.0;
        ensure!(counts.len() <= split.iter().count(), "more than {known}");
        Ok(())
    });
}
