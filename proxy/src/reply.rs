//! From an endpoint's response to the client's: once committed, nothing can be repeated.

use std::{cell::RefCell, fmt, pin::Pin, rc::Rc, time::Instant};

use heddle_relay::error::ProxyError;
use http::{Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    body::{Body, Observed},
    channel::Sent,
    exchange::{Attempt, Direction, Ending, Exchange, Held, Spoken},
    head::{self, Head, Upgrade},
    intercept,
    relay::{Passed, relay},
    serve,
    session::Session,
    tls::Stream,
    worker::Worker,
};

/// A response that may still be thrown away for another attempt.
#[derive(Debug)]
pub struct Reply {
    /// From the endpoint.
    pub sent: Sent,
    /// Outbound: reports what became of it.
    pub attempt: Option<Attempt>,
}

/// A response that is forwarded, with what is held until its end.
#[derive(Debug)]
pub struct Committed {
    reply: Reply,
    held: Held,
    /// Of the whole exchange.
    deadline: Option<Instant>,
}

/// What a connection becomes by an upgrade. Its own task passes the bytes, so that it counts as
/// that connection until its end.
#[derive(Default)]
pub struct Tunnel(RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>);

impl Tunnel {
    /// Returns when the bytes have passed; at once if there was no upgrade.
    pub async fn pass(&self) {
        let passing = self.0.take();
        if let Some(passing) = passing {
            passing.await;
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel(..)")
    }
}

impl Committed {
    /// Nothing is repeated from here on.
    pub fn new(reply: Reply, held: Held, deadline: Option<Instant>) -> Self {
        Self {
            reply,
            held,
            deadline,
        }
    }

    /// A response that nothing else waits for.
    pub fn alone(reply: Reply, deadline: Option<Instant>) -> Self {
        Self {
            reply,
            held: Held::default(),
            deadline,
        }
    }

    /// The response for the client.
    pub fn respond(
        mut self,
        worker: &Rc<Worker>,
        tunnel: &Tunnel,
        head: Head,
        mut exchange: Exchange,
    ) -> Response<Body> {
        let sent = self.reply.sent;
        let mut response = sent.response;
        head::clean_response(&mut response, sent.is_sidecar);
        let status = response.status();
        exchange.responded(status.as_u16(), response.headers());
        if exchange.record.direction == Direction::Outbound {
            exchange.record.peer = sent.peer;
        }
        let is_grpc = exchange.record.spoken == Spoken::Grpc;
        self.held.lease = Some(sent.lease);
        let mut ending = Ending::new(exchange, self.reply.attempt, status.as_u16(), self.held);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return upgrade(worker, tunnel, head, response, ending);
        }
        let (parts, body) = response.into_parts();
        // Trailers-only must stay so: no frame may follow the head.
        if http_body::Body::is_end_stream(&body) {
            ending.completed();
            return Response::from_parts(parts, Body::Empty);
        }
        let body = Observed::new(body, self.deadline, is_grpc, ending);
        Response::from_parts(parts, Body::Observed(Box::new(body)))
    }
}

/// After `101 Switching Protocols` bytes pass both ways until both sides have ended.
fn upgrade(
    worker: &Rc<Worker>,
    tunnel: &Tunnel,
    head: Head,
    mut response: Response<hyper::body::Incoming>,
    mut ending: Ending,
) -> Response<Body> {
    let asked = head
        .upgrade
        .filter(|asked| asked.is_answered_by(response.headers()));
    let Some(Upgrade { client, .. }) = asked else {
        return ending.refused(ProxyError::BadResponse(
            "the endpoint switched to a protocol that was not asked for",
        ));
    };
    let endpoint = hyper::upgrade::on(&mut response);
    let scratch = worker.scratch.clone();
    let mut draining = worker.draining.clone();
    let revoked = worker.configs.borrow().revoked(ending.peer());
    *tunnel.0.borrow_mut() = Some(Box::pin(async move {
        let Ok((client, endpoint)) = tokio::try_join!(client, endpoint) else {
            ending.relayed(&Passed::default());
            return;
        };
        let client = session::<serve::Http1Stream>(client);
        let endpoint = session::<Stream>(endpoint);
        let (Some(mut client), Some(mut endpoint)) = (client, endpoint) else {
            ending.relayed(&Passed::default());
            return;
        };
        let passed = Passed::default();
        let cut = tokio::select! {
            biased;
            relayed = relay(&mut client, &mut endpoint, &scratch, &passed) => relayed.is_err(),
            () = draining.reached(crate::drain::Phase::Cut) => true,
            () = revoked => true,
        };
        if cut {
            // As for relayed bytes: half of a conversation must not pass for all of it.
            intercept::reset(client.socket());
            intercept::reset(endpoint.socket());
        }
        ending.relayed(&passed);
    }));
    Response::from_parts(response.into_parts().0, Body::Empty)
}

/// What is below hyper. `S` is what it was given for this connection.
fn session<S>(upgraded: Upgraded) -> Option<Session>
where
    S: AsyncRead + AsyncWrite + Into<Session> + Unpin + 'static,
{
    let parts = upgraded.downcast::<TokioIo<S>>().ok()?;
    let mut session: Session = parts.io.into_inner().into();
    session.unread(&parts.read_buf);
    Some(session)
}
