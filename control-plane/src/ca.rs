//! The certificate authority.

mod serial;

pub use serial::Serial;
