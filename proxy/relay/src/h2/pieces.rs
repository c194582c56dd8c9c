//! What waits to be sent, of all streams of a connection, in one slab: no stream has a queue
//! with memory of its own.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    head::Head,
    input::{Payload, SHARED_MIN},
    output::Output,
};

/// The pieces that wait. How many bytes that may be is the relay's to bound: a piece of a body
/// waits only within the window that its source was given.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    nodes: Vec<Node>,
    free: Option<u32>,
    /// Of bodies.
    bytes: usize,
    /// Of heads, in memory.
    head_bytes: usize,
    /// What [`Piece::Framed`] are of, until all of them have gone.
    framed: Vec<u8>,
    framed_pieces: u32,
}

/// The pieces of one stream, in order.
#[derive(Debug, Default)]
pub(super) struct Line {
    ends: Option<(u32, u32)>,
    /// Of bodies.
    pub(super) bytes: usize,
    heads: u32,
}

/// What is first in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    Nothing,
    Head,
    /// DATA frames, which go with the head before them.
    Framed,
    Data,
}

#[derive(Debug)]
struct Node {
    piece: Piece,
    next: Option<u32>,
}

#[derive(Debug)]
enum Piece {
    /// A place that is free.
    None,
    Head(Head),
    /// Of lent or short pieces, which are collected: a peer that sends a byte at a time makes no piece of
    /// each.
    Copied(BytesMut),
    /// With how long it was at first: it keeps a read alive that is up to four times as long.
    Shared(Bytes, usize),
    /// So much from a place on of `Pieces::framed`.
    Framed {
        start: usize,
        len: usize,
    },
}

impl Pieces {
    pub(super) fn push_head(&mut self, line: &mut Line, head: Head) {
        self.head_bytes += head.memory_bytes();
        line.heads += 1;
        self.push(line, Piece::Head(head));
    }

    pub(super) fn push_data(&mut self, line: &mut Line, payload: Payload<'_>) {
        let len = payload.len();
        if len == 0 {
            return;
        }
        self.bytes += len;
        line.bytes += len;
        match payload {
            Payload::Shared(bytes) if len >= SHARED_MIN => {
                self.push(line, Piece::Shared(bytes, len));
            }
            Payload::Shared(bytes) => self.push_copy(line, &bytes),
            Payload::Lent(bytes) => self.push_copy(line, bytes),
        }
    }

    fn push_copy(&mut self, line: &mut Line, bytes: &[u8]) {
        let last = line
            .ends
            .map(|(_, last)| &mut self.nodes[last as usize].piece);
        if let Some(Piece::Copied(last)) = last
            && last.len() + bytes.len() <= COPIED_BYTES_MAX
        {
            last.extend_from_slice(bytes);
            return;
        }
        self.push(line, Piece::Copied(BytesMut::from(bytes)));
    }

    /// Appends DATA frames. They come behind a head and before what is not in frames yet.
    pub(super) fn push_framed(&mut self, line: &mut Line, header: &[u8], data: &[u8]) {
        let start = self.framed.len();
        self.framed.extend_from_slice(header);
        self.framed.extend_from_slice(data);
        let len = self.framed.len() - start;
        self.framed_pieces += 1;
        self.push(line, Piece::Framed { start, len });
    }

    /// Moves the frames that are first into `output`.
    pub(super) fn move_framed(&mut self, line: &mut Line, output: &mut Output) {
        while let Some((first, _)) = line.ends
            && let Piece::Framed { start, len } = self.nodes[first as usize].piece
        {
            output.copy(&self.framed[start..start + len]);
            self.pop(line);
            self.framed_gone();
        }
    }

    pub(super) fn first(&self, line: &Line) -> First {
        let Some((first, _)) = line.ends else {
            return First::Nothing;
        };
        match self.nodes[first as usize].piece {
            Piece::Head(_) => First::Head,
            Piece::Framed { .. } => First::Framed,
            Piece::Copied(_) | Piece::Shared(..) => First::Data,
            Piece::None => First::Nothing,
        }
    }

