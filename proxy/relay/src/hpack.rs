//! HPACK (RFC 7541): field sections of HTTP/2 as header blocks, both ways.
//!
//! A [`Decoder`] turns the blocks of a connection into [`Head`](crate::head::Head)s, an [`Encoder`] turns heads into
//! blocks. Each has a dynamic table that its opposite at the other end of the connection has too;
//! neither allocates for a block once its buffers have grown to what the traffic needs.
//!
//! ```text
//! block ─► decoder ─► Head ─► encoder ─► block
//!          integer, huffman     memory
//!          static_table, table  integer, huffman
//!          check                static_table, table
//! ```

mod check;
mod decoder;
mod encoder;
mod huffman;
mod integer;
mod memory;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

use crate::token::Token;

pub use self::{decoder::Decoder, encoder::Encoder};

/// Up to which size a decoder takes a field section.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes as SETTINGS_MAX_HEADER_LIST_SIZE counts them: names, values, and 32 for each field
    /// (RFC 9113 section 6.5.2).
    pub list_bytes_max: u32,
    /// Fields, pseudo-headers among them.
    pub fields_max: u32,
}

/// Why a header block was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// COMPRESSION_ERROR: what follows on the connection cannot be understood.
    #[error("header block cannot be decoded: {0}")]
    Compression(&'static str),
    /// The list is over a limit: a 431, or a reset of the stream.
    #[error("header list is over a limit")]
    TooLarge,
    /// A name or a value that HTTP/2 forbids (RFC 9113 section 8.2.1): PROTOCOL_ERROR of the
    /// stream.
    #[error("field is malformed: {0}")]
    Malformed(&'static str),
}

/// The size of a dynamic table until SETTINGS_HEADER_TABLE_SIZE says something else
/// (RFC 9113 section 6.5.2), in bytes as RFC 7541 section 4.1 counts them.
const TABLE_BYTES_DEFAULT: u32 = 4096;
