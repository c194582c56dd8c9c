//! The harness of the suites: what they need around the programs under test, and no test.

pub mod netns;
