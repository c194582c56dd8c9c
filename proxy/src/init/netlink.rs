//! A netfilter netlink socket: sends a transaction or a query and reads the answers.
//!
//! `netlink-bindings` encodes and decodes the messages; the socket is ours because a transaction
//! wants two things the crate's own socket does not do: no acknowledgement per message (a long
//! transaction overruns the receive buffer with them), and a time limit.

use std::{
    io::{self, Read},
    time::Duration,
};

use netlink_bindings::{
    builtin::Nlmsghdr,
    nftables::{Nfgenmsg, Request},
    traits::{NetlinkRequest, Protocol},
};
use socket2::{Domain, Socket, Type};

/// A refused message of a transaction.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Refused {
    /// What was asked for.
    pub(super) what: String,
    pub(super) source: io::Error,
}

impl Refused {
    /// Whether this kernel, or this build of it, cannot do what we ask, as opposed to not letting
    /// us, being busy, or not understanding us.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(
                // No netfilter sockets, or no netlink at all, as in some sandboxes.
                libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT
                // No nf_tables behind the socket, or none for `inet`.
                | libc::EOPNOTSUPP
                // No such type of chain or expression: before Linux 5.2 `inet` has no translation.
                | libc::ENOENT
            )
        )
    }
}

/// Messages that take effect together or not at all.
#[derive(Debug)]
pub(super) struct Transaction {
    bytes: Vec<u8>,
    /// What each message asks for; its sequence number is its index here.
    wanted: Vec<String>,
}

impl Transaction {
    pub(super) fn new() -> Self {
        let mut transaction = Self {
            bytes: Vec::new(),
            wanted: Vec::new(),
        };
        let begin = Request::new().op_batch_begin_do(&batch_header());
        transaction.push("begin the transaction".into(), &begin, Ack::No);
        transaction
    }

    pub(super) fn add(&mut self, what: String, request: &impl NetlinkRequest) {
        self.push(what, request, Ack::No);
    }

    fn push(&mut self, what: String, request: &impl NetlinkRequest, ack: Ack) {
        let seq = u32::try_from(self.wanted.len()).unwrap_or(u32::MAX);
        frame(&mut self.bytes, request, seq, ack);
        self.wanted.push(what);
    }
}

/// Whether the kernel confirms success; failure it reports always.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ack {
    Yes,
    No,
}

#[derive(Debug)]
pub(super) struct Netfilter {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.cloexec(),
            Some(libc::NETLINK_NETFILTER.into()),
        )?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            socket,
            buffer: vec![0; ANSWER_BYTES_MAX],
        })
    }

    /// Applies all of `transaction` or nothing of it.
    pub(super) fn commit(&mut self, mut transaction: Transaction) -> Result<(), Refused> {
        let end = Request::new().op_batch_end_do(&batch_header());
        transaction.push("commit the transaction".into(), &end, Ack::No);
        // Kernels before 6.10 do not confirm the end of a transaction, but the answers to its
        // messages, and to a message behind it, come in order: this query is the confirmation.
        let barrier = Request::new().op_getgen_do(&Nfgenmsg::new());
        let wanted = transaction.wanted;
        let outcome = self
            .send(&transaction.bytes)
            .and_then(|()| {
                let mut query = Vec::new();
                frame(&mut query, &barrier, BARRIER, Ack::Yes);
                self.send(&query)
            })
            .and_then(|()| self.first_error());
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some((seq, source))) => Err(Refused {
                what: usize::try_from(seq)
                    .ok()
                    .and_then(|index| wanted.into_iter().nth(index))
                    .unwrap_or_else(|| "read the rules' generation".into()),
                source,
            }),
            Err(source) => Err(Refused {
                what: "talk to nf_tables".into(),
                source,
            }),
        }
    }

    /// Reads until the barrier is answered. The first error is the cause, the rest follow from it.
    fn first_error(&mut self) -> io::Result<Option<(u32, io::Error)>> {
        let mut first = None;
        for _ in 0..ANSWERS_MAX {
            let read = (&self.socket).read(&mut self.buffer)?;
            for message in messages(&self.buffer[..read]) {
                let is_last = message.header.seq == BARRIER && message.is_error();
                if let Some(error) = message.error() {
                    first.get_or_insert((message.header.seq, error));
                }
                if is_last {
                    return Ok(first);
                }
            }
        }
        Err(io::Error::other("nf_tables does not stop answering"))
    }

    /// Passes each answer to a query to `each`.
    pub(super) fn dump<R: NetlinkRequest>(
        &mut self,
        request: &R,
        mut each: impl FnMut(R::ReplyType<'_>),
    ) -> io::Result<()> {
        let mut query = Vec::new();
        frame(&mut query, request, 1, Ack::No);
        self.send(&query)?;
        for _ in 0..ANSWERS_MAX {
            let read = (&self.socket).read(&mut self.buffer)?;
            for message in messages(&self.buffer[..read]) {
                if let Some(error) = message.error() {
                    return Err(error);
                }
                if i32::from(message.header.flags) & libc::NLM_F_DUMP_INTR != 0 {
                    return Err(io::Error::other("the rules changed while they were read"));
                }
                if i32::from(message.header.r#type) == libc::NLMSG_DONE {
                    return Ok(());
                }
                each(R::decode_reply(message.payload));
            }
        }
        Err(io::Error::other("nf_tables does not stop answering"))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes)? {
            sent if sent == bytes.len() => Ok(()),
            sent => Err(io::Error::other(format!(
                "nf_tables took {sent} of {} bytes",
                bytes.len()
            ))),
        }
    }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM_NFTABLES);
    header
}

