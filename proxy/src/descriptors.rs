//! How many connections the process has descriptors for: images and service managers often leave
//! the soft limit at 1024, and the hard one far above.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Raises the soft limit to the hard one. How many connections of each direction then fit, at most
/// `wanted`.
pub fn connections_max(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(%error, "the limit on open files could not be raised");
            limit.current
        }
    };
    let fitting = fitting(current, wanted);
    if fitting < wanted {
        info!(open_files = ?current, connections = fitting, "the limit on open files (ulimit -n) limits connections in each direction");
    }
    fitting
}

/// `None` is no limit.
fn fitting(descriptors: Option<u64>, wanted: usize) -> usize {
    let Some(descriptors) = descriptors else {
        return wanted;
    };
    let each = descriptors.saturating_sub(RESERVED) / (DIRECTIONS * PER_CONNECTION);
    usize::try_from(each).unwrap_or(wanted).clamp(1, wanted)
}

/// Listeners, the control plane, health and admin connections, idle connections to endpoints.
const RESERVED: u64 = 256;
const DIRECTIONS: u64 = 2;
/// What was accepted, and what is dialled for it.
const PER_CONNECTION: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_what_they_dial_and_for_everything_else() {
        for (descriptors, expected) in [
            (None, 8192),
            (Some(1 << 20), 8192),
            (Some(4096), 960),
            (Some(1024), 192),
            (Some(256), 1),
            (Some(0), 1),
        ] {
            assert_eq!(fitting(descriptors, 8192), expected, "{descriptors:?}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        connections_max(1);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
