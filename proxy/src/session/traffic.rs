//! TLS 1.3 after the handshake, without I/O: records in, plaintext out, and the few messages that
//! are not content. rustls made the handshake and keeps the key schedule.
//!
//! ```text
//! open: records ──► content | key update | ticket (of no use) | alert
//! seal: [key update] content ──► records
//! ```

use std::{fmt, io::IoSlice};

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    HandshakeType, InvalidMessage,
    PeerMisbehaved::{
        self, TooManyEmptyFragments, TooManyKeyUpdateRequests, TooManyWarningAlertsReceived,
    },
    client::ClientConnectionData,
    kernel::KernelConnection,
    server::ServerConnectionData,
};

use super::record::{CONTENT_BYTES_MAX, Content, OVERHEAD_BYTES, Protection, Whole, whole};

/// Most content that [`Traffic::seal`] takes at once. Large enough that reads and writes are:
/// opaque bytes through a pair of sidecars cost 0.91 of Envoy's CPU with 8 records, 0.95 with 4.
pub(super) const BATCH_CONTENT_MAX: usize = BATCH_RECORDS * CONTENT_BYTES_MAX;
/// Most bytes that it makes of them.
pub(super) const BATCH_BYTES_MAX: usize =
    BATCH_RECORDS * (CONTENT_BYTES_MAX + OVERHEAD_BYTES) + KEY_UPDATE_BYTES;

/// One connection's keys and state.
pub(super) struct Traffic {
    opening: Protection,
    sealing: Protection,
    keys: Keys,
    message: Message,
    /// Records without content since the last one with it.
    barren: u8,
    /// The peer asked for one of ours, which must come before our next content.
    owes_key_update: bool,
}

/// The key schedule, for key updates.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What records were opened into.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Bytes of records that are done with.
    pub(super) taken: usize,
    /// Bytes of content at the beginning of the output.
    pub(super) content: usize,
    /// What came behind it.
    pub(super) end: Option<End>,
}

/// After it nothing is opened any more.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The peer has said that this is all.
    Orderly,
    /// One of the two sides broke it off.
    Broken(Error),
}

/// What one record meant.
enum Meant {
    Content,
    Nothing,
    End,
}

/// What an alert said that ends nothing, or ends it in order.
enum Said {
    End,
    Nothing,
}

impl Traffic {
    /// # Errors
    /// When the cipher suite is none that we offer.
    pub(super) fn new(secrets: ExtractedSecrets, keys: Keys) -> Result<Self, Error> {
        Ok(Self {
            opening: Protection::new(secrets.rx)?,
            sealing: Protection::new(secrets.tx)?,
            keys,
            message: Message::default(),
            barren: 0,
            owes_key_update: false,
        })
    }

    /// Opens all whole records at the beginning of `records` into `out`, which is not shorter.
    pub(super) fn open(&mut self, records: &[u8], out: &mut [u8]) -> Opened {
        let mut opened = Opened::default();
        while opened.end.is_none() {
            let rest = &records[opened.taken..];
            match self.open_first(rest, &mut out[opened.content..]) {
                Ok(None) => break,
                Ok(Some((size, content, meant))) => {
                    opened.taken += size;
                    match meant {
                        Meant::Content => opened.content += content,
                        Meant::Nothing => {}
                        Meant::End => opened.end = Some(End::Orderly),
                    }
                }
                Err(error) => opened.end = Some(End::Broken(error)),
            }
        }
        opened
    }

    /// The size of the first record, that of its content, and what it meant.
    fn open_first(
        &mut self,
        records: &[u8],
        out: &mut [u8],
    ) -> Result<Option<(usize, usize, Meant)>, Error> {
        let size = match whole(records)? {
            Whole::Yes(size) => size,
            Whole::NotYet => return Ok(None),
        };
        let (kind, content) = self.opening.open(&records[..size], out)?;
        // RFC 8446 section 5.1.
        if kind != ContentType::Handshake && self.message.has_begun() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        let meant = match kind {
            ContentType::ApplicationData if content > 0 => {
                self.barren = 0;
                Meant::Content
            }
            ContentType::ApplicationData => self.bore_nothing(TooManyEmptyFragments)?,
            ContentType::Handshake => {
                self.heard(&out[..content])?;
                self.bore_nothing(TooManyKeyUpdateRequests)?
            }
            ContentType::Alert => match alert(&out[..content])? {
                Said::End => Meant::End,
                Said::Nothing => self.bore_nothing(TooManyWarningAlertsReceived)?,
            },
            got_type => {
                return Err(Error::InappropriateMessage {
                    expect_types: vec![ContentType::ApplicationData],
                    got_type,
                });
            }
        };
        Ok(Some((size, content, meant)))
    }