fn frame(bytes: &mut Vec<u8>, request: &impl NetlinkRequest, seq: u32, ack: Ack) {
    let Protocol::Raw { request_type, .. } = request.protocol() else {
        unreachable!("netfilter is no generic netlink family");
    };
    let payload = request.payload();
    let len = Nlmsghdr::len() + payload.len();
    let ack = if ack == Ack::Yes { libc::NLM_F_ACK } else { 0 };
    let flags = (libc::NLM_F_REQUEST | ack) & 0xffff;
    let header = Nlmsghdr {
        len: u32::try_from(len).expect("a rule is some hundred bytes"),
        r#type: request_type,
        flags: request.flags() | u16::try_from(flags).expect("masked"),
        seq,
        pid: 0,
    };
    bytes.extend_from_slice(header.as_slice());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(NLMSG_ALIGN), 0);
}

/// One message of an answer.
struct Message<'a> {
    header: Nlmsghdr,
    payload: &'a [u8],
}

impl Message<'_> {
    /// Whether this is an answer to a message: an error or, with code 0, a confirmation.
    fn is_error(&self) -> bool {
        i32::from(self.header.r#type) == libc::NLMSG_ERROR
    }

    fn error(&self) -> Option<io::Error> {
        // The end of a dump carries a code as well.
        if !self.is_error() && i32::from(self.header.r#type) != libc::NLMSG_DONE {
            return None;
        }
        match self
            .payload
            .first_chunk()
            .map(|code| i32::from_ne_bytes(*code))
        {
            Some(code) if code < 0 => Some(io::Error::from_raw_os_error(-code)),
            Some(_) => None,
            None => Some(io::Error::other("a cut-off answer from nf_tables")),
        }
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = Nlmsghdr::new_from_slice(bytes.get(..Nlmsghdr::len())?)?;
        let len = usize::try_from(header.len).ok()?;
        let payload = bytes.get(Nlmsghdr::len()..len)?;
        bytes = bytes
            .get(len.next_multiple_of(NLMSG_ALIGN)..)
            .unwrap_or(&[]);
        Some(Message { header, payload })
    })
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM_NFTABLES: u16 = 10;

/// Sequence number of the query behind a transaction; larger than any index into one.
const BARRIER: u32 = u32::MAX;

const NLMSG_ALIGN: usize = 4;

/// The kernel fills at most 32 KiB at a time.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Bound of the read loops; our table needs two or three reads.
const ANSWERS_MAX: usize = 10_000;

/// The kernel answers within the call that asks; this is for the case that it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
