//! All listening sockets, made in one place, and the one thread that accepts: a connection goes
//! to the worker with the fewest.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use heddle_shell::task::Tasks;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tracing::warn;

use crate::{
    drain::{Draining, Phase},
    inbound, intercept, outbound,
    settings::Settings,
    worker::Bound,
};

/// Which side a listener serves, and what it knows.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The workload's own connections.
    Outbound(outbound::Origin),
    /// Connections to the workload.
    Inbound(inbound::Origin),
}

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Accepted {
    /// Off the acceptor's runtime.
    pub stream: std::net::TcpStream,
    /// Who called.
    pub client: SocketAddr,
    /// Where.
    pub origin: Origin,
    /// One of the connections of its direction.
    pub permit: OwnedSemaphorePermit,
    /// One of its worker's connections.
    pub load: Load,
}

/// Counts a worker's connections.
#[derive(Debug)]
pub struct Load {
    connections: Arc<AtomicUsize>,
}

/// A worker's door.
#[derive(Clone, Debug)]
pub struct Door {
    /// Bounded: accepting waits for a worker that is behind.
    pub queue: mpsc::Sender<Accepted>,
    /// How many connections it has.
    pub connections: Arc<AtomicUsize>,
}

/// Sockets that listen, and what each is for.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(std::net::TcpListener, Origin)>,
    /// Where they ended up.
    pub bound: Bound,
}

impl Listeners {
    /// Binds what the settings name.
    ///
    /// # Errors
    /// When an address cannot be bound; it is named.
    pub fn bind(settings: &Settings) -> io::Result<Self> {
        let mut listeners = Self {
            sockets: Vec::new(),
            bound: Bound::default(),
        };
        let (outbound, inbound) = (&settings.outbound, &settings.inbound);
        if let Some(at) = outbound.intercepted {
            let origin = Origin::Outbound(outbound::Origin::Intercepted);
            listeners.bound.outbound_intercepted = Some(listeners.listen(at, origin)?);
        }
        if let Some(at) = outbound.http {
            let origin = Origin::Outbound(outbound::Origin::ByAuthority);
            listeners.bound.outbound_http = Some(listeners.listen(at, origin)?);
        }
        for port in &outbound.fixed {
            let origin = Origin::Outbound(outbound::Origin::Fixed(port.destination.clone()));
            let at = listeners.listen(port.listen, origin)?;
            listeners.bound.outbound_fixed.push(at);
        }
        if let Some(at) = inbound.intercepted {
            let origin = Origin::Inbound(inbound::Origin::Intercepted);
            listeners.bound.inbound_intercepted = Some(listeners.listen(at, origin)?);
        }
        for port in &inbound.ports {
            let origin = Origin::Inbound(inbound::Origin::Port(*port));
            let at = listeners.listen(port.listen, origin)?;
            listeners.bound.inbound_ports.push(at);
        }
        Ok(listeners)
    }

    fn listen(&mut self, at: SocketAddr, origin: Origin) -> io::Result<SocketAddr> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("listening on {at}: {error}"));
        let socket = intercept::listen(at).map_err(named)?;
        let bound = socket.local_addr().map_err(named)?;
        self.sockets.push((socket, origin));
        Ok(bound)
    }

    /// Accepts until nothing new is wanted.
    pub async fn accept(self, doors: Vec<Door>, connections_max: usize, draining: Draining) {
        let [outbound, inbound] = [(); 2].map(|()| Arc::new(Semaphore::new(connections_max)));
        let mut tasks = Tasks::new();
        for (socket, origin) in self.sockets {
            let listener = match TcpListener::from_std(socket) {
                Ok(listener) => listener,
                Err(error) => {
                    warn!(%error, "a listener was lost");
                    continue;
                }
            };
            let permits = match origin {
                Origin::Outbound(_) => &outbound,
                Origin::Inbound(_) => &inbound,
            };
            let accepting = Accepting {
                listener,
                permits: Arc::clone(permits),
                origin,
                doors: doors.clone(),
            };
            tasks.spawn("accept", accepting.run(draining.clone()));
        }
        drop(doors);
        while !tasks.is_empty() {
            tasks.reap().await;
        }
    }
}

/// One listener at work.
struct Accepting {
    listener: TcpListener,
    origin: Origin,
    doors: Vec<Door>,
    permits: Arc<Semaphore>,
}

impl Accepting {
    async fn run(self, mut draining: Draining) {
        tokio::select! {
            biased;
            () = draining.reached(Phase::All) => {}
            () = self.accept_all() => {}
        }
    }

    async fn accept_all(&self) {
        loop {
            let (stream, client) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors or memory: others need the time to end.
                    warn!(%error, "accepting a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Not before, or a listener whom nobody calls would have one. Beyond the limit each
            // has one connection that waits here, and the kernel those behind it.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                return;
            };
            self.hand_over(stream, client, permit).await;
        }
    }

    async fn hand_over(&self, stream: TcpStream, client: SocketAddr, permit: OwnedSemaphorePermit) {
        // The client may be gone already; its connection then ends where it is served.
        _ = intercept::tune(&stream);
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let load = |door: &&Door| door.connections.load(Ordering::Relaxed);
        let open = self.doors.iter().filter(|door| !door.queue.is_closed());
        let Some(door) = open.min_by_key(load) else {
            return;
        };
        door.connections.fetch_add(1, Ordering::Relaxed);
        let accepted = Accepted {
            stream,
            client,
            origin: self.origin.clone(),
            permit,
            load: Load {
                connections: Arc::clone(&door.connections),
            },
        };
        // A worker that is gone takes its connections with it.
        _ = door.queue.send(accepted).await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
