//! The sockets of the data path: listeners, original destinations, dialling, resets. The only
//! file of the path that sets socket options; the packet rules are made by [`crate::init`].
//!
//! ```text
//! app ── connect ──> rules REDIRECT ──> outbound listener ── original_dst ──> where it wanted to go
//! peer ─ connect ──> rules REDIRECT ──> inbound listener  ── original_dst ──> which port of the app
//! ```
//!
//! Nothing the proxy sends is redirected, with one exception that it asks for: a connection to
//! the pod's own address which must meet the pod's own inbound listener (a workload that calls
//! its own service). It marks these by their source address, [`SELF_CALL_V4`] or
//! [`SELF_CALL_V6`]. The inbound side dials the application without a mark, so that the path
//! cannot loop by forgetting something, and so that the application sees the pod's address as
//! its client and never a loopback address, which some applications trust.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Source address of the proxy's connections to its own pod that its inbound side must see.
pub const SELF_CALL_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// As [`SELF_CALL_V4`]. IPv6 has one loopback address only; the rules except destinations on it.
pub const SELF_CALL_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Where a redirected connection was going. An IPv4 address is never written in its IPv6 form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// Which side of the proxy dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// To an endpoint. An address of this pod is reached through its inbound listener.
    Outbound,
    /// To the application of this pod, past the redirect rules.
    Inbound,
}

/// Listens, for blocking and non-blocking use alike (the socket is non-blocking, as tokio wants).
/// `[::]` takes both families, and becomes `0.0.0.0` where IPv6 is switched off.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restarted sidecar must not wait for the TIME_WAIT of its predecessor.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether an IPv6 address could not be bound because there is no IPv6 here.
pub fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
    )
}

