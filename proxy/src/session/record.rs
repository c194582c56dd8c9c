//! Protected records of TLS 1.3 (RFC 8446 section 5.2), one direction of a connection: sealed out
//! of the plaintext's own place, opened into one piece. No I/O, no allocation.
//!
//! ```text
//! 23 3 3 length ‖ AEAD( content ‖ type ‖ 0* ) ‖ tag
//! ```

use std::io::IoSlice;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved};

/// Most content of a record.
pub(super) const CONTENT_BYTES_MAX: usize = 1 << 14;
/// What a record adds to its content: header, type and tag.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// A whole record, as long as others may make it: with padding.
pub(super) const RECORD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;

/// The key of one direction. The next record's number is counted here and nowhere else: no nonce
/// is used twice.
pub(super) struct Protection {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Of the next record.
    number: u64,
}

/// A record's place at the beginning of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// It is there, and this long.
    Yes(usize),
    /// More bytes are needed.
    NotYet,
}

impl Protection {
    /// By what the handshake, or a key update, has agreed on.
    ///
    /// # Errors
    /// When the cipher suite is none that we offer.
    pub(super) fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("unknown cipher suite".to_owned())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref());
        let key = key.map_err(|_unfit| Error::General("unfit traffic key".to_owned()))?;
        let iv = iv.as_ref().try_into();
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.map_err(|_unfit| Error::General("unfit traffic key".to_owned()))?,
            number,
        })
    }

    /// Whether this key has protected so many records that it must be changed before more.
    pub(super) fn is_worn(&self) -> bool {
        self.number >= RECORDS_MAX
    }

    /// Writes one record of the first bytes of `content` to the beginning of `out`: of how many
    /// bytes, and how long it is. Bytes of one part are not copied on the way.
    ///
    /// # Errors
    /// When the cipher fails, which it does not with such keys and lengths.
    ///
    /// # Panics
    /// When `out` is too short.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        content: &mut Content<'_, '_>,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let size = content.len().min(CONTENT_BYTES_MAX);
        let (header, rest) = out.split_at_mut(HEADER_BYTES);
        let (sealed, rest) = rest.split_at_mut(size);
        let type_and_tag = &mut rest[..1 + TAG_BYTES];
        header.copy_from_slice(&header_of(size + 1 + TAG_BYTES));
        let nonce = self.next_nonce()?;
        let aad = Aad::from(&*header);
        let kind = [u8::from(kind)];
        let done = match content.take_whole(size) {
            Some(part) => {
                self.key
                    .seal_out_of_place_scatter(nonce, aad, part, sealed, &kind, type_and_tag)
            }
            None => {
                content.copy_to(sealed);
                self.key
                    .seal_in_place_scatter(nonce, aad, sealed, &kind, type_and_tag)
            }
        };
        done.map_err(|_failed| Error::EncryptError)?;
        Ok(size + OVERHEAD_BYTES)
    }

    /// Opens a whole record to the beginning of `out`, where what lies behind the content is
    /// overwritten too: what it is, and how long.
    ///
    /// # Errors
    /// When it is not one of the peer's, or not a valid one.
    ///
    /// # Panics
    /// When `out` is shorter than the record, or `record` not whole.
    pub(super) fn open(
        &mut self,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<(ContentType, usize), Error> {
        let (header, body) = record.split_at(HEADER_BYTES);
        if header[0] != u8::from(ContentType::ApplicationData) {
            return Err(unprotected(header[0]));
        }
        let size = body.len().checked_sub(TAG_BYTES);
        let (sealed, tag) = body.split_at(size.ok_or(Error::DecryptError)?);
        let inner = &mut out[..sealed.len()];
        let nonce = self.next_nonce()?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), sealed, tag, inner)
            .map_err(|_forged| Error::DecryptError)?;
        content_of(inner)
    }

    /// RFC 8446 section 5.3.
    fn next_nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        let number = self.number.to_be_bytes();
        for (byte, number) in nonce[NONCE_LEN - number.len()..].iter_mut().zip(number) {
            *byte ^= number;
        }
        self.number = self.number.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// What has been decrypted, without the padding behind it.
