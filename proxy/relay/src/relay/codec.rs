//! What a connection speaks: both protocols behind one face.

use std::time::Instant;

use super::{Settings, Speaks};
use crate::{
    event::{Broken, Code, Event, StreamId, Then},
    h1, h2,
    head::{Head, Heads},
    input::{Input, Payload},
    output::Output,
    request::Version,
    token::Token,
};

/// One of both. Boxed: a connection at rest is what there are most of.
#[derive(Debug)]
pub(super) enum Codec {
    Http1(Box<h1::Connection>),
    /// With the version of the messages that it carries.
    Http2(Box<h2::Connection>, Version),
}

/// Which side of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Http1(h1::Malformed),
    /// Its last words are in its output.
    Http2,
}

/// Why a request was not sent. Nothing has gone.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unopened {
    /// The connection takes none now.
    Busy,
    /// The endpoint takes no such large head.
    HeadTooLarge,
    /// The protocol cannot say it.
    Malformed(&'static str),
}

impl From<h1::Refusal> for Unopened {
    fn from(refusal: h1::Refusal) -> Self {
        match refusal {
            h1::Refusal::Busy => Self::Busy,
            h1::Refusal::Malformed(why) => Self::Malformed(why),
        }
    }
}

impl From<h2::Refusal> for Unopened {
    fn from(refusal: h2::Refusal) -> Self {
        match refusal {
            h2::Refusal::Busy => Self::Busy,
            h2::Refusal::HeadTooLarge => Self::HeadTooLarge,
        }
    }
}

impl From<h1::Malformed> for Fault {
    fn from(malformed: h1::Malformed) -> Self {
        Self::Http1(malformed)
    }
}

impl From<Broken> for Fault {
    fn from(_broken: Broken) -> Self {
        Self::Http2
    }
}

impl Codec {
    pub(super) fn new(
        role: Role,
        speaks: Speaks,
        is_sidecar: bool,
        settings: &Settings,
        now: Instant,
    ) -> Self {
        let limits = match is_sidecar {
            true => &settings.mesh,
            false => &settings.workload,
        };
        let (http1, http2) = match role {
            Role::Server => (h1::Role::Server, h2::Role::Server),
            Role::Client => (h1::Role::Client, h2::Role::Client),
        };
        match speaks {
            Speaks::Http1 => {
                let conn = h1::Connection::new(http1, &settings.http1);
                Self::Http1(Box::new(conn))
            }
            Speaks::Http2 => {
                let conn = h2::Connection::new(http2, limits, now);
                Self::Http2(Box::new(conn), Version::Http2)
            }
            Speaks::Http1InHttp2 => {
                let limits = h2::Limits {
                    upgrade: h2::Upgrade::Http1,
                    ..limits.clone()
                };
                let conn = h2::Connection::new(http2, &limits, now);
                Self::Http2(Box::new(conn), Version::Http1)
            }
        }
    }

    pub(super) fn receive<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fault> {
        Ok(match self {
            Self::Http1(conn) => conn.receive(input, heads, now)?,
            Self::Http2(conn, _) => conn.receive(input, heads, now)?,
        })
    }