/// Where the peer of an accepted connection wanted to go. `None` when the kernel translated
/// nothing: there are no rules here, or the listener is not behind them.
///
/// A client that dialled the listener itself may also yield the listener's own address; pass the
/// answer through [`LoopGuard::refuses`].
pub fn original_dst(stream: &impl AsFd) -> io::Result<Option<OriginalDst>> {
    let socket = SockRef::from(stream);
    let local = socket.local_addr()?.as_socket().map(|local| local.ip());
    let asked = match local.map(|ip| ip.to_canonical()) {
        // Also for an IPv4 peer of a dual-stack listener: the kernel keeps it as IPv4.
        Some(IpAddr::V4(_)) => socket.original_dst_v4(),
        Some(IpAddr::V6(_)) => socket.original_dst_v6(),
        None => return Ok(None),
    };
    match asked {
        Ok(address) => Ok(address.as_socket().map(|to| OriginalDst(canonical(to)))),
        Err(error) if is_untranslated(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// No such connection in conntrack, or no conntrack in this kernel or namespace.
fn is_untranslated(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Keeps the proxy from dialling itself: a connection made *to* a listener, rather than past it,
/// would be forwarded to that listener again until the file descriptors run out.
#[derive(Clone, Debug, Default)]
pub struct LoopGuard {
    /// Ports of the listeners behind the rules, at most a handful.
    ports: Vec<u16>,
}

impl LoopGuard {
    /// Guards the given listeners; both directions belong into one guard, because each can be
    /// reached by way of the other.
    pub fn new(listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut ports: Vec<u16> = listeners.into_iter().map(|at| at.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        Self { ports }
    }

    /// Whether following `to` would come back here: a listener's port on any address of this
    /// pod. The same port of another pod is that pod's business.
    pub fn refuses(&self, to: OriginalDst) -> bool {
        self.ports.contains(&to.0.port()) && is_own_address(to.0.ip())
    }
}

/// Whether the address is one of this pod, asked of the kernel because pods gain and lose
/// addresses. A namespace that allows foreign binds (`ip_nonlocal_bind`) owns every address.
pub fn is_own_address(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    // Link-local addresses cannot be bound without naming the interface. Own, to be safe.
    ip.is_loopback() || ip.is_unspecified() || is_link_local || UdpSocket::bind((ip, 0)).is_ok()
}

/// Connects, without delay for small writes and with keepalive.
pub async fn connect(to: SocketAddr, leg: Leg) -> io::Result<TcpStream> {
    let to = canonical(to);
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if leg == Leg::Outbound && !to.ip().is_loopback() && is_own_address(to.ip()) {
        mark_self_call(&socket, to)?;
    }
    let stream = socket.connect(to).await?;
    tune(&stream)?;
    Ok(stream)
}

fn mark_self_call(socket: &TcpSocket, to: SocketAddr) -> io::Result<()> {
    bind_address_no_port(socket)?;
    let source: IpAddr = match to {
        SocketAddr::V4(_) => SELF_CALL_V4.into(),
        SocketAddr::V6(_) => SELF_CALL_V6.into(),
    };
    socket.bind((source, 0).into())
}

/// Leaves the choice of the source port to `connect`, which can share one between destinations.
/// Without it a bound source address has 28,000 ports for everything it talks to (`ip(7)`,
/// `IP_BIND_ADDRESS_NO_PORT`); the option serves both families.
#[expect(unsafe_code, reason = "socket2 does not know this option")]
fn bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call, and the option reads one
    // c_int, which outlives it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            OPTION_BYTES,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What every connection of the path wants, accepted or dialled: small writes leave at once, and
/// on an idle connection a peer that vanished without a word is noticed within [`KEEPALIVE_IDLE`]
/// plus a minute.
pub fn tune(stream: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// For connections whose peer always reads: one that has vanished is noticed also while bytes are
/// on their way to it, when the kernel sends no keepalive but goes on repeating them, for 15
/// minutes. Not for others: the kernel takes a reader that pauses for longer, and whose window is
/// therefore shut, for vanished as well.
pub fn notice_vanished(stream: &impl AsFd) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// Ends a connection by RST, dropping what was not sent: the truthful end for a client whose
/// connection the rules accepted before the endpoint was known to be unreachable. A FIN would
/// read as an orderly, empty answer.
///
/// The RST leaves when the last handle of the socket is closed: pass the stream itself, or a
/// reference and drop the stream next.
pub fn reset(stream: impl AsFd) {
    // It fails on a connection the peer has reset already, which is the wanted end.
    _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// The kernel caps it at `net.core.somaxconn` (4096 since Linux 5.4).
const BACKLOG: i32 = 4096;

const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// How long sent bytes may go unacknowledged, see [`notice_vanished`].
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

const OPTION_BYTES: libc::socklen_t = 4;

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};

    use super::*;

    fn any(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("an address"), 0)
    }

    #[track_caller]
    fn check_guard(listeners: &[&str], to: &str, refused: bool) {
        let guard = LoopGuard::new(listeners.iter().map(|at| at.parse().expect("an address")));
        let to = OriginalDst(to.parse().expect("an address"));
        assert_eq!(guard.refuses(to), refused, "{to:?}");
    }

    #[test]
    fn a_listener_of_ours_is_refused_in_both_families_and_directions() {
        for to in [
            "127.0.0.1:15001",
            "127.0.0.1:15006",
            "[::1]:15001",
            "[::1]:15006",
        ] {
            check_guard(&["[::]:15001", "[::]:15006"], to, true);
        }
        for to in [
            "0.0.0.0:15001",
            "127.8.8.8:15006",
            "[::ffff:127.0.0.1]:15001",
            "[fe80::1]:15006",
        ] {
            check_guard(&["[::]:15001", "[::]:15006"], to, true);
        }
    }

    #[test]
    fn the_listener_port_of_another_pod_and_other_ports_of_ours_pass() {
        // TEST-NET-1 and the documentation prefix: nobody's addresses.
        for to in [
            "192.0.2.1:15006",
            "[2001:db8::1]:15001",
            "127.0.0.1:80",
            "[::1]:15020",
        ] {
            check_guard(&["[::]:15001", "[::]:15006"], to, false);
        }
    }

    #[test]
    fn the_unspecified_listener_takes_both_families() {
        let listener = listen(any("::")).expect("listening");
        let port = listener.local_addr().expect("an address").port();
        listener.set_nonblocking(false).expect("blocking");
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("IPv4 is served");
        if listener.local_addr().is_ok_and(|at| at.is_ipv6()) {
            std::net::TcpStream::connect(("::1", port)).expect("IPv6 is served");
        }
    }

    #[test]
    fn a_connection_that_nothing_redirected_has_no_foreign_destination() {
        let listener = listen(any("127.0.0.1")).expect("listening");
        listener.set_nonblocking(false).expect("blocking");
        let address = listener.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        // With conntrack running the kernel names the listener, without it nothing.
        let found = original_dst(&accepted).expect("asked");
        assert!(
            found.is_none_or(|OriginalDst(to)| to == address),
            "{found:?}"
        );
    }

    #[test]
    fn a_reset_reaches_the_peer_as_an_error_not_as_an_end() {
        let listener = listen(any("127.0.0.1")).expect("listening");
        listener.set_nonblocking(false).expect("blocking");
        let address = listener.local_addr().expect("an address");
        let mut client = std::net::TcpStream::connect(address).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        reset(accepted);
        let error = client.read(&mut [0]).expect_err("no orderly end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn dialling_sets_what_the_path_relies_on() {
        let listener = listen(any("127.0.0.1")).expect("listening");
        let address = listener.local_addr().expect("an address");
        let stream = connect(address, Leg::Outbound).await.expect("connected");
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().expect("asked"));
        assert!(socket.keepalive().expect("asked"));
        // Loopback is outside the mesh, so no mark.
        assert_eq!(stream.local_addr().expect("an address").ip(), address.ip());
    }

    /// The peer's kernel answers nothing about what it has not read: not what a vanished peer looks
    /// like on every connection, but what its timer is to be set on.
    #[tokio::test]
    async fn a_vanished_peer_is_noticed_only_where_one_always_reads() {
        let listener = listen(any("127.0.0.1")).expect("listening");
        let address = listener.local_addr().expect("an address");
        let stream = connect(address, Leg::Outbound).await.expect("connected");
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().expect("asked"), None);
        notice_vanished(&stream).expect("set");
        let timeout = socket.tcp_user_timeout().expect("asked");
        assert_eq!(timeout, Some(UNACKNOWLEDGED));
    }

    #[test]
    fn marked_sockets_can_share_a_source_port_between_destinations() {
        let socket = TcpSocket::new_v4().expect("a socket");
        mark_self_call(&socket, any("192.0.2.1")).expect("marked");
        let local = SockRef::from(&socket).local_addr().expect("an address");
        let local = local.as_socket().expect("IP");
        assert_eq!(
            local,
            SocketAddr::from((SELF_CALL_V4, 0)),
            "the port is still open"
        );
    }
}
