//! What one HTTP/1.1 connection may take.

use std::time::Duration;

/// Bounds of a connection. Of what came it keeps the larger of `head_bytes_max` and
/// `ahead_bytes_max`, in a buffer of at most twice as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request or status line. Above it a request is answered with 414; RFC 9112
    /// section 3 asks for 8,000 at least.
    pub line_bytes_max: u32,
    /// Bytes of a head on the wire, and of its fields as [`crate::head::Head::list_bytes`] counts
    /// them. Above it a request is answered with 431.
    pub head_bytes_max: u32,
    /// Fields of a head or of trailers, at most [`FIELDS_MAX`]. Above it a request is answered
    /// with 431.
    pub fields_max: u32,
    /// Bytes of the line before a chunk, with its extensions.
    pub chunk_line_bytes_max: u32,
    /// Bytes of chunk extensions in one body: they are dropped, so they may not be the most of
    /// it.
    pub extension_bytes_max: u32,
    /// Bytes of a trailer section.
    pub trailer_bytes_max: u32,
    /// Bytes of a body that may be on their way to whoever releases them.
    pub window: u32,
    /// Bytes that are read ahead: of the next request, or of a body whose window is used up.
    pub ahead_bytes_max: u32,
    /// Bytes of a request that are still read, and thrown away, when nobody wants the rest of
    /// it. Above it the connection ends with the answer.
    pub discard_bytes_max: u32,
    /// Bytes of interim answers to one request: nothing slows them down.
    pub interim_bytes_max: u32,
    /// Bytes of output from which on what is sent counts as waiting.
    pub output_bytes: usize,
    /// How long a request's head may take from its first byte to its last.
    pub head_timeout: Duration,
}

/// Most that [`Limits::fields_max`] can be.
pub const FIELDS_MAX: usize = 256;

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes_max: 32 * 1024,
            head_bytes_max: 64 * 1024,
            fields_max: 128,
            chunk_line_bytes_max: 1024,
            extension_bytes_max: 16 * 1024,
            trailer_bytes_max: 16 * 1024,
            window: 64 * 1024,
            ahead_bytes_max: 64 * 1024,
            discard_bytes_max: 64 * 1024,
            interim_bytes_max: 64 * 1024,
            output_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(10),
        }
    }
}
