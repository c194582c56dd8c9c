//! A [`Session`] as what speaks in tokio's terms reads and writes it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Scratch, Session, record::RECORD_BYTES_MAX};
use crate::{detect::Rewound, tls::AsSocket};

/// A connection, encrypted or not.
#[derive(Debug)]
pub struct Stream(Session);

impl Stream {
    /// As it came.
    pub fn plain(stream: Rewound<TcpStream>) -> Self {
        Self(stream.into())
    }
}

impl Session {
    /// Gives of what was read ahead.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let size = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..size]);
        self.ahead.advance(size);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }
}

impl From<Session> for Stream {
    fn from(session: Session) -> Self {
        Self(session)
    }
}

impl From<Stream> for Session {
    fn from(Stream(session): Stream) -> Self {
        session
    }
}

impl From<TcpStream> for Session {
    fn from(socket: TcpStream) -> Self {
        Self::plain(socket, BytesMut::new())
    }
}

impl From<Rewound<TcpStream>> for Session {
    fn from(stream: Rewound<TcpStream>) -> Self {
        let (ahead, socket) = stream.into_parts();
        Self::plain(socket, ahead)
    }
}

impl From<Rewound<Stream>> for Session {
    fn from(stream: Rewound<Stream>) -> Self {
        let (ahead, Stream(mut session)) = stream.into_parts();
        session.unread(&ahead);
        session
    }
}

impl AsSocket for Stream {
    fn socket(&self) -> &TcpStream {
        self.0.socket()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self(session) = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !session.ahead.is_empty() {
            session.give(buffer);
            return Poll::Ready(Ok(()));
        }
        if session.tls.is_none() {
            return Pin::new(&mut session.socket).poll_read(cx, buffer);
        }
        let scratch = Scratch::of_this_thread();
        // A record cannot be opened in parts.
        let bytes_max = buffer.remaining().max(RECORD_BYTES_MAX);
        let mut rest = Vec::new();
        let received = session.poll_receive_at_most(cx, &scratch, bytes_max, &mut |bytes| {
            let size = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..size]);
            rest.extend_from_slice(&bytes[size..]);
        });
        session.unread(&rest);
        // The end is that nothing was given.
        received.map_ok(|_received| ())
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, parts, &Scratch::of_this_thread())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
