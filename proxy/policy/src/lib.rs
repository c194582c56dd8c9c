//! The validated traffic model and every decision over it.
//!
//! Nothing here performs I/O, reads a clock or draws from a global random source: `now` and
//! `rng` are arguments, a decision is data, and the caller acts on it. No tokio, hyper, http,
//! tonic or rustls item is named in this crate (the `tidy` test reads the paths).
//!
//! ```text
//! head ──► route ──► admission ──► deadline ──► balance ──► (attempt) ──► outcome
//!                                                  ▲                        │
//!                                                  └── outlier ◄── retry ◄──┘
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![warn(clippy::wildcard_enum_match_arm)]

pub mod admission;
pub mod authz;
pub mod balance;
pub mod deadline;
pub mod head;
pub mod outcome;
pub mod outlier;
pub mod path;
mod patterns;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod spiffe;

/// A moment for tests, counted from one that all of them share.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests need some first instant")]
pub(crate) fn at(seconds: f64) -> std::time::Instant {
    static ZERO: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    *ZERO + std::time::Duration::from_secs_f64(seconds)
}