    /// The other side has ended its direction. `false`: nothing can come of the connection any
    /// more (HTTP/2 has no half-closed connections).
    pub(super) fn ended(&mut self) -> bool {
        match self {
            Self::Http1(conn) => {
                conn.ended();
                true
            }
            Self::Http2(..) => false,
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`Unopened`].
    pub(super) fn open(
        &mut self,
        head: &Head,
        form: h1::Form,
        then: Then,
        heads: &mut Heads,
    ) -> Result<StreamId, Unopened> {
        Ok(match self {
            Self::Http1(conn) => conn.open(head, form, then)?,
            Self::Http2(conn, Version::Http1) if needs_a_word(head, form) => {
                let mut changed = heads.copy(head);
                form.mark(&mut changed);
                // A tunnel begins where a request without a body is over; without an upgrade the
                // endpoint answers as if it did not know the protocol (RFC 9110 section 7.8).
                if then == Then::More || head.get(Token::Method) == Some(b"HEAD") {
                    changed.retain(|field| field.token != Token::Protocol);
                }
                let opened = conn.open(&changed, then, heads);
                heads.give(changed);
                opened?
            }
            Self::Http2(conn, _) => conn.open(head, then, heads)?,
        })
    }

    /// As a client's connection: an endpoint has answered.
    pub(super) fn served(&mut self, stream: StreamId) {
        if let Self::Http2(conn, _) = self {
            conn.served(stream);
        }
    }

    /// As an endpoint's connection: whether another had better be used for a while.
    pub(super) fn is_worn(&mut self, now: Instant) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(conn, _) => conn.is_worn(now),
        }
    }

    pub(super) fn send_head(
        &mut self,
        stream: StreamId,
        head: &Head,
        then: Then,
        heads: &mut Heads,
    ) {
        match self {
            Self::Http1(conn) => conn.send_head(stream, head, then),
            Self::Http2(conn, _) => conn.send_head(stream, head, then, heads),
        }
    }

    /// How many bytes have gone at once.
    pub(super) fn send_data(&mut self, stream: StreamId, data: Payload<'_>, then: Then) -> u32 {
        match self {
            Self::Http1(conn) => conn.send_data(stream, data, then),
            Self::Http2(conn, _) => conn.send_data(stream, data, then),
        }
    }

    pub(super) fn send_trailers(&mut self, stream: StreamId, head: &Head, heads: &mut Heads) {
        match self {
            Self::Http1(conn) => conn.send_trailers(stream, head),
            Self::Http2(conn, _) => conn.send_trailers(stream, head, heads),
        }
    }

    pub(super) fn reset(&mut self, stream: StreamId, code: Code) {
        match self {
            Self::Http1(conn) => conn.reset(stream),
            Self::Http2(conn, _) => conn.reset(stream, code),
        }
    }

    /// Nothing more is wanted of the stream; what is sent goes first.
    pub(super) fn stop(&mut self, stream: StreamId) {
        match self {
            Self::Http1(conn) => conn.reset(stream),
            Self::Http2(conn, _) => conn.stop(stream),
        }
    }

    pub(super) fn release(&mut self, stream: StreamId, bytes: u32) {
        match self {
            Self::Http1(conn) => conn.release(stream, bytes),
            Self::Http2(conn, _) => conn.release(stream, bytes),
        }
    }

    pub(super) fn fill(&mut self, room: usize, heads: &mut Heads) {
        match self {
            Self::Http1(conn) => conn.fill(room),
            Self::Http2(conn, _) => conn.fill(room, heads),
        }
    }

    pub(super) fn next_written(&mut self) -> Option<Event<'static>> {
        match self {
            Self::Http1(conn) => conn.next_written(),
            Self::Http2(conn, _) => conn.next_written(),
        }
    }

    pub(super) fn output(&mut self) -> &mut Output {
        match self {
            Self::Http1(conn) => conn.output(),
            Self::Http2(conn, _) => conn.output(),
        }
    }

    pub(super) fn expire(&mut self, now: Instant) -> Result<(), Fault> {
        match self {
            Self::Http1(conn) => conn.expire(now)?,
            Self::Http2(conn, _) => conn.expire(now)?,
        }
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Http1(conn) => conn.deadline(),
            Self::Http2(conn, _) => conn.deadline(),
        }
    }

    /// How many bytes may be handed in at once. In HTTP/2 its windows tell the other side.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Http1(conn) => conn.room(),
            Self::Http2(..) => usize::MAX,
        }
    }

    /// Whether something that came before can be looked at now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(conn) => conn.is_ready(),
            Self::Http2(..) => false,
        }
    }

    /// Whether the protocol ends the connection, and how.
    pub(super) fn ending(&self) -> h1::Ending {
        match self {
            Self::Http1(conn) => conn.ending(),
            Self::Http2(..) => h1::Ending::Open,
        }
    }

    /// How the request that came last, and has this head, was written by its client.
    pub(super) fn form(&self, head: &mut Head) -> h1::Form {
        match self {
            Self::Http1(conn) => conn.hop().form,
            Self::Http2(_, Version::Http1) => h1::Form::unmark(head),
            Self::Http2(_, Version::Http2) => h1::Form::default(),
        }
    }

    /// How messages are framed.
    pub(super) fn version(&self) -> Version {
        match self {
            Self::Http1(_) => Version::Http1,
            Self::Http2(..) => Version::Http2,
        }
    }

    /// What messages are.
    pub(super) fn carries(&self) -> Version {
        match self {
            Self::Http1(_) => Version::Http1,
            Self::Http2(_, version) => *version,
        }
    }

    /// Whether there is room for another request.
    pub(super) fn can_open(&self) -> bool {
        match self {
            Self::Http1(conn) => conn.can_open(),
            Self::Http2(conn, _) => conn.can_open(),
        }
    }

    /// Bytes that wait for windows or for their turn.
    pub(super) fn waiting_bytes(&self) -> usize {
        match self {
            Self::Http1(_) => 0,
            Self::Http2(conn, _) => conn.waiting_bytes(),
        }
    }

    /// Whether the other side lets nothing be sent over any stream.
    pub(super) fn is_shut(&self) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(conn, _) => conn.send_window() == 0,
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::Http1(conn) => conn.is_idle(),
            Self::Http2(conn, _) => conn.is_idle(),
        }
    }

    /// Whether the request's head has gone into the output. In HTTP/1.1 it has at once.
    pub(super) fn has_begun(&self, stream: StreamId) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(conn, _) => conn.has_begun(stream),
        }
    }

    /// A server's in HTTP/2: asks for no more requests, and for an answer to that.
    pub(super) fn goodbye_soon(&mut self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(conn, _) => {
                conn.goodbye_soon();
                conn.ping();
            }
        }
    }

    /// What is under way is the last. In HTTP/1.1 a connection with nothing under way ends.
    pub(super) fn goodbye(&mut self) {
        match self {
            Self::Http1(conn) => conn.goodbye(),
            Self::Http2(conn, _) => conn.goodbye(Code::NO_ERROR),
        }
    }

    /// Asks for a sign of life, where the protocol has one.
    pub(super) fn ping(&mut self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(conn, _) => conn.ping(),
        }
    }

    /// What streams that begin may receive, where that is told before they do.
    pub(super) fn set_stream_window(&mut self, bytes: u32) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(conn, _) => conn.set_stream_window(bytes),
        }
    }

    pub(super) fn shrink(&mut self) {
        match self {
            Self::Http1(conn) => conn.shrink(),
            Self::Http2(conn, _) => conn.shrink(),
        }
        self.output().shrink();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Http1(conn) => conn.memory_bytes(),
            Self::Http2(conn, _) => conn.memory_bytes(),
        }
    }

    /// Bytes of messages that it keeps.
    pub(super) fn kept_bytes(&self) -> usize {
        match self {
            Self::Http1(conn) => conn.kept_bytes(),
            Self::Http2(conn, _) => conn.kept_bytes(),
        }
    }

    /// Whether anything of an answer to what was sent last has come. HTTP/2 says by itself what
    /// was not processed.
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Http1(conn) => conn.is_answered(),
            Self::Http2(..) => true,
        }
    }
}

/// Whether there is something about a request of HTTP/1.1 that it has no field for.
fn needs_a_word(head: &Head, form: h1::Form) -> bool {
    form != h1::Form::default() || head.has(Token::Protocol)
}
