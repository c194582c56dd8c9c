//! A handshake over a socket, made by rustls. Records are given to it one by one: what follows the
//! last one of the handshake is not for it.

use std::{fmt, io};

use bytes::{Buf, BufMut, BytesMut};
use rustls::{
    CommonState, Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Session, WIRE_BYTES, invalid,
    record::{RECORD_BYTES_MAX, Whole, whole},
    traffic::{Keys, Traffic},
};
use crate::detect::Rewound;

/// Our side of a handshake. Its configuration must let secrets out
/// (`enable_secret_extraction`).
pub enum Handshake {
    /// We dialled.
    Client(UnbufferedClientConnection),
    /// We accepted.
    Server(UnbufferedServerConnection),
}

/// What a handshake needs to go on.
enum Next {
    /// Nothing.
    Step,
    /// That what it has written is sent.
    Send,
    /// Another record.
    Record,
}

impl Handshake {
    /// Shakes hands over `stream`. How long that may take is the caller's business. `agreed` reads
    /// what was agreed on, before that is given away.
    ///
    /// # Errors
    /// Of the socket; and [`rustls::Error`] inside of [`io::ErrorKind::InvalidData`], after the
    /// peer was told.
    pub async fn shake<T>(
        mut self,
        stream: Rewound<TcpStream>,
        agreed: impl FnOnce(&CommonState) -> T,
    ) -> io::Result<(Session, T)> {
        let (mut incoming, mut socket) = stream.into_parts();
        let mut outgoing = Vec::new();
        // How much of `incoming` it has been given.
        let mut given = 0;
        loop {
            let next = match self.step(&mut incoming, &mut given, &mut outgoing) {
                Ok(next) => next,
                Err(error) => {
                    // What rustls wrote before is taken from it without its looking at records
                    // again, which after an error it must not.
                    while self.common().wants_write()
                        && self.step(&mut incoming, &mut given, &mut outgoing).is_ok()
                    {
                    }
                    // The alert that says why; the peer may be gone, which is no worse.
                    _ = socket.try_write(&outgoing);
                    return Err(invalid(error));
                }
            };
            match next {
                Next::Step => {}
                Next::Send => {
                    socket.write_all(&outgoing).await?;
                    outgoing.clear();
                }
                Next::Record if !self.common().is_handshaking() => break,
                Next::Record => {
                    while !another(&incoming, &mut given) {
                        incoming.reserve(READ_BYTES);
                        let room = &mut (&mut incoming).limit(READ_BYTES);
                        if socket.read_buf(room).await? == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                }
            }
        }
        let agreed = agreed(self.common());
        let traffic = self.finish().map_err(invalid)?;
        if incoming.len() > AFTER_BYTES_MAX {
            return Err(invalid(Error::General(
                "too much after a handshake".to_owned(),
            )));
        }
        Ok((Session::encrypted(socket, traffic, &incoming), agreed))
    }

    fn common(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }

    fn step(
        &mut self,
        incoming: &mut BytesMut,
        given: &mut usize,
        outgoing: &mut Vec<u8>,
    ) -> Result<Next, Error> {
        let records = &mut incoming[..*given];
        let (done, next) = match self {
            Self::Client(client) => step(client.process_tls_records(records), outgoing),
            Self::Server(server) => step(server.process_tls_records(records), outgoing),
        };
        incoming.advance(done);
        *given -= done;
        next
    }

    fn finish(self) -> Result<Traffic, Error> {
        match self {
            Self::Client(client) => {
                let (secrets, keys) = client.dangerous_into_kernel_connection()?;
                Traffic::new(secrets, Keys::Client(keys))
            }
            Self::Server(server) => {
                let (secrets, keys) = server.dangerous_into_kernel_connection()?;
                Traffic::new(secrets, Keys::Server(keys))
            }
        }
    }
}

/// Its secrets are nobody's business.
impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(_) => f.write_str("Client(..)"),
            Self::Server(_) => f.write_str("Server(..)"),
        }
    }
}

/// How many bytes are done with, and what is next.
fn step<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Next, Error>) {
    let next = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(encoding) => encode(encoding, outgoing),
        ConnectionState::TransmitTlsData(sending) => {
            sending.done();
            Ok(Next::Send)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Next::Record),
        // It is asked for no early data, and given no record after its last.
        state => Err(Error::General(format!("{state:?} inside of a handshake"))),
    });
    (status.discard, next)
}

fn encode<Side>(
    mut encoding: EncodeTlsData<'_, Side>,
    outgoing: &mut Vec<u8>,
) -> Result<Next, Error> {
    let from = outgoing.len();
    let failed = |error: EncodeError| Error::General(error.to_string());
    let size = match encoding.encode(&mut []) {
        Ok(_nothing) => return Ok(Next::Step),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error @ EncodeError::AlreadyEncoded) => return Err(failed(error)),
    };
    outgoing.resize(from + size, 0);
    encoding.encode(&mut outgoing[from..]).map_err(failed)?;
    Ok(Next::Step)
}

/// Gives it one more record, if that is there; and what can become none, so that it says why.
fn another(incoming: &[u8], given: &mut usize) -> bool {
    match whole(&incoming[*given..]) {
        Ok(Whole::Yes(size)) => *given += size,
        // A handshake message of many records, longer than rustls would have it.
        Ok(Whole::NotYet) if incoming.len() < INCOMING_BYTES_MAX => return false,
        Ok(Whole::NotYet) | Err(_) => *given = incoming.len(),
    }
    true
}

const READ_BYTES: usize = 4096;
/// Most bytes that are kept: of a message of 64 KiB, which rustls takes at most, with its records'
/// own.
const INCOMING_BYTES_MAX: usize = 64 * 1024 + 2 * RECORD_BYTES_MAX;
/// What one read, or what was read ahead of it, may bring beyond the handshake; never so much.
const AFTER_BYTES_MAX: usize = WIRE_BYTES - RECORD_BYTES_MAX;
