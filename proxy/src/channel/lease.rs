//! A connection in use by one request, and what became of it.

use std::rc::{Rc, Weak};

use heddle_policy::spiffe::Peer;
use heddle_relay::error::ProxyError;
use heddle_shell::causes::chain;
use heddle_shell::clock;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{
    Unsent,
    pool::{Channel, Http1},
    shared::Http2,
};
use crate::{body::Body, head};

/// Permission to use a connection for one request.
#[derive(Debug)]
pub enum Lease {
    /// One stream.
    Http2(Http2Lease),
    /// The whole connection.
    Http1(Http1Lease),
}

/// See [`Lease`].
#[derive(Debug)]
pub struct Http2Lease {
    pub(super) connection: Rc<Http2>,
    pub(super) channel: Weak<Channel>,
}

/// See [`Lease`].
#[derive(Debug)]
pub struct Http1Lease {
    /// `None` once it was given back or broke.
    pub(super) connection: Option<Http1>,
    pub(super) channel: Weak<Channel>,
    pub(super) is_reused: bool,
}

impl Lease {
    pub(super) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        match self {
            Self::Http2(lease) => {
                head::to_http2(&mut request);
                lease
                    .connection
                    .sender
                    .clone()
                    .try_send_request(request)
                    .await
            }
            Self::Http1(lease) => {
                head::to_http1(&mut request);
                let connection = lease.connection.as_mut().expect("a lease is used once");
                connection.sender.try_send_request(request).await
            }
        }
    }

    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Http2(lease) => lease.connection.peer.clone(),
            Self::Http1(lease) => lease
                .connection
                .as_ref()
                .map_or(Peer::Anonymous, |connection| connection.peer.clone()),
        }
    }

    pub(super) fn is_sidecar(&self) -> bool {
        match self {
            Self::Http2(lease) => lease.connection.is_sidecar,
            Self::Http1(lease) => lease
                .connection
                .as_ref()
                .is_some_and(|connection| connection.is_sidecar),
        }
    }

    /// The connection is not to be used again.
    pub(super) fn spoil(&mut self) {
        match self {
            // hyper has marked it as closed.
            Self::Http2(_) => {}
            Self::Http1(lease) => lease.connection = None,
        }
    }

    pub(super) fn broke(&mut self, error: hyper::Error) -> Unsent {
        let is_stale = match self {
            Self::Http2(_) => false,
            Self::Http1(lease) => lease.is_reused && is_before_response(&error),
        };
        self.spoil();
        let error = if is_unprocessed(&error) {
            ProxyError::Refused(chain(&error))
        } else {
            ProxyError::Reset(chain(&error))
        };
        Unsent { error, is_stale }
    }
}

impl Http2Lease {
    pub(super) fn new(connection: Rc<Http2>, channel: &Rc<Channel>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self {
            connection,
            channel: Rc::downgrade(channel),
        }
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        let was_full = !connection.has_room_apart();
        connection.streams.set(connection.streams.get() - 1);
        connection.used.set(clock::now());
        if was_full && let Some(channel) = self.channel.upgrade() {
            channel.changed.notify_waiters();
        }
    }
}

impl Drop for Http1Lease {
    /// Given back when hyper says that it is ready for the next request; if the response was not
    /// read to its end it never is, and closes.
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let home = Weak::clone(&self.channel);
        tokio::task::spawn_local(async move {
            let is_ready = connection.sender.ready().await.is_ok();
            if is_ready && let Some(channel) = home.upgrade() {
                connection.used = clock::now();
                let mut idle = channel.http1.borrow_mut();
                if idle.len() < HTTP1_IDLE_MAX {
                    idle.push(connection);
                }
                drop(idle);
                channel.changed.notify_waiters();
            }
        });
    }
}

/// Whether the endpoint says that it processed nothing: REFUSED_STREAM, or a GOAWAY below the
/// stream's id (RFC 9113 sections 6.8 and 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let Some(error) = find::<h2::Error>(error) else {
        return false;
    };
    error.is_remote()
        && (error.is_go_away()
            || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

/// Whether an HTTP/1.1 connection ended before any byte of the response.
fn is_before_response(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || find::<std::io::Error>(error).is_some()
}

fn find<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

/// Idle HTTP/1.1 connections of one worker to one endpoint; beyond, they are closed.
const HTTP1_IDLE_MAX: usize = 256;