    /// Each record has its price, and these bring nothing for it.
    fn bore_nothing(&mut self, too_many: PeerMisbehaved) -> Result<Meant, Error> {
        self.barren += 1;
        if self.barren > BARREN_MAX {
            return Err(too_many.into());
        }
        Ok(Meant::Nothing)
    }

    /// Handshake messages: key updates, and from a server tickets, which are of no use here.
    fn heard(&mut self, mut fragment: &[u8]) -> Result<(), Error> {
        if fragment.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        while !fragment.is_empty() {
            let tickets = match self.keys {
                Keys::Client(_) => Tickets::Ignored,
                Keys::Server(_) => Tickets::Refused,
            };
            let Some(request) = self.message.read(&mut fragment, tickets)? else {
                continue;
            };
            // What follows would be protected by the key that ends here (RFC 8446 section 5.1).
            if !fragment.is_empty() {
                return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
            }
            self.owes_key_update |= request == KeyUpdate::Requested;
            self.opening = Protection::new(self.keys.next_opening()?)?;
        }
        Ok(())
    }

    /// Whether a record of ours waits that is no content.
    pub(super) fn owes_key_update(&self) -> bool {
        self.owes_key_update
    }

    /// Seals as much of `parts` as a batch takes into `out`, [`BATCH_BYTES_MAX`] long: how much
    /// that is, and how long it became.
    ///
    /// # Errors
    /// When keys or cipher fail, which they do not.
    pub(super) fn seal(
        &mut self,
        parts: &[IoSlice<'_>],
        out: &mut [u8],
    ) -> Result<(usize, usize), Error> {
        let mut filled = 0;
        if let Some(record) = self.update_key()? {
            filled = record.len();
            out[..filled].copy_from_slice(&record);
        }
        let mut content = Content::new(parts);
        let all = content.len();
        let kind = ContentType::ApplicationData;
        while content.len() > 0 && all - content.len() < BATCH_CONTENT_MAX {
            filled += self.sealing.seal(kind, &mut content, &mut out[filled..])?;
        }
        Ok((all - content.len(), filled))
    }

    /// The record that must go before content, if one must.
    ///
    /// # Errors
    /// As of [`Traffic::seal`].
    pub(super) fn update_key(&mut self) -> Result<Option<[u8; KEY_UPDATE_BYTES]>, Error> {
        if !self.owes_key_update && !self.sealing.is_worn() {
            return Ok(None);
        }
        let mut record = [0; KEY_UPDATE_BYTES];
        self.seal_message(ContentType::Handshake, &KEY_UPDATE, &mut record)?;
        self.sealing = Protection::new(self.keys.next_sealing()?)?;
        self.owes_key_update = false;
        Ok(Some(record))
    }

    /// The last record that we seal.
    ///
    /// # Errors
    /// As of [`Traffic::seal`].
    pub(super) fn alert(&mut self, alert: AlertDescription) -> Result<[u8; ALERT_BYTES], Error> {
        let level = if alert == AlertDescription::CloseNotify {
            WARNING
        } else {
            FATAL
        };
        let mut record = [0; ALERT_BYTES];
        self.seal_message(ContentType::Alert, &[level, u8::from(alert)], &mut record)?;
        Ok(record)
    }

    fn seal_message(
        &mut self,
        kind: ContentType,
        message: &[u8],
        record: &mut [u8],
    ) -> Result<(), Error> {
        let parts = [IoSlice::new(message)];
        self.sealing.seal(kind, &mut Content::new(&parts), record)?;
        Ok(())
    }
}

/// The keys are nobody's business.
impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traffic(..)")
    }
}

impl Keys {
    fn next_opening(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }

    fn next_sealing(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }
}

/// RFC 8446 section 6: every alert but the end of the peer's bytes ends the connection, whatever
/// its level says; `user_canceled` announces that end.
fn alert(content: &[u8]) -> Result<Said, Error> {
    let &[_level, description] = content else {
        return Err(InvalidMessage::MissingData("AlertMessagePayload").into());
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Said::End),
        AlertDescription::UserCanceled => Ok(Said::Nothing),
        description => Err(Error::AlertReceived(description)),
    }
}