    /// Takes the head that is first.
    pub(super) fn take_head(&mut self, line: &mut Line) -> Option<Head> {
        match self.first(line) {
            First::Head => {}
            First::Nothing | First::Framed | First::Data => return None,
        }
        let Piece::Head(head) = self.pop(line) else {
            return None;
        };
        self.head_bytes -= head.memory_bytes();
        line.heads -= 1;
        Some(head)
    }

    /// Moves the first `n` bytes, which are there before any head, into `output`.
    pub(super) fn move_data(&mut self, line: &mut Line, n: usize, output: &mut Output) {
        let mut left = n;
        while left > 0
            && let Some((first, _)) = line.ends
        {
            let moved = match &mut self.nodes[first as usize].piece {
                Piece::None | Piece::Head(_) | Piece::Framed { .. } => break,
                Piece::Copied(bytes) => {
                    let n = left.min(bytes.len());
                    output.copy(&bytes[..n]);
                    bytes.advance(n);
                    (n, bytes.is_empty())
                }
                Piece::Shared(bytes, len) => {
                    let n = left.min(bytes.len());
                    match n < SHARED_MIN {
                        true => {
                            output.copy(&bytes[..n]);
                            bytes.advance(n);
                        }
                        false => output.push(Payload::Shared(bytes.split_to(n))),
                    }
                    let is_used_up = bytes.is_empty();
                    // Else a peer that opens its window to all but a byte has us keep the whole.
                    if !is_used_up && bytes.len() < *len / 4 {
                        let copy = BytesMut::from(&bytes[..]);
                        self.nodes[first as usize].piece = Piece::Copied(copy);
                    }
                    (n, is_used_up)
                }
            };
            let (moved, is_used_up) = moved;
            if is_used_up {
                self.pop(line);
            }
            left -= moved;
        }
        debug_assert_eq!(left, 0, "so many bytes were there");
        self.bytes -= n - left;
        line.bytes -= n - left;
    }

    /// Forgets all of `line`.
    pub(super) fn clear(&mut self, line: &mut Line) {
        while line.ends.is_some() {
            match self.pop(line) {
                Piece::Head(head) => self.head_bytes -= head.memory_bytes(),
                Piece::Framed { .. } => self.framed_gone(),
                Piece::None | Piece::Copied(_) | Piece::Shared(..) => {}
            }
        }
        self.bytes -= line.bytes;
        *line = Line::default();
    }

    /// Gives back the memory; for when there is no stream, and so nothing waits.
    pub(super) fn clear_all(&mut self) {
        *self = Self::default();
    }

    /// Bytes of bodies that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of frames that wait with their heads; those that have gone count while others wait.
    pub(super) fn framed_bytes(&self) -> usize {
        self.framed.len()
    }

    /// Bytes of heads that wait, in memory.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let nodes = self.nodes.capacity() * size_of::<Node>();
        self.bytes + self.head_bytes + self.framed.capacity() + nodes
    }

    fn framed_gone(&mut self) {
        self.framed_pieces -= 1;
        if self.framed_pieces == 0 {
            self.framed.clear();
        }
    }

    fn push(&mut self, line: &mut Line, piece: Piece) {
        let node = Node { piece, next: None };
        let place = match self.free {
            Some(place) => {
                let free = &mut self.nodes[place as usize];
                self.free = free.next;
                *free = node;
                place
            }
            None => {
                let place = u32::try_from(self.nodes.len());
                self.nodes.push(node);
                place.expect("a piece has at least a byte of a window, or is one of few heads")
            }
        };
        line.ends = match line.ends {
            None => Some((place, place)),
            Some((first, last)) => {
                self.nodes[last as usize].next = Some(place);
                Some((first, place))
            }
        };
    }

    fn pop(&mut self, line: &mut Line) -> Piece {
        let Some((first, last)) = line.ends else {
            return Piece::None;
        };
        let node = &mut self.nodes[first as usize];
        line.ends = node.next.map(|next| (next, last));
        node.next = self.free;
        self.free = Some(first);
        std::mem::replace(&mut node.piece, Piece::None)
    }
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    /// Whether nothing is behind the first `n` bytes, before which is no head.
    pub(super) fn is_last_data(&self, n: usize) -> bool {
        self.bytes == n && self.heads == 0
    }
}

/// Up to it lent pieces are collected into one: a frame's worth.
const COPIED_BYTES_MAX: usize = 16 * 1024;
