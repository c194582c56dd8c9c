//! What of a query is read: its header, its questions, and what the client takes by UDP. Its other
//! records are for whom it is forwarded to; not decoding them keeps the decoders of fifty kinds of
//! record away from strangers' bytes, and out of the program.

use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, Query},
    rr::{Name, RecordType},
    serialize::binary::{BinDecodable, BinDecoder, DecodeError},
};

/// A message as far as it is read.
#[derive(Debug)]
pub(super) struct Asked {
    pub metadata: Metadata,
    pub questions: Vec<Query>,
    /// Largest answer by UDP, of clients with EDNS (RFC 6891 section 6.2.3).
    pub edns_payload: Option<u16>,
}

impl Asked {
    /// # Errors
    /// What is not a DNS message, or ends early.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = BinDecoder::new(bytes);
        let Header { metadata, counts } = Header::read(&mut decoder)?;
        let questions = (0..counts.queries)
            .map(|_| Query::read(&mut decoder))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            metadata,
            questions,
            edns_payload: edns_payload(&mut decoder, counts)?,
        })
    }
}

/// Of the OPT record, whose class it is; the last one counts.
fn edns_payload(
    decoder: &mut BinDecoder<'_>,
    counts: HeaderCounts,
) -> Result<Option<u16>, DecodeError> {
    let mut payload = None;
    let records = [counts.answers, counts.authorities, counts.additionals];
    for _ in 0..records.into_iter().map(u32::from).sum() {
        Name::read(decoder)?;
        let kind = RecordType::read(decoder)?;
        let class = decoder.read_u16()?.unverified(/* any number is a class */);
        decoder.read_u32()?;
        let length = decoder.read_u16()?.unverified(/* checked as it is read */);
        decoder.read_slice(length.into())?;
        if kind == RecordType::OPT {
            payload = Some(class);
        }
    }
    Ok(payload)
}