/// What the peer is told of an error; nothing, if it was the one who said so.
pub(super) fn alert_of(error: &Error) -> Option<AlertDescription> {
    match error {
        Error::AlertReceived(_) => None,
        Error::DecryptError => Some(AlertDescription::BadRecordMac),
        Error::PeerSentOversizedRecord => Some(AlertDescription::RecordOverflow),
        Error::InvalidMessage(_) => Some(AlertDescription::DecodeError),
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. } => Some(AlertDescription::UnexpectedMessage),
        _ => Some(AlertDescription::InternalError),
    }
}

/// A handshake message (RFC 8446 section 4), which may come in pieces. Only its first bytes are
/// kept.
#[derive(Debug, Default)]
struct Message {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of a ticket that are still to come.
    skipped: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tickets {
    Ignored,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyUpdate {
    NotRequested,
    Requested,
}

impl Message {
    fn has_begun(&self) -> bool {
        self.filled > 0 || self.skipped > 0
    }

    /// Takes of `fragment` what belongs to this message; a key update, when one is whole.
    fn read(&mut self, fragment: &mut &[u8], tickets: Tickets) -> Result<Option<KeyUpdate>, Error> {
        if self.skipped > 0 {
            let skipped = self.skipped.min(fragment.len());
            self.skipped -= skipped;
            *fragment = &fragment[skipped..];
            return Ok(None);
        }
        let Some((&first, rest)) = fragment.split_first() else {
            return Ok(None);
        };
        *fragment = rest;
        self.head[self.filled] = first;
        self.filled += 1;
        let [kind, lengths @ .., request] = self.head;
        if self.filled < HEAD_BYTES - 1 {
            return Ok(None);
        }
        let size = u32::from_be_bytes([0, lengths[0], lengths[1], lengths[2]]) as usize;
        match HandshakeType::from(kind) {
            HandshakeType::KeyUpdate if size != 1 => Err(InvalidMessage::InvalidKeyUpdate.into()),
            HandshakeType::KeyUpdate if self.filled < HEAD_BYTES => Ok(None),
            HandshakeType::KeyUpdate => {
                self.filled = 0;
                match request {
                    0 => Ok(Some(KeyUpdate::NotRequested)),
                    1 => Ok(Some(KeyUpdate::Requested)),
                    _ => Err(InvalidMessage::InvalidKeyUpdate.into()),
                }
            }
            HandshakeType::NewSessionTicket if tickets == Tickets::Ignored => {
                if size > TICKET_BYTES_MAX {
                    return Err(InvalidMessage::HandshakePayloadTooLarge.into());
                }
                self.filled = 0;
                self.skipped = size;
                Ok(None)
            }
            got_type => Err(Error::InappropriateHandshakeMessage {
                expect_types: vec![HandshakeType::KeyUpdate],
                got_type,
            }),
        }
    }
}

const BATCH_RECORDS: usize = 8;
/// `update_not_requested`: who asks, by itself, would be asked in turn.
const KEY_UPDATE: [u8; HEAD_BYTES] = [24, 0, 0, 1, 0];
const KEY_UPDATE_BYTES: usize = HEAD_BYTES + OVERHEAD_BYTES;
const ALERT_BYTES: usize = 2 + OVERHEAD_BYTES;
/// Type, length, and all of a key update.
const HEAD_BYTES: usize = 5;
/// Records in a row that bring no content, as rustls takes of empty ones.
const BARREN_MAX: u8 = 32;
/// What RFC 8446 section 4.6.1 can make of one, and what rustls takes.
const TICKET_BYTES_MAX: usize = 0xffff;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

#[cfg(test)]
impl Traffic {
    /// Any record.
    pub(super) fn sealed(&mut self, kind: ContentType, message: &[u8]) -> Vec<u8> {
        let mut record = vec![0; message.len() + OVERHEAD_BYTES];
        self.seal_message(kind, message, &mut record).unwrap();
        record
    }

    /// As if the peer had asked for it.
    pub(super) fn key_update(&mut self) -> [u8; KEY_UPDATE_BYTES] {
        self.owes_key_update = true;
        self.update_key().unwrap().unwrap()
    }

    /// As after many records to `other`.
    pub(super) fn wear_out(&mut self, other: &mut Self) {
        self.sealing.wear_out();
        other.opening.wear_out();
    }

    pub(super) fn is_worn(&self) -> bool {
        self.sealing.is_worn()
    }
}