fn content_of(inner: &[u8]) -> Result<(ContentType, usize), Error> {
    if inner.len() > CONTENT_BYTES_MAX + 1 {
        return Err(Error::PeerSentOversizedRecord);
    }
    let kind = inner.iter().rposition(|byte| *byte != 0);
    let kind = kind.ok_or(PeerMisbehaved::IllegalTlsInnerPlaintext)?;
    Ok((ContentType::from(inner[kind]), kind))
}

/// After the handshake every record is protected (RFC 8446 section 5).
fn unprotected(kind: u8) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type: ContentType::from(kind),
    }
}

fn header_of(body_bytes: usize) -> [u8; HEADER_BYTES] {
    let size = u16::try_from(body_bytes).expect("a record's content has a bound");
    let [high, low] = size.to_be_bytes();
    [u8::from(ContentType::ApplicationData), 3, 3, high, low]
}

/// Whether `bytes` begin with a whole record, of any kind.
///
/// # Errors
/// When what they begin with can become none (RFC 8446 section 5.1).
pub(super) fn whole(bytes: &[u8]) -> Result<Whole, Error> {
    let Some((&[kind, version, _, high, low], body)) = bytes.split_first_chunk() else {
        return Ok(Whole::NotYet);
    };
    let kinds = u8::from(ContentType::ChangeCipherSpec)..=u8::from(ContentType::ApplicationData);
    if !kinds.contains(&kind) {
        return Err(InvalidMessage::InvalidContentType.into());
    }
    if version != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    let size = usize::from(u16::from_be_bytes([high, low]));
    if size > BODY_BYTES_MAX {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok(if body.len() < size {
        Whole::NotYet
    } else {
        Whole::Yes(HEADER_BYTES + size)
    })
}

/// Bytes to seal, in parts.
#[derive(Debug)]
pub(super) struct Content<'a, 'b> {
    parts: &'a [IoSlice<'b>],
    /// Of the first part, what has been taken.
    taken: usize,
    len: usize,
}

impl<'a, 'b> Content<'a, 'b> {
    pub(super) fn new(parts: &'a [IoSlice<'b>]) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        let taken = 0;
        Self { parts, taken, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes the first `size` bytes, if one part has them all.
    fn take_whole(&mut self, size: usize) -> Option<&'a [u8]> {
        let first = self.first();
        if first.len() < size {
            return None;
        }
        self.advance(size);
        Some(&first[..size])
    }

    /// Takes as many bytes as `out` has room for.
    fn copy_to(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() && self.len > 0 {
            let first = self.first();
            let size = first.len().min(out.len());
            let (filled, rest) = out.split_at_mut(size);
            filled.copy_from_slice(&first[..size]);
            self.advance(size);
            out = rest;
        }
    }

    /// What is left of the first part that has something left.
    fn first(&mut self) -> &'a [u8] {
        while let Some((first, rest)) = self.parts.split_first() {
            if self.taken < first.len() {
                return &first[self.taken..];
            }
            self.parts = rest;
            self.taken = 0;
        }
        &[]
    }

    fn advance(&mut self, size: usize) {
        self.taken += size;
        self.len -= size;
    }
}

const HEADER_BYTES: usize = 5;
/// Of every suite of TLS 1.3.
const TAG_BYTES: usize = 16;
/// RFC 8446 section 5.2.
const BODY_BYTES_MAX: usize = CONTENT_BYTES_MAX + 256;
/// Below the 2^24.5 full records of AES-GCM (RFC 8446 section 5.5), by more than one batch.
const RECORDS_MAX: u64 = 1 << 24;

#[cfg(test)]
impl Protection {
    /// As after many records.
    pub(super) fn wear_out(&mut self) {
        self.number = RECORDS_MAX;
    }
}
