//! How many connections the process has descriptors and memory for: images and service managers
//! often leave the soft limit on open files at 1024, and pods give sidecars a small share of memory.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::machine;

/// Raises the soft limit on open files to the hard one. How many connections of each direction
/// then fit, at most `wanted`.
pub fn connections_max(wanted: usize) -> usize {
    let (open_files, memory_bytes) = (raise_open_files(), machine::memory_bytes());
    let by_files = fitting(open_files, FILES, wanted);
    if by_files < wanted {
        info!(
            open_files,
            connections = by_files,
            "the limit on open files (ulimit -n) limits connections in each direction"
        );
    }
    let by_memory = fitting(memory_bytes, BYTES, wanted).max(CONNECTIONS_MIN.min(wanted));
    if by_memory == CONNECTIONS_MIN {
        warn!(
            memory_bytes,
            connections = by_memory,
            "the memory limit of the cgroup is too small for a busy sidecar; 64 MiB are better"
        );
    } else if by_memory < wanted {
        info!(
            memory_bytes,
            connections = by_memory,
            "the memory limit of the cgroup limits connections in each direction"
        );
    }
    by_files.min(by_memory)
}

/// The limit then in force; `None` is none.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(%error, "the limit on open files could not be raised");
            limit.current
        }
    }
}

/// What of a resource a sidecar needs without any connection, and what a connection takes.
#[derive(Clone, Copy)]
struct Need {
    at_rest: u64,
    per_connection: u64,
}

/// At rest: listeners, the control plane, health and admin connections, idle connections to
/// endpoints. A connection: what was accepted, and what is dialled for it.
const FILES: Need = Need {
    at_rest: 256,
    per_connection: 2,
};

/// At rest: 15 MiB with 20 destinations, and as much again for more of them and for bodies on
/// their way. A connection: both sides' TLS, HTTP and socket buffers, measured at 25 to 40 KiB
/// (`netns`, `memory::more_connections_than_fit`).
const BYTES: Need = Need {
    at_rest: 32 << 20,
    per_connection: 40 << 10,
};

const DIRECTIONS: u64 = 2;

/// Taken in each direction however small the memory limit is: many never come.
const CONNECTIONS_MIN: usize = 64;

/// `None` is no limit.
fn fitting(limit: Option<u64>, need: Need, wanted: usize) -> usize {
    let Some(limit) = limit else {
        return wanted;
    };
    let each = limit.saturating_sub(need.at_rest) / (DIRECTIONS * need.per_connection);
    usize::try_from(each).unwrap_or(wanted).clamp(1, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_what_they_dial_and_for_everything_else() {
        for (need, limit, expected) in [
            (FILES, None, 8192),
            (FILES, Some(1 << 20), 8192),
            (FILES, Some(4096), 960),
            (FILES, Some(1024), 192),
            (FILES, Some(256), 1),
            (FILES, Some(0), 1),
            (BYTES, None, 8192),
            (BYTES, Some(1 << 30), 8192),
            (BYTES, Some(128 << 20), 1228),
            (BYTES, Some(64 << 20), 409),
            (BYTES, Some(16 << 20), 1),
        ] {
            assert_eq!(fitting(limit, need, 8192), expected, "{limit:?}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        connections_max(1);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
