//! The modules of `envoy-types` that Heddle uses. Everything else in the workspace names
//! xDS types through here, so that the crate can be replaced in one place.

pub use envoy_types::pb::{envoy, google, xds};

/// Envoy's HTTP filters, under a name that is no crate's.
pub use envoy_types::pb::envoy::extensions::filters::http as http_filters;
