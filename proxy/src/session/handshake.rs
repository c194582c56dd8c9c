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
                    while !self.another(&incoming, &mut given).map_err(invalid)? {
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

    /// Gives it one more record, if that is there; and what can become none, so that it says why.
    ///
    /// # Errors
    /// When it has all that is kept for it, and waits for more.
    fn another(&self, incoming: &[u8], given: &mut usize) -> Result<bool, Error> {
        match whole(&incoming[*given..]) {
            Ok(Whole::Yes(size)) => *given += size,
            Ok(Whole::NotYet) if incoming.len() < self.incoming_bytes_max() => return Ok(false),
            Ok(Whole::NotYet) => {
                return Err(Error::General("the handshake is too large".to_owned()));
            }
            Err(_) => *given = incoming.len(),
        }
        Ok(true)
    }

    /// Most bytes that are kept of messages that are not whole, their records' own included: rustls
    /// would take 64 KiB of a message, in records of one byte each. What one read brings beyond
    /// does no harm.
    fn incoming_bytes_max(&self) -> usize {
        match self {
            Self::Client(_) => SERVERS_BYTES_MAX,
            Self::Server(_) => CLIENTS_BYTES_MAX,
        }
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

const READ_BYTES: usize = 4096;
/// A caller is anybody. One full record, and some room for several: a ClientHello with post-quantum
/// key shares has 2 KiB, a chain of three certificates with RSA keys of 4096 bits has 6 KiB.
const CLIENTS_BYTES_MAX: usize = RECORD_BYTES_MAX + READ_BYTES;
/// An endpoint is one that we were sent to. Its whole flight may come as one piece: what it agrees
/// to, the names of all authorities that it knows, and its own chain.
const SERVERS_BYTES_MAX: usize = 2 * RECORD_BYTES_MAX + READ_BYTES;
/// What one read, or what was read ahead of it, may bring beyond the handshake; never so much.
const AFTER_BYTES_MAX: usize = WIRE_BYTES - RECORD_BYTES_MAX;
