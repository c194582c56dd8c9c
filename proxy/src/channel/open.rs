//! New connections to endpoints, up to where they take requests, and the task that drives each.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use heddle_policy::{admission::Slot, snapshot::Transport};
use heddle_relay::error::ConnectError;
use heddle_shell::clock;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rand::RngExt;

use super::{
    BUFFER_BYTES_MAX, Channels, HEADERS_MAX, Target,
    cut::{Cut, Cuttable},
    http2_builder,
    pool::{Channel, Http1},
    shared::{Http2, streams_apart},
};
use crate::{
    detect::Rewound,
    error::of_io,
    intercept::{self, Leg},
    tls::{self, Agreed, AsSocket, Established},
};

impl Channels {
    pub(super) async fn dial_without_limit(
        &self,
        target: &Target,
    ) -> Result<Established, ConnectError> {
        let config = match &target.endpoint.transport {
            Transport::Plain => None,
            Transport::Mtls(accepted) => {
                let mut configs = self.configs.borrow_mut();
                Some(configs.client(accepted, target.carries)?)
            }
        };
        let stream = intercept::connect(target.endpoint.address, self.leg)
            .await
            .map_err(|error| of_io(&error))?;
        let stream = Rewound::new(stream);
        match config {
            None => {
                let agreed = Agreed::of_plaintext(target.carries);
                Ok(Established::in_plaintext(stream, agreed))
            }
            Some(config) => Ok(tls::connect(stream, config, &target.name).await?),
        }
    }

    pub(super) async fn open_http2(
        &self,
        established: Established,
        slot: Slot,
        channel: &Rc<Channel>,
    ) -> Result<Rc<Http2>, ConnectError> {
        let Established {
            stream,
            peer,
            agreed,
        } = established;
        if self.leg == Leg::Outbound {
            intercept::notice_vanished(stream.socket()).map_err(|error| of_io(&error))?;
        }
        let cut = Rc::<Cut>::default();
        let stream = Cuttable::new(stream, Rc::clone(&cut));
        let mut builder = http2_builder(self.leg);
        if agreed.is_sidecar {
            // Others may take pings for an attack (gRPC servers do).
            builder.keep_alive_interval(PING_INTERVAL);
            builder.keep_alive_timeout(PING_TIMEOUT);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Tcp(error.to_string()))?;
        let revoked = self.configs.borrow().revoked(&peer);
        let streams_max = Rc::new(Cell::new(connection.current_max_send_streams()));
        let watched = Rc::clone(&streams_max);
        drive(channel, slot, async move {
            let mut connection = pin!(connection);
            // Its end is seen by those who use it.
            let mut ended = pin!(poll_fn(|cx| {
                let ended = connection.as_mut().poll(cx);
                watched.set(connection.current_max_send_streams());
                ended
            }));
            tokio::select! {
                biased;
                _ = ended.as_mut() => {}
                () = revoked => {
                    cut.cut();
                    _ = ended.await;
                }
            }
        });
        Ok(Rc::new(Http2 {
            sender,
            peer,
            is_sidecar: agreed.is_sidecar,
            streams: Cell::new(0),
            streams_max,
            streams_apart: streams_apart(self.leg),
            uses: Cell::new(0),
            used: Cell::new(clock::now()),
            retire_at: self.retire_at(),
        }))
    }

    pub(super) async fn open_http1(
        &self,
        established: Established,
        slot: Slot,
        channel: &Rc<Channel>,
    ) -> Result<Http1, ConnectError> {
        let Established {
            stream,
            peer,
            agreed,
        } = established;
        let (sender, connection) = http1_builder()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Tcp(error.to_string()))?;
        let revoked = self.configs.borrow().revoked(&peer);
        drive(channel, slot, async move {
            tokio::select! {
                biased;
                // Its end is seen by those who use it.
                _ = connection.with_upgrades() => {}
                () = revoked => {}
            }
        });
        Ok(Http1 {
            sender,
            peer,
            is_sidecar: agreed.is_sidecar,
            // By the request it was opened for.
            uses: 1,
            used: clock::now(),
            retire_at: self.retire_at(),
        })
    }

    /// Give or take 20 %, so that connections made together do not end together.
    fn retire_at(&self) -> Instant {
        let share = self.rng.borrow_mut().random_range(0.8..1.2);
        clock::now() + self.bounds.connection_age.mul_f64(share)
    }
}

/// Runs a connection in a task of its own, until its end is told to the channel.
fn drive(channel: &Rc<Channel>, slot: Slot, connection: impl Future<Output = ()> + 'static) {
    let home = Rc::downgrade(channel);
    tokio::task::spawn_local(async move {
        let _slot = slot;
        connection.await;
        if let Some(channel) = home.upgrade() {
            channel.forget_closed();
        }
    });
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
}

const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
