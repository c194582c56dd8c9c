//! Segments with the addresses and ports of a connection and a sequence number far from it, as
//! late duplicates and broken middleboxes send them.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A raw socket beside a connection of this host. Needs `CAP_NET_RAW`.
pub(crate) struct Tap {
    socket: Socket,
    local: SocketAddr,
    peer: SocketAddr,
    /// What the connection expects next from its peer, as far as heard.
    expected: u32,
}

impl Tap {
    /// Open it before the peer speaks: it must hear where the peer is.
    pub(crate) fn open(local: SocketAddr, peer: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(peer);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.connect(&SocketAddr::new(peer.ip(), 0).into())?;
        Ok(Self {
            socket,
            local,
            peer,
            expected: 0,
        })
    }

    /// Sends a segment in the name of this side. It acknowledges what has come, so that an answer
    /// to it would hit the connection.
    pub(crate) fn send(&mut self, sequence: u32) -> io::Result<()> {
        self.hear()?;
        let segment = self.segment(sequence);
        self.socket.send(&segment).map(drop)
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        loop {
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            // Only IPv4 sockets hear the address header.
            let skipped = match self.peer {
                SocketAddr::V4(_) => usize::from(buffer[0] & 0xf) * 4,
                SocketAddr::V6(_) => 0,
            };
            let segment = &buffer[skipped..length];
            let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
            if (port(0), port(2)) != (self.peer.port(), self.local.port()) {
                continue;
            }
            let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
            let header = usize::from(segment[12] >> 4) * 4;
            let bytes = u32::try_from(segment.len() - header).map_err(io::Error::other)?;
            self.expected = sequence.wrapping_add(bytes);
        }
    }

    /// RFC 9293 section 3.1.
    fn segment(&self, sequence: u32) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.local.port().to_be_bytes());
        segment.extend(self.peer.port().to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend(self.expected.to_be_bytes());
        segment.extend([HEADER_WORDS << 4, ACK]);
        segment.extend(WINDOW.to_be_bytes());
        segment.extend([0; 4]); // Checksum and urgent pointer.
        segment.extend(b"!");
        let checksum = checksum(self.local.ip(), self.peer.ip(), &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        segment
    }
}

/// Over the addresses, the length, the protocol and the segment.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    // The same sum for both families: where zeros stand does not matter.
    bytes.extend([0, TCP]);
    bytes.extend((segment.len() as u64).to_be_bytes());
    bytes.extend(segment);
    let words = bytes.chunks(2);
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("it was folded")
}

const HEADER_WORDS: u8 = 5;
const ACK: u8 = 0x10;
const WINDOW: u16 = 1024;
const TCP: u8 = 6;
