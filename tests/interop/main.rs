//! Unmodified peers from the registries in one mesh with the real programs: gRPC and Envoy as
//! clients of the control plane, curl, nghttp2, Prometheus and an OTLP receiver around sidecars.
//!
//! Also our codecs against those of other implementations, the command line as a user runs it,
//! and what no good client sends. Each other case has pods of its own, so it needs root. Peers of
//! the Python registry are in the environment that `HEDDLE_PEERS` names, or where `make` puts it;
//! what they run is beside this file.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod envoy;
#[cfg(test)]
mod grpc;
#[cfg(test)]
mod hpack;
#[cfg(test)]
mod http;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod telemetry;
