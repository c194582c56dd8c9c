//! Which module may name which: the dependency direction of `ARCHITECTURE.md`.

use crate::tree::SourceFile;

/// Files below `place` must not name `what`.
struct Ban {
    place: &'static str,
    what: &'static [&'static str],
    why: &'static str,
}

const BANS: [Ban; 7] = [
    Ban {
        place: "proxy/policy/src/",
        what: &[
            "tokio::",
            "hyper::",
            "http::",
            "tonic::",
            "rustls::",
            "std::net::Tcp",
            "std::fs",
        ],
        why: "policies do no I/O",
    },
    Ban {
        place: "proxy/relay/src/",
        what: &[
            "tokio::",
            "hyper::",
            "http::",
            "tonic::",
            "rustls::",
            "std::net::Tcp",
            "std::fs",
            "heddle_proto",
            "heddle_shell",
        ],
        why: "the relay core does no I/O",
    },
    Ban {
        place: "proxy/src/outbound",
        what: &["crate::xds", "heddle_proto"],
        why: "the request path sees a View, never the configuration protocol",
    },
    Ban {
        place: "proxy/src/inbound",
        what: &["crate::xds", "heddle_proto"],
        why: "the request path sees a View, never the configuration protocol",
    },
    Ban {
        place: "proxy/src/xds",
        what: &["crate::outbound", "crate::inbound", "crate::exchange"],
        why: "configuration knows nothing of requests",
    },
    Ban {
        place: "proxy/src/telemetry",
        what: &[
            "heddle_policy::balance",
            "heddle_policy::retry",
            "heddle_policy::outlier",
        ],
        why: "telemetry decides nothing",
    },
    Ban {
        place: "proxy/shell/src/",
        what: &["heddle_proto", "tonic::", "hyper::"],
        why: "the shell package has no protocol",
    },
];

/// What the file names although it may not.
pub(crate) fn faults(file: &SourceFile) -> Vec<String> {
    let bans = BANS.iter().filter(|ban| file.path.starts_with(ban.place));
    let code = file
        .text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let lines: Vec<&str> = code.collect();
    bans.flat_map(|ban| ban.what.iter().map(move |what| (ban, what)))
        .filter(|(_, what)| lines.iter().any(|line| names(line, what)))
        .map(|(ban, what)| format!("{} names {what}: {}", file.path, ban.why))
        .collect()
}

/// Whether `line` has `path` as a path of its own, not as the end of another name.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[..at]
            .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}
