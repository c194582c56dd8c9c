//! SETTINGS (RFC 9113 section 6.5, RFC 8441 section 3): what the peer said, and what we say.

use super::{
    Role,
    fault::Fault,
    frame::{self, Kind, MAX_31_BITS},
    limits::{Limits, Upgrade},
};
use crate::event::Code;

const HEADER_TABLE_SIZE: u16 = 0x1;
const ENABLE_PUSH: u16 = 0x2;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const MAX_FRAME_SIZE: u16 = 0x5;
const MAX_HEADER_LIST_SIZE: u16 = 0x6;
const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;

/// Every window before SETTINGS say otherwise.
pub(super) const INITIAL_WINDOW: u32 = 65_535;
/// The least that MAX_FRAME_SIZE can be.
pub(super) const FRAME_BYTES_MIN: u32 = 16 * 1024;

/// What the peer's SETTINGS say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) table_bytes_max: u32,
    /// The smallest that it was to be in the last frame: if it is 0 and 4,096 at once, the table has
    /// to be emptied (RFC 7541 section 4.2).
    pub(super) table_bytes_lowest: u32,
    /// Without a limit until the peer sets one (section 6.5.2), which `Limits::streams_max` does.
    pub(super) streams_max: u32,
    pub(super) stream_window: u32,
    pub(super) frame_bytes_max: u32,
    /// Without a limit until the peer sets one. It is advice (section 6.5.2).
    pub(super) list_bytes_max: u32,
    /// Whether extended CONNECT may be sent.
    pub(super) has_connect_protocol: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table_bytes_max: 4_096,
            table_bytes_lowest: 4_096,
            streams_max: u32::MAX,
            stream_window: INITIAL_WINDOW,
            frame_bytes_max: FRAME_BYTES_MIN,
            list_bytes_max: u32::MAX,
            has_connect_protocol: false,
        }
    }
}

impl Settings {
    /// What is said after a frame with `payload`, whose length has been checked. Only the last of
    /// many values for one setting has an effect, but for the smallest table: so a frame costs its
    /// length.
    pub(super) fn after(mut self, payload: &[u8], role: Role) -> Result<Self, Fault> {
        self.table_bytes_lowest = self.table_bytes_max;
        for setting in payload.as_chunks::<6>().0 {
            let [i1, i2, v1, v2, v3, v4] = *setting;
            let value = u32::from_be_bytes([v1, v2, v3, v4]);
            match u16::from_be_bytes([i1, i2]) {
                HEADER_TABLE_SIZE => {
                    self.table_bytes_max = value;
                    self.table_bytes_lowest = self.table_bytes_lowest.min(value);
                }
                ENABLE_PUSH if value > 1 || (value == 1 && role == Role::Client) => {
                    return Err(Fault::protocol(
                        "ENABLE_PUSH is 0, or 1 of a client (6.5.2)",
                    ));
                }
                MAX_CONCURRENT_STREAMS => self.streams_max = value,
                INITIAL_WINDOW_SIZE if value > MAX_31_BITS => {
                    let why = "INITIAL_WINDOW_SIZE above 2^31 - 1 (6.5.2)";
                    return Err(Fault::connection(Code::FLOW_CONTROL_ERROR, why));
                }
                INITIAL_WINDOW_SIZE => self.stream_window = value,
                MAX_FRAME_SIZE if !(FRAME_BYTES_MIN..1 << 24).contains(&value) => {
                    return Err(Fault::protocol("MAX_FRAME_SIZE out of its range (6.5.2)"));
                }
                MAX_FRAME_SIZE => self.frame_bytes_max = value,
                MAX_HEADER_LIST_SIZE => self.list_bytes_max = value,
                ENABLE_CONNECT_PROTOCOL if value > 1 => {
                    return Err(Fault::protocol(
                        "ENABLE_CONNECT_PROTOCOL is 0 or 1 (8441: 3)",
                    ));
                }
                ENABLE_CONNECT_PROTOCOL if value == 0 && self.has_connect_protocol => {
                    let why = "ENABLE_CONNECT_PROTOCOL was 1 before (8441: 3)";
                    return Err(Fault::protocol(why));
                }
                ENABLE_CONNECT_PROTOCOL => self.has_connect_protocol = value == 1,
                // Unknown ones are ignored (6.5.2).
                _ => {}
            }
        }
        Ok(self)
    }
}

/// Writes what a connection says first: as a client the preface; SETTINGS; and the connection's
/// window, which SETTINGS do not change.
pub(super) fn write_first(out: &mut Vec<u8>, role: Role, limits: &Limits) {
    let has_connect_protocol = u32::from(limits.upgrade == Upgrade::ExtendedConnect);
    let of_role = match role {
        Role::Client => (ENABLE_PUSH, 0),
        Role::Server => (ENABLE_CONNECT_PROTOCOL, has_connect_protocol),
    };
    let settings = [
        of_role,
        (MAX_CONCURRENT_STREAMS, limits.streams_max),
        (INITIAL_WINDOW_SIZE, limits.stream_window),
        (MAX_FRAME_SIZE, limits.frame_bytes_max),
        (MAX_HEADER_LIST_SIZE, limits.list_bytes_max),
        (HEADER_TABLE_SIZE, limits.table_bytes_max),
    ];
    if role == Role::Client {
        out.extend_from_slice(frame::PREFACE);
    }
    write(out, &settings);
    let more = limits.connection_window.saturating_sub(INITIAL_WINDOW);
    if more > 0 {
        frame::write_words(out, Kind::WindowUpdate, 0, 0, &[more]);
    }
}

pub(super) fn write_stream_window(out: &mut Vec<u8>, bytes: u32) {
    write(out, &[(INITIAL_WINDOW_SIZE, bytes)]);
}

fn write(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    out.extend_from_slice(&frame::header(Kind::Settings, 0, 0, 6 * settings.len()));
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}
