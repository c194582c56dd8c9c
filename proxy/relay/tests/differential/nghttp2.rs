//! nghttp2's server, in a process of its own (`nghttpd` of Debian package nghttp2-server).

use std::{
    env,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::Heard;

pub(crate) struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    /// `None` where it is not installed; that is a fault where all peers have to be.
    #[expect(clippy::print_stderr, reason = "what is left out is said")]
    pub(crate) fn start() -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let started = Command::new("nghttpd")
            .args(["--no-tls", "--address", "127.0.0.1"])
            .arg(address.port().to_string())
            .current_dir(env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if started
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            let is_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!is_ci, "no nghttpd (Debian package nghttp2-server)");
            eprintln!("SKIP: no nghttpd (Debian package nghttp2-server)");
            return None;
        }
        let process = started.expect("nghttpd starts");
        Some(Self { process, address })
    }

    /// What it writes for `bytes`, until it has read all of them or ends the connection.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Heard {
        let mut stream = self.connect();
        // It may close before it has read all.
        let _ = stream
            .write_all(bytes)
            .and_then(|()| stream.write_all(&PING));
        let mut written = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = stream.read(&mut piece);
            let is_reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
            if read.as_ref().is_err_and(is_reset) {
                break;
            }
            let n = read.expect("it answers or closes");
            if n == 0 {
                break;
            }
            written.extend_from_slice(&piece[..n]);
            if has_pong(&written) {
                break;
            }
        }
        let mut heard = Heard::default();
        heard.frames(&written[..whole(&written)]);
        heard
    }

    fn connect(&mut self) -> TcpStream {
        loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => {
                    let timeout = stream.set_read_timeout(Some(PATIENCE));
                    timeout.expect("it is not zero");
                    return stream;
                }
                Err(error) => {
                    let ended = self.process.try_wait().expect("it is a child");
                    assert!(ended.is_none(), "nghttpd has ended: {ended:?}, {error}");
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// Whether the answer to [`PING`] is among the frames.
fn has_pong(bytes: &[u8]) -> bool {
    frames(bytes).any(|frame| frame[3] == 6 && frame[4] == 1 && frame[9..] == PING[9..])
}

/// Up to which byte there are whole frames.
fn whole(bytes: &[u8]) -> usize {
    frames(bytes).map(<[u8]>::len).sum()
}

fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let [l1, l2, l3, ..] = bytes else { return None };
        let len = 9 + u32::from_be_bytes([0, *l1, *l2, *l3]) as usize;
        let (frame, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        Some(frame)
    })
}

/// Answered when all before it was read.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// More than a busy machine takes; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
