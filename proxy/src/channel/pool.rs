//! The live connections of one worker to one endpoint, and which of them takes a request.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use heddle_policy::spiffe::Peer;
use heddle_relay::error::ConnectError;
use heddle_shell::clock;
use hyper::client::conn::http1;
use tokio::sync::Notify;

use super::{
    Freshness, Target,
    lease::{Http1Lease, Http2Lease, Lease},
    shared::{Http2, Room},
};
use crate::{body::Body, intercept::Leg, settings::Bounds};

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) http2: RefCell<Vec<Rc<Http2>>>,
    /// Most of `http2`.
    http2_max: usize,
    /// The latest used last.
    pub(super) http1: RefCell<Vec<Http1>>,
    /// A dial for HTTP/2 is under way; everybody waits for that one.
    pub(super) is_dialling: Cell<bool>,
    /// How the latest such dial ended, with its number.
    pub(super) dials: Cell<u64>,
    pub(super) failure: RefCell<Option<ConnectError>>,
    /// Told of every new, freed or failed connection.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) peer: Peer,
    pub(super) is_sidecar: bool,
    pub(super) uses: u32,
    pub(super) used: Instant,
    pub(super) retire_at: Instant,
}

impl Channel {
    /// No connection yet.
    pub(super) fn new(leg: Leg) -> Self {
        Self {
            http2: RefCell::default(),
            http1: RefCell::default(),
            http2_max: match leg {
                Leg::Outbound => HTTP2_CONNECTIONS_MAX,
                Leg::Inbound => APPLICATION_CONNECTIONS_MAX,
            },
            is_dialling: Cell::default(),
            dials: Cell::default(),
            failure: RefCell::default(),
            changed: Notify::new(),
        }
    }

    /// Whether there are as many HTTP/2 connections as there may be.
    pub(super) fn is_full(&self) -> bool {
        self.http2.borrow().len() >= self.http2_max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http2.borrow().is_empty() && self.http1.borrow().is_empty()
    }

    /// A connection that takes one more request now.
    pub(super) fn lease(
        self: &Rc<Self>,
        target: &Target,
        freshness: Freshness,
        bounds: &Bounds,
    ) -> Option<Lease> {
        if let Some(connection) = self.lease_http2(target, Room::Apart) {
            return Some(Lease::Http2(Http2Lease::new(connection, self)));
        }
        if freshness == Freshness::New {
            return None;
        }
        let now = clock::now();
        let mut idle = self.http1.borrow_mut();
        while let Some(mut connection) = idle.pop() {
            if freshness == Freshness::Recent
                && !connection.is_sidecar
                && now >= connection.used + bounds.unrepeatable_idle
            {
                // It goes, or those that were idle for too long would add up.
                return None;
            }
            if connection.sender.is_ready()
                && now < connection.retire_at
                && connection.uses < target.uses_max()
            {
                connection.uses += 1;
                return Some(Lease::Http1(Http1Lease {
                    connection: Some(connection),
                    channel: Rc::downgrade(self),
                    is_reused: true,
                }));
            }
        }
        None
    }

    /// When there may be no further connection: the requests on one then share its window.
    pub(super) fn lease_crowded(self: &Rc<Self>, target: &Target) -> Option<Lease> {
        let connection = self.lease_http2(target, Room::Any)?;
        Some(Lease::Http2(Http2Lease::new(connection, self)))
    }

    fn lease_http2(&self, target: &Target, room: Room) -> Option<Rc<Http2>> {
        let now = clock::now();
        let uses_max = target.uses_max();
        let mut connections = self.http2.borrow_mut();
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && now < connection.retire_at
                && connection.uses.get() < uses_max
        });
        let is_crowded = room == Room::Any || connections.len() >= self.http2_max;
        let mut apart = connections.iter().filter(|c| c.has_room_apart());
        let with_room = connections.iter().filter(|c| c.has_room() && is_crowded);
        let least = || with_room.min_by_key(|c| c.streams.get());
        let connection = apart.next().or_else(least)?;
        connection.uses.set(connection.uses.get().saturating_add(1));
        connection.used.set(now);
        Some(Rc::clone(connection))
    }

    pub(super) fn forget_closed(&self) {
        self.http2.borrow_mut().retain(|c| !c.sender.is_closed());
        self.http1.borrow_mut().retain(|c| !c.sender.is_closed());
        self.changed.notify_waiters();
    }
}

/// HTTP/2 connections of one worker to one endpoint; beyond, requests wait for a stream.
const HTTP2_CONNECTIONS_MAX: usize = 64;
/// The same to the application; beyond, the streams of its connections are not kept apart. Times
/// [`super::CONNECTION_WINDOW`] it is what answers that nobody reads can hold: 32 MiB.
const APPLICATION_CONNECTIONS_MAX: usize = 8;
