//! Seeded simulation of the policies over virtual time.
//!
//! Every scenario runs once per seed and checks its invariants at each step. A failure names
//! seed and step; `HEDDLE_SIM_SEED=n` runs that one again, `HEDDLE_SIM_SEEDS=n` sets how many
//! are run (2,000 unless told).

mod balance;
mod budget;
mod ejection;
mod limits;
mod seeds;
mod split;
